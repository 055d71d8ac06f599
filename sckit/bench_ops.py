"""Token states and the masked head beside the same mathematics in plain torch, on batches shaped like real cells.

Every round times every variant once, so that other load on the machine hits them alike. No time is reported before the
results agree.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sckit.errors import SckitError
from sckit.kernels.attention import choose_engine
from sckit.kernels.embed import EmbedTables, TokenScalars, embed
from sckit.kernels.head import masked_head
from sckit.kernels.rows import plan_rows

Variant = tuple[Callable[[str], Tensor], Sequence[Tensor], Tensor]  # result by engine, leaves, gradient of the result
CASES = [(tokens, width) for tokens in (8192, 32768) for width in (64, 128, 256)]

_GENES, _CELL_TOKENS, _KNOTS, _HIDDEN = 10_000, 600, 32, 0.5
_RANGES = {"value_range": (0.0, 9.25), "guess_range": (-2.0, 6.0)}
_LARGEST_ERROR = 2e-5  # of the largest entry: two orders of summation in float32


def bench_ops(
    rounds: int = 7,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
    *,
    cases: Sequence[tuple[int, int]] = CASES,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Time `embed` and `masked_head`, forward and forward with backward, and return a row for each engine.

    cases: tokens and width; half of the tokens are hidden and are the targets of the head. "reference" is plain torch.
    Times are wall clock over the rounds on `torch.get_num_threads()` threads or a GPU, the plans of a batch made
    before. `tell` gets every row as it is measured. Raises SckitError when the engines disagree.
    """
    engine, _ = choose_engine(device, torch.float32)
    rows = []
    for tokens, width in cases:
        for op, variant in _variants(tokens, width, device).items():
            _check(op, variant, engine)
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(rounds):
                for name in (engine, "reference"):
                    times.setdefault((name, "fwd"), []).append(_wall_ms(variant, name, device, backward=False))
                    times.setdefault((name, "fwd+bwd"), []).append(_wall_ms(variant, name, device, backward=True))
            for (name, passes), walls_ms in times.items():
                p20, median, p80 = np.percentile(walls_ms, (20, 50, 80))
                row = {"op": op, "case": f"T{tokens} E{width}", "pass": passes, "engine": name}
                row |= {"median_ms": float(median), "p20_ms": float(p20), "p80_ms": float(p80)}
                tell(row)
                rows.append(row)
    return rows


def _variants(tokens: int, width: int, device: str) -> dict[str, Variant]:
    """Return both operators on one made-up batch: genes distinct within a cell, the common ones in most cells."""
    generator = np.random.default_rng(0)
    share = generator.lognormal(0, 1.5, _GENES)
    cells = np.arange(tokens) // _CELL_TOKENS
    own = [generator.choice(_GENES, n, replace=False, p=share / share.sum()) for n in np.bincount(cells)]
    genes = torch.from_numpy(np.concatenate(own))
    hidden = torch.from_numpy(generator.random(tokens) < _HIDDEN)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal(shape, np.float32)).to(device)

    scalars = TokenScalars(normal(tokens) + 2, normal(tokens), normal(tokens), hidden.to(device))
    shapes = ((_GENES, width), (len(own), width), (_KNOTS, width), (_KNOTS, width), (width,), (width,))
    tables = EmbedTables._make([normal(*shape).requires_grad_() for shape in shapes])
    plans = plan_rows(genes).to(device), plan_rows(torch.from_numpy(cells)).to(device)
    slope = normal(tokens, width)
    targets = plan_rows(genes[hidden]).to(device)
    count = len(targets.rows)
    bias, truth = normal(count), normal(count)
    h, shared = normal(count, width).requires_grad_(), normal(width).requires_grad_()
    return {
        "embed": (lambda engine: embed(*plans, scalars, tables, **_RANGES, engine=engine), tables, slope),
        "head": (
            lambda engine: masked_head(h, bias, shared, tables.gene, targets, truth=truth, engine=engine)[1],
            (h, shared, tables.gene),
            torch.ones((), device=device),
        ),
    }


def _wall_ms(variant: Variant, engine: str, device: str, *, backward: bool) -> float:
    run, leaves, slope = variant
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = run(engine)
        if backward:
            torch.autograd.grad(out, leaves, slope)
    if device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _check(op: str, variant: Variant, engine: str) -> None:
    """Compare the engine with plain torch, result and gradients; that also compiles and warms both."""
    run, leaves, slope = variant
    results = []
    for name in (engine, "reference"):
        out = run(name)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, slope)])
    for got, want in zip(*results, strict=True):
        error = float((got - want).abs().max() / want.abs().max())
        if not error <= _LARGEST_ERROR:
            message = f"engine {engine!r} is off by {error:.1e} of the largest entry in {op}; run pytest tests/kernels."
            raise SckitError(message)
