"""Every Triton kernel as sckit launches it, and what its machine code has to show; `sckit bench static` judges it."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from sckit.kernels.attention_launch import LAUNCHES, Launches
from sckit.kernels.attention_plan import TILE

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}
# Where Triton gives the rows of the scores to more threads than there are rows, their rescaling is repeated.
EXPS = {(target, "fp32", width): 1.5 for target in ("sm_80", "sm_90", "sm_100") for width in (16, 32, 64)}
EXPS["sm_80", "bf16", 128] = 1.5

WIDTH = 128  # of token states and head; it hardly matters, as a program owns 64 columns
KNOTS = {"K": 32, "EXPECTED_K": 32}
SEGMENTS = {  # as they are called: positions of a step, and which arguments are None
    "embed gene rows": (8, ("INDEX", "WEIGHTS", "EXTRA")),
    "embed cell rows": (32, ("INDEX", "WEIGHTS", "EXTRA")),
    "head states": (1, ()),
    "head weights": (8, ("EXTRA",)),
}
FLOAT32 = {"head forward": ("WEIGHT",), "head states": ("SOURCE", "EXTRA"), "head weights": ("OUT",)}
"""Tensors of the head that stay float32 when its states have 16 bits: the weights and their gradient."""
TYPES = (
    {"tokens": "i32", "targets": "i32", "HIDDEN": "*i1"}
    | dict.fromkeys(("scale", "scale_log2", "low", "expected_low", "expected_scale"), "fp32")
    | dict.fromkeys(("TILES", "GENES", "CELLS", "ROWS", "ORDER", "PRESENT", "BOUNDS", "INDEX"), "*i32")
    | dict.fromkeys(("LSE", "DELTA", "VALUES", "RESIDUAL", "EXPECTED", "SUMS", "WEIGHTS"), "*fp32")
    | dict.fromkeys(("SHARED", "BIAS", "TRUTH", "PREDICTION", "SQUARES"), "*fp32")
)
"""Triton types of the arguments that have the same one in every kernel; all others are tensors of the case's type."""


class Shipped(NamedTuple):
    """One kernel in one configuration for one target, and what its machine code has to show."""

    name: str  # of the kernel, such as "attention dQ"
    case: str  # what sets this configuration apart, such as "bf16 D32"
    target: str  # one of TARGETS
    kernel: Any  # the function under `triton.jit`
    signature: dict[str, str]  # Triton type of each argument that is no constant: {"Q": "*bf16", "tokens": "i32"}
    constants: dict[str, Any]  # value of each constexpr argument
    options: dict[str, Any]  # of the compiler; with num_stages above 1, NVIDIA has to show asynchronous copies
    matrix: str = ""  # kind of matrix instruction in the main loop, one of MATRIX; empty where there must be none
    scores: int = 0  # numbers that one trip of the main loop works out, for the figures per score; 0 where none
    exps_per_score: float = 0.0  # the most exponentials of the special function unit that one score may take
    least_warps: int = 8  # the fewest warps that must fit on a multiprocessor at once

    @property
    def key(self) -> str:
        """One line that names the kernel, the target and the case."""
        return f"{self.name}, {self.target}, {self.case}"


def all_shipped() -> Iterator[Shipped]:
    """Yield every kernel in every configuration that ships; a new kernel joins the gate on machine code here."""
    for target, rows in LAUNCHES.items():
        for (width, size), launches in rows.items():
            for kind in ("fp32",) if size == 4 else ("bf16", "fp16") if width in (32, 64) else ("bf16",):
                yield from ship_attention(target, width, kind, launches)
        polynomial = Launches(*(launch._replace(poly=2) for launch in rows[32, 2]))
        yield from ship_attention(target, 32, "bf16", polynomial, " poly")
    for target in TARGETS:
        for kind in ("fp32", "bf16"):
            yield from ship_embed_and_head(target, kind)


def ship_attention(target: str, width: int, kind: str, launches: Launches, note: str = "") -> Iterator[Shipped]:
    """Yield the three attention kernels of one row of the table, for numbers of one kind ("bf16").

    The tensors are those of a fused projection of 8 heads.
    """
    from sckit.kernels import attention_triton as engine

    kernels = {
        "forward": engine._forward_kernel,
        "dQ": engine._query_gradient_kernel,
        "dK dV": engine._key_gradient_kernel,
    }
    for (name, kernel), launch in zip(kernels.items(), launches, strict=True):
        sizes = {"M": launch.step, "N": TILE} if name == "dK dV" else {"M": TILE, "N": launch.step}
        strides = {"H": 8, "D": width, "ROW": 24 * width, "HEAD": width}
        constants = {**strides, **sizes, **launch.constants(), "UPCAST": False}
        narrow = kind != "fp32" and not note and width <= 32 and name != "dK dV" and target != "gfx942"
        yield Shipped(
            name=f"attention {name}",
            case=f"{kind} D{width}{note}",
            target=target,
            kernel=kernel,
            signature=_signature(kernel, kind, constants),
            constants=constants,
            options=launch.options(),
            # Float32 takes IEEE products, for which only AMD has matrix instructions.
            matrix=MATRIX[target] if kind != "fp32" or target == "gfx942" else "",
            scores=TILE * launch.step,
            # One per score and, in the forward pass, one per row and step; more would mean that threads repeat work.
            exps_per_score=EXPS.get((target, kind, width), 1.13) - (0.25 if note else 0.0),
            least_warps=12 if narrow else 4 if target == "gfx942" else 8,
        )


def ship_embed_and_head(target: str, kind: str) -> Iterator[Shipped]:
    """Yield the kernels of token states and of the masked head, for numbers of one kind."""
    from sckit.kernels import embed_triton, head_triton, rows_triton

    sizes = {"E": WIDTH, "B": rows_triton.strip_of(WIDTH)}
    tile = KNOTS | sizes | {"M": embed_triton.TILE}
    part = {"PART": embed_triton.PART, "ROWS": embed_triton.ROWS}
    launched: list[tuple[str, Any, dict[str, Any], int]] = [
        ("embed forward", embed_triton._forward_kernel, tile, 4),
        ("embed tables", embed_triton._table_kernel, tile | part, 4),
        ("head forward", head_triton._forward_kernel, sizes | {"M": head_triton.TILE}, 4),
    ]
    for name, (step, absent) in SEGMENTS.items():
        constants = sizes | {"STEP": step} | dict.fromkeys(absent)
        launched.append((name, rows_triton._segment_kernel, constants, rows_triton.WARPS[step]))
    for name, kernel, constants, warps in launched:
        yield Shipped(
            name=name,
            case=f"{kind} E{WIDTH}",
            target=target,
            kernel=kernel,
            signature=_signature(kernel, kind, constants, FLOAT32.get(name, ())),
            constants=constants,
            options={"num_warps": warps, "enable_fp_fusion": True},
            matrix="MFMA" if target == "gfx942" and name == "embed tables" else "",
        )


def _signature(kernel: Any, kind: str, constants: dict[str, Any], float32: Iterable[str] = ()) -> dict[str, str]:
    """Return the Triton type of each argument that is no constant."""
    types = TYPES | dict.fromkeys(float32, "*fp32")
    return {name: types.get(name, f"*{kind}") for name in kernel.arg_names if name not in constants}
