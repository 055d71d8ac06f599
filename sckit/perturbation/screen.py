"""Perturbation data: which cells were treated with what, within which covariates, and which are the controls."""

import csv
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sckit.config import FinetuneConfig, ReadingConfig
from sckit.data import (
    GeneIndex,
    SameCells,
    Store,
    as_matrix,
    group_values,
    in_blocks,
    log_values,
    open_or_prepare,
    read_lines,
    same_cells,
)
from sckit.errors import ConfigError, DataError
from sckit.perturbation.conditions import Conditions, read_conditions
from sckit.training import Run

_BLOCK_CELLS = 4096


@dataclass(frozen=True)
class Unit:
    """One perturbation, possibly of several parts, in one covariate group."""

    name: str
    parts: tuple[int, ...]  # numbers of the perturbations combined
    covariates: int  # number of its covariate group in `Screen.covariates`
    dose: float | None
    cells: np.ndarray  # int64, rows of the screen


@dataclass(frozen=True)
class Screen:
    """Perturbation data as the tasks see them: C cells, G genes to predict, U units, P perturbations.

    A covariate group is one combination of values of the covariates (cell type, donor). A stratum is a covariate group
    within a replicate: treated cells are compared with the controls of their own stratum.
    """

    genes: pd.DataFrame  # [G] columns id, symbol
    counts: sp.csr_array  # uint32 [C, G], of the genes to predict
    totals: np.ndarray  # int64 [C], over all genes of the source
    control: np.ndarray  # bool [C]
    stratum: np.ndarray  # int64 [C]
    replicate: np.ndarray  # str [C], empty without a replicate column
    units: tuple[Unit, ...]
    perturbations: tuple[str, ...]  # [P]
    target_genes: tuple[str | None, ...]  # [P], id or symbol of the gene that each perturbs, None where unknown
    covariates: tuple[str, ...]  # name of each covariate group, its values joined
    unseen_of_covariates: tuple[str, ...]  # of each covariate group, the value that the covariate split holds out
    seen: SameCells | None  # of the C cells, which a run was trained on; None where that is not known
    table: tuple[dict, ...]  # rows "condition", "context", "cells", printed first
    notes: tuple[str, ...]

    def scored(self, units: np.ndarray) -> np.ndarray:
        """Return whether each gene counts in the score of each of the units, bool [len(units), G].

        The gene that was perturbed does not: no prediction is needed to know that a knocked-down gene goes down.
        """
        own = GeneIndex(self.genes["id"], self.genes["symbol"]).find(self.target_genes)
        mask = np.ones((len(units), len(self.genes)), bool)
        for row, u in enumerate(units):
            mask[row, [own[p] for p in self.units[u].parts if own[p] >= 0]] = False
        return mask

    def centring_groups(self, units: np.ndarray) -> np.ndarray:
        """Return the group that each unit is centred in, int [m]: its covariate group, or 0 with one perturbation."""
        groups = np.array([unit.covariates for unit in self.units], np.int64)
        return np.zeros(len(units), np.int64) if self.single else groups[units]

    @property
    def single(self) -> bool:
        """Return whether all units have the same perturbation."""
        return len({unit.parts for unit in self.units}) == 1

    @property
    def values(self) -> sp.csr_array:
        """Return log1p of counts per 10,000, float64 [C, G]."""
        return log_values(self.counts, self.totals)


