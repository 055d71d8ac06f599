"""Training of the correction: many cells in each batch and few entries of a cell, which is what it takes.

The entries of one cell err together. A batch of a few whole cells therefore says little, and in the order of training
most of its entries come from high mask rates. So entries are collected once, a few of each cell and draw, and batches
are drawn from all of them.

How much a gene can say for itself depends on the data, so two penalties are tried and validation cells choose. By the
rule of one standard error the smaller penalty, and a correction at all, has to be better by more than chance.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from sckit.model.correction import Entries
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model
from sckit.training.optimiser import schedule

_DRAWS = 24  # of what is hidden in each cell
_MOST_ENTRIES = 4_000_000
_OF_CELL = 60  # entries of a cell and draw
_BATCH = 2048
_CHECKED = 65536  # entries at a time
_PASSES = 16  # over the entries, at most
_LR, _DECAY, _WARMUP = 3e-3, 0.01, 0.1
_PENALTIES = 2e4, 3e3  # on the squares of the vector of a gene, as a ridge has it

Draw = Callable[[int], Iterable[Tokens]]


class _Collected(NamedTuple):
    """A sample of M entries, where their predictions start [M], and what the loss compares them with [M]."""

    seen: Entries
    base: Tensor
    truth: Tensor
    n_cells: int  # of each draw


class Fitted(NamedTuple):
    """The steps taken with each penalty, and the penalty that validation cells chose: None for no correction."""

    steps: int
    penalty: float | None


def fit_correction(model: Model, draw: Draw, check: Draw, cells_of_gene: Tensor, *, steps: int, seed: int) -> Fitted:
    """Train the correction of a model with each penalty and keep the best: at most `steps`, fewer on small data.

    draw(number): the tokens of all training cells, in batches, with what that draw hides; before it gives a batch it
    sets the linear baseline of the model to the fit without these cells. check(number): the same of validation cells.
    cells_of_gene: [G], training cells with the gene. Where no penalty makes validation cells better, the correction
    stays zero. Raises ValueError for a model without a correction.
    """
    correction = model.correction
    if correction is None:
        message = "the model has no correction"
        raise ValueError(message)
    drawn, checked = _collect(model, draw, seed), _collect(model, check, seed)
    steps = min(steps, _PASSES * len(drawn.base) // _BATCH + 1)
    start = deepcopy(correction.state_dict())
    best, kept, chosen = _losses(model, checked), start, None
    for penalty in _PENALTIES:
        correction.load_state_dict(start)
        _train(model, drawn, penalty / cells_of_gene.to(drawn.base.device).clamp(min=1), steps, seed)
        losses = _losses(model, checked)
        if _better(losses, best):
            best, kept, chosen = losses, deepcopy(correction.state_dict()), penalty
    correction.load_state_dict(kept)
    return Fitted(steps, chosen)


def _better(losses: Tensor, than: Tensor) -> bool:
    """Return whether the losses of cells [C] are smaller by more than the standard error of that."""
    less = than - losses
    return len(less) > 1 and bool(less.mean() > less.std() / len(less) ** 0.5)


def _train(model: Model, drawn: _Collected, penalty: Tensor, steps: int, seed: int) -> None:
    """Take the steps; penalty: [G], of each gene."""
    assert model.correction is not None
    correction, (seen, base, truth, _) = model.correction, drawn
    shared = [p for name, p in correction.named_parameters() if name != "gene.weight"]
    groups = [{"params": shared}, {"params": [correction.gene.weight], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=_LR, betas=(0.9, 0.98), weight_decay=_DECAY, fused=True)
    generator = torch.Generator().manual_seed(seed)
    correction.requires_grad_()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _LR * schedule(step / steps, _WARMUP)
        chosen = torch.randint(0, len(base), (_BATCH,), generator=generator).to(base.device)
        part = _part(seen, chosen)
        corrections, of_gene = correction.parts(part)
        loss = model.losses_of(base[chosen] + corrections, truth[chosen], part.genes).mean()
        (loss + (penalty[part.genes] * of_gene.square().sum(1)).mean()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    correction.requires_grad_(requires_grad=False)


def _part(seen: Entries, chosen: Tensor) -> Entries:
    cell, rows = torch.unique(seen.cell[chosen], return_inverse=True)
    return Entries(seen.entries[chosen], seen.genes[chosen], rows, seen.cells[cell])


@torch.no_grad()
def _losses(model: Model, checked: _Collected) -> Tensor:
    """Return the losses of the entries of each cell over all draws, summed [C]: the entries of a cell err together."""
    assert model.correction is not None
    losses = checked.base.new_zeros(checked.n_cells, dtype=torch.float64)
    for part in torch.arange(len(checked.base), device=checked.base.device).split(_CHECKED):
        seen = _part(checked.seen, part)
        predicted = checked.base[part] + model.correction(seen)
        of_entries = model.losses_of(predicted, checked.truth[part], seen.genes).double()
        losses += torch.bincount(checked.seen.cell[part] % checked.n_cells, of_entries, checked.n_cells)
    return losses


@torch.no_grad()
def _collect(model: Model, draw: Draw, seed: int) -> _Collected:
    generator = torch.Generator().manual_seed(seed)
    parts, entries, cells, n_cells = [], 0, 0, 0
    for number, tokens in ((i, tokens) for i in range(_DRAWS) for tokens in draw(i)):
        seen, base, truth = model.to_correct(tokens)
        kept = _sample(seen.cell, torch.rand(len(base), generator=generator).to(base.device))
        parts.append(
            (seen.entries[kept], seen.genes[kept], seen.cell[kept] + cells, seen.cells, base[kept], truth[kept])
        )
        entries, cells = entries + len(kept), cells + len(seen.cells)
        n_cells = n_cells if number else cells
        if entries >= _MOST_ENTRIES:
            break
    *seen, base, truth = (torch.cat(each) for each in zip(*parts, strict=True))
    return _Collected(Entries(*seen), base, truth, n_cells)


def _sample(cell: Tensor, order: Tensor) -> Tensor:
    """Return the positions of the first entries of each cell in a random order [M]; cell [M] ascends."""
    mixed = torch.argsort(cell + order.double())
    first = torch.searchsorted(cell, cell)
    rank = torch.arange(len(cell), device=cell.device) - first
    return torch.sort(mixed[rank < _OF_CELL]).values
