"""Putting a matrix whose entries arrive in any order into the order of its cells, in unnamed temporary files."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from sckit.data.views import Csr, indptr_of

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Entries as (cells [n], genes [n], values [n])."""

_ENTRIES_PER_CHUNK = 2**20
_ENTRIES_PER_BUCKET = 2**21


class CellSpool:
    """Entries by cell, on disk: 8 or 12 bytes per entry, three times that while a matrix is being put into order.

    Memory holds one chunk or one bucket (some two million entries, or one cell if that is more) and 8 bytes per cell.
    """

    def __init__(self, chunks: Iterable[Chunk], n_cells: int, value_dtype: np.dtype) -> None:
        """Take in all chunks; if they did not come in the order of the cells, sort them in buckets of cells."""
        self._value_dtype = np.dtype(value_dtype)
        self._cells, self._genes, self._values = (_File(dtype) for dtype in (np.uint32, np.int32, self._value_dtype))
        per_cell = np.zeros(n_cells, dtype=np.int64)
        ordered, last_cell = True, 0
        for cells, genes, values in chunks:
            if not len(cells):
                continue
            if not 0 <= int(cells.min()) <= int(cells.max()) < n_cells:
                wrong = cells.min() if cells.min() < 0 else cells.max()
                raise ValueError(f"an entry names cell {int(wrong) + 1} of {n_cells}")
            ordered = ordered and int(cells[0]) >= last_cell and bool((cells[1:] >= cells[:-1]).all())
            last_cell = int(cells[-1])
            per_cell += np.bincount(cells, minlength=n_cells)
            genes = np.clip(genes, -(2**31), 2**31 - 1)  # which no matrix has; the type on disk would wrap others
            for file, part in ((self._cells, cells), (self._genes, genes), (self._values, values)):
                file.append(part)
        self.indptr = indptr_of(per_cell)  # [C + 1]
        if not ordered:
            self._sort()
        del self._cells  # frees its disk space: indptr says the same

    def read(self, first: int, last: int) -> Csr:
        """Read cells first..last as (indptr, genes, values); genes of a cell are in the order of arrival."""
        low, high = int(self.indptr[first]), int(self.indptr[last])
        return self.indptr[first : last + 1] - low, self._genes.read(low, high), self._values.read(low, high)

    def _sort(self) -> None:
        """Scatter the entries into buckets of consecutive cells, then sort bucket by bucket over the unsorted files."""
        starts = _bucket_starts(self.indptr)  # [B + 1] cells
        record = np.dtype([("cell", np.uint32), ("gene", np.int32), ("value", self._value_dtype)])
        buckets = _File(record)
        fill = self.indptr[starts[:-1]].copy()  # [B] where the next entry of each bucket goes
        total = int(self.indptr[-1])
        for low in range(0, total, _ENTRIES_PER_CHUNK):
            high = min(low + _ENTRIES_PER_CHUNK, total)
            part = np.empty(high - low, dtype=record)
            part["cell"], part["gene"] = self._cells.read(low, high), self._genes.read(low, high)
            part["value"] = self._values.read(low, high)
            bucket = np.searchsorted(starts, part["cell"], side="right") - 1
            part = part[np.argsort(bucket, kind="stable")]
            sizes = np.bincount(bucket, minlength=len(fill))
            ends = np.cumsum(sizes)
            for b in np.flatnonzero(sizes):
                buckets.write(int(fill[b]), part[ends[b] - sizes[b] : ends[b]])
            fill += sizes
        for first, last in pairwise(starts):
            low, high = int(self.indptr[first]), int(self.indptr[last])
            part = buckets.read(low, high)
            part = part[np.argsort(part["cell"], kind="stable")]
            self._genes.write(low, part["gene"])
            self._values.write(low, part["value"])


def _bucket_starts(indptr: np.ndarray) -> np.ndarray:
    """Return the first cell of each bucket of two million entries or one cell, and the number of cells at the end."""
    starts = [0]
    n_cells = len(indptr) - 1
    while starts[-1] < n_cells:
        fits = int(np.searchsorted(indptr, indptr[starts[-1]] + _ENTRIES_PER_BUCKET, side="right")) - 1
        starts.append(min(max(fits, starts[-1] + 1), n_cells))
    return np.array(starts)


class _File:
    """An unnamed temporary file of numbers; the system deletes it with the process."""

    def __init__(self, dtype: np.dtype | type) -> None:
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        weakref.finalize(self, self._file.close)

    def append(self, values: np.ndarray) -> None:
        self._file.seek(0, 2)
        self._file.write(values.astype(self._dtype, copy=False).tobytes())

    def write(self, start: int, values: np.ndarray) -> None:
        self._file.seek(start * self._dtype.itemsize)
        self._file.write(values.tobytes())

    def read(self, start: int, stop: int) -> np.ndarray:
        self._file.seek(start * self._dtype.itemsize)
        return np.frombuffer(self._file.read((stop - start) * self._dtype.itemsize), dtype=self._dtype)
