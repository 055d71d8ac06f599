"""The vocabulary: what joins, in which order, what is summed, refused and lost; genes found by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.data.genes import GeneIndex, bare_ids, join_genes, read_gene_list, vocabulary_hash
from sckit.data.readers.source import GeneTable
from sckit.errors import DataError


def table(symbols, ids=None):
    symbols = np.array(symbols, dtype=object)
    return GeneTable(np.array(ids if ids is not None else [""] * len(symbols), dtype=object), symbols)


def ensembl(*numbers, version=""):
    return [f"ENSG{number:011d}{version}" for number in numbers]


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        pytest.param("ENSG00000141510.18", "ENSG00000141510", id="version"),
        pytest.param("ENSMUSG00000059552.14", "ENSMUSG00000059552", id="mouse"),
        pytest.param("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y", id="copy-on-y"),
        pytest.param("AC226101.1", "AC226101.1", id="clone-name-is-no-version"),
        pytest.param("", "", id="no-id"),
    ],
)
def test_only_ensembl_ids_lose_their_version(name, bare):
    assert bare_ids(np.array([name], dtype=object)).tolist() == [bare]


def test_inputs_join_on_ids_whatever_version_and_symbol():
    first = table(["A", "B", "C"], ensembl(1, 2, 3, version=".1"))
    second = table(["x", "y", "z"], ensembl(3, 9, 1, version=".7"))
    joined = join_genes([first, second], ["first", "second"])
    assert joined.joined_on == "id"
    assert joined.ids.tolist() == ensembl(1, 3)
    assert joined.symbols.tolist() == ["A", "C"]
    assert [to.tolist() for to in joined.maps] == [[0, -1, 1], [1, -1, 0]]
    assert joined.lost == (1, 1)


def test_inputs_join_on_symbols_when_one_has_no_ids():
    joined = join_genes([table(["A", "B"], ensembl(1, 2)), table(["B", "C", "A"])], ["first", "second"])
    assert joined.joined_on == "symbol"
    assert joined.symbols.tolist() == ["A", "B"]
    assert joined.ids.tolist() == ensembl(1, 2)
    assert [to.tolist() for to in joined.maps] == [[0, 1], [1, -1, 0]]


def test_a_gene_without_an_id_goes_by_its_symbol():
    joined = join_genes([table(["A", "GFP", "B"], [*ensembl(1), "", *ensembl(2)])], ["only"])
    assert joined.symbols.tolist() == ["A", "GFP", "B"]


def test_repeated_genes_are_summed_or_refused():
    repeated = table(["A", "B", "A", "", ""])
    joined = join_genes([repeated], ["run1"])
    assert joined.maps[0].tolist() == [0, 1, 0, -1, -1]
    assert (joined.summed, joined.lost) == ((1,), (2,))
    with pytest.raises(DataError, match=r"run1 names 1 genes more than once \(A\)"):
        join_genes([repeated], ["run1"], duplicates="refuse")
    assert len(join_genes([table(["A", "", ""])], ["run1"], duplicates="refuse")) == 1


def test_nothing_in_common_shows_one_name_of_each():
    with pytest.raises(DataError, match=r"no symbol in common \(run1 has 'A', run2 has 'a', \.\.\.\)"):
        join_genes([table(["A"]), table(["a"])], ["run1", "run2"])


def test_an_unused_input_does_not_narrow_the_list():
    joined = join_genes([table(["Z"]), table(["A", "B"])], ["unused", "used"], unused=[0])
    assert joined.symbols.tolist() == ["A", "B"]
    assert [to.tolist() for to in joined.maps] == [[-1], [0, 1]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ABCDEFG"), min_size=1, max_size=9), min_size=1, max_size=3))
def test_maps_lead_to_the_same_symbol(lists):
    shared = set(lists[0]).intersection(*lists)
    if not shared:
        return
    joined = join_genes([table(names) for names in lists], [f"run{i}" for i in range(len(lists))])
    assert set(joined.symbols) == shared
    assert joined.symbols.tolist() == [name for name in dict.fromkeys(lists[0]) if name in shared]
    for names, to in zip(lists, joined.maps, strict=True):
        assert [joined.symbols[number] if number >= 0 else None for number in to] == [
            name if name in shared else None for name in names
        ]


def test_take_renumbers_and_loses_the_rest():
    taken = join_genes([table(["A", "B", "C"])], ["only"]).take(np.array([2, 0]))
    assert taken.symbols.tolist() == ["C", "A"]
    assert taken.maps[0].tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("ENSG00000000003", 2, id="id"),
        pytest.param("ENSG00000000003.5", 2, id="another-version"),
        pytest.param("ENSG00000000001_PAR_Y", -1, id="copy-on-y"),
        pytest.param("D", 3, id="symbol"),
        pytest.param("A", 0, id="symbol-of-two-genes"),
        pytest.param("ENSG00000000009", 4, id="id-given-as-a-symbol"),
        pytest.param("ENSG00000000004", 3, id="id-before-the-symbol-of-an-earlier-gene"),
        pytest.param("nope", -1, id="unknown"),
        pytest.param("", -1, id="empty"),
        pytest.param(None, -1, id="no-name"),
    ],
)
def test_a_gene_is_found_by_id_whatever_its_version_else_by_symbol(name, number):
    ids = [*ensembl(1, version=".2"), "", *ensembl(3, 4), ""]
    index = GeneIndex(ids, ["A", "ENSG00000000004", "A", "D", "ENSG00000000009.1"])
    assert index.find([name]).tolist() == [number]


def test_other_names_of_a_gene_are_tried_where_the_first_is_unknown():
    index = GeneIndex(["", *ensembl(2)], ["A", "B"])
    found = index.find([*ensembl(2, 9), "", ""], ["A", "A", "B", "C"])
    assert (found.dtype, found.tolist()) == (np.int64, [1, 0, 1, -1])
    assert index.find([]).tolist() == []


def test_hash_depends_on_order_and_names():
    assert vocabulary_hash(["a", "b"], ["A", "B"]) == vocabulary_hash(["a", "b"], ["A", "B"])
    assert len({vocabulary_hash(*names) for names in [("ab", "AB"), ("ba", "BA"), ("ab", "AC")]}) == 3


def test_only_line_ends_end_the_lines_of_a_list(tmp_path):
    names = ["A\u0085x", "B\u2028y", "C\x0bz"]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "genes.txt").write_bytes(end.join([*names, ""]).encode())
        assert read_gene_list(tmp_path / "genes.txt", "--genes") == names


def test_ids_match_before_symbols_and_nothing_matches_twice():
    known = GeneIndex(["ENSG00000000010", "ENSG00000000011", ""], ["MATR3", "ACTB", "TP53"])
    ids = ["ENSG00000280987", "ENSG00000000010.5", "ENSG00000000099", "", ""]
    found = known.match(ids, ["MATR3", "MATR3", "ACTB", "TP53", "TP53"])
    assert found.tolist() == [-1, 0, 1, 2, -1]
