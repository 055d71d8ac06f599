"""A packed batch as tensors on one device: what both models read."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sckit.data.batch import Around, Batch
from sckit.kernels.attention import AttentionPlan, plan_attention
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.rows import RowPlan, copied, plan_rows

HIDDEN_RANGE, ABOVE_RANGE = 1.0, 3.0
"""How far the log of the sum of a cell's hidden counts, and of those above one each, may lie from what is expected."""


class AroundTokens(NamedTuple):
    """What the cells of a batch of T tokens see of their neighbours: N tokens in front of their own."""

    tokens: "Tokens"  # of all neighbours
    order: Tensor  # int64 [T + N], for each cell its neighbours' tokens, as T + place in `tokens`, and then its own
    own: Tensor  # int64 [T], places of the cells' own tokens in that order
    attention: AttentionPlan


class Perturbed(NamedTuple):
    """The P tokens that stand for a perturbation instead of a gene."""

    at: Tensor  # int64 [P], positions among the tokens
    dose: Tensor  # float32 [P], log1p of the dose, 0 without one


def hidden_sum(values: Tensor, hidden: Tensor, offsets: Tensor, log_total: Tensor, *, above: bool = False) -> Tensor:
    """Return what the totals of C cells say of their hidden tokens, [C, 2].

    The total less the visible counts is the sum of the hidden ones (and of counts of genes that the model does not
    know). Its log is returned less that of the expected sum, and the log of the expected sum itself.
    values: [T], expected ones where hidden [T] holds, and the cells' own elsewhere; offsets: [C + 1], where each cell
    begins; log_total: [C], NaN where unknown. Zeros are returned there and where nothing is hidden. above: of counts
    less one each, as no detected gene has less; one is added to both sums.
    """
    known = torch.isfinite(log_total)
    total = torch.exp(torch.where(known, log_total, 0.0))
    counts = torch.expm1(values) * torch.repeat_interleave(total / TARGET_SUM, offsets.diff(), output_size=len(values))
    one, most = (1.0, ABOVE_RANGE) if above else (0.0, HIDDEN_RANGE)
    # The sum over hidden tokens is never quite zero: zero means that there is none.
    parts = torch.stack([(counts - one).clamp(min=1e-6) * hidden, torch.where(hidden, one, counts)], 1)
    of_hidden, rest = torch.segment_reduce(parts, "sum", offsets=offsets, axis=0).unbind(1)
    expected = torch.log((of_hidden + one).clamp(min=1.0))
    excess = torch.log((total - rest + one).clamp(min=1.0)) - expected
    found = torch.stack([excess.clamp(-most, most), expected], 1)
    return torch.where((known & (of_hidden > 0))[:, None], found, 0.0)


