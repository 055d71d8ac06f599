"""The masked head: every engine against float64, both outputs, every gradient, and what must not change a result."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sckit.kernels.head import masked_head, plan_rows

NAMES = ("prediction", "loss", "h", "bias", "shared", "weight")
COMPILED = ("numba", "triton")


class Case(NamedTuple):
    """Targets of the masked head, and what predicts them."""

    h: Tensor
    bias: Tensor
    shared: Tensor
    weight: Tensor
    genes: Tensor
    rows: Tensor | None
    truth: Tensor


def a_case(lengths: list[int], width: int, *, table: int = 41, gathered: bool = False) -> Case:
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    targets = sum(lengths)
    genes = [torch.randperm(table, generator=generator)[:n] for n in lengths]
    rows = torch.randperm(2 * targets + 1, generator=generator)[:targets].sort().values if gathered else None
    shapes = [(2 * targets + 1 if gathered else targets, width), (targets,), (width,), (table, width)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    truth = torch.randn(targets, generator=generator)
    return Case(*tensors, torch.cat([*genes, torch.empty(0, dtype=torch.int64)]), rows, truth)


def run(case: Case, dtype: torch.dtype, engine: str, h_dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return both outputs and every gradient, for gradients of both outputs."""
    leaves = [part.detach().to(dtype).requires_grad_() for part in case[:4]]
    leaves[0] = case.h.detach().to(h_dtype or dtype).requires_grad_()
    rows = None if case.rows is None else plan_rows(case.rows)
    outputs = masked_head(*leaves, plan_rows(case.genes), rows=rows, truth=case.truth.to(dtype), engine=engine)
    slopes = torch.linspace(0, 9, len(case.bias), dtype=torch.float64).cos().to(dtype), torch.tensor(3.0, dtype=dtype)
    return [*(part.detach() for part in outputs), *torch.autograd.grad(outputs, leaves, slopes)]


def check(engine: str, case: Case, within: Callable, h_dtype: torch.dtype = torch.float32) -> None:
    """Compare an engine with float64, on the same rounded h."""
    case = case._replace(h=case.h.to(h_dtype))
    exact = run(case, torch.float64, "reference")
    plain = run(case, torch.float32, "reference", h_dtype)
    for name, *results in zip(NAMES, run(case, torch.float32, engine, h_dtype), exact, plain, strict=True):
        within(*results, name)


@pytest.mark.parametrize(
    ("lengths", "width"),
    [
        pytest.param([], 64, id="no-targets"),
        pytest.param([0, 1, 0], 64, id="one-target"),
        pytest.param([31], 16, id="a-target-less-than-a-tile"),
        pytest.param([20, 12], 64, id="a-tile"),
        pytest.param([33], 24, id="a-target-more-than-a-tile-24-wide"),
        pytest.param([41, 3, 41, 0, 17], 128, id="all-genes-in-two-cells-128-wide"),
        pytest.param([40, 30], 72, id="72-wide"),
    ],
)
@pytest.mark.parametrize("rows", ["targets-only", "rows-of-h"])
@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.usefixtures("nan_memory")
def test_engine_agrees_with_float64(
    engine: str, lengths: list[int], width: int, rows: str, assert_within_budget: Callable[..., None]
) -> None:
    check(engine, a_case(lengths, width, gathered=rows == "rows-of-h"), assert_within_budget)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("rows", ["targets-only", "rows-of-h"])
def test_triton_takes_states_of_16_bits(
    dtype: torch.dtype, rows: str, assert_within_budget: Callable[..., None]
) -> None:
    check("triton", a_case([40, 27], 32, gathered=rows == "rows-of-h"), assert_within_budget, dtype)


@pytest.mark.parametrize("engine", COMPILED)
def test_a_vocabulary_of_one_gene(engine: str, assert_within_budget: Callable[..., None]) -> None:
    check(engine, a_case([1] * 40, 16, table=1), assert_within_budget)


def test_a_long_numba_batch_keeps_its_accuracy(assert_within_budget: Callable[..., None]) -> None:
    check("numba", a_case([700] * 9, 64, table=800, gathered=True), assert_within_budget)


