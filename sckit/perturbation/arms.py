"""The arms of a comparison: where each one starts, and which genes of the data the run knows."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sckit.config import FinetuneConfig, PretrainConfig
from sckit.data import GeneIndex
from sckit.errors import DataError
from sckit.locks import locked
from sckit.perturbation.responder import Responder, TokenTable
from sckit.perturbation.screen import Screen
from sckit.training import Run, open_run, untrained_model
from sckit.training.pretrain import pretrain


@dataclass(frozen=True)
class Arms:
    """What is needed to build an arm."""

    run: Path
    shuffled: Path | None  # the run on shuffled values, where that arm is asked for
    table: TokenTable

    def build(self, name: str, config: FinetuneConfig, *, seed: int, engine: str, noise: float = 1.0) -> Responder:
        """Return the arm before its first step; `seed` draws what no pretraining brings, the same for all arms.

        noise: variance of a single cell's value about what is expected, for genes that the run does not know.
        """
        run = open_run(self.shuffled if name == "shuffled" and self.shuffled else self.run)
        trained = name in ("pretrained", "frozen", "shuffled")
        start = run.model() if trained else untrained_model(run, seed)
        start.engine = engine
        factors = config.task == "partial"
        return Responder(start, self.table, factors=factors, seed=seed, transferred=name != "scratch", noise=noise)


def make_arms(run: Run, screen: Screen, config: FinetuneConfig, *, on_event: Callable) -> Arms:
    """Make the token table of the screen, and the run on shuffled values if it is needed and does not exist yet."""
    shuffled = _shuffled_run(run, on_event) if "shuffled" in config.arms else None
    return Arms(run.path, shuffled, token_table(run.genes, screen))


def token_table(genes: pd.DataFrame, screen: Screen) -> TokenTable:
    """Match the screen's genes and targets to the run's genes by id or symbol.

    A perturbation whose gene is predicted takes that gene's row. Any other gets a row of its own, with the number of
    its gene in the run if the run knows it. Raises DataError when the run knows no gene of the screen.
    """
    of_run, predicted = (GeneIndex(table["id"], table["symbol"]) for table in (genes, screen.genes))
    rows = of_run.match(screen.genes["id"], screen.genes["symbol"])
    if rows.max() < 0:
        raise DataError(
            f"none of the {len(rows)} genes of the data is among the {len(genes)} of the run; give data and run of one "
            "species, both named by Ensembl ids or both by symbols."
        )
    targets, targets_in_run = predicted.find(screen.target_genes), of_run.find(screen.target_genes)
    own = targets < 0  # targets with a row of their own, behind those of the genes
    perturbations = np.where(own, len(rows) + np.cumsum(own) - 1, targets)
    return TokenTable(np.concatenate([rows, targets_in_run[own]]), len(rows), perturbations)


def overlap(table: TokenTable, screen: Screen) -> dict[str, int]:
    """Count the genes and targets of the screen that the run knows, and the targets among the genes to predict."""
    known = table.run_genes >= 0
    return {
        "genes": table.n_genes,
        "genes_in_run": int(known[: table.n_genes].sum()),
        "perturbations": len(screen.perturbations),
        "targets_named": sum(target is not None for target in screen.target_genes),
        "targets_in_run": int(known[table.perturbations].sum()),
        "targets_predicted": int((table.perturbations < table.n_genes).sum()),
    }


def _shuffled_run(run: Run, on_event: Callable) -> Path:
    """Return the run next to this one on the same cells with shuffled values and as many steps; train it if needed."""
    path = run.path.with_name(f"{run.path.name}-shuffled")
    config = replace(run.config, shuffle_values=True, epochs=None, minutes=None, steps=_steps(run))
    with locked(path):
        return _trained(path, config, run, on_event)


def _trained(path: Path, config: PretrainConfig, run: Run, on_event: Callable) -> Path:
    """Return a run with a config on the store of another one; train it, or what is left of it, if it is not there."""
    if path.exists():
        if not (path / "model.safetensors").is_file() or not _is_of(path, config, run):
            raise DataError(
                f"{path} is not {run.path.name} on shuffled values, {config.steps} steps; move it away to train again."
            )
        return path
    text = f"arm shuffled: pretraining {path} on shuffled values, {config.steps} steps as in {run.path.name}"
    on_event("note", {"text": text})
    partial = path.with_name(f"{path.name}.partial")  # so that one that was killed is not taken for a finished one
    if _is_of(partial, config, run):
        return pretrain(resume=partial).run.rename(path)
    shutil.rmtree(partial, ignore_errors=True)
    return pretrain(run.store.path, config, name=partial.name, runs=path.parent).run.rename(path)


def _is_of(path: Path, config: PretrainConfig, run: Run) -> bool:
    """Return whether a folder holds a run with a config, on the store of another run."""
    return (path / "data.json").is_file() and open_run(path).config == config and _data(path) == _data(run.path)


def _data(run: Path) -> str:
    """Return the fingerprint of the store that the run was trained on, wherever that store is."""
    return json.loads((run / "data.json").read_text())["manifest_sha256"]


def _steps(run: Run) -> int:
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    if not steps or max(steps) < 1:
        raise DataError(f"the run {run.path} took no step; give it a budget, or leave the arm shuffled out of --arms.")
    return max(steps)
