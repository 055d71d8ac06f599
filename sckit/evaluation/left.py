"""Does what the best baseline leaves repeat? A gene's own other half of molecules, next to pure sampling noise.

The molecules of each scored count are drawn into halves A and B. Where the baseline's rate is the truth and counts are
Poisson, B says nothing of A beyond that rate. A regression of what the rate leaves of A's value on how far B lies from
its expectation is fitted on half of the cells and scored on the other half; counts drawn from the rate itself get the
same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.batch import Batch
from sckit.kernels.count_law import counts_of, draw_counts, value_moments
from sckit.metrics.intervals import Resampling
from sckit.metrics.laws import Laws
from sckit.model.calibration import STRATA, stratum_of
from sckit.model.offset_forms import OffsetForms

FEW_COUNTS = 2.0
"""Genes with a mean count below this are most of the entries, and are summed up in a sentence."""

_HALVINGS = 3
_MOST_ENTRIES = 3_000_000
_LEAST_ENTRIES = 30  # of a stratum in one half of the cells, for a regression


class Left:
    """Collects the counts and laws of the best baseline's targets."""

    def __init__(self, seed: int, bootstraps: int) -> None:
        self._seed, self._bootstraps = seed, bootstraps
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._entries = 0
        self._name = ""
        self._mean_count = np.zeros(0)

    def watch(self, name: str, offsets: OffsetForms) -> "Left":
        """Name the row to look at, and the baselines that know the mean counts of genes."""
        self._name, self._mean_count = name, offsets.mean_count
        return self

    def add(self, batch: Batch, predicted: Mapping[str, np.ndarray], laws: Laws) -> None:
        """Add a batch of held-out cells, up to three million entries."""
        if self._entries < _MOST_ENTRIES:
            cells, genes = batch.cells[batch.target_cells], batch.genes[batch.targets]
            counts = counts_of(batch.truth.astype(np.float64), laws.totals)
            strata = stratum_of(self._mean_count[genes])
            self._parts.append((cells, strata, counts.astype(np.int64), laws.rates[self._name], laws.totals))
            self._entries += len(cells)

    def table(self, groups: np.ndarray | None) -> pd.DataFrame:
        """Return a row for each stratum, one for genes with few counts, and one for all genes.

        mean_count_low, mean_count_high; entries, their share; variance_over_poisson, squared error of the values about
        their expectations divided by the variance of the law; own_half_gain, the share of the squared error that the
        other half explains, with its interval; own_half_gain_simulated, the same in counts drawn from the rates.
        groups: [cells of the store], labels for the intervals, or None.
        """
        cells, strata, counts, rates, totals = map(np.concatenate, zip(*self._parts, strict=True))
        names, cell = np.unique(cells, return_inverse=True)
        generator = np.random.default_rng(self._seed)
        expected, variance = value_moments(rates, totals)
        one = np.log1p(1e4 * counts / totals)
        shape = (len(names), len(STRATA) - 1)

        def summed(x: np.ndarray) -> np.ndarray:
            flat = np.bincount(cell * shape[1] + strata, x, minlength=shape[0] * shape[1])
            return flat.reshape(shape)

        sums = [summed(np.ones(len(cell))), summed((one - expected) ** 2), summed(variance)]
        for drawn in (counts, draw_counts(rates, generator)):
            sums += self._own_half(drawn, rates, totals, cell, strata, shape, generator)
        sums = np.stack(sums)  # [7, cells, strata]
        rule = Resampling(names if groups is None else groups[names])
        few = next(s for s, low in enumerate(STRATA) if low >= FEW_COUNTS)
        spans = [*((s, s + 1) for s in range(shape[1])), (0, few), (0, shape[1])]
        return pd.DataFrame(self._row(sums[:, :, low:high].sum(2), rule, low, high) for low, high in spans)

    def _row(self, sums: np.ndarray, rule: Resampling, low: int, high: int) -> dict[str, float | None]:
        """Return the table's row for the strata from low to high, from sums [7, cells]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            entries, error, variance, plain, with_half, drawn_plain, drawn_half = sums.sum(1)
            gain, drawn = 1 - with_half / plain, 1 - drawn_half / drawn_plain
            resampled = rule.resample({"": sums[3:5].T}, np.random.default_rng(self._seed), self._bootstraps)[""]
            ends = rule.interval(gain, 1 - resampled[:, 1] / resampled[:, 0]) if np.isfinite(gain) else [None, None]
            ratio = error / variance
        found = {"variance_over_poisson": ratio, "own_half_gain": gain, "own_half_gain_simulated": drawn}
        return {
            "mean_count_low": STRATA[low],
            "mean_count_high": STRATA[high] if np.isfinite(STRATA[high]) else None,
            "entries": float(entries / max(self._total, 1)),
            "own_half_gain_low": ends[0],
            "own_half_gain_high": ends[1],
        } | {name: float(value) if np.isfinite(value) else None for name, value in found.items()}

    @property
    def _total(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def _own_half(
        self, counts: np.ndarray, rates: np.ndarray, totals: np.ndarray, cell: np.ndarray, strata: np.ndarray,
        shape: tuple[int, int], generator: np.random.Generator,
    ) -> list[np.ndarray]:  # fmt: skip
        """Return the squared errors [cells, strata] of half A without and with half B, over several halvings."""
        errors = [np.zeros(shape[0] * shape[1]) for _ in range(2)]
        for _ in range(_HALVINGS):
            first = generator.binomial(counts, 0.5)
            seen = np.flatnonzero(first)
            half, size, place = rates[seen] / 2, totals[seen] / 2, cell[seen] * shape[1] + strata[seen]
            left = np.log1p(1e4 * first[seen] / size) - value_moments(half, size)[0]
            other = ((counts - first)[seen] - half) / np.sqrt(half + 0.5)
            for stratum in range(shape[1]):
                for parity in (0, 1):
                    mine = strata[seen] == stratum
                    fitted, scored = mine & (cell[seen] % 2 != parity), mine & (cell[seen] % 2 == parity)
                    if fitted.sum() < _LEAST_ENTRIES:
                        continue
                    for columns, error in zip((1, 2), errors, strict=True):
                        x = np.column_stack([np.ones(len(left)), other])[:, :columns]
                        weights = np.linalg.lstsq(x[fitted], left[fitted], rcond=None)[0]
                        squares = (left[scored] - x[scored] @ weights) ** 2
                        error += np.bincount(place[scored], squares, minlength=len(error))
        return [error.reshape(shape) for error in errors]


def left_row(row: dict[str, float | None]) -> dict[str, Any]:
    """Return a row of the table as JSON has it."""
    ends = {"mean_count": [row["mean_count_low"], row["mean_count_high"]]}
    names = ("entries", "variance_over_poisson", "own_half_gain", "own_half_gain_simulated")
    ci = {"own_half_gain_ci": [row["own_half_gain_low"], row["own_half_gain_high"]]}
    return ends | {name: row[name] for name in names} | ci
