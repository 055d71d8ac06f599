"""The row "truth" of simulated data: what a predictor expects that knows everything the counts were drawn from."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from sckit.data.batch import Batch
from sckit.data.simulate import read_truth
from sckit.data.store import Store
from sckit.errors import DataError
from sckit.kernels.count_law import value_moments

TRUTH = "truth"

_CHECKED = 3  # cells whose counts are drawn again


class KnownTruth:
    """Expected values of simulated counts, from the file that `sckit simulate` wrote next to them."""

    def __init__(self, path: Path | str, store: Store, symbols: Iterable[str]) -> None:
        """Read the truth of the cells of a store and of genes with these symbols [G].

        Raises DataError where it is that of other data.
        """
        self._truth = truth = read_truth(path)
        self._rows = truth.obs.index.get_indexer(pd.Index(store.obs["cell"].astype(str)))
        self._genes = truth.genes.index.get_indexer(pd.Index(list(symbols)))
        some = np.arange(min(_CHECKED, store.n_cells))
        known = (self._rows >= 0).all() and (self._genes >= 0).all()
        if not known or [truth.counts(row).sum() for row in self._rows[some]] != store.totals(some).tolist():
            raise DataError(
                f"{path} is not the truth of {store.path}: it has other cells, genes or counts; give the file that "
                "`sckit simulate` wrote next to these data."
            )

    def predict(self, batch: Batch, totals: np.ndarray) -> np.ndarray:
        """Return the mean of each target's value, given that it is detected, float64 [M]; totals: [C], of the cells."""
        rates, cell = self._truth.rates(self._rows[batch.cells]), batch.target_cells
        share = rates[cell, self._genes[batch.genes[batch.targets]]] / rates.sum(1)[cell]
        totals = totals[cell].astype(np.float64)
        return value_moments(share * totals, totals, self._truth.config.dispersion)[0]
