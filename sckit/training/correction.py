"""Training of the correction: many cells in each batch and few entries of a cell, which is what it takes.

The entries of one cell err together. A batch of a few whole cells therefore says little, and in the order of training
most of its entries come from high mask rates. So entries are collected once, a few of each cell and draw, and batches
are drawn from all of them.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sckit.model.correction import Entries
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model
from sckit.training.optimiser import schedule

_DRAWS = 24  # of what is hidden in each cell
_MOST_ENTRIES = 1_500_000
_OF_CELL = 60  # entries of a cell and draw
_BATCH = 2048
_PASSES = 16  # over the entries, at most
_LR, _DECAY, _WARMUP = 3e-3, 0.01, 0.1
_PENALTY = 3e4  # on the squares of the vector of a gene, as a ridge has it


def fit_correction(
    model: Model, draw: Callable[[int], Iterable[Tokens]], cells_of_gene: Tensor, *, steps: int, seed: int
) -> int:
    """Train the correction of a model, and return the steps that were taken: at most `steps`, fewer on small data.

    draw(number): the tokens of all training cells, in batches, with what that draw hides; before it gives a batch it
    sets the linear baseline of the model to the fit without these cells. cells_of_gene: [G], training cells with the
    gene.
    """
    correction = model.correction
    if correction is None:
        return 0
    seen, base, truth = _collect(model, draw, seed)
    steps = min(steps, _PASSES * len(base) // _BATCH + 1)
    shared = [p for name, p in correction.named_parameters() if name != "gene.weight"]
    groups = [{"params": shared}, {"params": [correction.gene.weight], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=_LR, betas=(0.9, 0.98), weight_decay=_DECAY, fused=True)
    penalty = _PENALTY / cells_of_gene.to(base.device).clamp(min=1)
    generator = torch.Generator().manual_seed(seed)
    correction.requires_grad_()
    for step in range(steps if len(base) else 0):
        for group in optimiser.param_groups:
            group["lr"] = _LR * schedule(step / steps, _WARMUP)
        chosen = torch.randint(0, len(base), (_BATCH,), generator=generator).to(base.device)
        cell, rows = torch.unique(seen.cell[chosen], return_inverse=True)
        part = Entries(seen.entries[chosen], seen.genes[chosen], rows, seen.cells[cell])
        corrections, of_gene = correction.parts(part)
        loss = model.loss_of(base[chosen] + corrections, truth[chosen], part.genes)
        (loss + (penalty[part.genes] * of_gene.square().sum(1)).mean()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    correction.requires_grad_(requires_grad=False)
    return steps


@torch.no_grad()
def _collect(model: Model, draw: Callable[[int], Iterable[Tokens]], seed: int) -> tuple[Entries, Tensor, Tensor]:
    """Return a sample of entries, where their predictions start [M], and what the loss compares them with [M]."""
    generator = torch.Generator().manual_seed(seed)
    parts, entries, cells = [], 0, 0
    for number in range(_DRAWS):
        for tokens in draw(number):
            seen, base, truth = model.to_correct(tokens)
            kept = _sample(seen.cell, torch.rand(len(base), generator=generator).to(base.device))
            parts.append(
                (seen.entries[kept], seen.genes[kept], seen.cell[kept] + cells, seen.cells, base[kept], truth[kept])
            )
            entries, cells = entries + len(kept), cells + len(seen.cells)
            if entries >= _MOST_ENTRIES:
                break
    *seen, base, truth = (torch.cat(each) for each in zip(*parts, strict=True))
    return Entries(*seen), base, truth


def _sample(cell: Tensor, order: Tensor) -> Tensor:
    """Return the positions of the first entries of each cell in a random order [M]; cell [M] ascends."""
    mixed = torch.argsort(cell + order.double())
    first = torch.searchsorted(cell, cell)
    rank = torch.arange(len(cell), device=cell.device) - first
    return torch.sort(mixed[rank < _OF_CELL]).values
