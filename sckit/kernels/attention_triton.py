"""Attention on the GPU: forward, gradient of the queries, gradient of keys and values; no atomics, so deterministic.

One program owns one tile of the plan, 64 queries or 64 keys of one cell and head, and walks over the other side of the
cell. The keys are a prefix of the cell, so hidden tokens are never loaded as keys; a query outside the prefix starts
its online softmax from its own key. Letters: M queries and N keys of a tile, D head width, H heads.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's language looks like Python but is typed by its own compiler)

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sckit.kernels.attention_plan import TILE, AttentionPlan

LOG2_E = math.log2(math.e)


class Launch(NamedTuple):
    """How one kernel is compiled: rows it takes per step, warps of a program, depth of the load pipeline."""

    step: int
    warps: int
    stages: int


class Launches(NamedTuple):
    """The three kernels of one head width."""

    forward: Launch
    queries: Launch
    keys: Launch


# Up to 64 wide free of register spills on sm_80, sm_90, sm_100 and gfx942 for 16-bit tensors; 128 wide spills on sm_80,
# and on gfx942 in the gradient of the keys.
LAUNCHES = {
    16: Launches(Launch(64, 4, 3), Launch(64, 4, 3), Launch(64, 4, 3)),
    32: Launches(Launch(64, 4, 3), Launch(64, 4, 3), Launch(64, 4, 3)),
    64: Launches(Launch(64, 4, 3), Launch(32, 4, 3), Launch(32, 4, 3)),
    128: Launches(Launch(32, 8, 2), Launch(32, 8, 2), Launch(32, 8, 2)),
}


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
    head = tl.program_id(0) % H
    return head, tl.load(row).to(tl.int64), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
def _load_rows(place, inside):
    """Load a tile, with zeros for the rows that are not inside; None where all are, all but the last step of a walk."""
    return tl.load(place) if inside is None else tl.load(place, mask=inside[:, None], other=0.0)


@triton.jit
def _forward_step(q, k_place, v_place, inside, top, total, out, scale_log2, UPCAST: tl.constexpr):
    """Take one tile of keys into the online softmax."""
    k = _load_rows(k_place, inside)  # [N, D]
    v = _load_rows(v_place, inside)  # [N, D]
    scores = _dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), UPCAST)  # [M, N]
    if inside is not None:
        scores = tl.where(inside[None, :], scores, -1e30)
    larger = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - larger[:, None])
    decay = tl.exp2(top - larger)
    total = total * decay + tl.sum(weights, 1)
    out = _dot(weights.to(v.dtype), v, out * decay[:, None], UPCAST)
    return larger, total, out


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _forward_kernel(
    Q, K, V, OUT, LSE, TILES, tokens, scale_log2,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, HEAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write the output [T, H, D] and the log2-sum-exp2 of the scaled scores [H, T] of one tile of queries."""
    head, start, length, keys, first = _tile(TILES, H)
    if first >= length:  # the map has spare rows at its end
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
        k_own = tl.load(K + tile + at, mask=(own & live)[:, None], other=0.0).to(tl.float32)
        v_own = tl.load(V + tile + at, mask=(own & live)[:, None], other=0.0).to(tl.float32)
        top = tl.where(own, tl.sum(q.to(tl.float32) * k_own, 1) * scale_log2, -1e30)
        total = tl.where(own, 1.0, 0.0)
        out = v_own
    step = tl.arange(0, N)
    walk = step[:, None] * ROW + column[None, :]  # [N, D]
    full = keys // N * N
    for j in tl.range(0, full, N, num_stages=STAGES):
        skip = (start + j) * ROW + head * HEAD
        top, total, out = _forward_step(q, K + skip + walk, V + skip + walk, None, top, total, out, scale_log2, UPCAST)
    if full < keys:
        skip = (start + full) * ROW + head * HEAD
        inside = full + step < keys
        top, total, out = _forward_step(
            q, K + skip + walk, V + skip + walk, inside, top, total, out, scale_log2, UPCAST
        )
    to = OUT + (start + first) * (H * D) + head * D + row[:, None] * (H * D) + column[None, :]
    tl.store(to, (out / total[:, None]).to(OUT.dtype.element_ty), mask=live[:, None])
    tl.store(LSE + head.to(tl.int64) * tokens + start + first + row, top + tl.log2(total), mask=live)


