"""How a training step is taken: the optimiser's groups, the learning rate over the budget, and the step itself."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sckit.config import PretrainConfig
from sckit.errors import DataError
from sckit.model.transformer import Model
from sckit.training.sharding import whole

_ROW_EPS = 1e-3


def make_optimiser(model: Model, config: PretrainConfig) -> torch.optim.AdamW:
    """Make AdamW with four groups: the linear baseline and the rows of single genes learn more slowly, without decay.

    Adam moves a weight by about its learning rate however rarely it is used, so that rows of rare genes would wander on
    noise; there `eps` lies above the gradient of a single token, and a row moves in proportion to what it has seen.
    """
    linear, genes = list(model.linear.parameters()), [model.gene.weight, model.head.weight]
    if model.config.start == "ridge":  # runs of before go on as they began
        genes.append(model.shared_head)
    known = {id(p) for p in (*linear, *genes)}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay, "share": 1.0},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
        {"params": genes, "weight_decay": 0.0, "share": config.gene_lr, "eps": _ROW_EPS},
        {"params": linear, "weight_decay": 0.0, "share": config.linear_lr, "eps": _ROW_EPS},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def schedule(share: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak: a linear rise over `warmup`, then a cosine to a hundredth.

    share: part of the budget that is spent, warmup: part of the budget in which the rate rises.
    """
    if share < warmup:
        return max(share, 1e-3) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup))))


def take_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    *,
    step: int,
    lr: float,
    scheduled: float,
    clip: float,
    look: bool = True,
) -> Tensor:
    """Add up the gradients of the losses, clip their norm, move the parameters, and return the sum of the losses.

    A loss is computed when its turn comes, so that one batch at a time is in memory. The learning rate is the peak `lr`
    times what the schedule says, and times the "share" of a group that has one. With `look` it waits for the device and
    raises DataError when the gradient is not finite; `step` is for its message. Without, the parameters are then no
    numbers, which the next look finds.
    """
    for group in optimiser.param_groups:
        group["lr"] = group.get("share", 1.0) * lr * scheduled
    total = torch.zeros((), device=next(model.parameters()).device)
    for loss in losses:
        loss.backward()
        total += loss.detach()
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
    if look and not torch.isfinite(norm):
        raise DataError(f"the gradient is {float(norm)} at step {step}; lower --lr and try again.")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return total
