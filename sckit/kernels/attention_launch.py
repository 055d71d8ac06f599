"""How the attention kernels are compiled for each GPU: a fixed table, no search, so that what runs is what was checked.

`sckit bench static` compiles every row and reads its machine code. `sckit.kernels.attention_tune` can measure other
rows on request; nothing else changes what is chosen.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """How one kernel is compiled."""

    step: int
    """Rows of the other side of the cell that a program takes at a time."""
    warps: int
    stages: int
    """Depth of the load pipeline."""
    reload: bool = False
    """Read the program's own tile again for the last, ragged step, which frees the registers of a second copy."""
    poly: int = 0
    """Compute one of 2 ** poly exponentials with multiply-adds; 0 for none. The table has 0: it is not measured yet."""
    mfma: int = 0
    """Rows of AMD's matrix instruction, 16 or 32; with 0 Triton chooses, and takes 32."""

    def constants(self) -> dict[str, Any]:
        """Return the constexpr arguments of a kernel."""
        return {"STAGES": self.stages, "RELOAD": self.reload, "POLY": self.poly}

    def options(self) -> dict[str, Any]:
        """Return the compiler's options; fusion of a * b + c is set, because Triton's default will change."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return {**options, "matrix_instr_nonkdim": self.mfma} if self.mfma else options


class Launches(NamedTuple):
    """The three kernels of one head width: forward, dQ, and dK with dV."""

    forward: Launch
    queries: Launch
    keys: Launch


_PLAIN = Launches(Launch(64, 4, 3), Launch(64, 4, 3), Launch(64, 4, 3))
# Float32 products run on the plain cores and hold whole rows of their operands in registers: small steps, many warps.
# 128 wide they spill in dQ, by two registers at 16 warps and by hundreds at 8, so float32 stops at 64.
_FLOAT32 = dict.fromkeys(
    [(16, 4), (32, 4), (64, 4)],
    Launches(Launch(16, 8, 2, reload=True), Launch(16, 8, 2, reload=True), Launch(16, 8, 2, reload=True)),
)
# Two warps of 32-row matrix instructions, or four of 16-row ones, cover a tile of 64 rows once; more repeat the work.
_TWO = Launches(Launch(32, 2, 2), Launch(32, 2, 2), Launch(32, 2, 2))
_FOUR = Launches(Launch(32, 4, 2, mfma=16), Launch(32, 4, 2, mfma=16), Launch(32, 4, 2, mfma=16))

# By architecture, then by head width and bytes of a number. No row spills a register with Triton 3.6 to 3.9, which
# `sckit bench static` checks.
LAUNCHES: dict[str, dict[tuple[int, int], Launches]] = {
    "sm_80": {
        (16, 2): _PLAIN,
        (32, 2): _PLAIN,
        (64, 2): Launches(Launch(64, 4, 3), Launch(32, 4, 3), Launch(32, 4, 3)),
        (128, 2): Launches(Launch(32, 4, 2, reload=True), Launch(32, 4, 2, reload=True), Launch(64, 8, 2, reload=True)),
        **_FLOAT32,
        (64, 4): _FLOAT32[64, 4]._replace(keys=Launch(16, 16, 2, reload=True)),
    },
    "sm_90": {
        (16, 2): _PLAIN,
        (32, 2): _PLAIN,
        (64, 2): _PLAIN,
        (128, 2): Launches(Launch(64, 4, 2), Launch(32, 4, 2), Launch(16, 4, 2)),
        **_FLOAT32,
        (32, 4): _FLOAT32[32, 4]._replace(queries=Launch(16, 4, 2, reload=True)),
        (64, 4): _FLOAT32[64, 4]._replace(keys=Launch(16, 16, 2, reload=True)),
    },
    "sm_100": {
        (16, 2): _PLAIN,
        (32, 2): _PLAIN,
        (64, 2): Launches(Launch(64, 4, 3), Launch(64, 4, 2), Launch(64, 4, 3)),
        (128, 2): Launches(Launch(64, 4, 2), Launch(32, 4, 2, reload=True), Launch(32, 4, 2)),
        **_FLOAT32,
    },
    "gfx942": {
        (16, 2): _TWO,
        (32, 2): _TWO,
        (64, 2): Launches(_TWO.forward, _TWO.queries, _FOUR.keys),
        # Without a second copy of its tile, which Triton 3.7 would keep in half of the shared memory.
        (128, 2): Launches(Launch(32, 2, 2, reload=True), _FOUR.queries, _FOUR.keys),
        (16, 4): _TWO,
        (32, 4): _TWO,
        (64, 4): Launches(_FOUR.forward, _FOUR.queries, Launch(16, 4, 2, mfma=16)),
    },
}

LONG_CELLS = 512  # mean tokens per cell from which a batch counts as long
TUNED: dict[tuple[str, int, torch.dtype, str], Launches] = {}  # filled by attention_tune.tune, and only by it


def choose_launches(q: Tensor, cells: int) -> Launches:
    """Return how to launch for tensors like q [T, H, D] with this number of cells: the tuned row or the table's."""
    name, width = architecture(q.device), q.shape[2]
    tuned = TUNED.get((name, width, q.dtype, length_class(q.shape[0], cells)))
    return tuned or LAUNCHES[name][width, q.dtype.itemsize]


def length_class(tokens: int, cells: int) -> str:
    """Return "short" or "long" by the mean tokens per cell; finer classes would differ from batch to batch."""
    return "long" if tokens >= LONG_CELLS * max(cells, 1) else "short"


@lru_cache
def architecture(device: torch.device) -> str:
    """Return the row of the table for a device: the nearest architecture that is not newer; sm_80 for the interpreter.

    Consumer Blackwell (12.x) has neither wgmma nor tcgen05, so it takes the row of sm_80, whose instructions it runs.
    """
    if device.type == "cpu":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")
