"""The named cases of `sckit bench kernels`: numbers of detected genes as real cells have them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PERCENTS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 100)


@dataclass(frozen=True)
class Shape:
    """The distribution of detected genes per cell in one real data set, as `bench/cases.py` measures it."""

    source: str
    measured_cells: int
    quantiles: tuple[int, ...]  # detected genes per cell at PERCENTS of the cells


SHAPES = {
    "long": Shape(
        "PBMC panel, seven 10x runs, all genes",
        14542,
        (17, 301, 392, 455, 555, 636, 709, 788, 908, 1063, 1268, 1591, 1865, 2167, 2364, 3754),
    ),
    "short": Shape(
        "PBMC panel, seven 10x runs, 3,000 variable genes",
        14542,
        (13, 83, 110, 125, 153, 177, 200, 224, 257, 299, 355, 435, 506, 591, 654, 1035),
    ),
    "deep": Shape(
        "PBMC 1k, 10x 3' v3, all genes",
        906,
        (19, 374, 882, 1192, 1456, 1576, 1715, 1799, 1899, 2006, 2128, 2333, 2530, 2685, 2759, 2965),
    ),
}


@dataclass(frozen=True)
class Case:
    """A batch of cells whose numbers of detected genes lie at even steps along the distribution of a shape."""

    shape: str
    heads: int
    head_dim: int
    cells: int
    hidden_share: float = 0.0  # of a cell's tokens, those that are queries only

    @property
    def name(self) -> str:
        """The shape, and whether half of the tokens are hidden."""
        return self.shape + ("-half-hidden" if self.hidden_share else "")

    def lengths(self) -> list[int]:
        """Return the number of tokens of each cell, in a random order that never changes."""
        quantiles = SHAPES[self.shape].quantiles
        at = (np.arange(self.cells) + 0.5) / self.cells * 100
        lengths = np.interp(at, PERCENTS, quantiles).astype(int)
        return np.random.default_rng(0).permutation(lengths).tolist()

    def keys(self) -> list[int]:
        """Return the number of tokens of each cell that are keys."""
        return [tokens - int(self.hidden_share * tokens) for tokens in self.lengths()]

    def gflop(self, *, backward: bool) -> float:
        """Return the work of the two products of the forward pass in 1e9, times 3.5 with the five of the backward."""
        pairs = sum(tokens * keys for tokens, keys in zip(self.lengths(), self.keys(), strict=True))
        return 4 * pairs * self.heads * self.head_dim * (3.5 if backward else 1.0) / 1e9

    def facts(self) -> dict[str, int | str]:
        """Return what the table says of the cells."""
        lengths = self.lengths()
        facts: dict[str, int | str] = {"source": SHAPES[self.shape].source, "cells": self.cells, "tokens": sum(lengths)}
        return facts | {"median_tokens": int(np.median(lengths)), "max_tokens": max(lengths)}


CASES = (
    Case("long", 4, 32, 24),
    Case("long", 4, 32, 24, hidden_share=0.5),
    Case("long", 8, 64, 12),
    Case("short", 4, 32, 64),
    Case("short", 8, 64, 32),
    Case("short", 2, 32, 64),
    Case("deep", 4, 32, 6),
)
_MORE_CELLS_ON_A_GPU = 32


def cases_for(device: str, names: Sequence[str] = ()) -> tuple[Case, ...]:
    """Return the cases for a device, those with one of the names if there are any; a GPU gets more cells in each."""
    chosen = [case for case in CASES if not names or case.name in names]
    if device == "cpu":
        return tuple(chosen)
    return tuple(replace(case, cells=_MORE_CELLS_ON_A_GPU * case.cells) for case in chosen)
