"""The kernels of token states and of the masked head as they are launched, for `sckit bench static`."""

from collections.abc import Iterator
from typing import Any

from sckit.bench.shipped import TARGETS, Shipped
from sckit.kernels import embed_triton, head_triton, rows_triton

WIDTH = 128
KNOTS = {"K": 32, "EXPECTED_K": 32}
INTEGERS = ("GENES", "CELLS", "ROWS", "ORDER", "PRESENT", "BOUNDS", "INDEX")
ALWAYS_FLOAT32 = (
    "VALUES",
    "RESIDUAL",
    "EXPECTED",
    "SUMS",
    "WEIGHTS",
    "SHARED",
    "BIAS",
    "TRUTH",
    "PREDICTION",
    "SQUARES",
)
SEGMENTS = {  # as they are called: positions of a step, and which arguments are None
    "embed gene rows": (8, ("INDEX", "WEIGHTS", "EXTRA")),
    "embed cell rows": (32, ("INDEX", "WEIGHTS", "EXTRA")),
    "head states": (1, ()),
    "head weights": (8, ("EXTRA",)),
}


def shipped() -> Iterator[Shipped]:
    """Yield every kernel, float32 and the 16-bit case; the width hardly matters, as a program owns 64 columns."""
    sizes = {"E": WIDTH, "B": rows_triton.strip_of(WIDTH)}
    tile = KNOTS | sizes | {"M": embed_triton.TILE}
    part = {"PART": embed_triton.PART, "ROWS": embed_triton.ROWS}
    whole = (
        ("embed forward", embed_triton._forward_kernel, tile),
        ("embed tables", embed_triton._table_kernel, tile | part),
        ("head forward", head_triton._forward_kernel, sizes | {"M": head_triton.TILE}),
    )
    for target in TARGETS:
        for kind in ("fp32", "bf16"):
            for name, kernel, constants in whole:
                yield _ship(target, kind, name, kernel, constants, warps=4)
            for name, (step, absent) in SEGMENTS.items():
                constants = sizes | {"STEP": step} | dict.fromkeys(absent)
                yield _ship(target, kind, name, rows_triton._segment_kernel, constants, warps=rows_triton.WARPS[step])


def _ship(target: str, kind: str, name: str, kernel: Any, constants: dict[str, Any], *, warps: int) -> Shipped:
    types = {"HIDDEN": "*i1", "tokens": "i32", "targets": "i32"}
    types |= {scalar: "fp32" for scalar in ("low", "scale", "expected_low", "expected_scale")}
    types |= dict.fromkeys(INTEGERS, "*i32") | dict.fromkeys(ALWAYS_FLOAT32, "*fp32")
    if name == "head states":  # a gradient of 16-bit states from weights of float32
        types |= {"SOURCE": "*fp32", "EXTRA": "*fp32"}
    if name == "head weights":
        types |= {"OUT": "*fp32"}
    if name.startswith("head"):
        types |= {"WEIGHT": "*fp32"}
    return Shipped(
        name=name,
        case=f"{kind} E{constants['E']}",
        target=target,
        kernel=kernel,
        signature={arg: types.get(arg, f"*{kind}") for arg in kernel.arg_names if arg not in constants},
        constants=constants,
        options={"num_warps": warps, "enable_fp_fusion": True},
        matrix="MFMA" if target == "gfx942" and name == "embed tables" else "",
    )
