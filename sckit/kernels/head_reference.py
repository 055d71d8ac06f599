"""The masked head in plain torch: the specification that the other engines are tested against."""

import torch.nn.functional as F
from torch import Tensor


def head_reference(
    h: Tensor, bias: Tensor, shared: Tensor, weight: Tensor, genes: Tensor, rows: Tensor | None
) -> Tensor:
    """Return bias + <h[rows], shared + weight[genes]>, [M], in the dtype of the weights.

    Shapes: h [T, E] of any floating dtype, or [M, E] without rows; bias, genes and rows [M]; shared [E]; weight [G, E].
    Differentiable by torch's own autograd; rows are taken by F.embedding, whose gradient adds in a fixed order.
    """
    taken = h if rows is None else F.embedding(rows, h)  # [M, E]
    return bias + (taken.to(weight.dtype) * (shared + F.embedding(genes, weight))).sum(1)
