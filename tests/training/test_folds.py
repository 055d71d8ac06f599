"""Several runs on one data set: every cell held out once, baselines shared by seeds, one table over all folds."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save

from sckit.config import EvalConfig, PretrainConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.split import HELD_OUT, deal_by_size, split_cells
from sckit.errors import ConfigError, DataError
from sckit.evaluation.evaluate import evaluate
from sckit.evaluation.kept import compare
from sckit.model.offset_fit import cross_fitted
from sckit.model.tokens import Tokens
from sckit.training.baselines import _VERSION, cross_fits, offset_forms, training_cells, untrained_model
from sckit.training.folders import find_run, find_runs
from sckit.training.folds import pretrain_folds
from sckit.training.pretrain import pretrain, train
from sckit.training.run import open_run

SMALL = {
    "steps": 6, "batch_tokens": 2000, "components": 3, "factors": 2, "validate_cells": 20,
    "correction_steps": 30,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(simulated, tmp_path_factory):
    config = PretrainConfig(folds=2, seeds=2, group="dataset", lr=3e-3, **SMALL)
    return pretrain_folds(simulated.path, config, runs=tmp_path_factory.mktemp("runs"), name="several").run


@pytest.fixture(scope="module")
def pooled(folder):
    config = EvalConfig(masks=(0.5, 1.0), bootstraps=200)
    return evaluate(folder, config, keep=folder / "eval" / "predictions")


def test_groups_are_dealt_by_size():
    np.testing.assert_array_equal(deal_by_size(np.array([5, 40, 30, 12]), 2), [0, 0, 1, 1])


def test_every_cell_is_held_out_once_and_groups_stay_whole(simulated):
    for group, folds in ((None, 5), ("dataset", 3), ("dataset", 4)):
        held_out = [
            split_cells(simulated, PretrainConfig(folds=folds, fold=fold, group=group)) == HELD_OUT
            for fold in range(folds)
        ]
        np.testing.assert_array_equal(np.sum(held_out, 0), 1)
        assert all(part.any() for part in held_out)
        if group:
            of_groups = pd.DataFrame(np.transpose(held_out)).groupby(simulated.obs[group].to_numpy()).mean()
            assert set(np.unique(of_groups)) == {0.0, 1.0}


def test_more_folds_than_groups_are_refused(simulated):
    with pytest.raises(ConfigError, match="more than the 4 groups of dataset"):
        split_cells(simulated, PretrainConfig(folds=5, fold=0, group="dataset"))


def test_more_folds_than_cells_are_refused_before_the_first_is_trained(simulated):
    config = PretrainConfig(folds=simulated.n_cells + 1, fold=0)
    with pytest.raises(
        ConfigError, match=f"--folds {simulated.n_cells + 1} is more than the {simulated.n_cells} cells"
    ):
        split_cells(simulated, config)


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="--hold-out"):
        PretrainConfig(folds=2, group="dataset", hold_out=("run1",))
    with pytest.raises(ConfigError, match="say how many with --folds"):
        PretrainConfig(seeds=2)


def test_seeds_share_split_and_baselines_and_differ_in_their_networks(folder):
    runs = [[open_run(path) for path in fold] for fold in find_runs(folder, folder.parent)]
    assert [len(fold) for fold in runs] == [2, 2]
    for one, two in runs:
        np.testing.assert_array_equal(one.split, two.split)
        for name in ("forms.safetensors", "offset_forms.safetensors"):
            first, second = (load_file(run.path / name) for run in (one, two))
            assert all(np.array_equal(first[key], second[key]) for key in first)
        weights = [load_file(run.path / "model.safetensors") for run in (one, two)]
        assert not np.allclose(weights[0]["gene.weight"], weights[1]["gene.weight"])
    assert (runs[0][0].split == HELD_OUT).sum() + (runs[1][0].split == HELD_OUT).sum() == 360
    assert (folder.parent / "latest").resolve() == folder.resolve()


def test_a_folder_that_does_not_say_how_many_folds_there_are_is_damaged(tmp_path):
    (tmp_path / "folds.toml").write_text("seeds = 1\n")
    with pytest.raises(DataError, match=r"folds.toml is damaged: .* train again"):
        find_runs(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"folds.toml is damaged: .* train again"):
        pretrain_folds(resume=tmp_path)


def test_the_folder_is_no_run_and_says_so(folder):
    for name in (folder, None):
        with pytest.raises(ConfigError, match="holds a run for each fold"):
            find_run(name, folder.parent)


def test_it_goes_on_where_it_was_killed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "several", symlinks=True)
    lost, half_made = copy / "fold-1-seed-0", copy / "fold-1-seed-1"
    whole = load_file(lost / "model.safetensors")
    shutil.rmtree(lost / "checkpoints")
    for path in half_made.iterdir():
        if path.name not in ("config.toml", "genes.parquet"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match="fold-1-seed-1 is not trained to its end; go on with"):
        find_runs(copy, tmp_path)
    kept = (copy / "fold-0-seed-0" / "model.safetensors").stat().st_mtime_ns
    pretrain_folds(resume=copy)
    assert (copy / "fold-0-seed-0" / "model.safetensors").stat().st_mtime_ns == kept
    again = load_file(lost / "model.safetensors")
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert all(len(fold) == 2 for fold in find_runs(copy, tmp_path))


def test_a_network_that_was_killed_in_training_is_not_scored(simulated, tmp_path):
    def kill(kind, facts):
        if kind == "step" and facts["step"] == 3:
            raise KeyboardInterrupt

    config, path = PretrainConfig(folds=2, **SMALL), tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        pretrain_folds(simulated.path, config, runs=tmp_path, name="killed", on_event=kill)
    with pytest.raises(KeyboardInterrupt):
        train(path / "fold-0-seed-0", kill)
    assert (path / "fold-0-seed-0" / "model.json").is_file()  # of the start
    with pytest.raises(DataError, match="fold-0-seed-0 is not trained to its end; go on with"):
        find_runs(path, tmp_path)
    pretrain_folds(resume=path)
    assert len(find_runs(path, tmp_path)) == 2


def test_the_store_lies_with_the_folds_and_moves_with_them(simulated, tmp_path):
    counts = simulated.path.parent / "counts.h5ad"
    config = PretrainConfig(folds=2, **SMALL | {"steps": 1})
    path = pretrain_folds(counts, config, runs=tmp_path / "here", name="a").run
    (tmp_path / "there").mkdir()
    moved = path.rename(tmp_path / "there" / "a")
    assert open_run(moved / "fold-1-seed-0").store.n_cells == 360


def test_one_table_pools_the_cells_of_all_folds(folder, pooled):
    assert pooled.cells == 360
    errors, spreads, seeds = 0.0, 0.0, np.zeros(2)
    kept = pd.read_parquet(folder / "eval" / "predictions" / "full-1.parquet")
    truth, mean = (kept[name].astype(float) for name in ("truth", "gene mean"))
    for seed in range(2):
        seeds[seed] = 1 - ((kept[f"model/detected/{seed}"] - truth) ** 2).sum() / ((mean - truth) ** 2).sum()
    for fold in range(2):
        alone = evaluate(folder / f"fold-{fold}-seed-0", EvalConfig(bootstraps=2))
        part = kept[kept["fold"] == fold]
        spread = ((part["gene mean"].astype(float) - part["truth"]) ** 2).sum()
        row = next(row for row in alone.rows if row["predictor"] == "value offset ridge")
        errors, spreads = errors + (1 - row["r2_gene_mean"]) * spread, spreads + spread
    rows = {row["predictor"]: row for row in pooled.rows if row["rate"] == 1.0}
    assert rows["value offset ridge"]["r2_gene_mean"] == pytest.approx(1 - errors / spreads, abs=1e-6)
    assert rows["model"]["r2_gene_mean"] == pytest.approx(seeds.mean(), abs=1e-6)
    assert "360 held-out cells of 2 folds, 2 networks for each" in " ".join(pooled.notes)
    assert any("100% hidden, full depth: R² of model/detected" in note for note in pooled.notes)
    json.dumps(pooled.document(), allow_nan=False)


@pytest.mark.parametrize("group", [None, "dataset"])
def test_rows_with_other_cells_are_scored_over_folds(simulated, tmp_path, group):
    """Their sentences draw resamples before the networks of several seeds become one row."""
    several = pretrain_folds(simulated.path, PretrainConfig(folds=2, seeds=2, group=group, **SMALL), runs=tmp_path).run
    config = EvalConfig(masks=(0.5,), neighbours=3, offset_group="dataset", bootstraps=20)
    predictors = [row["predictor"] for row in evaluate(several, config).rows]
    assert {"model", "model + group offsets", "value offset ridge + neighbours"} <= set(predictors)


def test_a_decomposition_of_several_runs_is_refused(folder):
    with pytest.raises(ConfigError, match="--decompose takes one run"):
        evaluate(folder, EvalConfig(masks=(0.15,), decompose=True))


def test_folds_without_a_number_of_folds_leave_no_folder(simulated, tmp_path):
    with pytest.raises(ConfigError, match="how many folds"):
        pretrain_folds(simulated.path, PretrainConfig(**SMALL), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_python_function_for_one_run_names_the_one_for_folds(simulated, tmp_path):
    with pytest.raises(ConfigError, match="pretrain_folds"):
        pretrain(simulated.path, PretrainConfig(folds=2, **SMALL), runs=tmp_path)


def test_two_runs_are_compared_on_the_same_entries(folder, pooled, tmp_path):
    changed = shutil.copytree(folder / "eval", tmp_path / "changed")
    path = changed / "predictions" / "full-0.5.parquet"
    table = pd.read_parquet(path)
    for name in ("model/detected/0", "model/detected/1"):
        table[name] += 0.3 * (table["truth"] - table[name])  # nearer to the truth: half of the squared error
    table.iloc[::2].to_parquet(path)  # the common entries alone are compared
    found = compare(folder, changed)
    row = found.table[(found.table["rate"] == 0.5) & (found.table["row"] == "model/detected")].iloc[0]
    assert row["entries"] == len(table.iloc[::2])
    assert 1 - row["r2_other"] == pytest.approx(0.49 * (1 - row["r2"]), abs=1e-5)
    assert row["high"] < 0
    (same,) = found.table[found.table["rate"] == 1.0].itertuples()  # the baselines are the same and left out
    model = next(r for r in pooled.rows if r["predictor"] == "model" and r["rate"] == 1.0)
    assert (same.row, same.difference) == ("model/detected", 0)
    assert same.r2 == pytest.approx(model["r2_gene_mean"], abs=1e-6)
    assert "value offset ridge" in found.notes[0]


def test_rows_that_one_of_two_runs_lacks_are_named(folder, pooled, tmp_path):
    changed = shutil.copytree(folder / "eval", tmp_path / "changed")
    for path in (changed / "predictions").glob("*.parquet"):
        table = pd.read_parquet(path).rename(columns={"count regression": "another row"})
        table.to_parquet(path)
    notes = compare(folder, changed).notes
    assert f"only {folder} has: count regression" in notes
    assert f"only {changed} has: another row" in notes


def test_a_model_that_was_not_trained_is_not_judged(folder, pooled, tmp_path):
    changed = shutil.copytree(folder / "eval", tmp_path / "changed")
    facts = json.loads((changed / "predictions" / "facts.json").read_text())
    assert facts["networks"] == 4
    (changed / "predictions" / "facts.json").write_text(json.dumps(facts | {"untrained": 4}))
    (folder / "eval" / "predictions" / "facts.json").write_text(json.dumps(facts | {"untrained": 1}))
    found = compare(folder, changed)
    assert found.table["untrained"].all()
    assert f"the model of {changed} is its linear start (step 0), so this says nothing about its network" in found.notes
    assert not compare(folder, folder).table["untrained"].any()


def test_runs_that_cannot_be_compared_are_refused(folder, pooled, tmp_path):
    with pytest.raises(DataError, match="--keep-predictions"):
        compare(folder, folder / "fold-0-seed-0")
    for name, value in (("store", "other"), ("seed", 5), ("known_depth", True)):
        copy = shutil.copytree(folder / "eval", tmp_path / name)
        facts = json.loads((copy / "predictions" / "facts.json").read_text())
        (copy / "predictions" / "facts.json").write_text(json.dumps(facts | {name: value}))
        words = "with 360 cells" if name == "store" else f", {value}"
        with pytest.raises(DataError, match=rf"{words}\); evaluate both alike"):
            compare(folder, copy)
    others = shutil.copytree(folder / "eval", tmp_path / "others")
    for path in (others / "predictions").glob("*.parquet"):
        table = pd.read_parquet(path)
        table.assign(cell=table["cell"] + 1000).to_parquet(path)
    with pytest.raises(DataError, match="no scored value in common"):
        compare(folder, others)
    (others / "predictions" / "facts.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        compare(folder, others)


def test_runs_of_other_numbers_of_seeds_are_compared_by_the_mean_of_each(folder, pooled, tmp_path):
    """A run of one seed has a column without a number."""
    single = shutil.copytree(folder / "eval", tmp_path / "single")
    for path in (single / "predictions").glob("*.parquet"):
        table = pd.read_parquet(path).rename(columns={"model/detected/1": "model/detected"})
        table.drop(columns="model/detected/0").to_parquet(path)
    found, back = compare(folder, single).table, compare(single, folder).table
    assert set(found["row"]) == {"model/detected"}
    np.testing.assert_allclose(found["difference"], -back["difference"], atol=1e-12)
    wanted = [r["r2_gene_mean"] for r in pooled.rows if r["predictor"] == "model"]
    np.testing.assert_allclose(found["r2"], wanted, atol=1e-6)
    for path in (single / "predictions").glob("*.parquet"):
        pd.read_parquet(path).drop(columns="model/detected").to_parquet(path)
    with pytest.raises(DataError, match="--context"):
        compare(folder, single)


def test_other_and_damaged_predictions_are_refused(folder, pooled, tmp_path):
    copy = shutil.copytree(folder / "eval", tmp_path / "copy")
    path = copy / "predictions" / "full-0.5.parquet"
    whole, table = path.read_bytes(), pd.read_parquet(path)
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            compare(copy, folder)
    table.drop(columns="truth").to_parquet(path)
    with pytest.raises(DataError, match="damaged"):
        compare(folder, copy)
    table.assign(truth=table["truth"] + 1).to_parquet(path)
    with pytest.raises(DataError, match="--halving"):
        compare(folder, copy)
    facts = copy / "predictions" / "facts.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"store_path": str(tmp_path / "moved")}))
    with pytest.raises(DataError, match="again with --keep-predictions"):
        compare(copy, folder)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_model_is_trained_on_the_baselines_that_left_its_cells_out(folder, rate):
    """What is read from the folder gives, inside a model, what the fits without the fold predict."""
    run = open_run(folder / "fold-0-seed-0")
    kept, forms, training = cross_fits(run), offset_forms(run), training_cells(run, run.store)
    fold, fits = cross_fitted(training, forms)
    np.testing.assert_array_equal(kept.fold, fold)
    model = untrained_model(run, 0)
    for number, fit in enumerate(fits):
        np.testing.assert_array_equal(fit.axes, forms.axes)
        batch = Packer(run.store, run.vocabulary, Hiding(rate))(training.cells[fold == number][:10])
        model.linear.use(kept.of(number))
        with torch.inference_mode():
            predicted = model.values(Tokens.of(batch, torch.device("cpu")))
        np.testing.assert_allclose(predicted, fit.value_ridge(batch, fit.of_cells(batch)), atol=2e-5)
    path = run.path / "cross_fits.safetensors"
    whole = path.read_bytes()
    scrambled = {name: np.ascontiguousarray(array[:, ::2]) for name, array in kept.arrays.items()} | {"fold": fold}
    for damaged in (b"", whole[:300], save(scrambled, _VERSION), save(kept.arrays | {"fold": fold}), None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        again = cross_fits(run)
        assert all(np.array_equal(again.arrays[name], array) for name, array in kept.arrays.items())
        assert path.read_bytes() == whole
