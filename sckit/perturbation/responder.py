"""The lean model turned to perturbations: the same trunk, a new head on top of what the mean of the training says.

    delta[g] = mean[g] + scale * (gain * <L[g], factors of what is shown> + <w0 + w[g], h_g>)

`w0`, `w` start at zero, so that before the first step every arm is the mean baseline (with factors: plus what the run's
value factors say of the values shown). The context is the "visible" one of pretraining: a query sees the genes shown,
the perturbation tokens and itself, and nobody sees it.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.kernels.embed import EmbedTables, TokenScalars, embed
from sckit.kernels.head import masked_head
from sckit.model.transformer import GUESS_RANGE, VALUE_RANGE, Model
from sckit.perturbation.batch import PerturbBatch

_GENE_SIZE = 0.5  # of a coordinate of a gene vector, as pretraining starts them
_LOADING_SIZE = 0.05


@dataclass(frozen=True)
class TokenTable:
    """What each row of the token table is: G genes predicted, then perturbations that are no such gene."""

    run_genes: np.ndarray  # int64 [rows], number of the row's gene in the run, -1 where it has none
    n_genes: int  # G, the first rows
    perturbations: np.ndarray  # int64 [P], row of each perturbation


class Responder(nn.Module):
    """Predicts deltas of queried genes, in units of the training deltas' RMS; rows R, width E, factors J."""

    def __init__(
        self, start: Model, table: TokenTable, *, factors: bool, seed: int, transferred: bool, noise: float = 1.0
    ) -> None:
        """start: the trunk, copied; with `transferred` its gene vectors and factors too, else they start at random.

        factors: whether the values shown are post-treatment ones, whose factors speak of the queries. noise: variance
        of a single cell's value, for genes that have none from the run; it needs no pretraining to be known.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width = start.config.width
        known = torch.from_numpy(table.run_genes)
        # Genes that the run never saw, and all genes of an arm from scratch, get vectors of the size of the others.
        rows = torch.randn(len(known), width, generator=generator) * _GENE_SIZE
        # A perturbation of which nothing is known starts as one of no kind: an untrained random one would be a guess.
        rows[table.n_genes :] = 0.0
        loadings = torch.randn(len(known), start.linear.loadings.shape[1], generator=generator) * _LOADING_SIZE
        noises = torch.full((len(known),), noise)
        if transferred:
            seen = known >= 0
            rows[seen] = start.gene.weight.detach()[known[seen]]
            loadings[~seen] = 0.0
            loadings[seen] = start.linear.loadings.detach()[known[seen]]
            noises[seen] = start.linear.noise[known[seen]]
        self.engine = start.engine
        self.table = nn.Embedding.from_pretrained(rows, freeze=False)
        self.curve = nn.Parameter(start.curve.detach().clone())
        self.guess_curve = nn.Parameter(start.guess_curve.detach().clone())
        self.surprise = nn.Parameter(start.surprise.detach().clone())
        self.marker = nn.Parameter(start.marker.detach().clone())
        self.cell, self.blocks = copy.deepcopy(start.cell), copy.deepcopy(start.blocks)
        self.norm = copy.deepcopy(start.norm)
        self.loadings = nn.Parameter(loadings) if factors else None
        self.noise = nn.Buffer(noises)
        self.log_noise_scale = nn.Parameter(torch.zeros(())) if factors else None
        self.gain = nn.Parameter(torch.ones(())) if factors else None
        self.perturbed = nn.Parameter(torch.randn(width, generator=generator) * 0.5)
        self.per_dose = nn.Parameter(torch.zeros(width))
        self.head = nn.Embedding.from_pretrained(torch.zeros(table.n_genes, width), freeze=False)
        self.shared_head = nn.Parameter(torch.zeros(width))

    def new_parameters(self) -> set[str]:
        """Names of what no pretraining can bring: all that the arm "frozen" trains."""
        return {"perturbed", "per_dose", "head.weight", "shared_head", "gain", "log_noise_scale"}

    def forward(self, batch: PerturbBatch) -> Tensor:
        """Predicted deltas less the mean, float32 [M], in units of the training RMS."""
        base, h = self._targets(batch)
        return masked_head(h, base, self.shared_head, self.head.weight, batch.target_rows, engine=self.engine)

    def loss(self, batch: PerturbBatch) -> Tensor:
        """Mean squared error of the predictions; ValueError for a batch without truth."""
        if batch.truth is None:
            message = "the loss needs the truth of every example"
            raise ValueError(message)
        base, h = self._targets(batch)
        weights = self.shared_head, self.head.weight
        return masked_head(h, base, *weights, batch.target_rows, truth=batch.truth, engine=self.engine)[1]

    def _targets(self, batch: PerturbBatch) -> tuple[Tensor, Tensor]:
        rows, owner = batch.tokens.rows.long(), batch.cell.rows.long()
        state = batch.log_shown.new_zeros(len(batch.log_shown), self.cell.in_features)
        state[:, 3], state[:, 4] = 1.0, batch.log_shown / 10  # the slots of "visible only" in pretraining
        done = self.perturbed + batch.dose[:, None] * self.per_dose  # [P, E]
        # Like all that is known of a cell, the perturbation is added to each of its tokens too: with its own token
        # alone, a hundred steps on simulated screens seldom sufficed for attention to find it.
        what = done + F.embedding(rows[batch.perturbed_at], self.table.weight)
        known = self.cell(state).index_add(0, owner[batch.perturbed_at], what)  # [C, E]
        h = embed(
            batch.tokens,
            batch.cell,
            TokenScalars(batch.values, batch.residual, batch.guess, batch.hidden),
            EmbedTables(self.table.weight, known, self.curve, self.guess_curve, self.surprise, self.marker),
            value_range=VALUE_RANGE,
            expected_range=GUESS_RANGE,
            engine=self.engine,
        )
        h = h.index_add(0, batch.perturbed_at, done)
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            h = block(h, batch.plan, self.engine, batch.targets if last else None)
        return self._from_factors(batch), self.norm(h if self.blocks else h.index_select(0, batch.targets))

    def _from_factors(self, batch: PerturbBatch) -> Tensor:
        """What the factors of the values shown say of each query [M]."""
        if self.loadings is None or self.gain is None or self.log_noise_scale is None:
            return torch.zeros(len(batch.targets), device=batch.values.device)
        rows = batch.tokens.rows.long()
        shown = F.embedding(rows, self.loadings) * batch.shown[:, None]  # [T, J]
        weighted = shown / (self.noise[rows] * self.log_noise_scale.exp())[:, None]
        count, size = len(batch.log_shown), shown.shape[1]
        cell = batch.cell.rows.long()
        outer = (weighted[:, :, None] * shown[:, None, :]).flatten(1)
        precision = outer.new_zeros(count, size * size).index_add(0, cell, outer).view(count, size, size)
        moment = weighted.new_zeros(count, size).index_add(0, cell, weighted * batch.residual[:, None])
        identity = torch.eye(size, device=moment.device)
        factors = torch.linalg.solve(precision + identity, moment[..., None])[..., 0]  # [C, J]
        queried = F.embedding(batch.target_rows.rows.long(), self.loadings)
        return self.gain * (queried * F.embedding(batch.target_cell, factors)).sum(1)
