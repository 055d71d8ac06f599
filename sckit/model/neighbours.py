"""Cells with detection sets that are most alike, and how a batch shows their values to attention."""

from collections.abc import Iterable

import numpy as np

from sckit.data.batch import Batch, Neighbours, Packer
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.model.offset_forms import OffsetForms

MOST_IN_POOL = 20_000  # training cells, and cells of a pass, that may be neighbours
_BATCH_TOKENS = 2**18


def components_of(forms: OffsetForms, x: np.ndarray) -> np.ndarray:
    """Return the detection components [c, K] of cells with features x [c, F], each with the variance that it explains.

    The components of the ridges all have variance 1, and most of them would be noise in a distance.
    """
    return (x[:, 2:] / np.linalg.norm(forms.axes, axis=0)).astype(np.float32)


def nearest(components: np.ndarray, pool: np.ndarray, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which k of a pool [p, K] are nearest to cells [c, K], int64 [c, k], and where that many are not barred.

    barred: bool [c, p], which pairs are no neighbours. Distances are those of all pairs: with tens of components no
    tree of cells is faster.
    """
    distance = (pool**2).sum(1) - 2 * (components @ pool.T)  # less the length of each cell itself
    distance[barred] = np.inf
    k = min(k, distance.shape[1])
    found = np.argpartition(distance, k - 1, 1)[:, :k]
    return found, np.isfinite(np.take_along_axis(distance, found, 1))


def may_be_neighbours(cells: np.ndarray, seed: int) -> np.ndarray:
    """Return the cells [c] that may be neighbours, at most 20,000 drawn by seed."""
    return np.sort(np.random.default_rng(seed).permutation(cells)[:MOST_IN_POOL])


def find_neighbours(
    forms: OffsetForms, packer: Packer, cells: np.ndarray, training: np.ndarray, groups: np.ndarray | None,
    k: int, seed: int,
) -> Neighbours:  # fmt: skip
    """Find k neighbours of each of the cells among training cells and among these cells themselves, as packed.

    cells, training: int64, rows of the store; groups: of all cells of the store, where there are groups.
    """
    pool = np.union1d(may_be_neighbours(training, seed), may_be_neighbours(cells, seed))
    every = np.union1d(pool, cells)
    components = np.concatenate([components_of(forms, forms.of_cells(batch).x) for batch in _batches(packer, every)])
    among = components[np.searchsorted(every, pool)]
    size, k = int(every.max()) + 1, min(k, len(pool))
    table, shown = np.full((size, k), -1), np.zeros(size, bool)
    for part in np.array_split(cells, -(-len(cells) // 512)):
        barred = part[:, None] == pool
        found, there = nearest(components[np.searchsorted(every, part)], among, barred, k)
        table[part, : found.shape[1]] = np.where(there, pool[found], -1)
    shown[training] = True
    return Neighbours(table, shown, groups)


def _batches(packer: Packer, cells: np.ndarray) -> Iterable[Batch]:
    lengths = np.zeros(int(cells.max()) + 1, np.int64)
    lengths[cells] = detected_in(packer.view, packer.vocabulary, cells)
    return (packer(part) for part in batches_by_tokens(cells, lengths, _BATCH_TOKENS))
