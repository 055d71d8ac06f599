"""How a step is taken: the optimiser's groups and the learning rate over the budget."""

import math

import torch

from sckit.config import PretrainConfig
from sckit.model.transformer import Model

_ROW_EPS = 1e-3


def make_optimiser(model: Model, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW in four groups: what starts from the closed forms or belongs to single genes learns slower, without decay.

    Adam moves a weight by about its learning rate however rarely it is used, so that rows of rare genes would wander on
    noise; there `eps` lies above the gradient of a single token, and a row moves in proportion to what it has seen.
    """
    linear, genes = list(model.linear.parameters()), [model.gene.weight, model.head.weight, model.shared_head]
    known = {id(p) for p in (*linear, *genes)}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay, "share": 1.0},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
        {"params": genes, "weight_decay": 0.0, "share": config.gene_lr, "eps": _ROW_EPS},
        {"params": linear, "weight_decay": 0.0, "share": config.linear_lr, "eps": _ROW_EPS},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


def schedule(share: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of the budget, then a cosine to a hundredth."""
    if share < warmup:
        return max(share, 1e-3) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup))))
