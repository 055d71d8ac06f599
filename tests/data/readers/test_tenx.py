"""Files as Cell Ranger writes them are read exactly as scanpy reads them, broken ones refused in one sentence."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse

from sckit.errors import ConfigError, DataError

N_CELLS, N_GENES = 7, 5


def write_mtx(folder, known, *, order="cell", features="features.tsv", zipped=False, kind="integer"):
    """Write the known counts as Cell Ranger would; `order` of the lines is "cell" or "gene"."""
    folder.mkdir()
    cells, genes = np.nonzero(known) if order == "cell" else np.nonzero(known.T)[::-1]
    values = known[cells, genes]
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


def assert_equals_scanpy(matrix, source, expected):
    assert (matrix != expected.X).nnz == 0
    assert source.genes.ids.tolist() == expected.var["gene_ids"].tolist()
    assert source.genes.symbols.tolist() == expected.var_names.tolist()
    assert source.obs.index.tolist() == expected.obs_names.tolist()
    assert source.dropped == {}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("folder", TENX_FOLDERS)
def test_mtx_folder_equals_scanpy(shared_data, folder, read, open_source):
    import scanpy

    path = shared_data / "tenx_original" / folder
    source = open_source(path)
    expected = scanpy.read_10x_mtx(path, make_unique=False)
    assert_equals_scanpy(read(source, cells_per_block=1000), source, expected)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(("file", "genome"), TENX_H5)
def test_tenx_h5_equals_scanpy(shared_data, file, genome, read, open_source):
    import scanpy

    path = shared_data / "tenx_original" / file
    source = open_source(path, genome=genome)
    expected = scanpy.read_10x_h5(path, genome=genome)
    assert_equals_scanpy(read(source, cells_per_block=1000), source, expected)


def test_two_genomes_are_listed_and_asked_for(shared_data, open_source):
    path = shared_data / "tenx_original" / "cellranger_1.2.0" / "multiple_genomes.h5"
    with pytest.raises(DataError, match=r"another_genome, hg19_chr21.*--genome"):
        open_source(path)
    with pytest.raises(DataError, match=r"no genome 'mm10'; it holds: another_genome"):
        open_source(path, genome="mm10")


def test_old_folder_above_its_only_genome_is_enough(shared_data, dense, open_source):
    folder = shared_data / "tenx_original" / "cellranger_2.0_hg19_chr21" / "filtered_gene_bc_matrices"
    assert dense(open_source(folder)).sum() == dense(open_source(folder / "hg19")).sum() > 0


@pytest.mark.parametrize("order", ["cell", "gene"])
@pytest.mark.parametrize(
    ("features", "zipped", "kind"),
    [("features.tsv", True, "integer"), ("features.tsv", False, "real"), ("genes.tsv", False, "integer")],
)
def test_mtx_in_any_order_is_read_exactly(tmp_path, order, features, zipped, kind, known, dense, open_source):
    folder = write_mtx(tmp_path / "m", known, order=order, features=features, zipped=zipped, kind=kind)
    source = open_source(folder)
    np.testing.assert_array_equal(dense(source, cells_per_block=2), known)
    np.testing.assert_array_equal(dense(source, start=5), known[5:])
    np.testing.assert_array_equal(dense(open_source(next(folder.glob("matrix.mtx*")))), known)


def test_mtx_features_that_are_not_expression_are_left_out(tmp_path, known, dense, open_source):
    folder = write_mtx(tmp_path / "m", known)
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression", "CRISPR Guide Capture", "Gene Expression"]
    (folder / "features.tsv").write_text("".join(f"ENSG{i}\tgene{i}\t{kind}\n" for i, kind in enumerate(kinds)))
    source = open_source(folder)
    np.testing.assert_array_equal(dense(source), known[:, [0, 2, 4]])
    assert source.genes.symbols.tolist() == ["gene0", "gene2", "gene4"]
    assert source.dropped == {"features that are not gene expression": 2}


def write_tenx_h5(path, known, genomes, kinds):
    columns = scipy.sparse.csr_matrix(known)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = [f"cell{i}".encode() for i in range(N_CELLS)]
        matrix["indptr"], matrix["indices"], matrix["data"] = columns.indptr, columns.indices, columns.data
        matrix["features/id"] = [f"ENSG{i}".encode() for i in range(N_GENES)]
        matrix["features/name"] = [f"gene{i}".encode() for i in range(N_GENES)]
        matrix["features/genome"] = [name.encode() for name in genomes]
        matrix["features/feature_type"] = [kind.encode() for kind in kinds]
    return path


def test_new_h5_with_two_genomes_and_antibodies(tmp_path, known, dense, open_source):
    kinds = ["Gene Expression"] * 4 + ["Antibody Capture"]
    path = write_tenx_h5(tmp_path / "x.h5", known, ["hg38", "mm10", "hg38", "mm10", ""], kinds)
    with pytest.raises(DataError, match=r"2 genomes \(hg38, mm10\); say which with --genome"):
        open_source(path)
    source = open_source(path, genome="mm10")
    np.testing.assert_array_equal(dense(source), known[:, [1, 3]])
    assert source.dropped == {"features that are not gene expression": 1, "genes of another genome": 2}
    with pytest.raises(ConfigError, match="does not have --layer; leave it out"):
        open_source(path, layer="counts")


def edited_mtx(edit):
    def make(path, known):
        folder = write_mtx(path / "m", known)
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


BROKEN = {
    "mtx-cut": (edited_mtx(cut_lines), r"matrix\.mtx is truncated or corrupt: it promises 13 entries and has 11"),
    "mtx-gzip-cut": (edited_mtx(cut_gzip), r"matrix\.mtx\.gz cannot be read: it is truncated"),
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
        r"Cell 'cell0' of .*m holds 0\.5 in the matrix, which is not whole; .*, or give --from-log1p if",
    ),
    "mtx-cell-outside": (replace_text("matrix.mtx", "2 1 5", "2 8 5"), r"names cell 8 of 7"),
    "mtx-array": (replace_text("matrix.mtx", "coordinate", "array"), r"begins with '%%MatrixMarket matrix array"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_mtx_is_one_sentence(tmp_path, known, case, open_source):
    make, message = BROKEN[case]
    path = make(tmp_path, known)
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(path).blocks())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def write_h5(path, known, *, group="matrix", **other):
    """Write the known counts as Cell Ranger would, with some parts replaced or, by None, left out."""
    cells = scipy.sparse.csr_matrix(known)
    old = {"genes": [f"ENSG0000000000{i}" for i in range(N_GENES)], "gene_names": [f"gene{i}" for i in range(N_GENES)]}
    new = {f"features/{to}": old[name] for name, to in (("genes", "id"), ("gene_names", "name"))}
    parts = {"data": cells.data, "indices": cells.indices, "indptr": cells.indptr, "shape": [N_GENES, N_CELLS]}
    parts |= {"barcodes": [f"cell{i}" for i in range(N_CELLS)], **(new if group == "matrix" else old), **other}
    with h5py.File(path, "a") as file:
        for name, values in parts.items():
            if values is not None:
                file[f"{group}/{name}"] = values
    return path


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"features/name": [f"gene{i}" for i in range(N_GENES + 1)]}, id="one-symbol-more"),
        pytest.param({"features/genome": ["GRCh38"] * (N_GENES - 1)}, id="one-genome-fewer"),
        pytest.param({"shape": [N_GENES + 1, N_CELLS]}, id="another-shape"),
        pytest.param({"shape": [N_CELLS, N_GENES]}, id="shape-the-other-way-round"),
    ],
)
def test_lists_of_other_lengths_than_the_matrix_are_refused(tmp_path, known, open_source, other):
    with pytest.raises(DataError, match=r"is corrupt: it names .* features and 7 barcodes, and its matrix is \d x \d"):
        open_source(write_h5(tmp_path / "x.h5", known, **other))


def test_a_huge_list_that_does_not_fit_is_refused_unread(tmp_path, known, open_source):
    path = write_h5(tmp_path / "x.h5", known, indptr=None)
    with h5py.File(path, "a") as file:
        file["matrix"].create_dataset("indptr", (2**40,), "i8", chunks=(2**16,))  # no room on disk, 8 TB in memory
    with pytest.raises(DataError, match="its indptr does not divide the"):
        open_source(path)


def test_a_damaged_genome_is_not_passed_over(tmp_path, known, open_source):
    path = write_h5(tmp_path / "x.h5", known, group="GRCh38")
    write_h5(path, known, group="mm10", barcodes=None)
    with pytest.raises(DataError, match=r"holds 2 genomes \(GRCh38, mm10\)"):
        open_source(path)
    with pytest.raises(DataError, match="lacks a part that its kind of file has"):
        open_source(path, genome="mm10")
    with h5py.File(path, "a") as file:
        del file["mm10"]
        file["mm10"] = h5py.SoftLink("/nowhere")
    with pytest.raises(DataError, match=r"holds 2 genomes \(GRCh38, mm10\)"):
        open_source(path)


def test_a_matrix_of_probes_is_added_up_and_says_so(tmp_path, known, dense, open_source):
    path = write_tenx_h5(
        tmp_path / "raw_probe_bc_matrix.h5", known, ["GRCh38"] * N_GENES, ["Gene Expression"] * N_GENES
    )
    with h5py.File(path, "a") as file:
        file["matrix/features/filtered_probes"] = np.arange(N_GENES) != 2
    source = open_source(path)
    np.testing.assert_array_equal(dense(source), known)
    assert "counts single probes (Flex), all of which are added up to genes" in source.notes[0]
