"""Attention on the GPU: forward, gradient of the queries, gradient of keys and values; no atomics, so deterministic.

One program owns one tile of the plan, 64 queries or 64 keys of one cell and head, and walks over the other side of the
cell. The keys are a prefix of the cell, so hidden tokens are never loaded as keys; a query outside the prefix starts
its online softmax from its own key. Letters: M queries and N keys of a tile, D head width, H heads.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# (Triton's language looks like Python but is typed by its own compiler)

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sckit.kernels.attention_launch import Launch, Launches, choose_launches
from sckit.kernels.attention_plan import TILE, AttentionPlan
from sckit.kernels.engines import interpreted

LOG2_E = math.log2(math.e)
OWN_COLUMNS = tl.constexpr(32)  # columns of a query's own key that are worked on at a time


@triton.jit
def _dot(a, b, total, UPCAST: tl.constexpr):
    """Return a b + total. The interpreter multiplies the raw bits of bfloat16, so there it works on float32 copies."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _tile(TILES, H: tl.constexpr):
    """Return this program's head and tile: first token, tokens and keys of its cell, first query or key."""
    row = TILES + 4 * (tl.program_id(0) // H)
    head = (tl.program_id(0) % H).to(tl.int64)
    return head, tl.load(row).to(tl.int64), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
def _load_rows(place, inside):
    """Load a tile, with zeros for the rows that are not inside; None where all are, all but the last step of a walk."""
    return tl.load(place) if inside is None else tl.load(place, mask=inside[:, None], other=0.0)


@triton.jit
def _exp2(x, POLY: tl.constexpr):
    """Return 2 ** x for x [M, N] up to 127; POLY > 0 works out one column in 2 ** POLY with multiply-adds alone.

    The two kinds of columns keep two units of the GPU busy. The polynomial's relative error is 7.5e-5, less than the
    rounding of 16-bit weights; below -125 it returns 2 ** -125.
    """
    if POLY == 0:
        return tl.exp2(x)
    else:  # needed, since the compiler also visits what follows a return
        # Neighbouring blocks of 8 columns lie in one thread's registers on every target, so the split moves no data.
        M: tl.constexpr = x.shape[0]
        N: tl.constexpr = x.shape[1]
        left, right = tl.split(tl.permute(tl.reshape(x, [M, N // 16, 2, 8]), (0, 1, 3, 2)))
        left = tl.exp2(left)
        if POLY == 1:
            right = _exp2_polynomial(right)
        else:
            right = tl.reshape(_exp2(tl.reshape(right, [M, N // 2]), POLY - 1), [M, N // 16, 8])
        return tl.reshape(tl.permute(tl.join(left, right), (0, 1, 3, 2)), [M, N])


@triton.jit
def _exp2_polynomial(x):
    """Return 2 ** x by rounding to a whole exponent and a minimax cubic of the rest, within half of zero; NaN stays."""
    x = tl.maximum(x, -125.0, tl.PropagateNan.ALL)
    shifted = x + 12582912.0  # 1.5 * 2 ** 23: the low bits of the sum are x, rounded
    rest = x - (shifted - 12582912.0)
    cubic = ((0.05517167 * rest + 0.24261112) * rest + 0.69326099) * rest + 0.99992807
    bits = cubic.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True) + rest * 0.0  # NVIDIA's NaN is all ones, which the sum of bits loses


@triton.jit
def _row_products(a_place, b_place, inside, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Return the product of two rows for each of M rows [M], CHUNK columns at a time: 128 at once would spill."""
    total = tl.zeros([inside.shape[0]], tl.float32)
    for c in tl.range(0, WIDTH, CHUNK, num_stages=1):
        a = tl.load(a_place + c, mask=inside[:, None], other=0.0).to(tl.float32)  # [M, CHUNK]
        b = tl.load(b_place + c, mask=inside[:, None], other=0.0).to(tl.float32)  # [M, CHUNK]
        total += tl.sum(a * b, 1)
    return total


@triton.jit
def _forward_step(
    q, k_place, v_place, inside, top, total, out, scale_log2,
    POLY: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys into the online softmax."""
    k = _load_rows(k_place, inside)  # [N, D]
    v = _load_rows(v_place, inside)  # [N, D]
    scores = _dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), UPCAST)  # [M, N]
    if inside is not None:
        scores = tl.where(inside[None, :], scores, -1e30)
    larger = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = _exp2(scores * scale_log2 - larger[:, None], POLY)
    decay = tl.exp2(top - larger)
    total = total * decay + tl.sum(weights, 1)
    out = _dot(weights.to(v.dtype), v, out * decay[:, None], UPCAST)
    return larger, total, out


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _forward_kernel(
    Q, K, V, OUT, LSE, TILES, tokens, scale_log2,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, HEAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr, POLY: tl.constexpr,
    RELOAD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write the output [T, H, D] and the log2-sum-exp2 of the scaled scores [H, T] of one tile of queries."""
    head, start, length, keys, first = _tile(TILES, H)
    if first >= length:  # the plan has unused rows at its end
        return
    column = tl.arange(0, D)
    row = tl.arange(0, M)
    live = first + row < length
    own = first + row >= keys
    tile = (start + first) * ROW + head * HEAD  # addresses: an int64 scalar for the tile, int32 offsets within it
    at = row[:, None] * ROW + column[None, :]  # [M, D]
    q = tl.load(Q + tile + at, mask=live[:, None], other=0.0)
    top = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, D], tl.float32)
    if tl.minimum(first + M, length) > keys:
        CHUNK: tl.constexpr = D if D < OWN_COLUMNS else OWN_COLUMNS
        part = row[:, None] * ROW + tl.arange(0, CHUNK)[None, :]  # [M, CHUNK]
        score = _row_products(Q + tile + part, K + tile + part, own & live, D, CHUNK)
        top = tl.where(own, score * scale_log2, -1e30)
        total = tl.where(own, 1.0, 0.0)
        out = tl.load(V + tile + at, mask=(own & live)[:, None], other=0.0).to(tl.float32)
    step = tl.arange(0, N)
    walk = step[:, None] * ROW + column[None, :]  # [N, D]
    full = keys // N * N
    for j in tl.range(0, full, N, num_stages=STAGES):
        skip = (start + j) * ROW + head * HEAD
        top, total, out = _forward_step(
            q, K + skip + walk, V + skip + walk, None, top, total, out, scale_log2, POLY, UPCAST
        )
    if full < keys:
        if RELOAD:
            q = tl.load(Q + tile + at, mask=live[:, None], other=0.0)
        skip = (start + full) * ROW + head * HEAD
        inside = full + step < keys
        top, total, out = _forward_step(
            q, K + skip + walk, V + skip + walk, inside, top, total, out, scale_log2, 0, UPCAST
        )
    to = OUT + (start + first) * (H * D) + head * D + row[:, None] * (H * D) + column[None, :]
    tl.store(to, (out / total[:, None]).to(OUT.dtype.element_ty), mask=live[:, None])
    tl.store(LSE + head * tokens + start + first + row, top + tl.log2(total), mask=live)


@triton.jit
def _query_step(
    q, g, k_place, v_place, inside, lse, delta, dq, scale_log2,
    POLY: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys contributes to the gradient of the queries."""
    k = _load_rows(k_place, inside)  # [N, D]
    v = _load_rows(v_place, inside)  # [N, D]
    zeros = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    scores = _dot(q, tl.trans(k), zeros, UPCAST)  # [M, N]
    weights = _exp2(scores * scale_log2 - lse[:, None], POLY)
    if inside is not None:
        weights = tl.where(inside[None, :], weights, 0.0)
    slopes = _dot(g, tl.trans(v), zeros, UPCAST)
    return _dot((weights * (slopes - delta[:, None])).to(k.dtype), k, dq, UPCAST)


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _query_gradient_kernel(
    Q, K, V, OUT, GRAD, LSE, DELTA, DQ, DK, DV, TILES, tokens, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, HEAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr, POLY: tl.constexpr,
    RELOAD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write dQ and delta = sum(dOUT * OUT) of one tile of queries; dK and dV too where a query alone sees its key."""
    head, start, length, keys, first = _tile(TILES, H)
    if first >= length:
        return
    column = tl.arange(0, D)
    row = tl.arange(0, M)
    live = first + row < length
    own = first + row >= keys
    tile = (start + first) * ROW + head * HEAD  # addresses: an int64 scalar for the tile, int32 offsets within it
    at = row[:, None] * ROW + column[None, :]  # [M, D]
    packed = (start + first) * (H * D) + head * D
    to = row[:, None] * (H * D) + column[None, :]  # [M, D]
    line = head * tokens + start + first
    q = tl.load(Q + tile + at, mask=live[:, None], other=0.0)
    g = tl.load(GRAD + packed + to, mask=live[:, None], other=0.0)
    out = tl.load(OUT + packed + to, mask=live[:, None], other=0.0)
    lse = tl.load(LSE + line + row, mask=live, other=1e30)
    delta = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + line + row, delta, mask=live)
    dq = tl.zeros([M, D], tl.float32)
    if tl.minimum(first + M, length) > keys:
        CHUNK: tl.constexpr = D if D < OWN_COLUMNS else OWN_COLUMNS
        part = row[:, None] * ROW + tl.arange(0, CHUNK)[None, :]  # [M, CHUNK]
        pack = row[:, None] * (H * D) + tl.arange(0, CHUNK)[None, :]  # [M, CHUNK]
        alone = own & live
        weight = tl.exp2(_row_products(Q + tile + part, K + tile + part, alone, D, CHUNK) * scale_log2 - lse)
        slope = weight * (_row_products(GRAD + packed + pack, V + tile + part, alone, D, CHUNK) - delta)
        slope = tl.where(own, slope, 0.0)
        for c in tl.range(0, D, CHUNK, num_stages=1):
            q_part = tl.load(Q + tile + part + c, mask=alone[:, None], other=0.0).to(tl.float32)
            g_part = tl.load(GRAD + packed + pack + c, mask=alone[:, None], other=0.0).to(tl.float32)
            dk_own = ((slope * scale)[:, None] * q_part).to(DK.dtype.element_ty)
            tl.store(DK + packed + pack + c, dk_own, mask=alone[:, None])
            tl.store(DV + packed + pack + c, (weight[:, None] * g_part).to(DV.dtype.element_ty), mask=alone[:, None])
        dq = slope[:, None] * tl.load(K + tile + at, mask=alone[:, None], other=0.0).to(tl.float32)
    step = tl.arange(0, N)
    walk = step[:, None] * ROW + column[None, :]  # [N, D]
    full = keys // N * N
    for j in tl.range(0, full, N, num_stages=STAGES):
        skip = (start + j) * ROW + head * HEAD
        dq = _query_step(q, g, K + skip + walk, V + skip + walk, None, lse, delta, dq, scale_log2, POLY, UPCAST)
    if full < keys:
        if RELOAD:
            q = tl.load(Q + tile + at, mask=live[:, None], other=0.0)
            g = tl.load(GRAD + packed + to, mask=live[:, None], other=0.0)
        skip = (start + full) * ROW + head * HEAD
        inside = full + step < keys
        dq = _query_step(q, g, K + skip + walk, V + skip + walk, inside, lse, delta, dq, scale_log2, 0, UPCAST)
    tl.store(DQ + packed + to, (dq * scale).to(DQ.dtype.element_ty), mask=live[:, None])


@triton.jit
def _key_step(
    k, v, q_place, g_place, lse_place, delta_place, inside, dk, dv, scale_log2,
    POLY: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what one tile of queries contributes to the gradients of the keys and values."""
    q = _load_rows(q_place, inside)  # [M, D]
    g = _load_rows(g_place, inside)  # [M, D]
    if inside is None:
        lse = tl.load(lse_place)  # [M]
        delta = tl.load(delta_place)  # [M]
    else:
        lse = tl.load(lse_place, mask=inside, other=1e30)  # a weight of zero beyond the cell
        delta = tl.load(delta_place, mask=inside, other=0.0)
    zeros = tl.zeros([k.shape[0], q.shape[0]], tl.float32)
    weights = _exp2(_dot(k, tl.trans(q), zeros, UPCAST) * scale_log2 - lse[None, :], POLY)  # [N, M]
    dv = _dot(weights.to(g.dtype), g, dv, UPCAST)
    slopes = _dot(v, tl.trans(g), zeros, UPCAST)
    dk = _dot((weights * (slopes - delta[None, :])).to(q.dtype), q, dk, UPCAST)
    return dk, dv


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _key_gradient_kernel(
    Q, K, V, GRAD, LSE, DELTA, DK, DV, TILES, tokens, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, HEAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr, POLY: tl.constexpr,
    RELOAD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write dK and dV of one tile of keys."""
    head, start, length, keys, first = _tile(TILES, H)
    if first >= keys:
        return
    column = tl.arange(0, D)
    row = tl.arange(0, N)
    live = first + row < keys
    own = (start + first) * ROW + head * HEAD
    walk = row[:, None] * ROW + column[None, :]  # [N, D]
    k = tl.load(K + own + walk, mask=live[:, None], other=0.0)
    v = tl.load(V + own + walk, mask=live[:, None], other=0.0)
    dk = tl.zeros([N, D], tl.float32)
    dv = tl.zeros([N, D], tl.float32)
    step = tl.arange(0, M)
    q_walk = step[:, None] * ROW + column[None, :]  # [M, D]
    g_walk = step[:, None] * (H * D) + column[None, :]  # [M, D]
    line = head * tokens
    full = length // M * M
    for i in tl.range(0, full, M, num_stages=STAGES):
        at = start + i
        dk, dv = _key_step(
            k, v, Q + at * ROW + head * HEAD + q_walk, GRAD + at * (H * D) + head * D + g_walk,
            LSE + line + at + step, DELTA + line + at + step, None, dk, dv, scale_log2, POLY, UPCAST,
        )  # fmt: skip
    if full < length:
        if RELOAD:
            k = tl.load(K + own + walk, mask=live[:, None], other=0.0)
            v = tl.load(V + own + walk, mask=live[:, None], other=0.0)
        at = start + full
        dk, dv = _key_step(
            k, v, Q + at * ROW + head * HEAD + q_walk, GRAD + at * (H * D) + head * D + g_walk,
            LSE + line + at + step, DELTA + line + at + step, full + step < length, dk, dv, scale_log2, 0, UPCAST,
        )  # fmt: skip
    packed = (start + first) * (H * D) + head * D
    to = row[:, None] * (H * D) + column[None, :]  # [N, D]
    tl.store(DK + packed + to, (dk * scale).to(DK.dtype.element_ty), mask=live[:, None])
    tl.store(DV + packed + to, dv.to(DV.dtype.element_ty), mask=live[:, None])


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, launches: Launches | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, for the backward pass, the log2-sum-exp2 of the scaled scores [H, T].

    q, k and v [T, H, D] are float16, bfloat16 or float32 with contiguous last dimensions; copied where their strides
    differ from each other or are too large for the kernels. `launches` takes the place of the table's row.
    """
    launches = launches or choose_launches(q, plan.cells.shape[0])
    q, k, v = _alike(q, k, v, max(TILE, *(launch.step for launch in launches)))
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    with torch.cuda.device_of(q):
        _forward_kernel[_grid(plan.query_tiles, q)](
            q, k, v, out, lse, plan.query_tiles, q.shape[0], LOG2_E / math.sqrt(q.shape[2]),
            **_constants(q, launches.forward, M=TILE, N=launches.forward.step), **launches.forward.options(),
        )  # fmt: skip
    return out, lse


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: AttentionPlan,
    launches: Launches | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, [T, H, D] each, from the gradient of the output."""
    launches = launches or choose_launches(q, plan.cells.shape[0])
    q, k, v = _alike(q, k, v, max(TILE, *(launch.step for launch in launches)))
    grad = grad.contiguous()
    dq, dk, dv = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    delta = torch.empty_like(lse)
    scale = 1.0 / math.sqrt(q.shape[2])
    with torch.cuda.device_of(q):
        _query_gradient_kernel[_grid(plan.query_tiles, q)](
            q, k, v, out, grad, lse, delta, dq, dk, dv, plan.query_tiles, q.shape[0], scale, scale * LOG2_E,
            **_constants(q, launches.queries, M=TILE, N=launches.queries.step), **launches.queries.options(),
        )  # fmt: skip
        _key_gradient_kernel[_grid(plan.key_tiles, q)](
            q, k, v, grad, lse, delta, dk, dv, plan.key_tiles, q.shape[0], scale, scale * LOG2_E,
            **_constants(q, launches.keys, M=launches.keys.step, N=TILE), **launches.keys.options(),
        )  # fmt: skip
    return dq, dk, dv


def _alike(q: Tensor, k: Tensor, v: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors with one pair of strides, as the slices of a fused projection have anyway.

    Offsets within a tile of this number of rows are int32, so tokens that lie too far apart are copied together.
    Strides are compiled in, so heads must not lie a whole batch apart, since every batch has another length.
    """
    if q.stride() == k.stride() == v.stride() and rows * q.stride(0) < 2**31 and q.stride(1) <= q.stride(0):
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _grid(tiles: Tensor, q: Tensor) -> tuple[int]:
    """Return one program per tile and head; the heads of a tile run side by side, the longest cells first."""
    return (tiles.shape[0] * q.shape[1],)


def _constants(q: Tensor, launch: Launch, **sizes: int) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    upcast = q.dtype == torch.bfloat16 and interpreted()
    strides = {"H": q.shape[1], "D": q.shape[2], "ROW": q.stride(0), "HEAD": q.stride(1)}
    return {**strides, **sizes, **launch.constants(), "UPCAST": upcast}
