"""Attention on the CPU in float32, with explicit vector code.

Lanes are queries: scores lie transposed, [keys, queries], so that the softmax never crosses lanes, and the rows of K
and V are read by broadcast. All seven products are one function, `simd.product`. Threads draw tasks, the most work
first, and no result depends on which thread ran it.
"""

import math
import threading
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sckit.kernels.attention_plan import AttentionPlan
from sckit.kernels.simd import (
    address,
    dot,
    fill,
    host_width,
    product,
    scale_rows,
    take_ticket,
    transpose,
    vector_type,
)
from sckit.kernels.simd_softmax import (
    add_own_key,
    bounded_score_gradients,
    bounded_softmax_step,
    score_gradients,
    softmax_step,
)
from sckit.kernels.threads import run_threads

QUERIES = 48  # per block: a multiple of three vectors of any width
FORWARD_KEYS = 128  # per block: scores [keys, queries] stay in the first-level cache
BACKWARD_KEYS = 64  # the same for two such buffers
PIECE = 384  # queries per forward task, so that one long cell does not delay the end
LOG2_E = math.log2(math.e)
BOUND = np.float32(50.0)  # of scores: exp2 of twice this, times the keys of a cell, is far from the limits of float32
LARGEST_VALUE = np.float32(1e18)  # norm of a value: exp2(BOUND) times it, times the keys, is also far from them


@njit(nogil=True, error_model="numpy")
def _place(tensor, token, head):
    """Return the address of one head of one token."""
    return tensor[0] + token * tensor[1] + head * tensor[2]


