"""Sums over the segments of a plan on the CPU, float32."""

from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sckit.kernels.rows import RowPlan
from sckit.kernels.threads import parameter_array, run_ranges

PART = 256  # segments that share one row of `totals`; fixed, so that the number of threads changes no sum


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _sum_parts(out, order, present, bounds, source, index, weights, extra, totals, part, last_part):
    """Sum the segments of the parts from `part` to `last_part`; index, weights, extra and totals may be None."""
    width = out.shape[1]
    line = np.empty(width, np.float32)  # so that `out` is written once and never read: its pages are fresh
    for p in range(part, last_part):
        for segment in range(p * PART, min((p + 1) * PART, len(present))):
            row = present[segment]
            out[present[segment - 1] + 1 if segment else 0 : row] = 0  # rows that no position took
            line[:] = 0
            for i in range(bounds[segment], bounds[segment + 1]):
                position = order[i]
                taken = position if index is None else index[position]
                weight = np.float32(1.0) if weights is None else weights[position]
                if extra is None:
                    for e in range(width):
                        line[e] += weight * source[taken, e]
                else:
                    for e in range(width):
                        line[e] += weight * (source[taken, e] + extra[e])
            for e in range(width):
                out[row, e] = line[e]
            if segment == len(present) - 1:
                out[row + 1 :] = 0
            if totals is not None:
                for e in range(width):
                    totals[p, e] += line[e]


def segment_sums(
    source: Tensor,
    plan: RowPlan,
    rows: int,
    *,
    index: Tensor | None = None,
    weights: Tensor | None = None,
    extra: Tensor | None = None,
    total: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return out [rows, E], out[r] = sum over the positions i of r of weights[i] * (source[index[i]] + extra).

    Shapes: source [*, E]; index [N], None for i itself; weights [N], None for 1; extra [E], None for 0. With `total`
    the sum of all rows [E] comes with it. Everything float32 and contiguous.
    """
    out = (source.new_empty if len(plan.present) else source.new_zeros)(rows, source.shape[1])
    parts = -(-len(plan.present) // PART)
    totals = source.new_zeros(parts, source.shape[1]) if total else None
    arrays = [out, plan.order, plan.present, plan.bounds, source, index, weights, extra, totals]
    arguments = [None if part is None else parameter_array(part) for part in arrays]
    run_ranges(partial(_sum_parts, *arguments), parts)
    return out, None if totals is None else torch.from_numpy(totals.numpy().sum(0))
