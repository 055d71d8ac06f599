"""Perturbation data: who was treated with what, in which context, and which cells are the controls."""

import csv
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sckit.config.finetune import FinetuneConfig
from sckit.data.prepare import Store, open_or_prepare
from sckit.data.split import group_values
from sckit.errors import ConfigError, DataError
from sckit.training.run import gene_numbers

_BLOCK_CELLS = 4096


@dataclass(frozen=True)
class Unit:
    """One perturbation, possibly of several parts, in one context."""

    name: str
    parts: tuple[int, ...]  # numbers of the perturbations combined
    context: int
    dose: float | None
    cells: np.ndarray  # int64, rows of the screen


@dataclass(frozen=True)
class Screen:
    """Perturbation data as the tasks see them: C cells, G genes predicted, U units, P perturbations.

    A stratum is a context within a replicate: treated cells are compared with controls of their own stratum.
    """

    genes: pd.DataFrame  # [G] columns id, symbol
    counts: sp.csr_array  # uint32 [C, G], at the genes predicted
    totals: np.ndarray  # int64 [C], over all genes of the source
    control: np.ndarray  # bool [C]
    stratum: np.ndarray  # int64 [C]
    replicate: np.ndarray  # str [C], empty without a replicate column
    units: tuple[Unit, ...]
    perturbations: tuple[str, ...]  # [P]
    target_genes: tuple[str | None, ...]  # [P], id or symbol of the gene each perturbs, None where not known
    contexts: tuple[str, ...]
    unseen_of_context: tuple[str, ...]  # [contexts], the part of the context that the context split holds out
    cell_ids: np.ndarray  # str [C]
    n_genes_detected: np.ndarray  # int64 [C], over all genes of the source
    table: tuple[dict, ...]  # rows "condition", "context", "cells", printed first
    notes: tuple[str, ...]

    def scored(self, units: np.ndarray) -> np.ndarray:
        """Whether each gene counts in the score of each of the units, bool [len(units), G].

        The gene that was perturbed does not: that a knocked-down gene goes down is no prediction.
        """
        numbers = gene_numbers(self.genes)
        own = [numbers.get(target or "", -1) for target in self.target_genes]
        mask = np.ones((len(units), len(self.genes)), bool)
        for row, u in enumerate(units):
            mask[row, [own[p] for p in self.units[u].parts if own[p] >= 0]] = False
        return mask

    @property
    def values(self) -> sp.csr_array:
        """log1p of counts per 10,000, float64 [C, G]."""
        return log_values(self.counts, self.totals)


def cell_names(obs: pd.DataFrame) -> np.ndarray:
    """Names of the cells as their source has them, str [C]: a store of several sources puts "source:" in front."""
    names = zip(obs["cell"].astype(str), obs["source"].astype(str), strict=True)
    return np.array([cell.removeprefix(f"{source}:") for cell, source in names])


def log_values(counts: sp.csr_array, totals: np.ndarray) -> sp.csr_array:
    """log1p of counts per 10,000 at the stored entries, float64 [C, G]; totals [C]."""
    scale = np.repeat(1e4 / np.maximum(totals, 1), np.diff(counts.indptr))
    return sp.csr_array((np.log1p(counts.data * scale), counts.indices, counts.indptr), counts.shape)


