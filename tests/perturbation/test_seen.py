"""Treated cells that a run was trained on are found and named, whatever they are called."""

import json
import shutil
import types
from dataclasses import replace

import numpy as np
import pytest

from sckit.config import PretrainConfig
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.split import HELD_OUT, TRAIN, VALIDATION
from sckit.data.views import as_matrix
from sckit.errors import DataError
from sckit.perturbation.finetune import finetune
from sckit.perturbation.screen import read_screen
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

from .small_screens import CONFIG, as_anndata

SMALL = PretrainConfig(
    engine="numba", batch_tokens=2000, components=3, factors=2, validate_cells=20, steps=2, correction_steps=30
)
CONDITIONS = ["control"] * 24 + ["A"] * 12


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def screen_file(tmp_path_factory):
    """A file of 24 control cells, then 12 treated ones."""
    folder = tmp_path_factory.mktemp("screen")
    counts = np.random.default_rng(2).poisson(2.0, (36, 40))
    as_anndata(counts, {"condition": CONDITIONS}).write_h5ad(folder / "screen.h5ad")
    return folder / "screen.h5ad"


def pretrained_on(path, out, **options):
    """A stand-in for a run: its store, and which of the cells it has seen."""
    store = prepare([path] if not isinstance(path, list) else path, out, config=PrepareConfig(assay="any", **options))
    return types.SimpleNamespace(store=store, seen=np.ones(store.n_cells, bool))


def treated_and_seen(path, run, **options):
    screen = read_screen(path, replace(CONFIG, **options), run=run, on_event=quiet)
    return int(screen.seen.found[np.concatenate([unit.cells for unit in screen.units])].sum())


def test_treated_cells_that_the_run_was_trained_on_are_found(screen_file, tmp_path):
    run = pretrained_on(screen_file, tmp_path / "all.sckit")
    assert treated_and_seen(screen_file, run) == 12
    run.seen[24:28] = False
    assert treated_and_seen(screen_file, run) == 8


def test_all_genes_of_the_data_are_compared_not_only_those_predicted(screen_file, tmp_path):
    run = pretrained_on(screen_file, tmp_path / "all.sckit")
    assert treated_and_seen(screen_file, run, genes=5) == 12


def test_cells_are_found_behind_the_names_of_sources(screen_file, tmp_path):
    again = screen_file.with_name("again.h5ad")
    shutil.copy(screen_file, again)
    pretrained_on([screen_file, again], tmp_path / "two.sckit")
    run = pretrained_on([tmp_path / "two.sckit", again], tmp_path / "three.sckit")
    assert treated_and_seen(screen_file, run) == 12


def test_control_cells_may_have_been_seen(screen_file, tmp_path):
    run = pretrained_on(screen_file, tmp_path / "controls.sckit", obs_filter="condition == 'control'")
    assert run.store.n_cells == 24
    assert treated_and_seen(screen_file, run) == 0


def test_cells_of_the_same_name_but_other_counts_are_others(screen_file, tmp_path):
    counts = np.random.default_rng(3).poisson(4.0, (36, 40))
    as_anndata(counts, {"condition": "A"}).write_h5ad(tmp_path / "other.h5ad")
    assert treated_and_seen(screen_file, pretrained_on(tmp_path / "other.h5ad", tmp_path / "s")) == 0
    both = pretrained_on([tmp_path / "other.h5ad", screen_file], tmp_path / "both.sckit")
    assert treated_and_seen(screen_file, both) == 12  # among cells of another file, too


# ---- what fine-tuning says of it


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    return open_run(pretrain(simulated.path, SMALL, name="run", runs=tmp_path_factory.mktemp("runs")).run)


def test_cells_for_validation_count_as_seen_and_cells_held_out_do_not(run):
    assert {int(part) for part in run.split[run.seen]} == {TRAIN, VALIDATION}
    assert set(run.split[~run.seen]) == {HELD_OUT}


def rewritten(run, path, n_genes):
    """Write a screen of the cells of a run's store under other names, with fewer genes; return which are treated."""
    store = run.store
    counts = as_matrix(store.rows(np.arange(store.n_cells)), store.n_genes).toarray()[:, :n_genes]
    condition = np.array(["control", "A", "B", "C"])[np.arange(store.n_cells) % 4]
    as_anndata(counts, {"condition": condition}).write_h5ad(path)
    return condition != "control"


def notes_of(run, path, **options):
    """The notes of a comparison of one arm on one seed."""
    heard = []
    config = replace(CONFIG, seeds=1, arms=("pretrained",), train_shares=(1.0,), workers=1, bootstraps=20, **options)
    finetune(run.path, path, config, on_event=lambda kind, facts: heard.append((kind, facts.get("text"))))
    return [text for kind, text in heard if kind == "note"]


def test_a_run_that_was_trained_on_treated_cells_is_refused_or_goes_on_with_a_note(run, tmp_path):
    treated = rewritten(run, tmp_path / "screen.h5ad", 110)
    seen = int((treated & run.seen).sum())
    text = f"{seen} treated cells have the same counts as cells that run was pretrained on"
    with pytest.raises(DataError, match=f"^{text}, so it knows their values; .* or go on with --allow-seen"):
        notes_of(run, tmp_path / "screen.h5ad")
    assert f"LEAK: {text}" in notes_of(run, tmp_path / "screen.h5ad", allow_seen=True)


def test_where_most_treated_cells_cannot_be_compared_a_note_says_so(run, tmp_path):
    treated = int(rewritten(run, tmp_path / "screen.h5ad", 15).sum())
    expected = f"{treated} of the {treated} treated cells have too few counts in the genes of the store of {run.path}"
    assert [note for note in notes_of(run, tmp_path / "screen.h5ad") if note.startswith(expected)]


def test_of_a_run_whose_store_is_gone_nothing_is_known(run, screen_file, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    where = json.loads((tmp_path / "run" / "data.json").read_text())
    (tmp_path / "run" / "data.json").write_text(json.dumps(where | {"store": str(tmp_path / "gone")}))
    gone = open_run(tmp_path / "run")
    assert read_screen(screen_file, CONFIG, run=gone, on_event=quiet).seen is None
