"""Counts of cells as CSR: what a source of counts can do, views that change counts, steps that many files share.

CSR is a tuple (indptr, genes, counts): the entries indptr[c] up to indptr[c + 1] of the other two belong to cell c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from sckit.kernels.counts_reference import TARGET_SUM, Csr
from sckit.kernels.hashing import entry_uniform, mix

_EXCHANGE = np.uint64(2**64 - 2)  # where hiding has the epoch: no order is drawn from the hash that hides


class CountsView(Protocol):
    """Counts of cells by row number: a store, or a view that changes what another one gives."""

    def rows(self, cells: np.ndarray) -> Csr:
        """CSR of the cells in the order asked for."""
        ...

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] over all genes of the source, the number that values are divided by."""
        ...


class CutView:
    """A view whose cells have at most `max_genes` genes of the vocabulary, a random choice by seed.

    What is fitted on counts that are cut in training and evaluation has to be fitted on cut counts.
    """

    def __init__(self, view: CountsView, vocabulary: np.ndarray, max_genes: int, seed: int) -> None:
        self._view, self._vocabulary, self._max_genes, self._seed = view, vocabulary, max_genes, seed

    def rows(self, cells: np.ndarray) -> Csr:
        """CSR of the cells with the genes of the vocabulary, cut."""
        from sckit.kernels.counts_numba import cut  # slow to load, and readers of counts import this file

        csr = self._view.rows(cells)
        return cut(csr, cells, self._seed, vocabulary=self._vocabulary, max_genes=self._max_genes)

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] of the whole cells."""
        return self._view.totals(cells)


class ShuffledView:
    """A view whose cells have their counts exchanged among their detected genes, fixed by (seed, cell).

    Detection, depth and the cell's set of counts stay; which gene has which count is lost.
    """

    def __init__(self, view: CountsView, seed: int) -> None:
        self._view, self._key = view, int(mix(mix(np.array(seed, np.uint64)) ^ _EXCHANGE))

    def rows(self, cells: np.ndarray) -> Csr:
        """CSR of the cells with the counts of each cell in another order."""
        indptr, genes, counts = self._view.rows(cells)
        cell = cell_of_entry(indptr)
        order = np.lexsort((entry_uniform(self._key, cells[cell], genes), cell))
        return indptr, genes, counts[order]

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] of the cells, as they were."""
        return self._view.totals(cells)


def in_blocks(cells: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield the cells in consecutive blocks of `size`; the last block may be smaller."""
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def indptr_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return where the entries of each cell begin, and their number at the end: [C + 1] int64 from lengths [C]."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def cell_of_entry(indptr: np.ndarray) -> np.ndarray:
    """Return the row of every stored entry: [nnz] int64."""
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def row_sums(indptr: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the counts of each cell: [C] int64."""
    filled = np.flatnonzero(np.diff(indptr))  # reduceat gives an empty cell the next cell's first entry
    sums = np.zeros(len(indptr) - 1, np.int64)
    sums[filled] = np.add.reduceat(counts, indptr[filled], dtype=np.int64)
    return sums


def as_matrix(csr: Csr, n_genes: int) -> sp.csr_array:
    """Return CSR as a scipy matrix [C, n_genes] that shares its numbers."""
    indptr, genes, values = csr
    return sp.csr_array((values, genes, indptr), (len(indptr) - 1, n_genes))


def with_data(matrix: sp.csr_array, data: np.ndarray) -> sp.csr_array:
    """Return a matrix of other numbers at the same entries."""
    return sp.csr_array((data, matrix.indices, matrix.indptr), matrix.shape)


def log_values(counts: sp.csr_array, totals: np.ndarray) -> sp.csr_array:
    """Return log1p of counts per 10,000 at the stored entries, float64 [C, G]; totals: [C]."""
    scale = np.repeat(TARGET_SUM / np.maximum(totals, 1), np.diff(counts.indptr))
    return with_data(counts, np.log1p(counts.data * scale))
