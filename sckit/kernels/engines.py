"""Which engine runs an operator on these tensors, and which cannot; shared by the doors of `embed` and the head."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from sckit.kernels.attention import ENGINES, choose_engine


def pick_engine(engine: str, *tensors: Tensor) -> str:
    """Return the engine to run on tensors of one device: "auto" is the compiled one if it takes all of their dtypes.

    Raises ValueError for an unknown engine and for tensors that the engine cannot run.
    """
    if engine not in ENGINES:
        message = f"engine must be one of {', '.join(ENGINES)}, got {engine!r}."
        raise ValueError(message)
    device = tensors[0].device
    dtypes = {part.dtype for part in tensors}
    if engine == "auto":
        odd = [dtype for dtype in dtypes if choose_engine(device, dtype)[0] == "reference"]
        return "reference" if odd else choose_engine(device, tensors[0].dtype)[0]
    if engine == "numba" and (device.type != "cpu" or dtypes != {torch.float32}):
        message = f"engine 'numba' takes CPU tensors of float32, got {_names(dtypes)} on {device}; use engine='auto'."
        raise ValueError(message)
    if engine == "triton" and dtypes - {torch.float16, torch.bfloat16, torch.float32}:
        message = f"engine 'triton' takes float16, bfloat16 or float32, got {_names(dtypes)}; use engine='reference'."
        raise ValueError(message)
    if engine == "triton" and device.type == "cpu" and not _interpreted():
        message = (
            "engine 'triton' needs GPU tensors, or TRITON_INTERPRET=1 set before the first import of Triton kernels."
        )
        raise ValueError(message)
    return engine


def once_differentiable(operator: str, name: str) -> None:
    """Let a second derivative through a registered operator of gradients fail; without this it would be zero."""

    def refuse(_ctx: Any, *_grads: Tensor) -> NoReturn:
        message = f"{name} is not twice differentiable; use engine='reference'."
        raise RuntimeError(message)

    torch.library.register_autograd(operator, refuse)


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype) for dtype in dtypes))


def _interpreted() -> bool:
    from sckit.kernels import rows_triton

    return rows_triton.interpreted()
