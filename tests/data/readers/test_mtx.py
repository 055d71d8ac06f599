"""The matrix that is named is the matrix that is read, with its own lists, in every usual layout of files."""

import gzip

import numpy as np
import pytest

from sckit.data.readers.open import open_sources
from sckit.data.readers.spool import CellSpool
from sckit.errors import DataError

N_CELLS, N_GENES = 7, 5


def lines_of(counts, *, rows="features"):
    cells, genes = np.nonzero(counts)
    sizes = (N_GENES, N_CELLS) if rows == "features" else (N_CELLS, N_GENES)
    places = (genes, cells) if rows == "features" else (cells, genes)
    entries = [f"{r + 1} {c + 1} {v}" for r, c, v in zip(*places, counts[cells, genes], strict=True)]
    return ["%%MatrixMarket matrix coordinate integer general", f"{sizes[0]} {sizes[1]} {len(cells)}", *entries]


def write(folder, counts, *, matrix="matrix.mtx", features="features.tsv", barcodes="barcodes.tsv", **options):
    """Write a matrix and its lists; names that end with .gz are gzipped."""
    texts = {
        matrix: "\n".join(lines_of(counts, **options)) + "\n",
        features: "".join(f"ENSG0000000000{i}\tgene{i}\tGene Expression\n" for i in range(N_GENES)),
        barcodes: "".join(f"cell{i}\n" for i in range(N_CELLS)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


def geo(front="", behind="", end=""):
    return {
        "matrix": f"{front}matrix{behind}.mtx{end}",
        "features": f"{front}features{behind}.tsv{end}",
        "barcodes": f"{front}barcodes{behind}.tsv{end}",
    }


@pytest.mark.parametrize("names", [geo("GSM1_"), geo("GSM1_a.", end=".gz"), geo(behind="_S1")], ids=str)
def test_a_prefixed_matrix_is_read_with_the_lists_of_its_prefix(tmp_path, known, dense, names):
    write(tmp_path, known * 2)
    write(tmp_path, known * 3, **geo("GSM2_"))
    write(tmp_path, known, **names)
    (source,) = open_sources(tmp_path / names["matrix"])
    np.testing.assert_array_equal(dense(source), known)
    assert source.path == tmp_path / names["matrix"]
    assert set(source.files) == {tmp_path / name for name in names.values()}


def test_each_matrix_of_a_folder_is_a_source(tmp_path, known, dense):
    for i, front in enumerate(("GSM1_", "GSM2_"), 1):
        write(tmp_path, known * i, **geo(front, end=".gz"))
    for i, source in enumerate(open_sources(tmp_path), 1):
        np.testing.assert_array_equal(dense(source), known * i)
    (tmp_path / "GSM2_barcodes.tsv.gz").unlink()
    with pytest.raises(DataError, match=r"GSM2_matrix\.mtx\.gz has no GSM2_barcodes\.tsv \(gzipped or not\)"):
        open_sources(tmp_path)


def test_kallisto_writes_one_row_per_cell(tmp_path, known, dense):
    names = {
        "matrix": "cells_x_genes.mtx",
        "features": "cells_x_genes.genes.txt",
        "barcodes": "cells_x_genes.barcodes.txt",
    }
    write(tmp_path, known, rows="cells", **names)
    (tmp_path / "cells_x_genes.genes.txt").write_text("".join(f"ENSG0000000000{i}.1\n" for i in range(N_GENES)))
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known)
    assert source.genes.symbols[0] == "ENSG00000000000.1"
    (tmp_path / "cells_x_genes.genes.names.txt").write_text("".join(f"gene{i}\n" for i in range(N_GENES)))
    (source,) = open_sources(tmp_path / "cells_x_genes.mtx")
    assert source.genes.symbols.tolist() == [f"gene{i}" for i in range(N_GENES)]


def test_starsolo_keeps_other_matrices_of_the_same_cells(tmp_path, known, dense):
    write(tmp_path, known)
    (tmp_path / "UniqueAndMult-EM.mtx").write_text("\n".join(lines_of(known * 2)) + "\n")
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known)
    (source,) = open_sources(tmp_path / "UniqueAndMult-EM.mtx")
    np.testing.assert_array_equal(dense(source), known * 2)
    (tmp_path / "matrix.mtx").rename(tmp_path / "spliced.mtx")
    with pytest.raises(DataError, match=r"several matrices of the same cells \(.*spliced\.mtx\); name one"):
        open_sources(tmp_path)


