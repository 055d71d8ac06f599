"""Counts cleaned in one pass are those that numpy cleans step by step; what is unusual is left to numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.data.readers.source import tidy
from sckit.data.views import row_sums
from sckit.kernels.clean_numba import Places, cleaned, count_genes, grouped, taken

FEATURES = 12
GENE_OF_FEATURE = np.array([0, 1, 2, -1, 3, 4, 5, 6, -1, 7, 8, 9], np.int32)
FEATURE_TYPES = [np.uint16, np.int32, np.uint32, np.int64, np.uint64]
VALUE_TYPES = [*(np.dtype(f"{sign}{size}") for sign in "ui" for size in (1, 2, 4, 8)), np.float32, np.float64]


@st.composite
def rows(draw):
    """CSR of features that rise, and counts that may be 0, in any types."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(0, FEATURES), max_size=6))
    features = [np.sort(generator.permutation(FEATURES)[:n]) for n in lengths]
    counts = generator.integers(0, 100, sum(lengths))
    types = draw(st.sampled_from(FEATURE_TYPES)), draw(st.sampled_from(VALUE_TYPES))
    joined = np.concatenate([*features, np.zeros(0, np.int64)])
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), joined.astype(types[0]), counts.astype(types[1])


def of_numpy(csr):
    indptr, features, values = csr
    found = tidy(indptr, GENE_OF_FEATURE[features.astype(np.int64)], values.astype(np.uint32))
    return found, row_sums(found[0], found[2])


@settings(max_examples=80, deadline=None)
@given(csr=rows())
def test_one_pass_gives_what_numpy_gives(csr):
    found, wanted = cleaned(csr, GENE_OF_FEATURE), of_numpy(csr)
    for own, other in zip((*found[0], found[1]), (*wanted[0], wanted[1]), strict=True):
        np.testing.assert_array_equal(own, other)
        assert own.dtype == other.dtype


@pytest.mark.parametrize("value", [-1, 0.5, np.nan, np.inf, -np.inf, 2.0**32, -0.5])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_is_no_count_is_left_to_numpy(value, kind):
    values = np.array([3, value, 1], kind)
    assert cleaned((np.array([0, 1, 3]), np.array([0, 1, 2], np.int32), values), GENE_OF_FEATURE) is None


@pytest.mark.parametrize(
    ("indptr", "features", "values"),
    [
        pytest.param([0, 3], [0, 2, 1], [1, 1, 1], id="falling"),
        pytest.param([0, 3], [0, 1, 1], [1, 1, 1], id="twice"),
        pytest.param([0, 3], [0, 1, FEATURES], [1, 1, 1], id="too-large"),
        pytest.param([0, 3], [0, 1, -1], [1, 1, 1], id="negative"),
        pytest.param([0, 3], np.array([0, 1, 2], np.int8), [1, 1, 1], id="where-a-negative-feature-looks-like-255"),
        pytest.param([0, 3], np.array([0, 1, 2], np.int16), [1, 1, 1], id="or-like-65535"),
        pytest.param([0, 3], np.array([0, 1, 2], ">i4"), [1, 1, 1], id="other-byte-order"),
        pytest.param([0, 3], [0, 1, 2], np.array([1, 1, 1], ">f4"), id="values-in-other-byte-order"),
        pytest.param([0, 3], [0, 1, 2], np.array([1, 1, 1], np.float16), id="float16"),
        pytest.param([0, 4], [0, 1, 2], [1, 1, 1], id="past-the-end"),
        pytest.param([1, 3], [0, 1, 2], [1, 1, 1], id="not-from-the-beginning"),
        pytest.param([0, 5, 3], [0, 1, 2], [1, 1, 1], id="falling-bounds"),
        pytest.param([0, 3], [0, 1, 2], [1, 1], id="values-missing"),
        pytest.param([0, 3], [0, 1, 2], [1, -1, 1], id="negative-integer"),
    ],
)
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_unusual_entries_are_left_to_numpy(indptr, features, values, kind):
    features, values = (x if isinstance(x, np.ndarray) else np.array(x, kind) for x in (features, values))
    assert cleaned((np.array(indptr), features, values), GENE_OF_FEATURE) is None


@settings(max_examples=40, deadline=None)
@given(csr=rows(), seed=st.integers(0, 99))
def test_cells_and_genes_are_taken(csr, seed):
    generator = np.random.default_rng(seed)
    (indptr, genes, counts), _ = cleaned(csr, GENE_OF_FEATURE)
    kept, order = generator.random(len(indptr) - 1) < 0.7, np.where(generator.random(10) < 0.3, -1, np.arange(10))
    found = taken((indptr, genes, counts), kept, order.astype(np.int32))
    renumbered = np.where(np.repeat(kept, np.diff(indptr)), order[genes], -1).astype(np.int32)
    for own, other in zip(found, tidy(indptr, renumbered, counts), strict=True):
        np.testing.assert_array_equal(own, other)
    count_genes(found[1], of_gene := np.ones(10, np.int64))
    np.testing.assert_array_equal(of_gene, 1 + np.bincount(found[1], minlength=10))


def test_genes_in_another_order_are_left_to_numpy():
    csr = np.array([0, 2]), np.array([0, 1], np.int32), np.array([1, 2], np.uint32)
    assert taken(csr, np.array([True]), np.array([1, 0], np.int32)) is None
    assert taken(csr, np.array([False]), np.array([1, 0], np.int32)) is not None


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8, np.uint16])
def test_entries_in_any_order_are_grouped_by_cell(rng, kind):
    n_cells, first_cell, first_gene = 7, 100, -5
    cell_table, gene_table = rng.permutation(n_cells).astype(np.int32), rng.permutation(20).astype(np.int32)
    cells, genes = rng.integers(0, n_cells, 60), rng.integers(0, 20, 60)
    values = rng.integers(0, 99, 60).astype(kind)
    places = Places(first_cell, cell_table), Places(first_gene, gene_table)
    indptr, found_genes, found = grouped(cells + first_cell, genes + first_gene, values, *places, n_cells)
    order = np.argsort(cell_table[cells], kind="stable")
    np.testing.assert_array_equal(indptr, np.concatenate([[0], np.cumsum(np.bincount(cell_table[cells], minlength=7))]))
    np.testing.assert_array_equal(found_genes, gene_table[genes[order]])
    np.testing.assert_array_equal(found, values[order])
    assert found.dtype == kind


@pytest.mark.parametrize("number", [-1, 0, 3, 4, 2**40])
def test_ids_without_a_place_are_told(number):
    some, all_of_them = Places(0, np.array([-1, 0, 1, -1], np.int32)), Places(-1, np.arange(6, dtype=np.int32))
    wrong, right, values = np.array([1, number]), np.array([1, 2]), np.ones(2)
    assert grouped(wrong, right, values, some, all_of_them, 6) == "cell"
    assert grouped(right, wrong, values, all_of_them, some, 6) == "gene"
