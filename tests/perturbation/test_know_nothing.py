"""Predictions that know nothing of the tested perturbations score nothing, as baselines and as arms; others do.

They are made from what other cells of the same simulated world say, so that they differ from the mean that the score of
earlier versions subtracted. That score took the difference for knowledge.
"""

import io
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from rich.console import Console

from sckit.config import FinetuneConfig
from sckit.data.simulate.screen import ScreenTruth, simulate_controls
from sckit.metrics import FORMER_HEADLINE, HEADLINE
from sckit.perturbation.arms import token_table
from sckit.perturbation.baselines import response_baselines
from sckit.perturbation.fold import FoldData
from sckit.perturbation.questions import CEILING, ask, other_half, scores_of
from sckit.perturbation.screen import Screen
from sckit.perturbation.summary import summarise
from sckit.report.perturbation import print_finetuned
from sckit.report.text import at

from .planted import read_planted, write_planted
from .small_screens import CONFIG, small_screen

WORLDS = range(5)
CONTROLS = 100
AS_ARM = ("pretrained", "frozen", "shuffled", "start")
AS_BASELINE = ("ridge on components", "nearest neighbours", "ridge revealed to hidden", "low-rank")
"""Names that predictions go by in a comparison, four at a time."""


@dataclass
class World:
    """A screen half of whose U perturbations do nothing, its folds, and what other cells say of its G genes."""

    screen: Screen
    config: FinetuneConfig
    folds: list[FoldData]
    effects: np.ndarray  # [U, G], true
    controls: np.ndarray  # [G], profile of other control cells

    def of_training(self, fold):
        return self.effects[fold.view.train].mean(0)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return [make(tmp_path_factory.mktemp("world"), seed) for seed in WORLDS]


def make(folder, seed):
    truth: ScreenTruth = write_planted(folder, seed, cells_per_unit=20, controls=CONTROLS, dead=12)
    screen, config = read_planted(folder, seeds=5, bootstraps=1000, seed=seed)
    table = token_table(screen.genes, screen)
    folds = [FoldData(screen, config, "perturbation", table, seed=number, share=1.0) for number in range(5)]
    columns = [int(name.removeprefix("GENE")) for name in screen.genes["symbol"]]
    row = {name: i for i, (name, _) in enumerate(truth.units)}
    others = simulate_controls(np.random.default_rng((seed, 5)), truth.world, CONTROLS).X
    profile = np.log1p(others / others.sum(1, keepdims=True) * 1e4).mean(0)
    effects = truth.delta[[row[unit.name] for unit in screen.units]]
    return World(screen, config, folds, effects[:, columns], profile[columns])


def noise_of(fold, size):
    """Numbers [m, G] of a size at each gene, the same whenever the fold is asked."""
    return size * np.random.default_rng((*fold.key, 99)).normal(size=(len(fold.view.test), len(fold.screen.genes)))


def spread(fold):
    return (fold.view.delta[fold.view.train] - fold.view.mean).std(0)


def own_target_down(world, fold):
    """The mean, with the gene of each tested perturbation silenced, which the name of the perturbation says."""
    low = ~fold.screen.scored(fold.view.test)
    assert low.any(1).all()
    return np.where(low, -3.0, fold.view.mean)


CONSTANT = {
    "mean of other cells": lambda world, fold: world.of_training(fold),
    "shrunken mean of other cells": lambda world, fold: 0.3 * world.of_training(fold),
    "control cells of other cells": lambda world, fold: world.controls - fold.view.control[0],
    "shrunken mean": lambda world, fold: 0.9 * fold.view.mean,
}
VARYING = {
    "mean and noise": lambda world, fold: fold.view.mean + noise_of(fold, spread(fold)),
    "control cells drawn for each unit": lambda world, fold: drawn_controls(fold),
    "own target": own_target_down,
}
KNOWING = {
    "a part of the truth": lambda world, fold: (
        world.of_training(fold)
        + 0.5 * (world.effects[fold.view.test] - world.of_training(fold))
        + noise_of(fold, 0.5 * spread(fold))
    ),
}


def drawn_controls(fold):
    generator = np.random.default_rng((*fold.key, 98))
    drawn = [fold.examples.control_cells(u, 16, generator) for u in fold.view.test]
    return np.array([fold.examples.values[cells].toarray().mean(0) for cells in drawn]) - fold.view.control[0]


