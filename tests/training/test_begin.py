"""A run that was killed before its first step goes on, and a name that a kill left without a run can be used again."""

import os
from pathlib import Path

import pytest

from sckit.config import PretrainConfig
from sckit.errors import BusyError, ConfigError, DataError, StoppedError
from sckit.files import checksum
from sckit.locks import locked
from sckit.training.folders import point_latest
from sckit.training.folds import pretrain_folds
from sckit.training.pretrain import pretrain

CONFIG = PretrainConfig(
    steps=2, batch_tokens=2000, components=2, factors=1, correction_steps=1, validate_cells=20, min_cells=5
)


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture
def counts(simulated):
    return simulated.path.parent / "counts.h5ad"


@pytest.fixture(scope="module")
def undisturbed(simulated, tmp_path_factory):
    counts = simulated.path.parent / "counts.h5ad"
    return pretrain(counts, CONFIG, runs=tmp_path_factory.mktemp("runs"), name="run").run


def begin_and_be_killed(monkeypatch, place, counts, runs, error=Killed, start=pretrain, config=CONFIG):
    """Begin a run whose process ends, before a function is called and without any clearing up."""

    def end(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, end)
        patch.setattr("sckit.training.setting.shutil.rmtree", lambda *given, **options: None)
        with pytest.raises(error):
            start(counts, config, runs=runs, name="run")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("sckit.training.pretrain.open_data", id="before the store"),
        pytest.param("sckit.training.pretrain.prepare_run", id="after the store"),
        pytest.param("sckit.training.setting.write_json", id="before the setting is whole"),
    ],
)
def test_it_goes_on_from_before_its_first_step(monkeypatch, tmp_path, counts, undisturbed, place):
    if place == "sckit.training.setting.write_json":  # which also writes the inputs
        monkeypatch.setattr("sckit.training.pretrain.keep_inputs", _keep_inputs)
    begin_and_be_killed(monkeypatch, place, counts, tmp_path)
    with pytest.raises(ConfigError, match=r"exists; choose another --name, or go on with --resume"):
        pretrain(counts, CONFIG, runs=tmp_path, name="run")
    run = pretrain(resume=tmp_path / "run").run
    for name in ("model.safetensors", "data.json", "data.sckit/manifest.json", "split.npy"):
        assert checksum(run / name) == checksum(undisturbed / name)


def _keep_inputs(path, data, reading):
    (path / "inputs.json").write_text(f'{{"folder": "{Path.cwd()}", "inputs": ["{data}"], "reading": {{}}}}')


def test_a_name_without_a_run_can_be_used_again(monkeypatch, tmp_path, counts):
    begin_and_be_killed(monkeypatch, "sckit.training.folders.write_text", counts, tmp_path)
    assert not (tmp_path / "run" / "config.toml").exists()
    pretrain(counts, CONFIG, runs=tmp_path, name="run")


def test_it_goes_on_only_where_its_data_were_named(monkeypatch, tmp_path, counts):
    begin_and_be_killed(monkeypatch, "sckit.training.pretrain.open_data", counts, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"names its data from .*, where it was begun; go on there"):
        pretrain(resume=tmp_path / "runs" / "run")


def test_folds_go_on_from_before_their_store(monkeypatch, tmp_path, counts):
    begin_and_be_killed(
        monkeypatch, "sckit.training.folds.open_data", counts, tmp_path, start=pretrain_folds,
        config=PretrainConfig(**vars(CONFIG) | {"folds": 2}),
    )  # fmt: skip
    assert len(pretrain_folds(resume=tmp_path / "run").networks) == 2


def test_sigterm_keeps_what_was_begun_and_bad_data_do_not(monkeypatch, tmp_path, counts):
    def stop(*arguments, **options):
        message = "stopped by SIGTERM."
        raise StoppedError(message)

    monkeypatch.setattr("sckit.training.pretrain.prepare_run", stop)
    with pytest.raises(StoppedError, match=r"stopped before training began; go on with --resume .*run\.$"):
        pretrain(counts, CONFIG, runs=tmp_path, name="run")
    assert (tmp_path / "run" / "data.sckit").is_dir()
    with pytest.raises(DataError):
        pretrain(counts.with_name("missing.loom"), CONFIG, runs=tmp_path, name="other")
    assert not (tmp_path / "other").exists()


def test_a_run_that_is_written_is_not_resumed_by_another_process(undisturbed):
    with locked(undisturbed), pytest.raises(BusyError, match="another process is writing"):
        pretrain(resume=undisturbed)


def test_a_link_that_a_kill_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".latest-{os.getpid()}").symlink_to("gone")
    (tmp_path / "run").mkdir()
    point_latest(tmp_path / "run")
    assert (tmp_path / "latest").resolve() == tmp_path / "run"
