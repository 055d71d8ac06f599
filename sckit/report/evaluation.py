"""Evaluation results as a table, sentences, files and a figure. Nothing is computed here."""

from pathlib import Path
from typing import Any

from rich.console import Console

from sckit.evaluation.evaluate import Evaluation
from sckit.report.evaluation_figure import evaluation_figure, left_figure, row_name
from sckit.report.files import save_figure, save_report
from sckit.report.text import at, is_number, number, titled_table, with_interval

_WIDE = 160
_CORE = ("predictor", "pooled r", "centred r", "R² [95 %]", "gene r", "cell r", "minus best [95 %]")
_MORE = ("minus ridge [95 %]", "R² depth", "gene r - depth", "deviance", "worse genes")
_LEGEND = (
    "pooled r: correlation over all scored values; centred r: the same less each gene's mean; R²: share of the squared "
    "error of the gene mean that is removed; gene r: median over genes of the correlation across cells; cell r: mean "
    "over cells of the correlation across genes; minus best: R² less that of the best linear baseline."
)
_MORE_LEGEND = (
    " minus ridge: R² less that of the detection ridge; R² depth: against gene mean + depth; deviance: count deviance "
    "explained; worse genes: share predicted worse than by their own mean."
)


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print one table per target and rate, and what they say in words; a narrow console gets the core columns."""
    wide = console.width >= _WIDE
    for target, rate in dict.fromkeys(evaluation.table[["target", "rate"]].itertuples(index=False, name=None)):
        rows = at(evaluation.table, target=target, rate=rate)
        depth = "full depth" if target == "full" else "half of the molecules"
        known = ", exact total known" if rows["known_depth"].any() else ""
        title = f"{rate:.0%} of the values hidden, target at {depth}{known}"
        table = titled_table(title, *_CORE, *(_MORE if wide else ()))
        for row in rows.itertuples():
            core = [number(row.pooled_r), number(row.centred_r), _numbers(row, "r2_gene_mean", "r2_gene_mean")]
            core += [number(row.per_gene_r), number(row.per_cell_r), _difference(row, "minus_best")]
            more = [row.r2_depth, row.per_gene_r_beyond_depth, row.deviance_explained, row.genes_worse_than_mean]
            details = [_difference(row, "minus_ridge"), *map(number, more)] if wide else []
            table.add_row(row_name(row), *core, *details)
        console.print(table)
        console.print()
    console.print(_LEGEND + (_MORE_LEGEND if wide else " More columns are in eval.csv."), style="dim", highlight=False)
    for note in [*evaluation.notes, *verdicts(evaluation)]:
        console.print(note, highlight=False, soft_wrap=True)


def _numbers(row: Any, value: str, ends: str, **form: Any) -> str:
    return with_interval(*(getattr(row, name) for name in (value, f"{ends}_low", f"{ends}_high")), **form)


def _difference(row: Any, column: str) -> str:
    return _numbers(row, f"{column}_r2_gene_mean", column, digits=4, signed=True)


def verdicts(evaluation: Evaluation) -> list[str]:
    """Say in sentences what the rows show: model and linear baselines, contexts, replicate."""
    models = at(evaluation.table, predictor="model")
    lines = []
    for row in at(models, context="detected").itertuples():
        low, high = row.minus_best_low, row.minus_best_high
        word = "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
        best = f"the best linear baseline ({row.minus_best_predictor})"
        where = f"{row.rate:.0%} hidden, {row.target} depth"
        lines.append(f"{where}: the model is {word} {best}; R² differs by {_difference(row, 'minus_best')}")
    # Below a rate of 1 the context "visible" also lacks the linear baselines, so the gap would say more than that.
    for target, rows in at(models, rate=1.0).groupby("target", sort=False):
        r2 = rows.set_index("context")["r2_gene_mean"]
        if {"visible", "detected"} <= set(r2.index):
            gain = f"R² {r2['detected'] - r2['visible']:+.3f}"
            where = f"100% hidden, {target} depth"
            lines.append(f"{where}: information in the detection set (detected - visible): {gain}")
    replicates = at(evaluation.table, predictor="replicate").set_index("rate")["pooled_r"]
    for row in at(models, context="detected", target="half").itertuples():
        if is_number(ceiling := replicates[row.rate]) and is_number(row.pooled_r):
            low, high = row.pooled_r_low, row.pooled_r_high
            place = "above" if low > ceiling else "below" if high < ceiling else "at"
            root = f", its square root {ceiling**0.5:.3f}" if ceiling > 0 else ""
            lines.append(
                f"{row.rate:.0%} hidden: half-depth replicate r {ceiling:.3f}{root}; "
                f"the model's {_numbers(row, 'pooled_r', 'pooled_r')} lies {place} the replicate"
            )
    return lines


def save_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write eval.json, eval.csv, and the figures as eval.png, eval.svg, left.png and left.svg; returns the paths."""
    paths = save_report(folder, "eval", evaluation.document(), evaluation.table, evaluation_figure(evaluation.table))
    return paths + save_figure(folder, "left", left_figure(evaluation.left, evaluation.best_baseline))
