"""Batches: the detected genes of whole cells packed into one row of tokens, visible ones first, nothing padded.

Which entries are hidden is a pure function of (seed, epoch, cell, gene), so masks at rising rates are nested and
nothing depends on what else is in the batch, on the order of the cells or on where a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from sckit.config import check_mask
from sckit.data.store import Store
from sckit.data.views import CountsView, cell_of_entry, indptr_of
from sckit.errors import ConfigError
from sckit.kernels.count_law import counts_of
from sckit.kernels.counts_numba import pack
from sckit.kernels.counts_reference import TARGET_SUM, Hide
from sckit.kernels.hashing import entry_uniform, mix
from sckit.kernels.located_numba import Located, located

SCORED_SHARE = 0.15
"""Entries with a hash below this are the scored set; it is the same at every rate of at least this."""

WHOLE_SHARE = 0.3
"""Share of the cells that "uniform" hides whole: at nearly every lower rate the visible values tell the total."""

CONTEXTS = ("detected", "visible")
_MIN_VISIBLE_FOR_TOTAL = 8
_RATE_DRAW = 2**32 - 1  # a gene number no store has: the hash of a cell itself


@dataclass(frozen=True)
class Hiding:
    """Which values are hidden: every entry whose hash with `seed` and `epoch` is below its cell's rate."""

    mask_rate: float | str = SCORED_SHARE
    """Share of the detected values hidden, in (0, 1], or "uniform": each cell has a rate of its own from (0, 1], and
    30 % of the cells have the rate 1."""
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        check_mask(self.mask_rate)

    @cached_property
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
class Neighbours:
    """The neighbours of cells, and which of them show all of their values.

    Training cells do, but not to cells of their own group: a new group has no cell whose values are all known.
    """

    table: np.ndarray  # int64 [cells of the store, k], rows of the store, -1 where there is none
    training: np.ndarray  # bool [cells of the store]
    groups: np.ndarray | None = None  # [cells of the store]


@dataclass(frozen=True)
class Around:
    """The neighbours of a batch of T tokens, and the N of their tokens that its C cells see."""

    batch: "Batch"  # of all neighbours, those that show all of their values first
    order: np.ndarray  # int64 [T + N], for each cell its neighbours' tokens, as T + place in `batch`, and then its own
    offsets: np.ndarray  # int32 [C + 1], where each cell begins in that order
    keys: np.ndarray  # int32 [C], number of its neighbours' tokens and of its context tokens