@triton.jit
def _query_step(q, g, k_place, v_place, inside, lse, delta, dq, scale_log2, UPCAST: tl.constexpr):
    """Add what one tile of keys contributes to the gradient of the queries."""
    k = _load_rows(k_place, inside)  # [N, D]
    v = _load_rows(v_place, inside)  # [N, D]
    zeros = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    scores = _dot(q, tl.trans(k), zeros, UPCAST)  # [M, N]
    weights = tl.exp2(scores * scale_log2 - lse[:, None])
    if inside is not None:
        weights = tl.where(inside[None, :], weights, 0.0)
    slopes = _dot(g, tl.trans(v), zeros, UPCAST)
    return _dot((weights * (slopes - delta[:, None])).to(k.dtype), k, dq, UPCAST)


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _query_gradient_kernel(
    Q, K, V, OUT, GRAD, LSE, DELTA, DQ, DK, DV, TILES, tokens, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, HEAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr,
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
    line = head.to(tl.int64) * tokens + start + first
    q = tl.load(Q + tile + at, mask=live[:, None], other=0.0)
    g = tl.load(GRAD + packed + to, mask=live[:, None], other=0.0)
    out = tl.load(OUT + packed + to, mask=live[:, None], other=0.0)
    lse = tl.load(LSE + line + row, mask=live, other=1e30)
    delta = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + line + row, delta, mask=live)
    dq = tl.zeros([M, D], tl.float32)
    if tl.minimum(first + M, length) > keys:
        k_own = tl.load(K + tile + at, mask=(own & live)[:, None], other=0.0).to(tl.float32)
        v_own = tl.load(V + tile + at, mask=(own & live)[:, None], other=0.0).to(tl.float32)
        weight = tl.exp2(tl.sum(q.to(tl.float32) * k_own, 1) * scale_log2 - lse)
        slope = tl.where(own, weight * (tl.sum(g.to(tl.float32) * v_own, 1) - delta), 0.0)
        dq = slope[:, None] * k_own
        dk_own = (slope * scale)[:, None] * q.to(tl.float32)
        tl.store(DK + packed + to, dk_own.to(DK.dtype.element_ty), mask=(own & live)[:, None])
        tl.store(
            DV + packed + to, (weight[:, None] * g.to(tl.float32)).to(DV.dtype.element_ty), mask=(own & live)[:, None]
        )
    step = tl.arange(0, N)
    walk = step[:, None] * ROW + column[None, :]  # [N, D]
    full = keys // N * N
    for j in tl.range(0, full, N, num_stages=STAGES):
        skip = (start + j) * ROW + head * HEAD
        dq = _query_step(q, g, K + skip + walk, V + skip + walk, None, lse, delta, dq, scale_log2, UPCAST)
    if full < keys:
        skip = (start + full) * ROW + head * HEAD
        inside = full + step < keys
        dq = _query_step(q, g, K + skip + walk, V + skip + walk, inside, lse, delta, dq, scale_log2, UPCAST)
    tl.store(DQ + packed + to, (dq * scale).to(DQ.dtype.element_ty), mask=live[:, None])


