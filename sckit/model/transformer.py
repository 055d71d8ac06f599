"""The pretrained model: the linear baselines as a starting point, and attention that has to add to them.

The base of `Trunk` is a linear part that starts from the linear baselines, so that before the first step the model
equals the best of them to rounding. What is known of a whole cell (depth, components, total, factors) is projected once
and added to each of its tokens: the same as a cell token that every token attends to, without one more token to pack.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.config import ModelConfig
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.head import masked_head
from sckit.model.closed_forms import TOTAL_RANGE, ClosedForms
from sckit.model.count_start import CountLaw, CountStart
from sckit.model.offset_forms import OffsetForms
from sckit.model.tokens import Tokens
from sckit.model.trunk import Block, Trunk, factor_means

STATE_RANGE = 3.0  # standard deviations over the training cells
_CELL_EXTRAS = 5  # depth, total, whether the total is known, whether the context is visible only, log visible
_HIDDEN_SCALES = 0.25, 3.0  # of what the total says of the hidden tokens


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

    @classmethod
    def of(cls, forms: ClosedForms | OffsetForms) -> "Start":
        """Take what a model needs of fitted baselines."""
        return cls(**{name: getattr(forms, name) for name in LINEAR}, mean_above=getattr(forms, "mean_above", None))

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
        if {name: array.shape for name, array in arrays.items()} != shapes:
            message = "the linear baseline of the model does not fit its genes"
            raise ValueError(message)
        return cls(**arrays)

    def without(self) -> "Start":
        """Return the same shapes with nothing but the gene means: `--no-warm-start`."""
        ridge, total = np.zeros_like(self.ridge), np.zeros_like(self.total)
        ridge[:, 0] = total[:, 0] = self.gene_mean
        return replace(self, ridge=ridge, total=total, loadings=np.zeros_like(self.loadings))


LINEAR = tuple(field.name for field in fields(Start) if field.name != "mean_above")
"""The arrays of every linear baseline inside a model."""

CROSS_FITTED = ("ridge", "total", "loadings", "noise")
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
            tensor = _float32(getattr(start, name))
            setattr(self, name, nn.Parameter(tensor) if trained else nn.Buffer(tensor))
        for name in ("gene_mean", "origin", "noise", "total_of_x", "scales"):
            setattr(self, name, nn.Buffer(_float32(getattr(start, name))))
        self.mean_above = None if start.mean_above is None else nn.Buffer(_float32(start.mean_above))

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


class Model(Trunk):
    """Predicts the value of a hidden detected gene from its cell, in log1p of counts per 10,000; G genes, width E."""

    def __init__(
        self,
        config: ModelConfig,
        start: ClosedForms | OffsetForms | Start,
        counts: CountStart | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Start from a linear baseline; with a count loss also from the law of counts that its values stand for."""
        super().__init__()
        forms = start if isinstance(start, Start) else Start.of(start)
        self.config = config
        self.engine = "auto"
        width, genes = config.width, len(forms.axes)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = Linear(forms, trained=config.start == "ridge")
            self.counts = None if counts is None else CountLaw(counts)
            self.gene = nn.Embedding(genes, width)
            self.curve = nn.Parameter(torch.randn(config.knots, width, generator=generator) * 0.02)
            self.guess_curve = nn.Parameter(torch.randn(config.knots, width, generator=generator) * 0.02)
            self.surprise = nn.Parameter(torch.randn(width, generator=generator) * 0.5)
            self.marker = nn.Parameter(torch.randn(width, generator=generator) * 0.5)
            extras = _CELL_EXTRAS + 2 * config.hidden_sum
            self.cell = nn.Linear(extras + forms.axes.shape[1] + forms.loadings.shape[1], width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Embedding(genes, width)
            self.shared_head = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.gene.weight.copy_(_gene_vectors(forms, width, generator))

    def targets(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return where the predictions of the targets start [M] and their final states [M, E]."""
        expected, h = self._states(tokens, tokens.targets)
        return self._start(tokens, expected), self._shown(tokens, h)

    def loss(self, tokens: Tokens) -> Tensor:
        """Return the mean squared error, or with a count loss the mean negative log likelihood of the counts."""
        if self.counts is None:
            return super().loss(tokens)
        if tokens.counts is None:
            message = "the loss needs the count of every target"
            raise ValueError(message)
        return self.counts.loss(self(tokens), tokens.counts, tokens.genes[tokens.targets])

    def values(self, tokens: Tokens) -> np.ndarray:
        """Return the predicted values of the targets, float64 [M]; none lies below the value of a single count."""
        expected, h = self._states(tokens, tokens.targets)
        start, h = self._start(tokens, expected), self._shown(tokens, h)
        predicted = masked_head(h, start, self.shared_head, self.head.weight, tokens.target_rows, engine=self.engine)
        predicted = predicted.double().cpu().numpy()
        if self.config.start == "ridge":
            return predicted
        cell = tokens.cell[tokens.targets]
        if self.counts is None:
            return np.maximum(predicted, value_of_one_count(expected.log_total)[cell].double().cpu().numpy())
        totals = torch.exp(expected.log_total.double())[cell].cpu().numpy()
        return self.counts.values(predicted, totals, tokens.genes[tokens.targets].cpu().numpy())

    def embed(self, tokens: Tokens) -> Tensor:
        """Return the mean final state of each cell's tokens, float32 [C, E]."""
        _, h = self._states(tokens, None)
        return tokens.sums(h.float()) / tokens.offsets.diff().clamp(min=1)[:, None]

    def _start(self, tokens: Tokens, expected: Expected) -> Tensor:
        """Return the expected values of the targets [M], or with a count loss the log rates that they stand for."""
        if self.counts is None:
            return expected.values.index_select(0, tokens.targets)
        cell, genes = tokens.cell[tokens.targets], tokens.genes[tokens.targets]
        with torch.no_grad():
            return self.counts.start(expected.above(tokens)[tokens.targets], expected.log_total[cell], genes)

    def _shown(self, tokens: Tokens, h: Tensor) -> Tensor:
        """Return the final states [M, E], zero in cells that show nothing: there the gene alone may be known."""
        return h * tokens.shows_some[tokens.cell[tokens.targets], None].to(h.dtype) if tokens.visible_only else h

    def _states(self, tokens: Tokens, keep: Tensor | None) -> tuple[Expected, Tensor]:
        """Return what the baseline says, and the final states [M, E] of the tokens to keep (None: all T)."""
        with torch.autocast(tokens.values.device.type, enabled=False):
            expected = self._expected(tokens)
            # Clamped: a cell deeper than any in training must not be extrapolated.
            cells = self.cell(expected.state.clamp(-STATE_RANGE, STATE_RANGE))
            # A count cannot be below one: how far the expected value lies above that says how it will be wrong.
            above, values = expected.above(tokens).detach(), expected.values.detach()
            h = self.token_states(tokens, cells, above, tokens.values - values)
        return expected, self.final_states(h, tokens, keep)

    def _expected(self, tokens: Tokens) -> Expected:
        """Return what the linear baseline says of the tokens, and what is known of each cell."""
        x, t = self.linear.cell_state(tokens)
        known = torch.isfinite(t).float()
        total = torch.where(known > 0, t, 0.0)
        log_total = tokens.log_total
        if self.config.start == "ridge":  # runs of before took totals as far as their ridges do
            log_total = t * self.linear.scales[3] + self.linear.scales[2]
        if tokens.visible_only:
            # Nothing of the detection set may pass: the linear part is the gene mean, the cell is its visible values.
            mean = F.embedding(tokens.genes, self.linear.gene_mean[:, None])[:, 0]
            if self.linear.mean_above is not None:
                above = F.embedding(tokens.genes, self.linear.mean_above[:, None])[:, 0]
                with_total = above + value_of_one_count(self.linear.log_total(log_total, None))[tokens.cell]
                mean = torch.where(known[tokens.cell] > 0, with_total, mean)
            extras = torch.stack([torch.zeros_like(t), total, known, torch.ones_like(t), tokens.log_detected / 10], 1)
            rest = x.new_zeros(len(x), self.cell.in_features - extras.shape[1])
            return Expected(mean, self.linear.log_total(log_total, None), torch.cat([extras, rest], 1))
        log_total = self.linear.log_total(log_total, x)
        above = self.linear(tokens, x, t)
        one = value_of_one_count(log_total)[tokens.cell] if self.config.start == "offset" else 0.0
        with torch.no_grad():
            factors = self.linear.factors(tokens, torch.where(tokens.hidden, 0.0, tokens.values - above - one))
        above = above + (F.embedding(tokens.genes, self.linear.loadings) * F.embedding(tokens.cell, factors)).sum(1)
        values = above if self.config.start == "ridge" else above.clamp(min=0) + one
        extras = torch.stack([x[:, 1], total, known, torch.zeros_like(t), torch.zeros_like(t)], 1)
        state = [extras, x[:, 2:], factors]
        if self.config.hidden_sum:
            state.append(tokens.hidden_sum(values.detach(), tokens.log_total) / x.new_tensor(_HIDDEN_SCALES))
        return Expected(values, log_total, torch.cat(state, 1))


def _gene_vectors(start: Start, width: int, generator: torch.Generator) -> Tensor:
    """Return the start of the gene embedding [G, E]: a random projection of each gene's linear coefficients."""
    known = np.column_stack([start.ridge, start.total[:, -1], start.axes, start.loadings])
    known = (known - known.mean(0)) / (known.std(0) + 1e-9)
    projection = torch.randn(known.shape[1], width, generator=generator) / known.shape[1] ** 0.5
    noise = torch.randn(len(known), width, generator=generator)
    return 0.5 * (_float32(known).clamp(-4, 4) @ projection) + 0.25 * noise


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
