"""Attention on the CPU in float32, with explicit vector code.

Lanes are queries: scores lie transposed, [keys, queries], so that the softmax never crosses lanes, and the rows of K
and V are read by broadcast. All seven products are one function, `simd.product`. Threads draw tasks, the most work
first, and no result depends on which thread ran it.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sckit.kernels.attention_plan import AttentionPlan
from sckit.kernels.simd import (
    Code,
    Float,
    Value,
    address,
    dot,
    fill,
    host_width,
    product,
    scale_rows,
    take_ticket,
    transpose,
    vector_code,
    vector_type,
)

QUERIES = 48  # per block: a multiple of three vectors of any width
FORWARD_KEYS = 128  # per block: scores [keys, queries] stay in the first-level cache
BACKWARD_KEYS = 64  # the same for two such buffers
PIECE = 384  # queries per forward task, so that one long cell does not hold up the end
LOG2_E = math.log2(math.e)
LOWEST = -1e30


@vector_code
def softmax_step(
    code: Code,
    scores: Value,
    row: Value,
    keys: Value,
    vectors: Value,
    top: Value,
    total: Value,
    sums: Value,
    width: Value,
    scale: Float,
) -> None:
    """Turn scores [keys, lanes] into exp2(scale * (score - top)) and bring the running softmax up to date.

    top [lanes] is the largest score so far, total [lanes] the sum of the exponentials, sums [width, lanes] their sum
    weighted with V; total and sums are rescaled where top rises.
    """
    builder = code.builder

    def columns(wide: int, offset: Value) -> None:
        scores_at, top_at, total_at, sums_at = (code.add(at, offset) for at in (scores, top, total, sums))
        lanes = range(wide)
        factor = code.splat(scale)

        def larger(at: Sequence[Value], tops: Sequence[Value]) -> list[Value]:
            return [code.max(tops[v], code.load(at[0], v)) for v in lanes]

        def exponential(at: Sequence[Value], totals: Sequence[Value]) -> list[Value]:
            new = [code.exp2(code.fma(code.load(at[0], v), factor, shift[v])) for v in lanes]
            for v in lanes:
                code.store(new[v], at[0], v)
            return [builder.fadd(totals[v], new[v]) for v in lanes]

        def rescale(at: Sequence[Value], _: Sequence[Value]) -> None:
            for v in lanes:
                code.store(builder.fmul(code.load(at[0], v), decay[v]), at[0], v)

        before = [code.load(top_at, v) for v in lanes]
        tops = code.repeat(keys, [(scores_at, row)], larger, before)
        shift = [builder.fneg(builder.fmul(tops[v], factor)) for v in lanes]
        # the difference of the rounded products is what the earlier exponentials were really shifted by
        decay = [code.exp2(builder.fadd(builder.fmul(before[v], factor), shift[v])) for v in lanes]
        start = [builder.fmul(code.load(total_at, v), decay[v]) for v in lanes]
        totals = code.repeat(keys, [(scores_at, row)], exponential, start)
        code.repeat(width, [(sums_at, row)], rescale)
        for v in lanes:
            code.store(tops[v], top_at, v)
            code.store(totals[v], total_at, v)

    code.chunks(vectors, columns)


@vector_code
def score_gradients(
    code: Code,
    scores: Value,
    slopes: Value,
    row: Value,
    keys: Value,
    vectors: Value,
    lse: Value,
    delta: Value,
    scale_log2: Float,
    scale: Float,
) -> None:
    """Turn scores into weights p = exp2(scale_log2 * score - lse), and slopes dp into p * (dp - delta) * scale."""
    builder = code.builder

    def columns(wide: int, offset: Value) -> None:
        lanes = range(wide)
        factor, outer = code.splat(scale_log2), code.splat(scale)
        shift = [builder.fneg(code.load(code.add(lse, offset), v)) for v in lanes]
        deltas = [code.load(code.add(delta, offset), v) for v in lanes]

        def step(at: Sequence[Value], _: Sequence[Value]) -> None:
            for v in lanes:
                weight = code.exp2(code.fma(code.load(at[0], v), factor, shift[v]))
                slope = builder.fsub(code.load(at[1], v), deltas[v])
                code.store(weight, at[0], v)
                code.store(builder.fmul(builder.fmul(weight, outer), slope), at[1], v)

        code.repeat(keys, [(code.add(scores, offset), row), (code.add(slopes, offset), row)], step)

    code.chunks(vectors, columns)


@njit(nogil=True, error_model="numpy")
def _place(tensor, token, head):
    """Return the address of one head of one token."""
    return tensor[0] + token * tensor[1] + head * tensor[2]


@njit(nogil=True, error_model="numpy")
def _load_block(host, source, source_row, rows, row, lanes, width, first, n):
    """Copy rows first..n into a block of rows that is else zero, and transposed into lanes [width, QUERIES]."""
    padded = (n + 15) // 16 * 16  # the transposition takes eights, and a vector has up to sixteen lanes
    fill(host, rows, padded * row // 4, np.float32(0.0))
    skip = first * source_row
    scale_rows(host, source + skip, source_row, rows + first * row, row, n - first, width, np.float32(1.0))
    transpose(host, rows, row, lanes, 4 * QUERIES, padded, width)


@njit(nogil=True, cache=True, error_model="numpy")
def _forward_tasks(host, tensors, lse, pieces, shape, counter, scratch):
    """Draw (piece, head) tasks until none is left.

    tensors [4, 3]: address, token stride and head stride in bytes of q, k, v and the output; lse [H, T] in base 2;
    pieces [N, 4]: first token, tokens and keys of the cell, first query; shape: heads, head width, lanes of a vector,
    bytes of a scratch row; scratch: addresses.
    """
    heads, width, lanes, row = shape
    queries, keys, values, out = tensors
    keys_at, values_at, block, query_lanes, sums, scores = scratch
    scale = np.float32(LOG2_E / math.sqrt(width))
    line = 4 * QUERIES
    top = np.empty(QUERIES, np.float32)
    total = np.empty(QUERIES, np.float32)
    top_at, total_at = address(top), address(total)
    while True:
        task = take_ticket(host, address(counter))
        if task >= len(pieces) * heads:
            break
        piece = task // heads
        start, tokens, n_keys, first = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2], pieces[piece, 3]
        head = task % heads
        q_at = _place(queries, start, head)
        k_at = _place(keys, start, head)
        v_at = _place(values, start, head)
        out_at = _place(out, start, head)
        # strided rows would thrash the sets of the first-level cache and the page table
        scale_rows(host, k_at, keys[1], keys_at, row, n_keys, width, np.float32(1.0))
        scale_rows(host, v_at, values[1], values_at, row, n_keys, width, np.float32(1.0))
        end = min(first + PIECE, tokens)
        for q0 in range(first, end, QUERIES):
            n = min(QUERIES, end - q0)
            n_vectors = (n + lanes - 1) // lanes
            _load_block(host, q_at + q0 * queries[1], queries[1], block, row, query_lanes, width, 0, n)
            fill(host, top_at, QUERIES, np.float32(LOWEST))
            fill(host, total_at, QUERIES, np.float32(0.0))
            fill(host, sums, QUERIES * width, np.float32(0.0))
            own = max(0, n_keys - q0)  # from here on a query is not among the keys: it starts from itself
            if own < n:
                _load_block(host, v_at + q0 * values[1], values[1], block, row, sums, width, own, n)
                for x in range(own, n):
                    top[x] = dot(host, q_at + (q0 + x) * queries[1], k_at + (q0 + x) * keys[1], width)
                    total[x] = 1.0
            for j0 in range(0, n_keys, FORWARD_KEYS):
                rows = min(FORWARD_KEYS, n_keys - j0)
                product(host, keys_at + j0 * row, row, 4, query_lanes, line, scores, line, rows, n_vectors, width, 0)
                softmax_step(host, scores, line, rows, n_vectors, top_at, total_at, sums, width, scale)
                product(host, values_at + j0 * row, 4, row, scores, line, sums, line, width, n_vectors, rows, 1)
            transpose(host, sums, line, block, row, width, QUERIES)
            for x in range(n):
                lse[head, start + q0 + x] = top[x] * scale + np.log2(total[x])
                weight = np.float32(1.0) / total[x]
                scale_rows(host, block + x * row, row, out_at + (q0 + x) * out[1], out[1], 1, width, weight)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward_tasks(host, tensors, lse, cells, shape, counter, scratch):
    """Draw (cell, head) tasks until none is left; arguments as in `_forward_tasks`.

    tensors [8, 3]: the output's gradient, q, k, v, output, then the gradients of q, k and v; cells [C, 3].
    """
    heads, width, lanes, row = shape
    grads, queries, keys, values, out, to_q, to_k, to_v = tensors
    keys_at, values_at, to_keys, to_values, block, q_rows, g_rows, q_lanes, g_lanes, sums, scores, slopes = scratch
    scale = np.float32(1.0 / math.sqrt(width))
    scale_log2 = np.float32(LOG2_E / math.sqrt(width))
    one = np.float32(1.0)
    line = 4 * QUERIES
    wide = (width + lanes - 1) // lanes
    log_total = np.empty(QUERIES, np.float32)
    delta = np.empty(QUERIES, np.float32)
    lse_at, delta_at = address(log_total), address(delta)
    while True:
        task = take_ticket(host, address(counter))
        if task >= len(cells) * heads:
            break
        cell = task // heads
        start, tokens, n_keys = cells[cell, 0], cells[cell, 1], cells[cell, 2]
        head = task % heads
        g_at = _place(grads, start, head)
        q_at = _place(queries, start, head)
        k_at = _place(keys, start, head)
        v_at = _place(values, start, head)
        out_at = _place(out, start, head)
        dq_at = _place(to_q, start, head)
        dk_at = _place(to_k, start, head)
        dv_at = _place(to_v, start, head)
        scale_rows(host, k_at, keys[1], keys_at, row, n_keys, width, one)
        scale_rows(host, v_at, values[1], values_at, row, n_keys, width, one)
        for q0 in range(0, tokens, QUERIES):
            n = min(QUERIES, tokens - q0)
            n_vectors = (n + lanes - 1) // lanes
            _load_block(host, q_at + q0 * queries[1], queries[1], q_rows, row, q_lanes, width, 0, n)
            _load_block(host, g_at + q0 * grads[1], grads[1], g_rows, row, g_lanes, width, 0, n)
            # lanes beyond the last query get a weight of zero
            fill(host, lse_at, QUERIES, np.float32(-LOWEST))
            fill(host, delta_at, QUERIES, np.float32(0.0))
            for x in range(n):
                log_total[x] = lse[head, start + q0 + x]
                delta[x] = dot(host, g_rows + x * row, out_at + (q0 + x) * out[1], width)
            fill(host, sums, QUERIES * width, np.float32(0.0))
            own = max(0, n_keys - q0)
            if own < n:
                _load_block(host, k_at + q0 * keys[1], keys[1], block, row, sums, width, own, n)
                for x in range(own, n):
                    token, q_row, g_row, k_row = q0 + x, q_rows + x * row, g_rows + x * row, block + x * row
                    weight = np.exp2(dot(host, q_row, k_row, width) * scale_log2 - log_total[x])
                    slope = weight * (dot(host, g_row, v_at + token * values[1], width) - delta[x]) * scale
                    scale_rows(host, g_row, row, dv_at + token * to_v[1], to_v[1], 1, width, weight)
                    scale_rows(host, q_row, row, dk_at + token * to_k[1], to_k[1], 1, width, slope)
                    scale_rows(host, k_row, row, k_row, row, 1, width, slope)
                transpose(host, block, row, sums, line, QUERIES, width)
            for j0 in range(0, n_keys, BACKWARD_KEYS):
                rows = min(BACKWARD_KEYS, n_keys - j0)
                k_rows, v_rows = keys_at + j0 * row, values_at + j0 * row
                dk_rows, dv_rows = to_keys + j0 * row, to_values + j0 * row
                product(host, k_rows, row, 4, q_lanes, line, scores, line, rows, n_vectors, width, 0)
                product(host, v_rows, row, 4, g_lanes, line, slopes, line, rows, n_vectors, width, 0)
                score_gradients(host, scores, slopes, line, rows, n_vectors, lse_at, delta_at, scale_log2, scale)
                product(host, k_rows, 4, row, slopes, line, sums, line, width, n_vectors, rows, 1)
                product(host, scores, line, 4, g_rows, row, dv_rows, row, rows, wide, n, int(q0 > 0))
                product(host, slopes, line, 4, q_rows, row, dk_rows, row, rows, wide, n, int(q0 > 0))
            transpose(host, sums, line, block, row, width, QUERIES)
            scale_rows(host, block, row, dq_at + q0 * to_q[1], to_q[1], n, width, one)
        scale_rows(host, to_keys, row, dk_at, to_k[1], n_keys, width, one)
        scale_rows(host, to_values, row, dv_at, to_v[1], n_keys, width, one)


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, vector_width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, for the backward pass, the log2-sum-exp2 of the scaled scores [H, T].

    q, k and v [T, H, D] are float32 on the CPU with contiguous last dimensions. `vector_width` stands in for the
    host's own, for tests.
    """
    out = torch.empty(q.shape)
    lse = torch.empty(q.shape[1], q.shape[0])
    tiles = plan.query_tiles.numpy()
    pieces = tiles[(tiles[:, 1] > 0) & (tiles[:, 3] % PIECE == 0)]
    _run(_forward_tasks, [q, k, v, out], lse, pieces, vector_width)
    return out, lse


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: AttentionPlan,
    *,
    vector_width: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, [T, H, D] each, from the gradient of the output."""
    gradients = torch.empty(q.shape), torch.empty(q.shape), torch.empty(q.shape)
    _run(_backward_tasks, [grad, q, k, v, out, *gradients], lse, plan.cells.numpy(), vector_width)
    return gradients


def _run(
    worker: Callable[..., None], tensors: list[Tensor], lse: Tensor, tasks: np.ndarray, vector_width: int | None
) -> None:
    """Let as many threads as torch uses draw (task, head) pairs from one counter."""
    tokens, heads, width = tensors[0].shape
    reached = int((tasks[:, 0] + tasks[:, 1]).max(initial=0))
    if reached != tokens:
        message = f"the plan is for {reached} tokens, but the batch has {tokens}."
        raise ValueError(message)
    lanes = vector_width or host_width()
    row = (width + 15) // 16 * 16  # floats of a scratch row: whole vectors of any width
    cell, block, flipped = int(tasks[:, 2].max(initial=0)) * row, QUERIES * row, QUERIES * width
    if worker is _forward_tasks:
        sizes = [cell, cell, block, flipped, flipped, QUERIES * FORWARD_KEYS]
    else:
        sizes = [cell] * 4 + [block] * 3 + [flipped] * 3 + [QUERIES * BACKWARD_KEYS] * 2
    places = tuple((part.data_ptr(), 4 * part.stride(0), 4 * part.stride(1)) for part in tensors)
    shape = (heads, width, lanes, 4 * row)
    sums = lse.detach().numpy()
    counter = np.zeros(1, np.int64)

    def work() -> None:
        worker(vector_type(lanes), places, sums, tasks, shape, counter, _scratch(sizes))

    threads = min(torch.get_num_threads(), len(tasks) * heads)
    others = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """Return this process's threads; a forked child has none of its parent's and gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sckit-attention")


_own = threading.local()


def _scratch(sizes: list[int]) -> tuple[int, ...]:
    """Return addresses of this thread's reused memory, cut into pieces of so many floats on cache lines."""
    starts = list(accumulate(((size + 15) // 16 * 16 for size in sizes), initial=16))
    if getattr(_own, "memory", np.empty(0)).size < starts[-1]:
        _own.memory = np.zeros(starts[-1], np.float32)
    base = _own.memory.ctypes.data // 64 * 64
    return tuple(base + 4 * start for start in starts[:-1])
