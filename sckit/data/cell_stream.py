"""The stream of kept cells: blocks of the sources, filtered and renumbered to the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sckit.data.ahead import ahead
from sckit.data.filters import KEPT, QualityRules, mito_genes
from sckit.data.genes import Vocabulary
from sckit.data.readers.source import CELLS_PER_BLOCK, CountsBlock, Source, tidy
from sckit.data.views import indptr_of

NO_CHOSEN_GENE = "cells without a count in the kept genes"
NOT_RECOVERED = "cells whose counts log1p does not tell (fewer than 20 genes, or one smallest value)"


def remedy(reasons: str) -> str:
    """Say what to do where no cell is left, for these reasons."""
    if "cells of assay" in reasons:
        return "keep them with --assay any"
    if NOT_RECOVERED in reasons:
        return "give the totals with --totals"
    return "loosen the filters" if any(word in reasons for word in ("fewer", "more", "outside")) else "give others"


@dataclass(frozen=True)
class StreamPosition:
    """Where in the sources reading goes on: a cell of one of them."""

    source: int = 0
    cell: int = 0


@dataclass(frozen=True)
class KeptCells:
    """The cells of one block that stay, in the numbering of the vocabulary, and what became of the others."""

    source: int
    codes: np.ndarray  # int16 [cells of the block], 0 kept, else number of the reason
    rows: np.ndarray  # int64 [C], row in the united obs
    indptr: np.ndarray  # int64 [C + 1]
    genes: np.ndarray  # int32 [nnz]
    counts: np.ndarray  # uint32 [nnz]
    totals: np.ndarray  # int64 [C], counts over all genes of the source
    n_genes: np.ndarray  # int64 [C], detected among all genes of the source
    following: StreamPosition  # the first cell after the block


class CellStream:
    """All kept cells of the sources in order; reading can start at the end of any block."""

    def __init__(
        self, sources: Sequence[Source], judged: np.ndarray, reasons: Sequence[str], rules: QualityRules
    ) -> None:
        """Take the quality rules and what the labels say: `judged` [all cells] is KEPT or numbers `reasons` from 1."""
        self.sources = sources
        self.starts = indptr_of([source.n_cells for source in sources])  # [sources + 1]
        self.reasons = [*reasons, NOT_RECOVERED, *rules.reasons(), NO_CHOSEN_GENE]
        self._judged = judged
        self._n_label_reasons = len(reasons)
        self._rules = rules
        self._mito = [
            mito_genes(source) if rules.max_mito is not None and number not in self.unused else None
            for number, source in enumerate(sources)
        ]

    @property
    def n_cells(self) -> int:
        """Cells before any filter."""
        return int(self.starts[-1])

    @property
    def unused(self) -> list[int]:
        """Sources none of whose cells is kept by its labels; their counts are never read."""
        return [i for i in range(len(self.sources)) if (self._labelled(i) != KEPT).all()]

    def cells_before(self, position: StreamPosition) -> int:
        """Count the cells before a position."""
        return int(self.starts[position.source]) + position.cell

    def segments(self, size: int, cells_per_block: int) -> list[StreamPosition]:
        """Return where segments begin: each has the blocks in which `size` cells are kept by their labels."""
        starts, found = [StreamPosition()], 0
        for number, source in enumerate(self.sources):
            labelled = indptr_of(self._labelled(number) == KEPT)  # [cells + 1]
            begin = 0
            for end in source.block_ends(cells_per_block) if labelled[-1] else ():
                found += int(labelled[end] - labelled[begin])
                begin = end
                if found >= size:
                    starts.append(self._after(number, end))
                    found = 0
        return starts if found or len(starts) == 1 else starts[:-1]

    def read(
        self,
        vocabulary: Vocabulary,
        *,
        start: StreamPosition = StreamPosition(),
        stop: StreamPosition | None = None,
        cells_per_block: int = CELLS_PER_BLOCK,
    ) -> Iterator[KeptCells]:
        """Yield the kept cells from `start` to `stop`, block by block; a block may keep none."""
        unused = self.unused
        for number in range(start.source, len(self.sources)):
            cell = start.cell if number == start.source else 0
            if stop is not None and (number, cell) >= (stop.source, stop.cell):
                return
            if number in unused:
                yield self._nothing(number)
                continue
            last = stop.cell if stop is not None and stop.source == number else None
            blocks = self.sources[number].blocks(cells_per_block=cells_per_block, start=cell, stop=last)
            for block in ahead(blocks):
                yield self._keep(number, cell, block, vocabulary.maps[number])
                cell += len(block.obs)

    def _labelled(self, number: int) -> np.ndarray:
        return self._judged[self.starts[number] : self.starts[number + 1]]

    def _after(self, number: int, cell: int) -> StreamPosition:
        """Return where reading goes on after `cell` cells of a source."""
        return StreamPosition(number, cell) if cell < self.sources[number].n_cells else StreamPosition(number + 1)

    def _nothing(self, number: int) -> KeptCells:
        none, following = np.zeros(0, dtype=np.int64), StreamPosition(number + 1)
        return KeptCells(number, self._labelled(number), none, indptr_of(none), none, none, none, none, following)

    def _keep(self, number: int, cell: int, block: CountsBlock, to_vocabulary: np.ndarray) -> KeptCells:
        """Filter one block, which begins at `cell` of its source, and renumber its genes."""
        from sckit.kernels.clean_numba import taken  # slow to load

        stop = cell + len(block.obs)
        codes = self._labelled(number)[cell:stop].copy()
        codes[(codes == KEPT) & ~block.recovered] = self._n_label_reasons + 1
        broken = self._rules.broken(block, self._mito[number])
        codes = np.where((codes == KEPT) & (broken > 0), broken + self._n_label_reasons + 1, codes)
        entries = taken((block.indptr, block.genes, block.counts), codes == KEPT, to_vocabulary)
        if entries is None:
            kept_entries = np.repeat(codes == KEPT, np.diff(block.indptr))
            genes = np.where(kept_entries, to_vocabulary[block.genes], np.int32(-1))
            entries = tidy(block.indptr, genes, block.counts)
        indptr, genes, counts = entries
        lengths = np.diff(indptr)
        codes[(codes == KEPT) & (lengths == 0)] = len(self.reasons)
        kept = np.flatnonzero(codes == KEPT)
        return KeptCells(
            source=number,
            codes=codes,
            rows=self.starts[number] + cell + kept,
            indptr=indptr_of(lengths[kept]),
            genes=genes,
            counts=counts,
            totals=block.totals[kept],
            n_genes=block.n_genes[kept],
            following=self._after(number, stop),
        )
