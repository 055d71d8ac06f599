"""Figures and sentences of an evaluation, on a made-up table."""

import io
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sckit.evaluation.decomposition import REST, Decomposed
from sckit.evaluation.predictors import CALIBRATED
from sckit.evaluation.result import Evaluation
from sckit.evaluation.rows import BASELINES
from sckit.evaluation.trees import TREES
from sckit.model.calibration import STRATA
from sckit.report.decomposition import decomposition_figure
from sckit.report.evaluation import left_lines, print_evaluation, save_evaluation, verdicts
from sckit.report.evaluation_figure import evaluation_figure, left_figure

BEST = "value offset ridge"


def row(predictor, rate, target, context, r2, best):
    ends = {f"{name}_{end}": 0.0 for name in ("pooled_r", "minus_ridge") for end in ("low", "high")}
    numbers = dict.fromkeys(("pooled_r", "centred_r", "r2_depth", "per_gene_r", "per_cell_r"), 0.5)
    numbers |= dict.fromkeys(("deviance_explained", "genes_worse_than_mean", "minus_ridge_r2_gene_mean"), 0.1)
    floor = {"floor_r2_gene_mean": None, "floor_low": None, "floor_high": None, "explainable_share": None}
    if predictor not in ("gene mean", "replicate"):
        floor = {"floor_r2_gene_mean": 0.7, "floor_low": 0.69, "floor_high": 0.71, "explainable_share": r2 / 0.7}
    where = {"predictor": predictor, "rate": rate, "target": target, "context": context, "known_depth": False}
    score = {"r2_gene_mean": r2, "r2_gene_mean_low": r2 - 0.02, "r2_gene_mean_high": r2 + 0.02}
    away = r2 - best
    minus = {"minus_best_predictor": BEST, "minus_best_r2_gene_mean": away}
    minus |= {"minus_best_low": away - 0.0004, "minus_best_high": away + 0.0004}
    return where | ends | numbers | floor | score | minus


def made_up(rates=(1.0,), targets=("full",), contexts=("detected",), *, model=0.0, decomposed=False):
    """An evaluation whose model scores `model` above the best baseline."""
    rows = []
    for target in targets:
        for rate in rates:
            names = [name for name in BASELINES if rate < 1 or name != "visible offset ridge"]
            scores = dict(zip(names, np.linspace(0, 0.6, len(names)), strict=True)) | {BEST: 0.6}
            rows += [row(name, rate, target, None, r2, 0.6) for name, r2 in scores.items()]
            rows += [row("replicate", rate, target, None, -14.9, 0.6)] if target == "half" else []
            for context in contexts:
                r2 = 0.6 + model if context == "detected" else 0.0
                rows.append(row("model", rate, target, context, r2, 0.6 if context == "detected" else 0.0))
    table = pd.DataFrame(rows)
    return Evaluation(
        run=Path("run"), options={"noise": "poisson"}, cells=9, entries=99, kept_steps=[40], untrained=0, table=table,
        notes=["a note"], best_baseline=BEST, left=left_table(),
        total_from_detection={"r2": 0.9, "median_relative_error": 0.1},
        calibration=[{"expected": 1.0 + i, "observed": 1.1 + i} for i in range(10)],
        detection_adds=[{"rate": 0.15, "target": "full", "r2_gene_mean": 0.002, "ci": [0.001, 0.003]}],
        differences=[], replicate_zero=0.62 if "half" in targets else None,
        decomposition=decomposed_table() if decomposed else None,
    )  # fmt: skip


def left_table():
    spans = [*zip(STRATA[:-1], [*STRATA[1:-1], None], strict=True), (1.0, 2.0), (1.0, None)]
    rows = [
        {"mean_count_low": low, "mean_count_high": high, "entries": 0.84 if high == 2.0 and low == 1.0 else 0.16}
        | {"own_half_gain_low": 0.01, "own_half_gain_high": 0.05, "variance_over_poisson": 1.2 + i}
        | {"own_half_gain": 0.031, "own_half_gain_simulated": -0.0004}
        for i, (low, high) in enumerate(spans)
    ]
    return pd.DataFrame(rows)


