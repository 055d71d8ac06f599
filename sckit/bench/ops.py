"""Token states and the masked head beside the fastest torch that we know for them, on batches shaped like real cells.

Every round times every variant once, so that other load on the machine hits them alike. No time is reported before the
results agree.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sckit.errors import SckitError
from sckit.kernels.embed import EmbedTables, TokenScalars, embed
from sckit.kernels.engines import choose_engine
from sckit.kernels.head import masked_head
from sckit.kernels.rows import plan_rows

Runs = dict[str, Callable[[], Tensor]]  # by engine
Variant = tuple[Runs, Sequence[Tensor], Tensor]  # runs, leaves, gradient of the result
CASES = [(tokens, width) for tokens in (8192, 32768) for width in (64, 128, 256)]

_GENES, _CELL_TOKENS, _KNOTS, _HIDDEN = 10_000, 600, 32, 0.5
_RANGES = {"value_range": (0.0, 9.25), "expected_range": (-2.0, 6.0)}
_LARGEST_ERROR = 2e-5  # of the largest entry: two orders of summation in float32


def bench_ops(
    rounds: int = 7,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
    *,
    cases: Sequence[tuple[int, int]] = CASES,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Time `embed` and `masked_head`, forward and forward with backward, and return a row for each engine.

    cases: tokens and width; half of the tokens are hidden and are the targets of the head. "reference" is the
    specification in plain torch, "torch-bag" one `embedding_bag`, "torch-vecdot" the head as one product of rows.
    Times are wall clock over the rounds on `torch.get_num_threads()` threads or a GPU, the plans of a batch made
    before, and so are the indices and weights of "torch-bag". `tell` gets every row as it is measured.
    Raises SckitError when a variant disagrees with the reference.
    """
    engine, _ = choose_engine(device, torch.float32)
    rows = []
    for tokens, width in cases:
        for op, variant in _variants(tokens, width, device, engine).items():
            _check(op, variant)
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(rounds):
                for name in variant[0]:
                    times.setdefault((name, "fwd"), []).append(_wall_ms(variant, name, device, backward=False))
                    times.setdefault((name, "fwd+bwd"), []).append(_wall_ms(variant, name, device, backward=True))
            for (name, passes), walls_ms in times.items():
                p20, median, p80 = np.percentile(walls_ms, (20, 50, 80))
                row = {"op": op, "case": f"T{tokens} E{width}", "pass": passes, "engine": name}
                row |= {"median_ms": float(median), "p20_ms": float(p20), "p80_ms": float(p80)}
                tell(row)
                rows.append(row)
    return rows


def _variants(tokens: int, width: int, device: str, engine: str) -> dict[str, Variant]:
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

    def states(name: str) -> Tensor:
        return embed(*plans, scalars, tables, **_RANGES, engine=name)

    def loss(name: str) -> Tensor:
        return masked_head(h, bias, shared, tables.gene, targets, truth=truth, engine=name)[1]

    def vecdot() -> Tensor:
        rows = shared + F.embedding(targets.rows, tables.gene)
        return F.mse_loss(bias + torch.linalg.vecdot(h, rows), truth)

    bags = _bags(plans[0].rows, plans[1].rows, scalars, [part.shape[0] for part in tables[:4]])
    embeds: Runs = {name: partial(states, name) for name in (engine, "reference")}
    heads: Runs = {name: partial(loss, name) for name in (engine, "reference")}
    return {
        "embed": (embeds | {"torch-bag": lambda: _bag(tables, *bags)}, tables, slope),
        "head": (heads | {"torch-vecdot": vecdot}, (h, shared, tables.gene), torch.ones((), device=device)),
    }


def _bag(tables: EmbedTables, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Token states as weighted sums of rows of all tables, one below the other, [T, E]."""
    table = torch.cat([part if part.ndim == 2 else part[None] for part in tables])
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _bags(genes: Tensor, cells: Tensor, scalars: TokenScalars, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, starts [T] and weights of the bags of rows that add up to each token.

    A bag holds the gene, the cell, two knots of the expected value, and either the hidden vector or two knots of the
    value and the residual vector. sizes: rows of the first four tables.
    """
    starts_of = np.cumsum([0, *sizes]).tolist()  # of each table in the concatenation
    gene, cell, curve, expected_curve, residual_vector = starts_of
    value, value_weight = _knots(scalars.values, sizes[2], *_RANGES["value_range"])
    expected, expected_weight = _knots(scalars.expected, sizes[3], *_RANGES["expected_range"])
    one, shown = torch.ones_like(scalars.values), ~scalars.hidden
    last = torch.where(shown, residual_vector, residual_vector + 1)
    rows = [gene + genes, cell + cells, expected_curve + expected, expected_curve + expected + 1, last]
    rows = torch.stack([*rows, curve + value, curve + value + 1], 1).to(torch.int32)  # [T, 7]
    weights = [one, one, 1 - expected_weight, expected_weight, torch.where(shown, scalars.residual, one)]
    weights = torch.stack([*weights, 1 - value_weight, value_weight], 1)
    kept = torch.ones_like(rows, dtype=torch.bool)
    kept[:, 5:] = shown[:, None]
    lengths = kept.sum(1)
    return rows[kept], (lengths.cumsum(0) - lengths).to(torch.int32), weights[kept]


def _knots(values: Tensor, knots: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the knot below each value and the weight of the one above."""
    at = ((values - low) / (high - low)).clamp(0, 1) * (knots - 1)
    row = at.long().clamp(max=knots - 2)
    return row, at - row


def _wall_ms(variant: Variant, engine: str, device: str, *, backward: bool) -> float:
    runs, leaves, slope = variant
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = runs[engine]()
        if backward:
            torch.autograd.grad(out, leaves, slope)
    if device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _check(op: str, variant: Variant) -> None:
    """Compare every run with the reference, result and gradients; that also compiles and warms all."""
    runs, leaves, slope = variant
    results = {}
    for name, run in runs.items():
        out = run()
        results[name] = [out.detach(), *torch.autograd.grad(out, leaves, slope)]
    for name, parts in results.items():
        for got, want in zip(parts, results["reference"], strict=True):
            error = float((got - want).abs().max() / want.abs().max())
            if not error <= _LARGEST_ERROR:
                message = (
                    f"engine {name!r} is off by {error:.1e} of the largest entry in {op}; run pytest tests/kernels."
                )
                raise SckitError(message)