@triton.jit
def _key_step(
    k, v, q_place, g_place, lse_place, delta_place, inside, dk, dv, scale_log2,
    UPCAST: tl.constexpr,
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
    weights = tl.exp2(_dot(k, tl.trans(q), zeros, UPCAST) * scale_log2 - lse[None, :])  # [N, M]
    dv = _dot(weights.to(g.dtype), g, dv, UPCAST)
    slopes = _dot(v, tl.trans(g), zeros, UPCAST)
    dk = _dot((weights * (slopes - delta[None, :])).to(q.dtype), q, dk, UPCAST)
    return dk, dv


@triton.jit(do_not_specialize=["tokens"])  # every batch has another number
def _key_gradient_kernel(
    Q, K, V, GRAD, LSE, DELTA, DK, DV, TILES, tokens, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, HEAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr,
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
    q_walk = head * HEAD + step[:, None] * ROW + column[None, :]  # [M, D]
    g_walk = head * D + step[:, None] * (H * D) + column[None, :]  # [M, D]
    line = head.to(tl.int64) * tokens
    full = length // M * M
    for i in tl.range(0, full, M, num_stages=STAGES):
        at = start + i
        dk, dv = _key_step(
            k, v, Q + at * ROW + q_walk, GRAD + at * (H * D) + g_walk, LSE + line + at + step, DELTA + line + at + step,
            None, dk, dv, scale_log2, UPCAST,
        )  # fmt: skip
    if full < length:
        at = start + full
        dk, dv = _key_step(
            k, v, Q + at * ROW + q_walk, GRAD + at * (H * D) + g_walk, LSE + line + at + step, DELTA + line + at + step,
            full + step < length, dk, dv, scale_log2, UPCAST,
        )  # fmt: skip
    packed = (start + first) * (H * D) + head * D
    to = row[:, None] * (H * D) + column[None, :]  # [N, D]
    tl.store(DK + packed + to, (dk * scale).to(DK.dtype.element_ty), mask=live[:, None])
    tl.store(DV + packed + to, dv.to(DV.dtype.element_ty), mask=live[:, None])


def attention_forward(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, for the backward pass, the log2-sum-exp2 of the scaled scores [H, T].

    q, k and v [T, H, D] are float16, bfloat16 or float32 with contiguous last dimensions; copied where their strides
    differ from each other.
    """
    q, k, v = _alike(q, k, v)
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    launch = LAUNCHES[q.shape[2]].forward
    scale_log2 = LOG2_E / math.sqrt(q.shape[2])
    with torch.cuda.device_of(q):
        _forward_kernel[_grid(plan.query_tiles, q)](
            q, k, v, out, lse, plan.query_tiles, q.shape[0], scale_log2, **_constants(q, launch, M=TILE, N=launch.step)
        )
    return out, lse


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: AttentionPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, [T, H, D] each, from the gradient of the output."""
    q, k, v = _alike(q, k, v)
    grad = grad.contiguous()
    dq, dk, dv = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    delta = torch.empty_like(lse)
    launches = LAUNCHES[q.shape[2]]
    scale = 1.0 / math.sqrt(q.shape[2])
    with torch.cuda.device_of(q):
        _query_gradient_kernel[_grid(plan.query_tiles, q)](
            q, k, v, out, grad, lse, delta, dq, dk, dv, plan.query_tiles, q.shape[0], scale, scale * LOG2_E,
            **_constants(q, launches.queries, M=TILE, N=launches.queries.step),
        )  # fmt: skip
        _key_gradient_kernel[_grid(plan.key_tiles, q)](
            q, k, v, grad, lse, delta, dk, dv, plan.key_tiles, q.shape[0], scale, scale * LOG2_E,
            **_constants(q, launches.keys, M=launches.keys.step, N=TILE),
        )  # fmt: skip
    return dq, dk, dv


def interpreted() -> bool:
    """Return whether the kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 at import."""
    return not isinstance(_forward_kernel, triton.JITFunction)


def _alike(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors with one pair of strides, as the slices of a fused projection have anyway."""
    if q.stride() == k.stride() == v.stride():
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _grid(tiles: Tensor, q: Tensor) -> tuple[int]:
    """Return one program per tile and head; the heads of a tile run side by side, the longest cells first."""
    return (tiles.shape[0] * q.shape[1],)


def _constants(q: Tensor, launch: Launch, **sizes: int) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    upcast = q.dtype == torch.bfloat16 and interpreted()
    constants = {"H": q.shape[1], "D": q.shape[2], "ROW": q.stride(0), "HEAD": q.stride(1), **sizes}
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    return {**constants, "STAGES": launch.stages, "UPCAST": upcast, **options}
