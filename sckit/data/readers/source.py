"""What a reader gives: blocks of whole-number counts (CSR), the gene table; and the checks that all readers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.readers.hdf5 import readable
from sckit.data.readers.log1p import counts_from_log1p, scaled_sums, target_sums
from sckit.data.readers.names import GeneTable, without_genome
from sckit.data.views import Csr, as_matrix, cell_of_entry, indptr_of, row_sums
from sckit.errors import DataError
from sckit.kernels.counts_reference import TARGET_SUM

LARGEST_COUNT = 2**32 - 1
CELLS_PER_BLOCK = 4096
ENTRIES_PER_BLOCK = 2**21
DENSE_VALUES = 2**23
"""Values of a dense matrix that are read at a time."""


@dataclass(frozen=True)
class CountsBlock:
    """Consecutive cells of one source: CSR of whole-number counts, without stored zeros or repeated entries."""

    indptr: np.ndarray
    """[C + 1] int64."""
    genes: np.ndarray
    """[nnz] int32: rows of the source's gene table, rising within a cell."""
    counts: np.ndarray
    """[nnz] uint32, all >= 1."""
    obs: pd.DataFrame
    """C rows; the index holds the cell ids (barcodes)."""
    totals: np.ndarray
    """[C] int64: counts over all genes, also those that the file does not hold where it says so."""
    n_genes: np.ndarray
    """[C] int64: detected genes, also those that the file does not hold where it says so."""
    recovered: np.ndarray
    """[C] bool: whether the counts are known; False only where they could not be recovered from log values."""

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Sum counts times `weights` [G] over the genes of each cell: [C] float64."""
        return as_matrix((self.indptr, self.genes, self.counts), len(weights)) @ weights


class Source(ABC):
    """One input, read block by block. A reader sets the fields in its `__init__` and implements `_read`."""

    def __init__(
        self,
        path: Path,
        features: GeneTable,
        obs: pd.DataFrame,
        *,
        lost: dict[str, np.ndarray] | None = None,
        notes: Sequence[str] = (),
        left_out: dict[str, int] | None = None,
    ) -> None:
        """Keep what was read so far; `lost` marks, by reason, the features [F] bool that are left out.

        left_out: the number of cells that the reader has not read, because their labels rule them out, by reason.
        """
        lost = lost or {}
        keep = ~np.any([np.zeros(len(features), dtype=bool), *lost.values()], axis=0)  # [F]
        self.path = path
        self.files: Sequence[Path] = (path,)
        """All that is read, for noticing changes."""
        self.identity: str = ""
        """What else tells whether an input is the same as before, where it has no files on this machine."""
        self.genes = without_genome(GeneTable(features.ids[keep], features.symbols[keep]))
        twice = obs.columns[obs.columns.map(str).duplicated()]
        if len(twice):
            raise DataError(f"{path} has the obs column {str(twice[0])!r} twice; rename one of them.")
        if strange := {name: str for name, column in obs.items() if _is_no_label(column)}:
            obs = obs.astype(strange)
        # pandas cannot take rows of numbers in the byte order of other machines
        swapped = {name: kind for name, kind in obs.dtypes.items() if getattr(kind, "byteorder", "=") == ">"}
        native = {name: np.dtype(str(kind)).newbyteorder("=") for name, kind in swapped.items()}
        self.obs = obs.astype(native) if native else obs  # without a need a copy would be made
        self.notes = list(notes)
        """Sentences on what looks odd in the file."""
        self.left_out = left_out or {}
        """Cells that were not read, by reason; no other field knows of them."""
        self.assays: dict[str, int] = {}
        """All cells by assay, also those that were not read; empty where all are in obs."""
        self.dropped = {reason: int(mask.sum()) for reason, mask in lost.items() if mask.any()}
        """Features that were left out, by reason."""
        self.totals: np.ndarray | None = None
        """[C] int64: total counts of a cell where the file knows more genes than it holds, -1 unknown; else None."""
        self.totals_column: str | None = None
        """The obs column that the totals are from."""
        self.n_genes: np.ndarray | None = None
        """[C] int64: genes detected in a cell where the file knows more genes than it holds, else None."""
        self.from_log1p = False
        """Whether the values are log1p of counts per 10,000, to be turned back into counts."""
        self._targets: np.ndarray | None = None
        """[C]: what the counts of each cell were made to add up to, when `from_log1p` and once they are known."""
        self.unit = "the matrix"
        """What is read of the file, for messages."""
        self.remedy = "; give a file with the raw counts"
        """What to try when the values turn out not to be counts."""
        self._gene_of_feature = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)  # [F]
        self._cells_at_most = CELLS_PER_BLOCK
        """Largest block that fits into memory where the number of entries is not known beforehand."""
        self._entries_before: np.ndarray | None = None
        """[C + 1] int64: where the entries of each cell begin, when a reader knows it."""
        if not (len(obs) or self.left_out) or not len(self.genes):
            without = ", ".join(f"{number:,} {reason}" for reason, number in self.dropped.items())
            raise DataError(
                f"{path} is empty: it holds {len(obs)} cells and {len(self.genes)} genes"
                f"{f' without {without}' if without else ''}; give at least one of each."
            )

    def need_totals(self, kept: np.ndarray) -> None:
        """Raise `DataError` where a kept cell, [C] bool, has no total in the column that was named."""
        if self.totals_column is not None and self.totals is not None and (kept & (self.totals < 0)).any():
            row = int(np.argmax(kept & (self.totals < 0)))
            raise DataError(
                f"Cell {self.obs.index[row]!r} of {self.path} has {str(self.obs[self.totals_column].iloc[row])!r} in "
                f"the column {self.totals_column!r} of --totals; a total is a whole number of counts. Correct the "
                "column, or leave out such cells with --obs-filter."
            )

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs)

    def blocks(
        self, *, cells_per_block: int = CELLS_PER_BLOCK, start: int = 0, stop: int | None = None
    ) -> Generator[CountsBlock]:
        """Yield the cells from `start` on, in order, at most `cells_per_block` and some two million entries at a time.

        Where a block ends depends on where it starts and on nothing before it; `stop` has to be such an end.
        Raises `DataError` when a value is not a count or the file cannot be read to its end.
        """
        with readable(self.path), self._opened() as handle:
            if self.from_log1p and self._targets is None:
                self._targets = self._target_sums(handle)
            first = start
            for last in self.block_ends(cells_per_block, start, stop):
                yield self._block(first, *self._read(handle, first, last))
                first = last

    def block_ends(self, cells_per_block: int, start: int = 0, stop: int | None = None) -> Iterator[int]:
        """Yield where the blocks from `start` to `stop` end."""
        while start < (self.n_cells if stop is None else stop):
            start = self._block_end(start, cells_per_block)
            yield start

    def _target_sums(self, handle: Any) -> np.ndarray:
        """Read all cells once for the numbers that their counts were made to add up to: [C]."""
        if self.totals is not None:
            return np.full(self.n_cells, TARGET_SUM)
        sums, first = np.zeros(self.n_cells), 0
        while first < self.n_cells:
            last = self._block_end(first, CELLS_PER_BLOCK)
            indptr, _, values = self._read(handle, first, last)
            sums[first:last] = scaled_sums(indptr, values)
            first = last
        return target_sums(sums)

    def _opened(self) -> AbstractContextManager[Any]:
        """Context in which `_read` may be called; its value is handed to `_read`."""
        return nullcontext()

    @abstractmethod
    def _read(self, handle: Any, first: int, last: int) -> Csr:
        """Read cells first..last: (indptr [C + 1], features [nnz], values [nnz]), features and dtype as in the file."""

    def _block_end(self, first: int, cells_per_block: int) -> int:
        last = min(first + min(cells_per_block, self._cells_at_most), self.n_cells)
        if self._entries_before is None:
            return last
        fits = np.searchsorted(self._entries_before, self._entries_before[first] + ENTRIES_PER_BLOCK, side="right") - 1
        return min(last, max(int(fits), first + 1))

    def _block(self, first: int, indptr: np.ndarray, features: np.ndarray, values: np.ndarray) -> CountsBlock:
        from sckit.kernels.clean_numba import cleaned  # slow to load

        indptr = indptr.astype(np.int64, copy=False)
        cells = slice(first, first + len(indptr) - 1)
        obs = self.obs.iloc[cells]
        outside = None if self.totals is None else self.totals[cells]
        recovered = np.ones(len(obs), dtype=bool)
        found = None if self.from_log1p else cleaned((indptr, features, values), self._gene_of_feature)
        if found is not None:
            (indptr, genes, counts), own = found
        else:
            genes = self._genes_of(features)
            if self._targets is not None:
                targets = self._targets[cells]
                values, outside, recovered = counts_from_log1p(indptr, values, outside, targets, obs.index, self.path)
            counts = self._whole_counts(values, indptr, obs.index)
            entries = indptr, genes, counts
            indptr, genes, counts = tidy(*entries)
            if self.from_log1p and len(genes) < np.count_nonzero((entries[2] > 0) & (entries[1] >= 0)):
                raise DataError(f"{self.path} holds two logarithms for one gene of one cell; export it with one.")
            own = row_sums(indptr, counts)
        if outside is not None and ((own > outside) & (outside >= 0)).any():
            row = int(np.argmax((own > outside) & (outside >= 0)))
            raise DataError(
                f"Cell {obs.index[row]!r} of {self.path} has {own[row]:,} counts in the file and a total of "
                f"{outside[row]:,} over all genes, which cannot be less; "
                + ("name the right column with --totals." if self.totals is not None else "its values are rounded.")
            )
        n_genes = np.diff(indptr) if self.n_genes is None else self.n_genes[cells]
        return CountsBlock(indptr, genes, counts, obs, own if outside is None else outside, n_genes, recovered)

    def _genes_of(self, features: np.ndarray) -> np.ndarray:
        if len(features) and not 0 <= int(features.min()) <= int(features.max()) < len(self._gene_of_feature):
            worst = features.max() if features.min() >= 0 else features.min()
            raise DataError(f"{self.path} is corrupt: an entry names feature {worst} of {len(self._gene_of_feature)}.")
        return self._gene_of_feature[features]

    def _whole_counts(self, values: np.ndarray, indptr: np.ndarray, cells: Sequence[Any] | pd.Index) -> np.ndarray:
        if values.dtype.kind not in "iufb":
            raise DataError(f"{self.path} holds values of the type {values.dtype} in {self.unit}; counts are numbers.")
        values = values.astype(np.float32) if values.dtype == np.float16 else values  # which cannot hold the bound
        good = (values >= 0) & (values < LARGEST_COUNT + 1)  # NaN is neither; float32 has no number LARGEST_COUNT
        if values.dtype.kind == "f":
            good &= values == np.rint(values)
        if not good.all():
            entry = int(np.argmin(good))
            cell = cells[int(np.searchsorted(indptr, entry, side="right")) - 1]
            raise DataError(
                f"Cell {cell!r} of {self.path} holds {values[entry]!s} in {self.unit}, which is "
                f"{_why_no_count(float(values[entry]))}; counts are whole numbers from 0 to {LARGEST_COUNT:,}"
                f"{self.remedy}{_or_logarithms(float(values[entry]), self.remedy)}."
            )
        return values.astype(np.uint32)


def tidy(indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> Csr:
    """Drop zeros and genes below 0, sort the genes of each cell and sum repeated ones.

    Takes and returns CSR: indptr [C + 1] int64, genes [nnz] int32, counts [nnz] uint32.
    Raises `DataError` for a sum above `LARGEST_COUNT`.
    """
    n_cells = len(indptr) - 1
    keep = (counts > 0) & (genes >= 0)
    if not keep.all():
        kept_before = indptr_of(keep)  # [nnz + 1]
        indptr, genes, counts = kept_before[indptr], genes[keep], counts[keep]
    falls = np.diff(genes) <= 0  # [nnz - 1]
    starts = indptr[1:-1]
    falls[starts[(starts > 0) & (starts < len(genes))] - 1] = False  # the step from one cell to the next may fall
    if not falls.any():
        return indptr, genes, counts
    cells = cell_of_entry(indptr)
    order = np.lexsort((genes, cells))
    genes, counts = genes[order], counts[order]  # cells is unchanged by the sort: it was sorted already
    first = np.ones(len(genes), dtype=bool)
    first[1:] = (genes[1:] != genes[:-1]) | (cells[1:] != cells[:-1])
    summed = np.add.reduceat(counts.astype(np.uint64), np.flatnonzero(first))
    if summed.max() > LARGEST_COUNT:
        raise DataError(
            f"A cell has {summed.max():,} counts of one gene, several entries added up; counts are whole numbers from "
            f"0 to {LARGEST_COUNT:,}, so check the matrix and the names of its genes."
        )
    indptr = indptr_of(np.bincount(cells[first], minlength=n_cells))
    return indptr, genes[first], summed.astype(np.uint32)


def nonzero_rows(rows: np.ndarray) -> Csr:
    """Return the nonzero entries of dense rows [C, F]: (indptr, features, values)."""
    cells, features = np.nonzero(rows)
    return indptr_of(np.bincount(cells, minlength=len(rows))), features, rows[cells, features]


def _is_no_label(column: pd.Series) -> bool:
    """Return whether a column holds complex numbers or records, which tables on disk do not."""
    return column.dtype.kind in "cV" or any(isinstance(value, np.void) for value in column[:1])


def _or_logarithms(value: float, remedy: str) -> str:
    """Say that log values can be read too, where there is no better remedy; ends a sentence."""
    no_other = "::" not in remedy and _why_no_count(value) == "not whole"
    return ", or give --from-log1p if these are log1p of counts per 10,000" if no_other else ""


def _why_no_count(value: float) -> str:
    if value != value or abs(value) == np.inf:
        return "no number"
    if value < 0:
        return "negative"
    return "too large" if value > LARGEST_COUNT else "not whole"


def other_matrices(path: Path, settings: Sequence[str]) -> str:
    """Say how to read what else may hold the counts, called counts or raw if there is such a thing; ends a sentence."""
    likely = [setting for setting in settings if "count" in setting or "raw" in setting] or settings
    return f"; try to give it as {' or '.join(f'{path}::{setting}' for setting in likely)}" if likely else ""
