"""Sums over the segments of a plan on the GPU: one program owns one row, or a strip of it, so nothing is atomic."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportCallIssue=false
# (Triton's language looks like Python but is typed by its own compiler)

import torch
import triton
import triton.language as tl
from torch import Tensor

from sckit.kernels.rows import RowPlan

STRIP = 64  # columns of a program
WARPS = {1: 1, 8: 1, 32: 4}  # by positions taken in one step


@triton.jit
def _segment_kernel(
    OUT, ORDER, PRESENT, BOUNDS, SOURCE, INDEX, WEIGHTS, EXTRA,
    E: tl.constexpr, B: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write one strip of the sum over one segment; INDEX, WEIGHTS and EXTRA may be None."""
    segment = tl.program_id(0)
    column = tl.program_id(1) * B + tl.arange(0, B)
    inside = column < E
    first = tl.load(BOUNDS + segment)
    last = tl.load(BOUNDS + segment + 1)
    sums = tl.zeros([STEP, B], tl.float32)
    for i in range(first, last, STEP):
        live = i + tl.arange(0, STEP) < last
        position = tl.load(ORDER + i + tl.arange(0, STEP), mask=live, other=0)
        taken = position if INDEX is None else tl.load(INDEX + position, mask=live, other=0)
        at = taken.to(tl.int64)[:, None] * E + column[None, :]
        mask = live[:, None] & inside[None, :]
        rows = tl.load(SOURCE + at, mask=mask, other=0.0).to(tl.float32)
        if EXTRA is not None:
            rows += tl.load(EXTRA + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if WEIGHTS is not None:
            rows *= tl.load(WEIGHTS + position, mask=live, other=0.0)[:, None]
        sums += rows
    row = tl.load(PRESENT + segment).to(tl.int64)
    tl.store(OUT + row * E + column, tl.sum(sums, 0).to(OUT.dtype.element_ty), mask=inside)


def segment_sums(
    source: Tensor,
    plan: RowPlan,
    out: Tensor,
    *,
    step: int,
    index: Tensor | None = None,
    weights: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """Fill rows of out, out[r] = sum over the positions i of r of weights[i] * (source[index[i]] + extra).

    Shapes: out [rows, E], zeros; source [*, E]; index [N], None for i itself; weights float32 [N], None for 1; extra
    [E], None for 0 and only with weights. step: positions taken at once, 1, 8 or 32 by the usual length of a segment.
    """
    strip = strip_of(out.shape[1])
    grid = (len(plan.present), triton.cdiv(out.shape[1], strip))
    with torch.cuda.device_of(out):
        _segment_kernel[grid](
            out, plan.order, plan.present, plan.bounds, source, index, weights, extra,
            E=out.shape[1], B=strip, STEP=step, num_warps=WARPS[step], enable_fp_fusion=True,
        )  # fmt: skip
    return out


def strip_of(width: int) -> int:
    """Return the columns of a program: all up to 64, else 64."""
    return min(STRIP, max(16, triton.next_power_of_2(width)))
