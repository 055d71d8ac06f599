"""Linear baselines in count space in the folder of a run: kept, and fitted where they are missing or do not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sckit.config import EvalConfig
from sckit.evaluation.evaluate import evaluate
from sckit.training import baselines
from sckit.training.baselines import _VERSION, offset_forms, refit_offset_forms, training_cells
from sckit.training.run import open_run

RUN = Path(__file__).resolve().parents[1] / "golden" / "run"  # made before these baselines existed


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of a run of before, after its first evaluation."""
    folder = shutil.copytree(RUN, tmp_path_factory.mktemp("before") / "run")
    assert not (folder / "offset_forms.safetensors").exists()
    found = evaluate(folder, EvalConfig(bootstraps=10))
    assert "count regression" in set(found.table["predictor"])
    return folder


@pytest.fixture
def run(kept, tmp_path):
    return open_run(shutil.copytree(kept, tmp_path / "run"))


@pytest.fixture
def fits(monkeypatch):
    """Count the fits."""
    done, fit = [], baselines.fit_offset_forms
    monkeypatch.setattr(baselines, "fit_offset_forms", lambda *a, **k: done.append(k) or fit(*a, **k))
    return done


def test_what_was_fitted_once_is_read_again(run, fits):
    first = vars(offset_forms(run))
    assert fits == []
    (run.path / "offset_forms.safetensors").unlink()
    again = vars(offset_forms(run))
    assert len(fits) == 1
    assert (run.path / "offset_forms.safetensors").is_file()
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:200])


def empty(path):
    path.write_bytes(b"")


def changed(change):
    def damage(path):
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path, _VERSION)

    damage.__name__ = change.__name__
    return damage


def without_one(arrays):
    del arrays["noise"]


def one_too_many(arrays):
    arrays["other"] = np.zeros(3)


def fewer_genes(arrays):
    arrays.update({name: array[:-1].copy() for name, array in arrays.items()})


def fewer_factors(arrays):
    arrays["counts"] = np.ascontiguousarray(arrays["counts"][:, :-1])


def flat_axes(arrays):
    arrays["axes"] = arrays["axes"].ravel()


def flat_loadings(arrays):
    arrays["loadings"] = arrays["loadings"].ravel()


def not_finite(arrays):
    arrays["ridge"][3, 0] = np.nan


def of_another_version(path):
    save_file(load_file(path), path, {"version": "0"})


DAMAGES = [cut_short, empty, of_another_version] + [
    changed(c) for c in (without_one, one_too_many, fewer_genes, fewer_factors, flat_axes, flat_loadings, not_finite)
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_does_not_fit_the_run_is_fitted_again(run, kept, fits, damage):
    damage(run.path / "offset_forms.safetensors")
    found = vars(offset_forms(run))
    assert len(fits) == 1
    whole = load_file(kept / "offset_forms.safetensors")
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    offset_forms(run)
    assert len(fits) == 1


def test_given_choices_are_used_and_not_kept(run, kept, fits):
    found = offset_forms(run, components=2, penalty=7.0)
    assert (found.chosen[0], found.chosen[2]) == (2, 7)
    assert len(fits) == 1
    before, after = ((path / "offset_forms.safetensors").read_bytes() for path in (kept, run.path))
    assert before == after


def test_a_refit_makes_the_same_choices(run, fits):
    like = offset_forms(run, components=2, penalty=7.0)
    fits.clear()
    again = refit_offset_forms(run, run.store, like, lambda _: None)
    np.testing.assert_array_equal(again.chosen, like.chosen)
    np.testing.assert_allclose(again.total, like.total, atol=1e-10)
    assert len(fits) == 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(run, monkeypatch):
    def refuse(_):
        raise PermissionError

    (run.path / "offset_forms.safetensors").unlink()
    monkeypatch.setattr(baselines, "replacing", refuse)
    assert np.isfinite(offset_forms(run).total).all()
    assert not (run.path / "offset_forms.safetensors").exists()


def test_only_training_cells_are_fitted_on(run):
    cells = training_cells(run, run.store)
    split = np.load(run.path / "split.npy")
    assert len(np.unique(split[cells.cells])) == 1
    assert len(cells.cells) < len(split)
