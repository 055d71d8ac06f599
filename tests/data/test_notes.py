"""Counts that look odd are told apart from counts of shallow, deep and few genes."""

import numpy as np
import pytest

from sckit.data.notes import odd_counts


@pytest.fixture
def cells(rng):
    """Totals and detected genes of 500 cells of ordinary depth."""
    totals = np.exp(rng.normal(7, 0.5, 500)).astype(int)
    return totals, totals // 3


def said(totals, n_genes):
    return " ".join(odd_counts(np.asarray(totals), np.asarray(n_genes), "x"))


def test_ordinary_cells_are_not_odd(cells, rng):
    totals, n_genes = cells
    assert said(totals, n_genes) == ""
    assert said(totals // 20 + 20, n_genes // 20 + 8) == ""  # a panel of few genes
    assert said(totals[:5], totals[:5]) == ""  # too few cells to say


def test_a_raw_matrix_is_named_with_its_number_of_empty_droplets(cells, rng):
    totals, n_genes = cells
    empty = rng.poisson(1.5, 5000) + 1
    assert "5,000 of the 5,500 cells of x have fewer than 10 counts" in said([*totals, *empty], [*n_genes, *empty])
    ambient = rng.poisson(40, 5000) + 10
    assert "raw matrix with empty droplets" in said([*20 * totals, *ambient], [*n_genes, *ambient // 2])


def test_binary_and_normalised_values_are_named(cells, rng):
    _totals, n_genes = cells
    assert "0 and 1 (binary)" in said(n_genes, n_genes)
    assert "looks like normalised and rounded" in said(10_000 + rng.integers(-50, 50, 500), n_genes)
