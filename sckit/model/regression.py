"""Streaming linear algebra over detected entries: principal components and one ridge regression per gene."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sckit.data.split import deal_by_size
from sckit.data.views import CountsView, as_matrix, in_blocks, with_data
from sckit.kernels.counts_numba import normalise

BLOCK_CELLS = 1024
_PCA_CELLS = 50_000  # the components converge long before; beyond this a seeded subset is used
_FOLDS = 5
_LEAST_NOISE = 1e-6  # variance; where no value varies, rounding would be taken for factors
_SUBSPACE_PASSES = 6
_OVERSAMPLE = 10


@dataclass(frozen=True)
class ValueBlock:
    """Values of c cells at their detected genes."""

    cells: np.ndarray  # int64 [c], rows of the store
    values: sp.csr_array  # float64 [c, G], log1p of counts per 10,000
    totals: np.ndarray  # [c]

    @property
    def binary(self) -> sp.csr_array:
        """Return the detection matrix [c, G]: one at each stored entry, whatever its value."""
        return ones_like(self.values)


def value_blocks(view: CountsView, vocabulary: np.ndarray, cells: np.ndarray) -> Iterator[ValueBlock]:
    """Yield the cells in blocks, with the genes of the vocabulary only."""
    n_genes = int(vocabulary.max()) + 1
    for part in in_blocks(cells, BLOCK_CELLS):
        totals = view.totals(part)
        yield ValueBlock(part, as_matrix(normalise(view.rows(part), totals, vocabulary), n_genes), totals)


@dataclass(frozen=True)
class TrainingCells:
    """The cells that something is fitted on."""

    view: CountsView
    vocabulary: np.ndarray  # int32 [genes of the store], number in the model or -1
    cells: np.ndarray  # int64 [cells], rows of the store
    groups: np.ndarray | None = None  # [cells], labels; whole groups are left out to choose rank and penalty
    seed: int = 0

    @property
    def n_genes(self) -> int:
        """Number of genes of the model."""
        return int(self.vocabulary.max()) + 1

    def blocks(self, cells: np.ndarray | None = None) -> Iterator[ValueBlock]:
        """Yield the cells, or some of them, in blocks of values."""
        yield from value_blocks(self.view, self.vocabulary, self.cells if cells is None else cells)

    def pool(self) -> np.ndarray:
        """Return the cells that components are computed from, at most 50,000."""
        if len(self.cells) <= _PCA_CELLS:
            return self.cells
        return np.sort(np.random.default_rng(self.seed).permutation(self.cells)[:_PCA_CELLS])

    def folds(self) -> np.ndarray:
        """Number each cell's fold [cells]: whole groups where there are several, dealt by size, else random fifths."""
        generator = np.random.default_rng(self.seed)
        if self.groups is None or len(np.unique(self.groups)) < 2:
            return generator.permutation(len(self.cells)) % min(_FOLDS, len(self.cells))
        _, number, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        return deal_by_size(sizes, min(_FOLDS, len(sizes)))[number]


def by_gene(genes: np.ndarray, n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that sorts entries by gene, and where each gene begins in it [G + 1]."""
    return np.argsort(genes, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(genes, minlength=n_genes))])


def ones_like(matrix: sp.csr_array) -> sp.csr_array:
    """Return ones at the stored entries of a matrix."""
    return with_data(matrix, np.ones(len(matrix.data)))


def principal_axes(
    blocks: Callable[[], Iterable[sp.csr_array]], mean: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first right singular vectors [G, count] of a matrix less its column means, and their variances.

    blocks: rows of the matrix, streamed again at every call; mean: [G]. Subspace iteration with one pass over the rows
    per iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    product = generator.standard_normal((len(mean), min(count + _OVERSAMPLE, len(mean))))
    basis, covariance = product, np.eye(product.shape[1])
    for _ in range(_SUBSPACE_PASSES):
        basis, _ = np.linalg.qr(product)
        product, covariance, seen = np.zeros_like(basis), np.zeros((basis.shape[1],) * 2), 0
        for rows in blocks():
            score = rows @ basis - mean @ basis  # [c, count + oversampling]
            product += rows.T @ score - np.outer(mean, score.sum(0))
            covariance += score.T @ score
            seen += len(score)
        covariance /= seen
    variance, rotation = np.linalg.eigh(covariance)
    order = np.argsort(variance)[::-1][:count]
    axes = basis @ rotation[:, order]
    # An axis has no sign of its own; fixed here so that a refit gives the same numbers.
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]) if count else 1.0
    return axes, np.maximum(variance[order], 1e-12)


def normal_equations(
    blocks: Iterable[tuple[sp.csr_array, np.ndarray]], n_genes: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add up, over each gene's detected entries, features' outer products [G, k, k] and features times value [G, k].

    blocks: (values [c, G], features of the cells [c, k]).
    """
    rows, columns = np.triu_indices(size)
    packed, moment = np.zeros((n_genes, len(rows))), np.zeros((n_genes, size))
    for values, features in blocks:
        packed += ones_like(values).T @ (features[:, rows] * features[:, columns])
        moment += values.T @ features
    gram = np.zeros((n_genes, size, size))
    gram[:, rows, columns] = packed
    gram[:, columns, rows] = packed
    return gram, moment


def solve_ridge(gram: np.ndarray, moment: np.ndarray, penalty: float) -> np.ndarray:
    """Return the coefficients [G, k] of one ridge per gene; the intercept, feature 0, is not penalised."""
    weights = np.full(gram.shape[1], penalty)
    weights[0] = 1e-9
    return np.linalg.solve(gram + np.diag(weights), moment[..., None])[..., 0]


def posterior(residuals: sp.csr_array, loadings: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the posterior means [c, J] of standard normal factors given residuals [c, G] at the stored entries.

    The ridge of a cell, (I + L'L/s)^-1 L'r/s over the genes seen, with loadings L [G, J] and noise variances s [G].
    """
    factors = loadings.shape[1]
    weighted = loadings / noise[:, None]
    outer = (weighted[:, :, None] * loadings[:, None, :]).reshape(len(loadings), -1)
    precision = (ones_like(residuals) @ outer).reshape(len(residuals.indptr) - 1, factors, factors) + np.eye(factors)
    return np.linalg.solve(precision, (residuals @ weighted)[..., None])[..., 0]


def residual_factors(
    residuals: Callable[[], Iterable[sp.csr_array]],
    n_genes: int,
    count: int,
    penalty: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return loadings [G, count], principal axes of residuals scaled per gene, and the residuals' variances [G].

    residuals: rows with what a regression leaves of the stored entries, streamed again at every call. A gene's variance
    is drawn towards that of all genes by `penalty` cells.
    """
    counted, squares = np.zeros(n_genes), np.zeros(n_genes)
    for block in residuals():
        counted += np.bincount(block.indices, minlength=n_genes)
        squares += np.bincount(block.indices, block.data**2, minlength=n_genes)
    noise = (squares + penalty * squares.sum() / max(counted.sum(), 1)) / (counted + penalty)
    noise = np.maximum(noise, _LEAST_NOISE)
    scale = np.sqrt(noise)

    def scaled() -> Iterator[sp.csr_array]:
        for block in residuals():
            block.data /= scale[block.indices]
            yield block

    axes, variance = principal_axes(scaled, np.zeros(n_genes), count, generator)
    return scale[:, None] * axes * np.sqrt(variance), noise
