"""Linear baselines of the value of a detected gene, fitted in closed form: what a network has to beat.

They are nested. With x = (1, log number of detected genes, principal components of the binary detection matrix),
t = log of the cell's total counts and f = a few factors read off the visible values, a gene's value is

    gene mean                        mu
    gene mean + depth                regression on (1, log detected)
    label + depth                    regression on (1, log detected, label of the cell)
    detection ridge                  ridge on x
    detection + total ridge          ridge on (x, t) where the visible values give t away, else the detection ridge
    value ridge                      the row above + <l, f>

One regression per gene, over the cells in which the gene was detected, all from one set of normal equations.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy.sparse as sp

from sckit.data.batch import Batch
from sckit.data.labels import Labels
from sckit.data.views import CountsView, as_matrix, cell_of_entry, with_data
from sckit.errors import ConfigError
from sckit.kernels.counts_numba import entry_dot
from sckit.model.regression import (
    TrainingCells,
    ValueBlock,
    normal_equations,
    posterior,
    principal_axes,
    residual_factors,
    solve_ridge,
    value_blocks,
)

PREDICTORS = ("gene mean", "gene mean + depth", "detection ridge", "detection + total ridge", "value ridge")

TOTAL_RANGE = 4.0
"""Standard deviations beyond which a total is not extrapolated, so that one misread from few values does no harm."""

_MOST_LABELS = 500


@dataclass(frozen=True, kw_only=True)
class CellFeatures:
    """What a cell's detected genes and total say, float64; G genes, K detection components, F = 2 + K features."""

    axes: np.ndarray  # [G, K], a cell's components are sum(axes[detected genes]) - origin, with variance 1
    origin: np.ndarray  # [K]
    total_of_x: np.ndarray  # [F], what x says of t over all cells, used where the total is unknown
    scales: np.ndarray  # [4], mean and deviation of log detected, of log total

    def features(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return x [C, F] and t [C] of a batch's cells from its context tokens; t is NaN where the total is unknown."""
        detected = as_matrix((batch.offsets, batch.genes, batch.in_context.astype(float)), len(self.axes))
        return self.x_of(detected, batch.n_detected), self.standard_total(batch.log_total)

    def block_features(self, block: ValueBlock) -> np.ndarray:
        """Return (x, t) [c, F + 1] of the cells of a block, whose totals are known."""
        x = self.x_of(block.binary, np.diff(block.values.indptr))
        return np.column_stack([x, self.standard_total(np.log(block.totals))])

    def standard_depth(self, n_detected: np.ndarray) -> np.ndarray:
        """Return the log number of detected genes, standardised over the training cells."""
        return (np.log(np.maximum(n_detected, 1)) - self.scales[0]) / self.scales[1]

    def x_of(self, detected: sp.csr_array, n_detected: np.ndarray) -> np.ndarray:
        """Return x [c, F] = (1, depth, components) of cells by their detection matrix [c, G] and its row sums [c]."""
        depth = self.standard_depth(n_detected)
        return np.column_stack([np.ones(len(depth)), depth, detected @ self.axes - self.origin])

    def standard_total(self, log_total: np.ndarray) -> np.ndarray:
        """Return the log of total counts, standardised over the training cells and limited to TOTAL_RANGE."""
        return np.clip((log_total - self.scales[2]) / self.scales[3], -TOTAL_RANGE, TOTAL_RANGE)


@dataclass(frozen=True, kw_only=True)
class ClosedForms(CellFeatures):
    """Coefficients of all linear baselines, float64; G genes, F features of a cell, J factors."""

    gene_mean: np.ndarray  # [G], over the cells in which the gene is detected
    depth: np.ndarray  # [G, 2], on (1, depth)
    ridge: np.ndarray  # [G, F], on x = (1, depth, components)
    total: np.ndarray  # [G, F + 1], on (x, t)
    loadings: np.ndarray  # [G, J], of the value factors on the residuals of the row above
    noise: np.ndarray  # [G], variance of those residuals

    def predict(self, batch: Batch) -> dict[str, np.ndarray]:
        """Predict the values of the batch's targets with every baseline, float64 [M] each."""
        x, t = self.features(batch)
        genes, cell = batch.genes[batch.targets], batch.target_cells
        with_total = self.blend(x, t, genes, cell)
        factors = self.factors(batch, x, t)
        return {
            "gene mean": self.gene_mean[genes],
            "gene mean + depth": entry_dot(self.depth, genes, x[:, :2], cell),
            "detection ridge": entry_dot(self.ridge, genes, x, cell),
            "detection + total ridge": with_total,
            "value ridge": with_total + entry_dot(self.loadings, genes, factors, cell),
        }

    def blend(self, x: np.ndarray, t: np.ndarray, genes: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Predict genes [N] in cells [N] by the detection + total ridge, or without a total by the detection ridge."""
        known = np.isfinite(t)
        full = np.column_stack([x, np.where(known, t, 0.0)])
        return np.where(known[cell], entry_dot(self.total, genes, full, cell), entry_dot(self.ridge, genes, x, cell))

    def factors(self, batch: Batch, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Return the posterior means [C, J] of the value factors given the visible values; zero without any."""
        seen = np.flatnonzero(~batch.hidden)
        genes, cell = batch.genes[seen], batch.cell_of_token[seen]
        residual = batch.values[seen] - self.blend(x, t, genes, cell)
        indptr = np.searchsorted(cell, np.arange(len(batch.cells) + 1))
        return posterior(as_matrix((indptr, genes, residual), len(self.axes)), self.loadings, self.noise)


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
    """Fit all linear baselines on the cells by streaming over them in blocks.

    penalty: ridge penalty in units of cells, on features of variance 1; the intercept is free.
    Memory: G x (components + 3)^2 doubles and one block of cells.
    """
    training = TrainingCells(view, vocabulary, cells, seed=seed)
    n_genes, pool = training.n_genes, training.pool()
    log("linear baselines: detection components")
    largest = min(len(pool), n_genes) - 1
    features, counted = fit_components(training, max(0, min(components, largest)))
    log("linear baselines: regressions")
    size = 2 + features.axes.shape[1]
    unfitted = dict.fromkeys((field.name for field in fields(ClosedForms)), np.zeros(0))
    forms = ClosedForms(**unfitted | vars(features))
    between = np.zeros((size + 1, size + 1))  # outer products of the features of all cells

    def with_features() -> Iterable[tuple[sp.csr_array, np.ndarray]]:
        for block in training.blocks():
            full = forms.block_features(block)
            between[:] += full.T @ full
            yield block.values, full

    gram, moment = normal_equations(with_features(), n_genes, size + 1)
    forms = replace(
        forms,
        gene_mean=moment[:, 0] / np.maximum(counted, 1),
        depth=solve_ridge(gram[:, :2, :2], moment[:, :2], penalty),
        ridge=solve_ridge(gram[:, :size, :size], moment[:, :size], penalty),
        total=solve_ridge(gram, moment, penalty),
        total_of_x=solve_ridge(between[None, :size, :size], between[None, :size, size], penalty)[0],
    )
    log("linear baselines: value factors")
    return _fit_factors(
        forms, lambda: training.blocks(pool), min(factors, largest), penalty, np.random.default_rng(seed)
    )


def fit_label_depth(
    view: CountsView,
    vocabulary: np.ndarray,
    cells: np.ndarray,
    labels: Labels,
    forms: ClosedForms,
    *,
    penalty: float = 10.0,
) -> Callable[[Batch], np.ndarray]:
    """Fit the row "label + depth" on the cells, and return what predicts the values of a batch's targets, float64 [M].

    labels: of every cell of the store; those that no training cell has count as none.
    """
    codes, names = label_codes(labels, cells)

    def features(cells: np.ndarray, n_detected: np.ndarray) -> np.ndarray:
        one_hot = codes[cells, None] == np.arange(len(names))
        return np.column_stack([np.ones(len(cells)), forms.standard_depth(n_detected), one_hot])  # [C, 2 + labels]

    blocks = value_blocks(view, vocabulary, cells)
    parts = ((block.values, features(block.cells, np.diff(block.values.indptr))) for block in blocks)
    coefficients = solve_ridge(*normal_equations(parts, len(forms.gene_mean), 2 + len(names)), penalty)  # [G, ...]

    def predict(batch: Batch) -> np.ndarray:
        x = features(batch.cells, batch.n_detected)
        return entry_dot(coefficients, batch.genes[batch.targets], x, batch.target_cells)

    return predict


def label_codes(labels: Labels, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of every cell's label, -1 for none, and the names of the labels that the cells have."""
    labels = labels.among(cells)
    names = labels.names
    if len(names) > _MOST_LABELS:
        raise ConfigError(
            f"the column of --label has {len(names)} values; at most {_MOST_LABELS} can be cell types; name another."
        )
    return labels.codes, names


def fit_components(training: TrainingCells, components: int) -> tuple[CellFeatures, np.ndarray]:
    """Return the features with their detection components, `total_of_x` not yet fitted, and each gene's cells [G]."""
    counted, scales = _moments(training.blocks(), training.n_genes)
    share, pool = counted / len(training.cells), training.pool()
    axes, variance = principal_axes(
        lambda: (block.binary for block in training.blocks(pool)),
        share,
        components,
        np.random.default_rng(training.seed),
    )
    axes /= np.sqrt(variance)
    return CellFeatures(axes=axes, origin=share @ axes, scales=scales, total_of_x=np.zeros(2 + components)), counted


def _moments(blocks: Iterable[ValueBlock], n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return in how many cells each gene is detected [G], and mean and deviation of log detected and log total [4]."""
    counted, logs = np.zeros(n_genes), []
    for block in blocks:
        counted += np.bincount(block.values.indices, minlength=n_genes)
        logs.append(np.log([np.maximum(np.diff(block.values.indptr), 1), block.totals]))
    detected, total = np.concatenate(logs, 1)
    return counted, np.array([detected.mean(), max(detected.std(), 1e-6), total.mean(), max(total.std(), 1e-6)])


def _fit_factors(
    forms: ClosedForms,
    blocks: Callable[[], Iterable[ValueBlock]],
    count: int,
    penalty: float,
    generator: np.random.Generator,
) -> ClosedForms:
    """Add loadings: principal axes of the total ridge's residuals, scaled per gene, zero where undetected."""
    n_genes = len(forms.axes)

    def residuals() -> Iterable[sp.csr_array]:
        for block in blocks():
            cell, features = cell_of_entry(block.values.indptr), forms.block_features(block)
            fitted = entry_dot(forms.total, block.values.indices, features, cell)
            yield with_data(block.values, block.values.data - fitted)

    loadings, noise = residual_factors(residuals, n_genes, count, penalty, generator)
    return replace(forms, loadings=loadings, noise=noise)
