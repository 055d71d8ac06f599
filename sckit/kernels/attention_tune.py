"""Measure other ways to launch attention on this machine's GPU, on request only: nothing here runs by itself."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sckit.kernels import attention_triton as engine
from sckit.kernels.attention_launch import LAUNCHES, TUNED, Launches, architecture, choose_launches, length_class
from sckit.kernels.attention_plan import AttentionPlan


def tune(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    candidates: Sequence[Launches] | None = None,
    rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> Launches:
    """Time the candidates on these tensors [T, H, D] and use the fastest of each kernel from now on, in this process.

    The choice holds for the architecture, head width, dtype and length class of the tensors, whatever their number of
    tokens; the first candidate is what is chosen now, so a tie changes nothing. By default the candidates are the
    table's rows of this width for the same maker's GPUs, and each of them with the polynomial exponential for 16-bit
    numbers. A candidate that does not fit the GPU is skipped.
    """
    now = choose_launches(q, plan.cells.shape[0])
    if candidates is None:
        candidates = _candidates(q)
    out, lse = engine.attention_forward(q, k, v, plan)
    runs = (
        ("forward", lambda launches: engine.attention_forward(q, k, v, plan, launches)),
        ("queries", lambda launches: engine.attention_backward(out, q, k, v, out, lse, plan, launches)),
        ("keys", lambda launches: engine.attention_backward(out, q, k, v, out, lse, plan, launches)),
    )
    best = now
    for name, run in runs:
        tried = dict.fromkeys(best._replace(**{name: getattr(row, name)}) for row in (now, *candidates))
        seconds = {launches: _seconds(run, launches, q, rounds, clock) for launches in tried}
        best = min(seconds, key=lambda launches: seconds[launches])
    TUNED[architecture(q.device), q.shape[2], q.dtype, length_class(q.shape[0], plan.cells.shape[0])] = best
    return best


def _candidates(q: Tensor) -> list[Launches]:
    amd = architecture(q.device) == "gfx942"
    size = (q.shape[2], q.dtype.itemsize)
    rows = [table[size] for name, table in LAUNCHES.items() if (name == "gfx942") == amd]
    polynomial = [Launches(*(launch._replace(poly=2) for launch in row)) for row in rows]
    return rows + polynomial if q.dtype.itemsize == 2 else rows


def _seconds(
    run: Callable[[Launches], object], launches: Launches, q: Tensor, rounds: int, clock: Callable[[], float]
) -> float:
    """Return the shortest of some timed runs after one that compiles; infinity where they do not fit the GPU."""
    from triton.runtime.errors import OutOfResources

    wait = torch.cuda.synchronize if q.is_cuda else lambda: None
    best = float("inf")
    try:
        run(launches)
        for _ in range(rounds):
            wait()
            start = clock()
            run(launches)
            wait()
            best = min(best, clock() - start)
    except OutOfResources:
        return float("inf")
    return best
