"""`sckit bench kernels`: the attention engines beside what torch offers, on batches shaped like real cells.

Every round times every variant once, so that other load on the machine hits them alike; the machine's own matrix
product is timed in the same rounds. No speed is reported for an engine that disagrees with float64.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sckit.errors import SckitError
from sckit.kernels.attention import attention, choose_engine, plan_attention

Variant = Callable[[Tensor, Tensor, Tensor], Tensor]
GEMM_SIDE = 1024
LARGEST_ERROR = {torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}
BUCKET = 8


@dataclass(frozen=True)
class Case:
    """A batch whose cells have the numbers of detected genes that 10x data have."""

    name: str
    heads: int
    head_dim: int
    median_tokens: int
    """Median of detected genes a cell; lognormal with sigma 0.55, cut to 100..2500."""
    cells: int
    hidden_share: float = 0.0
    """Share of a cell's tokens that are queries only."""

    def lengths(self) -> list[int]:
        """Tokens of each cell, the same in every run."""
        law = np.random.default_rng(0).lognormal(np.log(self.median_tokens), 0.55, self.cells)
        return law.clip(100, 2500).astype(int).tolist()

    def keys(self) -> list[int]:
        """Tokens of each cell that are keys."""
        return [tokens - int(self.hidden_share * tokens) for tokens in self.lengths()]

    def gflop(self, *, backward: bool) -> float:
        """Work of the two products of the forward pass, times 3.5 with the five of the backward pass, in 1e9."""
        pairs = sum(tokens * keys for tokens, keys in zip(self.lengths(), self.keys(), strict=True))
        return 4 * pairs * self.heads * self.head_dim * (3.5 if backward else 1.0) / 1e9


CASES = (
    Case("long", 4, 32, 700, 24),
    Case("short", 4, 32, 250, 64),
    Case("long", 8, 64, 700, 12),
    Case("short", 8, 64, 250, 32),
    Case("short", 2, 32, 250, 64),
    Case("long-half-hidden", 4, 32, 700, 24, 0.5),
)


