"""What a user could run instead of sckit's kernels: for attention all that we know, for counts the fastest.

A competitor of attention takes q, k, v [T, H, D] of packed cells and returns [T, H, D]. For counts, csr is (indptr
int64 [C + 1], genes int32 [nnz], counts uint32 [nnz]) and vocabulary int32 [G], -1 for genes that are left out.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sckit.data.views import indptr_of
from sckit.kernels.counts_reference import TARGET_SUM, Csr
from sckit.kernels.hashing import mix

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
BUCKET = 8  # cells of like length that are padded together
_TABLED = 16  # counts below have their logarithms in a table, one row per cell, as in sckit's own kernel


def attention_competitors(lengths: list[int], keys: list[int], device: str) -> dict[str, Attend]:
    """Return the competitors by name for cells of these numbers of tokens, of which the first are keys.

    What is not installed, not for this device or cannot hide keys is left out.
    """
    hidden = keys != lengths
    masks = [_seen(*cell, device) if hidden else None for cell in zip(lengths, keys, strict=True)]
    variants: dict[str, Attend] = {
        "torch-split": lambda q, k, v: _each_cell(scaled_dot_product_attention, q, k, v, lengths, masks),
        "torch-matmul": lambda q, k, v: _each_cell(_matmul_softmax_matmul, q, k, v, lengths, masks),
    }
    if not hidden:
        order = np.argsort(lengths, kind="stable")
        buckets = [order[i : i + BUCKET].tolist() for i in range(0, len(order), BUCKET)]
        everything = [list(range(len(lengths)))]
        variants["torch-buckets"] = lambda q, k, v: _padded(q, k, v, lengths, buckets)
        variants["torch-padded"] = lambda q, k, v: _padded(q, k, v, lengths, everything)
    return variants if device == "cpu" else variants | _on_gpu(lengths, keys, device)


def _seen(tokens: int, keys: int, device: str) -> Tensor:
    """Return the mask of one cell, True where a query sees a key."""
    index = torch.arange(tokens, device=device)
    return (index[None, :] < keys) | (index[None, :] == index[:, None])  # [L, L]


def _each_cell(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, lengths: list[int], masks: list[Tensor | None]
) -> Tensor:
    """Attend cell by cell; split and not slices, whose gradients are as large as the batch for every cell."""
    parts = [whole.transpose(0, 1)[None].split(lengths, 2) for whole in (q, k, v)]  # [1, H, L, D] each
    out = [attend(*cell, attn_mask=mask) for cell, mask in zip(zip(*parts, strict=True), masks, strict=True)]
    return torch.cat(out, 2)[0].transpose(0, 1)


def _matmul_softmax_matmul(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ v


def _padded(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], groups: list[list[int]]) -> Tensor:
    """Attend in groups of cells padded to the longest of the group."""
    parts = [whole.split(lengths) for whole in (q, k, v)]
    out: list[Tensor] = [q] * len(lengths)
    for group in groups:
        tokens = torch.tensor([lengths[cell] for cell in group], device=q.device)
        mask = torch.arange(int(tokens.max()), device=q.device) < tokens[:, None, None, None]  # [B, 1, 1, L]
        dense = [
            torch.nn.utils.rnn.pad_sequence([part[cell] for cell in group], batch_first=True).transpose(1, 2)
            for part in parts
        ]  # [B, H, L, D]
        attended = scaled_dot_product_attention(*dense, attn_mask=mask).transpose(1, 2)  # [B, L, H, D]
        for row, cell in enumerate(group):
            out[cell] = attended[row, : lengths[cell]]
    return torch.cat(out)


def _on_gpu(lengths: list[int], keys: list[int], device: str) -> dict[str, Attend]:
    """Return the kernels for packed cells that other packages bring: FlashAttention, torch's own, FlexAttention."""
    from torch.nn.attention.varlen import varlen_attn

    variants: dict[str, Attend] = {"flex": _flex(lengths, keys, device)}
    if keys != lengths:
        return variants  # the others cannot give a hidden token its own key in addition to the prefix
    offsets, longest = torch.from_numpy(indptr_of(lengths)).to(device, torch.int32), max(lengths)
    variants["torch-varlen"] = lambda q, k, v: varlen_attn(q, k, v, offsets, offsets, longest, longest)  # type: ignore[return-value]
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        variants["flash-attn"] = lambda q, k, v: flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest)
    return variants


def _flex(lengths: list[int], keys: list[int], device: str) -> Attend:
    """Return FlexAttention, compiled, with its block mask made at the first call, before the clock starts."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # its limit of compilations counts those of other cases, and then it runs eagerly
    tokens = torch.tensor(lengths, device=device)
    cell = torch.repeat_interleave(torch.arange(len(lengths), device=device), tokens)  # [T]
    start = tokens.cumsum(0) - tokens
    is_key = torch.arange(len(cell), device=device) - start[cell] < torch.tensor(keys, device=device)[cell]  # [T]

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((cell[query] == cell[key]) & is_key[key]) | (query == key)

    compiled: Any = torch.compile(flex_attention, dynamic=False)

    @cache
    def mask() -> Any:
        return create_block_mask(sees, None, None, len(cell), len(cell), device=device, _compile=True)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled(*(part.transpose(0, 1)[None] for part in (q, k, v)), block_mask=mask())  # [1, H, T, D]
        return out[0].transpose(0, 1)

    return attend


def totals_torch(csr: Csr) -> np.ndarray:
    """Return the sum of each cell's counts."""
    values = torch.from_numpy(csr[2].astype(np.float64))
    return torch.segment_reduce(values, "sum", offsets=torch.from_numpy(csr[0])).numpy()


