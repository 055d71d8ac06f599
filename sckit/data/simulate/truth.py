"""The truth of a simulation: what is known of its genes and cells, and the expected count of every entry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import ndtri

from sckit.config import SimulateConfig, from_dict
from sckit.data.new_hdf5 import new_hdf5
from sckit.data.simulate.law import SPREAD, draw_counts, draw_depths, expected_counts
from sckit.data.simulate.world import World, draw_world, regulation, stream
from sckit.data.views import Csr, indptr_of
from sckit.errors import DataError, SckitError, said
from sckit.kernels.hashing import entry_uniform
from sckit.provenance import package_version

_FORMAT, _VERSION = "sckit-truth", 1
_DEPTH_SPREAD = 0.4  # standard deviation of the log depth within a library
_CELLS, _COUNTS, _NOISE = range(100, 103)  # apart from the streams of the world
_FARTHEST = 3.0  # in standard deviations, squared: what a product of two activities is cut to
CELLS_PER_BLOCK = 512


@dataclass(frozen=True)
class Cells:
    """C cells."""

    depth: np.ndarray
    """[C]: expected total counts."""
    cell_type: np.ndarray
    """int [C]."""
    library: np.ndarray
    """int [C]."""
    activity: np.ndarray
    """[C, M]: activity of every programme."""
    perturbation: np.ndarray
    """int [C]: number of the perturbation, -1 for control cells."""


@dataclass(frozen=True)
class Truth:
    """Everything that the counts of a simulation were drawn from."""

    config: SimulateConfig
    world: World
    cells: Cells

    @property
    def genes(self) -> pd.DataFrame:
        """G rows: the symbols GENE0, GENE1, ... as index, and ids in the form of Ensembl, of no species."""
        numbers = range(self.config.genes)
        ids = [f"ENSSIMG{g:011d}" for g in numbers]
        return pd.DataFrame({"gene_ids": ids}, index=pd.Index([f"GENE{g}" for g in numbers]))

    @property
    def obs(self) -> pd.DataFrame:
        """C rows: library, cell_type and, where there are perturbations, perturbation (the target, or "control")."""
        columns = {
            "library": _labels(self.cells.library, [f"library{i}" for i in range(self.config.libraries)]),
            "cell_type": _labels(self.cells.cell_type, [f"type{i}" for i in range(self.config.types)]),
        }
        if self.config.perturbations:
            names = ["control", *(f"GENE{g}" for g in self.world.targets)]
            columns["perturbation"] = _labels(self.cells.perturbation + 1, names)
        return pd.DataFrame(columns, index=pd.Index([f"CELL{c}" for c in range(self.config.cells)]))

    def rates(self, cells: Iterable[int] | np.ndarray) -> np.ndarray:
        """Return the exact expected count of every gene in the cells: float64 [n, G].

        They add up to the depth of the cell. Counts are Poisson with these means, or negative binomial.
        """
        rows = [self._rate(int(cell)) for cell in cells]
        return np.array(rows).reshape(len(rows), self.config.genes)

    def counts(self, cell: int) -> np.ndarray:
        """Draw the counts [G] of a cell, from random numbers that only this cell uses."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self._keys[0], cell], np.uint64)))
        return draw_counts(generator, self._rate(cell), self.config.dispersion)

    def blocks(self, cells_per_block: int = CELLS_PER_BLOCK) -> Iterator[Csr]:
        """Yield the counts of all cells in order, as CSR: indptr, genes (int32) and counts (int64)."""
        for start in range(0, self.config.cells, cells_per_block):
            rows = [self.counts(cell) for cell in range(start, min(start + cells_per_block, self.config.cells))]
            genes = [np.flatnonzero(row).astype(np.int32) for row in rows]
            counts = [row[found] for row, found in zip(rows, genes, strict=True)]
            yield indptr_of([len(found) for found in genes]), np.concatenate(genes), np.concatenate(counts)

    def save(self, path: Path) -> None:
        """Write the truth into an HDF5 file: a group of arrays for the world and one for the cells."""
        with new_hdf5(path) as file:
            file.attrs.update(format=_FORMAT, version=_VERSION, sckit=package_version("sckit"))
            file.attrs["config"] = json.dumps(asdict(self.config))
            for name, part in (("world", self.world), ("cells", self.cells)):
                for field, array in vars(part).items():
                    packed = {"compression": "gzip", "compression_opts": 1} if array.size else {}
                    file.create_dataset(f"{name}/{field}", data=array, **packed)

    @cached_property
    def _keys(self) -> tuple[np.uint64, np.uint64]:
        """Of the counts and of the regulators."""
        words = [
            np.random.SeedSequence([self.config.seed, part]).generate_state(1, np.uint64) for part in (_COUNTS, _NOISE)
        ]
        return words[0][0], words[1][0]

    @cached_property
    def _regulation(self) -> tuple[sp.csr_array, sp.csr_array]:
        world = self.world
        return regulation(self.config.genes, world.regulators, world.own_spread, world.edges, world.weight)

    def products(self, activity: np.ndarray) -> np.ndarray:
        """Return the products that the interacting genes follow [N, S] in cells of these activities [N, M]."""
        return np.clip((activity[:, self.world.pair] / SPREAD).prod(2), -_FARTHEST, _FARTHEST)

    def _rate(self, cell: int) -> np.ndarray:
        """One cell at a time, so that nothing depends on the cells that are asked for together."""
        world, cells = self.world, self.cells
        activity = cells.activity[cell]
        log_rate = world.log_share + world.type_profile[cells.cell_type[cell]]
        log_rate += world.library_offset[cells.library[cell]]
        log_rate += world.loading * activity[world.programme]
        if len(world.interacting):
            log_rate[world.interacting] += self.config.interactions * self.products(activity[None])[0]
        if len(world.regulators):
            uniform = entry_uniform(int(self._keys[1]), np.array(cell), world.regulators)
            deviation, log_rates = self._regulation
            log_rate += log_rates @ (deviation @ ndtri(uniform + 2.0**-54))
        if cells.perturbation[cell] >= 0:
            log_rate += world.effects[cells.perturbation[cell]]
        return expected_counts(log_rate, cells.depth[cell])


