"""Counts that look odd are told apart from counts of shallow, deep and few genes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sckit.data.notes import larger_totals, odd_counts, odd_inputs


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


def source(path, n_genes=100):
    return SimpleNamespace(path=Path(path), genes=range(n_genes))


def test_inputs_that_go_together_badly_are_named():
    assert not list(odd_inputs([source("a"), source("b", 150)], ["a", "b"], np.array([5, 5]), [{}, {}], 90))
    (twice,) = odd_inputs([source("a"), source("./a")], ["a", "a-2"], np.array([5, 5]), [{}, {}], 100)
    assert twice == "a is given twice, so its cells may be in training and in test"
    (empty,) = odd_inputs(
        [source("a"), source("b")], ["a", "b"], np.array([5, 0]), [{}, {"cells of assay 'CEL-seq'": 9}], 100
    )
    assert empty == "no cell of b is kept: 9 cells of assay 'CEL-seq'; keep them with --assay any"
    for sizes, shared in (((100, 120), 40), ((100, 900), 100)):
        (few,) = odd_inputs(
            [source("a", sizes[0]), source("b", sizes[1])], ["a", "b"], np.array([5, 5]), [{}, {}], shared
        )
        assert few == f"only {shared} genes are in every input (a has 100, b has {sizes[1]}); all others are left out"


def test_a_column_that_may_be_the_total_over_more_genes_is_named():
    totals = np.arange(50, 80)
    obs = pd.DataFrame({"recovered_total": totals * 3, "n_counts": totals, "age": totals * 9, "total_text": "x"})
    (note,) = larger_totals(obs, totals, "norman")
    assert note.endswith("genes that were measured, give --totals recovered_total")
    assert not list(larger_totals(obs.assign(recovered_total=totals * 3 - 101), totals, "norman"))