@pytest.mark.parametrize("engine", ["reference", *COMPILED])
def test_a_row_of_h_may_serve_many_targets(engine: str) -> None:
    case = a_case([40, 27], 16, gathered=True)
    case = case._replace(rows=torch.arange(67) // 20)
    copied = case._replace(h=case.h[case.rows], rows=None)
    for name, mine, theirs in zip(
        NAMES, run(case, torch.float32, engine), run(copied, torch.float32, "reference"), strict=True
    ):
        if name == "h":
            theirs = torch.zeros(135, 16).index_add(0, case.rows, theirs)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_reference_is_a_product_a_target() -> None:
    case = a_case([3, 4], 8, gathered=True)
    prediction, loss = run(case, torch.float64, "reference")[:2]
    wanted = [
        case.bias[m].double() + case.h[case.rows[m]].double() @ (case.shared + case.weight[case.genes[m]]).double()
        for m in range(7)
    ]
    torch.testing.assert_close(prediction, torch.stack(wanted), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(loss, ((prediction - case.truth) ** 2).mean())


def test_reference_passes_gradcheck() -> None:
    case = a_case([4, 3], 3, gathered=True)
    plans = plan_rows(case.genes), plan_rows(case.rows)
    run = lambda *leaves: masked_head(  # noqa: E731
        *leaves, plans[0], rows=plans[1], truth=case.truth.double(), engine="reference"
    )
    assert torch.autograd.gradcheck(run, [part.double().requires_grad_() for part in case[:4]], fast_mode=True)


@pytest.mark.parametrize("engine", ["reference", *COMPILED])
def test_without_truth_there_is_no_loss(engine: str) -> None:
    case = a_case([20, 7], 16)
    alone = masked_head(*case[:4], plan_rows(case.genes), engine=engine)
    both = masked_head(*case[:4], plan_rows(case.genes), truth=case.truth, engine=engine)
    assert torch.equal(alone, both[0])
    assert both[1].shape == ()


@pytest.mark.parametrize("engine", COMPILED)
def test_either_output_has_a_gradient_of_its_own(engine: str) -> None:
    case = a_case([20, 7], 16)
    gradients = []
    for chosen in (engine, "reference"):
        for output in (0, 1):
            leaves = [part.clone().requires_grad_() for part in case[:4]]
            outputs = masked_head(*leaves, plan_rows(case.genes), truth=case.truth, engine=chosen)
            gradients.append(torch.autograd.grad(outputs[output].sum(), leaves))
    for mine, theirs in zip(gradients[0] + gradients[1], gradients[2] + gradients[3], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", COMPILED)
def test_engines_write_float32_whatever_the_default_dtype(engine: str) -> None:
    case = a_case([20, 7], 16, gathered=True)
    want = run(case, torch.float32, engine)
    torch.set_default_dtype(torch.float64)
    try:
        got = run(case, torch.float32, engine)
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.parametrize("leaf", ["h", "weight"])
def test_there_is_no_second_gradient(engine: str, leaf: str) -> None:
    case = a_case([20, 7], 16)
    leaves = [part.requires_grad_() for part in case[:4]]
    _, loss = masked_head(*leaves, plan_rows(case.genes), truth=case.truth, engine=engine)
    (slope,) = torch.autograd.grad(loss, getattr(case, leaf), create_graph=True)
    with pytest.raises(RuntimeError, match="masked_head is not twice differentiable; use engine='reference'"):
        slope.sum().backward()


@pytest.mark.parametrize("engine", ["reference", *COMPILED])
def test_no_targets_give_no_loss_and_no_gradient(engine: str) -> None:
    prediction, loss, *gradients = run(a_case([], 16, gathered=True), torch.float32, engine)
    assert prediction.shape == (0,)
    assert loss == 0
    assert [part.count_nonzero() for part in gradients] == [0] * 4


@pytest.mark.parametrize("engine", COMPILED)
def test_order_of_targets_changes_no_bit_of_a_prediction(engine: str) -> None:
    case = a_case([40, 27], 16)
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    turned = case._replace(h=case.h[order], bias=case.bias[order], genes=case.genes[order])
    first, second = (masked_head(*c[:4], plan_rows(c.genes), engine=engine) for c in (case, turned))
    assert torch.equal(second, first[order])


def test_numba_is_the_same_with_any_number_of_threads() -> None:
    case = a_case([700, 90, 800, 20, 650] * 3, 32, table=900, gathered=True)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3, 2):
        torch.set_num_threads(count)
        results.append(run(case, torch.float32, "numba"))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, results[0], strict=True))


