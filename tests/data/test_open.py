"""A store holds the inputs exactly, gives any cells in any order, and does not open when it is not whole."""

import json
import pickle
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.store import describe, open_store
from sckit.errors import DataError

N_CELLS, N_GENES = 23, 11


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(st.integers(0, N_CELLS - 1), max_size=40))
def test_rows_gathers_any_cells_in_the_order_given(tmp_path_factory, cells, known_counts, write_h5ad, dense):
    path = tmp_path_factory.getbasetemp() / "rows.sckit"
    if not path.exists():
        source = write_h5ad(tmp_path_factory.getbasetemp() / "rows.h5ad")
        prepare([source], path, config=PrepareConfig(cells_per_shard=4))
    cells = np.array(cells, dtype=np.int64)
    np.testing.assert_array_equal(dense(open_store(path), cells), known_counts()[cells])


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (5, 10), (6, 9), (3, 12), (0, 23), (7, 7), (23, 23), (20, 23)])
def test_block_equals_rows(sharded, start, stop):
    for ours, theirs in zip(sharded.block(start, stop), sharded.rows(np.arange(start, stop)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_block_inside_a_shard_is_a_view_of_the_file(sharded):
    _, genes, counts = sharded.block(6, 9)
    assert not genes.flags.owndata
    assert not counts.flags.owndata
    assert (genes.dtype, counts.dtype) == (np.uint16, np.uint8)


def test_counts_are_stored_in_the_narrowest_type_of_each_shard(sharded, known_counts, dense):
    assert sharded.block(20, 21)[2].dtype == np.uint16  # a count of 301
    assert sharded.rows(np.array([20]))[2].dtype == np.uint32
    assert dense(sharded).max() == known_counts().max() > 255


@pytest.mark.parametrize("layout", ["mapped", "compact"])
def test_shards_that_are_read_are_not_kept_open(tmp_path, write_h5ad, layout):
    config = PrepareConfig(cells_per_shard=1, layout=layout)
    store = prepare([write_h5ad(tmp_path / "x.h5ad")], tmp_path / "s.sckit", config=config)
    before = len([*Path("/proc/self/fd").iterdir()])
    assert store.rows(np.arange(N_CELLS))[0][-1] == store.nonzeros
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.parametrize("cells", [[-1], [23], [0, 99]])
def test_a_cell_that_is_not_there_is_an_index_error(sharded, cells):
    with pytest.raises(IndexError, match=r"0\.\.22"):
        sharded.rows(np.array(cells))
    with pytest.raises(IndexError):
        sharded.block(0, 24)


def test_tables_and_report_agree_with_the_counts(sharded, known_counts):
    counts = known_counts()
    assert list(sharded.obs.columns) == ["cell", "source", "total_counts", "n_genes"]
    np.testing.assert_array_equal(sharded.obs["total_counts"], counts.sum(axis=1))
    np.testing.assert_array_equal(sharded.obs["n_genes"], (counts > 0).sum(axis=1))
    np.testing.assert_array_equal(sharded.totals(np.array([4, 2])), counts.sum(axis=1)[[4, 2]])
    np.testing.assert_array_equal(sharded.genes["n_cells"], (counts > 0).sum(axis=0))
    assert sharded.genes["symbol"].tolist() == [f"gene{i}" for i in range(N_GENES)]
    report = sharded.report
    assert list(report) == [
        "command", "store", "cells", "genes", "nonzeros", "dropped", "bytes", "wall_s", "peak_rss_bytes",
    ]  # fmt: skip
    assert (report["cells"], report["genes"], report["nonzeros"]) == (N_CELLS, N_GENES, (counts > 0).sum())
    on_disk = sum(path.stat().st_size for path in sharded.path.rglob("*.npy"))
    assert report["bytes"] == on_disk + sum(path.stat().st_size for path in sharded.path.glob("*.parquet"))
    json.dumps(report)
    assert ("cells", "23") in describe(sharded)


def test_a_store_crosses_process_borders_as_its_path(sharded, known_counts, dense):
    again = pickle.loads(pickle.dumps(sharded))
    np.testing.assert_array_equal(dense(again), known_counts())


def test_no_input_means_the_sample(tmp_path):
    store = prepare([], tmp_path / "s.sckit")
    assert (store.n_cells, store.n_genes) == (700, 765)
    assert store.manifest["is_sample"]
    np.testing.assert_array_equal(store.obs["total_counts"], store.obs["n_counts"])


def test_real_counts_come_back_exactly(shared_data, tmp_path):
    path = shared_data / "kang_ifnb" / "kang_ifnb.h5ad"
    store = prepare([path], tmp_path / "s.sckit")
    data = anndata.read_h5ad(path)
    indptr, genes, counts = store.block(0, store.n_cells)
    np.testing.assert_array_equal(indptr, data.X.indptr)
    np.testing.assert_array_equal(genes, data.X.indices)
    np.testing.assert_array_equal(counts, data.X.data)
    assert store.obs["cell"].tolist() == data.obs_names.tolist()
    assert store.obs["assay"].tolist() == data.obs["assay"].tolist()
    store.verify()


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        *(("mapped", file) for file in ("shards/00002.counts.npy", "shards/00000.indptr.npy", "genes.parquet")),
        *(("compact", file) for file in ("shards/00001.entries.bin", "shards/00000.chunks.npy", "obs.parquet")),
    ],
)
def test_damage_is_named(tmp_path, write_h5ad, layout, file):
    config = PrepareConfig(cells_per_shard=5, layout=layout)
    sharded = prepare([write_h5ad(tmp_path / "x.h5ad")], tmp_path / "s.sckit", config=config)
    path = sharded.path / file
    whole = path.read_bytes()
    sharded.verify()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{file} does not have the checksum"):
        open_store(sharded.path).verify()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"{file} has {len(whole) - 1} bytes instead of {len(whole)}"):
        open_store(sharded.path)
    path.unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        open_store(sharded.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"is not a store \(it has no manifest\.json\)"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is not the manifest of a store"),
        ('{"format": "sckit store", "version": 99}', "version 99, and this sckit reads 1"),
    ],
)
def test_what_is_not_a_store_does_not_open(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_store(tmp_path)


def rewrite(store, name, change):
    """Put another file into a store, with its size in the manifest, and open the store again."""
    path = store.path / name
    change(path)
    manifest = json.loads((store.path / "manifest.json").read_text())
    for records in (manifest["tables"], *(shard["files"] for shard in manifest["shards"])):
        if name in records:
            records[name]["bytes"] = path.stat().st_size
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    return open_store(store.path)


@pytest.mark.parametrize(
    "values",
    [np.zeros(6, [("a", "i4")]), np.zeros((2, 6), np.int64), np.zeros(6), np.array(["x"] * 6), np.array(5)],
    ids=["records", "two-dimensional", "fractions", "text", "scalar"],
)
def test_a_shard_of_another_form_is_refused_also_by_info(sharded, values):
    store = rewrite(sharded, "shards/00001.indptr.npy", lambda path: np.save(path, values))
    for use in (lambda: store.rows(np.array([5])), lambda: describe(store)):
        with pytest.raises(DataError, match="shard 1 is not what its manifest says"):
            use()


@pytest.mark.parametrize(("old", "new"), [("'<i8'", "'|Vi8'"), ("{", "{" * 5000)], ids=["type", "brackets"])
def test_a_broken_head_of_an_array_is_refused(sharded, old, new):
    def change(path):
        data = path.read_bytes()
        head = data[10:128].decode().replace(old, new, 1).encode()
        path.write_bytes(data[:8] + len(head).to_bytes(2, "little") + head + data[128:])

    store = rewrite(sharded, "shards/00001.indptr.npy", change)
    with pytest.raises(DataError, match=r"is corrupt: shard 1 has a broken"):
        store.rows(np.array([5]))


def test_a_gene_that_the_store_does_not_have_is_refused(sharded):
    def change(path):
        genes = np.load(path)
        genes[-1] = sharded.n_genes
        np.save(path, genes)

    store = rewrite(sharded, "shards/00001.genes.npy", change)
    cells = np.arange(store.n_cells)
    for use in (store.rows, store.located, lambda cells: store.block(cells[0], cells[-1] + 1)):
        with pytest.raises(DataError, match="shard 1 holds a count of a gene that the store does not have"):
            use(cells)
        use(cells[:2])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        pytest.param("cell", [None] * N_CELLS, id="missing"),
        pytest.param("cell", [["a", "b"]] * N_CELLS, id="lists"),
        pytest.param("source", range(N_CELLS), id="numbers"),
        pytest.param("total_counts", [1.5] * N_CELLS, id="fractions"),
        pytest.param("n_genes", ["7"] * N_CELLS, id="text"),
    ],
)
def test_columns_of_obs_that_prepare_would_not_write_are_refused(sharded, column, values):
    frame = sharded.obs.assign(**{column: values})
    store = rewrite(sharded, "obs.parquet", frame.to_parquet)
    with pytest.raises(DataError, match=r"obs\.parquet is not the table of this store"):
        _ = store.obs
