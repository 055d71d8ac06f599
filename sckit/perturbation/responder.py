"""The model of perturbation effects: the trunk of a pretrained model, and a new head on top of the training mean.

    delta[g] = mean[g] + scale * (gain * <L[g], factors of what is shown> + <w0 + w[g], h_g>)

`w0` and `w` start at zero, so that before the first step every arm is the mean of the training perturbations (in the
partial task: plus what the run's value factors say of the values shown). The context is the "visible" one of
pretraining: a query sees the genes shown, the perturbation tokens and itself, and no other token sees a query.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.data import indptr_of
from sckit.model import Model, Perturbed, Tokens, Trunk, factor_means

_GENE_SIZE = 0.5  # of a coordinate of a gene vector, as pretraining starts them
_LOADING_SIZE = 0.05


@dataclass(frozen=True)
class Example:
    """One sequence: what is shown, what was done, and what is asked."""

    genes: np.ndarray  # int64 [n], genes shown
    values: np.ndarray  # [n], log1p of counts per 10,000
    residual: np.ndarray  # [n], how far each value is from what was expected, in the units of single cells
    perturbations: tuple[int, ...]  # rows of the token table
    dose: float  # log1p of the dose, 0 without one
    queries: np.ndarray  # int64 [q], genes asked for
    truth: np.ndarray | None = None  # [q], delta less the training mean, in units of its RMS over the training units

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.genes) + len(self.perturbations) + len(self.queries)


def pack_examples(examples: Sequence[Example], expected: np.ndarray, device: torch.device) -> Tokens:
    """Pack the examples, at least one: of each the genes shown, its perturbations, then its queries.

    expected: what is expected of each row of the token table above the value of a single count.
    """
    parts = [part for e in examples for part in (e.genes, np.array(e.perturbations, np.int64), e.queries)]
    genes = np.concatenate(parts).astype(np.int64)
    role = np.repeat(np.tile([0, 1, 2], len(examples)), [len(part) for part in parts])
    values, residual = np.zeros((2, len(role)))
    values[role == 0] = np.concatenate([e.values for e in examples])
    residual[role == 0] = np.concatenate([e.residual for e in examples])
    truth = [e.truth for e in examples if e.truth is not None]
    doses = np.array([e.dose for e in examples for _ in e.perturbations])

    def floats(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(device)

    return Tokens.pack(
        device,
        genes=genes,
        values=values,
        hidden=role == 2,
        in_context=role == 0,
        offsets=indptr_of([len(e) for e in examples]).astype(np.int32),
        keys=np.array([len(e.genes) + len(e.perturbations) for e in examples], np.int32),
        targets=np.flatnonzero(role == 2),
        truth=np.concatenate(truth) if len(truth) == len(examples) else None,
        n_detected=np.array([len(e.genes) for e in examples]),
        log_total=np.full(len(examples), np.nan),
        visible_only=True,
        expected=floats(expected[genes]),
        residual=floats(residual),
        perturbed=Perturbed(torch.from_numpy(np.flatnonzero(role == 1)).to(device), floats(doses)),
    )


@dataclass(frozen=True)
class TokenTable:
    """What each row of the token table is: G genes predicted, then perturbations that are no such gene."""

    run_genes: np.ndarray  # int64 [rows], number of the row's gene in the run, -1 where it has none
    n_genes: int  # G, the first rows
    perturbations: np.ndarray  # int64 [P], row of each perturbation


class Responder(Trunk):
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
        self.gene = nn.Embedding.from_pretrained(rows, freeze=False)
        for part in ("curve", "guess_curve", "surprise", "marker", "cell", "blocks", "norm"):
            setattr(self, part, copy.deepcopy(getattr(start, part)))
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

    def targets(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return what the factors say [M] and the final states [M, E] of the queries.

        The predictions are deltas less the training mean, in units of the training RMS.
        """
        if tokens.perturbed is None or tokens.expected is None or tokens.residual is None:
            message = "tokens of a perturbation task come from pack_examples"
            raise ValueError(message)
        at, dose = tokens.perturbed
        state = tokens.log_detected.new_zeros(len(tokens.log_detected), self.cell.in_features)
        state[:, 3], state[:, 4] = 1.0, tokens.log_detected / 10  # the places of "visible only" in pretraining
        done = self.perturbed + dose[:, None] * self.per_dose  # [P, E]
        # Like all that is known of a cell, the perturbation is added to each of its tokens too: with its own token
        # alone, a hundred steps on simulated screens seldom sufficed for attention to find it.
        what = done + F.embedding(tokens.genes[at], self.gene.weight)
        cells = self.cell(state).index_add(0, tokens.cell[at], what)  # [C, E]
        h = self.token_states(tokens, cells, tokens.expected, tokens.residual).index_add(0, at, done)
        return self._from_factors(tokens), self.final_states(h, tokens.attention, tokens.targets)

    def _from_factors(self, tokens: Tokens) -> Tensor:
        """Return what the factors of the values shown say of each query [M]."""
        if self.loadings is None or self.gain is None or self.log_noise_scale is None or tokens.residual is None:
            return torch.zeros(len(tokens.targets), device=tokens.values.device)
        shown = F.embedding(tokens.genes, self.loadings) * tokens.in_context[:, None]  # [T, J]
        weighted = shown / (self.noise[tokens.genes] * self.log_noise_scale.exp())[:, None]
        factors = factor_means(weighted, shown, tokens.residual, tokens)  # [C, J]
        queried = F.embedding(tokens.genes[tokens.targets], self.loadings)
        return self.gain * (queried * F.embedding(tokens.cell[tokens.targets], factors)).sum(1)
