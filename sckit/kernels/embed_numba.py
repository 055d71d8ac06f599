"""Token states on the CPU in float32: one pass over the tokens forward, two over their gradient backward."""

from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sckit.kernels.rows import RowPlan
from sckit.kernels.rows_numba import segment_sums
from sckit.kernels.threads import parameter_array, run_ranges

PART = 1024  # tokens that share one copy of the small tables' gradient; fixed, so that threads change no sum


@njit(nogil=True, error_model="numpy")
def _knot(value, low, high, knots):
    """Return the knot below the value and the weight of the one above."""
    at = (value - low) / (high - low)
    at = np.float32(0.0) if at < 0 else np.float32(1.0) if at > 1 else at
    at = at * np.float32(knots - 1)
    row = min(int(at), knots - 2) if at >= 0 else 0  # NaN, which the weight then carries
    return row, at - np.float32(row)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _forward(genes, cells, scalars, tables, ranges, out, first, last):
    """Write the states of the tokens from first to last."""
    values, residual, expected, hidden = scalars
    gene, cell, curve, expected_curve, residual_vector, hidden_vector = tables
    width = out.shape[1]
    for t in range(first, last):
        g, c = genes[t], cells[t]
        q, above = _knot(expected[t], ranges[2], ranges[3], len(expected_curve))
        below = np.float32(1.0) - above
        if hidden[t]:
            for e in range(width):
                curves = below * expected_curve[q, e] + above * expected_curve[q + 1, e]
                out[t, e] = gene[g, e] + cell[c, e] + curves + hidden_vector[e]
        else:
            v, upper = _knot(values[t], ranges[0], ranges[1], len(curve))
            lower, r = np.float32(1.0) - upper, residual[t]
            for e in range(width):
                curves = below * expected_curve[q, e] + above * expected_curve[q + 1, e]
                curves += lower * curve[v, e] + upper * curve[v + 1, e] + r * residual_vector[e]
                out[t, e] = gene[g, e] + cell[c, e] + curves


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _add(grad, t, a, a_row, a_weight, b, b_row, b_weight):
    """Add a token's gradient to two rows; beyond two, LLVM gives up comparing addresses and does not vectorise."""
    for e in range(grad.shape[1]):
        a[a_row, e] += a_weight * grad[t, e]
        b[b_row, e] += b_weight * grad[t, e]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _backward(grad, order, present, bounds, scalars, ranges, cell, small, starts, knots, part, last_part):
    """Sum the gradient of the cell rows and of the small tables over the cells of the parts.

    Part p holds the cells present[starts[p]:starts[p + 1]] and its own copy small[p] of both curves, the
    residual vector and the hidden vector, one below the other; knots: rows of the two curves.
    """
    values, residual, expected, hidden = scalars
    one = np.float32(1.0)
    for p in range(part, last_part):
        mine = small[p]
        for segment in range(starts[p], starts[p + 1]):
            for i in range(bounds[segment], bounds[segment + 1]):
                t = order[i]
                c = present[segment]
                q, above = _knot(expected[t], ranges[2], ranges[3], knots[1])
                q += knots[0]
                _add(grad, t, mine, q, one - above, mine, q + 1, above)
                if hidden[t]:
                    _add(grad, t, cell, c, one, mine, knots[0] + knots[1] + 1, one)
                else:
                    v, upper = _knot(values[t], ranges[0], ranges[1], knots[0])
                    _add(grad, t, mine, v, one - upper, mine, v + 1, upper)
                    _add(grad, t, cell, c, one, mine, knots[0] + knots[1], residual[t])


def embed_forward(
    genes: RowPlan, cells: RowPlan, scalars: tuple[Tensor, ...], tables: tuple[Tensor, ...], ranges: list[float]
) -> Tensor:
    """Return the states [T, E]; scalars and tables as in `sckit.kernels.embed`, float32 and contiguous."""
    out = tables[0].new_empty(len(genes.rows), tables[0].shape[1])
    arguments = (
        genes.rows.numpy(),
        cells.rows.numpy(),
        _arrays(scalars),
        tuple(map(parameter_array, tables)),
        np.array(ranges, np.float32),
        out.numpy(),
    )
    run_ranges(partial(_forward, *arguments), len(out))
    return out


def embed_backward(
    grad: Tensor, genes: RowPlan, cells: RowPlan, scalars: tuple[Tensor, ...], ranges: list[float], rows: list[int]
) -> tuple[Tensor, ...]:
    """Return the gradients of the six tables from that of the states; rows: of the first four tables."""
    width = grad.shape[1]
    curve, expected_curve = rows[2:]
    bounds = cells.bounds.numpy()
    starts = np.searchsorted(bounds, np.arange(0, len(grad) + PART, PART)).clip(max=len(bounds) - 1)
    cell = grad.new_zeros(rows[1], width)
    small = grad.new_zeros(len(starts) - 1, curve + expected_curve + 2, width)
    arguments = (
        grad.numpy(),
        cells.order.numpy(),
        cells.present.numpy(),
        bounds,
        _arrays(scalars),
        np.array(ranges, np.float32),
        cell.numpy(),
        small.numpy(),
        starts,
        (curve, expected_curve),
    )
    run_ranges(partial(_backward, *arguments), len(small))
    total = torch.from_numpy(small.numpy().sum(0))  # in the order of the parts
    gene, _ = segment_sums(grad, genes, rows[0])
    curves = [part.clone() for part in total[:-2].split(rows[2:])]
    return gene, cell, *curves, total[-2].clone(), total[-1].clone()


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(part.detach().numpy() for part in tensors)
