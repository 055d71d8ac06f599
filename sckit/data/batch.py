"""Batches: the detected genes of whole cells packed into one row of tokens, visible ones first, nothing padded.

Which entries are hidden is a pure function of (seed, epoch, cell, gene), so masks at rising rates are nested and
nothing depends on what else is in the batch, on the order of the cells or on where a run was resumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sckit.config import check_mask
from sckit.errors import ConfigError
from sckit.kernels.counts_numba import cut, pack
from sckit.kernels.counts_reference import Hide
from sckit.kernels.hashing import entry_uniform, mix

SCORED_SHARE = 0.15
"""Entries with a hash below this are the scored set; it is the same at every rate of at least this."""

WHOLE_SHARE = 0.3
"""Share of the cells that "uniform" hides whole: at nearly every lower rate the visible values tell the total."""

_MIN_VISIBLE_FOR_TOTAL = 8
_EXCHANGE = np.uint64(2**64 - 2)  # where hiding has the epoch: no order is drawn from the hash that hides
_RATE_DRAW = 2**32 - 1  # a gene number no store has: the hash of a cell itself
CONTEXTS = ("detected", "visible", "shuffled")


class CountsView(Protocol):
    """Counts of cells by row number: a store, or a store whose counts were split."""

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CSR (indptr int64 [C + 1], genes [nnz], counts [nnz]) of the cells in the order asked for."""
        ...

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] over all genes of the source, the number that values are divided by."""
        ...


@dataclass(frozen=True)
class Hiding:
    """Which values are hidden: every entry whose hash with `seed` and `epoch` is below its cell's rate."""

    mask_rate: float | str = SCORED_SHARE
    """Share of the detected values hidden, in (0, 1], or "uniform": a rate a cell from (0, 1], 1 for 30 %."""
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        check_mask(self.mask_rate)

    @property
    def key(self) -> int:
        """The 64-bit key of the hash."""
        return int(mix(mix(np.array(self.seed, np.uint64)) ^ np.uint64(self.epoch)))

    def rates(self, cells: np.ndarray) -> np.ndarray:
        """Share hidden in each cell, float64 [C]."""
        if self.mask_rate == "uniform":
            draw = entry_uniform(self.key, cells, np.full(len(cells), _RATE_DRAW))
            return np.where(draw < WHOLE_SHARE, 1.0, (1.0 - draw) / (1.0 - WHOLE_SHARE))
        return np.full(len(cells), float(self.mask_rate))


@dataclass(frozen=True)
class Batch:
    """C cells packed into T tokens. The value of a hidden token is zero here: a model cannot see it by mistake."""

    cells: np.ndarray  # int64 [C], rows of the store
    genes: np.ndarray  # int32 [T]
    values: np.ndarray  # float32 [T], log1p of counts per 10,000; 0 where hidden
    hidden: np.ndarray  # bool [T]
    offsets: np.ndarray  # int32 [C + 1]
    keys: np.ndarray  # int32 [C], the first so many tokens of a cell are its context
    targets: np.ndarray  # int64 [M], hidden tokens to predict, ascending
    truth: np.ndarray  # float32 [M], their values
    n_detected: np.ndarray  # int64 [C], tokens whose identity is known (in "visible": the visible ones)
    log_total: np.ndarray  # float64 [C], log of the total counts where the visible values give it away, else NaN
    context: str
    cut: int  # entries left out of cells over max_genes

    @property
    def cell_of_token(self) -> np.ndarray:
        """Position in the batch of each token's cell, int64 [T]."""
        return np.repeat(np.arange(len(self.cells)), np.diff(self.offsets))

    @property
    def in_context(self) -> np.ndarray:
        """Whether each token is among the first keys of its cell, bool [T]."""
        cell = self.cell_of_token
        return np.arange(len(cell)) - self.offsets[cell] < self.keys[cell]

    @property
    def target_cells(self) -> np.ndarray:
        """Position in the batch of each target's cell, int64 [M]."""
        return self.cell_of_token[self.targets]


@dataclass(frozen=True)
class Packer:
    """Turns row numbers into batches for one view of the counts, one vocabulary and one way to hide."""

    view: CountsView
    vocabulary: np.ndarray  # int32 [genes of the store], number in the model or -1
    hiding: Hiding
    context: str = "detected"
    known_depth: bool = False
    """Give the exact total of every cell, at every rate."""
    scored: bool = False
    """Targets are the fixed scored set instead of everything hidden."""
    max_genes: int = 4096
    partners: np.ndarray | None = None
    """For context "shuffled": int64 [cells of the store], whose detection set each cell gets."""

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ConfigError(f"--context {self.context} is unknown; choose one of {', '.join(CONTEXTS)}.")

    def __call__(self, cells: np.ndarray) -> Batch:
        """Pack the cells (int64 [C]) into one batch."""
        batch = self._own(cells)
        if self.context != "shuffled":
            return batch
        if self.partners is None:
            message = "context 'shuffled' needs partners"
            raise ValueError(message)
        partner = self._own(self.partners[cells])
        return _exchange(batch, partner, batch.log_total if self.known_depth else partner.log_total)

    def _own(self, cells: np.ndarray) -> Batch:
        totals = self.view.totals(cells)
        hide = Hide(self.hiding.key, self.hiding.rates(cells))
        genes, values, uniforms, offsets, visible, cut = pack(
            self.view.rows(cells), cells, totals, hide, vocabulary=self.vocabulary, max_genes=self.max_genes
        )
        hidden = np.arange(len(genes)) >= np.repeat(offsets[:-1] + visible, np.diff(offsets))
        scored = hidden & (uniforms < SCORED_SHARE) if self.scored else hidden
        targets = np.flatnonzero(scored)
        truth = values[targets]
        seen = np.where(hidden, np.float32(0), values)
        lengths = np.diff(offsets)
        log_total = np.log(totals) if self.known_depth else revealed_log_total(seen, offsets, visible)
        keys = visible if self.context == "visible" else lengths
        return Batch(
            cells,
            genes,
            seen,
            hidden,
            offsets,
            keys,
            targets,
            truth,
            keys.astype(np.int64),
            log_total,
            self.context,
            cut,
        )


