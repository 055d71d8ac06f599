import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from sckit.config import PretrainConfig
from sckit.data.labels import Labels, group_values
from sckit.data.split import HELD_OUT, LEFT_OUT, TRAIN, VALIDATION, split_cells
from sckit.errors import ConfigError, DataError
from sckit.training.folders import find_run
from sckit.training.pretrain import load_model, pretrain
from sckit.training.run import Run, open_run

SMALL = {
    "batch_tokens": 2000,
    "checkpoint_steps": 3,
    "components": 3,
    "factors": 2,
    "correction_steps": 30,
    "validate_cells": 20,
}

WORKER = """
import sys
from sckit.config import PretrainConfig
from sckit.training.pretrain import pretrain
store, runs, resume = sys.argv[1:4]
def on_event(kind, facts):
    if kind == "step":
        print(facts["step"], flush=True)
pretrain(store, PretrainConfig(steps=12, batch_tokens=2000, checkpoint_steps=3, components=3, factors=2,
         correction_steps=30, validate_cells=20, mask="uniform", engine=sys.argv[4]), name="run",
         runs=runs, resume=resume or None, on_event=on_event)
"""


def weights(run: Path) -> dict[str, np.ndarray]:
    folder = max((run / "checkpoints").iterdir())
    return load_file(folder / "state.safetensors")


def validations(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def work(store: Path, runs: Path, resume: str = "", *, kill_at: int | None = None, engine: str = "auto") -> None:
    command = [sys.executable, "-c", WORKER, str(store), str(runs), resume, engine]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": ""}
    ) as worker:
        for line in worker.stdout:
            if kill_at is not None and int(line) == kill_at:
                worker.send_signal(signal.SIGKILL)
                break
        worker.wait(timeout=300)
        assert worker.returncode == (0 if kill_at is None else -signal.SIGKILL)


