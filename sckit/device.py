"""Device, precision and engine of the kernels, chosen once, with the reason in words."""

from dataclasses import dataclass

import torch

from sckit.errors import ConfigError
from sckit.kernels.engines import choose_engine


@dataclass(frozen=True)
class Compute:
    """What a run computes with."""

    device: torch.device
    autocast: torch.dtype | None
    """Precision of the matrix products; None is float32."""
    engine: str
    reason: str

    def __str__(self) -> str:
        precision = str(self.autocast or torch.float32).removeprefix("torch.")
        return f"device {self.device}, {precision}, attention engine {self.engine}: {self.reason}"

    def cast(self) -> torch.autocast:
        """Return the autocast context of a forward pass."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def choose_compute(device: str = "auto", engine: str = "auto") -> Compute:
    """Choose the device ("auto", "cpu", "cuda", ...) and the engine.

    Raises ConfigError when what was asked for is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"--device {device} is not a device that torch knows; use cpu or cuda.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device} was asked for, but torch finds no GPU; use --device cpu.")
    autocast = None
    if chosen.type == "cuda":
        autocast = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    best, reason = choose_engine(chosen, autocast or torch.float32)
    if engine in ("auto", best):
        return Compute(chosen, autocast, best, reason)
    if engine not in ("reference", "numba", "triton"):
        raise ConfigError(f"--engine {engine} is unknown; choose auto, reference, numba or triton.")
    if (engine == "numba") != (chosen.type == "cpu") and engine != "reference":
        raise ConfigError(f"--engine {engine} does not run on {chosen}; use --engine auto.")
    return Compute(chosen, autocast, engine, "asked for")
