"""Attention in plain torch, one cell at a time: the specification that the other engines are tested against."""

import torch
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor, cells: Tensor) -> Tensor:
    """Return softmax(q k' / sqrt(D)) v of every cell over its first tokens and each query itself.

    Shapes: q, k, v and the result [T, H, D], any floating dtype; cells [C, 3] in any order: first token, tokens, keys.
    Differentiable by torch's own autograd.
    """
    rows = sorted(row for row in cells.tolist() if row[1])
    lengths = [tokens for _, tokens, _ in rows]
    # split and not slices: the gradient of every slice is a zero tensor as large as the whole batch
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), rows, strict=True)
    outputs = [_attend(q, k, v, keys) for q, k, v, (_, _, keys) in parts]
    return torch.cat(outputs) if outputs else (q + k + v)  # no tokens: an empty result that still has gradients


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: int) -> Tensor:
    """Attend within one cell, [L, H, D], to its first `keys` tokens and to oneself."""
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))  # [H, L, D]
    scores = q @ k.mT * q.shape[-1] ** -0.5  # [H, L, L]
    token = torch.arange(q.shape[1], device=q.device)
    seen = (token[None, :] < keys) | (token[None, :] == token[:, None])  # [L, L]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1)
