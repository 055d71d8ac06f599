"""The masked head on the CPU in float32: one pass over the targets forward, two backward."""

from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sckit.kernels.rows import RowPlan
from sckit.kernels.rows_numba import segment_sums
from sckit.kernels.threads import parameter_array, run_ranges

PART = 1024  # targets that share one sum of squared errors; fixed, so that the number of threads changes no sum


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _forward(h, bias, shared, weight, genes, rows, truth, prediction, squares, part, last_part):
    """Predict the targets of the parts and sum the squares of their errors; truth may be None."""
    for p in range(part, last_part):
        for m in range(p * PART, min((p + 1) * PART, len(bias))):
            g, row = genes[m], rows[m]
            total = np.float32(0.0)
            for e in range(h.shape[1]):
                total += h[row, e] * (shared[e] + weight[g, e])
            prediction[m] = bias[m] + total
            if truth is not None:
                squares[p] += np.float64(prediction[m] - truth[m]) ** 2


def head_forward(
    h: Tensor,
    bias: Tensor,
    shared: Tensor,
    weight: Tensor,
    genes: RowPlan,
    rows: RowPlan,
    truth: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the predictions [M] and their mean squared error, 0 without truth; float32 and contiguous."""
    prediction = torch.empty_like(bias)
    squares = np.zeros(-(-len(bias) // PART))
    arguments = [
        None if part is None else parameter_array(part)
        for part in (h, bias, shared, weight, genes.rows, rows.rows, truth, prediction)
    ]
    run_ranges(partial(_forward, *arguments, squares), len(squares))
    return prediction, torch.tensor(squares.sum() / max(len(bias), 1), dtype=torch.float32)


def head_backward(
    slope: Tensor, h: Tensor, shared: Tensor, weight: Tensor, genes: RowPlan, rows: RowPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of h, shared and weight from that of each prediction, [M]."""
    dh, _ = segment_sums(weight, rows, len(h), index=genes.rows, weights=slope, extra=shared)
    dweight, dshared = segment_sums(h, genes, len(weight), index=rows.rows, weights=slope, total=True)
    assert dshared is not None
    return dh, dshared, dweight