@dataclass(frozen=True)
class Tokens:
    """C cells packed into T tokens, M of which are targets; a cell's context tokens come first (see `Batch`)."""

    genes: Tensor  # int64 [T], row of each token in the gene table
    values: Tensor  # float32 [T], log1p of counts per 10,000; 0 where hidden
    hidden: Tensor  # bool [T]
    cell: Tensor  # int64 [T], position of the token's cell
    offsets: Tensor  # int64 [C + 1], where each cell begins
    in_context: Tensor  # float32 [T], 1 where the token's gene is known to its cell
    targets: Tensor  # int64 [M], positions of the tokens to predict
    truth: Tensor | None  # float32 [M], what is to be predicted, where it is known
    log_detected: Tensor  # float32 [C], log of the number of genes known to the cell
    shows_some: Tensor  # float32 [C], 0 where a cell has no context token
    log_total: Tensor  # float32 [C], NaN where unknown
    attention: AttentionPlan
    gene_rows: RowPlan  # of the tokens, in the gene table
    cell_rows: RowPlan  # of the tokens, among the cells
    target_rows: RowPlan  # of the targets, in the gene table
    visible_only: bool  # whether hidden tokens show nothing to the others
    totals: str  # of how many cells the total is known: "none", "some" or "all"
    counts: Tensor | None = None  # float32 [M], counts of the targets, where they are known
    expected: Tensor | None = None  # float32 [T], expected value above that of a single count; None: the model's own
    residual: Tensor | None = None  # float32 [T], value less what was expected; None: the model's own
    perturbed: Perturbed | None = None
    around: AroundTokens | None = None

    def sums(self, of_tokens: Tensor) -> Tensor:
        """Return the sum over the tokens of each cell, [T, K] to [C, K]; the order of summing never changes."""
        return torch.segment_reduce(of_tokens, "sum", offsets=self.offsets, axis=0)

    def hidden_sum(self, expected: Tensor, log_total: Tensor, *, above: bool = False) -> Tensor:
        """Return what the total says of the hidden tokens of each cell, [C, 2]: see the function of this name."""
        values = torch.where(self.hidden, expected, self.values)
        return hidden_sum(values, self.hidden, self.offsets, log_total, above=above)

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "Tokens":
        """Copy a batch to the device and plan once what all layers and both passes share."""
        same = (
            "genes", "values", "hidden", "in_context", "offsets", "keys", "targets", "truth", "n_detected", "log_total",
        )  # fmt: skip
        arrays = {name: getattr(batch, name) for name in same}
        counts = copied(torch.from_numpy(batch.counts.astype(np.float32)), device)
        around = None if batch.around is None else cls._around(batch.around, len(batch.genes), device)
        return cls.pack(device, visible_only=batch.context == "visible", counts=counts, around=around, **arrays)

    @classmethod
    def _around(cls, around: Around, count: int, device: torch.device) -> AroundTokens:
        """Copy what neighbours show to a batch of `count` tokens to the device."""
        own = np.flatnonzero(around.order < count)
        plan = plan_attention(torch.from_numpy(around.offsets), torch.from_numpy(around.keys)).to(device)
        order, own = (copied(torch.from_numpy(array), device) for array in (around.order, own))
        return AroundTokens(cls.of(around.batch, device), order, own, plan)

    @classmethod
    def pack(
        cls,
        device: torch.device,
        *,
        genes: np.ndarray,
        values: np.ndarray,
        hidden: np.ndarray,
        in_context: np.ndarray,
        offsets: np.ndarray,
        keys: np.ndarray,
        targets: np.ndarray,
        truth: np.ndarray | None,
        n_detected: np.ndarray,
        log_total: np.ndarray,
        visible_only: bool,
        **more: Tensor | Perturbed | AroundTokens | None,
    ) -> "Tokens":
        """Build the tensors and plans from arrays.

        offsets: int32 [C + 1], where each cell begins; keys: int32 [C], number of context tokens of each cell;
        n_detected: [C], number of genes known to the cell; the other arrays and `more` are the fields of the class.
        """
        cell = np.repeat(np.arange(len(keys)), np.diff(offsets))
        known = np.isfinite(log_total)

        def put(array: np.ndarray, dtype: type = np.float32) -> Tensor:
            return copied(torch.from_numpy(np.asarray(array, dtype)), device)

        def rows(array: np.ndarray) -> RowPlan:
            return plan_rows(torch.from_numpy(array)).to(device)

        return cls(
            genes=put(genes, np.int64),
            values=put(values),
            hidden=put(hidden, np.bool_),
            cell=put(cell, np.int64),
            offsets=put(offsets, np.int64),
            in_context=put(in_context),
            targets=put(targets, np.int64),
            truth=None if truth is None else put(truth),
            log_detected=put(np.log(np.maximum(n_detected, 1))),
            shows_some=put(keys > 0),
            log_total=put(log_total),
            attention=plan_attention(torch.from_numpy(offsets), torch.from_numpy(keys)).to(device),
            gene_rows=rows(genes),
            cell_rows=rows(cell),
            target_rows=rows(genes[targets]),
            visible_only=visible_only,
            totals="all" if known.all() else "some" if known.any() else "none",
            **more,  # type: ignore[arg-type]
        )
