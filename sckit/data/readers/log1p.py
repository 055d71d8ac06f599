"""Whole counts from log1p of counts per 10,000, and the totals of cells over genes that a file does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sckit.data.views import cell_of_entry
from sckit.errors import DataError
from sckit.kernels.counts_reference import TARGET_SUM

_FEWEST = 20  # detected genes from which on the smallest value of a cell may be taken for a count of one
_SAME = 1e-5  # relative difference up to which two smallest values are the same
_SAME_SUM = 1e-4  # relative difference up to which sums of cells are the same
_ALIKE = 5  # cells of the same sum that are no accident
_ROUNDING = 1e-6  # of a total that was computed
_LARGEST = 25  # e to the power of 25 is more than any number that counts are made to add up to
_DISTANCE = 0.1  # of a recovered count from a whole number


class Recovered(NamedTuple):
    """Counts [nnz] and totals [C], and the cells [C] bool for which they are known; the others have no counts."""

    counts: np.ndarray
    totals: np.ndarray
    known: np.ndarray


def counts_from_log1p(
    indptr: np.ndarray,
    values: np.ndarray,
    totals: np.ndarray | None,
    targets: np.ndarray,
    cells: pd.Index,
    path: Path,
) -> Recovered:
    """Turn log1p(target count / total) of C cells back into counts; `targets` [C] as `target_sums` gives them.

    Without totals [C], the smallest value of a cell is taken for one count, if the cell has 20 values or more and its
    smallest occurs more than once. Raises `DataError` where a value does not come out as a whole number.
    """
    if not ((values >= 0) & (values <= _LARGEST)).all():
        raise DataError(
            f"{path} holds values that are negative, above {_LARGEST} or no numbers, so they are not log1p of counts."
        )
    scaled = np.expm1(values.astype(np.float64))
    cell = cell_of_entry(indptr)
    known = np.ones(len(cells), dtype=bool) if totals is None else totals >= 0
    if totals is None:
        totals, known = _totals_from_smallest(indptr, scaled, targets)
    counts = np.where(known[cell], scaled * totals[cell] / targets[cell], 0.0)
    whole = np.rint(counts)
    detected, ones = (np.bincount(cell[part], minlength=len(cells)) for part in (whole > 0, whole == 1))
    if 2 * ((detected >= _FEWEST) & (ones == 0)).sum() > max((detected >= _FEWEST).sum(), 1):
        raise DataError(
            f"{path} has no count of one in most of its cells when its values are turned back: they are not log1p of "
            "counts per 10,000, or the totals are of something else; give the right totals with --totals."
        )
    wrong = np.abs(counts - whole) > _DISTANCE
    if wrong.any():
        entry = int(np.argmax(wrong))
        raise DataError(
            f"Cell {cells[cell[entry]]!r} of {path} holds {values[entry]!s}, which is {counts[entry]:.3f} counts at a "
            f"total of {totals[cell[entry]]:,}: not log1p of whole counts per 10,000; give a file with "
            "counts, or name the column of the right totals with --totals."
        )
    return Recovered(whole, totals.astype(np.int64), known)


def total_counts(obs: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """Return the totals [C] int64 that a column of obs holds, -1 where it holds no whole number from 0 up."""
    if column not in obs:
        known = ", ".join(map(str, obs.columns)) or "none"
        raise DataError(f"{path} has no obs column {column!r} for --totals; its columns are: {known}.")
    totals = np.asarray(pd.to_numeric(obs[column].astype(object), errors="coerce"), np.float64)
    whole = np.isfinite(totals) & (totals >= 0) & (totals < 2**53) & (np.abs(totals - np.rint(totals)) < _ROUNDING)
    return np.rint(np.where(whole, totals, -1)).astype(np.int64)


def scaled_sums(indptr: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return what expm1 of the values of each cell adds up to: [C] float64."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is no logarithm is refused later
        scaled = np.expm1(values.astype(np.float64))
    return np.bincount(cell_of_entry(indptr), scaled, minlength=len(indptr) - 1)


def target_sums(sums: np.ndarray) -> np.ndarray:
    """Return the number that the counts of each cell were made to add up to, [C], from the sums [C] of all its values.

    That is the sum itself where a tenth of the cells, five at least, or all of them have the same sum: the file then
    has all genes. Elsewhere it is 1e4.
    """
    ordered = np.sort(sums)
    low = np.searchsorted(ordered, sums * (1 - _SAME_SUM), "left")
    high = np.searchsorted(ordered, sums * (1 + _SAME_SUM), "right")
    alike = (high - low >= min(len(sums), max(_ALIKE, len(sums) // 10))) & (sums > 0) & (len(sums) > 1)
    return np.where(alike, sums, TARGET_SUM)


def _totals_from_smallest(indptr: np.ndarray, scaled: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the total [C] of each cell if its smallest value is one count, and whether that may be so."""
    positive = np.where(scaled > 0, scaled, np.inf)
    filled = np.flatnonzero(np.diff(indptr))
    smallest = np.full(len(indptr) - 1, np.inf)
    smallest[filled] = np.minimum.reduceat(positive, indptr[filled]) if len(filled) else smallest[filled]
    cell = cell_of_entry(indptr)
    detected = np.bincount(cell[scaled > 0], minlength=len(smallest))
    alike = np.bincount(cell[positive <= smallest[cell] * (1 + _SAME)], minlength=len(smallest))
    known = (detected >= _FEWEST) & (alike > 1)
    return np.where(known, np.rint(targets / np.where(known, smallest, 1.0)), 0.0), known
