"""Counts as bytes that compress well: gaps between the genes of a cell in one byte, counts in half a byte.

A gap is the number of genes that are skipped, a count is stored less one. Where a gap is 255 or more, or a count less
one is 15 or more, that largest number stands in its place, and what is above it stands behind all of them, seven bits
to a byte with the lowest first, as LEB128 has it. Of two counts in a byte the first is the lower half.
"""

import numpy as np
from numba import njit

_GAP, _COUNT = 255, 15  # the largest numbers that stand in their place
_LONGEST = 5  # bytes of what stands behind, for 32 bits
_options = {"nogil": True, "cache": True, "error_model": "numpy"}


def pack_entries(indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gaps and the counts of cells as bytes, uint8 each.

    indptr: int64 [C + 1]; genes [nnz], not negative and rising within a cell; counts [nnz], from 1 to 2^32 - 1.
    """
    nonzeros, skipped = len(genes), (len(indptr) - 1) * int(genes.max(initial=0))
    gaps = np.empty(nonzeros + _LONGEST * min(nonzeros, skipped // _GAP), np.uint8)
    halves = np.zeros((nonzeros + 1) // 2 + _LONGEST * int((counts > _COUNT).sum()), np.uint8)
    n_gaps, n_halves = _pack(indptr, genes, counts, gaps, halves)
    return gaps[:n_gaps], halves[:n_halves]


def unpack_entries(
    indptr: np.ndarray, packed: tuple[np.ndarray, np.ndarray], genes: np.ndarray, counts: np.ndarray, n_genes: int
) -> tuple[int, int] | None:
    """Write genes and counts [nnz] that were packed, and return their sums.

    None where the bytes cannot be what `pack_entries` gives: there are more or fewer, or a gene is `n_genes` or above.
    Whatever they are, nothing outside of the arrays is read or written.
    """
    nonzeros, (gaps, halves) = int(indptr[-1]), packed
    if len(genes) != nonzeros or len(counts) != nonzeros or len(gaps) < nonzeros or len(halves) < (nonzeros + 1) // 2:
        return None
    small = counts if counts.dtype == np.uint8 else np.empty(nonzeros, np.uint8)
    of_genes, of_counts = _unpack(indptr, gaps, halves, genes, small, counts, n_genes)
    return (int(of_genes), int(of_counts)) if min(of_genes, of_counts) >= 0 else None


@njit(**_options)
def _pack(indptr, genes, counts, gaps, halves):
    """Fill both arrays; `halves` is zero. Returns how many bytes of each are used."""
    n_gaps, n_halves = indptr[-1], (indptr[-1] + 1) // 2
    for cell in range(len(indptr) - 1):
        following = np.int64(0)
        for i in range(indptr[cell], indptr[cell + 1]):
            gap, count = np.int64(genes[i]) - following, np.int64(counts[i]) - 1
            following = np.int64(genes[i]) + 1
            gaps[i] = min(gap, _GAP)
            halves[i >> 1] |= min(count, _COUNT) << (4 * (i & 1))
            if gap >= _GAP:
                n_gaps = _append(gaps, n_gaps, gap - _GAP)
            if count >= _COUNT:
                n_halves = _append(halves, n_halves, count - _COUNT)
    return n_gaps, n_halves


@njit(**_options)
def _unpack(indptr, gaps, halves, genes, small, counts, n_genes):
    """Fill genes and counts, by way of `small`, which may be the counts; return their sums, -1 for what cannot be."""
    _unpack_halves(halves, small)
    if small.itemsize != counts.itemsize:
        counts[:] = small
    return _unpack_genes(indptr, gaps, genes, n_genes), _add_behind(halves, counts)


@njit(**_options)
def _append(array, place, number):
    """Write a number behind; return the place after it."""
    while number >= 128:
        array[place] = number & 127 | 128
        number >>= 7
        place += 1
    array[place] = number
    return place + 1


@njit(**_options)
def _take(array, place):
    """Return a number that stands at a place, and the place after it: -1 where there is none."""
    number, shift = np.int64(0), 0
    while place < len(array) and shift < 7 * _LONGEST:
        byte = np.int64(array[place])
        number |= (byte & 127) << shift
        shift += 7
        place += 1
        if byte < 128:
            return number, place
    return number, -1


@njit(**_options)
def _unpack_genes(indptr, gaps, genes, n_genes):
    """Add up the gaps of every cell; return the sum of all genes, -1 where bytes are left or a gene is too large."""
    place, total = indptr[-1], np.int64(0)
    for cell in range(len(indptr) - 1):
        gene, cell_genes = np.int64(-1), genes[indptr[cell] : indptr[cell + 1]]
        for i, gap in enumerate(gaps[indptr[cell] : indptr[cell + 1]]):
            step = np.int64(gap) + 1
            if gap == _GAP:
                more, place = _take(gaps, place)
                if place < 0:
                    return -1
                step += more
            gene += step
            cell_genes[i] = gene
            total += gene
        if gene >= n_genes:
            return -1
    return total if place == len(gaps) else -1


@njit(**_options)
def _unpack_halves(halves, counts):
    """Write the small counts, uint8. Both of a byte are written as one number, which compilers make vectors of."""
    n = len(counts)
    pairs = counts[: n // 2 * 2].view(np.uint16)
    for i, both in enumerate(halves[: n // 2]):
        pair = np.uint16(both)  # the lower half goes to the lower byte, which stands first
        pairs[i] = ((pair & np.uint16(15)) | ((pair & np.uint16(240)) << np.uint16(4))) + np.uint16(257)
    if n % 2:
        counts[n - 1] = (halves[n // 2] & _COUNT) + 1


@njit(**_options)
def _add_behind(halves, counts):
    """Add to the largest of the small counts what stands behind; return the sum, -1 unless all bytes are used."""
    place, total = (len(counts) + 1) // 2, np.int64(0)
    for i, count in enumerate(counts):
        total += np.int64(count)
        if count == _COUNT + 1:
            more, place = _take(halves, place)
            if place < 0:
                return -1
            counts[i] = more + _COUNT + 1
            if np.int64(counts[i]) != more + _COUNT + 1:  # the type is too narrow
                return -1
            total += more
    return total if place == len(halves) else -1
