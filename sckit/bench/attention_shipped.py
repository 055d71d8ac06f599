"""The attention kernels as the table launches them, for `sckit bench static`."""

from collections.abc import Iterator

from sckit.bench.shipped import Shipped
from sckit.kernels import attention_triton as engine
from sckit.kernels.attention_launch import LAUNCHES, Launches
from sckit.kernels.attention_plan import TILE

MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}
KERNELS = {
    "forward": engine._forward_kernel,
    "dQ": engine._query_gradient_kernel,
    "dK dV": engine._key_gradient_kernel,
}
# Where Triton gives the rows of the scores to more threads than there are rows, their rescaling is repeated.
EXPS = {(target, "fp32", width): 1.5 for target in ("sm_80", "sm_90", "sm_100") for width in (16, 32, 64)}
EXPS["sm_80", "bf16", 128] = 1.5
OTHERS = {"LSE": "*fp32", "DELTA": "*fp32", "TILES": "*i32", "tokens": "i32", "scale": "fp32", "scale_log2": "fp32"}


def shipped() -> Iterator[Shipped]:
    """Yield every row of the table: bfloat16 of all widths, float16 of two, float32, and the polynomial at D = 32."""
    for target, rows in LAUNCHES.items():
        for (width, size), launches in rows.items():
            for kind in ("fp32",) if size == 4 else ("bf16", "fp16") if width in (32, 64) else ("bf16",):
                yield from ship(target, width, kind, launches)
        sparing = Launches(*(launch._replace(poly=2) for launch in rows[32, 2]))
        yield from ship(target, 32, "bf16", sparing, " poly")


def ship(target: str, width: int, kind: str, launches: Launches, note: str = "") -> Iterator[Shipped]:
    """Yield the three kernels of one row for numbers of one kind ("bf16"), 8 heads of a fused projection."""
    for (name, kernel), launch in zip(KERNELS.items(), launches, strict=True):
        sizes = {"M": launch.step, "N": TILE} if name == "dK dV" else {"M": TILE, "N": launch.step}
        strides = {"H": 8, "D": width, "ROW": 24 * width, "HEAD": width}
        constants = {**strides, **sizes, **launch.constants(), "UPCAST": False}
        narrow = kind != "fp32" and not note and width <= 32 and name != "dK dV" and target != "gfx942"
        yield Shipped(
            name=f"attention {name}",
            case=f"{kind} D{width}{note}",
            target=target,
            kernel=kernel,
            signature={name: OTHERS.get(name, f"*{kind}") for name in kernel.arg_names if name not in constants},
            constants=constants,
            options=launch.options(),
            # Float32 takes IEEE products, for which only AMD has matrix instructions.
            matrix=MATRIX[target] if kind != "fp32" or target == "gfx942" else "",
            scores=TILE * launch.step,
            # One a score and, in the forward pass, one a row and step; more would mean that threads repeat each other.
            exps_per_score=EXPS.get((target, kind, width), 1.13) - (0.25 if note else 0.0),
            least_warps=12 if narrow else 4 if target == "gfx942" else 8,
        )
