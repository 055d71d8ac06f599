"""The linear baseline inside a model: its arrays, and what it says of a batch in torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.kernels.counts_reference import TARGET_SUM
from sckit.model.closed_forms import TOTAL_RANGE, ClosedForms
from sckit.model.correction import facts_of_genes
from sckit.model.offset_forms import OffsetForms
from sckit.model.tokens import Tokens
from sckit.model.trunk import factor_means


@dataclass(frozen=True)
class Start:
    """The linear baseline that a model starts from; `ClosedForms` and `OffsetForms` say what each array is."""

    axes: np.ndarray  # [G, K]
    origin: np.ndarray  # [K]
    scales: np.ndarray  # [4]
    total_of_x: np.ndarray  # [K + 2]
    ridge: np.ndarray  # [G, K + 2]
    total: np.ndarray  # [G, K + 3]
    loadings: np.ndarray  # [G, J]
    noise: np.ndarray  # [G]
    gene_mean: np.ndarray  # [G]
    mean_above: np.ndarray | None = None  # [G]; the value ridge has none
    facts: np.ndarray | None = None  # [G, 5], of the genes, for a correction

    @classmethod
    def of(cls, forms: ClosedForms | OffsetForms) -> "Start":
        """Take what a model needs of fitted baselines."""
        arrays = {name: getattr(forms, name) for name in LINEAR}
        if not isinstance(forms, OffsetForms):
            return cls(**arrays)
        return cls(**arrays, mean_above=forms.mean_above, facts=facts_of_genes(forms))

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], genes: int) -> "Start":
        """Take the linear baseline of G genes out of a model's weights. Raises ValueError where they do not fit."""
        arrays = {name: weights[f"linear.{name}"].double().numpy() for name in LINEAR}
        k, j = (arrays[name].shape[-1] for name in ("axes", "loadings"))
        shapes = {
            **{"axes": (genes, k), "origin": (k,), "scales": (4,), "total_of_x": (k + 2,), "ridge": (genes, k + 2)},
            **{"total": (genes, k + 3), "loadings": (genes, j), "noise": (genes,), "gene_mean": (genes,)},
        }
        if "linear.mean_above" in weights:
            arrays["mean_above"] = weights["linear.mean_above"].double().numpy()
            shapes["mean_above"] = (genes,)
        if "correction.facts" in weights:
            arrays["facts"], shapes["facts"] = weights["correction.facts"].double().numpy(), (genes, 5)
        if {name: array.shape for name, array in arrays.items()} != shapes:
            message = "the linear baseline of the model does not fit its genes"
            raise ValueError(message)
        return cls(**arrays)

    def without(self) -> "Start":
        """Return the same shapes with nothing but the gene means: `--no-warm-start`."""
        ridge, total = np.zeros_like(self.ridge), np.zeros_like(self.total)
        ridge[:, 0] = total[:, 0] = self.gene_mean
        return replace(self, ridge=ridge, total=total, loadings=np.zeros_like(self.loadings))


LINEAR = tuple(field.name for field in fields(Start) if field.name not in ("mean_above", "facts"))
"""The arrays of every linear baseline inside a model."""

CROSS_FITTED = ("ridge", "total", "loadings", "noise", "gene_mean", "mean_above")
"""Those that are fitted without a fold of the training cells."""


class Linear(nn.Module):
    """The linear baseline as a module: the value ridge is trained with the model, the value offset ridge is not."""

    axes: Tensor
    origin: Tensor
    scales: Tensor
    total_of_x: Tensor
    ridge: Tensor
    total: Tensor
    loadings: Tensor
    noise: Tensor
    gene_mean: Tensor

    def __init__(self, start: Start, *, trained: bool) -> None:
        super().__init__()
        for name in ("axes", "ridge", "total", "loadings"):
            tensor = float32(getattr(start, name))
            setattr(self, name, nn.Parameter(tensor) if trained else nn.Buffer(tensor))
        for name in ("gene_mean", "origin", "noise", "total_of_x", "scales"):
            setattr(self, name, nn.Buffer(float32(getattr(start, name))))
        self.mean_above = None if start.mean_above is None else nn.Buffer(float32(start.mean_above))

    def use(self, fitted: Mapping[str, Tensor]) -> None:
        """Take over the arrays of `CROSS_FITTED` from another fit."""
        for name in CROSS_FITTED:
            getattr(self, name).copy_(fitted[name])

    def cell_state(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return x [C, F] and t [C] as in `ClosedForms.features`, by sums over the context tokens."""
        known = F.embedding(tokens.genes, self.axes) * tokens.in_context[:, None]  # [T, K]
        components = tokens.sums(known) - self.origin
        depth = (tokens.log_detected - self.scales[0]) / self.scales[1]
        x = torch.cat([torch.ones_like(depth)[:, None], depth[:, None], components], 1)
        return x, ((tokens.log_total - self.scales[2]) / self.scales[3]).clamp(-TOTAL_RANGE, TOTAL_RANGE)

    def forward(self, tokens: Tokens, x: Tensor, t: Tensor) -> Tensor:
        """Return the detection + total ridge of each token [T]; the detection ridge where the total is unknown."""
        genes, cell = tokens.genes, tokens.cell
        if tokens.totals == "none":
            return (F.embedding(genes, self.ridge) * F.embedding(cell, x)).sum(1)
        known = torch.isfinite(t)
        full = torch.cat([x, torch.where(known, t, 0.0)[:, None]], 1)
        with_total = (F.embedding(genes, self.total) * F.embedding(cell, full)).sum(1)
        if tokens.totals == "all":
            return with_total
        return torch.where(known[cell], with_total, (F.embedding(genes, self.ridge) * F.embedding(cell, x)).sum(1))

    def log_total(self, log_total: Tensor, x: Tensor | None) -> Tensor:
        """Return the log of the total of each cell [C]: as it is where it is known, else as x predicts it."""
        expected = torch.zeros_like(log_total) if x is None else x @ self.total_of_x
        return torch.where(torch.isfinite(log_total), log_total, expected * self.scales[3] + self.scales[2])

    def factors(self, tokens: Tokens, residual: Tensor) -> Tensor:
        """Return the posterior means [C, J] of the value factors; residual [T] is zero at hidden tokens."""
        loadings = F.embedding(tokens.genes, self.loadings.detach())  # [T, J]
        weighted = loadings * ((~tokens.hidden) / self.noise[tokens.genes])[:, None]
        return factor_means(weighted, loadings, residual, tokens)


class Expected(NamedTuple):
    """What the linear baseline says of a batch."""

    values: Tensor  # [T], expected value of each token
    log_total: Tensor  # [C], known or guessed
    state: Tensor  # [C, S], what is known of each cell

    def above(self, tokens: Tokens) -> Tensor:
        """Return how far each expected value lies above that of a single count, [T]."""
        return self.values - value_of_one_count(self.log_total)[tokens.cell]


def value_of_one_count(log_total: Tensor) -> Tensor:
    """Return the value of a single count in cells with these logs of total counts."""
    return torch.log1p(TARGET_SUM * torch.exp(-log_total))


def float32(array: np.ndarray) -> Tensor:
    """Return an array as a float32 tensor of its own."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