class CutView:
    """A view whose cells have at most `max_genes` genes of the vocabulary, a random choice by seed.

    What is fitted on counts that are cut in training and evaluation has to be fitted on cut counts.
    """

    def __init__(self, view: CountsView, vocabulary: np.ndarray, max_genes: int, seed: int) -> None:
        self._view, self._vocabulary, self._max_genes, self._seed = view, vocabulary, max_genes, seed

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CSR of the cells with the genes of the vocabulary, cut."""
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

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CSR of the cells with the counts of each cell in another order."""
        indptr, genes, counts = self._view.rows(cells)
        cell = np.repeat(np.arange(len(cells)), np.diff(indptr))
        order = np.lexsort((entry_uniform(self._key, cells[cell], genes), cell))
        return indptr, genes, counts[order]

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] of the cells, as they were."""
        return self._view.totals(cells)


def revealed_log_total(values: np.ndarray, offsets: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Log of each cell's total counts as its visible values give it away, NaN where they do not; float64 [C].

    A count of one has the value v = log1p(1e4 / total), and the smallest of a few visible values is nearly always
    a one; with fewer than eight visible values nothing is concluded.
    """
    log_total = np.full(len(visible), np.nan)
    for c in np.flatnonzero(visible >= _MIN_VISIBLE_FOR_TOTAL):
        smallest = values[offsets[c] : offsets[c] + visible[c]].min()
        log_total[c] = np.log(1e4) - np.log(np.expm1(float(smallest)))
    return log_total


def _exchange(own: Batch, partner: Batch, log_total: np.ndarray) -> Batch:
    """The partner's tokens as context, the own targets behind them as queries that nobody else sees."""
    order, genes, values, hidden = [], [], [], []
    targets_at = np.split(own.targets, np.searchsorted(own.targets, own.offsets[1:-1]))
    for c, targets in enumerate(targets_at):
        span = slice(partner.offsets[c], partner.offsets[c + 1])
        genes += [partner.genes[span], own.genes[targets]]
        values += [partner.values[span], np.zeros(len(targets), np.float32)]
        hidden += [partner.hidden[span], np.ones(len(targets), bool)]
        order += [np.zeros(span.stop - span.start, bool), np.ones(len(targets), bool)]
    lengths = np.diff(partner.offsets) + [len(t) for t in targets_at]
    return Batch(
        own.cells,
        np.concatenate(genes),
        np.concatenate(values),
        np.concatenate(hidden),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        np.diff(partner.offsets).astype(np.int32),
        np.flatnonzero(np.concatenate(order)),
        own.truth,
        partner.n_detected,
        log_total,
        "shuffled",
        own.cut,
    )


def swap_like_depth(lengths: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Partner of every cell among `cells`: neighbours in number of detected genes swap; int64 [len(lengths)]."""
    partners = np.arange(len(lengths))
    ordered = cells[np.argsort(lengths[cells], kind="stable")]
    partners[ordered] = np.roll(ordered, 1)
    pairs = len(ordered) // 2 * 2
    partners[ordered[0:pairs:2]], partners[ordered[1:pairs:2]] = ordered[1:pairs:2], ordered[0:pairs:2]
    return partners


def batches_by_tokens(cells: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut the cells, in their order, into batches of about `tokens` tokens and at least one cell each."""
    edges = np.cumsum(np.maximum(lengths[cells], 1)) // max(tokens, 1)
    return np.split(cells, np.flatnonzero(np.diff(edges)) + 1) if len(cells) else []


def shuffle(cells: np.ndarray, generator: np.random.Generator, *, block: int = 64, buffer: int = 64) -> np.ndarray:
    """The cells in a random order that reads the store in runs: blocks are permuted, then cells within `buffer`."""
    blocks = np.array_split(cells, max(1, -(-len(cells) // block)))
    blocks = [blocks[i] for i in generator.permutation(len(blocks))]
    groups = [np.concatenate(blocks[i : i + buffer]) for i in range(0, len(blocks), buffer)]
    return np.concatenate([generator.permutation(group) for group in groups])


def epoch_batches(cells: np.ndarray, lengths: np.ndarray, tokens: int, seed: tuple[int, int]) -> list[np.ndarray]:
    """The training batches of one epoch as row numbers, the same for the same (seed, epoch)."""
    return batches_by_tokens(shuffle(np.sort(cells), np.random.default_rng(seed)), lengths, tokens)


def detected_in(view: CountsView, vocabulary: np.ndarray, cells: np.ndarray, *, block: int = 4096) -> np.ndarray:
    """Number of detected genes of the vocabulary in each of the cells, int64 [len(cells)]."""
    return np.concatenate(
        [
            np.diff(np.concatenate([[0], np.cumsum(vocabulary[genes] >= 0)])[indptr])
            for indptr, genes, _ in (view.rows(part) for part in _parts(cells, block))
        ]
        or [np.zeros(0, np.int64)]
    )


def _parts(cells: np.ndarray, block: int) -> Iterator[np.ndarray]:
    for start in range(0, len(cells), block):
        yield cells[start : start + block]
