"""The counts kernels in plain numpy: the specification that counts_numba is tested against."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): uint64 in, uint64 out, any shape."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def entry_uniform(key: int, cells: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """A uniform number in [0, 1) for every (cell, gene), a pure function of the key.

    key: non-negative int below 2^64; cells, genes: non-negative integers that broadcast. float64 of that shape.
    """
    cell_key = mix(np.uint64(key) ^ mix(np.asarray(cells).astype(np.uint64)))
    return (mix(cell_key ^ np.asarray(genes).astype(np.uint64)) >> np.uint64(11)) * 2.0**-53


def pack(
    csr: tuple, cells: np.ndarray, totals: np.ndarray, hide: tuple, *, vocabulary: np.ndarray, max_genes: int
) -> tuple:
    """Pack detected genes visible first; arguments and results as in `counts_numba.pack`."""
    indptr, genes, counts = csr
    key, rates = hide
    tokens, lengths, visible, cut = [], [], [], 0
    for c in range(len(cells)):
        span = slice(indptr[c], indptr[c + 1])
        known = vocabulary[genes[span]] >= 0
        stored, count = genes[span][known], counts[span][known]
        if len(stored) > max_genes:
            chosen = np.sort(np.argsort(entry_uniform(key + 1, cells[c], stored), kind="stable")[:max_genes])
            cut += len(stored) - max_genes
            stored, count = stored[chosen], count[chosen]
        u = entry_uniform(key, cells[c], stored)
        gene = vocabulary[stored]
        order = np.argsort(u < rates[c], kind="stable")
        value = np.log1p(count * (1e4 / totals[c]))
        tokens.append((gene[order], value[order], u[order]))
        lengths.append(len(gene))
        visible.append(int((u >= rates[c]).sum()))
    gene, value, u = (np.concatenate(x) for x in zip(*tokens, strict=True))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    packed = (gene.astype(np.int32), value.astype(np.float32), u.astype(np.float32))
    return packed, offsets, np.array(visible, np.int32), cut
