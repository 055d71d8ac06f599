"""Counts kernels in Numba: one loop over the entries of CSR counts where numpy makes a pass for every step.

All take CSR as (indptr int64 [C + 1], genes [nnz], counts [nnz]) with any integer types, run on one thread without the
GIL, and allocate nothing that grows with the number of genes. Random choices are hashes of (key, cell, gene), so a cell
gives the same result alone and in any batch.
"""

import numpy as np
from numba import njit

from sckit.kernels.counts_reference import TARGET_SUM, Csr, Half, Hide, Packed
from sckit.kernels.hashing import GOLDEN, entry_uniform
from sckit.kernels.located_numba import Located, fetch, genes_of, located

_OUTSIDE = np.uint64(2**32 - 1)  # a gene number that no store has, for a cell's counts in other genes
_TABLED = 16  # 96 % of the counts of PBMC are below; each of the others costs a logarithm


@njit(cache=True, nogil=True)
def mix(x):
    """Apply the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = np.uint64(x) + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _cell_key(key, cell):
    return mix(key ^ mix(np.uint64(cell)))


@njit(cache=True, nogil=True)
def _uniform(state):
    return (mix(state) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def _popcount(x):
    """Count the ones among 64 bits; LLVM makes one instruction of it."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def _table(scale, table):
    for count in range(len(table)):
        table[count] = np.log1p(count * scale)


@njit(cache=True, nogil=True, error_model="numpy")
def _normalise(indptr, genes, counts, totals, vocabulary, out_indptr, out_genes, out_values):
    at = 0
    table = np.empty(_TABLED)
    for c in range(len(totals)):
        scale = TARGET_SUM / totals[c]
        _table(scale, table)
        for i in range(indptr[c], indptr[c + 1]):
            gene = vocabulary[genes[i]]
            out_genes[at] = gene
            out_values[at] = table[counts[i]] if counts[i] < _TABLED else np.log1p(counts[i] * scale)
            at += gene >= 0
        out_indptr[c + 1] = at


def normalise(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray) -> Csr:
    """Renumber the genes, leave out those of number -1, and turn counts into values.

    totals: [C], above 0; vocabulary: [genes of the store] -> number of the model's gene or -1.
    Returns CSR with genes int32 and values float64, log1p of counts per 10,000.
    """
    indptr, genes = np.zeros(len(csr[0]), np.int64), np.empty(len(csr[1]), np.int32)
    values = np.empty(len(genes))
    _normalise(*csr, totals, vocabulary, indptr, genes, values)
    return indptr, genes[: indptr[-1]], values[: indptr[-1]]


def _thresholds(source: Located, cells: np.ndarray, key: int, vocabulary: np.ndarray, max_genes: int) -> np.ndarray:
    """Return the hash below which each cell's genes of the vocabulary are kept, float64 [C]; 1.0 keeps all.

    This is numpy, because few cells are over the limit and Numba needs seconds to compile a sort.
    """
    thresholds = np.ones(len(cells))
    for c in np.flatnonzero(source.places[:, 4] > max_genes):
        own = genes_of(source, int(c))
        own = own[vocabulary[own] >= 0]
        if len(own) > max_genes:
            thresholds[c] = np.partition(entry_uniform(key, cells[c], own), max_genes)[max_genes]
    return thresholds


@njit(cache=True, nogil=True)
def _cut(indptr, genes, counts, cells, key, vocabulary, thresholds, out_indptr, out_genes, out_counts):
    at = 0
    for c in range(len(cells)):
        cell_key = _cell_key(key, cells[c])
        for i in range(indptr[c], indptr[c + 1]):
            known = vocabulary[genes[i]] >= 0
            if thresholds[c] < 1.0:
                known &= _uniform(cell_key ^ np.uint64(genes[i])) < thresholds[c]
            out_genes[at], out_counts[at] = genes[i], counts[i]
            at += known
        out_indptr[c + 1] = at


def cut(csr: Csr, cells: np.ndarray, key: int, *, vocabulary: np.ndarray, max_genes: int) -> Csr:
    """Keep the genes of the vocabulary, and of a cell with more than max_genes of them a random max_genes.

    cells: [C], numbers of the cells, part of the hash; key: below 2^64; vocabulary: as in `normalise`.
    Returns CSR, types and gene numbers as given.
    """
    indptr, genes, counts = np.zeros(len(csr[0]), np.int64), np.empty_like(csr[1]), np.empty_like(csr[2])
    thresholds = _thresholds(located(csr), cells, key, vocabulary, max_genes)
    _cut(*csr, cells, np.uint64(key), vocabulary, thresholds, indptr, genes, counts)
    return indptr, genes[: indptr[-1]], counts[: indptr[-1]]


