"""`sckit bench kernels`: the attention engines beside what a user could run instead, on batches shaped like real cells.

Every round times every variant of every case once, so that other load on the machine hits them alike; the machine's
own matrix product is timed in the same rounds. No speed is reported where an engine or a competitor disagrees with
float64.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sckit.bench.cases import CASES, Case
from sckit.bench.competitors import Variant, competitors
from sckit.errors import SckitError
from sckit.kernels.attention import AttentionPlan, attention, plan_attention
from sckit.kernels.engines import choose_engine
from sckit.provenance import measured_on

GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
LARGEST_ERROR = {torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of an output or gradient against float64, as a share of the largest entry."""
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def bench_kernels(
    cases: Sequence[Case] = CASES,
    *,
    rounds: int = 5,
    device: str = "cpu",
    tune: bool = False,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Time attention forward, and forward with backward, on `torch.get_num_threads()` threads or a GPU.

    Returns the document that `sckit bench kernels --json` ends with: one row for every case, engine and pass, with the
    median and the 20th and 80th percentile of its times, gflops and share_of_peak from the median, and provenance.
    With `tune` a GPU tries other launches of our kernels first and goes on with the best, in this process.
    `tell` hears what is timed, how many timings are done and how many there are.
    Raises SckitError when an engine or competitor disagrees with float64.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    where = measured_on(device, dtype)
    engine, _ = choose_engine(device, dtype)
    benches = [_CaseBench(case, engine, device, dtype) for case in cases]
    if tune and engine == "triton":
        for bench in benches:
            bench.tune()
    for i, bench in enumerate(benches):
        tell(f"checking {bench.case.name}", i, len(benches))
        bench.check()
    total = sum(len(bench.variants) for bench in benches)
    for round_ in range(-1, rounds):  # the round before the first warms up
        done = (round_ + 1) * total
        for bench in benches:
            for name in bench.variants:
                tell(f"{bench.case.name} H{bench.case.heads} D{bench.case.head_dim} {name}", done, total * (rounds + 1))
                bench.time(name, keep=round_ >= 0)
                done += 1
    rows = [row | where for bench in benches for row in bench.rows()]
    document = {"command": "bench kernels", "peak_gflops": max(bench.peak() for bench in benches), "rows": rows}
    left_out = {name: reason for bench in benches for name, reason in bench.left_out.items()}
    return document | ({"left_out": left_out} if left_out else {})


class _CaseBench:
    """One case: its tensors, its variants, and their times in seconds."""

    def __init__(self, case: Case, engine: str, device: str, dtype: torch.dtype) -> None:
        self.case, self.device = case, device
        generator = torch.Generator().manual_seed(0)
        shape = sum(case.lengths()), case.heads, case.head_dim
        *self.qkv, self.grad = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
        side = GEMM_SIDE[device]
        self.square = torch.randn(side, side, generator=generator).to(device, dtype)
        self.engine = engine
        self.variants = {engine: self._own()} | competitors(case.lengths(), case.keys(), device)
        self.left_out: dict[str, str] = {}
        self.times: dict[tuple[str, str], list[float]] = {}
        self.gemm_times: list[float] = []

    def _plan(self) -> AttentionPlan:
        return plan_attention(_offsets(self.case.lengths()), torch.tensor(self.case.keys())).to(self.device)

    def _own(self) -> Variant:
        plan = self._plan()
        return lambda q, k, v: attention(q, k, v, plan=plan, engine=self.engine)

    def check(self) -> None:
        """Compare every variant with float64, as it is timed, in the first, the longest and the last cell.

        A competitor that cannot run here is left out, with what it says. Raises SckitError where one is wrong.
        """
        lengths, keys = self.case.lengths(), self.case.keys()
        chosen = sorted({0, int(np.argmax(lengths)), len(lengths) - 1})
        parts = [part.split(lengths) for part in self.qkv]
        few = [torch.cat([cells[c] for c in chosen]).double() for cells in parts]
        offsets, few_keys = _offsets([lengths[c] for c in chosen]), torch.tensor([keys[c] for c in chosen])
        exact = partial(attention, offsets=offsets, keys=few_keys, engine="reference")
        want = _results(exact, few)
        for name, variant in list(self.variants.items()):
            try:
                results = _results(variant, self.qkv)
            except (RuntimeError, NotImplementedError) as error:
                if name == self.engine:
                    raise
                self.left_out[name] = str(error).splitlines()[0]
                del self.variants[name]
                continue
            for whole, right in zip(results, want, strict=True):
                cells = whole.split(lengths)
                got = torch.cat([cells[c] for c in chosen])
                error = float((got.double() - right).abs().max() / right.abs().max())
                if not error <= LARGEST_ERROR[self.qkv[0].dtype]:
                    message = (
                        f"{name!r} is wrong by {error:.1e} of the largest entry on case {self.case.name!r} with"
                        f" {self.case.heads} heads of {self.case.head_dim}, so no speed is reported; run pytest"
                        " tests/kernels."
                    )
                    raise SckitError(message)

    def tune(self) -> None:
        """Let the attention of this head width and length class use the fastest launches."""
        from sckit.kernels.attention_tune import tune

        q, k, v = self.qkv
        tune(q, k, v, self._plan())

    def time(self, name: str, *, keep: bool) -> None:
        """Time one variant in both passes, and the matrix product beside them."""
        variant = self.variants[name]
        gemm_s = self._wall_s(lambda: self.square @ self.square)
        forward_s = self._wall_s(lambda: _forward(variant, self.qkv))
        both_s = self._wall_s(lambda: _both(variant, self.qkv, self.grad))
        if keep:
            self.gemm_times.append(gemm_s)
            self.times.setdefault((name, "fwd"), []).append(forward_s)
            self.times.setdefault((name, "fwd+bwd"), []).append(both_s)

    def _wall_s(self, run: Callable[[], Any]) -> float:
        repeats = 1 if self.device == "cpu" else 10
        _finish(self.device)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        _finish(self.device)
        return (time.perf_counter() - start) / repeats

    def peak(self) -> float:
        """Return the median of the matrix product in 1e9 operations a second."""
        return 2 * len(self.square) ** 3 / float(np.median(self.gemm_times)) / 1e9

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each variant and pass."""
        rows = []
        for (name, passes), walls in self.times.items():
            low_s, median_s, high_s = (float(x) for x in np.percentile(walls, (20, 50, 80)))
            gflops = self.case.gflop(backward=passes == "fwd+bwd") / median_s
            row: dict[str, Any] = {"op": "attention", "case": self.case.name}
            row |= {"heads": self.case.heads, "head_dim": self.case.head_dim, "pass": passes, "engine": name}
            row |= {"gflops": gflops, "share_of_peak": gflops / self.peak(), "median_ms": 1e3 * median_s}
            rows.append(row | {"p20_ms": 1e3 * low_s, "p80_ms": 1e3 * high_s, "rounds": len(walls)} | self.case.facts())
        return rows


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _forward(variant: Variant, qkv: list[Tensor]) -> None:
    with torch.no_grad():
        variant(*qkv)


def _both(variant: Variant, qkv: list[Tensor], grad: Tensor) -> None:
    leaves = [part.detach().requires_grad_() for part in qkv]
    variant(*leaves).backward(grad)


def _offsets(lengths: list[int]) -> Tensor:
    return pad(torch.tensor(lengths).cumsum(0), (1, 0))


def _results(variant: Variant, qkv: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of a sum of squares, in which every cell is on its own."""
    q, k, v = (part.detach().requires_grad_() for part in qkv)
    out = variant(q, k, v)
    return [out.detach(), *torch.autograd.grad(out.double().square().sum(), (q, k, v))]
