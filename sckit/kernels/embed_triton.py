"""Token states on the GPU: one kernel forward; backward sums over segments, and over hat functions for small tables."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportCallIssue=false
# (Triton's language looks like Python but is typed by its own compiler)

import torch
import triton
import triton.language as tl
from torch import Tensor

from sckit.kernels.rows import RowPlan
from sckit.kernels.rows_triton import segment_sums, strip_of

TILE = 32  # tokens of a program, or of a step
PART = 512  # tokens that share one copy of the small tables' gradient
ROWS = 16  # of the small tables that one program sums; with more, the float32 products would spill registers


@triton.jit
def _position(place, live, low, scale, last: tl.constexpr):
    """Return where values stand among the knots 0..last; NaN stays, and shows in the state and in the gradients."""
    value = tl.load(place, mask=live, other=0.0).to(tl.float32)
    return tl.minimum(tl.maximum((value - low) * scale, 0.0, tl.PropagateNan.ALL), last, tl.PropagateNan.ALL)


@triton.jit
def _curve(TABLE, at, column, mask, last: tl.constexpr, E: tl.constexpr):
    """Return the piecewise-linear curve at the positions, [M, B]."""
    row = tl.minimum(tl.where(at >= 0, at, 0.0).to(tl.int32), last - 1)
    below = TABLE + row[:, None] * E + column[None, :]
    lower = tl.load(below, mask=mask, other=0.0).to(tl.float32)
    upper = tl.load(below + E, mask=mask, other=0.0).to(tl.float32)
    return lower + (at - row)[:, None] * (upper - lower)


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _forward_kernel(
    GENES, CELLS, VALUES, RESIDUAL, EXPECTED, HIDDEN,
    GENE, CELL, CURVE, EXPECTED_CURVE, RESIDUAL_VECTOR, HIDDEN_VECTOR, OUT,
    tokens, low, scale, expected_low, expected_scale,
    K: tl.constexpr, EXPECTED_K: tl.constexpr, E: tl.constexpr, B: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Write one strip of the states of M tokens."""
    token = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    column = tl.program_id(1) * B + tl.arange(0, B)
    live = token < tokens
    inside = column < E
    mask = live[:, None] & inside[None, :]
    gene = tl.load(GENES + token, mask=live, other=0).to(tl.int64)
    cell = tl.load(CELLS + token, mask=live, other=0).to(tl.int64)
    hidden = tl.load(HIDDEN + token, mask=live, other=0) != 0
    seen = mask & (hidden == 0)[:, None]
    state = tl.load(GENE + gene[:, None] * E + column[None, :], mask=mask, other=0.0).to(tl.float32)
    state += tl.load(CELL + cell[:, None] * E + column[None, :], mask=mask, other=0.0).to(tl.float32)
    expected_at = _position(EXPECTED + token, live, expected_low, expected_scale, EXPECTED_K - 1)
    state += _curve(EXPECTED_CURVE, expected_at, column, mask, EXPECTED_K - 1, E)
    shown = _curve(CURVE, _position(VALUES + token, live, low, scale, K - 1), column, seen, K - 1, E)
    residual = tl.load(RESIDUAL + token, mask=live, other=0.0).to(tl.float32)
    residual_vector = tl.load(RESIDUAL_VECTOR + column, mask=inside, other=0.0).to(tl.float32)
    hidden_vector = tl.load(HIDDEN_VECTOR + column, mask=inside, other=0.0).to(tl.float32)
    state += tl.where(hidden[:, None], hidden_vector[None, :], shown + residual[:, None] * residual_vector[None, :])
    tl.store(OUT + token[:, None] * E + column[None, :], state.to(OUT.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _table_kernel(
    GRAD, VALUES, RESIDUAL, EXPECTED, HIDDEN, SUMS, tokens, low, scale, expected_low, expected_scale,
    K: tl.constexpr, EXPECTED_K: tl.constexpr, E: tl.constexpr, B: tl.constexpr, M: tl.constexpr,
    PART: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write ROWS of one part's sums over its tokens, [K + EXPECTED_K + 2, E]: both curves, then the two vectors.

    The weight of a token at a knot is the hat function max(0, 1 - |position - knot|), so all of it is one product.
    """
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * B + tl.arange(0, B)
    inside = column < E
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    of_curve = (row < K)[:, None]
    of_expected = (row < K + EXPECTED_K)[:, None]
    of_residual = (row == K + EXPECTED_K)[:, None]
    sums = tl.zeros([ROWS, B], tl.float32)
    for i in range(0, PART, M):
        token = part * PART + i + tl.arange(0, M)
        live = token < tokens
        grad = tl.load(GRAD + token[:, None] * E + column[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        hidden = (tl.load(HIDDEN + token, mask=live, other=0) != 0)[None, :]
        residual = tl.load(RESIDUAL + token, mask=live, other=0.0)[None, :]
        at = _position(VALUES + token, live, low, scale, K - 1)[None, :] - row[:, None]  # [ROWS, M]
        expected_at = _position(EXPECTED + token, live, expected_low, expected_scale, EXPECTED_K - 1)[None, :]
        expected_at -= (row - K)[:, None]
        knot = tl.maximum(1.0 - tl.abs(tl.where(of_curve, at, expected_at)), 0.0, tl.PropagateNan.ALL)
        seen = tl.where(of_curve, knot, tl.where(of_residual, residual, 0.0))
        unseen = tl.where(of_curve | of_residual, 0.0, 1.0)
        weight = tl.where(of_expected & (of_curve == 0), knot, tl.where(hidden, unseen, seen))
        sums = tl.dot(weight, grad.to(tl.float32), sums, input_precision="ieee")
    to = SUMS + part * ((K + EXPECTED_K + 2) * E) + row[:, None] * E + column[None, :]
    tl.store(to, sums, mask=(row < K + EXPECTED_K + 2)[:, None] & inside[None, :])


def embed_forward(
    genes: RowPlan, cells: RowPlan, scalars: tuple[Tensor, ...], tables: tuple[Tensor, ...], ranges: list[float]
) -> Tensor:
    """Return the states [T, E]; scalars and tables as in `sckit.kernels.embed`, contiguous, 16 or 32 bits."""
    tokens, width = len(genes.rows), tables[0].shape[1]
    out = tables[0].new_empty(tokens, width)
    knots = len(tables[2]), len(tables[3])
    strip = strip_of(width)
    with torch.cuda.device_of(out):
        _forward_kernel[triton.cdiv(tokens, TILE), triton.cdiv(width, strip)](
            genes.rows, cells.rows, *scalars, *tables, out, tokens, *_scales(ranges, *knots),
            K=knots[0], EXPECTED_K=knots[1], E=width, B=strip, M=TILE, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def embed_backward(
    grad: Tensor, genes: RowPlan, cells: RowPlan, scalars: tuple[Tensor, ...], ranges: list[float], rows: list[int]
) -> tuple[Tensor, ...]:
    """Return the gradients of the six tables from that of the states; rows: of the first four tables."""
    tokens, width = grad.shape
    curve, expected_curve = rows[2:]
    strip = strip_of(width)
    parts = triton.cdiv(tokens, PART)
    sums = grad.new_empty(parts, curve + expected_curve + 2, width, dtype=torch.float32)
    with torch.cuda.device_of(grad):
        _table_kernel[parts, triton.cdiv(width, strip), triton.cdiv(sums.shape[1], ROWS)](
            grad, *scalars, sums, tokens, *_scales(ranges, curve, expected_curve),
            K=curve, EXPECTED_K=expected_curve, E=width, B=strip, M=TILE, PART=PART, ROWS=ROWS,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    gene = segment_sums(grad, genes, grad.new_zeros(rows[0], width), step=8)
    cell = segment_sums(grad, cells, grad.new_zeros(rows[1], width), step=32)
    total = sums.sum(0).to(grad.dtype)
    curves = [part.clone() for part in total[:-2].split(rows[2:])]
    return gene, cell, *curves, total[-2].clone(), total[-1].clone()


def _scales(ranges: list[float], knots: int, expected_knots: int) -> tuple[float, ...]:
    """Return low and knots per unit of the two curves."""
    low, high, expected_low, expected_high = ranges
    return low, (knots - 1) / (high - low), expected_low, (expected_knots - 1) / (expected_high - expected_low)
