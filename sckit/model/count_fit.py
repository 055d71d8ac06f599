"""Fit value factors and the count regression of the baselines in count space.

The factors of a training cell are computed without the entry that they help to predict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from sckit.data.views import cell_of_entry, with_data
from sckit.kernels.count_law import count_moments, rate_of_mean, value_moments
from sckit.kernels.counts_numba import entry_dot
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.regression_numba import add_newton_sums, factor_means, unpack
from sckit.model.offset_forms import LOG_RATES, OffsetForms, value_of_one
from sckit.model.regression import TrainingCells, by_gene, residual_factors

FACTORS = (8, 16, 24)
COUNT_PENALTIES = (10.0, 30.0, 100.0)
"""What inner validation chooses from."""

_NOISE_PENALTY = 10.0  # cells of the mean gene by which the variance of a gene is shrunk
_NEWTON_STEPS = 8
_LONGEST_STEP = 1.0  # of a coefficient of a log rate
_SHORTER = 0.4  # of a step that made the likelihood worse
_TRIED_CELLS = (3000, 1500)  # on which a penalty is tried: to fit, to score


def choose_factors(training: TrainingCells, forms: OffsetForms, most: int) -> int:
    """Return the number of factors with the least squared error on the cells of one fold, fitted on the others."""
    fold = training.folds()
    tried = fit_factors(replace(training, cells=training.cells[fold != 0], groups=None), forms, min(FACTORS[-1], most))
    left = np.sort(np.random.default_rng(training.seed).permutation(training.cells[fold == 0])[: _TRIED_CELLS[1]])
    sizes = sorted({min(size, tried.loadings.shape[1]) for size in FACTORS})
    errors = np.zeros(len(sizes))
    for i, size in enumerate(sizes):
        cut = replace(tried, loadings=np.ascontiguousarray(tried.loadings[:, :size]))
        for part in _entries(training, cut, left):
            error = part.values - part.expected - (cut.loadings[part.genes] * part.factors).sum(1)
            errors[i] += error @ error
    return sizes[int(errors.argmin())]


def fit_factors(training: TrainingCells, forms: OffsetForms, count: int) -> OffsetForms:
    """Add loadings: principal axes of the total offset ridge's residuals, scaled per gene, zero where undetected."""
    n_genes, pool = training.n_genes, training.pool()

    def residuals() -> Iterator[sp.csr_array]:
        for block in training.blocks(pool):
            full, cell = forms.block_features(block), cell_of_entry(block.values.indptr)
            expected = entry_dot(forms.total, block.values.indices, full, cell)
            yield with_data(block.values, block.values.data - value_of_one(np.log(block.totals))[cell] - expected)

    generator = np.random.default_rng(training.seed)
    loadings, noise = residual_factors(residuals, n_genes, count, _NOISE_PENALTY, generator)
    return replace(forms, loadings=loadings, noise=noise)


def gene_facts(training: TrainingCells) -> dict[str, np.ndarray]:
    """Return how many cells show each gene, and over these means of its value and count, [G] each.

    A gene that no cell shows has the means over all entries.
    """
    cells, values, squares, above, counts = (np.zeros(training.n_genes) for _ in range(5))
    for block in training.blocks():
        value, one = block.values.data, value_of_one(np.log(block.totals))[cell_of_entry(block.values.indptr)]
        entries = (None, value, value**2, value - one, _counts_of(block.values, block.totals))
        for total, weights in zip((cells, values, squares, above, counts), entries, strict=True):
            total += np.bincount(block.values.indices, weights, minlength=training.n_genes)
    value, square, above, count = (
        np.where(cells > 0, total / np.maximum(cells, 1), total.sum() / max(cells.sum(), 1))
        for total in (values, squares, above, counts)
    )
    deviation = np.sqrt(np.maximum(square - value**2, 0))
    return {"gene_mean": value, "mean_above": above, "mean_count": count, "cells": cells, "deviation": deviation}


def _counts_of(values: sp.csr_array, totals: np.ndarray) -> np.ndarray:
    """Return the counts [nnz] of values."""
    return np.rint(np.expm1(values.data) * (totals / TARGET_SUM)[cell_of_entry(values.indptr)])


