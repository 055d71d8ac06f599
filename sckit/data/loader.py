"""Which cells go into which batch: a shuffled order that reads the store in stretches, cut into batches by tokens."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np

from sckit.data.ahead import in_threads
from sckit.data.batch import Batch, Packer
from sckit.data.views import CountsView, in_blocks, indptr_of

_BLOCK_CELLS = 4096  # that are counted at once
_STRETCH_CELLS = 4096  # that are mixed
_JOB_ENTRIES = 2**23  # a thread packs a stretch at a time, or about as many entries

Parts = list[tuple[int | None, np.ndarray]]
"""Rows of the store, each part with the number of the fold that its cells are of, or None."""


def epoch_batches(
    cells: np.ndarray,
    chunks: np.ndarray,
    lengths: np.ndarray,
    tokens: int,
    seed: tuple[int, ...],
    folds: np.ndarray | None = None,
) -> Parts:
    """Return the training batches of one epoch, the same for the same seed.

    cells: [C], rising; chunks: [C], rising, the chunk of the store that each lies in; lengths: [cells of the store],
    tokens of each; folds: [C], fold of each of the cells. Where there are folds, a batch has cells of one, and the
    batches of all folds are mixed as far as the cells are.
    """
    generator = np.random.default_rng(seed)
    order = shuffle(chunks, generator)
    if folds is None:
        return [(None, part) for part in batches_by_tokens(cells[order], lengths, tokens)]
    found: Parts = []
    ends = []  # where in the order the last cell of a batch stands
    for fold in np.unique(folds).tolist():
        places = np.flatnonzero(folds[order] == fold)
        parts = batches_by_tokens(cells[order[places]], lengths, tokens)
        found += [(fold, part) for part in parts]
        ends += places[np.cumsum([len(part) for part in parts]) - 1].tolist()
    stretch = np.array(ends) // _STRETCH_CELLS  # whose chunks are in memory at the same time
    mixed = generator.permutation(len(found))
    return [found[i] for i in mixed[np.argsort(stretch[mixed], kind="stable")].tolist()]


def packed(packer: Packer, parts: Sequence[np.ndarray], threads: int) -> Generator[Batch]:
    """Yield each part of the cells as a batch, in order, while threads pack the next ones."""
    with closing(in_threads(_jobs(packer, parts), threads)) as made:
        for batches in made:
            yield from batches


def _jobs(packer: Packer, parts: Sequence[np.ndarray]) -> Iterator[Callable[[], list[Batch]]]:
    """Yield what threads have to do, each about a stretch, so that two of them seldom need the same chunks."""
    first = cells = entries = 0
    for last, part in enumerate(parts, 1):
        cells, entries = cells + len(part), entries + packer.entries(part)
        if cells >= _STRETCH_CELLS or entries >= _JOB_ENTRIES or last == len(parts):
            yield partial(packer.several, parts[first:last])
            first, cells, entries = last, 0, 0


def batches_by_tokens(cells: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut the cells, in their order, into batches of about `tokens` tokens and at least one cell each.

    lengths: [cells of the store], tokens of each cell.
    """
    edges = np.cumsum(np.maximum(lengths[cells], 1), dtype=np.int64)
    edges //= max(tokens, 1)
    return np.split(cells, np.flatnonzero(edges[1:] != edges[:-1]) + 1) if len(cells) else []


def shuffle(chunks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the places 0..C of cells in a random order that reads the store in stretches.

    chunks: [C], rising. The chunks are permuted, then the cells within every 4,096 cells of that order, cut between
    chunks, so that a chunk is decoded for one stretch alone.
    """
    found = np.split(np.arange(len(chunks)), np.flatnonzero(np.diff(chunks)) + 1)
    found = [found[i] for i in generator.permutation(len(found))]
    starts = indptr_of([len(chunk) for chunk in found])[:-1]
    order = np.concatenate(found)
    for stretch in np.split(order, starts[1:][np.diff(starts // _STRETCH_CELLS) > 0]):
        generator.shuffle(stretch)  # in its place in the order
    return order


def detected_in(view: CountsView, vocabulary: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Count the detected genes of the vocabulary in each of the cells, int32 [len(cells)]."""
    counted = np.empty(len(cells), np.int32)
    for at, part in enumerate(in_blocks(cells, _BLOCK_CELLS)):
        indptr, genes, _ = view.rows(part)
        first = at * _BLOCK_CELLS
        counted[first : first + len(part)] = np.diff(indptr_of(vocabulary[genes] >= 0)[indptr])
    return counted
