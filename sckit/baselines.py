"""Closed-form predictors of the value of a detected gene: what a network has to beat.

They are nested. With x = (1, log number of detected genes, principal components of the binary detection matrix),
t = log of the cell's total counts and f = a few factors read off the visible values, a gene's value is

    gene mean                        mu
    gene mean + depth                regression on (1, log detected)
    detection ridge                  ridge on x
    detection + total ridge          ridge on (x, t) where the visible values give t away, else the detection ridge
    value ridge                      the row above + <l, f>

One regression per gene, over the cells in which the gene was detected, all from one set of normal equations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import scipy.sparse as sp

from sckit.batch import Batch, CountsView, Hiding, Packer

PREDICTORS = ("gene mean", "gene mean + depth", "detection ridge", "detection + total ridge", "value ridge")

_BLOCK_CELLS = 1024
_PCA_CELLS = 50_000  # the components converge long before; beyond this a seeded subset is used
_SUBSPACE_PASSES = 6
_OVERSAMPLE = 10
_FACTOR_SWEEPS = 3


@dataclass(frozen=True)
class ClosedForms:
    """Fitted coefficients for G genes; K detection components, F = 2 + K features, J value factors. float64."""

    gene_mean: np.ndarray  # [G], over the cells in which the gene is detected
    depth: np.ndarray  # [G, 2], on (1, depth)
    axes: np.ndarray  # [G, K], a cell's components are sum(axes[detected genes]) - origin, with variance 1
    origin: np.ndarray  # [K]
    ridge: np.ndarray  # [G, F], on x = (1, depth, components)
    total: np.ndarray  # [G, F + 1], on (x, t)
    loadings: np.ndarray  # [G, J], of the value factors on the residuals of the row above
    noise: np.ndarray  # [G], variance of what the factors leave
    trust: np.ndarray  # [J], shrinkage of each factor, fitted on hidden entries
    scales: np.ndarray  # [4], mean and deviation of log detected, of log total

    def features(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(x [C, F], t [C]) of the cells of a batch in the detected context; t is NaN where the total is unknown."""
        detected = sp.csr_array((np.ones(len(batch.genes)), batch.genes, batch.offsets), (len(batch.cells), len(self.axes)))
        depth = (np.log(np.maximum(batch.n_detected, 1)) - self.scales[0]) / self.scales[1]
        x = np.column_stack([np.ones(len(depth)), depth, detected @ self.axes - self.origin])
        return x, (batch.log_total - self.scales[2]) / self.scales[3]

    def predict(self, batch: Batch) -> dict[str, np.ndarray]:
        """Predicted values of the batch's targets by every predictor, float64 [M] each."""
        x, t = self.features(batch)
        genes, cell = batch.genes[batch.targets], batch.target_cells
        with_total = _blend(self, x, t, genes, cell)
        factors = self._factors(batch, x, t)
        return {
            "gene mean": self.gene_mean[genes],
            "gene mean + depth": _rowdot(self.depth[genes], x[cell, :2]),
            "detection ridge": _rowdot(self.ridge[genes], x[cell]),
            "detection + total ridge": with_total,
            "value ridge": with_total + _rowdot(self.loadings[genes], (factors * self.trust)[cell]),
        }

    def _factors(self, batch: Batch, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Posterior mean of the value factors given the visible values, [C, J]; zero where nothing is visible."""
        seen = np.flatnonzero(~batch.hidden)
        genes, cell = batch.genes[seen], batch.cell_of_token[seen]
        residual = batch.values[seen] - _blend(self, x, t, genes, cell)
        indptr = np.searchsorted(cell, np.arange(len(batch.cells) + 1))
        return posterior(sp.csr_array((residual, genes, indptr), (len(batch.cells), len(self.axes))), self.loadings, self.noise)

    def arrays(self) -> dict[str, np.ndarray]:
        """Name -> array, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def fit_closed_forms(
    view: CountsView,
    vocabulary: np.ndarray,
    cells: np.ndarray,
    *,
    components: int = 11,
    factors: int = 8,
    penalty: float = 10.0,
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> ClosedForms:
    """Fit all predictors on the cells by streaming over them in blocks.

    penalty: ridge penalty in units of cells, on features of variance 1; the intercept is free.
    Memory: G x (components + 3)^2 doubles and one block of cells.
    """
    n_genes = int(vocabulary.max()) + 1
    pool = cells if len(cells) <= _PCA_CELLS else np.sort(np.random.default_rng(seed).permutation(cells)[:_PCA_CELLS])

    def blocks(part: np.ndarray) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
        return stream(view, vocabulary, part)

    log("closed forms: detection components")
    frequency, scales, counted = _moments(blocks(cells), n_genes)
    components = max(0, min(components, len(pool) - 1, n_genes - 1))
    axes, origin = _detection_axes(lambda: blocks(pool), frequency, components, np.random.default_rng(seed))
    log("closed forms: regressions")
    gram, moment = _normal_equations(blocks(cells), axes, origin, scales)
    size = 2 + components
    gene_mean = moment[:, 0] / np.maximum(counted, 1)
    solved = {k: _ridge(gram[:, :k, :k], moment[:, :k], penalty) for k in (2, size, size + 1)}
    partial = ClosedForms(
        gene_mean, solved[2], axes, origin, solved[size], solved[size + 1],
        np.zeros((n_genes, 0)), np.ones(n_genes), np.zeros(0), scales,
    )  # fmt: skip
    log("closed forms: value factors")
    return _fit_factors(partial, view, vocabulary, pool, factors=min(factors, components), seed=seed, penalty=penalty)


def stream(view: CountsView, vocabulary: np.ndarray, cells: np.ndarray) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
    """Blocks of (values [c, G] CSR of log1p counts per 10,000 at detected genes, totals [c])."""
    for start in range(0, len(cells), _BLOCK_CELLS):
        part = cells[start : start + _BLOCK_CELLS]
        indptr, genes, counts = view.rows(part)
        totals = view.totals(part)
        gene = vocabulary[genes]
        known = gene >= 0
        kept = np.concatenate([[0], np.cumsum(known)])[indptr]
        scale = np.repeat(1e4 / totals, np.diff(indptr))
        values = np.log1p(counts[known] * scale[known])
        yield sp.csr_array((values, gene[known], kept), (len(part), int(vocabulary.max()) + 1)), totals


def posterior(residuals: sp.csr_array, loadings: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Posterior mean [c, J] of standard normal factors given residuals [c, G] at the entries that are stored.

    The per-cell ridge (I + L'L/s)^-1 L'r/s over the genes seen, s the noise variance of each gene.
    """
    factors = loadings.shape[1]
    weighted = loadings / noise[:, None]
    outer = (weighted[:, :, None] * loadings[:, None, :]).reshape(len(loadings), -1)
    seen = sp.csr_array((np.ones(len(residuals.indices)), residuals.indices, residuals.indptr), residuals.shape)
    precision = (seen @ outer).reshape(-1, factors, factors) + np.eye(factors)
    return np.linalg.solve(precision, (residuals @ weighted)[..., None])[..., 0]


def _blend(forms: ClosedForms, x: np.ndarray, t: np.ndarray, genes: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Detection + total ridge where the total is known, else the detection ridge."""
    known = np.isfinite(t)
    full = np.column_stack([x, np.where(known, t, 0.0)])
    return np.where(known[cell], _rowdot(forms.total[genes], full[cell]), _rowdot(forms.ridge[genes], x[cell]))


def _rowdot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _moments(blocks: Iterator, n_genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detection frequency [G], (mean, deviation) of log detected and of log total [4], cells per gene [G]."""
    counted, logs = np.zeros(n_genes), []
    for values, totals in blocks:
        counted += np.bincount(values.indices, minlength=n_genes)
        logs.append(np.column_stack([np.log(np.maximum(np.diff(values.indptr), 1)), np.log(totals)]))
    logs = np.concatenate(logs)
    deviation = np.maximum(logs.std(0), 1e-6)
    return counted / len(logs), np.array([logs[:, 0].mean(), deviation[0], logs[:, 1].mean(), deviation[1]]), counted


def _detection_axes(blocks: Callable, frequency: np.ndarray, components: int, generator: np.random.Generator):
    """Principal axes of the centred binary matrix by subspace iteration (Halko, Martinsson, Tropp 2011, alg. 4.4)."""
    if components == 0:
        return np.zeros((len(frequency), 0)), np.zeros(0)
    basis = generator.standard_normal((len(frequency), min(components + _OVERSAMPLE, len(frequency))))
    for _ in range(_SUBSPACE_PASSES):
        basis, _ = np.linalg.qr(basis)
        product, projected, seen = np.zeros_like(basis), np.zeros((basis.shape[1],) * 2), 0
        for values, _totals in blocks():
            binary = sp.csr_array((np.ones(values.nnz), values.indices, values.indptr), values.shape)
            score = binary @ basis - frequency @ basis
            product += binary.T @ score - np.outer(frequency, score.sum(0))
            projected += score.T @ score
            seen += len(score)
        previous, basis = basis, product
    variance, rotation = np.linalg.eigh(projected / seen)
    order = np.argsort(variance)[::-1][:components]
    axes = previous @ rotation[:, order] / np.sqrt(np.maximum(variance[order], 1e-12))
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(components)])
    return axes, frequency @ axes


def _normal_equations(blocks: Iterator, axes: np.ndarray, origin: np.ndarray, scales: np.ndarray):
    """Sums of outer products [G, F + 1, F + 1] and of products with the value [G, F + 1] over detected entries."""
    size = 3 + axes.shape[1]
    rows, columns = np.triu_indices(size)
    packed, moment = np.zeros((len(axes), len(rows))), np.zeros((len(axes), size))
    for values, totals in blocks:
        features = _block_features(values, totals, axes, origin, scales)
        binary = sp.csr_array((np.ones(values.nnz), values.indices, values.indptr), values.shape)
        packed += binary.T @ (features[:, rows] * features[:, columns])
        moment += values.T @ features
    gram = np.zeros((len(axes), size, size))
    gram[:, rows, columns] = packed
    gram[:, columns, rows] = packed
    return gram, moment


def _block_features(values: sp.csr_array, totals: np.ndarray, axes: np.ndarray, origin: np.ndarray, scales: np.ndarray):
    """(1, depth, components, total) of each cell of a block, [c, F + 1]."""
    binary = sp.csr_array((np.ones(values.nnz), values.indices, values.indptr), values.shape)
    depth = (np.log(np.maximum(np.diff(values.indptr), 1)) - scales[0]) / scales[1]
    total = (np.log(totals) - scales[2]) / scales[3]
    return np.column_stack([np.ones(len(depth)), depth, binary @ axes - origin, total])


def _ridge(gram: np.ndarray, moment: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients [G, k] of one ridge a gene; the intercept (feature 0) is not penalised."""
    weights = np.full(gram.shape[1], penalty)
    weights[0] = 1e-9
    return np.linalg.solve(gram + np.diag(weights), moment[..., None])[..., 0]


def _fit_factors(
    forms: ClosedForms, view: CountsView, vocabulary: np.ndarray, cells: np.ndarray, *, factors: int, seed: int, penalty: float
) -> ClosedForms:
    """Factors of the residuals by alternating ridge regressions, then their trust from entries hidden at 15 %."""
    n_genes = len(forms.axes)

    def residual_blocks() -> Iterator[sp.csr_array]:
        for values, totals in stream(view, vocabulary, cells):
            features = _block_features(values, totals, forms.axes, forms.origin, forms.scales)
            cell = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
            fitted = _rowdot(forms.total[values.indices], features[cell])
            yield sp.csr_array((values.data - fitted, values.indices, values.indptr), values.shape)

    counted, squares = np.zeros(n_genes), np.zeros(n_genes)
    for block in residual_blocks():
        counted += np.bincount(block.indices, minlength=n_genes)
        squares += np.bincount(block.indices, block.data**2, minlength=n_genes)
    pooled = squares.sum() / max(counted.sum(), 1)
    noise = (squares + penalty * pooled) / (counted + penalty)
    loadings = np.random.default_rng(seed).standard_normal((n_genes, factors)) * np.sqrt(noise)[:, None] * 0.1
    rows, columns = np.triu_indices(factors)
    for _ in range(_FACTOR_SWEEPS if factors else 0):
        packed, moment = np.zeros((n_genes, len(rows))), np.zeros((n_genes, factors))
        for block in residual_blocks():
            score = posterior(block, loadings, noise)
            binary = sp.csr_array((np.ones(block.nnz), block.indices, block.indptr), block.shape)
            packed += binary.T @ (score[:, rows] * score[:, columns])
            moment += block.T @ score
        gram = np.zeros((n_genes, factors, factors))
        gram[:, rows, columns] = gram[:, columns, rows] = packed
        loadings = np.linalg.solve(gram + penalty * np.eye(factors), moment[..., None])[..., 0]
    draft = ClosedForms(**{**forms.arrays(), "loadings": loadings, "noise": noise, "trust": np.ones(factors)})
    gram, moment = np.zeros((factors, factors)), np.zeros(factors)
    packer = Packer(view, vocabulary, Hiding(0.15, seed=seed + 1), known_depth=True)
    for start in range(0, len(cells), _BLOCK_CELLS):
        batch = packer(cells[start : start + _BLOCK_CELLS])
        x, t = draft.features(batch)
        genes, cell = batch.genes[batch.targets], batch.target_cells
        part = loadings[genes] * draft._factors(batch, x, t)[cell]
        gram += part.T @ part
        moment += part.T @ (batch.truth - _blend(draft, x, t, genes, cell))
    trust = np.clip(np.linalg.solve(gram + 1e-6 * np.eye(factors), moment), 0, 1) if factors else np.zeros(0)
    return ClosedForms(**{**draft.arrays(), "trust": trust})
