"""Counts kernels in Numba: the hash that hides entries, and the packing of detected genes."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def mix(x):
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _uniform(cell_key, gene):
    return (mix(cell_key ^ np.uint64(gene)) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def _pack(
    indptr,
    genes,
    counts,
    cells,
    totals,
    key,
    rates,
    vocabulary,
    max_genes,
    out_gene,
    out_value,
    out_u,
    offsets,
    visible,
):
    """Fill the outputs cell by cell; returns how many entries were cut from cells over max_genes."""
    cut = 0
    at = 0
    for c in range(cells.shape[0]):
        hide_key = mix(key ^ mix(np.uint64(cells[c])))
        length = 0
        for i in range(indptr[c], indptr[c + 1]):
            length += vocabulary[genes[i]] >= 0
        threshold = 2.0
        choose_key = mix((key + np.uint64(1)) ^ mix(np.uint64(cells[c])))
        if length > max_genes:
            draws = np.empty(length, np.float64)
            j = 0
            for i in range(indptr[c], indptr[c + 1]):
                if vocabulary[genes[i]] >= 0:
                    draws[j] = _uniform(choose_key, genes[i])
                    j += 1
            threshold = np.sort(draws)[max_genes]
            cut += length - max_genes
        scale = 1e4 / totals[c]
        # Two sweeps, visible then hidden, keep both groups in gene order without a scratch copy.
        for hidden in range(2):
            for i in range(indptr[c], indptr[c + 1]):
                gene = vocabulary[genes[i]]
                if gene < 0:
                    continue
                if threshold < 2.0 and _uniform(choose_key, genes[i]) >= threshold:
                    continue
                u = _uniform(hide_key, genes[i])
                if (u < rates[c]) == (hidden == 1):
                    out_gene[at] = gene
                    out_value[at] = np.log1p(counts[i] * scale)
                    out_u[at] = u
                    at += 1
            if hidden == 0:
                visible[c] = at - offsets[c]
        offsets[c + 1] = at
    return cut


def pack(
    csr: tuple, cells: np.ndarray, totals: np.ndarray, hide: tuple, *, vocabulary: np.ndarray, max_genes: int
) -> tuple:
    """Pack the detected genes of some cells into one row of tokens, visible ones first within each cell.

    csr: (indptr [C + 1], genes [nnz], counts [nnz]) of the cells; cells: [C] their numbers, part of the hash;
    totals: [C] counts a cell was divided by; hide: (key, rates [C]), an entry is hidden when its hash is below its
    cell's rate; vocabulary: [genes of the store] -> number of the model's gene or -1. A cell with more than max_genes
    tokens keeps a random max_genes of them. The hash takes the store's gene numbers, so two models with different
    vocabularies hide the same entries.

    Returns ((genes int32 [T], values float32 [T] in log1p of counts per 10,000, uniforms float32 [T]),
    offsets int32 [C + 1], n_visible int32 [C], number of entries cut).
    """
    indptr, genes, counts = csr
    key, rates = hide
    size = len(genes)
    out = np.empty(size, np.int32), np.empty(size, np.float32), np.empty(size, np.float32)
    offsets, visible = np.zeros(len(cells) + 1, np.int32), np.zeros(len(cells), np.int32)
    cut = _pack(
        indptr, genes, counts, cells, totals, np.uint64(key), rates, vocabulary, max_genes, *out, offsets, visible
    )
    used = int(offsets[-1])
    return tuple(x[:used] for x in out), offsets, visible, int(cut)
