"""Ids, symbols and genomes are told from anything else by whole names, whatever the column or the order."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sckit.data.genes import bare_ids
from sckit.data.readers.features import choose_features
from sckit.data.readers.hdf5 import strings
from sckit.data.readers.names import GeneTable, contradictions, feature_table, gene_table, mostly_ids, without_genome
from sckit.errors import DataError

SYMBOLS = ["ACTB", "TP53", "MT-CO1", "CD3E"]
IDS = [f"ENSG0000000000{i}" for i in range(4)]


def texts(values):
    return np.array(values, dtype=object)


@pytest.mark.parametrize(
    "name",
    ["ENSG00000141510", "ENSG00000141510.18", "ENSG00000182378.15_PAR_Y", "ENSMUSG00000064341", "ENSGR0000182378",
     "FBgn0031208", "WBGene00000001", "GRCh38_ENSG00000141510", "mm10___ENSMUSG00000064341"],
)  # fmt: skip
def test_whole_ids_of_any_species_are_ids(name):
    assert mostly_ids(texts([name]))


@pytest.mark.parametrize(
    "name", ["ENSG00000000003|TSPAN6|8eab823", "ENSG00000000003 TSPAN6", "ENSG00000000003_TSPAN6", "ENSG", "TP53", ""]
)
def test_names_that_only_begin_like_ids_are_none(name):
    assert not mostly_ids(texts([name]))


def test_versions_go_and_the_copy_on_the_other_chromosome_stays_another_gene():
    names = ["ENSG00000182378.15_PAR_Y", "ENSG00000182378.15", "ENSG00000000003.1|TSPAN6", None]
    assert bare_ids(names).tolist() == ["ENSG00000182378_PAR_Y", "ENSG00000182378", "ENSG00000000003.1|TSPAN6", ""]


@pytest.mark.parametrize("column", ["features", "gene_short_name", "anything"])
def test_an_index_of_numbers_gives_way_to_the_column_of_names(column):
    table = gene_table(pd.DataFrame({column: SYMBOLS, "mean": [0.5, 1.5, 2.5, 3.5]}, index=list("0123")), Path("x"))
    assert table.symbols.tolist() == SYMBOLS
    assert table.ids.tolist() == [""] * 4


def test_an_index_of_numbers_gives_way_to_a_column_of_ids():
    table = gene_table(pd.DataFrame({"anything": IDS}, index=list("0123")), Path("x"))
    assert (table.ids.tolist(), table.symbols.tolist()) == (IDS, IDS)


@pytest.mark.parametrize(
    ("columns", "found"),
    [({}, "no column of var holds names"), ({"chromosome": ["1", "2", "X", "1"]}, "no column of var holds names"),
     ({"a": SYMBOLS, "b": SYMBOLS[::-1]}, r"several columns of var hold names \(a, b\)")],
)  # fmt: skip
def test_numbers_without_names_are_refused(columns, found):
    with pytest.raises(DataError, match=rf"x names its genes 0, 1, 2, \.\.\., which are numbers, and {found}"):
        gene_table(pd.DataFrame(columns, index=list("0123")), Path("x"))


@pytest.mark.parametrize("order", [1, -1])
def test_columns_of_features_are_told_apart(order):
    table = feature_table(*[texts(IDS), texts(SYMBOLS)][::order], Path("x"))
    assert (table.ids.tolist(), table.symbols.tolist()) == (IDS, SYMBOLS)


def test_numbers_in_a_list_of_features_are_no_ids():
    table = feature_table(texts(list("1234")), texts(SYMBOLS), Path("x"))
    assert (table.ids.tolist(), table.symbols.tolist()) == ([""] * 4, SYMBOLS)
    with pytest.raises(DataError, match="which are numbers"):
        feature_table(texts(list("1234")), texts(list("1234")), Path("x"))


def test_the_only_genome_goes_and_of_two_both_stay():
    one = GeneTable(texts([f"GRCh38_{name}" for name in IDS]), texts([f"GRCh38_{name}" for name in SYMBOLS]))
    assert without_genome(one).ids.tolist() == IDS
    assert without_genome(one).symbols.tolist() == SYMBOLS
    two = GeneTable(texts([f"GRCh38_{IDS[0]}", f"mm10_{IDS[1]}"]), texts(["GRCh38_ACTB", "mm10_Actb"]))
    assert without_genome(two) is two


def test_ids_of_which_half_are_numbers_are_still_ids():
    table = feature_table(np.array(["1.5", "ENSG00000000100"], object), np.array(["A", "B"], object), Path("x.h5"))
    assert table.ids.tolist() == ["1.5", "ENSG00000000100"]


@pytest.mark.parametrize(
    "column", [{"gene": [True, True, False, True]}, {"features": ["variable"] * 4}, {"name": ["a", "b", "a", "b"]}]
)
def test_a_flag_or_kind_of_genes_does_not_take_the_place_of_their_names(column):
    assert gene_table(pd.DataFrame(column, index=SYMBOLS), Path("x")).symbols.tolist() == SYMBOLS


def test_many_different_beginnings_are_no_genomes():
    names = texts([f"GENE{i}_ENSG0000000000{i}" for i in range(8)])
    assert without_genome(GeneTable(names, names)).ids.tolist() == names.tolist()


def test_missing_values_of_every_kind_and_lists_become_text():
    values = pd.Series([b"a", "b", None, np.nan, pd.NA, pd.NaT, 3, [1, 2], np.array([4, 5])], dtype=object)
    assert strings(values).tolist() == ["a", "b", "", "", "", "", "3", "[1, 2]", "[4 5]"]


def test_the_genome_in_front_of_symbols_is_no_part_of_them():
    names = texts([f"GRCh38_{name}" for name in SYMBOLS])
    table = without_genome(GeneTable(texts([""] * 4), names))
    assert (table.symbols.tolist(), table.ids.tolist()) == (SYMBOLS, [""] * 4)
    mixed = texts(["GRCh38_ACTB", "GRCh38_TP53", "mm10___Actb", "mm10___Trp53 "])
    with pytest.raises(DataError, match=r"holds 2 genomes \(GRCh38, mm10\); say which with --genome GRCh38"):
        choose_features(None, None, mixed, None, Path("x"))


def test_an_index_of_ids_goes_before_a_column_of_other_ids():
    var = pd.DataFrame({"gene_ids": [IDS[1], *IDS[1:]]}, index=[f"{name}.2" for name in IDS])
    table = gene_table(var, Path("x"))
    assert bare_ids(table.ids).tolist() == IDS
    assert contradictions(var, table, Path("x")) == [
        "x: the column gene_ids holds other gene ids than those that are used, for 1 genes"
    ]
    var = pd.DataFrame({"gene_ids": IDS}, index=[*IDS[1:], "TP53"])
    assert gene_table(var, Path("x")).ids.tolist() == IDS  # the column has more of them


def test_words_for_a_missing_symbol_are_none_where_they_repeat():
    var = pd.DataFrame(
        {"gene_symbols": ["NA", "TP53", "nan", "NA", "A", "B", "C"]}, index=[f"AT1G0{i}" for i in range(7)]
    )
    assert gene_table(var, Path("x")).symbols.tolist() == ["AT1G00", "TP53", "nan", "AT1G03", "A", "B", "C"]
    table = feature_table(texts([f"g{i}" for i in range(5)]), texts(["None", "None", "A", "B", "C"]), Path("x"))
    assert table.symbols.tolist() == ["g0", "g1", "A", "B", "C"]


def test_symbols_of_several_probes_of_a_gene_are_symbols():
    table = feature_table(texts([IDS[0]] * 3 + [IDS[1]] * 3), texts(["ACTB"] * 3 + ["TP53"] * 3), Path("x"))
    assert table.symbols.tolist() == ["ACTB"] * 3 + ["TP53"] * 3


def test_many_different_words_in_front_of_ids_are_no_genomes():
    assert not mostly_ids(texts([f"S{i}_ENSG0000000000{i}" for i in range(9)]))
    chromosomes = texts([f"chr{i}" for i in range(9)])
    assert choose_features(None, chromosomes, texts([f"G{i}" for i in range(9)]), None, Path("x")).lost == {}


def test_a_kind_of_gene_called_gene_is_no_type_of_features():
    kinds = texts(["gene", "lncRNA", "protein_coding"])
    assert not any(
        mask.any() for mask in choose_features(kinds, None, texts(["A", "B", "C"]), None, Path("x")).lost.values()
    )
