"""Halving each cell's molecules into A and B: a technical replicate made from the data themselves."""

import numpy as np

from sckit.data.batch import Batch
from sckit.data.store import Store
from sckit.data.views import cell_of_entry, in_blocks
from sckit.kernels.counts_numba import halve
from sckit.kernels.counts_reference import TARGET_SUM, Csr, Half
from sckit.kernels.hashing import mix

_BLOCK_CELLS = 1024
_HALVES = np.uint64(2**64 - 1)  # where hiding has the epoch: no entry is halved by the hash that hides it
_MAX_SIZE = 1e4  # counts of a gene of this size are Poisson to any practical precision


class Halves:
    """The A halves of a store's cells as a view of counts; `other` gives the B halves.

    Halving by binomial draws makes the halves of a Poisson count independent. The halves of an overdispersed count
    still share its excess; beta-binomial draws with the gene's own size make the halves of a negative-binomial count
    independent given the cell's mean (Neufeld, Popp, Gao, Battle, Witten 2023). Draws are hashes of (seed, cell, gene),
    so the order of the cells does not matter.
    """

    def __init__(self, store: Store, seed: int, sizes: np.ndarray | None = None) -> None:
        """Take the negative-binomial size of each gene of the store, from `nb_sizes`, or None for binomial draws."""
        self._store, self._sizes = store, sizes
        self._key = int(mix(mix(np.array(seed, np.uint64)) ^ _HALVES))
        self._kept: dict[bool, tuple[np.ndarray, Half]] = {}

    def rows(self, cells: np.ndarray) -> Csr:
        """CSR of the A halves; entries that came out zero are left out."""
        return self._half(cells, second=False).csr

    def other(self, cells: np.ndarray) -> Csr:
        """CSR of the B halves."""
        return self._half(cells, second=True).csr

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] of the A halves, at least 1."""
        return self._half(cells, second=False).totals

    def other_totals(self, cells: np.ndarray) -> np.ndarray:
        """Total counts [C] of the B halves, at least 1."""
        return self._half(cells, second=True).totals

    def _half(self, cells: np.ndarray, *, second: bool) -> Half:
        """Return one half; the last one is kept, because totals are asked for right after the rows."""
        kept = self._kept.get(second)
        if kept is None or not np.array_equal(kept[0], cells):
            csr, whole = self._store.rows(cells), self._store.totals(cells).astype(np.int64)
            half = halve(csr, cells, whole, self._key, sizes=self._sizes, second=second)
            kept = self._kept[second] = cells.copy(), half
        return kept[1]


def replicate_values(view: Halves, batch: Batch, vocabulary: np.ndarray) -> np.ndarray:
    """Return the B half's log1p of counts per 10,000 at the batch's targets, 0 where B has no count; float64 [M]."""
    indptr, genes, counts = view.other(batch.cells)
    totals = view.other_totals(batch.cells)
    width = int(vocabulary.max()) + 2
    cell = cell_of_entry(indptr)
    known = vocabulary[genes] >= 0
    entries = cell[known] * width + vocabulary[genes[known]]
    values = np.log1p(counts[known] * TARGET_SUM / totals[cell[known]])
    wanted = batch.target_cells * width + batch.genes[batch.targets]
    order = np.argsort(entries, kind="stable")
    at = np.searchsorted(entries, wanted, sorter=order)
    found = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(wanted), np.int64)
    hit = (at < len(order)) & (entries[found] == wanted) if len(order) else np.zeros(len(wanted), bool)
    return np.where(hit, values[found] if len(order) else 0.0, 0.0)


def nb_sizes(store: Store, cells: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Estimate the negative-binomial size of each gene of the store by moments within clusters of like cells, capped.

    clusters: number of each cell's cluster [len(cells)]. A cell's mean m is its total times the share of the gene in
    its cluster, and E[(x - m)^2 - m] = m^2 / size. Over all cells at once the differences between cell types would
    count as noise, and halving would take them out of the replicate.
    """
    totals = store.totals(cells).astype(np.float64)
    count = int(clusters.max()) + 1
    pooled, squared_totals = np.bincount(clusters, totals), np.bincount(clusters, totals**2)
    sums, squares, weighted = (np.zeros((count, store.n_genes)) for _ in range(3))
    for part in in_blocks(np.arange(len(cells)), _BLOCK_CELLS):
        indptr, genes, counts = store.rows(cells[part])
        x, cell = counts.astype(np.float64), cell_of_entry(indptr)
        at = clusters[part][cell] * store.n_genes + genes
        for table, values in ((sums, x), (squares, x * x), (weighted, x * totals[part][cell])):
            table += np.bincount(at, values, minlength=table.size).reshape(table.shape)
    share = sums / np.maximum(pooled, 1)[:, None]
    # sum over cells of (x - m)^2 - m with m = share * total, and of m^2
    excess = (squares - 2 * share * weighted + share**2 * squared_totals[:, None] - sums).sum(0)
    means = (share**2 * squared_totals[:, None]).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(excess > 0, means / excess, _MAX_SIZE)
    return np.clip(size, 1e-3, _MAX_SIZE)
