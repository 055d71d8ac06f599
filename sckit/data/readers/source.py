"""What a reader gives: blocks of whole-number counts (CSR), the gene table; and the checks that all readers share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.readers.hdf5 import readable, strings
from sckit.data.views import Csr, as_matrix, cell_of_entry, indptr_of
from sckit.errors import DataError

LARGEST_COUNT = 2**32 - 1
CELLS_PER_BLOCK = 4096
ENTRIES_PER_BLOCK = 2**21
GENE_EXPRESSION = "Gene Expression"
NOT_EXPRESSION = "features that are not gene expression"

ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")
_ID_COLUMNS = ("feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl", "id", "var_id")
_SYMBOL_COLUMNS = ("feature_name", "gene_symbol", "gene_symbols", "gene_name", "gene_names", "symbol", "name")


@dataclass(frozen=True)
class GeneTable:
    """The genes of one source, in file order."""

    ids: np.ndarray
    """[G] str: gene ids as the file gives them (Ensembl, with or without version), "" where it gives none."""
    symbols: np.ndarray
    """[G] str: gene symbols; the id where the file gives no symbols."""

    def __len__(self) -> int:
        return len(self.symbols)


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

    def totals(self) -> np.ndarray:
        """Return the counts of each cell: [C] int64."""
        filled = np.flatnonzero(np.diff(self.indptr))  # reduceat gives an empty cell the next cell's first entry
        totals = np.zeros(len(self.indptr) - 1, np.int64)
        totals[filled] = np.add.reduceat(self.counts, self.indptr[filled], dtype=np.int64)
        return totals

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Sum counts times `weights` [G] over the genes of each cell: [C] float64."""
        return as_matrix((self.indptr, self.genes, self.counts), len(weights)) @ weights


class Source(ABC):
    """One input, read block by block. A reader sets the fields in its `__init__` and implements `_read`."""

    def __init__(
        self, path: Path, features: GeneTable, obs: pd.DataFrame, *, lost: dict[str, np.ndarray] | None = None
    ) -> None:
        """Keep what was read so far; `lost` marks, by reason, the features [F] bool that are left out."""
        lost = lost or {}
        keep = ~np.any([np.zeros(len(features), dtype=bool), *lost.values()], axis=0)  # [F]
        self.path = path
        self.genes = GeneTable(features.ids[keep], features.symbols[keep])
        self.obs = obs
        self.dropped = {reason: int(mask.sum()) for reason, mask in lost.items() if mask.any()}
        """Features that were left out, by reason."""
        self.totals: np.ndarray | None = None
        """[C] int64: total counts of a cell where the file knows more genes than it holds, else None."""
        self.unit = "the matrix"
        """What is read of the file, for messages."""
        self.remedy = "; give a file with the raw counts"
        """What to try when the values turn out not to be counts."""
        self._gene_of_feature = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)  # [F]
        self._cells_at_most = CELLS_PER_BLOCK
        """Largest block that fits into memory where the number of entries is not known beforehand."""
        self._entries_before: np.ndarray | None = None
        """[C + 1] int64: where the entries of each cell begin, when a reader knows it."""
        if not len(obs) or not len(self.genes):
            raise DataError(
                f"{path} is empty: it holds {len(obs)} cells and {len(self.genes)} genes; give at least one of each."
            )

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs)

    def blocks(self, *, cells_per_block: int = CELLS_PER_BLOCK, start: int = 0) -> Iterator[CountsBlock]:
        """Yield the cells from `start` on, in order, at most `cells_per_block` and some two million entries at a time.

        Where a block ends depends on where it starts and on nothing before it.
        Raises `DataError` when a value is not a count or the file cannot be read to its end.
        """
        with readable(self.path), self._opened() as handle:
            first = start
            while first < self.n_cells:
                last = self._block_end(first, cells_per_block)
                yield self._block(first, *self._read(handle, first, last))
                first = last

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
        indptr = indptr.astype(np.int64, copy=False)
        if len(features) and not 0 <= int(features.min()) <= int(features.max()) < len(self._gene_of_feature):
            worst = features.max() if features.min() >= 0 else features.min()
            raise DataError(f"{self.path} is corrupt: an entry names feature {worst} of {len(self._gene_of_feature)}.")
        genes = self._gene_of_feature[features]
        obs = self.obs.iloc[first : first + len(indptr) - 1]
        counts = self._whole_counts(values, indptr, obs.index)
        return CountsBlock(*tidy(indptr, genes, counts), obs)

    def _whole_counts(self, values: np.ndarray, indptr: np.ndarray, cells: Sequence[Any] | pd.Index) -> np.ndarray:
        good = (values >= 0) & (values <= LARGEST_COUNT)  # NaN is neither
        if values.dtype.kind == "f":
            good &= values == np.rint(values)
        if not good.all():
            entry = int(np.argmin(good))
            cell = cells[int(np.searchsorted(indptr, entry, side="right")) - 1]
            raise DataError(
                f"Cell {cell!r} of {self.path} holds {values[entry]:g} in {self.unit}, "
                f"but counts must be whole numbers and not negative{self.remedy}."
            )
        return values.astype(np.uint32)


def tidy(indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> Csr:
    """Drop zeros and genes below 0, sort the genes of each cell and sum repeated ones.

    Takes and returns CSR: indptr [C + 1] int64, genes [nnz] int32, counts [nnz] uint32.
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
    indptr = indptr_of(np.bincount(cells[first], minlength=n_cells))
    return indptr, genes[first], summed.astype(np.uint32)


def other_matrices(names: Sequence[str]) -> str:
    """Name the options that may lead to the counts, those called counts or raw if there are any; ends a sentence."""
    likely = [name for name in names if "count" in name or "raw" in name] or names
    return f"; try {' or '.join(likely)}" if likely else ""


def gene_table(var: pd.DataFrame) -> GeneTable:
    """Find ids and symbols among the index and the columns of a `var` table.

    Ids come from the first usual column, else the index, in which at least half of the entries are Ensembl gene ids;
    symbols from the first usual column that is something else, else the index, else the ids.
    """
    index = strings(var.index)
    ids = np.full(len(index), "", dtype=object)
    for candidate in [*(strings(var[name]) for name in _ID_COLUMNS if name in var), index]:
        if mostly_ensembl(candidate):
            ids = candidate
            break
    symbols = index
    for candidate in [strings(var[name]) for name in _SYMBOL_COLUMNS if name in var]:
        if not mostly_ensembl(candidate):
            symbols = np.where(candidate == "", index, candidate)
            break
    return GeneTable(ids=ids, symbols=symbols)


def mostly_ensembl(names: np.ndarray) -> bool:
    """Return whether at least half of the names are Ensembl gene ids."""
    return 2 * sum(ENSEMBL.match(name) is not None for name in names) >= max(len(names), 1)