def bench_kernels(
    cases: Sequence[Case] = CASES,
    *,
    rounds: int = 7,
    device: str = "cpu",
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Time attention forward, and forward with backward, on `torch.get_num_threads()` threads or a GPU.

    Returns the document that `sckit bench kernels --json` ends with; `tell` gets every row as it is measured. gflops
    and share_of_peak follow from medians over the rounds, and a share is of the matrix product in the same rounds.
    Raises SckitError when an engine disagrees with float64.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    peaks, rows = [], []
    for case in cases:
        case_rows, peak = _bench_case(case, rounds, device, dtype)
        peaks.append(peak)
        for row in case_rows:
            tell(row)
        rows += case_rows
    return {"command": "bench kernels", "peak_gflops": max(peaks), "rows": rows}


def _bench_case(case: Case, rounds: int, device: str, dtype: torch.dtype) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of one case and the median of its matrix product in 1e9 operations a second."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(case.lengths())
    qkv = [torch.randn(tokens, case.heads, case.head_dim, generator=generator).to(device, dtype) for _ in range(3)]
    grad = torch.randn(tokens, case.heads, case.head_dim, generator=generator).to(device, dtype)
    square = torch.randn(GEMM_SIDE, GEMM_SIDE, generator=generator).to(device, dtype)
    engine, _ = choose_engine(device, dtype)
    _check_engine(case, engine, qkv)
    variants = {engine: _engine(case, engine, device)} | torch_variants(case, device)
    times: dict[tuple[str, str], list[float]] = {}
    for measured in range(-1, rounds):  # the round before the first warms up
        for name, variant in variants.items():
            results = {
                ("gemm", "fwd"): _wall_s(lambda: square @ square, device),
                (name, "fwd"): _wall_s(lambda variant=variant: _forward(variant, qkv), device),
                (name, "fwd+bwd"): _wall_s(lambda variant=variant: _both(variant, qkv, grad), device),
            }
            for key, wall_s in results.items():
                if measured >= 0:
                    times.setdefault(key, []).append(wall_s)
    peak = 2 * GEMM_SIDE**3 / float(np.median(times.pop(("gemm", "fwd")))) / 1e9
    rows = []
    for (name, passes), walls in times.items():
        median_s = float(np.median(walls))
        gflops = case.gflop(backward=passes == "fwd+bwd") / median_s
        row = {"op": "attention", "case": case.name, "heads": case.heads, "head_dim": case.head_dim, "pass": passes}
        row |= {"engine": name, "gflops": gflops, "share_of_peak": gflops / peak, "median_ms": 1e3 * median_s}
        rows.append(row)
    return rows, peak


def _wall_s(run: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _forward(variant: Variant, qkv: list[Tensor]) -> None:
    with torch.no_grad():
        variant(*qkv)


def _both(variant: Variant, qkv: list[Tensor], grad: Tensor) -> None:
    leaves = [part.detach().requires_grad_() for part in qkv]
    variant(*leaves).backward(grad)


def _engine(case: Case, engine: str, device: str) -> Variant:
    offsets = pad(torch.tensor(case.lengths()).cumsum(0), (1, 0))
    plan = plan_attention(offsets, torch.tensor(case.keys())).to(device)
    return lambda q, k, v: attention(q, k, v, plan=plan, engine=engine)


def _check_engine(case: Case, engine: str, qkv: list[Tensor]) -> None:
    """Compare the first cells with float64, forward and gradients; no speed is worth having from a wrong engine."""
    lengths, keys = case.lengths()[:3], case.keys()[:3]
    offsets = pad(torch.tensor(lengths).cumsum(0), (1, 0))
    results = []
    for name, kind in ((engine, qkv[0].dtype), ("reference", torch.float64)):
        q, k, v = (part[: sum(lengths)].to(kind, copy=True).requires_grad_() for part in qkv)
        out = attention(q, k, v, offsets, torch.tensor(keys), engine=name)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for got, want in zip(*results, strict=True):
        error = float((got.double() - want).abs().max() / want.abs().max())
        if not error <= LARGEST_ERROR[qkv[0].dtype]:
            message = (
                f"engine {engine!r} is wrong by {error:.1e} of the largest entry on case {case.name!r} with"
                f" {case.heads} heads of {case.head_dim}, so no speed is reported; run pytest tests/kernels."
            )
            raise SckitError(message)


def torch_variants(case: Case, device: str) -> dict[str, Variant]:
    """Return what a user could write with torch alone; those that pad only where every token is a key."""
    lengths, keys = case.lengths(), case.keys()
    masks: list[Tensor | None] = [None] * len(lengths)
    if case.hidden_share:
        masks = [_seen(tokens, n, device) for tokens, n in zip(lengths, keys, strict=True)]

    def split(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _each_cell(scaled_dot_product_attention, q, k, v, lengths, masks)

    def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _each_cell(_matmul_softmax_matmul, q, k, v, lengths, masks)

    if case.hidden_share:
        return {"torch-split": split, "torch-matmul": matmul}
    order = np.argsort(lengths, kind="stable")
    buckets = [order[i : i + BUCKET].tolist() for i in range(0, len(order), BUCKET)]
    everything = [list(range(len(lengths)))]
    return {
        "torch-split": split,
        "torch-buckets": lambda q, k, v: _padded(q, k, v, lengths, buckets),
        "torch-padded": lambda q, k, v: _padded(q, k, v, lengths, everything),
        "torch-matmul": matmul,
    }


def _seen(tokens: int, keys: int, device: str) -> Tensor:
    """Return the mask of one cell, True where a query sees a key."""
    index = torch.arange(tokens, device=device)
    return (index[None, :] < keys) | (index[None, :] == index[:, None])  # [L, L]


def _each_cell(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, lengths: list[int], masks: list[Tensor | None]
) -> Tensor:
    """Attend cell by cell; split and not slices, whose gradients are as large as the batch for every cell."""
    parts = [whole.transpose(0, 1)[None].split(lengths, 2) for whole in (q, k, v)]  # [1, H, L, D] each
    out = [attend(*cell, attn_mask=mask) for cell, mask in zip(zip(*parts, strict=True), masks, strict=True)]
    return torch.cat(out, 2)[0].transpose(0, 1)


def _matmul_softmax_matmul(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ v


def _padded(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], groups: list[list[int]]) -> Tensor:
    """Attend in groups of cells padded to the longest of the group."""
    parts = [whole.split(lengths) for whole in (q, k, v)]
    out: list[Tensor] = [q] * len(lengths)
    for group in groups:
        tokens = torch.tensor([lengths[cell] for cell in group], device=q.device)
        mask = torch.arange(int(tokens.max()), device=q.device) < tokens[:, None, None, None]  # [B, 1, 1, L]
        dense = [
            torch.nn.utils.rnn.pad_sequence([part[cell] for cell in group], batch_first=True).transpose(1, 2)
            for part in parts
        ]  # [B, H, L, D]
        attended = scaled_dot_product_attention(*dense, attn_mask=mask).transpose(1, 2)  # [B, L, H, D]
        for row, cell in enumerate(group):
            out[cell] = attended[row, : lengths[cell]]
    return torch.cat(out)
