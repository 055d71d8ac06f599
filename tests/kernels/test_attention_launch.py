"""Launches of the Triton attention kernels: the table, its polynomial, strides, addresses beyond 32 bits, tuning."""

import os

import pytest
import torch
from torch import Tensor

from sckit.kernels.attention import attention, plan_attention
from sckit.kernels.attention_plan import AttentionPlan
from sckit.kernels.attention_reference import attention_reference

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from sckit.kernels import attention_launch, attention_triton, attention_tune
from sckit.kernels.attention_launch import LAUNCHES, Launch, Launches

CELLS = torch.tensor([0, 70, 200]), torch.tensor([40, 130])


def random_qkv(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, 3, 1, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def parted(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of a projection."""
    return qkv[:, 0], qkv[:, 1], qkv[:, 2]


def engine_results(qkv: Tensor, plan: AttentionPlan, launches: Launches | None = None) -> list[Tensor]:
    q, k, v = parted(qkv)
    out, lse = attention_triton.attention_forward(q, k, v, plan, launches)
    return [out, *attention_triton.attention_backward(out, q, k, v, out, lse, plan, launches)]


@pytest.mark.parametrize("architecture", sorted(LAUNCHES))
def test_every_row_of_the_table_is_right(architecture: str) -> None:
    plan = plan_attention(*CELLS)
    for width in (16, 32):
        qkv = random_qkv(200, width, torch.float16)
        exact = attention_reference(*qkv.double().unbind(1), plan.cells)
        out = engine_results(qkv, plan, LAUNCHES[architecture][width, 2])[0]
        assert (out - exact).abs().max() <= 4 * torch.finfo(torch.float16).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("poly", [1, 2])
def test_polynomial_exponential_is_within_rounding(dtype: torch.dtype, poly: int) -> None:
    plan = plan_attention(*CELLS)
    qkv = random_qkv(200, 16, dtype)
    leaf = qkv.double().requires_grad_()
    exact = attention_reference(*leaf.unbind(1), plan.cells)
    polynomial = Launches(*[Launch(32, 4, 2, poly=poly)] * 3)
    results = engine_results(qkv, plan, polynomial)
    exact.backward(results[0].double())
    assert leaf.grad is not None
    changed = False
    for got, want, plain in zip(
        results, [exact.detach(), *leaf.grad.unbind(1)], engine_results(qkv, plan), strict=True
    ):
        scale = torch.finfo(dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + scale
        changed |= not torch.equal(got, plain)
    assert changed  # the polynomial was really used


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1], ids=["plain", "of-nvidia", "all-ones"])
@pytest.mark.parametrize("where", [0, 1], ids=["query", "key"])
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's, under Triton's interpreter
def test_polynomial_exponential_shows_what_is_no_number(where: int, bits: int) -> None:
    plan = plan_attention(torch.tensor([0, 40]), torch.tensor([40]))
    polynomial = Launches(*[Launch(32, 4, 2, poly=1)] * 3)  # every other block of 8 columns
    for token in (3, 11):
        qkv = random_qkv(40, 16, torch.float32)
        qkv[token, where] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        shown = engine_results(qkv, plan, polynomial)[0].isnan().any(-1).flatten()
        assert shown.nonzero().flatten().tolist() == ([token] if where == 0 else list(range(40)))


def test_tokens_too_far_apart_for_int32_are_brought_together() -> None:
    far = 2**31 // 64
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 8 * far * 2:
        pytest.skip("not enough memory to map")
    wide = torch.empty(8, far, dtype=torch.float16)  # 537 MB mapped, 24 pages touched
    qkv = random_qkv(8, 16, torch.float16)
    parts = []
    for i, part in enumerate(qkv.unbind(1)):
        wide[:, 16 * i : 16 * (i + 1)] = part[:, 0]
        parts.append(wide[:, None, 16 * i : 16 * (i + 1)])
    q = attention_triton._alike(parts[0], parts[1], parts[2], 64)[0]
    assert q.stride(0) == 16
    near = attention_triton._alike(*parted(qkv), 64)
    assert near[0].data_ptr() == qkv.data_ptr()
    offsets = torch.tensor([0, 8])
    want = attention(*qkv.unbind(1), offsets, engine="triton")
    assert torch.equal(attention(*parts, offsets, engine="triton"), want)


@pytest.mark.parametrize(("engine", "dtype"), [("triton", torch.float16), ("numba", torch.float32)])
def test_addresses_beyond_32_bits(engine: str, dtype: torch.dtype) -> None:
    """A batch of more than 2**31 numbers, of which only the last cell is ever touched: the rest stays unmapped."""
    from importlib import import_module

    kernels = import_module(f"sckit.kernels.attention_{engine}")
    heads, width, length, keys = 2, 64, 70, 45
    tokens = 2**31 // (3 * heads * width) + 2 * length
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < tokens * 3 * heads * width * dtype.itemsize:
        pytest.skip("not enough memory to map")
    alone = torch.randn(length, 3, heads, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    qkv = torch.empty(tokens, 3, heads, width, dtype=dtype)
    grad = torch.empty(tokens, heads, width, dtype=dtype)
    qkv[-length:] = alone
    grad[-length:] = alone[:, 0]
    assert qkv.numel() > 2**31
    small = plan_attention(torch.tensor([0, length]), torch.tensor([keys]))
    large = AttentionPlan(
        *(torch.where(torch.arange(part.shape[1]) == 0, tokens - length, part).int() for part in small.tensors()),
        tokens,
    )
    unused = large.query_tiles[:, 1] == 0  # rows beyond the last tile stay empty
    large.query_tiles[unused] = 0
    large.key_tiles[large.key_tiles[:, 1] == 0] = 0
    results = []
    for part, plan, slope in ((alone, small, alone[:, 0].contiguous()), (qkv, large, grad)):
        out, lse = kernels.attention_forward(*part.unbind(1), plan)
        gradients = kernels.attention_backward(slope, *part.unbind(1), out, lse, plan)
        results.append([result[-length:] for result in (out, *gradients)])
    for mine, other in zip(*results, strict=True):
        assert torch.equal(mine, other)


def test_choice_depends_on_the_length_class_and_not_on_the_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_launch, "TUNED", {})
    monkeypatch.setattr(attention_tune, "TUNED", attention_launch.TUNED)
    qkv = random_qkv(200, 16, torch.float16)
    slow, fast = (Launches(*[Launch(step, 4, 2)] * 3) for step in (64, 32))
    ticks = iter([0.0, 9.0, 0.0, 9.0, 0.0, 1.0] * 3)  # two candidates take 9 seconds, the last takes 1
    plan = plan_attention(*CELLS)
    chosen = attention_tune.tune(*qkv.unbind(1), plan, candidates=[slow, fast], rounds=1, clock=lambda: next(ticks))
    assert chosen == fast
    assert list(attention_launch.TUNED) == [("sm_80", 16, torch.float16, "short")]
    assert attention_launch.choose_launches(qkv[:90, 0], 2) == fast
    assert (
        attention_launch.choose_launches(torch.empty(2000, 1, 16, dtype=torch.float16), 2) == LAUNCHES["sm_80"][16, 2]
    )
    assert attention_launch.choose_launches(qkv.float()[:, 0], 2) == LAUNCHES["sm_80"][16, 4]


@pytest.mark.parametrize(
    ("capability", "row"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_80"),
        ((7, 5), "sm_80"),
    ],
)
def test_a_device_takes_the_row_of_its_instructions(
    capability: tuple[int, int], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention_launch.architecture.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert attention_launch.architecture(torch.device("cuda", 0)) == row
    attention_launch.architecture.cache_clear()