@njit(nogil=True, error_model="numpy")
def _load_block(host, source, source_row, rows, row, lanes, width, first, n, factor):
    """Copy factor * rows first..n into a block that is zero elsewhere, and transposed into lanes [width, QUERIES]."""
    padded = (n + 15) // 16 * 16  # the transposition takes eights, and a vector has up to sixteen lanes
    fill(host, rows, padded * row // 4, np.float32(0.0))
    skip = first * source_row
    scale_rows(host, source + skip, source_row, rows + first * row, row, n - first, width, factor)
    transpose(host, rows, row, lanes, 4 * QUERIES, padded, width)


@njit(nogil=True, error_model="numpy")
def _largest_square(host, rows, row, n, width):
    """Return the largest squared norm of n rows; NaN if there is one."""
    largest = np.float32(0.0)
    for x in range(n):
        square = dot(host, rows + x * row, rows + x * row, width)
        if largest == largest and not square <= largest:  # once NaN, always NaN
            largest = square
    return largest


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
    scale_log2 = np.float32(LOG2_E / math.sqrt(width))
    one = np.float32(1.0)
    line = 4 * QUERIES
    top = np.empty(QUERIES, np.float32)
    total = np.empty(QUERIES, np.float32)
    own_weight = np.empty(QUERIES, np.float32)
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
        scale_rows(host, k_at, keys[1], keys_at, row, n_keys, width, one)
        scale_rows(host, v_at, values[1], values_at, row, n_keys, width, one)
        key_square = _largest_square(host, keys_at, row, n_keys, width)
        ordinary = _largest_square(host, values_at, row, n_keys, width) <= LARGEST_VALUE * LARGEST_VALUE
        end = min(first + PIECE, tokens)
        for q0 in range(first, end, QUERIES):
            n = min(QUERIES, end - q0)
            n_vectors = (n + lanes - 1) // lanes
            _load_block(host, q_at + q0 * queries[1], queries[1], block, row, query_lanes, width, 0, n, scale_log2)
            fill(host, total_at, QUERIES, np.float32(0.0))
            fill(host, sums, QUERIES * width, np.float32(0.0))
            # no score can be larger than the product of the norms: then exponentials need no maximum
            bounded = ordinary and _largest_square(host, block, row, n, width) * key_square <= BOUND * BOUND
            fill(host, top_at, QUERIES, np.float32(0.0 if bounded else -np.inf))
            for j0 in range(0, n_keys, FORWARD_KEYS):
                rows = min(FORWARD_KEYS, n_keys - j0)
                product(host, keys_at + j0 * row, row, 4, query_lanes, line, scores, line, rows, n_vectors, width, 0)
                if bounded:
                    bounded_softmax_step(host, scores, line, rows, n_vectors, total_at)
                else:
                    softmax_step(host, scores, line, rows, n_vectors, top_at, total_at, sums, width)
                product(host, values_at + j0 * row, 4, row, scores, line, sums, line, width, n_vectors, rows, 1)
            own = min(max(0, n_keys - q0), n)  # queries from here on are no keys, and see their own
            own_weight[:] = 0.0
            for x in range(n):
                log_total = top[x] + np.log2(total[x])
                joint, past = log_total, one / total[x]
                if x >= own:
                    score = dot(host, block + x * row, k_at + (q0 + x) * keys[1], width)
                    if n_keys == 0:
                        joint, past = score, np.float32(0.0)
                    else:
                        larger = max(log_total, score)
                        joint = larger + np.log2(np.exp2(log_total - larger) + np.exp2(score - larger))
                        past *= np.exp2(log_total - joint)
                    own_weight[x] = np.exp2(score - joint)
                lse[head, start + q0 + x] = joint
                total[x] = past
            if own < n:
                value_lanes = query_lanes
                _load_block(host, v_at + q0 * values[1], values[1], block, row, value_lanes, width, own, n, one)
                add_own_key(host, sums, value_lanes, line, width, n_vectors, total_at, address(own_weight))
                fill(host, total_at, QUERIES, one)
            transpose(host, sums, line, block, row, width, QUERIES)
            for x in range(n):
                scale_rows(host, block + x * row, row, out_at + (q0 + x) * out[1], out[1], 1, width, total[x])


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
    ln_2 = np.float32(1.0 / LOG2_E)  # turns scale_log2, which is in the copied queries, into scale
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
        key_square = _largest_square(host, keys_at, row, n_keys, width)
        for q0 in range(0, tokens, QUERIES):
            n = min(QUERIES, tokens - q0)
            n_vectors = (n + lanes - 1) // lanes
            _load_block(host, q_at + q0 * queries[1], queries[1], q_rows, row, q_lanes, width, 0, n, scale_log2)
            _load_block(host, g_at + q0 * grads[1], grads[1], g_rows, row, g_lanes, width, 0, n, one)
            # what lanes beyond the last query hold is in no sum
            fill(host, lse_at, QUERIES, np.float32(0.0))
            fill(host, delta_at, QUERIES, np.float32(0.0))
            highest = np.float32(0.0)
            for x in range(n):
                log_total[x] = lse[head, start + q0 + x]
                highest = max(highest, log_total[x])
                delta[x] = dot(host, g_rows + x * row, out_at + (q0 + x) * out[1], width)
            bounded = _largest_square(host, q_rows, row, n, width) * key_square <= BOUND * BOUND and highest <= BOUND
            fill(host, sums, QUERIES * width, np.float32(0.0))
            own = max(0, n_keys - q0)
            if own < n:
                _load_block(host, k_at + q0 * keys[1], keys[1], block, row, sums, width, own, n, one)
                for x in range(own, n):
                    token, q_row, g_row, k_row = q0 + x, q_rows + x * row, g_rows + x * row, block + x * row
                    weight = np.exp2(dot(host, q_row, k_row, width) - log_total[x])
                    slope = weight * (dot(host, g_row, v_at + token * values[1], width) - delta[x])
                    scale_rows(host, g_row, row, dv_at + token * to_v[1], to_v[1], 1, width, weight)
                    scale_rows(host, q_row, row, dk_at + token * to_k[1], to_k[1], 1, width, slope * ln_2)
                    scale_rows(host, k_row, row, k_row, row, 1, width, slope)
                transpose(host, block, row, sums, line, QUERIES, width)
            for j0 in range(0, n_keys, BACKWARD_KEYS):
                rows = min(BACKWARD_KEYS, n_keys - j0)
                k_rows, v_rows = keys_at + j0 * row, values_at + j0 * row
                dk_rows, dv_rows = to_keys + j0 * row, to_values + j0 * row
                product(host, k_rows, row, 4, q_lanes, line, scores, line, rows, n_vectors, width, 0)
                product(host, v_rows, row, 4, g_lanes, line, slopes, line, rows, n_vectors, width, 0)
                if bounded:
                    bounded_score_gradients(host, scores, slopes, line, rows, n_vectors, lse_at, delta_at)
                else:
                    score_gradients(host, scores, slopes, line, rows, n_vectors, lse_at, delta_at)
                product(host, k_rows, 4, row, slopes, line, sums, line, width, n_vectors, rows, 1)
                product(host, scores, line, 4, g_rows, row, dv_rows, row, rows, wide, n, int(q0 > 0))
                product(host, slopes, line, 4, q_rows, row, dk_rows, row, rows, wide, n, int(q0 > 0))
            transpose(host, sums, line, block, row, width, QUERIES)
            scale_rows(host, block, row, dq_at + q0 * to_q[1], to_q[1], n, width, scale)
        scale_rows(host, to_keys, row, dk_at, to_k[1], n_keys, width, ln_2)
        scale_rows(host, to_values, row, dv_at, to_v[1], n_keys, width, one)


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, vector_width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, for the backward pass, the log2-sum-exp2 of the scaled scores [H, T].

    q, k and v [T, H, D] are float32 on the CPU with contiguous last dimensions. `vector_width` replaces the
    host's own in tests.
    """
    out = torch.empty(q.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)
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
    dq, dk, dv = (torch.empty(q.shape, dtype=torch.float32) for _ in range(3))
    _run(_backward_tasks, [grad, q, k, v, out, dq, dk, dv], lse, plan.cells.numpy(), vector_width)
    return dq, dk, dv


def _run(
    worker: Callable[..., None], tensors: list[Tensor], lse: Tensor, tasks: np.ndarray, vector_width: int | None
) -> None:
    """Let as many threads as torch uses draw (task, head) pairs from one counter."""
    _, heads, width = tensors[0].shape
    lanes = vector_width or host_width()
    row = (width + 15) // 16 * 16  # floats of a scratch row: whole vectors of any width
    cell, block, flipped = int(tasks[:, 2].max(initial=0)) * row, QUERIES * row, QUERIES * width
    if worker is _forward_tasks:
        sizes = [cell, cell, block, flipped, flipped, QUERIES * FORWARD_KEYS]
    else:
        sizes = [cell] * 4 + [block] * 3 + [flipped] * 3 + [QUERIES * BACKWARD_KEYS] * 2
    shape = (heads, width, lanes, 4 * row)
    sums = lse.detach().numpy()
    counter = np.zeros(1, np.int64)

    def work(_thread: int, _threads: int) -> None:
        places = tuple((part.data_ptr(), 4 * part.stride(0), 4 * part.stride(1)) for part in tensors)
        worker(vector_type(lanes), places, sums, tasks, shape, counter, _scratch(sizes))

    run_threads(work, len(tasks) * heads)


_own = threading.local()


def _scratch(sizes: list[int]) -> tuple[int, ...]:
    """Return addresses of this thread's reused memory, cut into pieces of these sizes on cache lines."""
    starts = list(accumulate(((size + 15) // 16 * 16 for size in sizes), initial=16))
    if getattr(_own, "memory", np.empty(0)).size < starts[-1]:
        _own.memory = np.zeros(starts[-1], np.float32)
    base = _own.memory.ctypes.data // 64 * 64
    return tuple(base + 4 * start for start in starts[:-1])
