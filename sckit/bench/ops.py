"""`sckit bench ops`: token states and the masked head compared with the fastest torch that we know for them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sckit.bench.harness import Contest, OnEvent, check, measure, output_and_gradients, with_gradients
from sckit.kernels.embed import EmbedTables, TokenScalars, embed
from sckit.kernels.engines import choose_engine
from sckit.kernels.head import masked_head
from sckit.kernels.rows import plan_rows
from sckit.provenance import measured_on

CASES = [(tokens, width) for tokens in (8192, 32768) for width in (64, 128, 256)]

_GENES, _CELL_TOKENS, _KNOTS, _HIDDEN = 10_000, 600, 32, 0.5
_RANGES = {"value_range": (0.0, 9.25), "expected_range": (-2.0, 6.0)}
_LARGEST_ERROR = 2e-5  # of the largest entry: two orders of summation in float32


def bench_ops(
    rounds: int = 7,
    on_event: OnEvent = lambda kind, facts: None,
    *,
    cases: Sequence[tuple[int, int]] = CASES,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time `embed` and `masked_head`, forward and forward with backward, on batches shaped like real cells.

    cases: tokens and width; half of the tokens are hidden and are the targets of the head. "reference" is the
    specification in plain torch, "torch-bag" one `embedding_bag`, "torch-vecdot" the head as one product of rows.
    Times are wall clock on `torch.get_num_threads()` threads or a GPU. What is made once per batch is not timed: the
    plans, and the indices and weights of "torch-bag".
    Returns the document that `sckit bench ops --json` ends with; events as in `harness.measure`.
    Raises SckitError when a variant disagrees with the reference.
    """
    where = measured_on(device, torch.float32)
    engine, _ = choose_engine(device, torch.float32)
    rows, left_out = [], {}
    for tokens, width in cases:
        for contest in _contests(tokens, width, device, engine):
            left_out |= check(contest)
            rows += measure([contest], rounds, where, device=device, on_event=on_event)
    return {"command": "bench ops", "rows": rows} | ({"left_out": left_out} if left_out else {})


def _contests(tokens: int, width: int, device: str, engine: str) -> list[Contest]:
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
    bags = _bags(plans[0].rows, plans[1].rows, scalars, [part.shape[0] for part in tables[:4]])

    def states(name: str, *leaves: Tensor) -> Tensor:
        return embed(*plans, scalars, EmbedTables(*leaves), **_RANGES, engine=name)

    def loss(name: str, h: Tensor, shared: Tensor, weight: Tensor) -> Tensor:
        return masked_head(h, bias, shared, weight, targets, truth=truth, engine=name)[1]

    def vecdot(h: Tensor, shared: Tensor, weight: Tensor) -> Tensor:
        return F.mse_loss(bias + torch.linalg.vecdot(h, shared + F.embedding(targets.rows, weight)), truth)

    case = f"T{tokens} E{width}"
    contests = []
    for op, run, other, name, leaves, start in (
        ("embed", states, partial(_bag, *bags), "torch-bag", tables, slope),
        ("head", loss, vecdot, "torch-vecdot", (h, shared, tables.gene), torch.ones((), device=device)),
    ):
        runs = {key: partial(run, key) for key in (engine, "reference")} | {name: other}
        variants = {key: with_gradients(one, leaves, start) for key, one in runs.items()}
        reference = partial(output_and_gradients, runs["reference"], leaves, start)
        contests.append(Contest({"op": op, "case": case}, variants, reference, _LARGEST_ERROR))
    return contests


def _bag(rows: Tensor, starts: Tensor, weights: Tensor, *tables: Tensor) -> Tensor:
    """Return token states as weighted sums of rows of all tables, one below the other, [T, E]."""
    table = torch.cat([part if part.ndim == 2 else part[None] for part in tables])
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _bags(genes: Tensor, cells: Tensor, scalars: TokenScalars, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, starts [T] and weights of the bags of rows that add up to each token.

    A bag holds the gene, the cell, two knots of the expected value, and either the hidden vector or two knots of the
    value and the residual vector. sizes: rows of the first four tables.
    """
    gene, cell, curve, expected_curve, residual_vector = np.cumsum([0, *sizes]).tolist()  # starts in the concatenation
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
