"""Evaluation results as tables, sentences, files and figures. Nothing is computed here."""

import shutil
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from sckit.evaluation.kept import FACTS, PREDICTIONS
from sckit.evaluation.known_truth import TRUTH
from sckit.evaluation.predictors import CALIBRATED, CORRECTED
from sckit.evaluation.result import Evaluation
from sckit.files import replacing
from sckit.metrics.intervals import verdict
from sckit.report.decomposition import (
    DECOMPOSITION_FILES,
    decomposition_lines,
    decomposition_tables,
    save_decomposition,
)
from sckit.report.evaluation_figure import evaluation_figure, left_figure, row_name
from sckit.report.files import save_figure, save_report
from sckit.report.text import at, is_number, number, titled_table, with_interval

MARGIN = 0.001
"""Two rows whose R2 differs by less are called the same."""

_WIDE = 195
_CORE = ("predictor", "pooled r", "R² [95 %]", "attainable", "share", "gene r", "minus best [95 %]")
_MORE = ("predictor", "pooled r", "centred r", "R² [95 %]", "attainable [95 %]", "share", "gene r", "cell r")
_MORE += ("minus best [95 %]", "minus ridge", "R² depth", "deviance", "worse genes")
_LEGEND = (
    "pooled r: correlation over all scored values; R²: share of the squared error of the gene mean that is removed; "
    "attainable: R² that the row would have if its predictions were the true expected values and counts varied about "
    "them by chance alone; share: R² as a share of what is attainable; gene r: median over genes of the correlation "
    "across cells; minus best: R² less that of the best linear baseline that knows no more than the row."
)
_MORE_LEGEND = (
    " centred r: pooled r less each gene's mean; cell r: mean over cells of the correlation across genes; minus ridge: "
    "R² less that of the detection ridge; R² depth: against gene mean + depth; deviance: count deviance explained; "
    "worse genes: share predicted worse than by their own mean."
)


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print one table per target and rate, and what they say in words; a narrow console gets the core columns."""
    wide = console.width >= _WIDE
    tables = []
    for target, rate in dict.fromkeys(evaluation.table[["target", "rate"]].itertuples(index=False, name=None)):
        rows = at(evaluation.table, target=target, rate=rate)
        depth = "full depth" if target == "full" else "half of the molecules"
        known = ", exact total known" if rows["known_depth"].any() else ""
        title = f"{100 * rate:.4g}% of the values hidden, target at {depth}{known}"
        tables.append(titled_table(title, *(_MORE if wide else _CORE)))
        marks = dict(zip(dict.fromkeys(rows["minus_best_predictor"]), ascii_lowercase, strict=False))
        if len(marks) > 1:
            tables[-1].caption = f"minus best: {', '.join(f'{mark} less {name}' for name, mark in marks.items())}"
            tables[-1].caption_justify = "left"
        for row in rows.itertuples():
            mark = f" {marks[row.minus_best_predictor]}" if len(marks) > 1 else ""
            tables[-1].add_row(*(_wide_cells(row, mark) if wide else _core_cells(row, mark)))
    if wide:
        tables += [_left_table(evaluation), _calibration_table(evaluation)]
    if evaluation.decomposition is not None:
        tables += decomposition_tables(evaluation.decomposition)
    for table in tables:
        console.print(table)
        console.print()
    console.print(_LEGEND + (_MORE_LEGEND if wide else " More columns are in eval.csv."), style="dim", highlight=False)
    lines = [*evaluation.notes, *verdicts(evaluation), *left_lines(evaluation)]
    for line in lines if evaluation.decomposition is None else lines + decomposition_lines(evaluation.decomposition):
        console.print(line, highlight=False, soft_wrap=True)


def _core_cells(row: Any, mark: str) -> list[str]:
    r2, best = _numbers(row, "r2_gene_mean", "r2_gene_mean"), _difference(row, "minus_best") + mark
    floor = [number(row.floor_r2_gene_mean), number(row.explainable_share, digits=2)]
    return [row_name(row), number(row.pooled_r), r2, *floor, number(row.per_gene_r), best]


def _wide_cells(row: Any, mark: str) -> list[str]:
    scores = [number(row.pooled_r), number(row.centred_r), _numbers(row, "r2_gene_mean", "r2_gene_mean")]
    scores += [_numbers(row, "floor_r2_gene_mean", "floor"), number(row.explainable_share, digits=2)]
    scores += [number(row.per_gene_r), number(row.per_cell_r), _difference(row, "minus_best") + mark]
    scores.append(number(row.minus_ridge_r2_gene_mean, digits=4, signed=True))
    return [row_name(row), *scores, *map(number, (row.r2_depth, row.deviance_explained, row.genes_worse_than_mean))]


def _numbers(row: Any, value: str, ends: str, **form: Any) -> str:
    return with_interval(*(getattr(row, name) for name in (value, f"{ends}_low", f"{ends}_high")), **form)


def _difference(row: Any, column: str) -> str:
    return _numbers(row, f"{column}_r2_gene_mean", column, digits=4, signed=True)


def _left_table(evaluation: Evaluation) -> Table:
    """What the best baseline leaves, by strata of genes."""
    title = f"What the best linear baseline ({evaluation.best_baseline}) leaves, by the gene's mean count"
    columns = ("mean count", "entries", "variance / Poisson", "other half tells [95 %]", "simulated")
    table = titled_table(title, *columns, left=("mean count",))
    for row in at(evaluation.left).itertuples():
        high = row.mean_count_high
        span = f"{row.mean_count_low:g} to {high:g}" if is_number(high) else f"{row.mean_count_low:g} or more"
        numbers = [number(row.entries), number(row.variance_over_poisson)]
        gain = _numbers(row, "own_half_gain", "own_half_gain")
        table.add_row(span, *numbers, gain, number(row.own_half_gain_simulated))
    return table


def _calibration_table(evaluation: Evaluation) -> Table:
    """Mean counts that the best baseline expects, and those observed, on validation cells."""
    title = f"Mean counts of validation cells in tenths of the entries, by what the {evaluation.best_baseline} expects"
    table = titled_table(title, "counts", *map(str, range(1, 11)), left=("counts",))
    for name in ("expected", "observed"):
        table.add_row(name, *(number(tenth[name]) for tenth in evaluation.calibration))
    return table


def verdicts(evaluation: Evaluation) -> list[str]:
    """Say in sentences what the rows show: model and linear baselines, the detection set, replicate, labels."""
    models = at(evaluation.table, predictor="model")
    starts, of = evaluation.untrained, len(evaluation.kept_steps)
    lines = [_model_line(row, untrained=starts == of) for row in at(models, context="detected").itertuples()]
    lines += [f"{starts} of the {of} networks are their linear start (step 0)"] if 0 < starts < of else []
    corrected = evaluation.kept_steps.count(0) - starts
    if corrected:
        kept = "the kept model is" if of == 1 else f"{corrected} of the {of} kept models are"
        lines.append(f"{kept} the correction alone: attention did not add to it on validation cells")
    lines += [_difference_line(row, evaluation.table) for row in evaluation.differences]
    for row in at(models, context="visible", rate=1.0).itertuples():
        left = "only the gene is left, so that this has to be 0: it checks the code and is no result"
        if row.known_depth:
            left = "the gene and the total are left: this is what the normaliser alone gives"
        lines.append(
            f"{_where(row)}: the context visible has R² {number(row.r2_gene_mean)}; with every value hidden {left}"
        )
    for row in evaluation.detection_adds:
        gain = with_interval(row["r2_gene_mean"], *row["ci"], digits=4, signed=True)
        lines.append(
            f"{100 * row['rate']:.4g}% hidden, {row['target']} depth: knowing which hidden genes are detected adds R² "
            f"{gain} (value offset ridge less visible offset ridge)"
        )
    return lines + _floor_lines(evaluation) + _replicate_lines(evaluation) + _label_lines(evaluation)


def _where(row: Any) -> str:
    return f"{100 * row.rate:.4g}% hidden, {row.target} depth"


def _model_line(row: Any, *, untrained: bool) -> str:
    """Compare the model with the best linear baseline."""
    if untrained:
        start = "the model of this run is its linear start (step 0), so this says nothing about the network"
        return f"{_where(row)}: {start}"
    best = f"the best linear baseline ({row.minus_best_predictor})"
    found = verdict([row.minus_best_low, row.minus_best_high], MARGIN)
    if found == "no difference":
        return (
            f"{_where(row)}: the model and {best} are the same, within {MARGIN:g} R² ({_difference(row, 'minus_best')})"
        )
    word = {"helps": "above", "hurts": "below"}.get(found, "not distinguishable from")
    return f"{_where(row)}: the model is {word} {best}; R² differs by {_difference(row, 'minus_best')}"


def _difference_line(row: dict[str, Any], table: Any) -> str:
    """Compare the model with the trees, or with what a model with a count loss starts from."""
    where = f"{100 * row['rate']:.4g}% hidden, {row['target']} depth"
    less = with_interval(row["r2_gene_mean"], *row["ci"], digits=4, signed=True)
    if row["other"] != CALIBRATED:
        said = ", which is what attention adds" if row["other"] == CORRECTED else ""
        return f"{where}: R² of the model less that of {row['other']}: {less}{said}"
    (start,) = at(table, predictor=row["other"], rate=row["rate"], target=row["target"]).itertuples()
    return (
        f"{where}: of the difference between the model and the best linear baseline, "
        f"{_difference(start, 'minus_best')} is the model's start ({row['other']}) and {less} is what training added"
    )


def _floor_lines(evaluation: Evaluation) -> list[str]:
    """Say where the noise floor is impossible: more noise than the best row leaves; the truth leaves just the noise."""
    known: Any = evaluation.table[evaluation.table["floor_high"].notna() & (evaluation.table["predictor"] != TRUTH)]
    other = "" if evaluation.options["noise"] == "poisson" else "; see --noise poisson"
    return [
        f"{_where(row)}: this noise floor is above what the best row leaves ({row_name(row)}: R² "
        f"{number(row.r2_gene_mean)}, attainable {number(row.floor_r2_gene_mean)}), so that it is not usable on these "
        f"data{other}"
        for _, rows in known.groupby(["target", "rate"], sort=False)
        for row in rows.nlargest(1, "r2_gene_mean").itertuples()
        if row.floor_r2_gene_mean < row.r2_gene_mean
    ]


def _replicate_lines(evaluation: Evaluation) -> list[str]:
    """Compare the model with the other half of the molecules, and say why that is no ceiling."""
    lines = []
    replicates = at(evaluation.table, predictor="replicate").set_index("rate")["pooled_r"]
    for row in at(evaluation.table, predictor="model", context="detected", target="half").itertuples():
        if is_number(r := replicates[row.rate]) and is_number(row.pooled_r):
            model = _numbers(row, "pooled_r", "pooled_r")
            lines.append(f"{_where(row)}: pooled r of the replicate {number(r)}, of the model {model}")
    if is_number(evaluation.replicate_zero):
        lines.append(
            f"replicate: the other half of the molecules is zero in {evaluation.replicate_zero:.0%} of the scored "
            "entries. It is a comparison and no ceiling: in data simulated from a known Poisson law the gene mean can "
            "beat it too, so that it bounds nothing"
        )
    return lines


def _label_lines(evaluation: Evaluation) -> list[str]:
    if not (evaluation.table["predictor"] == "label + depth").any():
        return []
    return ["label + depth: where labels were assigned from expression, this row is not free of values"]


def left_lines(evaluation: Evaluation) -> list[str]:
    """Say how much of what the best baseline leaves repeats, in genes with few counts and in all."""
    lines = []
    for row in at(evaluation.left).tail(2).itertuples():
        if not is_number(row.own_half_gain):
            continue
        few = (
            f"genes with a mean count below {row.mean_count_high:g}" if is_number(row.mean_count_high) else "all genes"
        )
        low, high = (f"{100 * x:.1f}" if is_number(x) else "-" for x in (row.own_half_gain_low, row.own_half_gain_high))
        simulated = row.own_half_gain_simulated
        noise = f", {number(100 * simulated, digits=1)} % would in pure sampling noise" if is_number(simulated) else ""
        lines.append(
            f"{few}, {row.entries:.0%} of the entries: {100 * row.own_half_gain:.1f} % [{low}, {high}] of what the "
            f"{evaluation.best_baseline} leaves repeats between halves{noise}; its variance is "
            f"{number(row.variance_over_poisson, digits=2)} times that of a Poisson law"
        )
    return lines


def save_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write eval.json, .csv, .png, .svg; left.csv, .png, .svg; calibration.csv; and the decomposition if there is one.

    What an earlier evaluation wrote into the folder and this one does not is removed. Returns the paths.
    """
    if evaluation.predictions != folder / PREDICTIONS and (folder / PREDICTIONS / FACTS).is_file():
        shutil.rmtree(folder / PREDICTIONS)
    for name in DECOMPOSITION_FILES:
        (folder / name).unlink(missing_ok=True)
    paths = save_report(folder, "eval", evaluation.document(), evaluation.table, evaluation_figure(evaluation.table))
    for name, table in (("left", evaluation.left), ("calibration", pd.DataFrame(evaluation.calibration))):
        paths.append(folder / f"{name}.csv")
        with replacing(paths[-1]) as unfinished:
            table.to_csv(unfinished, index=False)
    paths += save_figure(folder, "left", left_figure(evaluation.left, evaluation.best_baseline))
    return paths + ([] if evaluation.decomposition is None else save_decomposition(evaluation.decomposition, folder))
