"""The masked head, predictions and loss of hidden tokens only: checks, engine, and one operator with its gradient."""

from typing import Any, overload

import torch
from torch import Tensor

from sckit.kernels.engines import load_engine, once_differentiable, pick_engine
from sckit.kernels.head_reference import head_reference
from sckit.kernels.rows import RowPlan, check_plan, each_row, plan_rows

__all__ = ["RowPlan", "masked_head", "plan_rows"]


@overload
def masked_head(
    h: Tensor, bias: Tensor, shared: Tensor, weight: Tensor, genes: RowPlan,
    *, rows: RowPlan | None = None, truth: None = None, engine: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def masked_head(
    h: Tensor, bias: Tensor, shared: Tensor, weight: Tensor, genes: RowPlan,
    *, rows: RowPlan | None = None, truth: Tensor, engine: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def masked_head(
    h: Tensor,
    bias: Tensor,
    shared: Tensor,
    weight: Tensor,
    genes: RowPlan,
    *,
    rows: RowPlan | None = None,
    truth: Tensor | None = None,
    engine: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return bias + <h[rows], shared + weight[genes]> for M targets; with `truth` also the mean squared error.

    Shapes: h [T, E], floating, or [M, E] where rows is None; bias, truth and the result [M], shared [E] and weight
    [G, E] of one dtype; genes and rows are plans of the targets' rows in weight and in h, `plan_rows(...)`, made once
    per batch. The loss is a scalar, 0 for M = 0. Prediction and loss are differentiable in h, bias, shared and weight.

    engine: "reference" (plain torch), "numba" (CPU, float32), "triton" (GPU; h float16, bfloat16 or float32, all else
    float32), or "auto", the compiled one for the device.
    Raises ValueError for shapes, dtypes and rows that do not fit, and for an engine that cannot run these tensors.
    """
    _check(h, bias, shared, weight, genes, rows, truth)
    engine = pick_engine(engine, h, weight)
    if engine != "reference" and weight.dtype != torch.float32:
        message = f"engine {engine!r} takes weights of float32, got {weight.dtype}; use engine='reference'."
        raise ValueError(message)
    if engine == "reference":
        taken = None if rows is None else rows.rows
        prediction = head_reference(h, bias, shared, weight, genes.rows, taken)
        if truth is None:
            return prediction
        return prediction, (prediction - truth.detach()).square().sum() / max(bias.shape[0], 1)
    rows = each_row(h.shape[0], h.device) if rows is None else rows
    parts = [part.contiguous() for part in (h, bias, shared, weight)]
    known = None if truth is None else truth.contiguous()
    outputs = torch.ops.sckit.head_forward(*parts, [*genes.tensors(), *rows.tensors()], known, engine)
    return outputs[0] if truth is None else outputs


def _check(
    h: Tensor,
    bias: Tensor,
    shared: Tensor,
    weight: Tensor,
    genes: RowPlan,
    rows: RowPlan | None,
    truth: Tensor | None,
) -> None:
    if h.ndim != 2 or weight.ndim != 2 or h.shape[1] != weight.shape[1] or shared.shape != weight.shape[1:]:
        shapes = f"{tuple(h.shape)}, {tuple(weight.shape)} and {tuple(shared.shape)}"
        message = f"h must be [T, E], weight [G, E] and shared [E], got {shapes}."
        raise ValueError(message)
    lines = [bias] if truth is None else [bias, truth]
    if any(part.shape != genes.rows.shape for part in lines):
        message = f"bias and truth must be [{genes.rows.shape[0]}], got {[tuple(part.shape) for part in lines]}."
        raise ValueError(message)
    tensors = [weight, shared, *lines]
    if not h.dtype.is_floating_point or any(part.dtype != weight.dtype for part in tensors):
        kinds = [str(part.dtype) for part in tensors]
        message = (
            f"h must be floating and weight, shared, bias and truth of one floating dtype, got {h.dtype}, {kinds}."
        )
        raise ValueError(message)
    if not weight.dtype.is_floating_point:
        message = f"the weights must be floating, got {weight.dtype}."
        raise ValueError(message)
    tensors += [genes.rows] if rows is None else [genes.rows, rows.rows]
    if any(part.device != h.device for part in tensors):
        message = f"all tensors must lie on one device, got {h.device} and {[str(part.device) for part in tensors]}."
        raise ValueError(message)
    check_plan("genes", genes, bias.shape[0], weight.shape[0])
    if rows is not None:
        check_plan("rows", rows, bias.shape[0], h.shape[0])
    elif h.shape[0] != bias.shape[0]:
        message = f"without rows h must have one row for each of the {bias.shape[0]} targets, got {h.shape[0]}."
        raise ValueError(message)


torch.library.define(
    "sckit::head_forward",
    "(Tensor h, Tensor bias, Tensor shared, Tensor weight, Tensor[] plans, Tensor? truth, str engine)"
    " -> (Tensor, Tensor)",
)
torch.library.define(
    "sckit::head_backward",
    "(Tensor slope, Tensor h, Tensor shared, Tensor weight, Tensor[] plans, str engine) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("sckit::head_forward", "CompositeExplicitAutograd")
def _forward(
    h: Tensor, bias: Tensor, shared: Tensor, weight: Tensor, plans: list[Tensor], truth: Tensor | None, engine: str
) -> tuple[Tensor, Tensor]:
    return load_engine("head", engine).head_forward(h, bias, shared, weight, *_plans(plans), truth)


@torch.library.register_fake("sckit::head_forward")
def _forward_fake(
    h: Tensor, bias: Tensor, shared: Tensor, weight: Tensor, plans: list[Tensor], truth: Tensor | None, engine: str
) -> tuple[Tensor, Tensor]:
    return bias.new_empty(bias.shape), bias.new_empty(())


@torch.library.impl("sckit::head_backward", "CompositeExplicitAutograd")
def _backward(
    slope: Tensor, h: Tensor, shared: Tensor, weight: Tensor, plans: list[Tensor], engine: str
) -> tuple[Tensor, Tensor, Tensor]:
    return load_engine("head", engine).head_backward(slope.contiguous(), h, shared, weight, *_plans(plans))


@torch.library.register_fake("sckit::head_backward")
def _backward_fake(
    slope: Tensor, h: Tensor, shared: Tensor, weight: Tensor, plans: list[Tensor], engine: str
) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), shared.new_empty(shared.shape), weight.new_empty(weight.shape)


def _plans(tensors: list[Tensor]) -> tuple[RowPlan, RowPlan]:
    """Return the plans of genes and rows; they were checked against weight and h on entry."""
    return RowPlan._make([*tensors[:4], -1]), RowPlan._make([*tensors[4:], -1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h, _, shared, weight, plans, truth, ctx.engine = inputs
    ctx.save_for_backward(output[0], truth, h, shared, weight, *plans)


def _gradient(ctx: Any, slope: Tensor, loss_slope: Tensor) -> tuple[Any, ...]:
    prediction, truth, h, shared, weight, *plans = ctx.saved_tensors
    if truth is not None:  # both outputs in one: the gradient of each prediction [M]
        slope = slope + (prediction - truth) * (loss_slope * (2 / max(prediction.shape[0], 1)))
    dh, dshared, dweight = torch.ops.sckit.head_backward(slope, h, shared, weight, plans, ctx.engine)
    return dh, slope, dshared, dweight, [None] * 8, None, None


torch.library.register_autograd("sckit::head_forward", _gradient, setup_context=_save)
once_differentiable("sckit::head_backward", "masked_head")