@njit(cache=True, nogil=True)
def _leave_out(genes, key, threshold, numbers):
    """Make the number of each gene -1 whose hash is not below a threshold, and return how many had another one."""
    left_out = 0
    for i in range(len(genes)):
        if numbers[i] >= 0 and _uniform(key ^ np.uint64(genes[i])) >= threshold:
            numbers[i] = -1
            left_out += 1
    return left_out


@njit(cache=True, nogil=True, error_model="numpy")
def _pack(places, cells, totals, key, rates, below, vocabulary, thresholds, genes, values, hidden, of_cells, found):
    """Fill the outputs cell by cell, and return the numbers of tokens and of targets.

    Loops that do one thing each, because compilers make vectors of all but one. of_cells: offsets, visible, smallest
    and left_out; found: targets and truth. A target is a hidden token whose hash is less than `below`.
    """
    offsets, visible, smallest, left_out = of_cells
    targets, truth = found
    longest = 0
    for c in range(len(cells)):
        longest = max(longest, places[c, 4])
    stored, counted = np.empty(longest, np.int32), np.empty(longest, np.uint32)
    of_gene, of_value, of_u = np.empty(longest, np.int32), np.empty(longest, np.float32), np.empty(longest)
    ordered, table = np.empty(longest, np.float32), np.empty(_TABLED)
    bits, smallest_bits = ordered.view(np.int32), smallest.view(np.int32)  # in the order of values, which are above 0
    n_targets = 0
    for c in range(len(cells)):
        of_genes, of_counts, gene_bytes, count_bytes, number = places[c]
        own_genes, own_counts = stored[:number], counted[:number]
        fetch(of_genes, gene_bytes, own_genes)
        fetch(of_counts, count_bytes, own_counts)
        hide_key, rate = _cell_key(key, cells[c]), rates[c]
        for i in range(number):
            of_u[i] = _uniform(hide_key ^ np.uint64(own_genes[i]))
        for i in range(number):
            of_gene[i] = vocabulary[own_genes[i]]
        if thresholds[c] < 1.0:
            left_out[c] = _leave_out(own_genes, _cell_key(key + np.uint64(1), cells[c]), thresholds[c], of_gene)
        scale = TARGET_SUM / totals[c]
        _table(scale, table)
        for i in range(number):
            count = own_counts[i]
            of_value[i] = table[count] if count < _TABLED else np.log1p(count * scale)
        known, shown = 0, 0
        for i in range(number):
            known += of_gene[i] >= 0
            shown += (of_gene[i] >= 0) & (of_u[i] >= rate)
        first = offsets[c]
        visible[c], offsets[c + 1] = shown, first + known
        at, at_hidden = 0, shown  # where the next token of the cell goes
        for i in range(number):
            if of_gene[i] >= 0:
                is_hidden = of_u[i] < rate
                to = at_hidden if is_hidden else at
                genes[first + to], ordered[to] = of_gene[i], of_value[i]
                at_hidden += is_hidden
                at += not is_hidden
        for j in range(shown):
            values[first + j], hidden[first + j] = ordered[j], False
        for j in range(shown, known):
            values[first + j], hidden[first + j] = 0, True
        lowest = smallest_bits[c]
        for j in range(shown):
            lowest = min(lowest, bits[j])
        smallest_bits[c] = lowest
        if below >= 1.0:
            for j in range(known - shown):
                targets[n_targets + j], truth[n_targets + j] = first + shown + j, ordered[shown + j]
            n_targets += known - shown
        else:
            j = shown
            for i in range(number):
                if of_gene[i] >= 0 and of_u[i] < rate:
                    if of_u[i] < below:
                        targets[n_targets], truth[n_targets] = first + j, ordered[j]
                        n_targets += 1
                    j += 1
    return offsets[-1], n_targets