def read_screen(
    data: str | Path,
    config: FinetuneConfig,
    reading: ReadingConfig | None = None,
    *,
    run: Run | None = None,
    on_event: Callable,
) -> Screen:
    """Read an h5ad, or anything `prepare` reads, or a store, with the columns that the config names.

    run: the one whose training cells are looked for among the cells of the screen, over all genes of both.
    Memory holds the counts of the genes to predict (`config.genes` of them). Raises ConfigError for columns and labels
    that do not exist, DataError when no comparison is left.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place, reading = Path(scratch) / "screen.sckit", reading or ReadingConfig()
        store = open_or_prepare([data], place, reading, on_event, assay="any")
        return _screen(store, config, run)


def _screen(store: Store, config: FinetuneConfig, run: Run | None) -> Screen:
    conditions = read_conditions(store.obs, config)
    table = _Labels(store, conditions, config)
    units, names, lost = table.units()
    counts, chosen = _counts(store, np.flatnonzero(table.used), config.genes)
    if config.permute:
        units = _permuted(units, table.stratum[table.used], config)
    used = store.obs.loc[table.used]
    return Screen(
        genes=store.genes.iloc[chosen][["id", "symbol"]].reset_index(drop=True),
        counts=counts,
        totals=np.asarray(used["total_counts"], np.int64),
        control=table.control[table.used],
        stratum=table.stratum[table.used],
        replicate=table.replicate[table.used],
        units=tuple(units),
        perturbations=tuple(names),
        target_genes=_targets(names, config.target_map),
        covariates=table.names,
        unseen_of_covariates=table.unseen,
        seen=None if run is None else _seen(store, np.flatnonzero(table.used), run),
        table=tuple(table.rows()),
        notes=(*conditions.notes, *table.notes, *lost),
    )


def _seen(store: Store, cells: np.ndarray, run: Run) -> SameCells | None:
    """Look for the cells of a store among the training and validation cells of a run; None if its store is gone."""
    try:
        trained_on = run.store
    except DataError:
        return None
    return same_cells(store, cells, trained_on, np.flatnonzero(run.seen))


class _Labels:
    """Condition, covariate group and replicate of every cell of a store, and the units that they make."""

    def __init__(self, store: Store, conditions: Conditions, config: FinetuneConfig) -> None:
        self.config, self.parts = config, conditions.parts
        self.labels, self.control, self.left_out = labels, *_ = conditions[:3]
        columns = {name: group_values(store.obs, name) for name in config.covariates}
        quoted = any("|" in value for values in columns.values() for value in set(values))  # which would be ambiguous
        rows = (map(repr, map(str, row)) if quoted else row for row in zip(*columns.values(), strict=True))
        group = np.array([" | ".join(row) for row in rows] or ["all"] * len(labels))
        self.names, self.group = _numbered(group)
        unseen = columns[config.unseen] if config.unseen else group
        self.unseen = tuple(str(unseen[i]) for i in np.unique(self.group, return_index=True)[1])
        self.replicate = group_values(store.obs, config.replicate) if config.replicate else np.full(len(labels), "")
        columns |= {config.replicate: self.replicate} if config.replicate else {}
        self.notes = [
            f"{number:,} cells have no value in {name}: they count as a group of their own"
            for name, values in columns.items()
            if (number := int((values == "").sum()))
        ]
        replicates, replicate = _numbered(self.replicate)
        self.stratum = np.unique(self.group * len(replicates) + replicate, return_inverse=True)[1]
        self.dose = self._doses(store.obs, ~self.control & ~self.left_out)
        controls = np.bincount(self.stratum[self.control], minlength=self.stratum.max() + 1)
        self.compared = controls[self.stratum] >= 2  # without two controls there is no comparison
        self.treated = ~self.control & ~self.left_out & self.compared
        self.used = self.control | self.treated

    def _doses(self, obs: pd.DataFrame, treated: np.ndarray) -> np.ndarray:
        if self.config.dose is None:
            return np.full(len(treated), np.nan)
        text = group_values(obs, self.config.dose)
        dose = np.asarray(pd.to_numeric(pd.Series(text), errors="coerce"), np.float64)
        bad = treated & ~(np.isfinite(dose) & (dose >= 0))
        if bad.any():
            raise DataError(
                f"the dose of treated cells must be a number from 0 up, got {str(text[bad][0])!r} in --dose "
                f"{self.config.dose} for {int(bad.sum())} cells; correct the column, or leave them out with --exclude."
            )
        return dose

    def units(self) -> tuple[list[Unit], list[str], list[str]]:
        """Return the units with enough cells, in a fixed order, their perturbations, and what was left out."""
        lost = self._lost()
        merged: dict[tuple, list[int]] = {}
        for cell in np.flatnonzero(self.treated):
            key = (
                self.parts[self.labels[cell]],
                int(self.group[cell]),
                None if np.isnan(self.dose[cell]) else float(self.dose[cell]),
            )
            merged.setdefault(key, []).append(int(cell))
        controls, least = np.bincount(self.group[self.control], minlength=len(self.names)), self.config.min_cells
        kept = {key: cells for key, cells in merged.items() if min(len(cells), controls[key[1]]) >= least}
        if not kept:
            raise DataError(
                f"no perturbation has {least} treated and {least} control cells in a covariate group; lower "
                "--min-cells, or use fewer covariates."
            )
        if few := len(merged) - len(kept):
            lost.append(f"left out: {few} units with fewer than {least} treated or control cells")
        names = sorted({part for parts, *_ in kept for part in parts})
        number = {name: i for i, name in enumerate(names)}
        row = np.cumsum(self.used) - 1  # of the screen
        units = []
        for parts, group, amount in sorted(kept, key=str):
            name = "+".join(parts) + ("" if amount is None else f" @ {amount:g}")
            cells = row[kept[parts, group, amount]]
            units.append(Unit(name, tuple(number[part] for part in parts), group, amount, cells))
        return units, names, lost

    def _lost(self) -> list[str]:
        alone = ~self.control & ~self.compared & ~self.left_out
        lost = {
            "treated cells whose covariate group or replicate has no controls": alone,
            "cells without a condition or with an excluded one": self.left_out,
        }
        return [f"left out: {int(cells.sum()):,} {what}" for what, cells in lost.items() if cells.any()]

    def rows(self) -> list[dict]:
        """Return the number of cells per condition and covariate group, controls first."""
        used = (array[self.used].tolist() for array in (self.labels, self.group, self.control))
        count = Counter(zip(*used, strict=True))
        return [
            {"condition": name, "context": self.names[group], "cells": count[name, group, control], "control": control}
            for name, group, control in sorted(count, key=lambda key: (not key[2], *key))
        ]


def _numbered(labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    names, numbers = np.unique(labels, return_inverse=True)
    return tuple(str(name) for name in names), numbers.astype(np.int64)


def _counts(store: Store, cells: np.ndarray, most: int) -> tuple[sp.csr_array, np.ndarray]:
    """Return the counts of the genes with the highest variance over these cells, and their numbers in the store."""
    sums, squares = np.zeros(store.n_genes), np.zeros(store.n_genes)
    for part in in_blocks(cells, _BLOCK_CELLS):
        values = log_values(as_matrix(store.rows(part), store.n_genes), store.totals(part))
        sums += values.sum(0)
        squares += (values**2).sum(0)
    variance = squares / len(cells) - (sums / len(cells)) ** 2
    chosen = np.sort(np.argsort(-variance, kind="stable")[:most])
    chosen = chosen[sums[chosen] > 0]
    if len(chosen) < 3:
        raise DataError(f"{len(chosen)} genes are detected in the cells to compare; at least 3 are needed.")
    blocks = (as_matrix(store.rows(part), store.n_genes)[:, chosen] for part in in_blocks(cells, _BLOCK_CELLS))
    return sp.csr_array(sp.vstack(list(blocks))), chosen


def _targets(names: list[str], where: str | None) -> tuple[str | None, ...]:
    """Return the gene that each perturbation acts on: its own name, or as a file of two columns says."""
    if where is None:
        return (None,) * len(names)
    if where == "same":
        return tuple(names)
    wanted = "condition and gene per line, separated by a tab or comma"
    lines = read_lines(where, "--target-map", wanted)
    separator = "\t" if any("\t" in line for line in lines) else ","
    try:
        rows = [next(csv.reader([line], delimiter=separator, strict=True)) for line in lines]
    except csv.Error as error:
        raise ConfigError(f"--target-map {where} has a quote that does not end ({error}); give {wanted}.") from error
    if not rows or min(len(row) for row in rows) < 2:
        short = next((line for line, row in zip(lines, rows, strict=False) if len(row) < 2), "")
        raise ConfigError(f"--target-map {where} has the line {short!r}; give {wanted}.")
    known: dict[str, str | None] = {}
    for name, gene in ((row[0].strip(), row[1].strip() or None) for row in rows):
        if known.setdefault(name, gene) != gene:
            raise ConfigError(f"--target-map {where} names both {known[name]} and {gene} for {name!r}; keep one line.")
    return tuple(known.get(name) for name in names)


def _permuted(units: list[Unit], stratum: np.ndarray, config: FinetuneConfig) -> list[Unit]:
    """Return the same units with their cells exchanged at random within each stratum."""
    cells = np.concatenate([unit.cells for unit in units])
    owner = np.repeat(np.arange(len(units)), [len(unit.cells) for unit in units])
    generator = np.random.default_rng((config.seed, 77))
    mixed = owner.copy()
    for s in np.unique(stratum[cells]):
        at = np.flatnonzero(stratum[cells] == s)
        mixed[at] = owner[generator.permutation(at)]
    if (mixed == owner).all():
        message = "--permute exchanges labels between perturbations, and there is only one in each covariate group."
        raise ConfigError(message)
    return [replace(unit, cells=np.sort(cells[mixed == i])) for i, unit in enumerate(units)]