def test_a_matrix_with_cells_in_rows_is_told_by_its_sizes(tmp_path, known, dense):
    (source,) = open_sources(write(tmp_path, known, rows="cells"))
    np.testing.assert_array_equal(dense(source), known)


@pytest.mark.parametrize("inside", ["outs/filtered_feature_bc_matrix", "Solo.out/Gene/filtered"])
def test_filtered_counts_are_taken_before_raw_ones(tmp_path, known, dense, inside):
    write(tmp_path / inside, known)
    write(tmp_path / inside.replace("filtered", "raw"), known * 2)
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known)
    assert source.notes == [f"{tmp_path}: reading {inside}, not {inside.replace('filtered', 'raw')}"]


@pytest.mark.parametrize(
    "comments", [["%a"], [" % a", "\t%b"], ["", "%a", ""], ["%a\r"]], ids=["one", "indented", "blank", "windows"]
)
def test_comments_and_blank_lines_are_skipped(tmp_path, known, dense, comments):
    write(tmp_path, known)
    first, *rest = lines_of(known)
    (tmp_path / "matrix.mtx").write_text("\ufeff" + "\n".join([first, *comments, rest[0], "", *rest[1:]]) + "\n\n")
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known)


def test_gzip_is_told_by_content(tmp_path, known, dense):
    write(tmp_path, known, **geo(end=".gz"))
    (tmp_path / "features.tsv.gz").write_bytes(gzip.decompress((tmp_path / "features.tsv.gz").read_bytes()))
    (tmp_path / "matrix.mtx.gz").rename(tmp_path / "matrix.mtx")
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known)


@pytest.mark.parametrize("edit", [lambda field: f'"{field}"', lambda field: field], ids=["each-field", "each-line"])
def test_quotes_around_names_go(tmp_path, known, edit):
    write(tmp_path, known)
    rows = ["\t".join(edit(field) for field in (f"ENSG0000000000{i}", f"gene{i}")) for i in range(N_GENES)]
    rows = rows if '"' in rows[0] else [f'"{row}"' for row in rows]
    (tmp_path / "features.tsv").write_text("\n".join(rows) + "\n")
    (source,) = open_sources(tmp_path)
    assert source.genes.ids.tolist() == [f"ENSG0000000000{i}" for i in range(N_GENES)]
    assert source.genes.symbols.tolist() == [f"gene{i}" for i in range(N_GENES)]


def other_lines(edit):
    def make(folder, known):
        write(folder, known)
        first, sizes, *entries = lines_of(known)
        (folder / "matrix.mtx").write_text("\n".join([first, sizes, *edit(entries)]) + "\n")

    return make


def promising_none(folder, known):
    write(folder, known)
    first, sizes, *entries = lines_of(known)
    (folder / "matrix.mtx").write_text("\n".join([first, f"{sizes.rsplit(' ', 1)[0]} 0", *entries]) + "\n")


