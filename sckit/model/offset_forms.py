"""Linear baselines in count space: what is left of a value above that of a single count.

A count of one in a cell of N molecules has the value log1p(10,000 / N), whatever the gene. That offset is subtracted
before anything is fitted, so that a ridge shrinks towards it and not towards the same value in every cell, and no
prediction lies below it. With x, t and f as in `closed_forms`:

    detection offset ridge            ridge on x, with N guessed from x
    detection + total offset ridge    ridge on (x, t) where the visible values give N away, else the row above
    value offset ridge                the row above + <l, f>
    count regression                  the mean value under a zero-truncated Poisson law whose log rate is linear in
                                      (x, t, f), times one factor for each gene, as real counts vary more
    visible offset ridge              ridge on (x, t) of the visible tokens alone, + <l, f>; it knows no hidden token
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sckit.data.batch import Batch
from sckit.data.views import as_matrix
from sckit.kernels.count_law import value_moments
from sckit.kernels.counts_numba import entry_dot
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.regression_numba import factor_means
from sckit.model.closed_forms import CellFeatures

OFFSET_PREDICTORS = (
    "detection offset ridge", "detection + total offset ridge", "value offset ridge", "count regression",
)  # fmt: skip

LOG_RATES = (-12.0, 9.0)
"""A predicted log rate is limited to this range."""


def value_of_one(log_total: np.ndarray) -> np.ndarray:
    """Return the value of a single count in cells with these logs of total counts."""
    return np.log1p(TARGET_SUM * np.exp(-log_total))


@dataclass(frozen=True)
class OfCells:
    """What the linear baselines know of the C cells of a batch."""

    x: np.ndarray  # [C, F]
    t: np.ndarray  # [C], guessed from x where the total is unknown
    known: np.ndarray  # bool [C], whether the total is known
    log_total: np.ndarray  # [C], known or guessed
    guess: np.ndarray  # [C], log of the total as guessed from x

    @property
    def one(self) -> np.ndarray:
        """Value of a single count [C]."""
        return value_of_one(self.log_total)

    @property
    def full(self) -> np.ndarray:
        """(x, t), [C, F + 1]."""
        return np.column_stack([self.x, self.t])


@dataclass(frozen=True, kw_only=True)
class OffsetForms(CellFeatures):
    """Coefficients of the linear baselines in count space, float64; G genes, F features of a cell, J factors."""

    cells: np.ndarray  # [G], training cells in which the gene is detected
    gene_mean: np.ndarray  # [G], of the value, over these cells
    mean_above: np.ndarray  # [G], of the value less that of a single count, over these cells
    deviation: np.ndarray  # [G], of the value, over these cells
    log_rate: np.ndarray  # [G], of a zero-truncated Poisson law, for each 10,000 counts of the cell
    mean_count: np.ndarray  # [G], over these cells
    ridge: np.ndarray  # [G, F], on x
    total: np.ndarray  # [G, F + 1], on (x, t)
    loadings: np.ndarray  # [G, J], of the value factors on the residuals of the row above
    noise: np.ndarray  # [G], variance of those residuals
    counts: np.ndarray  # [G, F + 1 + J], of the log rate for each 10,000 counts, on (x, t, factors)
    excess: np.ndarray  # [G], what the mean value above a single count is multiplied by
    chosen: np.ndarray  # [4], components, factors, penalty of the ridges, penalty of the count regression

    def of_cells(self, batch: Batch) -> OfCells:
        """Return the features of a batch's cells, with the total guessed where it is unknown."""
        x, t = self.features(batch)
        return self.guessed(x, t, batch.log_total)

    def guessed(self, x: np.ndarray, t: np.ndarray, log_total: np.ndarray) -> OfCells:
        """Fill in what x [C, F] says of the total where t and log_total [C] are NaN."""
        by_x = x @ self.total_of_x
        guess, known = by_x * self.scales[3] + self.scales[2], np.isfinite(t)
        return OfCells(x, np.where(known, t, by_x), known, np.where(known, log_total, guess), guess)

    def linear(self, cells: OfCells, genes: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Predict genes [N] in cells [N] above a single count: the total offset ridge, without a total by x alone."""
        by_total, by_x = (entry_dot(w, genes, f, cell) for w, f in ((self.total, cells.full), (self.ridge, cells.x)))
        return np.where(cells.known[cell], by_total, by_x)

    def factors(self, batch: Batch, above: np.ndarray) -> np.ndarray:
        """Return the posterior means [C, J] of the factors, given what was expected above a single count [visible].

        above: residual values of the visible tokens, in their order; the means are zero without any.
        """
        seen = np.flatnonzero(~batch.hidden)
        indptr = np.searchsorted(batch.cell_of_token[seen], np.arange(len(batch.cells) + 1))
        means = np.zeros((len(batch.cells), self.loadings.shape[1]))
        nothing = np.zeros((0, means.shape[1]))
        factor_means(indptr, batch.genes[seen], above, self.loadings, self.noise, means, nothing)
        return means

    def left_of_visible(self, batch: Batch, cells: OfCells) -> sp.csr_array:
        """Return what the value offset ridge leaves of each visible value, predicted without that value, [C, G]."""
        seen = np.flatnonzero(~batch.hidden)
        genes, cell = batch.genes[seen], batch.cell_of_token[seen]
        indptr = np.searchsorted(cell, np.arange(len(batch.cells) + 1))
        expected = self.linear(cells, genes, cell)
        values = batch.values[seen] - cells.one[cell]
        means = np.zeros((len(batch.cells), self.loadings.shape[1]))
        factors = np.zeros((len(seen), means.shape[1]))
        factor_means(indptr, genes, values - expected, self.loadings, self.noise, means, factors)
        expected += (self.loadings[genes] * factors).sum(1)
        return as_matrix((indptr, genes, values - np.maximum(expected, 0)), len(self.axes))

    def predict(self, batch: Batch) -> dict[str, np.ndarray]:
        """Predict the values of the batch's targets with every row but the last of the table, float64 [M] each."""
        cells = self.of_cells(batch)
        factors = self._factors(batch, cells)
        genes, cell = batch.genes[batch.targets], batch.target_cells
        guessed = value_of_one(cells.guess)[cell] + np.maximum(entry_dot(self.ridge, genes, cells.x, cell), 0)
        with_total = cells.one[cell] + np.maximum(self.linear(cells, genes, cell), 0)
        by_values = self._by_values(cells, factors, genes, cell)
        predicted = (guessed, with_total, by_values, self._by_counts(cells, factors, genes, cell))
        return dict(zip(OFFSET_PREDICTORS, predicted, strict=True))

    def gene_start(self, batch: Batch) -> np.ndarray:
        """Return where the context "visible" starts [M]: the gene mean, over a count of one if the total is known."""
        genes, known = batch.genes[batch.targets], np.isfinite(batch.log_total)[batch.target_cells]
        one = value_of_one(np.where(np.isfinite(batch.log_total), batch.log_total, 0.0))[batch.target_cells]
        return np.where(known, one + self.mean_above[genes], self.gene_mean[genes])

    def value_ridge(self, batch: Batch, cells: OfCells) -> np.ndarray:
        """Predict the values of the batch's targets with the value offset ridge alone, float64 [M]."""
        return self._by_values(cells, self._factors(batch, cells), batch.genes[batch.targets], batch.target_cells)

    def _factors(self, batch: Batch, cells: OfCells) -> np.ndarray:
        """Return the posterior means [C, J] of the factors given the visible values."""
        seen = np.flatnonzero(~batch.hidden)
        cell = batch.cell_of_token[seen]
        expected = self.linear(cells, batch.genes[seen], cell) + cells.one[cell]
        return self.factors(batch, batch.values[seen] - expected)

    def _by_values(self, cells: OfCells, factors: np.ndarray, genes: np.ndarray, cell: np.ndarray) -> np.ndarray:
        above = self.linear(cells, genes, cell) + entry_dot(self.loadings, genes, factors, cell)
        return cells.one[cell] + np.maximum(above, 0)

    def _by_counts(self, cells: OfCells, factors: np.ndarray, genes: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Return the mean values [N] under the law of the count regression."""
        log_rates = entry_dot(self.counts, genes, np.column_stack([cells.full, factors]), cell)
        log_rates += (cells.log_total - np.log(TARGET_SUM))[cell]
        means, _ = value_moments(np.exp(np.clip(log_rates, *LOG_RATES)), np.exp(cells.log_total)[cell])
        one = cells.one[cell]
        return one + self.excess[genes] * np.maximum(means - one, 0)


@dataclass(frozen=True)
class VisibleForm:
    """The row "visible offset ridge" at one mask rate: nothing of a hidden token passes but its gene."""

    forms: OffsetForms  # whose guess of the total is that from the visible tokens
    rate: float
    coefficients: np.ndarray  # [G, F + 1], on (x, t) of the visible tokens

    def of_tokens(self, batch: Batch) -> tuple[OfCells, np.ndarray]:
        """Return what the visible tokens say of each cell, and the components that a visible token itself adds [T, K].

        Sums over visible tokens stand for sums over all, so they are divided by the share that is visible.
        """
        forms, share = self.forms, 1 - self.rate
        visible = ~batch.hidden
        detected = as_matrix((batch.offsets, batch.genes, visible / share), len(forms.axes))
        n_visible = np.bincount(batch.cell_of_token, visible, minlength=len(batch.cells))
        x = forms.x_of(detected, n_visible / share)
        own = forms.axes[batch.genes] * (visible / share)[:, None]
        return forms.guessed(x, forms.standard_total(batch.log_total), batch.log_total), own

    def predict(self, batch: Batch) -> np.ndarray:
        """Predict the values of the batch's targets, float64 [M]."""
        cells, own = self.of_tokens(batch)
        cell = batch.cell_of_token
        above = entry_dot(self.coefficients, batch.genes, cells.full, cell)
        above -= (self.coefficients[batch.genes, 2:-1] * own).sum(1)
        seen = np.flatnonzero(~batch.hidden)
        factors = self.forms.factors(batch, batch.values[seen] - cells.one[cell[seen]] - above[seen])
        genes, at = batch.genes[batch.targets], batch.target_cells
        above = above[batch.targets] + entry_dot(self.forms.loadings, genes, factors, at)
        return cells.one[at] + np.maximum(above, 0)
