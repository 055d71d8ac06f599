"""A store holds the inputs exactly, survives kills, refuses to open when it is not whole, and needs bounded memory."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.errors import ConfigError, DataError
from sckit.store import PrepareConfig, describe, open_store, prepare
from sckit.store_write import source_names

N_CELLS, N_GENES = 23, 11


def known_counts(n_cells=N_CELLS, n_genes=N_GENES):
    row, gene = np.indices((n_cells, n_genes))
    return (row * 3 + gene * 5) % 7 * ((row + gene) % 2) + (gene == row % n_genes) * (1 + 300 * (row == 20))


def write_h5ad(path, counts=None, *, symbols=None, obs=None):
    counts = known_counts() if counts is None else counts
    index = [f"cell{i}" for i in range(len(counts))]
    obs = pd.DataFrame(index=index) if obs is None else obs.set_index(pd.Index(index))
    var = pd.DataFrame(index=symbols or [f"gene{i}" for i in range(counts.shape[1])])
    anndata.AnnData(scipy.sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


def dense(store, cells=None):
    cells = np.arange(store.n_cells) if cells is None else cells
    indptr, genes, counts = store.rows(cells)
    return scipy.sparse.csr_matrix(
        (counts, genes.astype(np.int64), indptr), shape=(len(cells), store.n_genes)
    ).toarray()


def folder_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def sharded(tmp_path):
    """A store of 23 cells in shards of 5, 5, 5, 5 and 3."""
    return prepare([write_h5ad(tmp_path / "x.h5ad")], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=5))


# ---- what was written comes back


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(st.integers(0, N_CELLS - 1), max_size=40))
def test_rows_gathers_any_cells_in_the_order_given(tmp_path_factory, cells):
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


def test_counts_are_stored_in_the_narrowest_type_of_each_shard(sharded):
    assert sharded.block(20, 21)[2].dtype == np.uint16  # a count of 301
    assert sharded.rows(np.array([20]))[2].dtype == np.uint32
    assert dense(sharded).max() == known_counts().max() > 255


@pytest.mark.parametrize("cells", [[-1], [23], [0, 99]])
def test_a_cell_that_is_not_there_is_an_index_error(sharded, cells):
    with pytest.raises(IndexError, match=r"0\.\.22"):
        sharded.rows(np.array(cells))
    with pytest.raises(IndexError):
        sharded.block(0, 24)


def test_tables_and_report_agree_with_the_counts(sharded):
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


def test_a_store_crosses_process_borders_as_its_path(sharded):
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


# ---- several inputs, filters, chosen genes: nothing is lost in silence


def test_inputs_are_joined_and_every_loss_is_counted(tmp_path):
    counts = known_counts(6, 4)
    obs = pd.DataFrame({"assay": ["10x 3' v2"] * 4 + ["Drop-seq"] * 2})
    (tmp_path / "a").mkdir()
    with pytest.warns(UserWarning, match="not unique"):
        first = write_h5ad(tmp_path / "a" / "run.h5ad", counts, symbols=["A", "B", "A", "C"], obs=obs)
    second = write_h5ad(tmp_path / "run.h5ad", counts, symbols=["C", "X", "A", "Y"])
    third = write_h5ad(
        tmp_path / "merfish.h5ad", counts[:2], symbols=list("WXYZ"), obs=pd.DataFrame({"assay": ["MERFISH"] * 2})
    )
    store = prepare([first, second, third], tmp_path / "s.sckit", config=PrepareConfig(min_counts=9))
    totals = counts.sum(axis=1)
    keep_first, keep_second = (totals >= 9) & (np.arange(6) < 4), totals >= 9
    expected = np.concatenate(
        [np.stack([counts[:, 0] + counts[:, 2], counts[:, 3]], axis=1)[keep_first], counts[:, [2, 0]][keep_second]]
    )
    has_count = expected.any(axis=1)
    assert store.genes["symbol"].tolist() == ["A", "C"]
    np.testing.assert_array_equal(dense(store), expected[has_count])
    np.testing.assert_array_equal(
        store.obs["total_counts"], np.concatenate([totals[keep_first], totals[keep_second]])[has_count]
    )
    assert set(store.obs["source"]) <= {"run", "run-2"}
    lost_late = int((~has_count).sum())
    dropped = store.manifest["dropped"]
    assert totals.min() < 9 < totals.max()
    assert dropped == {
        "genes that not every input has": 3,
        "cells of assay 'Drop-seq'": 2,
        "cells of assay 'MERFISH'": 2,
        "cells with fewer than 9 counts": int((totals[:4] < 9).sum() + (totals < 9).sum()),
        **({"cells without a count in the kept genes": lost_late} if lost_late else {}),
    }
    sources = store.manifest["sources"]
    assert [source["kept"] for source in sources] == [
        int((store.obs["source"] == name).sum()) for name in ("run", "run-2", "merfish")
    ]
    assert [source["genes_summed"] for source in sources] == [1, 0, 0]
    assert [source["has_assay"] for source in sources] == [True, False, True]
    assert sum(n for reason, n in dropped.items() if reason.startswith("cells")) + store.n_cells == 14


def test_chosen_genes_keep_the_total_over_all_genes(tmp_path):
    source = write_h5ad(tmp_path / "x.h5ad")
    store = prepare([source], tmp_path / "hvg.sckit", config=PrepareConfig(genes=4, cells_per_shard=6))
    numbers = [int(name.removeprefix("gene")) for name in store.genes["symbol"]]
    assert store.n_genes == 4
    assert store.manifest["dropped"]["genes not chosen"] == N_GENES - 4
    kept = known_counts()[:, numbers].any(axis=1)
    np.testing.assert_array_equal(dense(store), known_counts()[kept][:, numbers])
    np.testing.assert_array_equal(store.obs["total_counts"], known_counts().sum(axis=1)[kept])


def test_gene_list_sets_genes_and_their_order(tmp_path):
    (tmp_path / "genes.txt").write_text("gene7\nnope\ngene2\n")
    config = PrepareConfig(genes=str(tmp_path / "genes.txt"))
    store = prepare([write_h5ad(tmp_path / "x.h5ad")], tmp_path / "s.sckit", config=config)
    assert store.genes["symbol"].tolist() == ["gene7", "gene2"]
    assert store.manifest["dropped"]["lines of the gene list that match no gene"] == 1


def test_obs_columns_of_every_kind_survive(tmp_path):
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(["a", None] * 11 + ["b"]),
            "text": [f"t{i}" for i in range(N_CELLS)],
            "number": np.arange(N_CELLS) / 2,
            "flag": [True, False] * 11 + [True],
        }
    )
    store = prepare([write_h5ad(tmp_path / "x.h5ad", obs=obs)], tmp_path / "s.sckit")
    pd.testing.assert_frame_equal(store.obs[list(obs)], obs.astype({"text": "category"}))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        pytest.param(["a/x.h5ad", "b/x.h5ad", "y.h5"], ["x", "x-2", "y"], id="same-file-name"),
        pytest.param(
            ["s1/outs/filtered_feature_bc_matrix.h5", "s2/outs/filtered_feature_bc_matrix"],
            ["s1", "s2"],
            id="cell-ranger",
        ),
        pytest.param(["x", "x", "x-2"], ["x", "x-2", "x-2-2"], id="name-that-is-taken"),
        pytest.param(["x-2", "x", "x"], ["x-2", "x", "x-3"], id="name-that-was-taken"),
    ],
)
def test_inputs_get_names_of_their_own(paths, names):
    assert source_names([Path(path) for path in paths]) == names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"min_genes": 99}, "No cell is left of 23: 23 cells with fewer than 99 genes", id="nothing-left"),
        pytest.param({"obs_filter": "assay == 'x'"}, r"No cell is left of 23: 23 cells outside", id="no-label-matches"),
        pytest.param({"genes": 3, "min_genes": 99}, "No cell is left of 23", id="nothing-left-to-choose-genes-from"),
        pytest.param({"max_mito": 0.1}, "no gene whose symbol begins with MT-", id="no-mito-genes"),
        pytest.param({"genes": "nope.txt"}, r"nope\.txt cannot be read", id="no-gene-list"),
        pytest.param({"layer": "nope"}, "no layer 'nope'", id="unknown-layer"),
        pytest.param({"obs_filter": "colour == 1"}, "'colour' is not defined", id="unknown-column"),
    ],
)
def test_bad_data_leaves_nothing_behind(tmp_path, config, message):
    source = write_h5ad(tmp_path / "x.h5ad", obs=pd.DataFrame({"assay": ["10x 3' v2"] * N_CELLS}))
    with pytest.raises(DataError, match=message):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(**config))
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


def test_fractions_in_a_late_cell_leave_nothing_behind(tmp_path):
    counts = known_counts().astype(np.float32)
    counts[20, 3] = 0.5
    source = write_h5ad(tmp_path / "x.h5ad", counts)
    with pytest.raises(DataError, match=r"Cell 'cell20' of .* holds 0\.5 in X"):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=4))
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


@pytest.mark.parametrize(
    "options",
    [
        {"genes": 0}, {"genes": "-3"}, {"assay": " "}, {"max_mito": 1.2}, {"min_genes": -1}, {"duplicates": "drop"},
        {"layer": "counts", "raw": True}, {"cells_per_shard": 0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="--"):
        PrepareConfig(**options)


# ---- never a store that opens but is wrong


def test_an_existing_store_is_replaced_only_when_told(tmp_path, sharded):
    smaller = write_h5ad(tmp_path / "y.h5ad", known_counts(3))
    with pytest.raises(ConfigError, match=r"s\.sckit exists already; .*--overwrite"):
        prepare([smaller], sharded.path)
    assert prepare([smaller], sharded.path, overwrite=True).n_cells == 3
    (tmp_path / "precious").mkdir()
    with pytest.raises(ConfigError, match="precious is not a store"):
        prepare([smaller], tmp_path / "precious", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "s.sckit", "x.h5ad", "y.h5ad"]


@pytest.mark.parametrize("file", ["shards/00002.counts.npy", "shards/00000.indptr.npy", "genes.parquet", "obs.parquet"])
def test_damage_is_named(sharded, file):
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
        ("[]", "is not the manifest of a store"),
        ('{"format": "sckit store", "version": 99}', "version 99, and this sckit reads 1"),
    ],
)
def test_what_is_not_a_store_does_not_open(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_store(tmp_path)


def test_a_full_disk_leaves_no_store_and_the_next_call_continues(tmp_path, monkeypatch):
    source = write_h5ad(tmp_path / "x.h5ad")
    config = PrepareConfig(cells_per_shard=5)
    monkeypatch.setattr("sckit.store_shard.ShardBuffer.write", _fails_at_shard(2))
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room"):
        prepare([source], tmp_path / "s.sckit", config=config)
    assert not (tmp_path / "s.sckit").exists()
    monkeypatch.undo()
    seen = []
    prepare([source], tmp_path / "s.sckit", config=config, progress=lambda *step: seen.append(step))
    assert seen == [(15, 23, "writing"), (20, 23, "writing"), (23, 23, "writing")]
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(tmp_path / "s.sckit") == folder_bytes(tmp_path / "straight.sckit")


def _fails_at_shard(bad):
    from sckit.store_files import ShardBuffer

    write = ShardBuffer.write

    def fail(self, folder, number):
        if number == bad:
            raise OSError(28, os.strerror(28))
        return write(self, folder, number)

    return fail


@pytest.mark.parametrize("change", ["input", "config"])
def test_work_on_other_inputs_or_settings_is_not_reused(tmp_path, monkeypatch, change):
    source = write_h5ad(tmp_path / "x.h5ad")
    monkeypatch.setattr("sckit.store_shard.ShardBuffer.write", _fails_at_shard(2))
    with pytest.raises(DataError, match="No space"):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=5))
    monkeypatch.undo()
    config = PrepareConfig(cells_per_shard=5, min_genes=2 if change == "config" else None)
    if change == "input":
        write_h5ad(source, known_counts()[::-1])
    prepare([source], tmp_path / "s.sckit", config=config)
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(tmp_path / "s.sckit") == folder_bytes(tmp_path / "straight.sckit")


PREPARE_SLOWLY = """
import sys, time
from sckit.store import PrepareConfig, prepare
prepare([sys.argv[1]], sys.argv[2], config=PrepareConfig(genes=150, cells_per_shard=100),
        progress=lambda *step: time.sleep(0.02))