def pack(
    source: Csr | Located,
    cells: np.ndarray,
    totals: np.ndarray,
    hide: Hide,
    *,
    vocabulary: np.ndarray,
    max_genes: int,
    scored: float = 1.0,
) -> Packed:
    """Pack the detected genes of some cells into one row of tokens, visible ones first within each cell.

    source: their counts, as CSR or where they lie; cells: [C], numbers of the cells, part of the hash; totals: [C],
    what the counts of a cell are divided by; vocabulary: [genes of the store], the number of the model's gene or -1;
    scored: hidden tokens with a hash below it are targets. A cell with more than max_genes tokens keeps a random
    max_genes of them. The hash takes the store's gene numbers, so two models with different vocabularies hide the same
    entries.
    """
    (key, rates), source = hide, source if isinstance(source, Located) else located(source)
    size, n = int(source.places[:, 4].sum()), len(cells)
    tokens = np.empty(size, np.int32), np.empty(size, np.float32), np.empty(size, bool)
    of_cells = np.zeros(n + 1, np.int32), np.zeros(n, np.int32), np.full(n, np.inf, np.float32), np.zeros(n, np.int32)
    found = np.empty(size, np.int64), np.empty(size, np.float32)
    # A key of its own: by the hash that hides, a cut cell would lose its visible entries first.
    thresholds = _thresholds(source, cells, (key + 1) % 2**64, vocabulary, max_genes)
    inputs = source.places, cells, totals, np.uint64(key), rates, float(scored), vocabulary, thresholds
    n_tokens, n_targets = _pack(*inputs, *tokens, of_cells, found)
    genes, values, hidden = (x[:n_tokens] for x in tokens)
    targets, truth = (x[:n_targets] for x in found)
    return Packed(genes, values, hidden, *of_cells, targets, truth)


@njit(cache=True, nogil=True)
def _binomial(n, state):
    """Count the ones among the first n bits of a SplitMix64 stream, which is exactly binomial(n, 1/2)."""
    ones = np.int64(0)
    while n > 64:
        ones += _popcount(mix(state))
        state += GOLDEN
        n -= 64
    return ones + _popcount(mix(state) >> np.uint64(64 - n)) if n > 0 else ones


@njit(cache=True, nogil=True)
def _urn(n, size, state):
    """Draw from Polya's urn, one uniform per molecule, which is exactly beta-binomial(n, size / 2, size / 2)."""
    ones = np.int64(0)
    for drawn in range(n):
        ones += _uniform(state) * (size + drawn) < 0.5 * size + ones
        state += GOLDEN
    return ones


@njit(cache=True, nogil=True)
def _halve(indptr, genes, counts, cells, totals, key, sizes, second, out_indptr, out_genes, out_counts, out_totals):
    at = 0
    for c in range(len(cells)):
        cell_key = _cell_key(key, cells[c])
        inside, first_total = np.int64(0), np.int64(0)
        for i in range(indptr[c], indptr[c + 1]):
            count = np.int64(counts[i])
            state = cell_key ^ np.uint64(genes[i])
            first = _urn(count, sizes[genes[i]], state) if len(sizes) else _binomial(count, state)
            inside += count
            first_total += first
            mine = count - first if second else first
            out_genes[at], out_counts[at] = genes[i], mine
            at += mine > 0
        first_total += _binomial(totals[c] - inside, cell_key ^ _OUTSIDE)
        out_totals[c] = max(totals[c] - first_total if second else first_total, 1)
        out_indptr[c + 1] = at


def halve(
    csr: Csr, cells: np.ndarray, totals: np.ndarray, key: int, *, sizes: np.ndarray | None = None, second: bool = False
) -> Half:
    """Draw each molecule into one of two halves and return one of them; the two halves add up to the counts.

    cells: [C], numbers of the cells, part of the hash; totals: [C], counts of the whole cells, of which those outside
    the entries are halved binomially; key: below 2^64; sizes: float64 [genes of the store], negative-binomial sizes
    above 0, for beta-binomial halves, which take some nanoseconds per molecule (without sizes one hash serves 64).
    """
    indptr, genes, counts = np.zeros(len(csr[0]), np.int64), np.empty_like(csr[1]), np.empty_like(csr[2])
    half_totals = np.empty(len(cells), np.int64)
    sizes = np.empty(0) if sizes is None else sizes
    _halve(*csr, cells, totals, np.uint64(key), sizes, second, indptr, genes, counts, half_totals)
    return Half((indptr, genes[: indptr[-1]], counts[: indptr[-1]]), half_totals)


@njit(cache=True, nogil=True)
def _entry_dot(of_gene, genes, of_cell, cells, out):
    for i in range(len(out)):
        total = 0.0
        for k in range(of_gene.shape[1]):
            total += of_gene[genes[i], k] * of_cell[cells[i], k]
        out[i] = total


def entry_dot(of_gene: np.ndarray, genes: np.ndarray, of_cell: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return each entry's dot product of its gene's and its cell's row: [G, k], [N], [C, k], [N] to float64 [N]."""
    out = np.empty(len(genes))
    _entry_dot(of_gene, genes, of_cell, cells, out)
    return out
