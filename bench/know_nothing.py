"""Score predictions that know nothing of the tested units by both headlines: `python bench/know_nothing.py DATA`.

DATA is the folder of the data sets. A part of the cells of every unit and of the controls is withheld from each screen.
Predictions are made from these other cells and from training units; whatever they score is not knowledge. Then the
linear baselines and the other half of the cells are scored on all cells, for both tasks.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sckit.config import FinetuneConfig
from sckit.files import to_json
from sckit.metrics import FORMER_HEADLINE, HEADLINE, Sample, interval
from sckit.perturbation.arms import Arms, token_table
from sckit.perturbation.finetune import Job, score_job
from sckit.perturbation.fold import FoldData
from sckit.perturbation.questions import CEILING, Predictor, Score, ask, other_half, scores_of
from sckit.perturbation.ridge import balanced_mean
from sckit.perturbation.screen import Screen, read_screen
from sckit.perturbation.splits import composition, group_moments, split_name, stratum_moments
from sckit.perturbation.summary import held_out_together, summarise
from sckit.provenance import commit, environment

WITHHELD = 1 / 3
SEEDS = (5, 10)
"""Of the baselines on all cells; with ten, every perturbation is tested twice, together with others."""
KEPT = ("predictor", "revealed", "metric", "mean", "low", "high", "subset")
KANG = {"condition": "condition", "control": "control"}
SCREENS: dict[str, tuple[str, dict[str, Any]]] = {
    "Papalexi": (
        "papalexi_thp1_299genes",
        {"condition": "perturbation", "control": "control", "exclude": "unassigned", "replicate": "batch"}
        | {"target_map": "same"},
    ),
    "Norman": ("norman19_k562_500genes", KANG | {"target_map": "same"}),
    "Kang, cell types": ("kang_ifnb", KANG | {"covariates": ("cell_type_predicted",)}),
    "Kang, donors": ("kang_ifnb_donors", KANG | {"covariates": ("cell_type", "donor"), "unseen": "donor"}),
    "Kang, cell types of two donors": ("kang_ifnb_donors", KANG | {"covariates": ("cell_type",)}),
}
Say = Callable[[FoldData], np.ndarray]


class Withheld:
    """A screen without some of its cells, and what those say; U units, G genes."""

    def __init__(self, screen: Screen, generator: np.random.Generator) -> None:
        out = np.zeros(len(screen.control), bool)
        controls = [np.flatnonzero(screen.control & (screen.stratum == s)) for s in np.unique(screen.stratum)]
        for cells in (*controls, *(unit.cells for unit in screen.units)):
            out[generator.permutation(cells)[: int(WITHHELD * len(cells))]] = True
        values, row = screen.values, np.cumsum(~out) - 1
        self.screen = replace(
            screen,
            counts=screen.counts[np.flatnonzero(~out)],
            totals=screen.totals[~out],
            control=screen.control[~out],
            stratum=screen.stratum[~out],
            replicate=screen.replicate[~out],
            units=tuple(replace(unit, cells=row[unit.cells[~out[unit.cells]]]) for unit in screen.units),
        )
        strata = composition(self.screen)
        self.control = strata @ stratum_moments(screen, values, screen.control & out)[0]  # [U, G]
        self.treated = group_moments(values, [unit.cells[out[unit.cells]] for unit in screen.units])[0]  # [U, G]

    def predictions(self) -> dict[str, Say]:
        """Return functions of a fold to deltas [m, G] or [G] that know nothing of the tested units."""

        def mean(fold: FoldData) -> np.ndarray:
            train = fold.view.train
            return balanced_mean((self.treated - fold.view.control)[train], fold.view.perturbation[train])

        return {
            "mean of other cells": mean,
            "0.3 of that mean": lambda fold: 0.3 * mean(fold),
            "controls of other cells": lambda fold: (self.control - fold.view.control)[fold.view.test],
            "some controls for each unit": _some_controls,
            "mean and noise": _mean_and_noise,
            "a strong effect for any unit": _strong_for_any,
            "0.3 of the mean": lambda fold: 0.3 * fold.view.mean,
            "no change": lambda fold: 0 * fold.view.mean,
        }


def _some_controls(fold: FoldData) -> np.ndarray:
    generator = np.random.default_rng((*fold.key, 97))
    drawn = [fold.examples.control_cells(u, fold.config.control_cells, generator) for u in fold.view.test]
    profiles = np.array([fold.examples.values[cells].toarray().mean(0) for cells in drawn])
    return profiles - fold.view.control[fold.view.test]


def _mean_and_noise(fold: FoldData) -> np.ndarray:
    generator = np.random.default_rng((*fold.key, 98))
    spread = (fold.view.delta[fold.view.train] - fold.view.mean).std(0)
    return fold.view.mean + spread * generator.normal(size=(len(fold.view.test), len(spread)))


def _strong_for_any(fold: FoldData) -> np.ndarray:
    """Give the strongest effect of the training units to one tested unit, drawn at random; else the mean."""
    generator, train = np.random.default_rng((*fold.key, 95)), fold.view.train
    strongest = train[np.argmax((fold.view.delta[train] ** 2).sum(1))]
    named = np.arange(len(fold.view.test)) == generator.integers(len(fold.view.test))
    return np.where(named[:, None], fold.view.delta[strongest], fold.view.mean)


def predictor(say: Say) -> Predictor:
    """Return the predictor that answers every question of a fold with the same deltas."""
    return lambda fold, question: np.broadcast_to(say(fold), question.visible.shape)


def of_nothing(name: str, screen: Screen, config: FinetuneConfig, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield, for each prediction and headline, the means over repeats of the score and of the ends of its interval."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    tests = 0
    for seed in range(repeats):
        withheld, settings = Withheld(screen, np.random.default_rng((seed, 96))), replace(config, seed=seed)
        split, table = split_name(withheld.screen, settings), token_table(screen.genes, screen)
        folds = [FoldData(withheld.screen, settings, split, table, seed=i, share=1.0) for i in range(config.seeds)]
        cluster, tests = held_out_together(screen, split), sum(len(fold.view.test) for fold in folds)
        says = {name: predictor(say) for name, say in withheld.predictions().items()} | {CEILING: other_half}
        for what, predict in says.items():
            scores = sorted((s for f in folds for s in scores_of(what, predict, f, ask(f))), key=lambda s: s.unit)
            for metric in (HEADLINE, FORMER_HEADLINE):
                estimate = interval(_sample(scores, metric, cluster), np.random.default_rng(seed), draws=2000)
                ends = [np.nan if end is None else end for end in (estimate.mean, *estimate.ci)]
                found.setdefault((what, metric), []).append(ends)
    for (what, metric), rows in found.items():
        mean, low, high = np.mean(rows, 0)
        outside = sum(row[1] > 0 or row[2] < 0 for row in rows)
        where = {"screen": name, "prediction": what, "metric": metric, "tests": tests}
        yield where | {"mean": mean, "low": low, "high": high, "intervals_without_0": outside, "repeats": repeats}


def _sample(scores: list[Score], metric: str, cluster: np.ndarray) -> Sample:
    units = np.array([s.unit for s in scores])
    sizes = np.array([s.group_size for s in scores]) if metric == HEADLINE else None
    seeds = np.array([s.seed for s in scores])
    return Sample(np.array([s.metrics[metric] for s in scores]), cluster[units], seeds, units, sizes)


def of_baselines(name: str, screen: Screen, config: FinetuneConfig) -> Iterator[dict[str, Any]]:
    """Yield both headlines of the linear baselines and ceilings on all cells, for both tasks."""
    arms = Arms(Path(), None, token_table(screen.genes, screen))
    for task in ("response", "partial"):
        settings = replace(config, task=task, revealed=(0.1, 0.5), train_shares=(1.0,))
        split = split_name(screen, settings)
        scores = [score_job(Job(seed, 1.0, ()), screen, settings, split, arms)[0] for seed in range(max(SEEDS))]
        for seeds in SEEDS:
            some = [score for of_job in scores[:seeds] for score in of_job]
            result = summarise(screen, replace(settings, seeds=seeds), split, some, facts={}, notes=[])
            ceilings = result.ceilings.rename(columns={"kind": "predictor"})
            for row in [*result.scores.to_dict("records"), *ceilings.to_dict("records")]:
                if row["metric"] in (HEADLINE, FORMER_HEADLINE):
                    yield {"screen": name, "task": task, "seeds": seeds} | {key: row.get(key) for key in KEPT}


def main() -> None:
    """Print the scores, and keep them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=10, help="How often other cells are withheld.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    nothing, baselines = [], []
    for name, (file, options) in SCREENS.items():
        config = FinetuneConfig(**options)
        screen = read_screen(arguments.data / file / f"{file}.h5ad", config, on_event=lambda *_: None)
        nothing += list(of_nothing(name, screen, config, arguments.repeats))
        baselines += list(of_baselines(name, screen, config))
        for row in nothing + baselines:
            if row["screen"] == name:
                print(*(f"{v:+.3f}" if isinstance(v, float) else v for v in row.values()), sep="  ", flush=True)
    if arguments.out:
        about = {"commit": commit(), "environment": environment(), "withheld": WITHHELD}
        parts = [f' "{key}": {json.dumps(value)}' for key, value in about.items()]
        for key, rows in (("know_nothing", nothing), ("baselines", baselines)):
            lines = ",\n  ".join(json.dumps(to_json(_rounded(row))) for row in rows)
            parts.append(f' "{key}": [\n  {lines}\n ]')
        arguments.out.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    main()
