"""Attention: every engine against float64, both key rules, every gradient, and what must not change a result."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sckit.kernels.attention import attention, plan_attention

TILES = {"numba": 48, "triton": 64}  # queries of a tile
CELLS = {  # engine: (tokens, keys) around its tile, with no key, one, a part and all
    engine: [
        (n, k) for n in (0, 1, 2, tile - 1, tile, tile + 1, 2 * tile + 1) for k in sorted({0, min(1, n), n * 3 // 5, n})
    ]
    for engine, tile in TILES.items()
}
CELLS["numba"] += [(400, 400), (390, 120)]  # more than a task of the forward pass


def packed(cells: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return offsets and keys of cells given as (tokens, keys)."""
    lengths, keys = torch.tensor(cells).T
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), keys


def random_qkv(tokens: int, heads: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one projection [T, 3, H, D], of which q, k and v are strided slices."""
    return torch.randn(tokens, 3, heads, width, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def run(qkv: Tensor, offsets: Tensor, keys: Tensor | None, engine: str) -> list[Tensor]:
    """Return the output and the gradients of q, k and v for an output gradient that is a function of the position."""
    leaf = qkv.detach().clone().requires_grad_()
    out = attention(*leaf.unbind(1), offsets, keys, engine=engine)
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().reshape(out.shape)
    out.backward(slope.to(out.dtype))
    assert leaf.grad is not None
    return [out.detach(), *leaf.grad.unbind(1)]


@pytest.mark.parametrize(
    ("engine", "heads", "width", "dtype"),
    [
        *[pytest.param("numba", 2, width, torch.float32, id=f"numba-{width}-wide") for width in range(8, 129, 8)],
        *[
            pytest.param("triton", 2 if width == 32 else 1, width, dtype, id=f"triton-{width}-wide-{str(dtype)[6:]}")
            for width in (16, 32, 64, 128)
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
            if width < 128 or dtype != torch.float32
        ],
    ],
)
@pytest.mark.usefixtures("nan_memory")
def test_engine_agrees_with_float64(
    engine: str, heads: int, width: int, dtype: torch.dtype, assert_within_budget: Callable[..., None]
) -> None:
    offsets, keys = packed(CELLS[engine])
    qkv = random_qkv(int(offsets[-1]), heads, width, dtype)
    exact = run(qkv.double(), offsets, keys, "reference")
    plain = run(qkv, offsets, keys, "reference")
    for name, *results in zip(("out", "dq", "dk", "dv"), run(qkv, offsets, keys, engine), exact, plain, strict=True):
        assert_within_budget(*results, name)


def test_reference_is_softmax_of_masked_scores() -> None:
    q, k, v = random_qkv(5, 1, 4, torch.float64).unbind(1)
    out = attention(q, k, v, torch.tensor([0, 5]), torch.tensor([2]), engine="reference")
    for i, seen in enumerate([[0, 1], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 4]]):
        weights = (k[seen, 0] @ q[i, 0] / 2).softmax(0)
        torch.testing.assert_close(out[i, 0], weights @ v[seen, 0])


def test_reference_passes_gradcheck() -> None:
    offsets, keys = packed([(3, 3), (0, 0), (4, 2), (1, 0)])
    q, k, v = (part.clone().requires_grad_() for part in random_qkv(8, 2, 4, torch.float64).unbind(1))
    run = lambda q, k, v: attention(q, k, v, offsets, keys, engine="reference")  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v), fast_mode=True)


def test_numba_keeps_its_stated_accuracy() -> None:
    offsets, _ = packed([(600, 600), (250, 250), (31, 31)])
    qkv = random_qkv(int(offsets[-1]), 4, 32)
    exact = run(qkv.double(), offsets, None, "reference")
    for got, want, limit in zip(run(qkv, offsets, None, "numba"), exact, (2e-6, 5e-6, 5e-6, 5e-6), strict=True):
        assert (got - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize(
    ("q_norm", "k_norm"), [(0.1, 0.1), (6.0, 6.0), (13.9, 13.9), (14.1, 14.1), (40.0, 40.0), (0.05, 4e4), (4e4, 0.05)]
)
def test_numba_with_scores_on_either_side_of_its_bound(q_norm: float, k_norm: float) -> None:
    offsets, keys = packed([(300, 290), (50, 50), (49, 1)])
    qkv = random_qkv(int(offsets[-1]), 2, 32)
    norms = torch.tensor([q_norm, k_norm])[None, :, None, None]
    qkv[:, :2] *= norms / qkv[:, :2].norm(dim=-1, keepdim=True)  # scores of 14 x 14 are just within the bound
    qkv[3, 0] *= 2.0
    exact = run(qkv.double(), offsets, keys, "reference")
    for got, want in zip(run(qkv, offsets, keys, "numba"), exact, strict=True):
        # a score is rounded to eps of its size, which is the relative error of its weight
        limit = torch.finfo(torch.float32).eps * (8 + q_norm * k_norm / 32**0.5) * want.abs().max()
        assert (got - want).abs().max() <= limit


@pytest.mark.parametrize("engine", ["numba", "triton"])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, -1], ids=["plain", "with-a-payload", "all-ones"])
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's, under Triton's interpreter
def test_what_is_not_a_number_is_not_hidden(engine: str, where: int, bits: int) -> None:
    offsets, keys = packed([(70, 70), (20, 20)])
    qkv = random_qkv(90, 1, 16)
    qkv[5, where] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    out = attention(*qkv.unbind(1), offsets, keys, engine=engine).isnan().any(-1).any(-1)
    assert out[5]
    assert not out[70:].any()
    assert bool(out[:70].all()) == (where > 0)


def test_numba_with_scores_and_values_near_the_ends_of_float32() -> None:
    offsets, keys = packed([(60, 60), (30, 10)])
    qkv = random_qkv(90, 1, 16)
    qkv[:, 2] *= 1e36
    exact = attention(*qkv.double().unbind(1), offsets, keys, engine="reference")
    torch.testing.assert_close(attention(*qkv.unbind(1), offsets, keys).double(), exact, rtol=1e-5, atol=1e30)
    low = torch.zeros(3, 1, 16)
    low[:, :, 0] = -1e16
    q, k, v = low * -10.0, low.clone(), torch.arange(48.0).reshape(3, 1, 16)
    k[1, 0, 0] = -9e15
    torch.testing.assert_close(attention(q, k, v, torch.tensor([0, 3])), v[1:2].expand(3, 1, 16))


def test_numba_writes_float32_whatever_the_default_dtype() -> None:
    offsets, keys = packed([(30, 20), (7, 7)])
    qkv = random_qkv(37, 2, 16)
    want = run(qkv, offsets, keys, "numba")
    torch.set_default_dtype(torch.float64)
    try:
        got = run(qkv, offsets, keys, "numba")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


def test_there_is_no_second_gradient() -> None:
    q, k, v = (part.clone().requires_grad_() for part in random_qkv(9, 1, 16).unbind(1))
    out = attention(q, k, v, torch.tensor([0, 9]))
    (slope,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not twice differentiable; use engine='reference'"):
        slope.sum().backward()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_vector_width_changes_no_bit(lanes: int) -> None:
    from sckit.kernels import attention_numba as engine

    offsets, keys = packed(CELLS["numba"])
    plan = plan_attention(offsets, keys)
    q, k, v = random_qkv(int(offsets[-1]), 1, 24).unbind(1)
    results = []
    for vector_width in (engine.host_width(), lanes):
        out, lse = engine.attention_forward(q, k, v, plan, vector_width=vector_width)
        gradients = engine.attention_backward(v, q, k, v, out, lse, plan, vector_width=vector_width)
        results.append((out, *gradients))
    assert all(torch.equal(mine, host) for mine, host in zip(*results, strict=True))


def test_numba_is_the_same_with_any_number_of_threads() -> None:
    offsets, keys = packed(CELLS["numba"] * 2)
    qkv = random_qkv(int(offsets[-1]), 2, 32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3, 3):
        torch.set_num_threads(count)
        results.append(run(qkv, offsets, keys, "numba"))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, results[0], strict=True))


@pytest.mark.parametrize("engine", ["reference", "numba", "triton"])
def test_cell_alone_is_the_cell_in_a_batch(engine: str) -> None:
    cells = [(30, 30), (70, 41), (5, 0)]
    offsets, keys = packed(cells)
    qkv = random_qkv(int(offsets[-1]), 1, 16)
    batch = attention(*qkv.unbind(1), offsets, keys, engine=engine)
    for cell, (tokens, n_keys) in enumerate(cells):
        own = slice(int(offsets[cell]), int(offsets[cell + 1]))
        alone = attention(*qkv[own].unbind(1), *packed([(tokens, n_keys)]), engine=engine)
        if engine == "reference":  # torch picks its matrix product by shape and alignment
            torch.testing.assert_close(alone, batch[own])
        else:
            assert torch.equal(alone, batch[own])


@pytest.mark.parametrize("engine", ["numba", "triton"])
def test_order_of_keys_does_not_matter(engine: str, assert_within_budget: Callable[..., None]) -> None:
    offsets, keys = packed([(90, 60)])
    qkv = random_qkv(90, 1, 16)
    order = torch.cat([torch.randperm(60, generator=torch.Generator().manual_seed(0)), torch.arange(60, 90)])
    exact = attention(*qkv.double().unbind(1), offsets, keys, engine="reference")
    plain = attention(*qkv.unbind(1), offsets, keys, engine="reference")
    shuffled = attention(*qkv[order].unbind(1), offsets, keys, engine=engine)
    assert_within_budget(shuffled, exact[order], plain[order], "out")


@pytest.mark.parametrize("engine", ["reference", "numba", "triton"])
def test_a_hidden_token_is_seen_by_itself_only(engine: str) -> None:
    offsets, keys = packed([(80, 50), (10, 10)])
    q, k, v = random_qkv(90, 1, 16).unbind(1)
    before = attention(q, k, v, offsets, keys, engine=engine)
    k, v = k.clone(), v.clone()
    k[60], v[60] = 7.0, 1000.0
    after = attention(q, k, v, offsets, keys, engine=engine)
    changed = (after != before).any(-1).any(-1)
    assert changed.nonzero().flatten().tolist() == [60]


@pytest.mark.parametrize("engine", ["numba", "triton"])
@pytest.mark.parametrize("factor", [30.0, -30.0])
def test_large_scores_stay_finite(engine: str, factor: float) -> None:
    offsets, keys = packed([(70, 70), (20, 5)])
    qkv = random_qkv(90, 1, 16)
    qkv[:, 0] = qkv[:, 1] * factor  # the own score is by far the largest, or the smallest
    largest = (qkv[:, 0] * qkv[:, 1]).sum(-1).abs().max() / 4
    exact = run(qkv.double(), offsets, keys, "reference")
    for got, want in zip(run(qkv, offsets, keys, engine), exact, strict=True):
        # scores are sums of float32, rounded to eps of the largest: that is the relative error of a weight
        limit = torch.finfo(torch.float32).eps * largest * want.abs().max()
        assert (got - want).abs().max() <= limit


@pytest.mark.parametrize("engine", ["reference", "numba", "triton"])
def test_empty_batches(engine: str) -> None:
    for offsets in (torch.tensor([0]), torch.tensor([0, 0, 0], dtype=torch.int32)):
        assert [part.shape for part in run(torch.zeros(0, 3, 2, 16), offsets, None, engine)] == [(0, 2, 16)] * 4


@pytest.mark.parametrize("engine", ["numba", "triton"])
def test_any_strides(engine: str) -> None:
    offsets, keys = packed([(20, 13), (4, 4)])
    q, k, v = random_qkv(24, 2, 16).unbind(1)
    want = attention(q.contiguous(), k.contiguous(), v.contiguous(), offsets, keys, engine=engine)
    turned = k.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(attention(q, turned, v.contiguous(), offsets, keys, engine=engine), want)


def test_plan_takes_the_place_of_offsets() -> None:
    offsets, keys = packed([(9, 4), (30, 30)])
    q, k, v = random_qkv(39, 2, 8).unbind(1)
    want = attention(q, k, v, offsets, keys)
    assert torch.equal(attention(q, k, v, plan=plan_attention(offsets.int(), keys.int())), want)
    with pytest.raises(ValueError, match="either offsets"):
        attention(q, k, v, offsets, plan=plan_attention(offsets))
    with pytest.raises(ValueError, match="either offsets"):
        attention(q, k, v)
    for other in ([0, 9], [0, 9, 38], [0, 40]):
        for engine in ("reference", "numba"):
            with pytest.raises(ValueError, match="the plan is of"):
                attention(q, k, v, plan=plan_attention(torch.tensor(other)), engine=engine)


def test_plan_puts_the_most_work_first_and_covers_every_token_once() -> None:
    cells = [(200, 10), (0, 0), (130, 130), (64, 64), (65, 0)]
    plan = plan_attention(*packed(cells))
    assert [tuple(row[1:]) for row in plan.cells.tolist()] == [cells[i] for i in (2, 3, 0, 4, 1)]
    for tiles, span in ((plan.query_tiles, 1), (plan.key_tiles, 2)):
        owned = [row[0] + i for row in tiles.tolist() for i in range(row[3], min(row[3] + 64, row[span]))]
        wanted = [row[0] + i for row in plan.cells.tolist() for i in range(row[span])]
        assert owned == wanted


@pytest.mark.parametrize("engine", ["numba", "triton"])
def test_operators_pass_opcheck(engine: str) -> None:
    offsets, keys = packed([(5, 5), (7, 3)])
    plan = plan_attention(offsets, keys)
    torch.library.opcheck(torch.ops.sckit.attention_plan, (offsets, keys, 12))
    strided = random_qkv(12, 2, 16).unbind(1)
    for parts in (strided, [part.contiguous() for part in strided]):
        q, k, v = (part.detach().requires_grad_() for part in parts)
        torch.library.opcheck(torch.ops.sckit.attention_forward, (q, k, v, *plan.tensors(), engine))
        with torch.no_grad():
            out, lse = torch.ops.sckit.attention_forward(q, k, v, *plan.tensors(), engine)
            torch.library.opcheck(torch.ops.sckit.attention_backward, (out, q, k, v, out, lse, *plan.tensors(), engine))


def test_compiles_into_one_graph_whatever_the_batch() -> None:
    def layer(qkv: Tensor, offsets: Tensor, keys: Tensor) -> Tensor:
        return attention(*qkv.unbind(1), offsets, keys).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for cells in ([(5, 5), (7, 3)], [(40, 10)], [(3, 1), (0, 0), (90, 90)]):
        offsets, keys = packed(cells)
        mine, theirs = (random_qkv(int(offsets[-1]), 2, 8).requires_grad_() for _ in range(2))
        layer(mine, offsets, keys).backward()
        compiled(theirs, offsets, keys).backward()
        assert torch.equal(mine.grad, theirs.grad)


def test_compiles_into_one_graph_with_a_plan() -> None:
    compiled = torch.compile(
        lambda qkv, plan: attention(*qkv.unbind(1), plan=plan), fullgraph=True, backend="aot_eager"
    )
    for cells in ([(5, 5), (7, 3)], [(70, 10), (1, 1)]):
        offsets, keys = packed(cells)
        qkv = random_qkv(int(offsets[-1]), 2, 8)
        assert torch.equal(compiled(qkv, plan_attention(offsets, keys)), attention(*qkv.unbind(1), offsets, keys))
