"""Token states: every engine against float64, the gradient of every table, and what must not change a result."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sckit.kernels import engines
from sckit.kernels.embed import EmbedTables, TokenScalars, embed, plan_rows

RANGES = {"value_range": (0.0, 9.25), "expected_range": (-2.0, 6.0)}
NAMES = ("out", "gene", "cell", "curve", "expected_curve", "residual_vector", "hidden_vector")
COMPILED = ("numba", "triton")


def a_batch(lengths: list[int], n_genes: int = 90, hidden: float = 0.4) -> tuple[Tensor, Tensor, TokenScalars]:
    """Return genes (distinct in a cell), cells and scalars of cells with these numbers of tokens."""
    generator = torch.Generator().manual_seed(sum(lengths))
    genes = [torch.randperm(n_genes, generator=generator)[:n] for n in lengths]
    tokens = sum(lengths)
    cells = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    values = torch.rand(tokens, generator=generator) * 14 - 2  # some outside the range
    residual = torch.randn(tokens, generator=generator)
    expected = torch.randn(tokens, generator=generator) * 4
    shown = TokenScalars(values, residual, expected, torch.rand(tokens, generator=generator) < hidden)
    return torch.cat([*genes, torch.empty(0, dtype=torch.int64)]), cells, shown


def some_tables(genes: int, cells: int, width: int, knots: tuple[int, int] = (32, 32)) -> EmbedTables:
    generator = torch.Generator().manual_seed(width)
    shapes = [(genes, width), (cells, width), (knots[0], width), (knots[1], width), (width,), (width,)]
    return EmbedTables(*(torch.randn(shape, generator=generator) for shape in shapes))


def run(
    genes: Tensor, cells: Tensor, scalars: TokenScalars, tables: EmbedTables, dtype: torch.dtype, engine: str
) -> list[Tensor]:
    """Return the states and the gradient of every table for a gradient that is a function of the position."""
    leaves = EmbedTables(*(part.detach().to(dtype).requires_grad_() for part in tables))
    out = embed(plan_rows(genes), plan_rows(cells), scalars, leaves, **RANGES, engine=engine)
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).mul(40).sin().reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


@pytest.mark.parametrize(
    ("lengths", "width", "hidden"),
    [
        pytest.param([], 64, 0.4, id="no-cells"),
        pytest.param([0, 1, 0], 64, 0.0, id="one-token"),
        pytest.param([31], 16, 0.4, id="a-token-less-than-a-tile"),
        pytest.param([20, 12], 64, 0.4, id="a-tile"),
        pytest.param([33], 24, 0.4, id="a-token-more-than-a-tile-24-wide"),
        pytest.param([3, 90, 90, 0, 41], 128, 0.4, id="all-genes-in-two-cells-128-wide"),
        pytest.param([40, 30], 72, 1.0, id="all-hidden-72-wide"),
        pytest.param([40, 30], 64, 0.0, id="none-hidden"),
        pytest.param([80, 90, 85] * 5, 16, 0.4, id="more-than-a-part"),
    ],
)
@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.usefixtures("nan_memory")
def test_engine_agrees_with_float64(
    engine: str, lengths: list[int], width: int, hidden: float, assert_within_budget: Callable[..., None]
) -> None:
    genes, cells, scalars = a_batch(lengths, hidden=hidden)
    check(engine, (genes, cells, scalars), some_tables(95, len(lengths) + 2, width), assert_within_budget)


def check(engine: str, batch: tuple, tables: EmbedTables, within: Callable, dtype: torch.dtype = torch.float32) -> None:
    """Compare an engine with float64, both on tables that were rounded to the dtype."""
    rounded = EmbedTables(*(part.to(dtype) for part in tables))
    exact = run(*batch, rounded, torch.float64, "reference")
    plain = run(*batch, rounded, dtype, "reference")
    for name, *results in zip(NAMES, run(*batch, rounded, dtype, engine), exact, plain, strict=True):
        within(*results, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_triton_takes_16_bits(dtype: torch.dtype, assert_within_budget: Callable[..., None]) -> None:
    check("triton", a_batch([40, 27]), some_tables(90, 2, 32), assert_within_budget, dtype)


@pytest.mark.parametrize("knots", [(2, 3), (33, 64), (40, 2)], ids=["few", "many", "unlike"])
@pytest.mark.parametrize("engine", COMPILED)
def test_any_number_of_knots(engine: str, knots: tuple[int, int], assert_within_budget: Callable[..., None]) -> None:
    check(engine, a_batch([40, 27]), some_tables(90, 2, 16, knots), assert_within_budget)


@pytest.mark.parametrize("engine", COMPILED)
def test_a_vocabulary_of_one_gene(engine: str, assert_within_budget: Callable[..., None]) -> None:
    check(engine, a_batch([1] * 40, n_genes=1), some_tables(1, 40, 16), assert_within_budget)


def test_a_long_numba_batch_keeps_its_accuracy(assert_within_budget: Callable[..., None]) -> None:
    check("numba", a_batch([700] * 9, n_genes=800), some_tables(800, 9, 64), assert_within_budget)


def test_reference_is_the_sum_of_its_parts() -> None:
    scalars = TokenScalars(
        torch.tensor([9.25 / 4, 5.0, 20.0]),
        torch.tensor([2.0, torch.nan, 0.0]),
        torch.tensor([-9.0, 2.0, 6.0]),
        torch.tensor([False, True, False]),
    )
    tables = EmbedTables(*(part.double() for part in some_tables(3, 1, 4, (3, 5))))
    rows, one = plan_rows(torch.tensor([2, 0, 1])), plan_rows(torch.zeros(3, dtype=torch.int64))
    out = embed(rows, one, scalars, tables, **RANGES, engine="reference") - tables.cell
    gene, _, curve, expected, residual_vector, hidden_vector = tables
    torch.testing.assert_close(out[0], gene[2] + (curve[0] + curve[1]) / 2 + 2 * residual_vector + expected[0])
    torch.testing.assert_close(out[1], gene[0] + hidden_vector + expected[2])
    torch.testing.assert_close(out[2], gene[1] + curve[2] + expected[4])


def test_reference_passes_gradcheck() -> None:
    genes, cells, scalars = a_batch([4, 3], n_genes=5)
    tables = [part.double().requires_grad_() for part in some_tables(5, 2, 3, (3, 4))]
    plans = plan_rows(genes), plan_rows(cells)
    run = lambda *tables: embed(*plans, scalars, EmbedTables(*tables), **RANGES, engine="reference")  # noqa: E731
    assert torch.autograd.gradcheck(run, tables, fast_mode=True)


@pytest.mark.parametrize("engine", ["reference", *COMPILED])
def test_what_is_hidden_is_not_looked_at(engine: str) -> None:
    genes, cells, scalars = a_batch([40, 27])
    tables = some_tables(90, 2, 16)
    veil = torch.where(scalars.hidden, torch.nan, 0.0)
    other = scalars._replace(values=scalars.values + veil, residual=scalars.residual + veil)
    for mine, theirs in zip(
        *(run(genes, cells, s, tables, torch.float32, engine) for s in (scalars, other)), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("engine", ["reference", *COMPILED])
@pytest.mark.parametrize(
    ("field", "table"),
    [("values", "curve"), ("residual", "residual_vector"), ("expected", "expected_curve")],
    ids=lambda name: name,
)
def test_a_value_that_is_no_number_shows(engine: str, field: str, table: str) -> None:
    genes, cells, scalars = a_batch([20], hidden=0.0)
    part = getattr(scalars, field).clone()
    part[3] = torch.nan
    changed = scalars._replace(**{field: part})
    results = run(genes, cells, changed, some_tables(90, 1, 16), torch.float32, engine)
    assert results[0].isnan().any(1).nonzero().flatten().tolist() == [3]
    shown = [name for name, result in zip(NAMES, results, strict=True) if result.isnan().any()]
    assert shown == ["out", table]


@pytest.mark.parametrize("engine", ["reference", *COMPILED])
def test_an_expectation_that_is_no_number_shows_where_the_value_is_hidden(engine: str) -> None:
    genes, cells, scalars = a_batch([20], hidden=1.0)
    scalars.expected[3] = torch.nan
    results = run(genes, cells, scalars, some_tables(90, 1, 16), torch.float32, engine)
    assert results[0].isnan().any(1).nonzero().flatten().tolist() == [3]
    assert [name for name, part in zip(NAMES, results, strict=True) if part.isnan().any()] == ["out", "expected_curve"]


@pytest.mark.parametrize("engine", COMPILED)
def test_engines_write_float32_whatever_the_default_dtype(engine: str) -> None:
    batch = (*a_batch([40, 27]), some_tables(90, 2, 16), torch.float32, engine)
    want = run(*batch)
    torch.set_default_dtype(torch.float64)
    try:
        got = run(*batch)
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("engine", COMPILED)
def test_there_is_no_second_gradient(engine: str) -> None:
    genes, cells, scalars = a_batch([20, 13])
    tables = EmbedTables(*(part.requires_grad_() for part in some_tables(90, 2, 16)))
    out = embed(plan_rows(genes), plan_rows(cells), scalars, tables, **RANGES, engine=engine)
    (slope,) = torch.autograd.grad(out.square().sum(), tables.gene, create_graph=True)
    with pytest.raises(RuntimeError, match="embed is not twice differentiable; use engine='reference'"):
        slope.sum().backward()


@pytest.mark.parametrize("engine", COMPILED)
def test_order_of_cells_changes_no_bit(engine: str) -> None:
    lengths = [40, 27, 50]
    genes, cells, scalars = a_batch(lengths)
    tables = some_tables(90, 3, 16)
    order = torch.cat([torch.arange(len(cells))[cells == c] for c in (2, 0, 1)])
    turned = tables._replace(cell=tables.cell[[2, 0, 1]])
    there = TokenScalars(*(part[order] for part in scalars))
    again = torch.repeat_interleave(torch.arange(3), torch.tensor([50, 40, 27]))
    first = embed(plan_rows(genes), plan_rows(cells), scalars, tables, **RANGES, engine=engine)
    second = embed(plan_rows(genes[order]), plan_rows(again), there, turned, **RANGES, engine=engine)
    assert torch.equal(second, first[order])


def test_numba_is_the_same_with_any_number_of_threads() -> None:
    batch = (*a_batch([700, 90, 800, 20, 650] * 3, n_genes=900), some_tables(900, 15, 32), torch.float32, "numba")
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3, 2):
        torch.set_num_threads(count)
        results.append(run(*batch))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, results[0], strict=True))


@pytest.mark.parametrize("engine", COMPILED)
def test_any_strides(engine: str) -> None:
    genes, cells, scalars = a_batch([20, 13])
    tables = some_tables(90, 2, 16)
    turned = EmbedTables(*(part.T.contiguous().T if part.ndim == 2 else part for part in tables))
    for mine, theirs in zip(
        *(run(genes, cells, scalars, some, torch.float32, engine) for some in (tables, turned)), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_plan_sorts_positions_by_row() -> None:
    plan = plan_rows(torch.tensor([3, 0, 3, 7, 0], dtype=torch.int32))
    assert [part.tolist() for part in plan.tensors()] == [[3, 0, 3, 7, 0], [1, 4, 0, 2, 3], [0, 3, 7], [0, 2, 4, 5]]
    assert plan.n_rows == 8
    wide = torch.tensor([70_000, 3, 70_000])
    assert plan_rows(wide).order.tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_plan_keeps_the_rows_that_were_checked(dtype: torch.dtype) -> None:
    rows = torch.tensor([3, 0, 3], dtype=dtype)
    plan = plan_rows(rows)
    rows.fill_(2**30)
    assert plan.rows.tolist() == [3, 0, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([[1]], "one line", id="two-dimensions"),
        pytest.param([1.0], "got torch.float32", id="floats"),
        pytest.param([4, -1], r"got -1\.\.4", id="negative"),
        pytest.param([2**40], r"0\.\.2\*\*31 - 2", id="too-large"),
    ],
)
def test_wrong_rows_are_named(rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_rows(torch.tensor(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"gene": torch.zeros(4, 16)}, "genes takes row 8 of a table that has 4 rows", id="few-genes"),
        pytest.param({"cell": torch.zeros(1, 16)}, "cells takes row 1 of a table that has 1", id="few-cells"),
        pytest.param({"hidden_vector": torch.zeros(8)}, "two of \\[E\\]", id="narrow-hidden-vector"),
        pytest.param({"curve": torch.zeros(1, 16)}, "at least 2 knots", id="one-knot"),
        pytest.param({"curve": torch.zeros(4, 16).double()}, "one floating dtype", id="two-dtypes"),
        pytest.param({"values": torch.zeros(8)}, r"values must be floating \[9\]", id="few-values"),
        pytest.param({"hidden": torch.zeros(9)}, "hidden must be bool", id="floating-hidden"),
        pytest.param({"value_range": (1.0, 1.0)}, "from low to high", id="empty-range"),
        pytest.param({"engine": "cuda"}, "must be one of auto", id="unknown-engine"),
        pytest.param({"cells": plan_rows(torch.zeros(3).int())}, "plan of 3 positions", id="cells-of-another-batch"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    zeros = torch.zeros(9)
    scalars = TokenScalars(zeros, zeros, zeros, zeros.bool())
    arguments = {"genes": plan_rows(torch.arange(9)), "cells": plan_rows((torch.arange(9) > 4).int())}
    arguments |= RANGES | {k: v for k, v in change.items() if k in ("engine", "value_range", "cells")}
    tables = EmbedTables(*(torch.zeros_like(part) for part in some_tables(9, 2, 16)))
    tables = tables._replace(**{k: v for k, v in change.items() if k in EmbedTables._fields})
    scalars = scalars._replace(**{k: v for k, v in change.items() if k in TokenScalars._fields})
    with pytest.raises(ValueError, match=message):
        embed(scalars=scalars, tables=tables, **arguments)


@pytest.mark.parametrize("engine", COMPILED)
def test_engines_refuse_float64(engine: str) -> None:
    genes, cells, scalars = a_batch([5])
    tables = EmbedTables(*(part.double() for part in some_tables(90, 1, 16)))
    with pytest.raises(ValueError, match=r"float32, got torch\.float64"):
        embed(plan_rows(genes), plan_rows(cells), scalars, tables, **RANGES, engine=engine)


def test_triton_refuses_cpu_tensors_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="needs GPU tensors"):
        run(*a_batch([5]), some_tables(90, 1, 16), torch.float32, "triton")


@pytest.mark.parametrize("engine", COMPILED)
def test_operators_pass_opcheck(engine: str) -> None:
    genes, cells, scalars = a_batch([7, 5], n_genes=9)
    tables = [part.requires_grad_() for part in some_tables(9, 2, 16, (4, 3))]
    plans = [*plan_rows(genes).tensors(), *plan_rows(cells).tensors()]
    ranges = [*RANGES["value_range"], *RANGES["expected_range"]]
    torch.library.opcheck(torch.ops.sckit.embed_forward, (plans, list(scalars), tables, ranges, engine))
    rows = [len(part) for part in tables[:4]]
    torch.library.opcheck(
        torch.ops.sckit.embed_backward, (torch.randn(12, 16), plans, list(scalars), ranges, rows, engine)
    )


def test_compiles_into_one_graph_whatever_the_batch() -> None:
    def layer(genes, cells, scalars, tables):
        return embed(genes, cells, scalars, tables, **RANGES)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lengths in ([5, 7], [40, 1, 80], [3]):
        genes, cells, scalars = a_batch(lengths)
        results = []
        for call in (layer, compiled):
            tables = EmbedTables(*(part.requires_grad_() for part in some_tables(90, len(lengths), 16)))
            out = call(plan_rows(genes), plan_rows(cells), scalars, tables)
            results.append([out, *torch.autograd.grad(out.square().sum(), tables)])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
