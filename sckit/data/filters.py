"""Which cells and genes are kept by their counts: quality rules, variable genes; every lost cell has a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sckit.data.readers.source import CountsBlock, Source
from sckit.data.views import as_matrix
from sckit.errors import DataError
from sckit.kernels.counts_reference import TARGET_SUM

KEPT = 0
"""Code of a cell that is kept; other codes number the reasons."""

_BINS = 20


@dataclass(frozen=True)
class QualityRules:
    """Bounds on a cell, over all gene-expression features of its source; None means no bound."""

    min_genes: int | None = None
    min_counts: int | None = None
    max_counts: int | None = None
    max_mito: float | None = None
    """Largest share of the cell's counts in mitochondrial genes (symbols that begin with MT- or mt-)."""

    def reasons(self) -> list[str]:
        """Say what is wrong with a cell that breaks each rule, in the order in which the rules are applied."""
        return [
            "cells without counts",
            f"cells with fewer than {self.min_genes} genes",
            f"cells with fewer than {self.min_counts} counts",
            f"cells with more than {self.max_counts} counts",
            f"cells with more than {self.max_mito} of their counts mitochondrial",
        ]

    def broken(self, block: CountsBlock, mito: np.ndarray | None) -> np.ndarray:
        """Find the first rule that each cell breaks: [C] int16 from 1, 0 for none; `mito` [G] bool."""
        masks = [
            np.diff(block.indptr) == 0,
            block.n_genes < (self.min_genes or 0),
            block.totals < (self.min_counts or 0),
            block.totals > (np.inf if self.max_counts is None else self.max_counts),
        ]
        if self.max_mito is not None and mito is not None:
            masks.append(block.weighted(mito.astype(np.float64)) > self.max_mito * block.totals)
        rules = np.arange(1, len(masks) + 1, dtype=np.int16)
        return np.select(masks, list(rules), default=np.int16(KEPT)).astype(np.int16)


def mito_genes(source: Source) -> np.ndarray:
    """Mark the mitochondrial genes of a source: [G] bool. Raises `DataError` when there are none."""
    mito = np.array([symbol.upper().startswith("MT-") for symbol in source.genes.symbols])
    if not mito.any():
        msg = (
            f"{source.path} has no gene whose symbol begins with MT-, so the mitochondrial share of its cells "
            "is unknown; leave out --max-mito."
        )
        raise DataError(msg)
    return mito


class GeneMoments:
    """Running sums of counts per 10,000, for the mean and variance of every gene over all cells seen."""

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self._sum = np.zeros(n_genes)
        self._squares = np.zeros(n_genes)

    @classmethod
    def of_segments(cls, n_cells: np.ndarray, sums: np.ndarray) -> GeneMoments:
        """Add up what `sums` returned for S segments, in this order: [S] and [S, 2, G]."""
        total = cls(sums.shape[2])
        total.n_cells = int(n_cells.sum())
        for first, second in sums:
            total._sum += first
            total._squares += second
        return total

    def sums(self) -> np.ndarray:
        """Return the sums of counts per 10,000 and of their squares: [2, G]."""
        return np.stack([self._sum, self._squares])

    def add(self, indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> None:
        """Take in C cells: CSR counts and the totals [C] they are divided by."""
        scale = TARGET_SUM / np.maximum(totals, 1)
        matrix = as_matrix((indptr, genes, counts.astype(np.float64)), len(self._sum))
        self.n_cells += len(totals)
        self._sum += matrix.T @ scale
        matrix.data *= matrix.data
        self._squares += matrix.T @ scale**2

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and unbiased variance [G] of counts per 10,000."""
        mean = self._sum / self.n_cells
        return mean, np.maximum(self._squares - self.n_cells * mean**2, 0) / max(self.n_cells - 1, 1)


def highly_variable(mean: np.ndarray, variance: np.ndarray, n_top: int) -> np.ndarray:
    """Choose the `n_top` genes of largest normalised dispersion: [<= n_top] gene numbers, rising.

    The 'seurat' flavour (Satija et al. 2015, Nat Biotechnol 33:495; as in scanpy): log dispersion of counts per
    10,000, standardised within 20 bins of log mean; a gene alone in its bin gets 1; genes without counts are left out.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    log_dispersion = pd.Series(np.log(np.where(dispersion == 0, np.nan, dispersion)))
    by_bin = log_dispersion.groupby(pd.cut(np.log1p(mean), bins=_BINS), observed=True)
    average, deviation = by_bin.transform("mean"), by_bin.transform("std")
    alone = deviation.isna()
    normalised = np.where(alone, 1.0, (log_dispersion - average) / deviation.where(~alone, 1.0))
    normalised = np.where(log_dispersion.isna(), -np.inf, normalised)
    best = np.argsort(-normalised, kind="stable")[:n_top]
    return np.sort(best[np.isfinite(normalised[best])])


def drop_counts(by_code: np.ndarray, reasons: Sequence[str]) -> dict[str, int]:
    """Name the lost cells: `by_code` [reasons + 1] holds the cells of each code, code i + 1 meaning reasons[i]."""
    return {reason: int(n) for reason, n in zip(reasons, by_code[1:], strict=True) if n}


def added_up(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add up what was lost, by reason."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {reason: n for reason, n in total.items() if n}
