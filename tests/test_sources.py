"""Every reader gives exactly the counts, genes and cells of a file, or says in one sentence what is wrong with it."""

import gzip
import shutil
import tarfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.errors import ConfigError, DataError
from sckit.sources import open_sample, open_source
from sckit.sources_block import cell_of_entry, gene_table, tidy
from sckit.sources_spool import CellSpool

N_CELLS, N_GENES = 7, 5


def known_counts(n_cells=N_CELLS, n_genes=N_GENES):
    """Counts that can be predicted from (row, gene); the last cell is empty."""
    row, gene = np.indices((n_cells, n_genes))
    counts = (row * 3 + gene * 5) % 7 * ((row + gene) % 2)
    counts[-1] = 0
    return counts


def known_anndata(matrix):
    return anndata.AnnData(
        matrix,
        obs=pd.DataFrame({"tissue": ["blood", "lung"] * 3 + ["blood"]}, index=[f"cell{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame({"gene_ids": [f"ENSG0000000000{i}.2" for i in range(N_GENES)]}, index=list("ABCDE")),
    )


def read(source, **options):
    """All blocks of a source as one sparse matrix; checks the promises of a block on the way."""
    rows = []
    for block in source.blocks(**options):
        assert block.indptr.dtype == np.int64
        assert block.genes.dtype == np.int32
        assert block.counts.dtype == np.uint32
        assert len(block.obs) == len(block.indptr) - 1
        assert (block.counts > 0).all()
        matrix = scipy.sparse.csr_matrix(
            (block.counts, block.genes, block.indptr), shape=(len(block.obs), len(source.genes))
        )
        assert matrix.has_canonical_format
        rows.append(matrix)
    return scipy.sparse.vstack(rows, format="csr")


def dense(source, **options):
    return read(source, **options).toarray()


def write_mtx(folder, *, order="cell", features="features.tsv", zipped=False, kind="integer"):
    """Write the known counts as Cell Ranger would; `order` of the lines is "cell" or "gene"."""
    folder.mkdir()
    cells, genes = np.nonzero(known_counts()) if order == "cell" else np.nonzero(known_counts().T)[::-1]
    values = known_counts()[cells, genes]
    lines = [f"%%MatrixMarket matrix coordinate {kind} general", "%", f"{N_GENES} {N_CELLS} {len(cells)}"]
    lines += [f"{gene + 1} {cell + 1} {value}" for cell, gene, value in zip(cells, genes, values, strict=True)]
    texts = {
        "matrix.mtx": "\n".join(lines) + "\n",
        features: "".join(f"ENSG{i}\tgene{i}\tGene Expression\n" for i in range(N_GENES)),
        "barcodes.tsv": "".join(f"cell{i}\n" for i in range(N_CELLS)),
    }
    for name, text in texts.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return folder


# ---- files as 10x wrote them, against scanpy


TENX_FOLDERS = [
    "cellranger_3.0.0/filtered_feature_bc_matrix",
    "cellranger_1.2.0/filtered_gene_bc_matrices/hg19_chr21",
    "cellranger_2.0_hg19_chr21/filtered_gene_bc_matrices/hg19",
    "cellranger_lt_50genes/filtered_feature_bc_matrix",
    "spaceranger_3.0.0_mouse_visium/filtered_feature_bc_matrix",
]
TENX_H5 = [
    ("cellranger_3.0.0/filtered_feature_bc_matrix.h5", None),
    ("cellranger_1.2.0/filtered_gene_bc_matrices_h5.h5", None),
    ("cellranger_1.2.0/multiple_genomes.h5", "hg19_chr21"),
    ("cellranger_1.2.0/multiple_genomes.h5", "another_genome"),
    ("cellranger_lt_50genes/filtered_feature_bc_matrix.h5", None),
]


def assert_equals_scanpy(source, expected):
    assert (read(source, cells_per_block=1000) != expected.X).nnz == 0
    assert source.genes.ids.tolist() == expected.var["gene_ids"].tolist()
    assert source.genes.symbols.tolist() == expected.var_names.tolist()
    assert source.obs.index.tolist() == expected.obs_names.tolist()
    assert source.dropped == {}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("folder", TENX_FOLDERS)
def test_mtx_folder_equals_scanpy(shared_data, folder):
    import scanpy

    path = shared_data / "tenx_original" / folder
    assert_equals_scanpy(open_source(path), scanpy.read_10x_mtx(path, make_unique=False))


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(("file", "genome"), TENX_H5)
def test_tenx_h5_equals_scanpy(shared_data, file, genome):
    import scanpy

    path = shared_data / "tenx_original" / file
    assert_equals_scanpy(open_source(path, genome=genome), scanpy.read_10x_h5(path, genome=genome))


def test_two_genomes_are_listed_and_asked_for(shared_data):
    path = shared_data / "tenx_original" / "cellranger_1.2.0" / "multiple_genomes.h5"
    with pytest.raises(DataError, match=r"another_genome, hg19_chr21.*--genome"):
        open_source(path)
    with pytest.raises(DataError, match=r"no genome 'mm10'; it holds: another_genome"):
        open_source(path, genome="mm10")


def test_old_folder_above_its_only_genome_is_enough(shared_data):
    folder = shared_data / "tenx_original" / "cellranger_2.0_hg19_chr21" / "filtered_gene_bc_matrices"
    assert dense(open_source(folder)).sum() == dense(open_source(folder / "hg19")).sum() > 0


def test_soma_equals_tiledbsoma(shared_data, tmp_path):
    import tiledbsoma

    with tarfile.open(shared_data / "soma_pbmc_small" / "soma-exp-pbmc-small.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = open_source(tmp_path)
    with tiledbsoma.open(str(tmp_path)) as experiment:
        coordinates = experiment.ms["RNA"].X["counts"].read().coos((80, 230)).concat().to_scipy()
        obs = experiment.obs.read().concat().to_pandas()
        var = experiment.ms["RNA"].var.read().concat().to_pandas()
    np.testing.assert_array_equal(dense(source, cells_per_block=33), coordinates.toarray())
    assert source.obs.index.tolist() == obs["obs_id"].tolist()
    assert source.genes.symbols.tolist() == var["var_id"].tolist()
    assert source.obs["groups"].tolist() == obs["groups"].tolist()
    with pytest.raises(DataError, match=r"holds 4\.96882 in X layer 'data', .*; try --layer counts\."):
        dense(open_source(tmp_path, layer="data"))
    with pytest.raises(DataError, match=r"no X layer 'nope'; its layers are: counts, data, scale_data"):
        open_source(tmp_path, layer="nope")
    with pytest.raises(ConfigError, match="--layer instead of --raw"):
        open_source(tmp_path, raw=True)
    with pytest.raises(DataError, match="ms is a Collection, not a SOMA experiment"):
        open_source(tmp_path / "ms")
    for file in (tmp_path / "ms" / "RNA" / "X" / "counts").rglob("a0.tdb"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"cannot be read: truncated.*IO Error"):
        dense(source)


def test_soma_with_scattered_join_ids_like_a_slice_of_the_census(tmp_path):
    import pyarrow as pa
    import tiledbsoma

    cell_ids, gene_ids = np.arange(N_CELLS) ** 2 + 5, np.arange(N_GENES) * 3
    schema = {"soma_joinid": pa.int64(), "assay": pa.large_string()}
    obs = pa.table({"soma_joinid": cell_ids, "assay": ["10x 3' v3"] * N_CELLS}, schema=pa.schema(schema))
    names = {"feature_id": [f"ENSG0000000000{i}" for i in range(N_GENES)], "feature_name": list("ABCDE")}
    var = pa.table({"soma_joinid": gene_ids, **{name: pa.array(names[name], pa.large_string()) for name in names}})
    cells, genes = np.nonzero(known_counts())
    values = known_counts()[cells, genes].astype(np.float32)
    matrix = {"soma_dim_0": cell_ids[cells], "soma_dim_1": gene_ids[genes], "soma_data": values}
    with tiledbsoma.Experiment.create(str(tmp_path / "x")) as experiment:
        domain = [[0, 99]]
        experiment.add_new_dataframe("obs", schema=obs.schema, domain=domain).write(obs)
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        rna.add_new_dataframe("var", schema=var.schema, domain=domain).write(var)
        layers = rna.add_new_collection("X")
        layers.add_new_sparse_ndarray("raw", type=pa.float32(), shape=(100, 100)).write(pa.table(matrix))
    source = open_source(tmp_path / "x")
    np.testing.assert_array_equal(dense(source, cells_per_block=3), known_counts())
    assert source.genes.ids.tolist() == names["feature_id"]
    assert source.genes.symbols.tolist() == names["feature_name"]
    assert source.obs["assay"].tolist() == ["10x 3' v3"] * N_CELLS
    assert source.obs.index.tolist() == cell_ids.tolist()


# ---- h5ad


@pytest.mark.parametrize("cells_per_block", [1, 3, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize(
    "storage", [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, np.asarray], ids=["csr", "csc", "dense"]
)
def test_h5ad_of_any_storage_is_read_exactly(tmp_path, storage, dtype, cells_per_block):
    known_anndata(storage(known_counts().astype(dtype))).write_h5ad(tmp_path / "x.h5ad")
    source = open_source(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(dense(source, cells_per_block=cells_per_block), known_counts())
    np.testing.assert_array_equal(dense(source, cells_per_block=cells_per_block, start=3), known_counts()[3:])
    assert source.genes.ids[0] == "ENSG00000000000.2"
    assert source.genes.symbols.tolist() == list("ABCDE")
    assert source.obs.index.tolist() == [f"cell{i}" for i in range(N_CELLS)]
    assert source.obs["tissue"].tolist()[:2] == ["blood", "lung"]


def test_layer_and_raw_are_read_instead_of_a_normalised_x(tmp_path):
    data = known_anndata(known_counts().astype(np.float32) * 2)
    data.raw = data.copy()
    data = data[:, ["B", "D"]].copy()
    data.layers["counts"] = data.X.copy()
    data.X = data.X / 8
    data.write_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(
        dense(open_source(tmp_path / "x.h5ad", layer="counts")), 2 * known_counts()[:, [1, 3]]
    )
    raw = open_source(tmp_path / "x.h5ad", raw=True)
    np.testing.assert_array_equal(dense(raw), 2 * known_counts())
    assert raw.genes.symbols.tolist() == list("ABCDE")
    with pytest.raises(DataError, match=r"Cell 'cell0' of .*x\.h5ad holds 1\.25 in X.*; try --layer counts or --raw\."):
        dense(open_source(tmp_path / "x.h5ad"))
    with pytest.raises(DataError, match="no layer 'nope'; its layers are: counts"):
        open_source(tmp_path / "x.h5ad", layer="nope")


def test_h5ad_without_x_names_its_layers(tmp_path):
    data = known_anndata(known_counts().astype(np.float32))
    data.layers["umi_counts"] = data.X
    del data.X
    data.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"has no X; try --layer umi_counts\."):
        open_source(tmp_path / "x.h5ad")


def test_antibody_features_are_left_out_and_counted(tmp_path):
    data = known_anndata(known_counts().astype(np.float32))
    data.var["feature_types"] = ["Gene Expression"] * 3 + ["Antibody Capture"] * 2
    data.write_h5ad(tmp_path / "x.h5ad")
    source = open_source(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(dense(source), known_counts()[:, :3])
    assert source.dropped == {"features that are not gene expression": 2}


@pytest.mark.parametrize(
    ("columns", "ids", "symbols"),
    [
        pytest.param({}, "", "index", id="symbols-in-the-index"),
        pytest.param({"feature_id": "ENSG0000000001"}, "ENSG0000000001", "index", id="ids-in-a-column"),
        pytest.param({"feature_name": "TP53"}, "", "TP53", id="symbols-in-a-column"),
        pytest.param({"feature_id": "TP53"}, "", "index", id="a-column-of-ids-that-are-none"),
        pytest.param({"gene_symbol": None}, "", "index", id="missing-symbols"),
    ],
)
def test_ids_and_symbols_are_found(columns, ids, symbols):
    table = gene_table(pd.DataFrame(columns, index=["index"]))
    assert (table.ids[0], table.symbols[0]) == (ids, symbols)


def test_census_like_var_with_ids_in_the_index():
    table = gene_table(pd.DataFrame({"feature_name": ["TP53"]}, index=["ENSG00000141510"]))
    assert (table.ids[0], table.symbols[0]) == ("ENSG00000141510", "TP53")


def test_sample_comes_back_as_whole_counts():
    source = open_sample()
    counts = dense(source)
    assert counts.shape == (700, 765)
    assert source.largest_distance < 0.1
    assert (source.totals >= counts.sum(axis=1)).all()
    np.testing.assert_array_equal(source.totals, source.obs["n_counts"])


@pytest.mark.filterwarnings("ignore")
def test_old_layout_of_the_sample_equals_anndata():
    source = open_sample()
    data = anndata.read_h5ad(source.path)
    pd.testing.assert_frame_equal(source.obs, data.obs, check_names=False)
    assert source.genes.symbols.tolist() == data.raw.var_names.tolist()
    np.testing.assert_array_equal(dense(source) > 0, data.raw.X.toarray() > 0)


# ---- Cell Ranger, small


@pytest.mark.parametrize("order", ["cell", "gene"])
@pytest.mark.parametrize(
    ("features", "zipped", "kind"),
    [("features.tsv", True, "integer"), ("features.tsv", False, "real"), ("genes.tsv", False, "integer")],
)
def test_mtx_in_any_order_is_read_exactly(tmp_path, order, features, zipped, kind):
    folder = write_mtx(tmp_path / "m", order=order, features=features, zipped=zipped, kind=kind)
    source = open_source(folder)
    np.testing.assert_array_equal(dense(source, cells_per_block=2), known_counts())
    np.testing.assert_array_equal(dense(source, start=5), known_counts()[5:])
    np.testing.assert_array_equal(dense(open_source(next(folder.glob("matrix.mtx*")))), known_counts())


def test_mtx_features_that_are_not_expression_are_left_out(tmp_path):
    folder = write_mtx(tmp_path / "m")
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression", "CRISPR Guide Capture", "Gene Expression"]
    (folder / "features.tsv").write_text("".join(f"ENSG{i}\tgene{i}\t{kind}\n" for i, kind in enumerate(kinds)))
    source = open_source(folder)
    np.testing.assert_array_equal(dense(source), known_counts()[:, [0, 2, 4]])
    assert source.genes.symbols.tolist() == ["gene0", "gene2", "gene4"]
    assert source.dropped == {"features that are not gene expression": 2}


def write_tenx_h5(path, genomes, kinds):
    columns = scipy.sparse.csr_matrix(known_counts())
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = [f"cell{i}".encode() for i in range(N_CELLS)]
        matrix["indptr"], matrix["indices"], matrix["data"] = columns.indptr, columns.indices, columns.data
        matrix["features/id"] = [f"ENSG{i}".encode() for i in range(N_GENES)]
        matrix["features/name"] = [f"gene{i}".encode() for i in range(N_GENES)]
        matrix["features/genome"] = [name.encode() for name in genomes]
        matrix["features/feature_type"] = [kind.encode() for kind in kinds]
    return path


def test_new_h5_with_two_genomes_and_antibodies(tmp_path):
    kinds = ["Gene Expression"] * 4 + ["Antibody Capture"]
    path = write_tenx_h5(tmp_path / "x.h5", ["hg38", "mm10", "hg38", "mm10", ""], kinds)
    with pytest.raises(DataError, match=r"2 genomes \(hg38, mm10\); say which with --genome"):
        open_source(path)
    source = open_source(path, genome="mm10")
    np.testing.assert_array_equal(dense(source), known_counts()[:, [1, 3]])
    assert source.dropped == {"features that are not gene expression": 1, "genes of another genome": 2}
    with pytest.raises(ConfigError, match="leave out --layer"):
        open_source(path, layer="counts")


# ---- pieces


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 6), st.integers(0, 9)), max_size=40),
)
def test_tidy_equals_scipy(entries):
    cells, genes, counts = np.array(sorted(entries, key=lambda entry: entry[0]), dtype=np.int64).reshape(-1, 3).T
    indptr = np.concatenate(([0], np.cumsum(np.bincount(cells, minlength=6))))
    known = genes >= 0
    expected = scipy.sparse.coo_matrix((counts[known], (cells[known], genes[known])), shape=(6, 7)).tocsr()
    expected.sum_duplicates()
    expected.eliminate_zeros()
    got = tidy(indptr, genes.astype(np.int32), counts.astype(np.uint32))
    for ours, theirs in zip(got, (expected.indptr, expected.indices, expected.data), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.integers(1, 9)), max_size=60),
    per_chunk=st.integers(1, 20),
    per_bucket=st.integers(1, 12),
)
def test_spool_sorts_by_cell_and_keeps_the_order_within(entries, per_chunk, per_bucket):
    chunks = [entries[i : i + per_chunk] for i in range(0, len(entries), per_chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sckit.sources_spool._ENTRIES_PER_BUCKET", per_bucket)
        arrays = (tuple(np.array(chunk).T) for chunk in chunks)
        indptr, genes, values = CellSpool(arrays, 6, np.dtype(np.float32)).read(0, 6)
    got = list(zip(cell_of_entry(indptr).tolist(), genes.tolist(), values.tolist(), strict=True))
    assert got == sorted(entries, key=lambda entry: entry[0])


# ---- what is wrong with a file, in one sentence


def break_h5ad(path, value):
    counts = known_counts().astype(np.float32)
    counts[2, 1] = value
    known_anndata(scipy.sparse.csr_matrix(counts)).write_h5ad(path / "x.h5ad")
    return path / "x.h5ad"


def truncate(path):
    whole = break_h5ad(path, 4).read_bytes()
    (path / "cut.h5ad").write_bytes(whole[: len(whole) * 2 // 3])
    return path / "cut.h5ad"


def corrupt_data(path):
    """Overwrite a compressed chunk so that it cannot be unpacked."""
    file_path = path / "x.h5ad"
    known_anndata(scipy.sparse.csr_matrix(known_counts())).write_h5ad(file_path, compression="gzip")
    with h5py.File(file_path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    with file_path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    return file_path


def wrong_index(path):
    file_path = break_h5ad(path, 4)
    with h5py.File(file_path, "r+") as file:
        file["X/indices"][0] = 99
    return file_path


def text_named_h5(path):
    (path / "x.h5").write_text("gene,cell,count\n")
    return path / "x.h5"


def other_h5(path):
    with h5py.File(path / "x.h5", "w") as file:
        file["weights"] = np.zeros(3)
    return path / "x.h5"


def no_cells(path):
    known_anndata(known_counts().astype(np.float32))[:0].copy().write_h5ad(path / "x.h5ad")
    return path / "x.h5ad"


def edited_mtx(edit):
    def make(path):
        folder = write_mtx(path / "m")
        edit(folder)
        return folder

    return make


def cut_lines(folder: Path):
    lines = (folder / "matrix.mtx").read_text().splitlines()
    (folder / "matrix.mtx").write_text("\n".join(lines[:-2]) + "\n")


def cut_gzip(folder: Path):
    whole = gzip.compress((folder / "matrix.mtx").read_bytes())
    (folder / "matrix.mtx").unlink()
    (folder / "matrix.mtx.gz").write_bytes(whole[: len(whole) // 2])


def replace_text(name, old, new):
    def edit(folder: Path):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edited_mtx(edit)


def empty_folder(path):
    (path / "empty").mkdir()
    return path / "empty"


BROKEN = {
    "fractional": (
        lambda path: break_h5ad(path, 0.5),
        r"Cell 'cell2' of .*x\.h5ad holds 0\.5 in X, but counts must be",
    ),
    "negative": (lambda path: break_h5ad(path, -3), r"Cell 'cell2' of .* holds -3 in X"),
    "nan": (lambda path: break_h5ad(path, np.nan), r"Cell 'cell2' of .* holds nan in X"),
    "infinite": (lambda path: break_h5ad(path, np.inf), r"Cell 'cell2' of .* holds inf in X"),
    "truncated-h5": (truncate, r"cut\.h5ad cannot be read: truncated"),
    "corrupt-chunk": (corrupt_data, r"x\.h5ad cannot be read: truncated, corrupt"),
    "gene-number-outside": (wrong_index, r"x\.h5ad is corrupt: an entry names feature 99 of 5"),
    "text-named-h5": (text_named_h5, r"x\.h5 is not an HDF5 file \(it begins with b'gene,cell,count"),
    "h5-of-something-else": (other_h5, r"x\.h5 is an HDF5 file without counts \(it holds weights\)"),
    "no-cells": (no_cells, r"x\.h5ad is empty: it holds 0 cells and 5 genes"),
    "missing": (lambda path: path / "nope.h5", r"nope\.h5 does not exist; give an \.h5ad"),
    "folder-without-matrix": (empty_folder, r"empty is a folder without matrix\.mtx"),
    "mtx-cut": (edited_mtx(cut_lines), r"matrix\.mtx is truncated: it promises 13 entries and has 11"),
    "mtx-gzip-cut": (edited_mtx(cut_gzip), r"matrix\.mtx\.gz cannot be read: truncated"),
    "mtx-without-barcodes": (
        edited_mtx(lambda m: (m / "barcodes.tsv").unlink()),
        r"no barcodes\.tsv \(gzipped or not\)",
    ),
    "mtx-one-barcode-short": (
        replace_text("barcodes.tsv", "cell6\n", ""),
        r"is 5 x 7, but .* 5 features and 6 barcodes",
    ),
    "mtx-fractional": (
        replace_text("matrix.mtx", "2 1 5", "2 1 0.5"),
        r"Cell 'cell0' of .*m holds 0\.5 in the matrix, .*; give a file with the raw counts\.",
    ),
    "mtx-cell-outside": (replace_text("matrix.mtx", "2 1 5", "2 8 5"), r"names cell 8 of 7"),
    "mtx-array": (replace_text("matrix.mtx", "coordinate", "array"), r"its first line is"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_one_sentence(tmp_path, case):
    make, message = BROKEN[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(path).blocks())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_prepared_store_and_zarr_are_not_inputs(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="prepared store already"):
        open_source(tmp_path)
    shutil.move(tmp_path / "manifest.json", tmp_path / "zarr.json")
    with pytest.raises(DataError, match="zarr store"):
        open_source(tmp_path)
