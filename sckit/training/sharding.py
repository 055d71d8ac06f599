"""A model as several processes train it: with whole parameters in each of them, or split over them by torch's FSDP2."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from sckit.model.tokens import Tokens
from sckit.model.transformer import Model


class Loss(nn.Module):
    """The loss of a model as a forward pass, which is what torch's wrappers for several processes call."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the loss of a batch."""
        return self.model.loss(tokens)


def split(model: Model) -> Model:
    """Return a copy of a model that is split block by block; what no step trains belongs to both.

    That is the linear baseline, the law of counts and the correction.
    """
    fixed = [part for part in (model.linear, model.counts, model.correction) if part is not None]
    network = deepcopy(model, {id(part): part for part in fixed})
    left_whole = {parameter for part in fixed for parameter in part.parameters()}
    for block in network.blocks:
        fully_shard(block)
    fully_shard(network, ignored_params=left_whole)
    register_fsdp_forward_method(network, "loss")
    return network


@torch.no_grad()
def gather(network: Model, model: Model) -> None:
    """Bring the parameters of a split network together, in all processes at once; `model` gets them where it is not it.

    Processes that only help give the network twice.
    """
    whole_ones = dict(model.named_parameters()) if model is not network else {}
    for name, parameter in network.named_parameters():
        found = whole(parameter)
        if name in whole_ones:
            whole_ones[name].copy_(found)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as it is, or brought together from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor, split as a parameter of its shape is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
