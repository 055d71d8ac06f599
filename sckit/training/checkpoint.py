"""Checkpoints: all that resuming needs, in a folder that is written whole or not at all; weights that fit the model."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sckit.errors import DataError, said
from sckit.files import replacing_folder
from sckit.model.transformer import Model
from sckit.training.sharding import divided_like, whole


def moments_of(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what an optimiser remembers of its parameters by name; all processes of a split network call it."""
    slots = optimiser.state_dict()["state"].items()
    return {f"optimiser.{i}.{name}": whole(tensor) for i, slot in slots for name, tensor in slot.items()}


def save_checkpoint(run: Path, state: dict[str, Any], model: Model, moments: dict[str, torch.Tensor]) -> None:
    """Write everything that resuming needs into a folder of its own; then older ones go. moments: from `moments_of`."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | moments
    final = run / "checkpoints" / f"step-{state['step']:08d}"
    if not final.exists():  # the end of training writes the last one again
        with replacing_folder(final) as folder:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps(state))
    for other in final.parent.iterdir():
        if other.name < final.name:
            shutil.rmtree(other)


def load_checkpoint(run: Path, models: Iterable[Model], optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Load the newest whole checkpoint into models and optimiser and return its state, or None when there is none."""
    whole = sorted(p for p in (run / "checkpoints").glob("step-*") if not p.suffix)
    if not whole:
        return None
    try:
        tensors = load_file(whole[-1] / "state.safetensors")
        state = json.loads((whole[-1] / "state.json").read_text(encoding="utf-8"))
        weights = {k[len("model.") :]: v for k, v in tensors.items() if k.startswith("model.")}
        for model in models:
            load_weights(model, weights)
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                slots.setdefault(int(index), {})[key] = tensor
        _check_slots(slots, optimiser)
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        slots = {
            index: {key: divided_like(tensor, parameters[index]) for key, tensor in slot.items()}
            for index, slot in slots.items()
        }
        optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        if not isinstance(state, dict):
            msg = "state.json is no state"
            raise ValueError(msg)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint {whole[-1]} is damaged ({said(error)}); remove it to start from the one before."
        ) from error
    return state


def load_weights(model: Model, weights: dict[str, torch.Tensor]) -> None:
    """Put weights into the model. Raises ValueError or RuntimeError where they are not of its types and shapes.

    Raises DataError where the correction of the linear baseline has an earlier shape.
    """
    first = "correction.shared.0.weight"
    own = model.state_dict().get(first)
    if own is not None and (first not in weights or weights[first].shape != own.shape):
        message = "the run was trained with an earlier form of the correction, which is not read; train again."
        raise DataError(message)
    if {tensor.dtype for tensor in weights.values()} - {tensor.dtype for tensor in model.state_dict().values()}:
        msg = "weights are numbers of another type"
        raise ValueError(msg)
    own = dict(model.named_parameters())
    model.load_state_dict({k: divided_like(v, own[k]) if k in own else v for k, v in weights.items()})


def _check_slots(slots: dict[int, dict[str, torch.Tensor]], optimiser: torch.optim.Optimizer) -> None:
    """Raise ValueError where what an optimiser remembers of its parameters does not have their shapes."""
    parameters = [one for group in optimiser.param_groups for one in group["params"]]
    for index, slot in slots.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"there is no parameter {index}")
        wanted = ((parameters[index].shape, torch.float32), (torch.Size(), torch.float32))
        if any((one.shape, one.dtype) not in wanted for one in slot.values()):
            raise ValueError(f"the moments of parameter {index} have another shape or type")