@pytest.mark.parametrize("engine", COMPILED)
def test_any_strides(engine: str) -> None:
    case = a_case([20, 13], 16)
    turned = case._replace(h=case.h.T.contiguous().T, weight=case.weight.T.contiguous().T)
    results = (run(c, torch.float32, engine) for c in (case, turned))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"weight": torch.zeros(4, 16)}, "genes takes row .* of a table that has 4 rows", id="few-genes"),
        pytest.param({"shared": torch.zeros(8)}, r"shared \[E\], got \(9, 16\)", id="narrow-shared"),
        pytest.param({"bias": torch.zeros(8)}, r"must be \[9\], got \[\(8,\)", id="few-biases"),
        pytest.param({"truth": torch.zeros(9).double()}, "of one floating dtype", id="truth-of-another-dtype"),
        pytest.param({"h": torch.zeros(10, 16)}, "each of the 9 targets, got 10", id="more-rows-than-targets"),
        pytest.param({"h": torch.zeros(9, 16).int()}, "h must be floating", id="integers"),
        pytest.param({"rows": torch.arange(9) + 1}, "rows takes row 9 of a table that has 9", id="row-too-far"),
        pytest.param({"rows": torch.arange(8)}, "plan of 8 positions, but there are 9", id="few-rows"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    case = a_case([5, 4], 16)._replace(**change)
    rows = None if case.rows is None else plan_rows(case.rows)
    with pytest.raises(ValueError, match=message):
        masked_head(*case[:4], plan_rows(case.genes), rows=rows, truth=case.truth)


@pytest.mark.parametrize(
    ("engine", "dtype", "message"),
    [
        pytest.param("cuda", torch.float32, "must be one of auto, reference", id="unknown-engine"),
        pytest.param("numba", torch.float64, "float32, got torch.float64", id="numba-float64"),
        pytest.param("triton", torch.float64, "float32, got torch.float64", id="triton-float64"),
        pytest.param("triton", torch.float16, "weights of float32, got torch.float16", id="triton-float16-weights"),
    ],
)
def test_engines_say_what_they_cannot_do(engine: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(a_case([5], 16), dtype, engine)


@pytest.mark.parametrize("engine", COMPILED)
@pytest.mark.parametrize("known", ["without-truth", "with-truth"])
def test_operators_pass_opcheck(engine: str, known: str) -> None:
    case = a_case([7, 5], 16, table=9, gathered=True)
    leaves = [part.requires_grad_() for part in case[:4]]
    plans = [*plan_rows(case.genes).tensors(), *plan_rows(case.rows).tensors()]
    truth = case.truth if known == "with-truth" else None
    torch.library.opcheck(torch.ops.sckit.head_forward, (*leaves, plans, truth, engine))
    still = case.truth, *(leaf.detach() for leaf in (leaves[0], *leaves[2:]))
    torch.library.opcheck(torch.ops.sckit.head_backward, (*still, plans, engine))


@pytest.mark.parametrize("rows", ["targets-only", "rows-of-h"])
def test_compiles_into_one_graph_whatever_the_batch(rows: str) -> None:
    def layer(h, bias, shared, weight, genes, rows, truth):
        return masked_head(h, bias, shared, weight, genes, rows=rows, truth=truth)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lengths in ([5, 7], [40, 1, 20], [3]):
        case = a_case(lengths, 16, gathered=rows == "rows-of-h")
        results = []
        for call in (layer, compiled):
            leaves = [part.clone().requires_grad_() for part in case[:4]]
            taken = None if case.rows is None else plan_rows(case.rows)
            prediction, loss = call(*leaves, plan_rows(case.genes), taken, case.truth)
            results.append([prediction, loss, *torch.autograd.grad(prediction.sum() + loss, leaves)])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
