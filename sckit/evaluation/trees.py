"""A non-linear competitor of the network: a gradient-boosted correction of the value offset ridge.

The trees see what the ridge predicts, the value of a single count, the cell's depth and first components, the mean,
frequency and dispersion of the gene, and, where the total is known, how many counts the cell's hidden genes have above
one each. They are fitted on training cells that the ridge was not fitted on (fold by fold), because its residuals are
too small on the cells that it knows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from sckit.data.batch import Batch, Packer
from sckit.data.views import in_blocks
from sckit.model.offset_fit import cross_fitted
from sckit.model.offset_forms import OffsetForms
from sckit.model.regression import TrainingCells
from sckit.model.tokens import hidden_sum

TREES = "value offset ridge + trees"

_COMPONENTS = 6
_BLOCK_CELLS = 256
_MOST_ENTRIES = 1_500_000
_SETTINGS: dict[str, Any] = {
    "max_iter": 300, "learning_rate": 0.1, "max_leaf_nodes": 31, "min_samples_leaf": 100, "early_stopping": False,
}  # fmt: skip


@dataclass(frozen=True)
class Trees:
    """The fitted correction at one mask rate."""

    forms: OffsetForms
    trees: HistGradientBoostingRegressor

    def predict(self, batch: Batch) -> np.ndarray:
        """Predict the values of the batch's targets, float64 [M], at least the value of a single count."""
        seen = _seen(self.forms, self.forms, batch)
        return np.maximum(seen[:, 0] + self.trees.predict(seen), seen[:, 1]) if len(seen) else np.zeros(0)


def fit_trees(
    training: TrainingCells, forms: OffsetForms, packers: Callable[[int], Packer], draws: int, seed: int
) -> Trees:
    """Fit the correction on at most 1.5 million entries of training cells, as many of each; packers: of the draws."""
    fold, fits = cross_fitted(training, forms)
    generator = np.random.default_rng(seed)
    order, most = generator.permutation(len(fold)), max(_MOST_ENTRIES // (draws * len(fold)), 1)
    entries, parts = 0, []
    for part in in_blocks(order, _BLOCK_CELLS):
        for seen, left, cell in _of_block(training.cells[part], fold[part], fits, forms, packers, draws):
            mixed = np.lexsort([generator.random(len(cell)), cell])
            kept = np.sort(mixed[np.arange(len(cell)) - np.searchsorted(cell, cell) < most])
            parts.append((seen[kept], left[kept]))
            entries += len(kept)
        if entries >= _MOST_ENTRIES:
            break
    seen, left = (np.concatenate(each) for each in zip(*parts, strict=True))
    trees = HistGradientBoostingRegressor(**_SETTINGS, random_state=seed)
    return Trees(forms, trees.fit(seen, left))


def _of_block(
    cells: np.ndarray, fold: np.ndarray, fits: list[OffsetForms], forms: OffsetForms,
    packers: Callable[[int], Packer], draws: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # fmt: skip
    """Yield what the trees see of hidden entries of some cells, what the ridge of other folds leaves, and the cell."""
    for number in np.unique(fold):
        for draw in range(draws):
            batch = packers(draw)(np.sort(cells[fold == number]))
            seen = _seen(forms, fits[number], batch)
            yield seen, batch.truth - seen[:, 0], batch.target_cells


def _seen(forms: OffsetForms, fit: OffsetForms, batch: Batch) -> np.ndarray:
    """Return what the trees see of the targets [M, 14]: first what the ridge of `fit` predicts."""
    genes, cell, cells = batch.genes[batch.targets], batch.target_cells, forms.of_cells(batch)
    hidden = replace(batch, targets=np.flatnonzero(batch.hidden))  # more than the targets, where these are a sample
    values = batch.values.astype(np.float64)
    values[hidden.targets] = fit.value_ridge(hidden, fit.of_cells(batch))
    of_tokens = values, batch.hidden, batch.offsets.astype(np.int64), batch.log_total
    of_hidden = hidden_sum(*map(torch.from_numpy, of_tokens), above=True).numpy()
    of_gene = fit.gene_mean[genes], np.log1p(fit.cells[genes]), fit.deviation[genes]
    of_cell = cells.x[cell, 2 : 2 + _COMPONENTS], of_hidden[cell]
    return np.column_stack([values[batch.targets], cells.one[cell], cells.x[cell, 1], *of_gene, *of_cell])
