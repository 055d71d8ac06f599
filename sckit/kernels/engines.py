"""What all operators share: which engine runs on given tensors, how it is loaded, and how often it differentiates."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

ENGINES = ("auto", "reference", "numba", "triton")
_HAS_TRITON = find_spec("triton") is not None
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def choose_engine(device: torch.device | str, dtype: torch.dtype) -> tuple[str, str]:
    """Return the engine that "auto" takes for tensors of this device and dtype, and the reason in words."""
    kind = torch.device(device).type
    if kind == "cpu" and dtype == torch.float32:
        return "numba", "CPU, float32: compiled vector tiles"
    if kind == "cpu":
        return "reference", f"CPU, {dtype}: the compiled engine takes float32 only"
    if dtype not in _TRITON_DTYPES:
        return "reference", f"{kind}, {dtype}: the Triton engine takes float16, bfloat16 and float32"
    if kind != "cuda" or not _HAS_TRITON:
        return "reference", f"{kind}: no Triton for this device here"
    if torch.version.cuda and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] < 8:
        return "reference", "CUDA device before sm_80: the Triton engine is compiled and checked for sm_80 and later"
    return "triton", f"{'HIP' if torch.version.hip else 'CUDA'} device, {dtype} with float32 sums"


# torch.compile cannot look into it. This is torch.compiler.assume_constant_result, which would load the compiler.
choose_engine.__dict__["_dynamo_marked_constant"] = True


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
        chosen = [choose_engine(device, part.dtype)[0] for part in tensors]
        return "reference" if "reference" in chosen else chosen[0]
    if engine == "numba" and (device.type != "cpu" or dtypes != {torch.float32}):
        message = f"engine 'numba' takes CPU tensors of float32, got {_names(dtypes)} on {device}; use engine='auto'."
        raise ValueError(message)
    if engine == "triton" and dtypes - set(_TRITON_DTYPES):
        message = f"engine 'triton' takes float16, bfloat16 or float32, got {_names(dtypes)}; use engine='reference'."
        raise ValueError(message)
    if engine == "triton" and device.type == "cpu" and not interpreted():
        message = (
            "engine 'triton' needs GPU tensors, or TRITON_INTERPRET=1 set before the first import of Triton kernels."
        )
        raise ValueError(message)
    return engine


def load_engine(operator: str, engine: str) -> ModuleType:
    """Import the kernels of an operator when they are first used: compilers load slowly, and not all are installed."""
    return import_module(f"sckit.kernels.{operator}_{engine}")


def interpreted() -> bool:
    """Return whether Triton kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 at their import."""
    import triton

    from sckit.kernels import rows_triton

    return not isinstance(rows_triton._segment_kernel, triton.JITFunction)


def once_differentiable(operator: str, name: str) -> None:
    """Let a second derivative through a registered operator of gradients fail; without this it would be zero."""

    def refuse(_ctx: Any, *_grads: Tensor) -> NoReturn:
        message = f"{name} is not twice differentiable; use engine='reference'."
        raise RuntimeError(message)

    torch.library.register_autograd(operator, refuse)


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype) for dtype in dtypes))
