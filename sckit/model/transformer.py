"""The pretrained model: the linear baselines as a starting point, and attention that has to add to them.

The base of `Trunk` is a linear part that starts from the linear baselines, so that before the first step the model
equals the best of them to rounding. What is known of a whole cell (depth, components, total, factors) is projected once
and added to each of its tokens: the same as a cell token that every token attends to, without one more token to pack.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.config import ModelConfig
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.head import masked_head
from sckit.model.closed_forms import ClosedForms
from sckit.model.correction import Correction, Entries, entries_of
from sckit.model.count_start import CountLaw, CountStart
from sckit.model.linear import Expected, Linear, Start, float32, value_of_one_count
from sckit.model.offset_forms import OffsetForms
from sckit.model.tokens import Tokens
from sckit.model.trunk import Block, Trunk

STATE_RANGE = 3.0  # standard deviations over the training cells
_FACT_RANGE = 4.0  # of a fact of a cell that the correction sees
_OF_CELL = 8  # facts of a cell that the correction sees besides its components
_CELL_EXTRAS = 5  # depth, total, whether the total is known, whether the context is visible only, log visible
_HIDDEN_SCALES = 0.25, 3.0  # of what the total says of the hidden tokens


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
            self.blocks = nn.ModuleList(
                Block(config, to_same=config.neighbours and not i) for i in range(config.layers)
            )
            self.norm = nn.LayerNorm(width)
            self.head = nn.Embedding(genes, width)
            self.shared_head = nn.Parameter(torch.zeros(width))
            self.other = nn.Parameter(torch.zeros(width)) if config.neighbours else None
            of_cell = _OF_CELL + forms.axes.shape[1]
            of_genes = forms.facts if config.correction else None
            self.correction = None if of_genes is None else Correction(of_genes, of_cell)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.gene.weight.copy_(_gene_vectors(forms, width, generator))

    def targets(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return where the predictions of the targets start [M] and their final states [M, E]."""
        expected, h = self._states(tokens, tokens.targets)
        return self._start(tokens, expected), self._shown(tokens, h)

    def to_correct(self, tokens: Tokens) -> tuple[Entries, Tensor, Tensor]:
        """Return what the correction sees of the targets, where they start [M], and the truth that `loss_of` takes."""
        expected = self._expected(tokens)
        truth = tokens.truth if self.counts is None else tokens.counts
        if truth is None:
            message = "a correction needs the truth of every target"
            raise ValueError(message)
        return self._seen(tokens, expected), self._linear_start(tokens, expected), truth

    def losses_of(self, predicted: Tensor, truth: Tensor, genes: Tensor) -> Tensor:
        """Return the losses of predictions [M] for values, or with a count loss of log rates [M] for counts."""
        return (predicted - truth).square() if self.counts is None else self.counts.losses(predicted, truth, genes)

    def loss(self, tokens: Tokens) -> Tensor:
        """Return the mean squared error, or with a count loss the mean negative log likelihood of the counts."""
        if self.counts is None:
            return super().loss(tokens)
        if tokens.counts is None:
            message = "the loss needs the count of every target"
            raise ValueError(message)
        losses = self.counts.losses(self(tokens), tokens.counts, tokens.genes[tokens.targets])
        return losses.sum() / max(len(losses), 1)  # zero, with a gradient, for none

    def values(self, tokens: Tokens, *, attention: bool = True) -> np.ndarray:
        """Return the predicted values of the targets, float64 [M]; none lies below the value of a single count.

        Without attention they are what the linear baseline and its correction say.
        """
        if attention:
            expected, h = self._states(tokens, tokens.targets)
            start, h = self._start(tokens, expected), self._shown(tokens, h)
            heads = self.shared_head, self.head.weight
            predicted = masked_head(h, start, *heads, tokens.target_rows, engine=self.engine)
        else:
            expected = self._expected(tokens)
            predicted = self._start(tokens, expected)
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
        """Return where the predictions of the targets start [M]: with the linear baseline and its correction."""
        start = self._linear_start(tokens, expected)
        if self.correction is None or tokens.visible_only:
            return start
        with torch.autocast(tokens.values.device.type, enabled=False):
            return start + self.correction(self._seen(tokens, expected))

    def _seen(self, tokens: Tokens, expected: Expected) -> Entries:
        """Return what the correction sees of the targets."""
        at, total = tokens.targets, torch.exp(expected.log_total)
        genes, cell, values = tokens.genes[at], tokens.cell[at], expected.values.detach()
        counts = torch.expm1(values) * (total / TARGET_SUM)[tokens.cell]
        sums = tokens.sums(torch.stack([counts * tokens.hidden, tokens.hidden.float()], 1))
        of_hidden = sums[:, 0].clamp(min=1.0)
        share = sums[:, 1] / tokens.offsets.diff().clamp(min=1)
        excess, of_above = tokens.hidden_sum(values, expected.log_total, above=True).unbind(1)
        excess = torch.where(tokens.log_total.isfinite(), 2 * excess, 0.0)
        of_cell = torch.stack([torch.log(of_hidden) - 5, share, of_above - 4, excess], 1)
        known = expected.state[:, [0, 1, 2, *range(_CELL_EXTRAS, _CELL_EXTRAS + self.linear.axes.shape[1]), -2]]
        one = value_of_one_count(expected.log_total)[cell]
        of_entries = entries_of(values[at] - one, one, counts[at], of_hidden[cell], of_above[cell])
        assert self.correction is not None
        entries = torch.cat([of_entries, F.embedding(genes, self.correction.facts)], 1)
        return Entries(entries, genes, cell, torch.cat([known.clamp(-_FACT_RANGE, _FACT_RANGE), of_cell], 1))

    def _linear_start(self, tokens: Tokens, expected: Expected) -> Tensor:
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
        expected, h = self._token_states(tokens)
        if tokens.around is None or self.other is None:
            return expected, self.final_states(h, tokens.attention, keep)
        others = self._token_states(tokens.around.tokens)[1] + self.other
        h = F.embedding(tokens.around.order, torch.cat([h, others]))
        keep = tokens.around.own if keep is None else tokens.around.own.index_select(0, keep)
        return expected, self.final_states(h, tokens.around.attention, keep)

    def _token_states(self, tokens: Tokens) -> tuple[Expected, Tensor]:
        """Return what the baseline says, and the states [T, E] of the tokens before attention."""
        with torch.autocast(tokens.values.device.type, enabled=False):
            expected = self._expected(tokens)
            # Clamped: a cell deeper than any in training must not be extrapolated.
            cells = self.cell(expected.state.clamp(-STATE_RANGE, STATE_RANGE))
            # A count cannot be below one: how far the expected value lies above that says how it will be wrong.
            above, values = expected.above(tokens).detach(), expected.values.detach()
            return expected, self.token_states(tokens, cells, above, tokens.values - values)

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
    return 0.5 * (float32(known).clamp(-4, 4) @ projection) + 0.25 * noise
