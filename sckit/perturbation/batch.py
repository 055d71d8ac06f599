"""Packed batches of the perturbation tasks: context tokens and perturbation tokens are keys, queried genes are not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sckit.data.views import indptr_of
from sckit.kernels.attention import AttentionPlan, plan_attention
from sckit.kernels.rows import RowPlan, plan_rows


@dataclass(frozen=True)
class Example:
    """One sequence: what is shown, what was done, and what is asked."""

    genes: np.ndarray  # int64 [n], genes shown
    values: np.ndarray  # [n], log1p(CP10k)
    residual: np.ndarray  # [n], how far each value is from what was expected, in the units of single cells
    perturbations: tuple[int, ...]  # rows of the token table
    dose: float  # log1p of the dose, 0 without one
    queries: np.ndarray  # int64 [q], genes asked for
    truth: np.ndarray | None = None  # [q], delta less what the mean says, in units of its RMS over the training units


@dataclass(frozen=True)
class PerturbBatch:
    """C examples packed into T tokens: of each the genes shown, the perturbations, then its queries; M queries."""

    tokens: RowPlan  # rows of the token table [T]
    cell: RowPlan  # example of each token [T]
    values: Tensor  # float32 [T]
    residual: Tensor  # float32 [T]
    guess: Tensor  # float32 [T]
    hidden: Tensor  # bool [T], the queries
    shown: Tensor  # bool [T], the genes shown
    log_shown: Tensor  # float32 [C], log of the number of genes shown
    perturbed_at: Tensor  # int64 [P], positions of the perturbation tokens
    dose: Tensor  # float32 [P]
    targets: Tensor  # int64 [M], positions of the queries
    target_rows: RowPlan  # their genes [M]
    target_cell: Tensor  # int64 [M]
    truth: Tensor | None  # float32 [M]
    plan: AttentionPlan


def pack(examples: Sequence[Example], guess: np.ndarray, device: torch.device) -> PerturbBatch:
    """Pack the examples, at least one, and plan once what all layers and both passes share.

    guess: what is expected of each row of the token table above the value of a single count.
    """
    rows, values, residual, kind, dose = [], [], [], [], []
    for example in examples:
        n, p, q = len(example.genes), len(example.perturbations), len(example.queries)
        rows += [example.genes, np.array(example.perturbations, np.int64), example.queries]
        values += [example.values, np.zeros(p + q)]
        residual += [example.residual, np.zeros(p + q)]
        kind += [np.zeros(n, np.int8), np.ones(p, np.int8), np.full(q, 2, np.int8)]
        dose += [example.dose] * p
    lengths = np.array([len(e.genes) + len(e.perturbations) + len(e.queries) for e in examples])
    keys = np.array([len(e.genes) + len(e.perturbations) for e in examples], np.int32)
    offsets = indptr_of(lengths).astype(np.int32)
    row, role = np.concatenate(rows).astype(np.int64), np.concatenate(kind)
    cell = np.repeat(np.arange(len(examples)), lengths)
    targets = np.flatnonzero(role == 2)
    known = all(example.truth is not None for example in examples)

    def floats(parts: list) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(part, np.float32) for part in parts])).to(device)

    def whole(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return PerturbBatch(
        tokens=plan_rows(torch.from_numpy(row)).to(device),
        cell=plan_rows(torch.from_numpy(cell)).to(device),
        values=floats(values),
        residual=floats(residual),
        guess=floats([guess[row]]),
        hidden=whole(role == 2),
        shown=whole(role == 0),
        log_shown=whole(np.log([max(len(e.genes), 1) for e in examples]).astype(np.float32)),
        perturbed_at=whole(np.flatnonzero(role == 1)),
        dose=whole(np.array(dose, np.float32)),
        targets=whole(targets),
        target_rows=plan_rows(torch.from_numpy(row[targets])).to(device),
        target_cell=whole(cell[targets]),
        truth=floats([example.truth for example in examples]) if known else None,
        plan=plan_attention(torch.from_numpy(offsets), torch.from_numpy(keys)).to(device),
    )
