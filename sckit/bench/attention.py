"""`sckit bench kernels`: the attention engines compared with what a user could run instead, on lengths of real cells.

The machine's own matrix product is timed in the same rounds, next to each variant.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sckit.bench.cases import CASES, Case
from sckit.bench.competitors import attention_competitors
from sckit.bench.harness import Contest, OnEvent, Row, check, measure, output_and_gradients, with_gradients
from sckit.data.views import indptr_of
from sckit.kernels.attention import attention, plan_attention
from sckit.kernels.engines import choose_engine
from sckit.provenance import measured_on

GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
LARGEST_ERROR = {torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of an output or gradient against float64, as a share of the largest entry."""


def bench_kernels(
    cases: Sequence[Case] = CASES,
    *,
    rounds: int = 5,
    device: str = "cpu",
    tune: bool = False,
    on_event: OnEvent = lambda kind, facts: None,
) -> dict[str, Any]:
    """Time attention forward, and forward with backward, on `torch.get_num_threads()` threads or a GPU.

    Returns the document that `sckit bench kernels --json` ends with: one row for every case, engine and pass, with the
    median and the 20th and 80th percentile of its times, gflops and share_of_peak from the median, and provenance; and
    the competitors that could not run here. With `tune` a GPU first tries other launches of our kernels and goes on
    with the best, in this process. Events as in `harness.measure`.
    Raises SckitError when an engine or competitor disagrees with float64.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    where = measured_on(device, dtype)
    engine, _ = choose_engine(device, dtype)
    contests = [_contest(case, engine, device, dtype, tune=tune and engine == "triton") for case in cases]
    left_out = {}
    for done, contest in enumerate(contests):
        on_event("progress", {"done": done, "of": len(contests), "what": f"checking {contest.name}"})
        left_out |= check(contest)
    rows = measure(contests, rounds, {"rounds": rounds} | where, device=device, on_event=on_event)
    peak = max(_peak_gflops(device, float(np.median(contest.yardstick_s))) for contest in contests)
    document = {"command": "bench kernels", "peak_gflops": peak, "rows": rows}
    return document | ({"left_out": left_out} if left_out else {})


def _contest(case: Case, engine: str, device: str, dtype: torch.dtype, *, tune: bool) -> Contest:
    """Return our engine against the competitors; checked in the first, the longest and the last cell."""
    lengths, keys = case.lengths(), case.keys()
    generator = torch.Generator().manual_seed(0)
    shape = sum(lengths), case.heads, case.head_dim
    q, k, v, slope = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
    square = torch.randn(GEMM_SIDE[device], GEMM_SIDE[device], generator=generator).to(device, dtype)
    plan = plan_attention(torch.from_numpy(indptr_of(lengths)), torch.tensor(keys)).to(device)
    if tune:
        from sckit.kernels.attention_tune import tune as tune_launches

        tune_launches(q, k, v, plan)
    leaves = [part.requires_grad_() for part in (q, k, v)]
    runs = {engine: partial(attention, plan=plan, engine=engine)} | attention_competitors(lengths, keys, device)
    chosen = sorted({0, int(np.argmax(lengths)), len(lengths) - 1})

    def few(whole: Tensor) -> Tensor:
        cells = whole.detach().split(lengths)
        return torch.cat([cells[c] for c in chosen]).double()

    def figures(row: Row, yardstick_s: float) -> Row:
        gflops = case.gflop(backward=row["pass"] == "fwd+bwd") / row["median_ms"] * 1e3
        return {"gflops": gflops, "share_of_peak": gflops / _peak_gflops(device, yardstick_s)} | case.facts()

    offsets, few_keys = indptr_of([lengths[c] for c in chosen]), torch.tensor([keys[c] for c in chosen])
    exact = partial(attention, offsets=torch.from_numpy(offsets), keys=few_keys, engine="reference")
    return Contest(
        facts={"op": "attention", "case": case.name, "heads": case.heads, "head_dim": case.head_dim},
        variants={name: with_gradients(run, leaves, slope, few) for name, run in runs.items()},
        reference=partial(output_and_gradients, exact, [few(part).requires_grad_() for part in leaves], few(slope)),
        tolerance=LARGEST_ERROR[dtype],
        figures=figures,
        yardstick=lambda: square @ square,
    )


def _peak_gflops(device: str, wall_s: float) -> float:
    """Return the speed of the matrix product in GFLOP/s."""
    return 2 * GEMM_SIDE[device] ** 3 / wall_s / 1e9
