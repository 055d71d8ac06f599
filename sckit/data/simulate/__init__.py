"""Simulated counts whose every expected value is known."""

from sckit.data.simulate.run import Simulated, simulate, write_simulation
from sckit.data.simulate.truth import Cells, Truth, draw_truth, read_truth, truth_path
from sckit.data.simulate.world import World

__all__ = [
    "Cells", "Simulated", "Truth", "World", "draw_truth", "read_truth", "simulate", "truth_path", "write_simulation",
]  # fmt: skip
