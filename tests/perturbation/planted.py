"""Simulated screens on disk, with runs to start from, for the tests of whole comparisons."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sckit.config import FinetuneConfig, PretrainConfig
from sckit.data.simulate.screen import ScreenTruth, simulate_controls, simulate_screen
from sckit.perturbation.screen import Screen, read_screen
from sckit.training.pretrain import pretrain


def write_planted(folder: Path, seed: int, *, loading: float | None = None, **changes) -> ScreenTruth:
    """A small screen, its targets and, with a loading, a run on other control cells, all under `folder`.

    loading: how much of the world's own structure those cells have; 0 for genes that vary independently. `changes` are
    arguments of simulate_screen; the screen depends on `seed` and on them alone.
    """
    generator = np.random.default_rng(seed)
    small = {"genes": 80, "programmes": 6, "perturbations": 24, "cells_per_unit": 30, "controls": 150, "total": 1000}
    screen, truth = simulate_screen(generator, **small | {"truth_cells": 300} | changes)
    screen.write_h5ad(folder / "screen.h5ad")
    (folder / "targets.csv").write_text("".join(f"{name},{gene}\n" for name, gene in truth.target_map.items()))
    if loading is not None:
        dealt = truth.world.programmes
        world = replace(truth.world, programmes=replace(dealt, loading=loading * dealt.loading))
        simulate_controls(generator, world, 500).write_h5ad(folder / "controls.h5ad")
        config = PretrainConfig(mask="uniform", steps=30, correction_steps=30, batch_tokens=2048, seed=seed)
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