@dataclass(frozen=True)
class _Entries:
    """The entries of a block of cells, gene by gene, with what the count regression sees of each."""

    indptr: np.ndarray  # [G + 1]
    genes: np.ndarray  # [nnz]
    cell: np.ndarray  # [nnz]
    values: np.ndarray  # [nnz]
    counts: np.ndarray  # [nnz]
    expected: np.ndarray  # [nnz], value by the detection + total offset ridge
    full: np.ndarray  # [c, F + 1]
    factors: np.ndarray  # [nnz, J], without the entry itself
    totals: np.ndarray  # [c]

    @property
    def log_size(self) -> np.ndarray:
        """Log of the total in units of 10,000 counts, [c]."""
        return np.log(self.totals / TARGET_SUM)


def _entries(training: TrainingCells, forms: OffsetForms, cells: np.ndarray) -> Iterator[_Entries]:
    for block in training.blocks(cells):
        values, cell = block.values, cell_of_entry(block.values.indptr)
        full = forms.block_features(block)
        expected = value_of_one(np.log(block.totals))[cell] + entry_dot(forms.total, values.indices, full, cell)
        factors = np.zeros((len(values.data), forms.loadings.shape[1]))
        means = np.zeros((len(block.cells), factors.shape[1]))
        residuals = values.data - expected
        factor_means(values.indptr, values.indices, residuals, forms.loadings, forms.noise, means, factors)
        order, indptr = by_gene(values.indices, training.n_genes)
        counts = _counts_of(values, block.totals)
        genes, cell, data, counts, expected = (x[order] for x in (values.indices, cell, values.data, counts, expected))
        yield _Entries(indptr, genes, cell, data, counts, expected, full, factors[order], block.totals)


def fit_counts(
    training: TrainingCells, forms: OffsetForms, cells: np.ndarray, penalties: Sequence[float]
) -> list[OffsetForms]:
    """Add the count regression with each penalty: some Newton steps for all genes, each pass over the cells a step.

    A gene whose counts vary more than Poisson about its mean rate has its penalty raised by as much. A step that makes
    a gene's penalised likelihood worse is taken back and shortened. The last pass finds the factor `excess`.
    """
    start, dispersion = _gene_rates(training, forms, cells)
    size = forms.total.shape[1] + forms.loadings.shape[1]
    fits = [_Newton(start, penalty * dispersion, size) for penalty in penalties]
    for _ in range(_NEWTON_STEPS):
        for part in _entries(training, forms, cells):
            for fit in fits:
                fit.add(part)
        for fit in fits:
            fit.step()
    fitted = [replace(forms, log_rate=start, counts=fit.kept) for fit in fits]
    return [replace(one, excess=_excess(training, one, cells)) for one in fitted]