"""


def test_a_killed_prepare_continues_byte_for_byte(tmp_path, rng):
    counts = rng.poisson(0.2, (4000, 200))
    source = write_h5ad(tmp_path / "x.h5ad", counts)
    config = PrepareConfig(genes=150, cells_per_shard=100)
    out, records = tmp_path / "s.sckit", tmp_path / "s.sckit.partial" / "work"
    process = subprocess.Popen([sys.executable, "-c", PREPARE_SLOWLY, source, out], cwd=Path(__file__).parents[1])
    kill_at = int(rng.integers(1, 30))
    deadline_s = time.monotonic() + 60
    while len(list(records.glob("*.npz"))) < kill_at:
        assert process.poll() is None, "prepare ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with pytest.raises(DataError, match="is not a store"):
        open_store(tmp_path / "s.sckit.partial")
    seen = []
    prepare([source], out, config=config, progress=lambda *step: seen.append(step))
    assert seen[0][0] >= kill_at * 100, "finished shards were written again"
    assert {label for _, _, label in seen} == {"writing"}, "the genes were chosen again"
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(out) == folder_bytes(tmp_path / "straight.sckit")
    assert not (tmp_path / "s.sckit.partial").exists()


MEASURE = """
import sys
from sckit.store import PrepareConfig, prepare
report = prepare([sys.argv[1]], sys.argv[2], config=PrepareConfig(cells_per_shard=8192)).report
print(report["peak_rss_bytes"], report["cells"])
"""


@pytest.mark.parametrize("storage", ["csr", "csc"])
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path, storage):
    peaks = {}
    for n_cells in (20_000, 80_000):
        path = tmp_path / f"{n_cells}.h5ad"
        _write_big(path, n_cells, storage)
        command = [sys.executable, "-c", MEASURE, path, tmp_path / f"{n_cells}.sckit"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        peaks[n_cells], cells = map(int, result.stdout.split())
        assert cells == n_cells
    added_bytes = 60_000 * 100 * 8  # as the file holds them
    assert peaks[80_000] - peaks[20_000] < added_bytes / 2


def _write_big(path, n_cells, storage):
    """100 counts in each cell over 2,000 genes, without ever building the table in anndata."""
    starts = np.arange(n_cells)[:, None] * 37
    genes = np.sort((starts + np.arange(100) * 13) % 2000, axis=1).ravel().astype(np.int32)
    values = (genes % 5 + 1).astype(np.float32)
    matrix = scipy.sparse.csr_matrix((values, genes, np.arange(0, n_cells * 100 + 1, 100)), shape=(n_cells, 2000))
    obs = pd.DataFrame(index=pd.Index(np.arange(n_cells).astype(str)))
    var = pd.DataFrame(index=[f"gene{i}" for i in range(2000)])
    anndata.AnnData(matrix.asformat(storage), obs=obs, var=var).write_h5ad(path)