def draw_truth(config: SimulateConfig) -> Truth:
    """Draw the genes and cells of a simulation; the counts follow from them."""
    world, generator, n = draw_world(config), stream(config.seed, _CELLS), config.cells
    library = generator.permutation(np.arange(n) % config.libraries)
    perturbed = np.repeat(np.arange(config.perturbations), config.perturbation_cells)
    depth = draw_depths(generator, config.depth, _DEPTH_SPREAD, (n,)) * np.exp(world.library_depth[library])
    cells = Cells(
        depth=depth,
        cell_type=generator.choice(config.types, n, p=world.type_weight),
        library=library,
        activity=generator.normal(0, SPREAD, (n, config.programmes)),
        perturbation=generator.permutation(np.concatenate([perturbed, np.full(n - len(perturbed), -1)])),
    )
    return Truth(config, world, cells)


def truth_path(path: Path | str) -> Path:
    """Return where the truth of a simulated file lies: NAME.truth.h5 next to it."""
    path = Path(path)
    return path.with_name(f"{path.stem}.truth.h5")


def read_truth(path: Path | str) -> Truth:
    """Read the truth of a simulation from NAME.truth.h5. Raises `DataError` where the file is not one."""
    path = Path(path)
    try:
        with h5py.File(path) as file:
            if file.attrs.get("format") != _FORMAT or file.attrs.get("version") != _VERSION:
                raise DataError(f"{path} is not the truth of a simulation; give the NAME.truth.h5 of `sckit simulate`.")
            config = from_dict(SimulateConfig, json.loads(str(file.attrs["config"])), str(path))
            world, cells = (_part(file, name, kind) for name, kind in (("world", World), ("cells", Cells)))
            return Truth(config, world, cells)
    except SckitError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({said(error)}); simulate the data again.") from error


def _part(file: h5py.File, name: str, kind: Callable[..., Any]) -> Any:
    return kind(**{field.name: np.asarray(file[f"{name}/{field.name}"]) for field in fields(kind)})  # type: ignore[arg-type]


def _labels(numbers: np.ndarray, names: list[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(numbers, categories=names)  # type: ignore[arg-type]
