"""Token states of packed cells: checks, choice of the engine, and one registered operator with its gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sckit.kernels.embed_reference import embed_reference
from sckit.kernels.engines import load_engine, once_differentiable, pick_engine
from sckit.kernels.rows import RowPlan, check_plan, plan_rows

__all__ = ["EmbedTables", "RowPlan", "TokenScalars", "embed", "plan_rows"]

Tensors = list[Tensor]


class TokenScalars(NamedTuple):
    """What is known of each token, [T] each; none of it gets a gradient.

    `expected` is not the expected value itself but how far it lies above the value of a single count: no detected count
    is below one, so this distance says how the expectation will be wrong.
    """

    values: Tensor  # floating, in the units of `value_range`; not read where hidden
    residual: Tensor  # floating, the value minus its expectation; not read where hidden
    expected: Tensor  # floating, in the units of `expected_range`
    hidden: Tensor  # bool


class EmbedTables(NamedTuple):
    """What is learned; one floating dtype."""

    gene: Tensor  # [G, E]
    cell: Tensor  # [C, E]
    curve: Tensor  # [knots, E], a function of the value
    expected_curve: Tensor  # [knots of its own, E], a function of `expected`
    residual_vector: Tensor  # [E], added in proportion to the residual
    hidden_vector: Tensor  # [E], added to hidden tokens


def embed(
    genes: RowPlan,
    cells: RowPlan,
    scalars: TokenScalars,
    tables: EmbedTables,
    *,
    value_range: tuple[float, float],
    expected_range: tuple[float, float],
    engine: str = "auto",
) -> Tensor:
    """Return the states [T, E] of T tokens, in the dtype of the tables and differentiable in each of them.

        state = gene[g] + cell[c] + expected_curve(expected)
                + (hidden_vector where hidden, else curve(value) + residual * residual_vector)

    A curve is piecewise linear between knots that are evenly spaced over its range, and flat outside. `genes` and
    `cells` are plans of the tokens' rows, `plan_rows(rows)`, made once per batch.

    engine: "reference" (plain torch), "numba" (CPU, float32), "triton" (GPU; float16, bfloat16 or float32, float32
    sums), or "auto", the compiled one for the device.
    Raises ValueError for shapes, dtypes and rows that do not fit, and for an engine that cannot run these tensors.
    """
    _check(genes, cells, scalars, tables)
    engine = pick_engine(engine, *tables)
    ranges = [*value_range, *expected_range]
    if not (ranges[0] < ranges[1] and ranges[2] < ranges[3]):
        message = f"a range runs from low to high, got {value_range} and {expected_range}."
        raise ValueError(message)
    if engine == "reference":
        still = TokenScalars(*(part.detach() for part in scalars))
        return embed_reference(genes.rows, cells.rows, still, tables, ranges)
    floats = [part.to(torch.float32).contiguous() for part in scalars[:3]]
    parts = [part.contiguous() for part in tables]
    plans = [*genes.tensors(), *cells.tensors()]
    return torch.ops.sckit.embed_forward(plans, [*floats, scalars.hidden.contiguous()], parts, ranges, engine)


def _check(genes: RowPlan, cells: RowPlan, scalars: TokenScalars, tables: EmbedTables) -> None:
    gene, cell, curve, expected_curve, residual_vector, hidden_vector = tables
    if not gene.dtype.is_floating_point or any(part.dtype != gene.dtype for part in tables):
        message = f"the tables must share one floating dtype, got {[str(part.dtype) for part in tables]}."
        raise ValueError(message)
    lines = (residual_vector, hidden_vector)
    fits = all(part.ndim == 2 for part in tables[:4]) and all(part.shape == gene.shape[1:] for part in lines)
    if not fits or any(part.shape[1] != gene.shape[1] for part in tables[:4]):
        shapes = [tuple(part.shape) for part in tables]
        message = f"the tables must be four of [rows, E] and two of [E], got {shapes}."
        raise ValueError(message)
    if curve.shape[0] < 2 or expected_curve.shape[0] < 2:
        message = f"a curve has at least 2 knots, got {curve.shape[0]} and {expected_curve.shape[0]}."
        raise ValueError(message)
    for name, part in zip(TokenScalars._fields, scalars, strict=True):
        wanted = part.dtype == torch.bool if name == "hidden" else part.dtype.is_floating_point
        if not wanted or part.shape != genes.rows.shape:
            kind = "bool" if name == "hidden" else "floating"
            message = f"{name} must be {kind} [{genes.rows.shape[0]}], got {part.dtype} of {tuple(part.shape)}."
            raise ValueError(message)
    tensors = (*tables, *scalars, genes.rows, cells.rows)
    if any(part.device != gene.device for part in tensors):
        message = f"all tensors must lie on one device, got {sorted({str(part.device) for part in tensors})}."
        raise ValueError(message)
    check_plan("genes", genes, genes.rows.shape[0], gene.shape[0])
    check_plan("cells", cells, genes.rows.shape[0], cell.shape[0])


# Lists, because torch takes time quadratic in the number of arguments to call an operator that has a gradient.
torch.library.define(
    "sckit::embed_forward", "(Tensor[] plans, Tensor[] scalars, Tensor[] tables, float[] ranges, str engine) -> Tensor"
)
torch.library.define(
    "sckit::embed_backward",
    "(Tensor grad, Tensor[] plans, Tensor[] scalars, float[] ranges, SymInt[] rows, str engine)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("sckit::embed_forward", "CompositeExplicitAutograd")
def _forward(plans: Tensors, scalars: Tensors, tables: Tensors, ranges: list[float], engine: str) -> Tensor:
    return load_engine("embed", engine).embed_forward(*_plans(plans), tuple(scalars), tuple(tables), ranges)


@torch.library.register_fake("sckit::embed_forward")
def _forward_fake(plans: Tensors, scalars: Tensors, tables: Tensors, ranges: list[float], engine: str) -> Tensor:
    return tables[0].new_empty(plans[0].shape[0], tables[0].shape[1])


@torch.library.impl("sckit::embed_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor, plans: Tensors, scalars: Tensors, ranges: list[float], rows: list[int], engine: str
) -> tuple[Tensor, ...]:
    kernels = load_engine("embed", engine)
    return kernels.embed_backward(grad.contiguous(), *_plans(plans), tuple(scalars), ranges, rows)


@torch.library.register_fake("sckit::embed_backward")
def _backward_fake(
    grad: Tensor, plans: Tensors, scalars: Tensors, ranges: list[float], rows: list[int], engine: str
) -> tuple[Tensor, ...]:
    width = grad.shape[1]
    return *(grad.new_empty(count, width) for count in rows), grad.new_empty(width), grad.new_empty(width)


def _plans(tensors: Tensors) -> tuple[RowPlan, RowPlan]:
    """Return the plans of genes and cells; their rows were checked against the tables on entry."""
    return RowPlan._make([*tensors[:4], -1]), RowPlan._make([*tensors[4:], -1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    plans, scalars, tables, ctx.ranges, ctx.engine = inputs
    ctx.save_for_backward(*plans, *scalars)
    ctx.rows = [part.shape[0] for part in tables[:4]]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    gradients = torch.ops.sckit.embed_backward(grad, saved[:8], saved[8:], ctx.ranges, ctx.rows, ctx.engine)
    return [None] * 8, [None] * 4, list(gradients), None, None


torch.library.register_autograd("sckit::embed_forward", _gradient, setup_context=_save)
once_differentiable("sckit::embed_backward", "embed")
