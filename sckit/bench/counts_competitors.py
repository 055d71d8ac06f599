"""What one would write with numpy, scipy or torch for the operations of `sckit bench counts`: the fastest that we know.

csr is (indptr int64 [C + 1], genes int32 [nnz], counts uint32 [nnz]); vocabulary int32 [G], -1 for genes left out.
"""

import warnings

import numpy as np
import scipy.sparse as sp
import torch

from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.hashing import mix

Csr = tuple[np.ndarray, np.ndarray, np.ndarray]

_TABLED = 16  # counts below have their logarithms in a table, one row a cell, as in sckit's own


def log_values(counts: np.ndarray, indptr: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return log1p of counts per 10,000, float64."""
    scale = TARGET_SUM / totals
    table = np.log1p(np.arange(_TABLED) * scale[:, None])
    first = np.repeat(np.arange(0, table.size, _TABLED), np.diff(indptr))
    values = table.ravel().take(first + np.minimum(counts, np.uint32(_TABLED - 1)))
    large = np.flatnonzero(counts >= _TABLED)
    values[large] = np.log1p(counts[large] * scale[first[large] // _TABLED])
    return values


def normalise_numpy(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray) -> Csr:
    """Renumber, take the known, look the logarithms up."""
    indptr, genes, counts = csr
    gene = vocabulary.take(genes)
    at = np.flatnonzero(gene >= 0)
    kept = np.searchsorted(at, indptr)
    return kept, gene.take(at), log_values(counts.take(at), kept, totals)


def normalise_scipy(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray) -> Csr:
    """The same, with columns of a sparse matrix."""
    indptr, genes, counts = csr
    matrix = sp.csr_array((counts, genes, indptr), (len(totals), len(vocabulary)))
    matrix = sp.csr_array(matrix[:, np.flatnonzero(vocabulary >= 0)])
    return matrix.indptr, matrix.indices, log_values(matrix.data, matrix.indptr, totals)


def normalise_torch(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray) -> Csr:
    """The same in torch."""
    indptr, genes, counts = (torch.from_numpy(part) for part in (*csr[:2], csr[2].view(np.int32)))
    gene = torch.from_numpy(vocabulary).index_select(0, genes)
    at = (gene >= 0).nonzero().flatten()
    kept = torch.searchsorted(at, indptr)
    count = counts.index_select(0, at)
    scale = TARGET_SUM / torch.from_numpy(totals)
    table = torch.log1p(torch.arange(_TABLED) * scale[:, None]).flatten()
    first = torch.repeat_interleave(torch.arange(0, len(table), _TABLED, dtype=torch.int32), kept.diff())
    values = table.index_select(0, first + count.clamp(max=_TABLED - 1))
    large = (count >= _TABLED).nonzero().flatten()
    values[large] = torch.log1p(count[large] * scale[first[large] // _TABLED])
    return kept.numpy(), gene.index_select(0, at).numpy(), values.numpy()


def cut_numpy(csr: Csr, vocabulary: np.ndarray) -> Csr:
    """Right for cells none of which has too many genes."""
    indptr, genes, counts = csr
    return _taken(np.flatnonzero(vocabulary.take(genes) >= 0), indptr, genes, counts)


def pack_numpy(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray, key: int, rate: float) -> tuple:
    """The whole batch at once, where the reference goes cell by cell; no cell may have too many genes."""
    indptr, genes, counts = csr
    gene = vocabulary.take(genes)
    at = np.flatnonzero(gene >= 0)
    offsets = np.searchsorted(at, indptr)
    keys = mix(np.uint64(key) ^ mix(np.arange(len(totals), dtype=np.uint64)))
    u = (mix(np.repeat(keys, np.diff(offsets)) ^ genes.take(at).astype(np.uint64)) >> np.uint64(11)) * 2.0**-53
    shown, hidden = np.flatnonzero(u >= rate), np.flatnonzero(u < rate)
    before = np.searchsorted(shown, offsets)  # visible ones before each cell
    visible = np.diff(before)
    order = np.empty_like(at)
    order[np.repeat((offsets - before)[:-1], visible) + np.arange(len(shown))] = shown
    order[np.repeat(before[1:], np.diff(offsets) - visible) + np.arange(len(hidden))] = hidden
    values = log_values(counts.take(at), offsets, totals).astype(np.float32)
    packed = gene.take(at.take(order)), values.take(order), u.astype(np.float32).take(order)
    return packed, offsets, visible, 0


def split_numpy(csr: Csr, generator: np.random.Generator) -> Csr:
    """Ones among as many fresh bits as there are molecules, up to 64; numpy draws more by itself."""
    indptr, genes, counts = csr
    return _nonzero(_halves(counts, generator), indptr, genes)


def split_urn_numpy(csr: Csr, generator: np.random.Generator, size: float) -> Csr:
    """Binomial with the probability from a beta law; a single molecule goes either way."""
    indptr, genes, counts = csr
    first = (generator.bit_generator.random_raw(len(counts)) >> np.uint64(63)).astype(np.uint32)
    more = np.flatnonzero(counts > 1)
    first[more] = generator.binomial(counts[more], generator.beta(size / 2, size / 2, len(more)))
    return _nonzero(first, indptr, genes)


def split_torch(csr: Csr) -> Csr:
    """The draws of torch.binomial."""
    indptr, genes, counts = csr
    draws = torch.binomial(torch.from_numpy(counts.view(np.int32)).float(), torch.full((len(counts),), 0.5))
    return _nonzero(draws.to(torch.int32).numpy().view(np.uint32), indptr, genes)


def dot_numpy(csr: Csr, of_gene: np.ndarray, of_cell: np.ndarray) -> np.ndarray:
    """The cell's row times the rows of its genes, cell by cell."""
    indptr, genes, _ = csr
    out = np.empty(len(genes))
    for c, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)):
        out[begin:end] = of_gene[genes[begin:end]] @ of_cell[c]
    return out


def dot_torch(csr: Csr, of_gene: np.ndarray, of_cell: np.ndarray) -> np.ndarray:
    """The product of the two matrices, at the entries only."""
    indptr, genes, _ = (torch.from_numpy(part) for part in (csr[0].astype(np.int32), *csr[1:]))
    entries = torch.zeros(len(genes), dtype=torch.float64)
    shape = len(of_cell), len(of_gene)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that the format is in beta
        pattern = torch.sparse_csr_tensor(indptr, genes, entries, shape, check_invariants=False)
    cells, transposed = torch.from_numpy(of_cell), torch.from_numpy(of_gene).T
    return torch.sparse.sampled_addmm(pattern, cells, transposed, beta=0.0).values().numpy()


def _halves(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if not hasattr(np, "bitwise_count"):  # numpy before 2
        return generator.binomial(counts, 0.5)
    bits = generator.bit_generator.random_raw(len(counts))
    first = np.bitwise_count(bits >> (np.uint64(64) - np.minimum(counts, np.uint32(64)))).astype(counts.dtype)
    large = np.flatnonzero(counts > 64)
    first[large] = generator.binomial(counts[large], 0.5)
    return first


def _nonzero(first: np.ndarray, indptr: np.ndarray, genes: np.ndarray) -> Csr:
    return _taken(np.flatnonzero(first), indptr, genes, first)


def _taken(at: np.ndarray, indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> Csr:
    return np.searchsorted(at, indptr), genes.take(at), counts.take(at)
