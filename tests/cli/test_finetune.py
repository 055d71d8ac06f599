"""The command `finetune` without its training: options in, order of the output, files, exit codes."""

import json
import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import sckit.perturbation.finetune
from sckit.cli.app import app
from sckit.config import FinetuneConfig
from sckit.errors import DataError

from ..report.made_up_result import made_up

DATA = ["--data", "screen.h5ad"]
NEEDED = [*DATA, "--condition", "perturbation", "--control", "none"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)], env={"COLUMNS": "200"})


def error_of(result):
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture
def heard(monkeypatch, tmp_path):
    """What reached a stand-in for the training, which reports events and hands back a made-up result."""
    (tmp_path / "runs" / "panel").mkdir(parents=True)
    (tmp_path / "runs" / "panel" / "config.toml").write_text("")
    calls = []

    def finetune(run, data, config, *, reading, work, on_event):
        calls.append({"run": run, "data": data, "config": config})
        work.mkdir(exist_ok=True)
        on_event("note", {"text": "7 of 9 targets are in the vocabulary"})
        rows = [{"condition": "control", "context": "all", "cells": 40, "repeats": None, "repeat_r": None}]
        on_event("cells", {"rows": rows})
        on_event("progress", {"done": 1, "of": 60, "what": "scratch, seed 0"})
        return made_up((0.0, 0.5) if config.task == "partial" else (None,))

    monkeypatch.setattr(sckit.perturbation.finetune, "finetune", finetune)
    return calls


@pytest.fixture
def place(tmp_path):
    return ["panel", "--runs", tmp_path / "runs"]


def flag(name):
    return f"--{name.replace('_', '-')}"


def test_help_has_two_examples_and_the_defaults_of_the_config():
    text = re.sub(r"\x1b\[[0-9;]*m", "", invoke("--help").stdout)
    assert text.count("sckit finetune --") >= 3
    assert "[default: 0.1,0.3,1.0]" in text
    for field in fields(FinetuneConfig):
        assert f"{flag(field.name)} " in text, field.name


def test_every_option_reaches_the_config(heard, place):
    given = {
        "exclude": "unassigned, multiplet", "separator": "_", "covariates": "cell_type,donor",
        "unseen": "donor", "replicate": "lane",
        "dose": "um", "target_map": "same", "genes": "50", "min_cells": "6", "task": "partial",
        "split": "covariate", "folds": "3", "train_shares": "0.5,1", "revealed": "0,0.5", "panel": "p.txt",
        "arms": "pretrained,scratch", "seeds": "2", "margin": "0.1", "bootstraps": "20", "steps": "7", "lr": "0.02",
        "validation_share": "0", "batch_tokens": "99", "control_cells": "3", "workers": "1", "engine": "numba",
        "device": "cpu", "seed": "4",
    }  # fmt: skip
    options = [part for name, value in given.items() for part in (flag(name), value)]
    result = invoke(*place, *NEEDED, *options, "--permute", "--allow-seen")
    assert result.exit_code == 0, result.stderr
    expected = FinetuneConfig(
        "perturbation", "none", exclude=("unassigned, multiplet",), separator="_", covariates=("cell_type", "donor"),
        unseen="donor",
        replicate="lane", dose="um", target_map="same", genes=50, min_cells=6, task="partial",
        split="covariate", folds=3, train_shares=(0.5, 1.0), revealed=(0.0, 0.5), panel="p.txt",
        arms=("pretrained", "scratch"), seeds=2, margin=0.1, bootstraps=20, permute=True, allow_seen=True,
        steps=7, lr=0.02, validation_share=0.0, batch_tokens=99, control_cells=3, workers=1, engine="numba",
        device="cpu", seed=4,
    )  # fmt: skip
    assert heard[0]["config"] == expected
    assert heard[0]["run"].endswith("/runs/panel")
    assert heard[0]["data"] == "screen.h5ad"
    assert [field.name for field in fields(FinetuneConfig) if getattr(expected, field.name) == field.default] == []


def test_cells_come_first_the_verdict_after_the_tables_and_the_document_last(heard, place):
    result = invoke(*place, *NEEDED, "--json")
    lines = result.stdout.splitlines()
    document = json.loads(lines[-1])
    assert document["command"] == "finetune"
    assert document["headline"] == "delta_r_specific"
    assert lines[-2].startswith("pretrained against scratch, response, unseen perturbation: no difference within")
    assert lines[0].startswith("cells of each condition and covariate")
    assert (
        result.stdout.index("cells of each") < result.stdout.index("gap closed") < result.stdout.index("no difference")
    )
    assert "7 of 9 targets" in result.stderr
    assert "7 of 9 targets" not in result.stdout