class _Newton:
    """Newton's method for the coefficients of all genes at once, with one penalty."""

    def __init__(self, log_rate: np.ndarray, penalty: np.ndarray, size: int) -> None:
        """log_rate: [G], the first coefficient to start from; penalty: [G], of all others."""
        n_genes = len(log_rate)
        self.weights = np.repeat(penalty[:, None], size, 1)
        self.weights[:, 0] = 1e-4
        self.coefficients = np.zeros((n_genes, size))
        self.coefficients[:, 0] = log_rate
        self.kept, self.last_step = self.coefficients.copy(), np.zeros((n_genes, size))
        self.best = np.full(n_genes, -np.inf)
        self._empty()

    def _empty(self) -> None:
        n_genes, size = self.coefficients.shape
        self.packed, self.gradient = np.zeros((n_genes, size * (size + 1) // 2)), np.zeros((n_genes, size))
        self.likelihood = np.zeros(n_genes)

    def add(self, part: _Entries) -> None:
        """Add what the next step needs to know of a block of cells."""
        add_newton_sums(
            part.indptr, part.cell, part.counts, part.log_size, part.full, part.factors, self.coefficients,
            self.packed, self.gradient, self.likelihood,
        )  # fmt: skip

    def step(self) -> None:
        """Take a step for each gene, back and shorter where the last one made it worse."""
        size = self.coefficients.shape[1]
        likelihood = self.likelihood - 0.5 * (self.weights[:, 1:] * self.coefficients[:, 1:] ** 2).sum(1)
        better = likelihood >= self.best
        gradient = self.gradient - self.weights * self.coefficients * (np.arange(size) > 0)
        hessian = unpack(self.packed, size)
        hessian[:, np.arange(size), np.arange(size)] += self.weights
        newton = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        newton *= np.minimum(1, _LONGEST_STEP / np.maximum(np.abs(newton).max(1), 1e-9))[:, None]
        self.best[better], self.kept[better] = likelihood[better], self.coefficients[better]
        self.last_step[better] = newton[better]
        self.last_step[~better] *= _SHORTER
        self.coefficients = self.kept + self.last_step
        self._empty()


def _gene_rates(training: TrainingCells, forms: OffsetForms, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each gene's log rate for 10,000 counts [G], and how much more than Poisson its counts vary, at least 1."""
    n_genes = training.n_genes
    counted, counts, sizes, spread = (np.zeros(n_genes) for _ in range(4))
    for block in training.blocks(cells):
        genes, cell = block.values.indices, cell_of_entry(block.values.indptr)
        counted += np.bincount(genes, minlength=n_genes)
        counts += np.bincount(genes, _counts_of(block.values, block.totals), minlength=n_genes)
        sizes += np.bincount(genes, np.log(block.totals / TARGET_SUM)[cell], minlength=n_genes)
    cells_of = np.maximum(counted, 1)
    log_rate = np.log(rate_of_mean((counts + 0.2) / cells_of)) - sizes / cells_of
    for block in training.blocks(cells):
        genes, cell = block.values.indices, cell_of_entry(block.values.indptr)
        rates = np.exp(log_rate[genes] + np.log(block.totals / TARGET_SUM)[cell])
        mean, variance = count_moments(rates)
        squares = (_counts_of(block.values, block.totals) - mean) ** 2 / np.maximum(variance, 1e-3)
        spread += np.bincount(genes, squares, minlength=n_genes)
    return log_rate, np.maximum((spread + _NOISE_PENALTY) / (counted + _NOISE_PENALTY), 1.0)


def _mean_above(forms: OffsetForms, part: _Entries) -> tuple[np.ndarray, np.ndarray]:
    """Return the value of each entry and what the count regression expects, both above a single count."""
    split = part.full.shape[1]
    log_rates = entry_dot(np.ascontiguousarray(forms.counts[:, :split]), part.genes, part.full, part.cell)
    log_rates += (forms.counts[part.genes, split:] * part.factors).sum(1) + part.log_size[part.cell]
    means, _ = value_moments(np.exp(np.clip(log_rates, *LOG_RATES)), part.totals[part.cell].astype(np.float64))
    one = value_of_one(np.log(part.totals))[part.cell]
    return part.values - one, means - one


def _excess(training: TrainingCells, forms: OffsetForms, cells: np.ndarray) -> np.ndarray:
    """Return the factor [G] by which real values lie above a single count, compared with the law; shrunk to 1."""
    products, squares, counted = (np.zeros(training.n_genes) for _ in range(3))
    for part in _entries(training, forms, cells):
        above, expected = _mean_above(forms, part)
        products += np.bincount(part.genes, above * expected, minlength=training.n_genes)
        squares += np.bincount(part.genes, expected**2, minlength=training.n_genes)
        counted += np.bincount(part.genes, minlength=training.n_genes)
    prior = _NOISE_PENALTY * squares.sum() / max(counted.sum(), 1)
    return (products + prior) / (squares + prior)


def choose_count_penalty(training: TrainingCells, forms: OffsetForms) -> float:
    """Return the penalty with the least squared error on cells of one fold, fitted on cells of the others."""
    fold, generator = training.folds(), np.random.default_rng(training.seed)
    parts = [
        np.sort(generator.permutation(training.cells[mask])[:most])
        for mask, most in zip((fold != 0, fold == 0), _TRIED_CELLS, strict=True)
    ]
    errors = np.zeros(len(COUNT_PENALTIES))
    for i, tried in enumerate(fit_counts(training, forms, parts[0], COUNT_PENALTIES)):
        for part in _entries(training, tried, parts[1]):
            above, expected = _mean_above(tried, part)
            errors[i] += ((above - tried.excess[part.genes] * np.maximum(expected, 0)) ** 2).sum()
    return COUNT_PENALTIES[int(errors.argmin())]
