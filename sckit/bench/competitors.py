"""What a user could run instead of our attention: torch alone, and the GPU packages where they are installed.

Every competitor takes q, k, v [T, H, D] of packed cells and returns [T, H, D]; what is not installed, not for this
device or cannot hide keys is left out.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

Variant = Callable[[Tensor, Tensor, Tensor], Tensor]
BUCKET = 8


def competitors(lengths: list[int], keys: list[int], device: str) -> dict[str, Variant]:
    """Return the competitors by name for cells of so many tokens, the first so many of which are keys."""
    hidden = keys != lengths
    masks: list[Tensor | None] = [None] * len(lengths)
    if hidden:
        masks = [_seen(tokens, n, device) for tokens, n in zip(lengths, keys, strict=True)]

    def split(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _each_cell(scaled_dot_product_attention, q, k, v, lengths, masks)

    def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _each_cell(_matmul_softmax_matmul, q, k, v, lengths, masks)

    variants: dict[str, Variant] = {"torch-split": split, "torch-matmul": matmul}
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


def _on_gpu(lengths: list[int], keys: list[int], device: str) -> dict[str, Variant]:
    """Return the kernels for packed cells that other packages bring: FlashAttention, torch's own, FlexAttention."""
    variants: dict[str, Variant] = {"flex": _flex(lengths, keys, device)}
    if keys != lengths:
        return variants  # the others have no key prefix with oneself besides
    offsets = pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)).to(device)
    longest = max(lengths)
    if find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        variants["torch-varlen"] = lambda q, k, v: varlen_attn(q, k, v, offsets, offsets, longest, longest)  # type: ignore[return-value]
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        variants["flash-attn"] = lambda q, k, v: flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest)
    return variants


def _flex(lengths: list[int], keys: list[int], device: str) -> Variant:
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
