"""Whole comparisons on simulated screens whose answer is known: what has to come out, and what must not.

Each statement is about several worlds and allows for the one in which chance has its way.
"""

import functools

import pytest

from sckit.metrics.effects import HEADLINE
from sckit.perturbation.finetune import finetune
from sckit.report.text import at

from .planted import planted_config, write_planted

pytestmark = pytest.mark.slow

WORLDS = range(5)
MARGIN = 0.05  # the default
LARGE = {"perturbations": 42, "cells_per_unit": 24}
SHOWN = {"task": "partial", "revealed": (0.25,)}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes the world of a seed: the folder of its screen and run, and its truth."""

    @functools.cache
    def made(seed, **changes):
        folder = tmp_path_factory.mktemp("world")
        return folder, write_planted(folder, seed, **changes)

    return made


@pytest.fixture(scope="module")
def responses(make):
    """Of worlds whose control cells vary by the modules that answer perturbations, with runs that saw such cells."""
    return [compare(make(seed, loading=1.0, **LARGE)[0], seeds=3) for seed in WORLDS]


@pytest.fixture(scope="module")
def useless(make):
    """Of runs on cells whose genes vary independently, given some values of a profile.

    At the default number of steps: at half of it the arm from scratch has not yet learned what the values shown say.
    """
    return [compare(make(seed, loading=0.0)[0], **SHOWN, steps=120) for seed in WORLDS]


def compare(folder, *, run=None, **changes):
    return finetune((run or folder) / "runs" / "run", folder / "screen.h5ad", planted_config(folder, **changes))


def headlines(result, subset="all"):
    rows = at(result.scores, metric=HEADLINE, subset=subset).to_dict("records")
    return {row["predictor"]: row for row in rows}


def against_scratch(result):
    return at(result.differences, a="pretrained", b="scratch", metric=HEADLINE, subset="all").iloc[0]


def test_pretraining_on_cells_like_the_controls_helps_to_place_targets_never_seen(responses):
    """The arm from scratch mostly stays at the mean: validation prefers its first moment to any later one."""
    rows = [against_scratch(result) for result in responses]
    assert sum(row["verdict"] == "helps" and row["diff"] > 0.3 for row in rows) >= 4, rows


def test_pretraining_on_cells_whose_genes_are_independent_makes_no_difference(useless):
    rows = [against_scratch(result) for result in useless]
    assert sum(row["verdict"] in ("helps", "hurts") for row in rows) <= 1, rows
    assert sum(abs(row["diff"]) < MARGIN for row in rows) >= 4, rows


@pytest.mark.parametrize("task", ["response", "partial"])
def test_pretraining_on_modules_that_are_not_those_that_respond_does_not_help(make, task):
    folders = [make(seed, loading=1.0, structure="unrelated")[0] for seed in WORLDS]
    rows = [against_scratch(compare(folder, **SHOWN | {"task": task})) for folder in folders]
    assert sum(row["verdict"] == "helps" for row in rows) <= 1, rows


def test_the_screens_have_an_advantage_over_the_mean_to_lose(responses, useless):
    known = {"ridge on components", "nearest neighbours", "pretrained"}
    shown = {"ridge revealed to hidden", "low-rank", "nearest neighbours", "Gaussian conditional", "pretrained"}
    for results, names in ((responses, known), (useless, shown | {"scratch"})):
        scores = [{name: headlines(result)[name]["mean"] for name in names} for result in results]
        assert sum(min(of_world.values()) > 0.3 for of_world in scores) >= 4, scores
        assert sum(result.ceiling[HEADLINE] > 0.8 for result in results) >= 4


@pytest.mark.parametrize("task", ["response", "partial"])
def test_with_exchanged_labels_no_predictor_is_better_than_the_mean(make, task):
    """The mean scores 0 by definition, so that a row is its own paired difference from the mean."""
    strange, above = {}, 0
    for seed in WORLDS:
        result = compare(make(seed, loading=1.0)[0], permute=True, **SHOWN | {"task": task, "steps": 30})
        assert any("exchanged" in note for note in result.notes)
        above += abs(result.ceiling[HEADLINE]) > 0.2
        for name, row in headlines(result).items():
            low, high = row["low"], row["high"]
            if not (low <= 0 <= high or (low >= -MARGIN and high <= MARGIN)):
                strange.setdefault(seed, []).append((name, row))
    assert len(strange) <= 1, strange
    assert above <= 1


def test_another_seed_moves_no_score_by_more_than_the_intervals_allow(make, responses):
    moved = {}
    for seed, result in zip(WORLDS, responses, strict=True):
        folder = make(seed, loading=1.0, **LARGE)[0]
        first, other = headlines(result), headlines(compare(folder, seed=1, seeds=3, arms=("pretrained",)))
        assert other["pretrained"]["mean"] != first["pretrained"]["mean"]
        for name in other:
            rows = first[name], other[name]
            widths = [(row["high"] - row["low"]) / 2 for row in rows]
            if abs(rows[0]["mean"] - rows[1]["mean"]) > sum(widths):
                moved.setdefault(seed, []).append((name, rows))
    assert len(moved) <= 1, moved


def test_of_half_dead_perturbations_the_live_ones_are_found_and_scored_apart(make):
    run, found, false, higher = make(0, loading=1.0)[0], 0, 0, 0
    for seed in WORLDS:
        folder, truth = make(seed, dead=12)
        result = compare(folder, run=run, arms=("scratch",), steps=1, control_cells=2)
        live = {name for name, hit in truth.hits.items() if hit.any()}
        judged = result.cells.dropna()
        repeats = set(judged.loc[judged["repeats"].astype(bool), "condition"])
        found, false = found + len(repeats & live), false + len(repeats - live)
        of_all, of_live = headlines(result), headlines(result, "repeating")
        assert set(of_all) == set(of_live)
        assert 0 < of_live["mean"]["perturbations"] < of_all["mean"]["perturbations"]
        ceilings = at(result.ceilings, metric=HEADLINE).set_index("subset")["mean"]
        higher += ceilings["repeating"] > ceilings["all"] + 0.1
    assert found >= 54  # of 60
    assert false <= 3  # of 60: the bar is the 99th percentile of no effect
    assert higher >= 4
