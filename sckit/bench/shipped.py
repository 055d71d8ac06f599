"""What a Triton file says of the kernels that it ships, so that `sckit bench static` can compile and judge them."""

from typing import Any, NamedTuple

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


class Shipped(NamedTuple):
    """One kernel in one configuration for one target, and what its machine code has to show."""

    name: str
    """The kernel, such as "attention dQ"."""
    case: str
    """What sets this configuration apart, such as "bf16 D32"."""
    target: str
    """One of TARGETS."""
    kernel: Any
    """The function under `triton.jit`."""
    signature: dict[str, str]
    """Triton type of each argument that is no constant: {"Q": "*bf16", "tokens": "i32"}."""
    constants: dict[str, Any]
    """Value of each constexpr argument."""
    options: dict[str, Any]
    """What Triton's compiler is told: num_warps, num_stages (above 1, asynchronous copies are wanted on NVIDIA), ..."""
    matrix: str = ""
    """Kind of matrix instruction in the main loop: HMMA, HGMMA, UTCHMMA or MFMA; empty where there must be none."""
    scores: int = 0
    """Numbers that one trip of the main loop works out, the unit of the figures per score; 0 where it has none."""
    exps_per_score: float = 0.0
    """The most exponentials of the special function unit that one score may take."""
    least_warps: int = 8
    """The fewest warps that must fit on a multiprocessor at once."""

    @property
    def key(self) -> str:
        """One line that names the kernel, the target and the case."""
        return f"{self.name}, {self.target}, {self.case}"
