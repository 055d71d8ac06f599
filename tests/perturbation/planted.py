"""Simulated perturbation screens whose answer is known.

A gene belongs to one module and follows its activity with a positive loading. A cell has one activity per module; the
log rate of gene g in cell c of context x and replicate r is

    base[g] + context[x, g] + replicate[r, g] + loading[g] * activity[c, module[g]] + response[g] * hit[answers[g]]

and its counts are Poisson, at the cell's own lognormal depth. Control cells have activities only (normal, independent
between modules) and no hit. A perturbation has a target gene; its hit lowers the target's module and, through links
that hold for every perturbation of that module, moves others. With structure "shared" the modules that respond are
those by which control cells vary (`answers = module`, `response = loading`), so a model that has learned the controls
knows which genes move together and where a target never seen belongs. With "unrelated" the genes are dealt to the
responses again, so the controls say nothing about them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from sckit.config import PretrainConfig
from sckit.config.finetune import FinetuneConfig
from sckit.perturbation.screen import Screen, read_screen
from sckit.training.pretrain import pretrain

Unit = tuple[int, np.ndarray | None]  # context and hit
SPREAD = 0.6  # standard deviation of an activity among control cells
DEPTH_SPREAD = 0.3  # standard deviation of the log depth


@dataclass(frozen=True)
class World:
    """The genes and how they hang together; nothing about cells."""

    base: np.ndarray  # [G] log rate
    module: np.ndarray  # int [G], by which control cells vary
    loading: np.ndarray  # [G]
    answers: np.ndarray  # int [G], module by which the gene answers a perturbation
    response: np.ndarray  # [G]
    links: np.ndarray  # [M, M], row: what a hit on the module does to all of them
    context: np.ndarray  # [contexts, G]
    replicate: np.ndarray  # [replicates, G]
    total: float  # median counts per cell


@dataclass(frozen=True)
class Planted:
    """What a screen should give, on the scale of the mean of log1p(counts per 10,000) over cells, zeros included."""

    units: list[tuple[str, str]]  # (condition, context) of each row of delta
    delta: np.ndarray  # [U, G], expected profile of the unit - that of the context's control
    control: dict[str, np.ndarray]  # context -> [G]
    target_map: dict[str, str]  # perturbation -> its target gene
    hits: dict[str, np.ndarray]  # condition -> [M] shift of the activities
    world: World


def planted_screen(
    generator: np.random.Generator,
    *,
    genes: int = 200,
    modules: int = 8,
    cells_per_unit: int = 60,
    controls: int = 200,
    perturbations: int = 16,
    shift: float = 1.5,
    structure: str = "shared",
    contexts: int = 1,
    replicates: int = 0,
    combos: int = 0,
    dead: int = 0,
    total: float = 2000.0,
    truth_cells: int = 2000,
) -> tuple[anndata.AnnData, Planted]:
    """A screen of P0, P1, ... (and P0+P1, ... for `combos`) with `controls` control cells in every context.

    obs has condition ("control" or a perturbation), context ("context0", ...) and replicate ("replicate0", ...; one
    when `replicates` is 0). The last `dead` perturbations do nothing. Targets go round the modules, so that P0 and
    P(modules) hit the same one. The truth is the mean of `truth_cells` fresh cells a unit and of as many controls.
    """
    world = _world(generator, genes, modules, structure=structure, shape=(contexts, max(1, replicates)), total=total)
    hits, targets = {}, {}
    taken = [list(generator.permutation(np.flatnonzero(world.answers == m))) for m in range(modules)]
    for number in range(perturbations):
        name, module = f"P{number}", number % modules
        targets[name] = f"GENE{taken[module].pop()}"
        strength = shift * generator.uniform(0.7, 1.3) if number < perturbations - dead else 0.0
        hits[name] = strength * world.links[module]
    for number in range(combos):
        parts = f"P{number}", f"P{(number + 1) % perturbations}"
        hits["+".join(parts)] = hits[parts[0]] + hits[parts[1]]
    blocks, control, units, delta = [], {}, [], []
    for x in range(contexts):
        context = f"context{x}"
        blocks.append(_cells(generator, world, controls, (x, None), "control"))
        control[context] = _expected(generator, world, truth_cells, (x, None))
        for name, hit in hits.items():
            blocks.append(_cells(generator, world, cells_per_unit, (x, hit), name))
            units.append((name, context))
            delta.append(_expected(generator, world, truth_cells, (x, hit)) - control[context])
    screen = anndata.concat(blocks, index_unique="-", keys=[str(i) for i in range(len(blocks))])
    return screen, Planted(units, np.array(delta), control, targets, hits, world)


def planted_controls(generator: np.random.Generator, world: World, cells: int) -> anndata.AnnData:
    """Untreated cells of the first context, for pretraining: the world of a screen without its perturbations."""
    return _cells(generator, world, cells, (0, None), "control")


def write_planted(folder: Path, seed: int, *, loading: float | None = None, **changes) -> Planted:
    """A small screen, its targets and, with a loading, a run on other control cells, all under `folder`.

    loading: how much of the world's own structure those cells have; 0 for genes that vary independently. `changes` are
    arguments of planted_screen; the screen depends on `seed` and on them alone.
    """
    generator = np.random.default_rng(seed)
    small = {"genes": 80, "modules": 6, "perturbations": 24, "cells_per_unit": 30, "controls": 150, "total": 1000}
    screen, truth = planted_screen(generator, **small | {"truth_cells": 300} | changes)
    screen.write_h5ad(folder / "screen.h5ad")
    (folder / "targets.csv").write_text("".join(f"{name},{gene}\n" for name, gene in truth.target_map.items()))
    if loading is not None:
        world = replace(truth.world, loading=loading * truth.world.loading)
        planted_controls(generator, world, 500).write_h5ad(folder / "controls.h5ad")
        config = PretrainConfig(mask="uniform", steps=30, batch_tokens=2048, seed=seed)
        pretrain(folder / "controls.h5ad", config, name="run", runs=folder / "runs")
    return truth


def planted_config(folder: Path, **changes) -> FinetuneConfig:
    """Two quick arms of two seeds, on what `write_planted` wrote."""
    columns = {"condition": "condition", "control": "control", "target_map": str(folder / "targets.csv")}
    arms = {"arms": ("pretrained", "scratch"), "train_shares": (1.0,), "seeds": 2, "workers": 1}
    budget = {"steps": 60, "batch_tokens": 1024, "bootstraps": 500}
    return FinetuneConfig(**columns | arms | budget | changes)


def read_planted(folder: Path, **changes) -> tuple[Screen, FinetuneConfig]:
    """The screen as the tasks see it."""
    config = planted_config(folder, **changes)
    return read_screen(folder / "screen.h5ad", config, on_event=lambda *_: None), config


def _world(
    generator: np.random.Generator, genes: int, modules: int, *, structure: str, shape: tuple[int, int], total: float
) -> World:
    module = generator.permutation(np.arange(genes) % modules)
    loading = generator.uniform(0.6, 1.4, genes)
    dealt = {"shared": np.arange(genes), "unrelated": generator.permutation(genes)}[structure]
    links = -np.eye(modules) + generator.choice([-0.5, 0.0, 0.5], size=(modules, modules), p=[0.15, 0.7, 0.15])
    contexts, replicates = shape
    return World(
        base=generator.normal(0, 0.8, genes),
        module=module,
        loading=loading,
        answers=module[dealt],
        response=loading[dealt],
        links=links,
        context=generator.normal(0, 0.4, (contexts, genes)) * (contexts > 1),
        replicate=generator.normal(0, 0.1, (replicates, genes)) * (replicates > 1),
        total=total,
    )


def _draw(generator: np.random.Generator, world: World, cells: int, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """Counts [C, G] and the number of the replicate [C] of each cell."""
    context, hit = unit
    replicate = np.arange(cells) % len(world.replicate)
    activity = generator.normal(0, SPREAD, (cells, len(world.links)))
    log_rate = world.base + world.context[context] + world.replicate[replicate]
    log_rate = log_rate + world.loading * activity[:, world.module]  # [C, G]
    if hit is not None:
        log_rate += world.response * hit[world.answers]
    rate = np.exp(log_rate)
    depth = world.total * np.exp(generator.normal(0, DEPTH_SPREAD, (cells, 1)))
    return generator.poisson(rate / rate.sum(1, keepdims=True) * depth), replicate


def _cells(generator: np.random.Generator, world: World, cells: int, unit: Unit, condition: str) -> anndata.AnnData:
    counts, replicate = _draw(generator, world, cells, unit)
    obs = {"condition": condition, "context": f"context{unit[0]}", "replicate": [f"replicate{r}" for r in replicate]}
    index = pd.Index([f"cell{i}" for i in range(cells)])
    var = pd.DataFrame(index=pd.Index([f"GENE{g}" for g in range(counts.shape[1])]))
    return anndata.AnnData(counts.astype(np.float32), obs=pd.DataFrame(obs, index=index), var=var)


def _expected(generator: np.random.Generator, world: World, cells: int, unit: Unit) -> np.ndarray:
    counts, _ = _draw(generator, world, cells, unit)
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).mean(0)  # [G]