def moments_torch(csr: Csr, totals: np.ndarray, n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each gene's counts per TARGET_SUM."""
    indptr, genes, counts = csr
    values = torch.from_numpy(counts * np.repeat(TARGET_SUM / totals, np.diff(indptr)))
    empty = torch.zeros(n_genes, dtype=torch.float64)
    total, squares = (empty.index_add(0, torch.from_numpy(genes), x).numpy() for x in (values, values * values))
    n_cells = len(totals)
    mean = total / n_cells
    return mean, np.maximum(squares - n_cells * mean**2, 0) / (n_cells - 1)


def normalise_numpy(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray) -> Csr:
    """Renumber the genes, keep those of the model and look up their logarithms."""
    indptr, genes, counts = csr
    gene = vocabulary.take(genes)
    at = np.flatnonzero(gene >= 0)
    kept = np.searchsorted(at, indptr)
    return kept, gene.take(at), _log_values(counts.take(at), kept, totals)


def _log_values(counts: np.ndarray, indptr: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return log1p of counts per 10,000, float64."""
    scale = TARGET_SUM / totals
    table = np.log1p(np.arange(_TABLED) * scale[:, None])
    first = np.repeat(np.arange(0, table.size, _TABLED), np.diff(indptr))
    values = table.ravel().take(first + np.minimum(counts, np.uint32(_TABLED - 1)))
    large = np.flatnonzero(counts >= _TABLED)
    values[large] = np.log1p(counts[large] * scale[first[large] // _TABLED])
    return values


def cut_numpy(csr: Csr, vocabulary: np.ndarray) -> Csr:
    """Keep the genes of the model; right only where no cell has more than the limit."""
    indptr, genes, counts = csr
    return _taken(np.flatnonzero(vocabulary.take(genes) >= 0), indptr, genes, counts)


def pack_numpy(csr: Csr, totals: np.ndarray, vocabulary: np.ndarray, key: int, rate: float) -> tuple:
    """Pack the whole batch at once, where the reference goes cell by cell; no cell may be over the limit."""
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
    values = _log_values(counts.take(at), offsets, totals).astype(np.float32)
    smallest = np.full(len(totals), np.inf, np.float32)
    seen = visible > 0
    smallest[seen] = np.minimum.reduceat(values.take(shown), before[:-1][seen])
    values = values.take(order)
    is_hidden = (u < rate).take(order)
    targets = np.flatnonzero(is_hidden)
    truth = values.take(targets)
    values[targets] = 0
    tokens = gene.take(at.take(order)), values, is_hidden
    return *tokens, offsets, visible, smallest, np.zeros(len(totals)), targets, truth


def halve_numpy(csr: Csr, generator: np.random.Generator) -> Csr:
    """Count the ones among as many fresh bits as there are molecules, up to 64; numpy draws larger counts."""
    indptr, genes, counts = csr
    if hasattr(np, "bitwise_count"):
        bits = generator.bit_generator.random_raw(len(counts))
        first = np.bitwise_count(bits >> (np.uint64(64) - np.minimum(counts, np.uint32(64)))).astype(counts.dtype)
        large = np.flatnonzero(counts > 64)
        first[large] = generator.binomial(counts[large], 0.5)
    else:  # numpy before 2
        first = generator.binomial(counts, 0.5)
    return _taken(np.flatnonzero(first), indptr, genes, first)


def halve_urn_numpy(csr: Csr, generator: np.random.Generator, size: float) -> Csr:
    """Draw binomials with probabilities from a beta distribution; a single molecule goes either way."""
    indptr, genes, counts = csr
    first = (generator.bit_generator.random_raw(len(counts)) >> np.uint64(63)).astype(np.uint32)
    more = np.flatnonzero(counts > 1)
    first[more] = generator.binomial(counts[more], generator.beta(size / 2, size / 2, len(more)))
    return _taken(np.flatnonzero(first), indptr, genes, first)


def dot_torch(csr: Csr, of_gene: np.ndarray, of_cell: np.ndarray) -> np.ndarray:
    """Return the product of the two matrices at the entries only."""
    indptr, genes, _ = (torch.from_numpy(part) for part in (csr[0].astype(np.int32), *csr[1:]))
    entries = torch.zeros(len(genes), dtype=torch.float64)
    shape = len(of_cell), len(of_gene)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that the format is in beta
        pattern = torch.sparse_csr_tensor(indptr, genes, entries, shape, check_invariants=False)
    cells, transposed = torch.from_numpy(of_cell), torch.from_numpy(of_gene).T
    return torch.sparse.sampled_addmm(pattern, cells, transposed, beta=0.0).values().numpy()


def _taken(at: np.ndarray, indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> Csr:
    return np.searchsorted(at, indptr), genes.take(at), counts.take(at)