@pytest.fixture(scope="module")
def whole_run(simulated, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    work(simulated.path, runs)
    return runs / "run"


@pytest.mark.parametrize("kill_at", [1, 5, 10], ids=lambda step: f"killed-at-step-{step}")
def test_a_killed_run_resumes_bit_for_bit(simulated, whole_run, tmp_path, kill_at):
    work(simulated.path, tmp_path, kill_at=kill_at)
    work(simulated.path, tmp_path, resume=str(tmp_path / "run"))
    expected, got = weights(whole_run), weights(tmp_path / "run")
    assert expected.keys() == got.keys()
    for name in expected:
        np.testing.assert_array_equal(expected[name], got[name], err_msg=name)
    for name in ("model.safetensors", "model.json"):
        assert (whole_run / name).read_bytes() == (tmp_path / "run" / name).read_bytes()

    def lines(run):
        return [{k: v for k, v in line.items() if k != "wall_s"} for line in validations(run)]

    assert lines(whole_run) == lines(tmp_path / "run")


def test_the_compiled_engine_repeats_itself_bit_for_bit(simulated, tmp_path):
    for name in ("a", "b"):
        pretrain(simulated.path, PretrainConfig(steps=4, **SMALL | {"engine": "numba"}), runs=tmp_path, name=name)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all((a[name] == b[name]).all() for name in a)


def test_the_run_folder_says_what_was_done(whole_run):
    names = {p.name for p in whole_run.iterdir()}
    assert {"config.toml", "environment.json", "metrics.jsonl", "model.safetensors", "model.json", "split.npy"} <= names
    assert (whole_run.parent / "latest").resolve() == whole_run.resolve()
    run = open_run(whole_run)
    assert run.config.mask == "uniform"
    assert json.loads((whole_run / "environment.json").read_text())["torch"]
    first = validations(whole_run)[0]
    assert first["step"] == 0
    assert first["r2_gene_mean"] == pytest.approx(first["r2 value offset ridge"], abs=1e-5)


def test_training_improves_on_the_closed_forms_where_there_is_something_to_learn(simulated, tmp_path):
    """From the gene mean alone, where much is left to learn, loss on unseen cells has to fall."""
    config = PretrainConfig(epochs=6, mask=0.5, warm_start=False, lr=3e-3, linear_lr=1.0, **SMALL)
    rows = []
    done = pretrain(
        simulated.path, config, runs=tmp_path, on_event=lambda kind, f: rows.append(f) if kind == "validation" else 0
    )
    assert rows[0]["r2_gene_mean"] == pytest.approx(0, abs=1e-6)
    assert done.best["r2_gene_mean"] > 0.1
    assert load_model(done.run).config.width == 64


def test_minutes_are_wall_clock(simulated, tmp_path):
    done = pretrain(
        simulated.path,
        PretrainConfig(minutes=0.1, patience=99, **SMALL),
        runs=tmp_path,
        name="timed",
    )
    assert 6 <= done.wall_s < 60  # one step and one validation after the six seconds, on whatever machine
    assert len(validations(done.run)) >= 2


def test_weights_that_are_no_numbers_never_reach_a_checkpoint(simulated, tmp_path, monkeypatch):
    """On a GPU the gradient is not looked at in every step, so that the checkpoint has to look."""

    def poison(model, _optimiser, _losses, **_options):
        with torch.no_grad():
            model.curve[0] = float("nan")
        return torch.zeros(())

    monkeypatch.setattr("sckit.training.trainer.take_step", poison)
    config = PretrainConfig(**(SMALL | {"steps": 30, "checkpoint_steps": 1, "correction_steps": 0}))
    with pytest.raises(DataError, match="a weight is not a number at step 1"):
        pretrain(simulated.path, config, runs=tmp_path, name="poisoned")
    assert not list((tmp_path / "poisoned").glob("checkpoints/*"))


def test_early_stopping_keeps_the_best_model(simulated, tmp_path):
    config = PretrainConfig(epochs=12, lr=0.3, gene_lr=1.0, patience=2, **SMALL)
    done = pretrain(simulated.path, config, runs=tmp_path)
    scores = [line["r2_gene_mean"] for line in validations(done.run)]
    assert done.epochs < 11
    assert done.best["r2_gene_mean"] == max(scores)
    assert max(scores[-2:]) < max(scores)  # the last two checks, for which it waited, were no better


def told(simulated, runs, *, resume=None, **options):
    """The notes of a training with steps of a given size, 0 for none."""
    notes = []
    config = PretrainConfig(**{**SMALL, "gene_lr": 1.0, "steps": 20, "correction_steps": 0} | options)
    pretrain(
        simulated.path, config, runs=runs, name="run", resume=resume,
        on_event=lambda kind, facts: notes.append(facts["text"]) if kind == "note" else None,
    )  # fmt: skip
    return notes


def test_patience_counts_in_the_second_half_and_the_end_says_what_is_kept(simulated, tmp_path):
    notes = told(simulated, tmp_path, lr=0.3, patience=2)
    assert [line["step"] for line in validations(tmp_path / "run")] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert notes[-2:] == [
        "stopped after step 14 of 20: 2 validations without an improvement",
        "the kept model is that of step 0, the linear start: nothing that was trained is kept; give more --steps or "
        "--patience",
    ]
    notes = told(simulated, tmp_path, resume=tmp_path / "run")
    assert notes[-2].endswith("it cannot go on, so start a new run with a larger --patience")
    assert not any("resuming" in note for note in notes)


def test_resuming_a_complete_run_says_so(simulated, tmp_path):
    assert not [note for note in told(simulated, tmp_path, steps=2, lr=1e-9) if "complete" in note]
    assert "this run is complete (step 2 of 2)" in told(simulated, tmp_path, resume=tmp_path / "run")


def test_accumulated_gradients_are_those_of_one_larger_step(simulated, tmp_path):
    facts = {}
    for name, extra in (("one", {"batch_tokens": 2000}), ("two", {"batch_tokens": 2000, "accumulate": 2})):
        config = PretrainConfig(epochs=1, patience=99, **{**SMALL, **extra})
        done = pretrain(simulated.path, config, runs=tmp_path, name=name)
        facts[name] = json.loads((max((done.run / "checkpoints").iterdir()) / "state.json").read_text())
    assert facts["two"]["step"] == -(-facts["one"]["step"] // 2)
    assert facts["two"]["tokens"] == facts["one"]["tokens"]


def test_groups_never_sit_on_both_sides(simulated):
    dataset = simulated.obs["dataset"].to_numpy()
    split = split_cells(simulated, PretrainConfig(group="dataset", hold_out=("run1", "run3")))
    assert set(dataset[split == HELD_OUT]) == {"run1", "run3"}
    assert set(dataset[split != HELD_OUT]) == {"run0", "run2"}
    assert (split == VALIDATION).sum() == 18
    chosen = split_cells(simulated, PretrainConfig(group="dataset"))
    assert len(set(dataset[chosen == HELD_OUT])) == 1
    assert not set(dataset[chosen == HELD_OUT]) & set(dataset[chosen == TRAIN])
    cells = split_cells(simulated, PretrainConfig())
    assert (cells == HELD_OUT).sum() == 72
    np.testing.assert_array_equal(cells, split_cells(simulated, PretrainConfig()))


def test_cells_without_a_group_are_on_neither_side(simulated):
    obs = simulated.obs.assign(lane=simulated.obs["dataset"].astype(str).where(np.arange(simulated.n_cells) % 5 > 0))
    store = SimpleNamespace(labels=lambda column: Labels.of(group_values(obs, column)), n_cells=simulated.n_cells)
    heard = []
    split = split_cells(store, PretrainConfig(group="lane"), lambda _, facts: heard.append(facts["text"]))
    unknown = obs["lane"].isna()
    assert (split[unknown] == LEFT_OUT).all()
    assert not (split[~unknown] == LEFT_OUT).any()
    assert heard == [f"{unknown.sum()} cells have no value in lane: they are left out of training and test"]
    with pytest.raises(ConfigError, match="--hold-out '' is not in lane, which has 'run0', 'run1', 'run2', 'run3'"):
        split_cells(store, PretrainConfig(group="lane", hold_out=("",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"group": "donor"}, "no column 'donor'", id="unknown-column"),
        pytest.param({"group": "dataset", "hold_out": ("run9",)}, "'run9' is not in dataset", id="unknown-value"),
        pytest.param({"min_cells": 100_000}, "no gene is seen", id="min-cells-too-high"),
    ],
)
def test_bad_splits_are_one_sentence(simulated, tmp_path, options, words):
    with pytest.raises((ConfigError, DataError), match=words):
        pretrain(simulated.path, PretrainConfig(steps=1, **SMALL | options), runs=tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"mask": 0}, {"mask": 1.2}, {"steps": 1, "minutes": 1}, {"epochs": -1}, {"preset": "huge"}, {"hold_out": ("a",)}],
    ids=str,
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError):
        PretrainConfig(**options)


def test_a_missing_run_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no run"):
        find_run(None, tmp_path)
    with pytest.raises(ConfigError, match="not a run"):
        find_run("nothing", tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.toml").write_text("")
    with pytest.raises(DataError, match=r"lacks forms\.safetensors"):
        open_run(tmp_path / "half")


def test_genes_of_another_store_are_known_by_id_or_symbol_and_no_number_is_given_twice():
    def numbers_in(ids, symbols):
        run = SimpleNamespace(
            genes=pd.DataFrame({"id": ["", "ENSG00000002", "ENSG00000003"], "symbol": ["A", "B", "C"]}), path="run"
        )
        return Run.numbers_in(run, SimpleNamespace(genes=pd.DataFrame({"id": ids, "symbol": symbols}), path="store"))

    found = numbers_in(["ENSG00000003.4", "", "ENSG00000009", "", "ENSG00000002"], ["old name", "C", "A", "D", "A"])
    assert found.dtype == np.int32
    assert found.tolist() == [2, -1, 0, -1, 1]
    with pytest.raises(DataError, match=r"no gene of the data \(D, .*\) is among the 3 that run was"):
        numbers_in([""], ["D"])
