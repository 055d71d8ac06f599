"""Token states in plain torch: the specification that the other engines are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embed_reference(
    genes: Tensor,
    cells: Tensor,
    scalars: tuple[Tensor, Tensor, Tensor, Tensor],
    tables: tuple[Tensor, ...],
    ranges: list[float],
) -> Tensor:
    """Return the states [T, E] by the formula of `sckit.kernels.embed.embed`.

    Shapes: genes, cells and scalars [T]; tables as in `EmbedTables`; ranges: low and high of `value_range`, then of
    `expected_range`.
    Differentiable by torch's own autograd; rows are taken by F.embedding, whose gradient adds in a fixed order.
    """
    values, residual, expected, hidden = scalars
    values, residual = values.masked_fill(hidden, 0), residual.masked_fill(hidden, 0)  # whatever they are, even NaN
    gene, cell, curve, expected_curve, residual_vector, hidden_vector = tables
    seen = _curve(values, curve, *ranges[:2]) + residual[:, None].to(residual_vector.dtype) * residual_vector
    h = F.embedding(genes, gene) + F.embedding(cells, cell) + _curve(expected, expected_curve, *ranges[2:])  # [T, E]
    return h + torch.where(hidden[:, None], hidden_vector, seen)


def _curve(values: Tensor, table: Tensor, low: float, high: float) -> Tensor:
    """Return the piecewise-linear function of values [T] with evenly spaced knots table [knots, E]; flat outside."""
    values = values.to(torch.promote_types(values.dtype, table.dtype))
    at = ((values - low) / (high - low)).clamp(0, 1) * (len(table) - 1)
    row = at.nan_to_num(0).long().clamp(max=len(table) - 2)  # the weight carries NaN
    return torch.lerp(F.embedding(row, table), F.embedding(row + 1, table), (at - row).to(table.dtype)[:, None])