@pytest.mark.parametrize(
    ("options", "name"),
    [
        pytest.param([], "finetune-response", id="response"),
        pytest.param(["--task", "partial"], "finetune-partial", id="partial"),
    ],
)
def test_files_lie_in_the_run_and_the_config_can_be_used_again(options, name, heard, place, tmp_path):
    assert invoke(*place, *NEEDED, *options).exit_code == 0
    folder = tmp_path / "runs" / "panel" / name
    names = {"finetune.json", "finetune.csv", "finetune.png", "finetune.svg", "config.toml"}
    assert {path.name for path in folder.iterdir()} == names
    again = invoke(*place, *DATA, "--config", folder / "config.toml", "--out", tmp_path / "again", "--seed", "9")
    assert again.exit_code == 0, again.stderr
    first, second = (call["config"] for call in heard)
    assert second.seed == 9
    assert {f.name for f in fields(first) if getattr(first, f.name) != getattr(second, f.name)} == {"seed"}
    assert (tmp_path / "again" / "finetune.json").is_file()


@pytest.mark.parametrize("again", ["resumed", "begun again"])
def test_what_a_kill_just_before_the_end_leaves_behind_is_removed(again, heard, place, tmp_path):
    given = [*place, *NEEDED, "--out", tmp_path / "out"]
    assert invoke(*given).exit_code == 0
    names = sorted(path.name for path in tmp_path.rglob("*"))
    (tmp_path / "out" / "work.done").mkdir()
    (tmp_path / "out" / "work.done" / "part-scratch-share-1-seed-0.json").write_text("{}")
    (tmp_path / "out.lock").touch()
    result = invoke(*(["--resume", tmp_path / "out"] if again == "resumed" else given))
    assert result.exit_code == 0, result.stderr
    assert ("is complete" in result.stderr) == (again == "resumed")
    assert sorted(path.name for path in tmp_path.rglob("*")) == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param([*DATA, "--control", "none"], "--condition is missing", id="no-condition"),
        pytest.param([*DATA, "--condition", "perturbation"], "--control is missing", id="no-control"),
        pytest.param([*NEEDED, "--task", "guess"], "--task guess is unknown", id="task-unknown"),
        pytest.param([*NEEDED, "--level", "cell"], "--level cannot be cell any more", id="level-cell"),
        pytest.param([*NEEDED, "--split", "gene"], "--split gene is unknown", id="split-unknown"),
        pytest.param([*NEEDED, "--arms", "pretrained,best"], "--arms pretrained,best", id="arm-unknown"),
        pytest.param([*NEEDED, "--revealed", "half"], "--revealed half is not a list", id="share-no-number"),
        pytest.param([*NEEDED, "--train-shares", "0,1"], "shares above 0", id="share-of-nothing"),
        pytest.param([*NEEDED, "--margin", "0"], "--margin must be above 0", id="no-margin"),
        pytest.param([*NEEDED, "--unseen", "donor"], "--unseen donor", id="unseen-is-no-covariate"),
        pytest.param([*NEEDED, "--config", "nothing.toml"], "nothing.toml cannot be read", id="config-missing"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(arguments, words, heard, place):
    result = invoke(*place, *arguments)
    assert words in error_of(result)
    assert result.exit_code == 2
    assert heard == []


def test_a_missing_run_and_an_impossible_folder_are_refused_before_any_training(heard, place, tmp_path):
    assert "nothing is not a run" in error_of(invoke("nothing", *place[1:], *NEEDED))
    (tmp_path / "file").write_text("")
    assert "is no folder to write in" in error_of(invoke(*place, *NEEDED, "--out", tmp_path / "file"))
    assert invoke(*place).exit_code == 2  # without --data
    assert heard == []


def test_bad_data_is_one_sentence_and_exit_1_and_leaves_nothing(heard, place, monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise DataError(f"{arguments[1]} has no control cells.")

    monkeypatch.setattr(sckit.perturbation.finetune, "finetune", refuse)
    result = invoke(*place, *NEEDED)
    assert "no control cells" in error_of(result)
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "runs" / "panel").iterdir()] == ["config.toml"]
