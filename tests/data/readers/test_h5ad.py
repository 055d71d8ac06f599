"""The .h5ad reader gives exactly what is in the file, or says in one sentence what is wrong with it."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.data.readers.open import open_sample
from sckit.errors import DataError

N_CELLS, N_GENES = 7, 5


def known_anndata(matrix):
    return anndata.AnnData(
        matrix,
        obs=pd.DataFrame({"tissue": ["blood", "lung"] * 3 + ["blood"]}, index=[f"cell{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame({"gene_ids": [f"ENSG0000000000{i}.2" for i in range(N_GENES)]}, index=list("ABCDE")),
    )


@pytest.mark.parametrize("cells_per_block", [1, 3, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize(
    "storage", [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, np.asarray], ids=["csr", "csc", "dense"]
)
def test_h5ad_of_any_storage_is_read_exactly(tmp_path, storage, dtype, cells_per_block, known, dense, open_source):
    known_anndata(storage(known.astype(dtype))).write_h5ad(tmp_path / "x.h5ad")
    source = open_source(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(dense(source, cells_per_block=cells_per_block), known)
    np.testing.assert_array_equal(dense(source, cells_per_block=cells_per_block, start=3), known[3:])
    assert source.genes.ids[0] == "ENSG00000000000.2"
    assert source.genes.symbols.tolist() == list("ABCDE")
    assert source.obs.index.tolist() == [f"cell{i}" for i in range(N_CELLS)]
    assert source.obs["tissue"].tolist()[:2] == ["blood", "lung"]


def test_layer_and_raw_are_read_instead_of_a_normalised_x(tmp_path, known, dense, open_source):
    data = known_anndata(known.astype(np.float32) * 2)
    data.raw = data.copy()
    data = data[:, ["B", "D"]].copy()
    data.layers["counts"] = data.X.copy()
    data.X = data.X / 8
    data.write_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(dense(open_source(tmp_path / "x.h5ad", layer="counts")), 2 * known[:, [1, 3]])
    raw = open_source(tmp_path / "x.h5ad", raw=True)
    np.testing.assert_array_equal(dense(raw), 2 * known)
    assert raw.genes.symbols.tolist() == list("ABCDE")
    with pytest.raises(
        DataError,
        match=r"Cell 'cell0' of .*x\.h5ad holds 1\.25 in X.*; try to give it as .*::layer=counts or .*::raw\.",
    ):
        dense(open_source(tmp_path / "x.h5ad"))
    with pytest.raises(DataError, match="no layer 'nope'; its layers are: counts"):
        open_source(tmp_path / "x.h5ad", layer="nope")


def test_h5ad_without_x_names_its_layers(tmp_path, known, open_source):
    data = known_anndata(known.astype(np.float32))
    data.layers["umi_counts"] = data.X
    del data.X
    data.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"has no X; try to give it as .*::layer=umi_counts\."):
        open_source(tmp_path / "x.h5ad")


def test_antibody_features_are_left_out_and_counted(tmp_path, known, dense, open_source):
    data = known_anndata(known.astype(np.float32))
    data.var["feature_types"] = ["Gene Expression"] * 3 + ["Antibody Capture"] * 2
    data.write_h5ad(tmp_path / "x.h5ad")
    source = open_source(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(dense(source), known[:, :3])
    assert source.dropped == {"features that are not gene expression": 2}


def test_sample_comes_back_as_whole_counts(dense):
    source = open_sample()
    counts = dense(source)
    assert counts.shape == (700, 765)
    assert (source.totals >= counts.sum(axis=1)).all()
    np.testing.assert_array_equal(source.totals, source.obs["n_counts"])


@pytest.mark.filterwarnings("ignore")
def test_old_layout_of_the_sample_equals_anndata(dense):
    source = open_sample()
    data = anndata.read_h5ad(source.path)
    pd.testing.assert_frame_equal(source.obs, data.obs, check_names=False)
    assert source.genes.symbols.tolist() == data.raw.var_names.tolist()
    np.testing.assert_array_equal(dense(source) > 0, data.raw.X.toarray() > 0)


def break_h5ad(path, known, value):
    counts = known.astype(np.float32)
    counts[2, 1] = value
    known_anndata(scipy.sparse.csr_matrix(counts)).write_h5ad(path / "x.h5ad")
    return path / "x.h5ad"


def truncate(path, known):
    whole = break_h5ad(path, known, 4).read_bytes()
    (path / "cut.h5ad").write_bytes(whole[: len(whole) * 2 // 3])
    return path / "cut.h5ad"


def corrupt_data(path, known):
    """Overwrite a compressed chunk so that it cannot be unpacked."""
    file_path = path / "x.h5ad"
    known_anndata(scipy.sparse.csr_matrix(known)).write_h5ad(file_path, compression="gzip")
    with h5py.File(file_path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    with file_path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    return file_path


def wrong_index(path, known):
    file_path = break_h5ad(path, known, 4)
    with h5py.File(file_path, "r+") as file:
        file["X/indices"][0] = 99
    return file_path


def no_cells(path, known):
    known_anndata(known.astype(np.float32))[:0].copy().write_h5ad(path / "x.h5ad")
    return path / "x.h5ad"


BROKEN = {
    "fractional": (
        lambda path, known: break_h5ad(path, known, 0.5),
        r"Cell 'cell2' of .*x\.h5ad holds 0\.5 in X, which is not whole",
    ),
    "negative": (
        lambda path, known: break_h5ad(path, known, -3),
        r"Cell 'cell2' of .* holds -3\.0 in X, which is negative",
    ),
    "nan": (
        lambda path, known: break_h5ad(path, known, np.nan),
        r"Cell 'cell2' of .* holds nan in X, which is no number",
    ),
    "infinite": (lambda path, known: break_h5ad(path, known, np.inf), r"Cell 'cell2' of .* holds inf in X"),
    "truncated-h5": (truncate, r"cut\.h5ad cannot be read: it is truncated"),
    "corrupt-chunk": (corrupt_data, r"x\.h5ad cannot be read: it is truncated or corrupt"),
    "gene-number-outside": (wrong_index, r"x\.h5ad is corrupt: an entry names feature 99 of 5"),
    "no-cells": (no_cells, r"x\.h5ad is empty: it holds 0 cells and 5 genes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_h5ad_is_one_sentence(tmp_path, known, case, open_source):
    make, message = BROKEN[case]
    path = make(tmp_path, known)
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(path).blocks())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("part", ["obs/_index", "obs/tissue/codes", "obs/tissue/categories", "var/gene_ids"])
def test_a_huge_list_in_a_table_is_refused_unread(tmp_path, known, open_source, part):
    data = known_anndata(scipy.sparse.csr_matrix(known.astype(np.float32)))
    data.strings_to_categoricals()
    data.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "a") as file:
        attributes = dict(file[part].attrs)
        del file[part]
        huge = file.create_dataset(part, (2**40,), "i8", chunks=(2**16,))  # no room on disk, 8 TB in memory
        huge.attrs.update(attributes)
    with pytest.raises(
        DataError, match=rf"is corrupt: {part} has the shape \(1099511627776,\), and the matrix has [57]"
    ):
        open_source(tmp_path / "x.h5ad")


def test_a_column_without_values_is_refused(tmp_path, known, open_source):
    known_anndata(scipy.sparse.csr_matrix(known.astype(np.float32))).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "a") as file:
        del file["var/gene_ids"]
        file.create_group("var/gene_ids")
    with pytest.raises(DataError, match="the column var/gene_ids holds neither codes nor values"):
        open_source(tmp_path / "x.h5ad")


@pytest.mark.parametrize("labels", [[b"B", b"T"], b"B"], ids=["several", "one-alone"])
def test_tables_of_records_take_their_labels_from_uns(tmp_path, known, dense, labels, open_source):
    path = tmp_path / "old.h5ad"
    codes = np.arange(N_CELLS) % np.size(labels)
    cells, genes = ([(f"{kind}{i}".encode(), code) for i, code in enumerate(codes)] for kind, codes in
                    (("c", codes), ("g", np.zeros(N_GENES))))  # fmt: skip
    with h5py.File(path, "w") as file:  # as AnnData before 0.7 wrote it
        file["X"] = known
        file["obs"] = np.array(cells, dtype=[("index", "S8"), ("kind", "i1")])
        file["var"] = np.array(genes, dtype=[("index", "S8"), ("n", "i1")])
        file.create_dataset("uns/kind_categories", data=labels)
    source = open_source(path)
    np.testing.assert_array_equal(dense(source), known)
    assert source.obs["kind"].tolist() == [np.ravel(labels)[code].decode() for code in codes]
    assert source.genes.symbols.tolist() == [f"g{i}" for i in range(N_GENES)]