BROKEN = {
    "four-fields": (other_lines(lambda e: [f"{line} 9" for line in e]), r"matrix\.mtx has '2 1 5 9' in line 3, but"),
    "four-fields-later": (other_lines(lambda e: [*e[:4], f"{e[4]} 9", *e[5:]]), r"9' in line 7, but"),
    "two-fields": (other_lines(lambda e: [line.rsplit(" ", 1)[0] for line in e]), r"has '2 1' in line 3, but"),
    "two-fields-later": (other_lines(lambda e: [*e[:-1], "1 2"]), r"has '1 2' in line 15, but"),
    "words": (other_lines(lambda e: ["a b c", *e[1:]]), r"has 'a b c' in line 3, but"),
    "comment": (other_lines(lambda e: [e[0], "% more", *e[1:]]), r"has '% more' in line 4, but"),
    "underscore": (other_lines(lambda e: [*e[:-1], "1 1 1_0"]), r"has '1 1 1_0' in line 15, but"),
    "none-promised": (promising_none, r"it promises 0 entries and has 13"),
    "negative-row": (other_lines(lambda e: ["-1 1 5", *e[1:]]), r"names feature -2 of 5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_lines_of_another_kind_are_refused(tmp_path, known, dense, case):
    make, message = BROKEN[case]
    make(tmp_path, known)
    with pytest.raises(DataError, match=message):
        dense(*open_sources(tmp_path))


def test_genomes_in_front_of_ids_are_asked_for_and_then_go(tmp_path, known, dense):
    write(tmp_path, known)
    genomes = ["hg38", "mm10", "hg38", "mm10", "hg38"]
    lines = [f"{genome}_ENSG0000000000{i}\t{genome}_gene{i}\tGene Expression" for i, genome in enumerate(genomes)]
    (tmp_path / "features.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"2 genomes \(hg38, mm10\); say which with --genome hg38"):
        open_sources(tmp_path)
    (source,) = open_sources(f"{tmp_path}::genome=mm10")
    np.testing.assert_array_equal(dense(source), known[:, [1, 3]])
    assert (source.genes.ids[0], source.genes.symbols[0]) == ("ENSG00000000001", "gene1")
    assert source.dropped == {"genes of another genome": 3}


@pytest.mark.parametrize(
    ("types", "kept", "notes"),
    [
        (["GEX", "GEX", "ADT", "GEX", "ADT"], [0, 1, 3], 0),
        (["gene expression"] * 5, range(5), 0),
        (["NA"] * 5, range(5), 1),
        (["1", "1", "2", "X", "Y"], range(5), 1),
        (["protein_coding", "lncRNA"] * 2 + [""], range(5), 0),
    ],
)
def test_types_of_features(tmp_path, known, dense, types, kept, notes):
    write(tmp_path, known)
    lines = [f"ENSG0000000000{i}\tgene{i}\t{kind}" for i, kind in enumerate(types)]
    (tmp_path / "features.tsv").write_text("\n".join(lines) + "\n")
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known[:, list(kept)])
    assert len(source.notes) == notes


def test_other_types_are_named(tmp_path, known):
    write(tmp_path, known)
    lines = [f"ENSG0000000000{i}\tgene{i}\t{kind}" for i, kind in enumerate(["Peaks"] * 3 + ["Antibody Capture"] * 2)]
    (tmp_path / "features.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"no features of the type 'Gene Expression': it has 3 'Peaks', 2 'Antibody"):
        open_sources(tmp_path)


def test_a_cell_of_a_negative_number_is_outside():
    with pytest.raises(ValueError, match="an entry names cell 0 of 3"):
        CellSpool([(np.array([-1, 1]), np.array([0, 0]), np.array([1.0, 1.0]))], 3, np.dtype(np.float64))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        pytest.param(
            "features.tsv", "\tgene2\tGene", " gene2 Gene", r"3 fields in its first line and 1 in", id="spaces"
        ),
        pytest.param(
            "features.tsv", "\tgene0", "\t\tgene0", r"4 fields in its first line and 3 in", id="long-first-line"
        ),
        pytest.param(
            "features.tsv", "gene4\tGene Expression", "gene4", r"and 2 in that of 'ENSG00000000004'", id="cut"
        ),
        pytest.param("features.tsv", "gene1", '"gene1" b', "is not in a form that is known", id="quote-in-the-middle"),
        pytest.param("barcodes.tsv", "cell3", "cell3\0", "a line holds a zero byte or", id="zero-byte-in-a-name"),
        pytest.param("matrix.mtx", " general", " general\0", "begins with", id="zero-byte-in-the-banner"),
        pytest.param("matrix.mtx", "\n1 ", "\n1\0 ", "in line 5, but an entry is", id="zero-byte-in-the-matrix"),
    ],
)
def test_ragged_lists_and_zero_bytes_are_refused(tmp_path, known, dense, name, old, new, message):
    write(tmp_path, known)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        dense(open_sources(tmp_path)[0])


@pytest.mark.parametrize("name", ["matrix.mtx", "features.tsv", "barcodes.tsv"])
@pytest.mark.parametrize("first", [True, False])
def test_a_huge_line_of_a_small_gzipped_file_is_refused_unread(tmp_path, known, dense, name, first):
    write(tmp_path, known)
    text = (tmp_path / name).read_bytes()
    at = 0 if first else text.rindex(b"\n", 0, -1) + 1
    huge = gzip.compress(b"7" * 2**24) * 2**12  # 64 GB
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text[:at]) + huge + gzip.compress(text[at:]))
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"a line .* more than 131,072 characters"):
        dense(open_sources(tmp_path)[0])