def read_screen(data: str | Path, config: FinetuneConfig, *, on_event: Callable) -> Screen:
    """Read an h5ad, or anything `prepare` reads, or a store, with the columns that the config names.

    Memory holds the counts of the genes predicted (`config.genes` of them). Raises ConfigError for columns and labels
    that are not there, DataError where no comparison is left.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = open_or_prepare(data, Path(scratch) / "screen.sckit", assay="any")
        for reason, number in store.manifest["dropped"].items():
            on_event("note", {"text": f"left out: {number:,} {reason}"})
        return _screen(store, config)


def _screen(store: Store, config: FinetuneConfig) -> Screen:
    labels = group_values(store.obs, config.condition)
    _check_labels(labels, config)
    table = _Labels(store, labels, config)
    units, lost = table.units()
    if not units:
        text = f"{config.min_cells} treated and {config.min_cells} control cells"
        raise DataError(f"no perturbation has {text} in a context; lower --min-cells, or use fewer --covariates.")
    names = sorted({part for unit in units for part in table.parts[unit.name]})
    number = {name: i for i, name in enumerate(names)}
    units = [replace(unit, parts=tuple(number[p] for p in table.parts[unit.name])) for unit in units]
    counts, chosen = _counts(store, np.flatnonzero(table.used), config.genes)
    at = np.cumsum(table.used) - 1
    units = [replace(unit, cells=at[unit.cells]) for unit in units]
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
        contexts=table.contexts,
        unseen_of_context=table.unseen,
        cell_ids=cell_names(used),
        n_genes_detected=np.asarray(used["n_genes"], np.int64),
        table=tuple(table.rows()),
        notes=tuple(lost),
    )


class _Labels:
    """Condition, context and replicate of every cell of a store, and the units that they make."""

    def __init__(self, store: Store, labels: np.ndarray, config: FinetuneConfig) -> None:
        self.config, self.labels = config, labels
        columns = {name: group_values(store.obs, name) for name in config.covariates}
        context = np.array([" | ".join(row) for row in zip(*columns.values(), strict=True)] or ["all"] * len(labels))
        self.contexts, self.context = _numbered(context)
        unseen = columns[config.unseen] if config.unseen else context
        first = [int(np.flatnonzero(self.context == i)[0]) for i in range(len(self.contexts))]
        self.unseen = tuple(str(unseen[i]) for i in first)
        whole = np.full(len(labels), "")
        self.replicate = group_values(store.obs, config.replicate) if config.replicate else whole
        replicates, replicate = _numbered(self.replicate)
        self.stratum = np.unique(self.context * len(replicates) + replicate, return_inverse=True)[1]
        self.control = labels == config.control
        left_out = np.isin(labels, (*config.exclude, ""))
        self.dose = self._doses(store.obs, ~self.control & ~left_out)
        controls = np.bincount(self.stratum[self.control], minlength=self.stratum.max() + 1)
        self.compared = controls[self.stratum] >= 2  # a stratum without controls has nothing to be compared with
        self.treated = ~self.control & ~left_out & self.compared
        self.used = self.control | self.treated
        self.parts: dict[str, list[str]] = {}

    def _doses(self, obs: pd.DataFrame, treated: np.ndarray) -> np.ndarray | None:
        if self.config.dose is None:
            return None
        text = group_values(obs, self.config.dose)
        dose = np.asarray(pd.to_numeric(pd.Series(text), errors="coerce"), np.float64)
        bad = treated & ~(np.isfinite(dose) & (dose >= 0))
        if bad.any():
            raise DataError(
                f"the dose of treated cells must be a number from 0 up, got {str(text[bad][0])!r} in --dose "
                f"{self.config.dose} for {int(bad.sum())} cells; mend the column or leave them out with --exclude."
            )
        return dose

    def units(self) -> tuple[list[Unit], list[str]]:
        """Units with enough cells, in a fixed order, and sentences on what was left out."""
        lost = self._lost()
        dose = np.full(len(self.labels), np.nan) if self.dose is None else self.dose
        keys: dict[tuple, list[int]] = {}
        for cell in np.flatnonzero(self.treated):
            key = self.labels[cell], int(self.context[cell]), None if np.isnan(dose[cell]) else float(dose[cell])
            keys.setdefault(key, []).append(int(cell))
        merged: dict[tuple, list[int]] = {}
        for (label, context, amount), cells in keys.items():
            parts = tuple(sorted(set(_parts(label)) - {self.config.control, "ctrl"}))
            merged.setdefault((parts or (label,), context, amount), []).extend(cells)
        controls = np.bincount(self.context[self.control], minlength=len(self.contexts))
        units, few = [], 0
        for (parts, context, amount), cells in sorted(merged.items(), key=lambda item: str(item[0])):
            if min(len(cells), controls[context]) < self.config.min_cells:
                few += 1
                continue
            name = "+".join(parts) + ("" if amount is None else f" @ {amount:g}")
            self.parts[name] = list(parts)
            units.append(Unit(name, (), context, amount, np.sort(np.array(cells, np.int64))))
        if few:
            lost.append(f"left out: {few} units with fewer than {self.config.min_cells} treated or control cells")
        return units, lost

    def _lost(self) -> list[str]:
        lost = []
        alone = ~self.control & ~self.compared & ~np.isin(self.labels, (*self.config.exclude, ""))
        if alone.any():
            lost.append(f"left out: {int(alone.sum()):,} treated cells whose context or replicate has no controls")
        dropped = np.isin(self.labels, (*self.config.exclude, ""))
        if dropped.any():
            lost.append(f"left out: {int(dropped.sum()):,} cells without a condition or with an excluded one")
        return lost

    def rows(self) -> list[dict]:
        """Cells per condition and context, controls first."""
        count = Counter(zip(self.labels[self.used], self.context[self.used], strict=True))
        order = sorted(count, key=lambda key: (key[0] != self.config.control, str(key[0]), key[1]))
        return [
            {"condition": str(k[0]), "context": self.contexts[k[1]], "cells": count[k]}
            | {"control": k[0] == self.config.control}
            for k in order
        ]


def _parts(label: str) -> list[str]:
    """The perturbations that a label combines by "+"; a label such as CD4+ or (+)-JQ1 is one."""
    parts = [part.strip() for part in label.split("+")]
    return parts if all(any(c.isalnum() for c in part) for part in parts) else [label]


def _check_labels(labels: np.ndarray, config: FinetuneConfig) -> None:
    present = sorted(set(labels) - {""})
    shown = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
    if config.control not in present:
        raise DataError(f"no cell is {config.control} in {config.condition}, which has {shown}; name --control anew.")
    strange = sorted(set(config.exclude) - set(present))
    if strange:
        raise ConfigError(f"--exclude {', '.join(strange)} is not in {config.condition}, which has {shown}.")
    if not set(present) - {config.control, *config.exclude}:
        raise DataError(f"{config.condition} has no condition but {shown}; there is nothing to compare.")


def _numbered(labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    names, numbers = np.unique(labels, return_inverse=True)
    return tuple(str(name) for name in names), numbers.astype(np.int64)


def _counts(store: Store, cells: np.ndarray, most: int) -> tuple[sp.csr_array, np.ndarray]:
    """Counts of the genes of the highest variance over these cells, labels unseen, and their numbers in the store."""
    sums, squares = np.zeros(store.n_genes), np.zeros(store.n_genes)
    for start in range(0, len(cells), _BLOCK_CELLS):
        part = cells[start : start + _BLOCK_CELLS]
        values = log_values(_block(store, part), store.totals(part))
        sums += values.sum(0)
        squares += (values**2).sum(0)
    variance = squares / len(cells) - (sums / len(cells)) ** 2
    chosen = np.sort(np.argsort(-variance, kind="stable")[:most])
    chosen = chosen[sums[chosen] > 0]
    if len(chosen) < 3:
        raise DataError(f"{len(chosen)} genes are detected in the cells to compare; at least 3 are needed.")
    parts = range(0, len(cells), _BLOCK_CELLS)
    return sp.csr_array(sp.vstack([_block(store, cells[s : s + _BLOCK_CELLS])[:, chosen] for s in parts])), chosen


def _block(store: Store, cells: np.ndarray) -> sp.csr_array:
    indptr, genes, counts = store.rows(cells)
    return sp.csr_array((counts, genes.astype(np.int32), indptr), (len(cells), store.n_genes))


def _targets(names: list[str], where: str | None) -> tuple[str | None, ...]:
    """The gene that each perturbation acts on: its own name, or by a file of two columns."""
    if where is None:
        return (None,) * len(names)
    if where == "same":
        return tuple(names)
    try:
        lines = Path(where).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--target-map {where} cannot be read ({error}); give condition and gene a line.") from error
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    separator = "\t" if any("\t" in line for line in lines) else ","
    rows = list(csv.reader(lines, delimiter=separator))
    if not rows or min(len(row) for row in rows) < 2:
        short = next((line for line, row in zip(lines, rows, strict=False) if len(row) < 2), "")
        raise ConfigError(
            f"--target-map {where} has the line {short!r}; give condition and gene a line, separated by a tab or comma."
        )
    known = {row[0].strip(): row[1].strip() or None for row in rows}
    return tuple(known.get(name) for name in names)


def _permuted(units: list[Unit], stratum: np.ndarray, config: FinetuneConfig) -> list[Unit]:
    """The same units with their cells exchanged at random within each stratum."""
    cells = np.concatenate([unit.cells for unit in units])
    owner = np.repeat(np.arange(len(units)), [len(unit.cells) for unit in units])
    generator = np.random.default_rng((config.seed, 77))
    mixed = owner.copy()
    for s in np.unique(stratum[cells]):
        at = np.flatnonzero(stratum[cells] == s)
        mixed[at] = owner[generator.permutation(at)]
    if (mixed == owner).all():
        message = f"--permute exchanges labels between perturbations, and {config.condition} has one in each context."
        raise ConfigError(message)
    return [replace(unit, cells=np.sort(cells[mixed == i])) for i, unit in enumerate(units)]
