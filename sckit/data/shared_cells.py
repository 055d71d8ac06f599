"""Cells of one store that are in another, told by their counts and not by their names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sckit.data.genes import GeneIndex
from sckit.data.store import Store
from sckit.data.views import as_matrix, in_blocks
from sckit.kernels.hashing import mix

_FEW = 20  # detected genes: with fewer, different cells have the same counts by chance
_BLOCK_CELLS = 1024


class SameCells(NamedTuple):
    """What is known of C cells, bool [C] each."""

    found: np.ndarray  # a cell of the other store has the same counts
    compared: np.ndarray  # the cell has enough detected genes to tell


def same_cells(store: Store, cells: np.ndarray, other: Store, others: np.ndarray) -> SameCells:
    """Find those of the cells [C] of a store that are among the cells `others` of another store.

    Two cells are the same if their counts are equal on all genes that both stores have, matched by id, then symbol;
    names, totals and genes that only one store has do not matter. Cells with fewer than 20 detected genes among the
    common ones are not compared, because different cells match by chance there.
    """
    number = GeneIndex(other.genes["id"], other.genes["symbol"]).match(store.genes["id"], store.genes["symbol"])
    mine = np.flatnonzero(number >= 0)
    theirs = number[mine]
    # The hash of a cell is the sum of its counts, each times the random number of its gene, modulo 2^64.
    weight, other_weight = np.zeros(store.n_genes, np.uint64), np.zeros(other.n_genes, np.uint64)
    weight[mine] = other_weight[theirs] = mix(np.arange(len(mine), dtype=np.uint64))
    compared = _detected(store, cells, number >= 0) >= _FEW
    keys, found = _hashes(store, cells, weight), np.zeros(len(cells), bool)
    wanted = np.unique(keys[compared])
    if not len(wanted):
        return SameCells(found, compared)
    partner = np.full(len(wanted), -1)
    for block in in_blocks(others, _BLOCK_CELLS):
        hashes = _hashes(other, block, other_weight)
        place = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        hit = wanted[place] == hashes
        partner[place[hit]] = block[hit]  # of several with one hash any: that they differ has a chance of 2^-64
    candidates = np.flatnonzero(compared)
    match = partner[np.searchsorted(wanted, keys[candidates])]
    candidates, match = candidates[match >= 0], match[match >= 0]
    for block in in_blocks(np.arange(len(match)), _BLOCK_CELLS):
        counts = as_matrix(store.rows(cells[candidates[block]]), store.n_genes)[:, mine]
        other_counts = as_matrix(other.rows(match[block]), other.n_genes)[:, theirs]
        found[candidates[block]] = np.asarray((counts != other_counts).sum(1)).ravel() == 0
    return SameCells(found, compared)


def _hashes(store: Store, cells: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return counts times weights [G] uint64, summed per cell: uint64 [C]."""
    blocks = in_blocks(cells, _BLOCK_CELLS)
    parts = [as_matrix(store.rows(block), store.n_genes) @ weight for block in blocks]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _detected(store: Store, cells: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Count the detected genes of each cell among the `shared` ones [G]: int64 [C]."""
    parts = [np.zeros(0, np.int64)]
    for block in in_blocks(cells, _BLOCK_CELLS):
        indptr, genes, _counts = store.rows(block)
        parts.append(np.diff(np.concatenate(([0], np.cumsum(shared[genes])))[indptr]))
    return np.concatenate(parts)
