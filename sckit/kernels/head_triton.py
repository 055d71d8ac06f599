"""The masked head on the GPU: one kernel forward, sums over segments backward."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportCallIssue=false
# (Triton's language looks like Python but is typed by its own compiler)

import torch
import triton
import triton.language as tl
from torch import Tensor

from sckit.kernels.rows import RowPlan
from sckit.kernels.rows_triton import segment_sums, strip_of

TILE = 32  # targets of a program


@triton.jit(do_not_specialize=["targets"])  # every batch has another number
def _forward_kernel(
    H, BIAS, SHARED, WEIGHT, GENES, ROWS, TRUTH, PREDICTION, SQUARES, targets,
    E: tl.constexpr, B: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Predict M targets and sum the squares of their errors; TRUTH may be None."""
    target = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    live = target < targets
    gene = tl.load(GENES + target, mask=live, other=0).to(tl.int64)
    row = tl.load(ROWS + target, mask=live, other=0).to(tl.int64)
    sums = tl.zeros([M, B], tl.float32)
    for strip in range(0, E, B):
        column = strip + tl.arange(0, B)
        mask = live[:, None] & (column < E)[None, :]
        h = tl.load(H + row[:, None] * E + column[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(WEIGHT + gene[:, None] * E + column[None, :], mask=mask, other=0.0)
        sums += h * (weight + tl.load(SHARED + column, mask=column < E, other=0.0)[None, :])
    prediction = tl.load(BIAS + target, mask=live, other=0.0) + tl.sum(sums, 1)
    tl.store(PREDICTION + target, prediction, mask=live)
    if TRUTH is not None:
        error = prediction - tl.load(TRUTH + target, mask=live, other=0.0)
        tl.store(SQUARES + tl.program_id(0), tl.sum(tl.where(live, error * error, 0.0), 0))


def head_forward(
    h: Tensor,
    bias: Tensor,
    shared: Tensor,
    weight: Tensor,
    genes: RowPlan,
    rows: RowPlan,
    truth: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the predictions [M] and their mean squared error, 0 without truth; contiguous, all float32 except h."""
    targets, width = len(bias), h.shape[1]
    programs = triton.cdiv(targets, TILE)
    prediction = torch.empty_like(bias)
    squares = bias.new_zeros(programs)
    with torch.cuda.device_of(h):
        _forward_kernel[(programs,)](
            h, bias, shared, weight, genes.rows, rows.rows, truth, prediction, squares, targets,
            E=width, B=strip_of(width), M=TILE, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return prediction, squares.sum() / max(targets, 1)


def head_backward(
    slope: Tensor, h: Tensor, shared: Tensor, weight: Tensor, genes: RowPlan, rows: RowPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of h, shared and weight from that of each prediction, [M]."""
    dh = segment_sums(weight, rows, torch.zeros_like(h), step=1, index=genes.rows, weights=slope, extra=shared)
    dweight = segment_sums(h, genes, torch.zeros_like(weight), step=8, index=rows.rows, weights=slope)
    return dh, dweight.sum(0), dweight
