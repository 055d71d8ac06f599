"""The counts kernels in plain numpy: the specification that counts_numba is tested against, and the shared types."""

from typing import NamedTuple

import numpy as np

from sckit.kernels.hashing import GOLDEN, entry_uniform, mix

TARGET_SUM = 1e4
"""Values are log1p of counts per this many counts of the cell."""

_OUTSIDE = 2**32 - 1

Csr = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Counts of C cells: indptr int64 [C + 1], genes [nnz] and counts [nnz]."""


class Hide(NamedTuple):
    """Which entries `pack` hides: those whose hash with the key is below the rate of their cell."""

    key: int  # below 2^64
    rates: np.ndarray  # float64 [C]


class Packed(NamedTuple):
    """Detected genes of C cells as one row of T tokens, the visible ones first within each cell."""

    genes: np.ndarray  # int32 [T], numbers in the model
    values: np.ndarray  # float32 [T], log1p of counts per 10,000; 0 where hidden
    hidden: np.ndarray  # bool [T]
    offsets: np.ndarray  # int32 [C + 1]
    visible: np.ndarray  # int32 [C], number of visible tokens
    smallest: np.ndarray  # float32 [C], of the visible values; infinite where there are none
    left_out: np.ndarray  # int32 [C], entries of cells over max_genes
    targets: np.ndarray  # int64 [M], hidden tokens to predict, rising
    truth: np.ndarray  # float32 [M], their values


class Half(NamedTuple):
    """One of the two halves of each cell's molecules."""

    csr: Csr  # without zeros, types as given
    totals: np.ndarray  # int64 [C], at least 1


def normalise(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray) -> Csr:
    """Renumber the genes and turn counts into values; arguments and results as in `counts_numba.normalise`."""
    indptr, genes, counts = csr
    gene, values = vocabulary[genes], np.log1p(counts * np.repeat(TARGET_SUM / totals, np.diff(indptr)))
    known = gene >= 0
    return _before(known)[indptr], gene[known].astype(np.int32), values[known]


def cut(csr: Csr, cells: np.ndarray, key: int, *, vocabulary: np.ndarray, max_genes: int) -> Csr:
    """Keep at most max_genes genes of the vocabulary per cell; arguments and results as in `counts_numba.cut`."""
    indptr, genes, counts = csr
    keep = vocabulary[genes] >= 0
    for c in range(len(cells)):
        known = indptr[c] + np.flatnonzero(keep[indptr[c] : indptr[c + 1]])
        keep[known[np.argsort(entry_uniform(key, cells[c], genes[known]), kind="stable")[max_genes:]]] = False
    return _before(keep)[indptr], genes[keep], counts[keep]


def pack(
    csr: Csr,
    cells: np.ndarray,
    totals: np.ndarray,
    hide: Hide,
    *,
    vocabulary: np.ndarray,
    max_genes: int,
    scored: float = 1.0,
) -> Packed:
    """Pack the detected genes, visible ones first; arguments and results as in `counts_numba.pack`."""
    indptr, genes, counts = csr
    tokens = [(genes[:0], np.zeros(0), np.zeros(0), np.zeros(0, bool))]
    smallest, left_out = np.full(len(cells), np.inf), np.zeros(len(cells), np.int32)
    for c in range(len(cells)):
        span = slice(indptr[c], indptr[c + 1])
        known = vocabulary[genes[span]] >= 0
        stored, count = genes[span][known], counts[span][known]
        if len(stored) > max_genes:
            u = entry_uniform((hide.key + 1) % 2**64, cells[c], stored)
            chosen = np.sort(np.argsort(u, kind="stable")[:max_genes])
            left_out[c] = len(stored) - max_genes
            stored, count = stored[chosen], count[chosen]
        u = entry_uniform(hide.key, cells[c], stored)
        hidden = u < hide.rates[c]
        value = np.log1p(count * (TARGET_SUM / totals[c]))
        smallest[c] = value[~hidden].min(initial=np.inf)
        order = np.argsort(hidden, kind="stable")
        tokens.append((vocabulary[stored][order], value[order], u[order], hidden[order]))
    gene, value, u, hidden = (np.concatenate(x) for x in zip(*tokens, strict=True))
    targets = np.flatnonzero(hidden & (u < scored))
    return Packed(
        genes=gene.astype(np.int32),
        values=np.where(hidden, 0, value).astype(np.float32),
        hidden=hidden,
        offsets=_before(np.array([len(own) for own, *_ in tokens[1:]], np.int64)).astype(np.int32),
        visible=np.array([np.sum(~own) for *_, own in tokens[1:]], np.int32),
        smallest=smallest.astype(np.float32),
        left_out=left_out,
        targets=targets,
        truth=value[targets].astype(np.float32),
    )


def halve(
    csr: Csr, cells: np.ndarray, totals: np.ndarray, key: int, *, sizes: np.ndarray | None = None, second: bool = False
) -> Half:
    """Draw each molecule into one of two halves; arguments and results as in `counts_numba.halve`."""
    indptr, genes, counts = csr
    keys = mix(np.uint64(key) ^ mix(cells.astype(np.uint64)))
    states = np.repeat(keys, np.diff(indptr)) ^ genes.astype(np.uint64)
    whole = counts.astype(np.int64)
    if sizes is None:
        first = np.array([_ones(n, state) for n, state in zip(whole, states, strict=True)], np.int64)
    else:
        entries = zip(whole, sizes[genes], states, strict=True)
        first = np.array([_urn(n, size, state) for n, size, state in entries], np.int64)
    outside = totals - np.diff(_before(whole)[indptr])
    first_totals = np.diff(_before(first)[indptr])
    remainders = zip(outside, keys ^ np.uint64(_OUTSIDE), strict=True)
    first_totals += np.array([_ones(n, state) for n, state in remainders], np.int64)
    half, half_totals = (whole - first, totals - first_totals) if second else (first, first_totals)
    kept = half > 0
    csr = _before(kept)[indptr], genes[kept], half[kept].astype(counts.dtype)
    return Half(csr, np.maximum(half_totals, 1).astype(np.int64))


def entry_dot(of_gene: np.ndarray, genes: np.ndarray, of_cell: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the dot products of paired rows; arguments and result as in `counts_numba.entry_dot`."""
    return (of_gene[genes] * of_cell[cells]).sum(1)


def _before(entries: np.ndarray) -> np.ndarray:
    """Return the sum of the entries before each, and of all, int64 [nnz + 1]."""
    return np.concatenate([[0], np.cumsum(entries, dtype=np.int64)])


def _words(state: np.uint64, n: int) -> np.ndarray:
    """Return the first n words of the SplitMix64 stream that begins at a state."""
    with np.errstate(over="ignore"):
        return mix(state + np.arange(n, dtype=np.uint64) * GOLDEN)


def _ones(n: int, state: np.uint64) -> int:
    """Count the ones among the first n bits of a stream, the highest bit of a word first."""
    bits = np.unpackbits(_words(state, -(-n // 64)).astype(">u8").view(np.uint8)) if n > 0 else np.zeros(0, np.uint8)
    return int(bits[: max(n, 0)].sum())


def _urn(n: int, size: float, state: np.uint64) -> int:
    """Draw from Polya's urn: each molecule more likely joins the larger side; both start with size / 2."""
    ones = 0
    for drawn, u in enumerate((_words(state, n) >> np.uint64(11)) * 2.0**-53):
        ones += int(u * (size + drawn) < 0.5 * size + ones)
    return ones
