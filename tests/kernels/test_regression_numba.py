"""Sums and solutions of one regression per gene compared with dense numpy."""

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import poisson

from sckit.kernels.regression_numba import add_newton_sums, add_normal_equations, factor_means, ridge_paths, unpack

GENES, CELLS = 7, 60


def packed_size(k):
    return k * (k + 1) // 2


@pytest.fixture(params=[0, 2], ids=["no own features", "own features"])
def block(request, rng):
    """A block in which gene 2 and cell 5 are empty: indptr, cells, features, own, gene of each entry."""
    seen = rng.random((CELLS, GENES)) < 0.6
    seen[:, 2] = seen[5] = False
    gene, cells = np.nonzero(seen.T)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(gene, minlength=GENES))])
    features = np.column_stack([np.ones(CELLS), rng.normal(size=(CELLS, 3))])
    return indptr, cells, features, rng.normal(size=(len(cells), request.param)), gene


def test_normal_equations_are_those_of_numpy(block, rng):
    indptr, cells, features, own, gene = block
    k, targets = features.shape[1] + own.shape[1], rng.normal(size=(len(cells), 2))
    packed, moments = np.full((GENES, packed_size(k)), 0.5), np.full((GENES, 2, k), 0.25)
    add_normal_equations(indptr, cells, targets, features, own, packed, moments)
    z = np.hstack([features[cells], own])
    for g in range(GENES):
        mine = gene == g
        np.testing.assert_allclose(unpack(packed - 0.5, k)[g], z[mine].T @ z[mine], atol=1e-10)
        np.testing.assert_allclose(moments[g] - 0.25, targets[mine].T @ z[mine], atol=1e-10)
    assert (packed[2] == 0.5).all()


def test_leading_parts_of_packed_matrices_unpack(rng):
    whole = rng.normal(size=(3, 5, 5))
    whole = whole + whole.transpose(0, 2, 1)
    packed = whole[:, *np.tril_indices(5)]
    np.testing.assert_array_equal(unpack(packed, 5), whole)
    np.testing.assert_array_equal(unpack(packed, 3), whole[:, :3, :3])


def test_newton_sums_are_derivatives_of_the_likelihood(block, rng):
    indptr, cells, features, own, gene = block
    k = features.shape[1] + own.shape[1]
    log_size, coefficients = rng.normal(0, 0.3, CELLS), rng.normal(0, 0.3, (GENES, k))
    coefficients[0, 0] = -13  # rates near zero
    coefficients[1, 0] = 4
    z = np.hstack([features[cells], own])

    def likelihood_of(weights, mine, counts):
        rates = np.exp(log_size[cells[mine]] + z[mine] @ weights)
        logs = poisson.logpmf(counts[mine], rates) - np.log(-np.expm1(-rates)) + gammaln(counts[mine] + 1)
        return logs.sum()

    counts = 1.0 + rng.poisson(np.exp(log_size[cells] + (coefficients[gene] * z).sum(1)))
    packed, gradient, likelihood = np.zeros((GENES, packed_size(k))), np.zeros((GENES, k)), np.zeros(GENES)
    add_newton_sums(
        indptr, cells, counts, log_size, features, own, coefficients, packed, gradient, likelihood
    )  # fmt: skip
    hessian, step = unpack(packed, k), 1e-3
    for g in range(GENES):
        mine = np.flatnonzero(gene == g)
        assert likelihood[g] == pytest.approx(likelihood_of(coefficients[g], mine, counts), rel=1e-9, abs=1e-4)
        moved = step * np.eye(k)
        up, down = ([likelihood_of(coefficients[g] + s * m, mine, counts) for m in moved] for s in (1, -1))
        slope = (np.array(up) - np.array(down)) / (2 * step)
        np.testing.assert_allclose(gradient[g], slope, rtol=1e-4, atol=2e-3)
        for a in range(k):
            for b in range(k):
                corners = [
                    s * t * likelihood_of(coefficients[g] + s * moved[a] + t * moved[b], mine, counts)
                    for s in (1, -1)
                    for t in (1, -1)
                ]
                assert hessian[g, a, b] == pytest.approx(-sum(corners) / (4 * step**2), rel=2e-3, abs=5e-3)
    assert not gradient[2].any()


def test_ridge_paths_are_ridges_of_every_size_and_penalty(block, rng):
    _, cells, features, own, gene = block
    k, targets = features.shape[1] + own.shape[1], rng.normal(size=(len(cells), 1))
    z = np.hstack([features[cells], own])
    sums = []
    for parity in (0, 1):
        mine = np.flatnonzero(cells % 2 == parity)
        ends = np.concatenate([[0], np.cumsum(np.bincount(gene[mine], minlength=GENES))])
        packed, moments = np.zeros((GENES, packed_size(k))), np.zeros((GENES, 1, k))
        add_normal_equations(ends, cells[mine], targets[mine], features, own[mine], packed, moments)
        sums += [packed, np.ascontiguousarray(moments[:, 0])]
    penalties, sizes = np.array([0.5, 20.0]), np.arange(1, k + 1)
    errors = np.full((GENES, len(penalties), len(sizes)), 3.0)
    ridge_paths(*sums, penalties, sizes, errors)
    for g in range(GENES):
        fitted, left = ((gene == g) & (cells % 2 == parity) for parity in (0, 1))
        for n, penalty in enumerate(penalties):
            for m, size in enumerate(sizes):
                x, y = z[fitted, :size], targets[fitted, 0]
                weights = np.diag([1e-9] + [penalty] * (size - 1))
                beta = np.linalg.solve(x.T @ x + weights, x.T @ y)
                y = targets[left, 0]
                expected = ((y - z[left, :size] @ beta) ** 2).sum() - (y**2).sum()
                assert errors[g, n, m] - 3 == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("factors", [0, 3])
def test_factor_means_are_ridges_with_and_without_each_entry(rng, factors):
    lengths = np.array([5, 0, 1, 8])  # the second cell is empty
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(9)[:n] for n in lengths])
    residuals, loadings, noise = rng.normal(size=14), rng.normal(size=(9, factors)), rng.uniform(0.3, 2, 9)
    loadings[4] = 0
    means, left_out = np.full((4, factors), np.nan), np.full((14, factors), np.nan)
    factor_means(indptr, genes, residuals, loadings, noise, means, left_out)

    def solved(entries):
        rows = loadings[genes[entries]]
        weighted = rows / noise[genes[entries], None]
        return np.linalg.solve(np.eye(factors) + weighted.T @ rows, weighted.T @ residuals[entries])

    for c in range(4):
        entries = np.arange(indptr[c], indptr[c + 1])
        np.testing.assert_allclose(means[c], solved(entries), atol=1e-10)
        for i in entries:
            np.testing.assert_allclose(left_out[i], solved(entries[entries != i]), atol=1e-10)
    again = np.full_like(means, np.nan)
    factor_means(indptr, genes, residuals, loadings, noise, again, np.zeros((0, factors)))
    np.testing.assert_array_equal(again, means)
