"""A comparison that was killed goes on by finished arms, to the same bytes, and only with what it was begun with."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sckit.config import PretrainConfig, ReadingConfig
from sckit.data.simulate.screen import simulate_controls
from sckit.errors import ConfigError
from sckit.perturbation import finetune as module
from sckit.perturbation.finetune import finetune
from sckit.perturbation.finished import Finished, Part, read_plan
from sckit.training.pretrain import pretrain

from .planted import planted_config, write_planted

FEW = {"steps": 2, "batch_tokens": 512, "control_cells": 2, "bootstraps": 50, "genes": 30}
RUN = PretrainConfig(steps=2, batch_tokens=700, components=3, factors=2, correction_steps=2, validate_cells=20)


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    truth = write_planted(folder, 1, perturbations=12, cells_per_unit=12, controls=60)
    simulate_controls(np.random.default_rng(0), truth.world, 150).write_h5ad(folder / "controls.h5ad")
    pretrain(folder / "controls.h5ad", RUN, name="run", runs=folder / "runs")
    return folder


def compare(world, work, config=None, heard=None):
    config = config or planted_config(world, **FEW)
    listen = (lambda kind, facts: None) if heard is None else lambda kind, facts: heard.append(facts.get("text"))
    return finetune(world / "runs" / "run", world / "screen.h5ad", config, work=work, on_event=listen)


@pytest.fixture(scope="module")
def killed(world, tmp_path_factory):
    """The folder of a comparison that ended after three of its six parts."""
    work = tmp_path_factory.mktemp("killed") / "work"
    keep, number = Finished.keep, iter(range(3))

    def keep_three(self, part, name, **at):
        if next(number, None) is None:
            raise Killed
        return keep(self, part, name, **at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finished, "keep", keep_three)
        with pytest.raises(Killed):
            compare(world, work)
    return work


def test_it_goes_on_to_the_bytes_of_an_undisturbed_one_and_trains_nothing_twice(world, killed, monkeypatch):
    trained, train, heard = [], module.train_arm, []
    monkeypatch.setattr(module, "train_arm", lambda name, *more: trained.append(name) or train(name, *more))
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("part-*")}
    one = compare(world, killed, heard=heard).document()
    assert "going on: 3 parts of this comparison are finished" in heard
    assert trained == ["pretrained", "scratch"]  # of the second seed
    assert {name: (killed / name).stat().st_mtime_ns for name in before} == before
    two = compare(world, None).document()
    for document in (one, two):
        del document["facts"]["environment"]["time"]
    assert json.dumps(one) == json.dumps(two)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"steps": 3}, r"another --steps \(2 and not 3\)", id="options"),
        pytest.param({"target_map": "same"}, "another --target-map", id="list"),
    ],
)
def test_other_options_are_refused_and_what_is_finished_stays(world, killed, change, words):
    with pytest.raises(ConfigError, match=rf"{words}.*; go on with `sckit finetune --resume .*`.*, or remove "):
        compare(world, killed, replace(planted_config(world, **FEW), **change))
    assert len(list(killed.glob("part-*"))) >= 3


def test_other_data_and_another_model_are_refused(world, killed, tmp_path):
    given = planted_config(world, **FEW)
    other = tmp_path / "screen.h5ad"
    other.write_bytes((world / "screen.h5ad").read_bytes())
    with pytest.raises(ConfigError, match=r"other data \("):
        finetune(world / "runs" / "run", other, given, work=killed)
    targets = world / "targets.csv"
    text = targets.read_text()
    try:
        targets.write_text(text + "\n")
        with pytest.raises(ConfigError, match="other files of the same name"):
            compare(world, killed)
    finally:
        targets.write_text(text)
    weights = world / "runs" / "run" / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content + b" ")
        plan = json.loads((killed / "plan.json").read_text())
        plan["files"] = None  # the time of change of the list of targets
        (killed / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(ConfigError, match="another model in the run"):
            compare(world, killed)
    finally:
        weights.write_bytes(content)


def test_a_part_comes_back_as_it_was_and_a_damaged_one_is_made_again(tmp_path):
    finished = Finished(tmp_path)
    score = module.Score("mean", None, 1.0, 3, 0, {"pearson_delta": float("nan"), "mse": 0.1 + 0.2}, 5)
    row = {"arm": "scratch", "seed": 0, "train_share": 0.3, "best_step": 2, "validation": [1.0]}
    finished.keep(Part([score], [row]), "scratch", share=0.3, seed=0)
    part = finished.take("scratch", share=0.3, seed=0)
    assert part is not None
    assert repr(part) == repr(Part([score], [row]))
    assert finished.take("scratch", share=0.3, seed=1) is None
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-9])
    assert finished.take("scratch", share=0.3, seed=0) is None


def test_a_plan_tells_what_to_go_on_with(world, killed, monkeypatch, tmp_path):
    plan = read_plan(killed)
    assert plan is not None
    assert plan.config == planted_config(world, **FEW)
    assert plan.reading == ReadingConfig()
    assert plan.data == str(world / "screen.h5ad")
    assert read_plan(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"names its files from .* go on there"):
        read_plan(killed)
