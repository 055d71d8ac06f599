"""Halves of molecules: they add up, are independent where they should be, and give the replicate's values."""

import numpy as np
import pytest

from sckit.data.batch import Hiding, Packer
from sckit.data.halves import Halves, nb_sizes, replicate_values


@pytest.mark.parametrize("split", ["binomial", "nb"])
def test_halves_add_up_and_are_independent_given_the_rate(simulated, split):
    cells = np.arange(100)
    sizes = nb_sizes(simulated, np.arange(280), np.zeros(280, int)) if split == "nb" else None
    view = Halves(simulated, 0, sizes)
    a, b, whole = (
        sparse(rows, simulated.n_genes) for rows in (view.rows(cells), view.other(cells), simulated.rows(cells))
    )
    np.testing.assert_array_equal(a + b, whole)
    np.testing.assert_array_equal(view.totals(cells) + view.other_totals(cells), simulated.totals(cells))
    np.testing.assert_array_equal(sparse(view.rows(cells[::-1]), simulated.n_genes)[::-1], a)
    assert a.sum() / whole.sum() == pytest.approx(0.5, abs=0.02)


def test_negative_binomial_halves_of_overdispersed_counts_are_less_alike_than_binomial_ones():
    """Counts from one gamma-Poisson law: binomial halves share the excess, beta-binomial halves must not."""
    generator = np.random.default_rng(5)
    counts = generator.negative_binomial(2.0, 0.2, size=(4000, 3)) + 0

    class Flat:
        n_genes = 3

        def rows(self, cells):
            chosen = counts[cells]
            ends = np.arange(len(cells) + 1) * 3
            return ends, np.tile(np.arange(3), len(cells)), chosen.ravel()

        def totals(self, cells):
            return np.full(len(cells), 1000)

    cells = np.arange(4000)
    correlation = {}
    for split in ("binomial", "nb"):
        view = Halves(Flat(), 0, nb_sizes(Flat(), cells, np.zeros(4000, int)) if split == "nb" else None)
        a = sparse(view.rows(cells), 3)
        correlation[split] = np.corrcoef(a[:, 0], counts[:, 0] - a[:, 0])[0, 1]
    assert correlation["binomial"] > 0.5
    assert abs(correlation["nb"]) < 0.08


def test_cell_types_are_not_taken_for_overdispersion():
    """Two Poisson types: within clusters no gene is overdispersed, over all cells the markers look so."""
    generator = np.random.default_rng(6)
    kind = np.arange(2000) % 2
    counts = generator.poisson(np.array([[2.0, 20.0, 8.0], [20.0, 2.0, 8.0]])[kind])

    class Types:
        n_genes = 3

        def rows(self, cells):
            return np.arange(len(cells) + 1) * 3, np.tile(np.arange(3), len(cells)), counts[cells].ravel()

        def totals(self, cells):
            return np.full(len(cells), 30)

    cells = np.arange(2000)
    assert nb_sizes(Types(), cells, kind).min() > 50
    assert nb_sizes(Types(), cells, np.zeros(2000, int))[:2].max() < 3


def sparse(csr, n_genes):
    indptr, genes, counts = csr
    dense = np.zeros((len(indptr) - 1, n_genes), int)
    dense[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), genes] = counts
    return dense


def test_replicate_values_are_those_of_the_other_half(simulated):
    vocabulary = np.arange(simulated.n_genes, dtype=np.int32)
    view = Halves(simulated, 0)
    cells = np.arange(20)
    batch = Packer(view, vocabulary, Hiding(1.0))(cells)
    b = sparse(view.other(cells), simulated.n_genes)
    expected = np.log1p(b / view.other_totals(cells)[:, None] * 1e4)[batch.target_cells, batch.genes[batch.targets]]
    np.testing.assert_allclose(replicate_values(view, batch, vocabulary), expected)
