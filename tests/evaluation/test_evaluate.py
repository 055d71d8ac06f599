import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from sckit.config import EvalConfig, PretrainConfig, SimulateConfig
from sckit.config.options import options
from sckit.data.batch import Hiding, Packer
from sckit.data.halves import Halves, replicate_values
from sckit.data.simulate import simulate
from sckit.data.split import HELD_OUT, run_vocabulary
from sckit.data.views import CutView
from sckit.errors import DataError
from sckit.evaluation.embedded import write_embedding
from sckit.evaluation.evaluate import evaluate
from sckit.evaluation.rows import BASELINES
from sckit.metrics.values import Scores
from sckit.model.calibration import STRATA
from sckit.model.closed_forms import PREDICTORS, fit_closed_forms
from sckit.report.evaluation import print_evaluation, save_evaluation, verdicts
from sckit.training.baselines import offset_forms
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

ROW = {
    "predictor", "context", "rate", "target", "pooled_r", "centred_r", "r2_gene_mean", "r2_depth", "per_gene_r",
    "per_cell_r", "ci", "known_depth", "minus_ridge", "minus_best", "floor", "explainable_share",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    config = PretrainConfig(
        epochs=2, batch_tokens=2000, components=3, factors=2, group="dataset", hold_out=("run1",),
        correction_steps=100,
    )  # fmt: skip
    return pretrain(simulated.path, config, runs=tmp_path_factory.mktemp("runs"), name="run").run


@pytest.fixture(scope="module")
def evaluation(run):
    config = EvalConfig(
        masks=(0.15, 1.0), contexts=("detected", "visible"), label="cell_type", replicate_halves=True,
        bootstraps=200,
    )  # fmt: skip
    return evaluate(run, config)


def pick(evaluation, predictor, rate=1.0, target="full", context=None):
    wanted = {"predictor": predictor, "rate": rate, "target": target, "context": context}
    (row,) = [row for row in evaluation.rows if all(row[k] == v for k, v in wanted.items())]
    return row


def test_predictions_of_nearly_equal_mask_rates_are_kept_apart(run, tmp_path):
    masks = (0.15, 0.9999999, 1.0)
    evaluate(run, EvalConfig(masks=masks, bootstraps=2), keep=tmp_path / "kept")
    found = sorted(path.stem for path in (tmp_path / "kept").glob("*.parquet"))
    assert found == ["full-0.15", "full-0.9999999", "full-1"]


def test_the_document_has_the_fixed_shape(evaluation, run):
    document = json.loads(json.dumps(evaluation.document()))
    assert document["command"] == "eval"
    assert document["run"] == str(run)
    assert document["cells"] == 90
    assert document["options"]["masks"] == [0.15, 1.0]
    assert set(document["options"]) == set(options(EvalConfig))
    for row in document["rows"]:
        assert set(row) == ROW
        assert set(row["ci"]) == {"pooled_r", "r2_gene_mean"}
        assert set(row["minus_ridge"]) == {"r2_gene_mean", "ci"}
        assert set(row["minus_best"]) == {"predictor", "r2_gene_mean", "ci"}
        low, high = row["ci"]["r2_gene_mean"]
        assert low <= row["r2_gene_mean"] <= high
        assert (row["context"] is None) == (row["predictor"] != "model")
    names = {row["predictor"] for row in document["rows"]}
    assert names == {name for name in BASELINES if "group" not in name and "neighbours" not in name} | {
        "value offset ridge + correction",
        "replicate",
        "model",
    }
    assert document["best_baseline"] in BASELINES
    assert [row["mean_count"][0] for row in document["left"]] == list(STRATA[:-1])
    assert [row["mean_count"] for row in document["left_in_sum"]] == [[1, 2], [1, None]]
    assert len(document["calibration"]) == 10
    assert set(document["total_from_detection"]) == {"r2", "median_relative_error"}


def test_rows_that_see_no_value_do_not_change_with_the_rate(evaluation):
    for name in ("gene mean", "gene mean + depth", "label + depth", "detection ridge"):
        few, all_hidden = pick(evaluation, name, 0.15), pick(evaluation, name, 1.0)
        assert few["pooled_r"] == pytest.approx(all_hidden["pooled_r"])
    replicate = [pick(evaluation, "replicate", rate, "half")["pooled_r"] for rate in (0.15, 1.0)]
    assert replicate[0] == pytest.approx(replicate[1])


def test_visible_context_falls_to_the_gene_mean_and_detected_does_not(evaluation):
    assert abs(pick(evaluation, "model", context="visible")["r2_gene_mean"]) < 0.02
    assert pick(evaluation, "model", context="detected")["r2_gene_mean"] > 0.2
    assert any("checks the code" in line for line in verdicts(evaluation))
    assert any("context visible starts from the mean of each gene, and saw only 10% of" in x for x in evaluation.notes)


def test_the_best_baseline_knows_no_label_and_what_the_row_knows(evaluation):
    for rate in (0.15, 1.0):
        detected, visible = (
            pick(evaluation, "model", rate, context=context)["minus_best"] for context in ("detected", "visible")
        )
        assert detected["predictor"] in set(BASELINES) - {"label + depth"}
        assert visible["predictor"] in ("gene mean", "visible offset ridge")
        for name, best in (("detected", detected), ("visible", visible)):
            row, other = pick(evaluation, "model", rate, context=name), pick(evaluation, best["predictor"], rate)
            assert best["r2_gene_mean"] == pytest.approx(row["r2_gene_mean"] - other["r2_gene_mean"])
    assert evaluation.best_baseline == pick(evaluation, "model", 0.15, context="detected")["minus_best"]["predictor"]


def test_known_depth_reaches_every_predictor_at_full_hiding(run, evaluation):
    config = EvalConfig(masks=(1.0,), known_depth=True, bootstraps=50)
    known = evaluate(run, config)
    assert all(row["known_depth"] for row in known.rows)
    ridge, total = (
        pick(known, "detection ridge")["r2_gene_mean"],
        pick(known, "detection + total ridge")["r2_gene_mean"],
    )
    assert total > ridge
    models = [pick(each, "model", context="detected")["r2_gene_mean"] for each in (known, evaluation)]
    assert abs(models[0] - models[1]) > 1e-4


def test_the_line_on_the_total_compares_the_guess_with_the_true_totals(evaluation, run):
    opened = open_run(run)
    cells, store = opened.cells(HELD_OUT), opened.store
    packer = Packer(store, opened.vocabulary, Hiding(1.0))
    guess, true = offset_forms(opened).of_cells(packer(cells)).guess, np.log(store.totals(cells))
    found = evaluation.total_from_detection
    assert found["r2"] == pytest.approx(1 - ((guess - true) ** 2).mean() / true.var())
    assert found["median_relative_error"] == pytest.approx(np.median(np.abs(np.exp(guess - true) - 1)))


def test_table_csv_and_figure_are_written(evaluation, tmp_path):
    paths = save_evaluation(evaluation, tmp_path)
    assert {p.name for p in paths} == {
        *("eval.json", "eval.csv", "eval.png", "eval.svg", "left.csv", "left.png", "left.svg", "calibration.csv"),
    }
    with (tmp_path / "eval.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(evaluation.rows)
    assert float(lines[0]["pooled_r"]) == pytest.approx(evaluation.rows[0]["pooled_r"])
    assert (tmp_path / "eval.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "eval.svg").read_text()


def printed(evaluation, width=120):
    console = Console(file=io.StringIO(), width=width)
    print_evaluation(evaluation, console)
    return console.file.getvalue()


def test_tables_fit_120_columns_and_say_what_the_intervals_rest_on(evaluation):
    text = printed(evaluation)
    assert "\u2026" not in text
    assert text.count("of the values hidden, target at") == 4
    assert "model (visible)" in text
    assert "intervals: 95 % bootstrap over cells within one group: they speak of its cells only" in text
    assert "15% hidden, full depth: the model " in text
    assert "worse genes" in printed(evaluation, 200).splitlines()[1]


def test_what_training_and_the_network_add_is_compared_in_pairs(simulated, tmp_path):
    config = PretrainConfig(
        steps=1, batch_tokens=2000, components=3, factors=2, loss="count", lr=1e-9,
        correction_steps=100,
    )  # fmt: skip
    path = pretrain(simulated.path, config, runs=tmp_path, name="run").run
    found = evaluate(path, EvalConfig(masks=(1.0,), bootstraps=20, trees=True))
    start, correction, trees = found.document()["differences"]
    assert [each["other"] for each in (start, correction, trees)] == [
        "value offset ridge, calibrated", "value offset ridge + correction", "value offset ridge + trees",
    ]  # fmt: skip
    assert correction["r2_gene_mean"] == pytest.approx(0, abs=1e-4)  # attention was hardly trained
    r2 = {row["predictor"]: row["r2_gene_mean"] for row in found.rows}
    for each in (start, trees):
        assert each["r2_gene_mean"] == pytest.approx(r2["model"] - r2[each["other"]], abs=1e-9)
        assert each["ci"][0] <= each["r2_gene_mean"] <= each["ci"][1]
    assert "which is what attention adds" in printed(found)


def test_a_run_that_was_not_trained_to_its_end_says_so(run, evaluation, tmp_path):
    assert not [note for note in evaluation.notes if "to its end" in note]
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "trained.json").unlink()
    (note,) = [note for note in evaluate(copy, EvalConfig(bootstraps=10)).notes if "to its end" in note]
    step = json.loads((run / "model.json").read_text())["score"]["step"]
    assert re.search(rf"last checkpoint: step \d+\): its model of step {step} is scored", note)
    assert note.endswith(f"`sckit pretrain --resume {copy}`")


@pytest.mark.slow
@pytest.mark.parametrize("dispersion", [0.0, 0.3])
def test_the_truth_of_simulated_data_reaches_what_is_attainable(tmp_path, dispersion):
    data = SimulateConfig(cells=800, genes=300, libraries=1, dispersion=dispersion)
    simulate(data, tmp_path / "known.sckit")
    config = PretrainConfig(steps=1, batch_tokens=2000, components=2, factors=2, correction_steps=30)
    path = pretrain(tmp_path / "known.sckit", config, runs=tmp_path, name="run").run
    asked = EvalConfig(
        masks=(0.3,), truth=str(tmp_path / "known.truth.h5"), replicate_halves=True, bootstraps=20,
    )  # fmt: skip
    found = evaluate(path, asked)
    for target in ("full", "half"):
        truth, model = (pick(found, name, 0.3, target, *rest) for name, *rest in (("truth",), ("model", "detected")))
        assert truth["minus_best"]["ci"][0] > 0
        assert truth["r2_gene_mean"] > model["r2_gene_mean"]
        if not dispersion:  # the noise floor is that of the law that the counts were drawn from
            assert truth["explainable_share"] == pytest.approx(1, abs=0.1)
    simulate(replace(data, seed=1), tmp_path / "other.h5ad")
    with pytest.raises(DataError, match=r"other\.truth\.h5 is not the truth of"):
        evaluate(path, replace(asked, truth=str(tmp_path / "other.truth.h5")))


def test_intervals_speak_of_cells_or_are_not_there(run):
    config = EvalConfig(masks=(1.0,), bootstraps=50, group="cell")
    many, few = evaluate(run, config), evaluate(run, replace(config, max_cells=3))
    assert many.notes[-1] == "intervals: 95 % bootstrap over 90 groups"
    low, high = many.rows[0]["ci"]["pooled_r"]
    assert low < many.rows[0]["pooled_r"] < high
    assert few.notes[-1].startswith("no intervals")
    assert few.rows[-1]["minus_best"]["ci"] == [None, None]
    assert few.kept_steps == [open_run(run).kept_step]
    untrained = printed(replace(few, kept_steps=[0], untrained=1))
    assert "the model of this run is its linear start (step 0), so this says nothing about the network" in untrained
    text = printed(replace(few, kept_steps=[1], untrained=0))
    assert re.search(r"the model is not distinguishable from .*R² differs by [-+]?0\.\d{4}\n", text)
    assert "noise floor is above" not in text


def test_shuffled_values_leave_nothing_to_find(simulated, tmp_path):
    """Permuting each gene's counts over the cells that detect it breaks what detection says of values."""
    cells = np.arange(simulated.n_cells)
    indptr, genes, counts = simulated.rows(cells)
    generator = np.random.default_rng(2)
    permuted = counts.copy()
    for gene in range(simulated.n_genes):
        at = np.flatnonzero(genes == gene)
        permuted[at] = counts[generator.permutation(at)]

    class Permuted:
        def rows(self, chosen):
            parts = [np.arange(indptr[c], indptr[c + 1]) for c in chosen]
            ends = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
            return ends, genes[np.concatenate(parts)], permuted[np.concatenate(parts)]

        def totals(self, chosen):
            return np.full(len(chosen), 10_000)

    vocabulary = run_vocabulary(simulated, cells[:280], 5)
    forms = fit_closed_forms(Permuted(), vocabulary, cells[:280], components=3, factors=2)
    batch = Packer(Permuted(), vocabulary, Hiding(1.0), known_depth=True)(cells[280:])
    scores = Scores(len(forms.gene_mean))
    scores.add(batch, forms.predict(batch))
    for name in PREDICTORS[1:]:
        assert scores.r2(name) < 0.01


def test_embedding_goes_into_an_h5ad(run, simulated, tmp_path):
    source = simulated.path.parent / "counts.h5ad"
    write_embedding(run, source, tmp_path / "embedded.h5ad")
    import anndata

    adata = anndata.read_h5ad(tmp_path / "embedded.h5ad")
    original = anndata.read_h5ad(source)
    assert list(adata.obs_names) == list(original.obs_names)
    assert adata.obsm["X_sckit"].shape == (360, 64)
    first = np.asarray(original[adata.obs_names][:5, adata.var_names].X)
    np.testing.assert_array_equal(np.asarray(adata.X[:5]), first)
    middle = np.vstack(
        [adata.obsm["X_sckit"][adata.obs["cell_type"] == t].mean(0) for t in sorted(set(adata.obs["cell_type"]))]
    )
    spread = adata.obsm["X_sckit"].std(0)
    assert (np.ptp(middle, axis=0) / spread).max() > 1


def test_a_run_without_its_store_is_one_sentence(run, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (moved / path.name).write_bytes(path.read_bytes())
    (moved / "data.json").write_text(json.dumps({"store": str(tmp_path / "gone.sckit"), "inside": False}))
    with pytest.raises(DataError):
        evaluate(moved, EvalConfig())


def test_a_replaced_store_is_refused(simulated, tmp_path):
    """Other rows under the same row numbers would turn training cells into held-out ones."""
    from sckit.config.prepare import PrepareConfig
    from sckit.data.prepare import prepare

    source, path = simulated.path.parent / "counts.h5ad", tmp_path / "s.sckit"
    prepare([source], path)
    config = PretrainConfig(steps=1, batch_tokens=2000, components=2, factors=0, correction_steps=30)
    run = pretrain(path, config, runs=tmp_path).run
    evaluate(run, EvalConfig(bootstraps=10))
    prepare([source], path, config=PrepareConfig(min_counts=100), overwrite=True)
    with pytest.raises(DataError, match="is not the one"):
        evaluate(run, EvalConfig())


def test_a_share_too_small_to_score_anything_is_one_sentence(run):
    with pytest.raises(DataError, match="no validation value is hidden at 1e-09"):
        evaluate(run, EvalConfig(masks=(1e-9,)))


def test_closed_forms_of_cut_cells_are_fitted_on_cut_cells(simulated):
    vocabulary = run_vocabulary(simulated, np.arange(280), 1)
    scores = {}
    for name, view in (("whole", simulated), ("cut", CutView(simulated, vocabulary, 40, 0))):
        forms = fit_closed_forms(view, vocabulary, np.arange(280), components=2, factors=2)
        batch = Packer(simulated, vocabulary, Hiding(1.0), max_genes=40)(np.arange(280, 360))
        of = Scores(len(forms.gene_mean))
        of.add(batch, forms.predict(batch))
        scores[name] = of.r2("detection ridge")
    assert batch.cut > 0
    assert scores["cut"] > scores["whole"] + 0.05


def test_panel_rows_agree_with_an_independent_computation(shared_data, tmp_path):
    """pbmc_panel, two whole runs held out, genes in at least 20 training cells; numbers computed with other code."""
    from sckit.data.prepare import prepare

    store = prepare([shared_data / "pbmc_panel" / "pbmc_panel.h5ad"], tmp_path / "panel.sckit")
    held_out = store.obs["dataset"].isin(["pbmc1k_v3", "pbmc4k_half"]).to_numpy()
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    vocabulary = run_vocabulary(store, train, 20)
    forms = fit_closed_forms(store, vocabulary, train)
    scores = Scores(int(vocabulary.max()) + 1)
    packer = Packer(store, vocabulary, Hiding(1.0), scored=True)
    halves = Halves(store, 0)
    half_packer, half_scores = Packer(halves, vocabulary, Hiding(1.0), scored=True), Scores(int(vocabulary.max()) + 1)
    for part in np.array_split(test, 12):
        scores.add(batch := packer(part), forms.predict(batch))
        half = half_packer(part)
        half_scores.add(half, forms.predict(half) | {"replicate": replicate_values(halves, half, vocabulary)})

    def row(name, of=scores):
        return of.row(name, rate=1.0, context=None, known_depth=False)

    assert row("gene mean")["pooled_r"] == pytest.approx(0.836, abs=0.01)
    assert row("gene mean + depth")["pooled_r"] == pytest.approx(0.884, abs=0.01)
    assert row("gene mean + depth")["r2_gene_mean"] == pytest.approx(0.552, abs=0.01)
    assert row("detection ridge")["pooled_r"] == pytest.approx(0.922, abs=0.01)
    assert row("detection ridge")["r2_gene_mean"] == pytest.approx(0.70, abs=0.01)
    assert row("replicate", half_scores)["pooled_r"] == pytest.approx(0.740, abs=0.01)