@dataclass(frozen=True, kw_only=True)
class Batch:
    """C cells packed into T tokens. The value of a hidden token is zero here: a model cannot see it by mistake."""

    cells: np.ndarray  # int64 [C], rows of the store
    genes: np.ndarray  # int32 [T]
    values: np.ndarray  # float32 [T], log1p of counts per 10,000; 0 where hidden
    hidden: np.ndarray  # bool [T]
    offsets: np.ndarray  # int32 [C + 1]
    keys: np.ndarray  # int32 [C], how many tokens, from the first of the cell on, are its context
    targets: np.ndarray  # int64 [M], hidden tokens to predict, ascending
    truth: np.ndarray  # float32 [M], their values
    n_detected: np.ndarray  # int64 [C], tokens whose identity is known (in "visible": the visible ones)
    totals: np.ndarray  # float64 [C], total counts, for scores and losses alone; no prediction may use them
    log_total: np.ndarray  # float64 [C], log of the total counts where the visible values give it away, else NaN
    context: str
    cut: int  # entries left out of cells over max_genes
    around: Around | None = None

    @property
    def counts(self) -> np.ndarray:
        """Counts of the targets, float64 [M]."""
        return counts_of(self.truth.astype(np.float64), self.totals[self.target_cells])

    @property
    def cell_of_token(self) -> np.ndarray:
        """Position in the batch of each token's cell, int64 [T]."""
        return cell_of_entry(self.offsets)

    @property
    def in_context(self) -> np.ndarray:
        """Whether each token belongs to the context of its cell, bool [T]."""
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
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ConfigError(f"--context {self.context} is unknown; choose one of {', '.join(CONTEXTS)}.")

    def __call__(self, cells: np.ndarray) -> Batch:
        """Pack the cells (int64 [C]) into one batch."""
        return self.several([cells])[0]

    def several(self, parts: Sequence[np.ndarray]) -> list[Batch]:
        """Pack each part of the cells into a batch, which takes less time than one after the other."""
        return self._packed(parts, self.hiding.rates(np.concatenate(parts)))

    def entries(self, cells: np.ndarray) -> int:
        """Return how many entries there are to pack, at most where the view does not know it without reading."""
        if isinstance(self.view, Store):
            return int(self.view.shards.lengths(cells).sum())
        return len(cells) * self.max_genes

    def _packed(self, parts: Sequence[np.ndarray], rates: np.ndarray) -> list[Batch]:
        """Pack each part of the cells into a batch; rates: share hidden in each cell of all parts."""
        cells = np.concatenate(parts)
        totals = self.view.totals(cells)
        places, held = self.view.located(cells) if isinstance(self.view, Store) else located(self.view.rows(cells))
        options = {"vocabulary": self.vocabulary, "max_genes": self.max_genes}
        options["scored"] = SCORED_SHARE if self.scored else 1.0
        spans = [slice(first, last) for first, last in pairwise(indptr_of([len(part) for part in parts]).tolist())]
        packed = [
            pack(Located(places[own], held), cells[own], totals[own], Hide(self.hiding.key, rates[own]), **options)
            for own in spans
        ]
        if self.known_depth:
            log_totals = np.log(totals)
        else:
            log_totals = revealed_log_total(
                *(np.concatenate([getattr(one, name) for one in packed]) for name in ("smallest", "visible"))
            )
        batches = []
        for own, one in zip(spans, packed, strict=True):
            keys = one.visible if self.context == "visible" else np.diff(one.offsets)
            batch = Batch(
                cells=cells[own],
                genes=one.genes,
                values=one.values,
                hidden=one.hidden,
                offsets=one.offsets,
                keys=keys,
                targets=one.targets,
                truth=one.truth,
                n_detected=keys.astype(np.int64),
                totals=totals[own].astype(np.float64),
                log_total=log_totals[own],
                context=self.context,
                cut=int(one.left_out.sum()),
            )
            batches.append(batch)
        if self.neighbours is None or self.context == "visible":
            return batches
        return [self._with_neighbours(batch, self.neighbours) for batch in batches]

    def _with_neighbours(self, batch: Batch, neighbours: Neighbours) -> Batch:
        """Add what the neighbours of its cells show; those that are not shown whole hide what this packer hides."""
        found, groups = neighbours.table[batch.cells], neighbours.groups
        whole = neighbours.training[found]
        if groups is not None:
            whole &= groups[found] != groups[batch.cells][:, None]
        parts = np.unique(found[(found >= 0) & whole]), np.unique(found[(found >= 0) & ~whole])
        rates = np.concatenate([np.zeros(len(parts[0])), self.hiding.rates(parts[1])])
        (others,) = replace(self, neighbours=None, scored=False)._packed([np.concatenate(parts)], rates)
        at, hiding_at = (np.searchsorted(part, found) for part in parts)
        places = np.where(found < 0, -1, np.where(whole, at, len(parts[0]) + hiding_at))
        return replace(batch, around=_tokens_around(batch, places, others))


def _tokens_around(batch: Batch, places: np.ndarray, others: Batch) -> Around:
    """Choose from the neighbours' visible tokens those of genes that the cell itself detects.

    places: int64 [C, k], positions in the batch of others or -1.
    """
    cell, place = np.nonzero(places >= 0)
    other = places[cell, place]
    lengths = np.diff(others.offsets)[other]
    ends = np.cumsum(lengths)
    token = np.arange(lengths.sum()) + np.repeat(others.offsets[other] - (ends - lengths), lengths)
    cell = np.repeat(cell, lengths)
    detected = np.zeros((len(batch.cells), 1 + max(batch.genes.max(initial=0), others.genes.max(initial=0))), bool)
    detected[batch.cell_of_token, batch.genes] = True
    seen = detected[cell, others.genes[token]] & ~others.hidden[token]
    cell, token = cell[seen], token[seen]
    more = np.bincount(cell, minlength=len(batch.cells))
    offsets = batch.offsets + np.concatenate([[0], np.cumsum(more)])
    own = np.arange(len(batch.genes)) + np.cumsum(more)[batch.cell_of_token]
    order = np.full(len(own) + len(token), -1)
    order[own] = np.arange(len(own))
    order[order < 0] = len(own) + token
    return Around(others, order, offsets.astype(np.int32), (batch.keys + more).astype(np.int32))


def revealed_log_total(smallest: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return the log of each cell's total counts as its visible values give it away, else NaN; float64 [C].

    smallest: float32 [C], of the visible values; visible: [C], how many there are. A count of one has the value
    v = log1p(10,000 / total), and the smallest of a few visible values is nearly always a one; with fewer than eight
    visible values nothing is concluded.
    """
    log_total = np.full(len(visible), np.nan)
    known = visible >= _MIN_VISIBLE_FOR_TOTAL
    log_total[known] = np.log(TARGET_SUM) - np.log(np.expm1(smallest[known].astype(np.float64)))
    return log_total