def decomposed_table():
    steps = ["normaliser", "depth", "detection", "visible values", "network", *REST]
    values = [0.4, 0.2, 0.1, 0.05, -0.05, 0.1, 0.2]
    bars = [("all", "all"), ("mean count", "1 to 1.1"), ("depth", "fewest genes detected")]
    rows = [
        {"kind": kind, "part": part, "entries": 0.5, "step": step, "r2": value, "deviance": value}
        | {f"{m}_{end}": value for m in ("r2", "deviance") for end in ("low", "high")}
        for kind, part in bars
        for step, value in zip(steps, values, strict=True)
    ]
    genes = {"gene": ["A"], "entries": [30], "mean_count": [2.0], "r2_without_values": [0.3], "gain": [0.1]}
    genes |= {"of_all": [0.01], "z": [3.0], "source_1": ["B"], "share_1": [0.4]}
    gains = {"genes": 1.0, "gain": 1.0, "clear_gain": 1.0, "clear_loss": 0.0}
    gains["share_of_the_gain_in_the_first_twentieth"] = 1.0
    return Decomposed(0.15, "known", "cell_type", BEST, pd.DataFrame(rows), pd.DataFrame(genes), gains)


def drawn(figure):
    """Draw a figure; any warning, as of a missing glyph or of no room, is an error. Returns its texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=60)
    return "\n".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))


def printed(evaluation, width):
    console = Console(file=io.StringIO(), width=width)
    print_evaluation(evaluation, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("rates", "targets", "contexts"),
    [
        ((1.0,), ("full",), ("detected",)),
        ((0.15,), ("full", "half"), ("detected", "visible")),
        ((0.15, 0.5, 1.0), ("full",), ("detected", "visible")),
        ((0.15, 1.0), ("full", "half"), ("visible",)),
    ],
)
def test_figures_draw_without_a_warning_and_name_the_rows(rates, targets, contexts):
    evaluation = made_up(rates, targets, contexts)
    text = drawn(evaluation_figure(evaluation.table))
    assert BEST in text
    assert "model" in text
    assert ("% of the values hidden" in text) == (len(rates) > 1)
    assert ("replicate: R² -14.90, off the scale" in text) == ("half" in targets)
    assert "attainable" in text


def test_nearly_everything_hidden_is_not_called_everything():
    evaluation = made_up((0.999, 1.0))
    text = printed(evaluation, 120)
    assert "99.9% of the values hidden" in text
    assert text.count("100% of the values hidden") == 1
    assert [line[:6] for line in verdicts(evaluation)][:2] == ["99.9% ", "100% h"]


def test_one_rate_is_sorted_with_the_best_row_on_top():
    figure = evaluation_figure(made_up((1.0,), model=0.01).table)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[-1] == "model"
    assert names[-2] in BASELINES[-8:]
    assert names[0] == "gene mean"


def test_unknown_intervals_are_drawn_as_points():
    table = made_up().table.copy()
    table[[name for name in table if name.endswith(("_low", "_high"))]] = np.nan
    drawn(evaluation_figure(table))


def test_figures_of_what_is_left_and_of_the_parts_draw():
    assert "Poisson" in drawn(left_figure(left_table(), BEST))
    text = drawn(decomposition_figure(decomposed_table().table))
    assert {"all entries", "1 to 1.1 counts", "fewest genes detected", "sampling noise"} <= set(text.splitlines())


def test_verdicts_have_a_margin():
    same, above, below = (verdicts(made_up(model=x))[0] for x in (0.0002, 0.01, -0.01))
    assert f"the model and the best linear baseline ({BEST}) are the same, within 0.001 R²" in same
    assert f"the model is above the best linear baseline ({BEST})" in above
    assert "the model is below" in below
    unclear = made_up(model=0.0008).table
    unclear.loc[unclear["predictor"] == "model", "minus_best_low"] = -0.01
    assert "not distinguishable" in verdicts(replace(made_up(), table=unclear))[0]


def test_the_gain_of_a_model_is_divided_into_its_start_and_its_training():
    start, model = row(CALIBRATED, 1.0, "full", None, 0.6002, 0.6), made_up(model=0.0005)
    table = pd.concat([model.table, pd.DataFrame([start])], ignore_index=True)
    less = {"rate": 1.0, "target": "full", "row": "model", "r2_gene_mean": 0.0003, "ci": [0.0001, 0.0005]}
    found = verdicts(replace(model, table=table, differences=[less | {"other": CALIBRATED}, less | {"other": TREES}]))
    assert found[1] == (
        "100% hidden, full depth: of the difference between the model and the best linear baseline, +0.0002 [-0.0002, "
        f"+0.0006] is the model's start ({CALIBRATED}) and +0.0003 [+0.0001, +0.0005] is what training added"
    )
    assert found[2] == f"100% hidden, full depth: R² of the model less that of {TREES}: +0.0003 [+0.0001, +0.0005]"


def test_a_model_that_was_not_trained_gets_no_verdict():
    one = verdicts(replace(made_up(), kept_steps=[0], untrained=1))
    start = "is its linear start (step 0), so this says nothing about the network"
    assert one[0] == f"100% hidden, full depth: the model of this run {start}"
    some = verdicts(replace(made_up(), kept_steps=[0, 40], untrained=1))
    assert "are the same" in some[0]
    assert some[1] == "1 of the 2 networks are their linear start (step 0)"
    corrected = verdicts(replace(made_up(), kept_steps=[0]))
    assert "are the same" in corrected[0]
    kept = "the kept model is the correction alone: attention did not add to it on validation cells"
    assert corrected[1] == kept


def test_sentences_call_nothing_a_result_that_is_none():
    lines = "\n".join(verdicts(made_up((1.0,), ("full", "half"), ("detected", "visible"))))
    assert "it checks the code and is no result" in lines
    assert "knowing which hidden genes are detected adds R² +0.0020 [+0.0010, +0.0030]" in lines
    assert "the other half of the molecules is zero in 62% of the scored entries" in lines
    assert "no ceiling" in lines
    assert "label + depth: where labels were assigned from expression" in lines
    assert "detected - visible" not in lines
    assert "square root" not in lines


def test_an_impossible_noise_floor_is_named():
    assert not [line for line in verdicts(made_up()) if "not usable" in line]
    table = made_up(model=0.01).table.copy()
    table.loc[table["predictor"] == "model", "floor_r2_gene_mean"] = 0.5
    for noise, end in (("nb", "on these data; see --noise poisson"), ("poisson", "on these data")):
        found = replace(made_up(), table=table, options={"noise": noise})
        (line,) = [line for line in verdicts(found) if "not usable" in line]
        assert "is above what the best row leaves (model: R² 0.610, attainable 0.500)" in line
        assert line.endswith(end)


def test_what_is_left_is_said_of_genes_with_few_counts_and_of_all():
    few, every = left_lines(made_up())
    assert few.startswith("genes with a mean count below 2, 84% of the entries: 3.1 % [1.0, 5.0] of what the value")
    assert "0.0 % would in pure sampling noise" in few
    assert every.startswith("all genes")


def test_tables_fit_their_consoles():
    evaluation = made_up((0.15, 1.0), ("full", "half"), ("detected", "visible"), decomposed=True)
    narrow, wide = printed(evaluation, 120), printed(evaluation, 200)
    for text in (narrow, wide):
        assert "\u2026" not in text
        assert "attainable" in text
        assert "sampling noise" in text
        assert re.search(r" A +2\.000 +0\.300 +\+0\.100 +1\.00 % +3\.0 +B 40%", text)
        assert "of all: the gain as a share of the squared error of all genes" in " ".join(text.split())
    assert "worse genes" in wide
    assert "other half tells" in wide
    assert "observed" in wide
    assert "worse genes" not in narrow


@pytest.mark.parametrize("width", [120, 200])
def test_the_baseline_that_a_row_is_compared_with_is_marked(width):
    assert "minus best: a" not in printed(made_up(), width)
    table = made_up((0.15,)).table.copy()
    other = "value offset ridge + group offsets + neighbours"
    table.loc[table["predictor"] == other, "minus_best_predictor"] = other
    text = printed(replace(made_up(), table=table), width)
    assert f"minus best: a less {BEST}, b less {other}" in text
    assert len(re.findall(r"\] a( |$)", text, re.MULTILINE)) == len(table) - 1
    assert len(re.findall(r"\] b( |$)", text, re.MULTILINE)) == 1
    assert "\u2026" not in text


def test_every_file_is_written(tmp_path):
    paths = save_evaluation(made_up(decomposed=True), tmp_path)
    names = {f"{name}.{kind}" for name in ("eval", "decomposition") for kind in ("json", "csv", "png", "svg")}
    assert {path.name for path in paths} == names | {"left.csv", "left.png", "left.svg", "calibration.csv", "genes.csv"}
    assert all(path.stat().st_size for path in paths)


def test_what_an_earlier_evaluation_wrote_goes(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "facts.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("my own")
    whole = replace(made_up(decomposed=True), predictions=tmp_path / "predictions")
    paths = save_evaluation(whole, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths} | {"predictions", "notes.txt"}
    paths = save_evaluation(made_up(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths} | {"notes.txt"}
    assert json.loads((tmp_path / "eval.json").read_text())["options"] == {"noise": "poisson"}