def test_lists_of_the_same_beginning_go_before_those_of_another_sample(tmp_path, known, dense):
    write(tmp_path, known * 2)
    write(tmp_path, known, **geo("GSM1_") | {"matrix": "GSM1_counts.mtx"})
    (tmp_path / "features.tsv").write_text("".join(f"ENSG0000000009{i}\tother{i}\n" for i in range(N_GENES)))
    (source,) = open_sources(tmp_path / "GSM1_counts.mtx")
    np.testing.assert_array_equal(dense(source), known)
    assert source.genes.symbols[0] == "gene0"
    (tmp_path / "matrix.mtx").unlink()
    (tmp_path / "._GSM2_matrix.mtx").write_bytes(b"\x00\x05")  # as macOS leaves them
    write(tmp_path, known * 3, **geo("GSM3_") | {"matrix": "GSM3_counts.mtx"})
    assert [source.path.name for source in open_sources(tmp_path)] == ["GSM1_counts.mtx", "GSM3_counts.mtx"]


@pytest.mark.parametrize("order", [(1, 3), (0, 3), (3, 0, 1), (0, 3, 1), (1, 2)])
def test_a_column_of_types_or_of_one_word_is_no_column_of_names(tmp_path, known, order):
    write(tmp_path, known)
    rows = [[f"ENSG0000000000{i}", f"gene{i}", "chr1", "Gene Expression"] for i in range(N_GENES)]
    (tmp_path / "features.tsv").write_text("".join("\t".join(row[at] for at in order) + "\n" for row in rows))
    (source,) = open_sources(tmp_path)
    assert source.genes.symbols.tolist() == [rows[i][1 if 1 in order else 0] for i in range(N_GENES)]


@pytest.mark.parametrize("separator", [";", ", ", " "])
def test_names_that_are_not_separated_by_tabs_are_refused(tmp_path, known, separator):
    write(tmp_path, known)
    text = "".join(f"ENSG0000000000{i}{separator}gene{i}{separator}Gene\n" for i in range(N_GENES))
    (tmp_path / "features.tsv").write_text(text)
    with pytest.raises(DataError, match="has no tabs between its columns"):
        open_sources(tmp_path)


def test_numbers_before_barcodes_are_no_barcodes(tmp_path, known):
    write(tmp_path, known)
    (tmp_path / "barcodes.tsv").write_text("".join(f"{i}\tAAAC{i}-1\n" for i in range(N_CELLS)))
    (source,) = open_sources(tmp_path)
    assert source.obs.index[1] == "AAAC1-1"