def results_of(world):
    """Of each prediction both headlines as a baseline, as an arm less the mean, and the ceiling."""
    simple, everything = response_baselines(), CONSTANT | VARYING | KNOWING
    rows = {}
    for start in range(0, len(everything), len(AS_ARM)):
        some = list(everything)[start : start + len(AS_ARM)]
        predictors = {name: simple[name] for name in ("no change", "mean", "additive")} | {CEILING: other_half}
        places = dict(zip(some, zip(AS_ARM, AS_BASELINE, strict=True), strict=False))
        for name, place in places.items():
            predictors |= dict.fromkeys(place, predictor(world, everything[name]))
        found = itertools.product(world.folds, predictors.items())
        scores = [score for fold, (name, predict) in found for score in scores_of(name, predict, fold, ask(fold))]
        result = summarise(world.screen, world.config, "perturbation", scores, facts={}, notes=[])
        for (name, (arm, baseline)), metric in itertools.product(places.items(), (HEADLINE, FORMER_HEADLINE)):
            where = {"metric": metric, "subset": "all"}
            as_baseline = at(result.scores, predictor=baseline, **where).iloc[0]
            as_arm = at(result.differences, a=arm, b="mean", **where).iloc[0]
            rows[name, metric] = as_baseline, as_arm, result.ceiling[metric]
    return rows


def predictor(world, say):
    return lambda fold, _: np.broadcast_to(say(world, fold), (len(fold.view.test), len(fold.screen.genes)))


@pytest.fixture(scope="module")
def outcomes(worlds):
    return [results_of(world) for world in worlds]


@pytest.mark.parametrize("name", CONSTANT)
def test_what_does_not_tell_units_apart_scores_exactly_nothing(outcomes, name):
    for baseline, arm, ceiling in (rows[name, HEADLINE] for rows in outcomes):
        assert (baseline["mean"], baseline["low"], baseline["high"]) == (0, 0, 0)
        assert (arm["diff"], arm["verdict"]) == (0, "no difference")
        assert ceiling > 0.4


@pytest.mark.parametrize("name", VARYING)
def test_what_tells_units_apart_by_chance_scores_nothing_within_its_interval(outcomes, name):
    rows = [row[name, HEADLINE] for row in outcomes]
    assert sum(baseline["low"] <= 0 <= baseline["high"] for baseline, *_ in rows) >= 4, rows
    assert sum(arm["low"] <= 0 <= arm["high"] for _, arm, _ in rows) >= 4, rows
    assert abs(np.mean([baseline["mean"] for baseline, *_ in rows])) < 0.05


@pytest.mark.parametrize("name", KNOWING)
def test_a_part_of_the_truth_scores_clearly(outcomes, name):
    rows = [row[name, HEADLINE] for row in outcomes]
    assert sum(baseline["low"] > 0.1 for baseline, *_ in rows) >= 4, rows
    assert sum(arm["verdict"] == "helps" for _, arm, _ in rows) >= 4, rows


@pytest.mark.parametrize(
    ("name", "sign"),
    [("mean of other cells", -1), ("shrunken mean of other cells", -1), ("control cells of other cells", 1)],
)
def test_the_former_headline_took_the_noise_of_the_mean_for_knowledge(outcomes, name, sign):
    """Whether for or against it depends on which noise is larger, that of the treated cells or of the controls."""
    scores = sign * np.array([rows[name, FORMER_HEADLINE][0]["mean"] for rows in outcomes])
    assert scores.min() > 0.05
    assert scores.mean() > 0.1


def test_a_unit_with_which_nothing_else_is_tested_has_no_headline_and_a_note_says_so(rng):
    screen = small_screen(rng, conditions=("A", "B", "C", "D"), contexts=2, genes=20)
    screen = replace(screen, units=tuple(u for u in screen.units if u.covariates == 0 or u.name == "A"))
    config = replace(CONFIG, split="perturbation", seeds=2, bootstraps=50)
    scores = []
    for seed in range(2):
        fold = FoldData(screen, config, "perturbation", token_table(screen.genes, screen), seed=seed, share=1.0)
        for name, predict in (response_baselines() | {CEILING: other_half}).items():
            scores += scores_of(name, predict, fold, ask(fold))
    result = summarise(screen, config, "perturbation", scores, facts={}, notes=[])
    assert any(note.startswith("1 of 5 tests of a unit have no headline") for note in result.notes)
    alone = [score for score in scores if score.group_size == 1]
    result = summarise(screen, config, "perturbation", alone, facts={}, notes=[])
    means = result.scores[result.scores["metric"] == HEADLINE]
    assert means["mean"].isna().all()
    assert result.scores[result.scores["metric"] == FORMER_HEADLINE]["mean"].notna().all()
    print_finetuned(result, Console(file=io.StringIO()))
