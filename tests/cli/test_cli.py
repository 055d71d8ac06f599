import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sckit.cli.app import app

FAST = ["--config", Path(__file__).with_name("fast.toml")]
BENCHES = [f"bench {name}" for name in ("kernels", "ops", "counts", "static")]
COMMANDS = ["prepare", "simulate", "info", "pretrain", "eval", "finetune", "embed", *BENCHES]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def one_sentence(result):
    """The error as the user reads it; fails when it is a traceback or more than one line."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def write_h5ad(path, counts, obs=None):
    import anndata
    import pandas as pd

    counts = np.asarray(counts, np.float32)
    frame = pd.DataFrame(obs or {}, index=[f"c{i}" for i in range(len(counts))])
    anndata.AnnData(counts, obs=frame, var=pd.DataFrame(index=[f"G{i}" for i in range(counts.shape[1])])).write_h5ad(
        path
    )
    return path


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).poisson(1.0, size=(60, 30)) + 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"sckit {command}" in re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


def test_version_and_no_arguments():
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", invoke("--version").stdout)
    assert "pretrain" in invoke().output


def test_prepare_pretrain_eval_embed_end_to_end(simulated, tmp_path):
    source, store, runs = simulated.path.parent / "counts.h5ad", tmp_path / "a.sckit", tmp_path / "runs"
    prepared = json.loads(invoke("prepare", source, "--out", store, "--json").stdout.splitlines()[-1])
    assert set(prepared) == {
        "command", "store", "cells", "genes", "nonzeros", "dropped", "bytes", "wall_s", "peak_rss_bytes",
    }  # fmt: skip
    assert prepared["cells"] == 360
    assert json.loads(invoke("info", store, "--verify", "--json").stdout.splitlines()[-1])["verified"]
    result = invoke("pretrain", store, "--steps", "3", "--mask", "uniform", "--runs", runs, *FAST, "--json")
    trained = json.loads(result.stdout.splitlines()[-1])
    assert set(trained) == {"command", "run", "tokens_per_s", "cells_per_s", "wall_s", "epochs", "best"}
    assert trained["best"]["predictor"] == "model"
    assert "gene mean 0, gene mean + depth" in result.stderr
    assert "engine reference" in result.stderr
    result = invoke("eval", "--mask", "1.0", "--runs", runs, "--bootstraps", "50", "--json")
    evaluated = json.loads(result.stdout.splitlines()[-1])
    assert evaluated["command"] == "eval"
    assert evaluated["run"] == trained["run"]
    assert "detection ridge" in result.stdout
    out = tmp_path / "embedded.h5ad"
    result = invoke("embed", "latest", source, "--out", out, "--runs", runs, "--json")
    assert json.loads(result.stdout.splitlines()[-1])["shape"] == [360, 64]
    assert out.is_file()


def test_with_no_input_the_sample_is_used_and_said_so(tmp_path):
    result = invoke("pretrain", "--steps", "1", "--runs", tmp_path, *FAST, "--json")
    assert result.exit_code == 0, result.stderr
    assert "ships inside scanpy (700 cells" in result.stderr


def fractional(folder, counts):
    return write_h5ad(folder / "x.h5ad", counts + 0.5)


def negative(folder, counts):
    return write_h5ad(folder / "x.h5ad", counts - 3)


def not_a_number(folder, counts):
    changed = counts.astype(float)
    changed[3, 4] = np.nan
    return write_h5ad(folder / "x.h5ad", changed)


def empty(folder, counts):
    return write_h5ad(folder / "x.h5ad", np.zeros((0, 5)))


def all_zero(folder, counts):
    return write_h5ad(folder / "x.h5ad", np.zeros((8, 5)))


def truncated(folder, counts):
    whole = write_h5ad(folder / "whole.h5ad", counts).read_bytes()
    (folder / "x.h5").write_bytes(whole[: len(whole) // 2])
    return folder / "x.h5"


def text_file(folder, counts):
    (folder / "x.h5").write_text("gene,count\nA,1\n")
    return folder / "x.h5"


def missing(folder, counts):
    return folder / "nothing.h5ad"


@pytest.mark.parametrize("make", [fractional, negative, not_a_number, empty, all_zero, truncated, text_file, missing])
@pytest.mark.parametrize("command", ["prepare", "pretrain"])
def test_bad_data_is_one_sentence_and_exit_1(make, command, counts, tmp_path):
    path = make(tmp_path, counts)
    arguments = (
        ["--out", tmp_path / "s.sckit"] if command == "prepare" else ["--runs", tmp_path / "runs", "--steps", "1"]
    )
    result = invoke(command, path, *arguments)
    sentence = one_sentence(result)
    assert path.name in sentence or "No cell is left" in sentence
    assert result.exit_code == 1
    assert not (tmp_path / "s.sckit").exists()
    assert not list((tmp_path / "runs").glob("*"))


def test_inputs_without_a_shared_gene_are_refused(counts, tmp_path):
    import anndata
    import pandas as pd

    a = write_h5ad(tmp_path / "a.h5ad", counts)
    var = pd.DataFrame(index=[f"other{i}" for i in range(counts.shape[1])])
    anndata.AnnData(counts.astype(np.float32), var=var).write_h5ad(tmp_path / "b.h5ad")
    result = invoke("prepare", a, tmp_path / "b.h5ad", "--out", tmp_path / "s.sckit")
    assert "gene" in one_sentence(result)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        pytest.param(["pretrain", "--mask", "0"], "--mask 0", 2, id="mask-0"),
        pytest.param(["pretrain", "--mask", "1.2"], "--mask 1.2", 2, id="mask-above-1"),
        pytest.param(["pretrain", "--mask", "half"], "--mask half", 2, id="mask-no-number"),
        pytest.param(["eval", "--mask", "0"], "--mask 0", 2, id="eval-mask-0"),
        pytest.param(["eval", "--mask", "uniform"], "--mask uniform", 2, id="eval-mask-uniform"),
        pytest.param(["eval", "--context", "all"], "--context all", 2, id="context-unknown"),
        pytest.param(["eval"], "no run", 2, id="no-run-yet"),
        pytest.param(["eval", "nothing"], "nothing is not a run", 2, id="run-missing"),
        pytest.param(["pretrain", "--resume", "nothing"], "nothing is not a run", 2, id="resume-missing"),
        pytest.param(["pretrain", "--steps", "2", "--minutes", "1"], "budgets", 2, id="two-budgets"),
        pytest.param(["pretrain", "--engine", "cuda"], "--engine cuda", 2, id="engine-unknown"),
        pytest.param(["pretrain", "--device", "abacus"], "--device abacus", 2, id="device-unknown"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(arguments, words, code, tmp_path):
    result = invoke(*arguments, "--runs", tmp_path / "runs")
    assert words in one_sentence(result)
    assert result.exit_code == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--obs-filter", "tissue == 'blood'"], "tissue", id="obs-filter-unknown-column"),
        pytest.param(["--min-genes", "9999"], "cell", id="nothing-left"),
        pytest.param(["--layer", "spliced"], "spliced", id="layer-missing"),
    ],
)
def test_filters_that_cannot_work_are_one_sentence(arguments, words, counts, tmp_path):
    path = write_h5ad(tmp_path / "x.h5ad", counts)
    result = invoke("prepare", path, "--out", tmp_path / "s.sckit", *arguments)
    assert words in one_sentence(result)
    assert result.exit_code in (1, 2)


def test_assay_column_without_10x_is_refused_and_counted(counts, tmp_path):
    path = write_h5ad(tmp_path / "x.h5ad", counts, {"assay": ["Drop-seq"] * 60})
    result = invoke("prepare", path, "--out", tmp_path / "s.sckit")
    assert "Drop-seq" in one_sentence(result)
    assert result.exit_code == 1


def test_unknown_group_and_label_columns(simulated, tmp_path):
    result = invoke("pretrain", simulated.path, "--steps", "1", "--group", "donor", "--runs", tmp_path, *FAST)
    assert "no column 'donor'" in one_sentence(result)
    assert result.exit_code == 2
    assert invoke("pretrain", simulated.path, "--steps", "1", "--runs", tmp_path, "--name", "ok", *FAST).exit_code == 0
    result = invoke("eval", "ok", "--label", "kind", "--runs", tmp_path)
    assert "no column 'kind'" in one_sentence(result)


def test_a_wrong_name_of_a_run_is_answered_with_the_runs_there_are(simulated, tmp_path):
    runs = tmp_path / "runs"
    for name in ("kang", "small"):
        assert invoke("pretrain", simulated.path, "--steps", "1", "--runs", runs, "--name", name, *FAST).exit_code == 0
    for wrong in ("nothing", runs):
        assert one_sentence(invoke("eval", wrong, "--runs", runs)).endswith(f"{runs} has kang, small (latest: small).")
    (runs / "small" / "model.json").unlink()
    shutil.rmtree(runs / "small" / "checkpoints")
    sentence = one_sentence(invoke("eval", "small", "--runs", runs))
    place = runs / "small"
    assert sentence == f"Error: the run {place} stopped before its first model; go on with --resume {place}."
    sentence = one_sentence(invoke("eval", "kang", "--config", tmp_path / "no.toml"))
    assert sentence == f"Error: the config file {tmp_path / 'no.toml'} cannot be read: No such file or directory."
    assert "Missing argument 'OTHER'" in invoke("compare", "kang").stderr


@pytest.mark.parametrize(
    "extra", [["--lr", "0.5"], ["--seed", "3"], ["--name", "x"], ["other.h5ad"]], ids=lambda e: e[0].strip("-")
)
def test_resume_takes_no_other_options(extra, tmp_path):
    result = invoke("pretrain", *extra, "--resume", "run", "--runs", tmp_path)
    assert "--resume run goes on with that run's own" in one_sentence(result)
    assert result.exit_code == 2


def test_a_run_that_cannot_start_leaves_nothing_behind(simulated, tmp_path):
    assert invoke("pretrain", simulated.path, "--device", "cuda:9", "--runs", tmp_path).exit_code == 2
    assert invoke("pretrain", simulated.path, "--group", "donor", "--runs", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["latest", "a/b", "..", "."])
def test_names_of_runs_are_plain(simulated, tmp_path, name):
    result = invoke("pretrain", simulated.path, "--name", name, "--runs", tmp_path / "runs")
    assert "--name" in one_sentence(result)


def test_a_config_file_is_read_and_the_command_line_wins(simulated, tmp_path):
    (tmp_path / "options.toml").write_text(
        "seed = 7\nmask = 0.4\nsteps = 1\nbatch_tokens = 2000\ncomponents = 2\ncorrection_steps = 5\n"
    )
    options = ["--config", tmp_path / "options.toml", "--runs", tmp_path, "--name", "run"]
    assert invoke("pretrain", simulated.path, *options, "--components", "4").exit_code == 0
    written = (tmp_path / "run" / "config.toml").read_text()
    assert "mask = 0.4" in written
    assert "components = 4" in written
    assert "seed = 7" in written
    (tmp_path / "options.toml").write_text("masks = 0.4\n")
    result = invoke("pretrain", simulated.path, *options[:2])
    assert "masks" in one_sentence(result)
    assert result.exit_code == 2