def test_folders_of_samples_are_no_genomes(tmp_path, known):
    for name in ("S1", "S2"):
        write(tmp_path / name, known)
    with pytest.raises(DataError, match=r"holds folders with matrices of their own \(S1, S2\); name each"):
        open_sources(tmp_path)


def test_genes_without_a_symbol_have_a_blank_line_in_a_list_of_symbols(tmp_path, known, dense):
    write(tmp_path, known)
    (tmp_path / "barcodes.tsv").rename(tmp_path / "cells_x_genes.barcodes.txt")
    (tmp_path / "features.tsv").unlink()
    ids = [f"ENSG0000000000{i}" for i in range(N_GENES)]
    (tmp_path / "cells_x_genes.genes.txt").write_text("\n".join(ids) + "\n")
    (tmp_path / "cells_x_genes.genes.names.txt").write_text("A\n\nC\nD\n\n")
    (tmp_path / "matrix.mtx").rename(tmp_path / "cells_x_genes.mtx")
    with pytest.raises(DataError, match="must have one row per barcode and one column per feature"):
        open_sources(tmp_path)
    first, sizes, *entries = lines_of(known)
    turned = [" ".join([fields[1], fields[0], *fields[2:]]) for fields in map(str.split, [sizes, *entries])]
    (tmp_path / "cells_x_genes.mtx").write_text("\n".join([first, *turned]) + "\n")
    (source,) = open_sources(tmp_path)
    assert source.genes.ids.tolist() == ids
    assert source.genes.symbols.tolist() == ["A", ids[1], "C", "D", ids[4]]
    np.testing.assert_array_equal(dense(source), known)


def test_the_suffix_of_a_matrix_may_be_in_capitals(tmp_path, known, dense):
    write(tmp_path, known)
    (tmp_path / "matrix.mtx").rename(tmp_path / "matrix.MTX")
    (source,) = open_sources(tmp_path / "matrix.MTX")
    np.testing.assert_array_equal(dense(source), known)


@pytest.mark.parametrize("inside", ["Solo.out/GeneFull/filtered", "GeneFull/filtered"])
def test_counts_of_whole_genes_are_found(tmp_path, known, dense, inside):
    write(tmp_path / inside, known)
    (source,) = open_sources(tmp_path)
    np.testing.assert_array_equal(dense(source), known)


def test_a_row_beyond_32_bits_is_no_other_row(tmp_path, known, dense):
    write(tmp_path, known)
    first, sizes, entry, *entries = lines_of(known)
    row, rest = entry.split(" ", 1)
    (tmp_path / "matrix.mtx").write_text("\n".join([first, sizes, f"{2**32 + int(row)} {rest}", *entries]) + "\n")
    with pytest.raises(DataError, match=r"names feature \d+ of 5"):
        dense(*open_sources(tmp_path))


def test_a_column_of_one_sample_is_no_list_of_barcodes(tmp_path, known):
    write(tmp_path, known)
    names = (tmp_path / "barcodes.tsv").read_text().split()
    (tmp_path / "barcodes.tsv").write_text("".join(f"sampleA\t{name}\n" for name in names))
    (source,) = open_sources(tmp_path)
    assert source.obs.index.tolist() == names


def test_symbols_of_their_own_file_are_no_types(tmp_path):
    (tmp_path / "cells_x_genes.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n1 2 2\n1 1 3\n1 2 4\n"
    )
    (tmp_path / "cells_x_genes.barcodes.txt").write_text("cell0\n")
    (tmp_path / "cells_x_genes.genes.txt").write_text("ENSG00000000001\nENSG00000000002\n")
    (tmp_path / "cells_x_genes.genes.names.txt").write_text("ACTB\nGENE\n")
    (source,) = open_sources(tmp_path)
    assert (source.genes.symbols.tolist(), source.dropped) == (["ACTB", "GENE"], {})
