"""Attention within packed cells: checks, choice of the engine, and one registered operator with its gradient.

Every query of a cell sees the first `keys` tokens of its cell and itself. `keys` equal to the length is full attention;
`keys` equal to the number of visible tokens makes the hidden ones queries only.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sckit.kernels.attention_plan import TILE, AttentionPlan, build_plan, check_cells, plan_attention
from sckit.kernels.attention_reference import attention_reference
from sckit.kernels.engines import choose_engine, load_engine, once_differentiable, pick_engine

__all__ = ["AttentionPlan", "attention", "choose_engine", "plan_attention"]

WIDTHS = {"numba": tuple(range(8, 129, 8)), "triton": (16, 32, 64, 128)}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None = None,
    keys: Tensor | None = None,
    *,
    engine: str = "auto",
    plan: AttentionPlan | None = None,
) -> Tensor:
    """Attend within cells: softmax(q k' / sqrt(D)) v over the first keys[c] tokens of the cell and the query itself.

    Shapes: q, k, v and the result [T, H, D] of one dtype; offsets [C + 1] int32 or int64, cell c being the tokens
    offsets[c]:offsets[c + 1]; keys [C] integers, None for the length of each cell. `plan`, made once per batch
    by `plan_attention(offsets, keys)`, replaces both, so that not every layer has to sort the cells. Differentiable in
    q, k and v.

    q, k and v may be strided views, such as the slices of one [T, 3, H, D] projection. Only the last dimension has to
    be contiguous; where it is not, the tensor is copied.

    engine: "reference" (plain torch, any float dtype), "numba" (CPU, float32), "triton" (GPU; float16, bfloat16 or
    float32 in, float32 sums), or "auto", which is `choose_engine` for the tensors' device and dtype.
    Raises ValueError for wrong shapes, offsets or keys, and for an engine that cannot run these tensors.
    """
    _check_tensors(q, k, v)
    if (offsets is None) == (plan is None):
        message = "attention needs either offsets (and perhaps keys) or plan=plan_attention(offsets, keys)."
        raise ValueError(message)
    engine = pick_engine(engine, q)
    _check_width(engine, q)
    if plan is None:
        plan = AttentionPlan._make([*torch.ops.sckit.attention_plan(offsets, keys, q.shape[0]), q.shape[0]])
    if plan.tokens != q.shape[0]:
        message = f"the plan is of {plan.tokens} tokens, not of this batch of {q.shape[0]}."
        raise ValueError(message)
    plan = plan.to(q.device)
    if engine == "reference":
        return attention_reference(q, k, v, plan.cells)
    return torch.ops.sckit.attention_forward(q, k, v, *plan.tensors(), engine)[0]


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape:
        message = f"q, k and v must share one shape [T, H, D], got {[tuple(part.shape) for part in (q, k, v)]}."
        raise ValueError(message)
    if not q.dtype.is_floating_point or k.dtype != q.dtype or v.dtype != q.dtype:
        message = f"q, k and v must share one floating dtype, got {q.dtype}, {k.dtype} and {v.dtype}."
        raise ValueError(message)
    if k.device != q.device or v.device != q.device:
        message = f"q, k and v must lie on one device, got {q.device}, {k.device} and {v.device}."
        raise ValueError(message)


def _check_width(engine: str, q: Tensor) -> None:
    if engine == "triton" and q.dtype == torch.float32 and q.shape[-1] > 64:
        message = f"engine 'triton' takes float32 heads up to 64 wide, got {q.shape[-1]}; use bfloat16 or 'reference'."
        raise ValueError(message)
    if engine in WIDTHS and q.shape[-1] not in WIDTHS[engine]:
        message = f"engine {engine!r} takes head widths {', '.join(map(str, WIDTHS[engine]))}, got {q.shape[-1]}."
        raise ValueError(message)


# One operator each for plan, forward and backward, so that torch.compile sees three opaque calls of known shapes.
torch.library.define(
    "sckit::attention_plan", "(Tensor offsets, Tensor? keys, SymInt tokens) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "sckit::attention_forward",
    "(Tensor q, Tensor k, Tensor v, Tensor cells, Tensor query_tiles, Tensor key_tiles, str engine)"
    " -> (Tensor, Tensor)",
)
torch.library.define(
    "sckit::attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cells, Tensor query_tiles,"
    " Tensor key_tiles, str engine) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("sckit::attention_plan", "CompositeExplicitAutograd")
def _plan(offsets: Tensor, keys: Tensor | None, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    check_cells(offsets, keys)
    if int(offsets[-1]) != tokens:
        message = f"offsets must end with the number of tokens, {tokens}, got {int(offsets[-1])}."
        raise ValueError(message)
    return build_plan(offsets, keys, tokens).tensors()


@torch.library.register_fake("sckit::attention_plan")
def _plan_fake(offsets: Tensor, keys: Tensor | None, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    cells = offsets.shape[0] - 1
    tiles = tokens // TILE + cells
    empty = partial(offsets.new_empty, dtype=torch.int32)
    return empty((cells, 3)), empty((tiles, 4)), empty((tiles, 4))


@torch.library.impl("sckit::attention_forward", "CompositeExplicitAutograd")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, cells: Tensor, query_tiles: Tensor, key_tiles: Tensor, engine: str
) -> tuple[Tensor, Tensor]:
    plan = AttentionPlan(cells, query_tiles, key_tiles, q.shape[0])
    return load_engine("attention", engine).attention_forward(_rows(q), _rows(k), _rows(v), plan)


@torch.library.register_fake("sckit::attention_forward")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, cells: Tensor, query_tiles: Tensor, key_tiles: Tensor, engine: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.impl("sckit::attention_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cells: Tensor,
    query_tiles: Tensor,
    key_tiles: Tensor,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = AttentionPlan(cells, query_tiles, key_tiles, q.shape[0])
    kernels = load_engine("attention", engine)
    return kernels.attention_backward(_rows(grad), _rows(q), _rows(k), _rows(v), out, lse, plan)


@torch.library.register_fake("sckit::attention_backward")
def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cells: Tensor,
    query_tiles: Tensor,
    key_tiles: Tensor,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _rows(part: Tensor) -> Tensor:
    """Return the tensor with a contiguous last dimension, which is all that the engines ask for."""
    return part if part.stride(-1) == 1 else part.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cells, query_tiles, key_tiles, ctx.engine = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, cells, query_tiles, key_tiles)
    ctx.mark_non_differentiable(lse)


def _gradient(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.sckit.attention_backward(grad, *ctx.saved_tensors, ctx.engine), None, None, None, None


torch.library.register_autograd("sckit::attention_forward", _gradient, setup_context=_save)
once_differentiable("sckit::attention_backward", "attention")
