"""Evaluation results as a table, sentences, files and a figure. Nothing is computed here."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from sckit.evaluation.evaluate import Evaluation
from sckit.report.files import OUTSIDE, clean, save_report
from sckit.report.text import at, is_number, number, titled_table, with_interval

_COLOURS = {
    "gene mean": "#b0b0b0",
    "gene mean + depth": "#8c8c8c",
    "label + depth": "#c49c94",
    "detection ridge": "#1f77b4",
    "detection + total ridge": "#17becf",
    "value ridge": "#2ca02c",
    "model": "#d62728",
    "replicate": "#9467bd",
}
_STYLES = {"detected": "-", "visible": "--", "shuffled": ":"}
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
            table.add_row(_name(row), *core, *details)
        console.print(table)
        console.print()
    console.print(_LEGEND + (_MORE_LEGEND if wide else " More columns are in eval.csv."), style="dim", highlight=False)
    for note in [*evaluation.notes, *verdicts(evaluation)]:
        console.print(note, highlight=False, soft_wrap=True)


def _name(row: Any) -> str:
    """The predictor, and the context where that is not the default one."""
    plain = not isinstance(row.context, str) or row.context == "detected"
    return row.predictor if plain else f"{row.predictor} ({row.context})"


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
    """Write eval.json, eval.csv, and the figure as eval.png and eval.svg; returns the paths."""
    return save_report(folder, "eval", evaluation.document(), evaluation.table, _sweep(evaluation.table))


def _sweep(table: pd.DataFrame) -> Any:
    """Draw the model, every linear baseline and the replicate, pooled r and R² over the share hidden."""
    from matplotlib.figure import Figure

    targets = table["target"].unique()
    figure = Figure(figsize=(11, 4.2 * len(targets)), layout="constrained")
    axes = figure.subplots(len(targets), 2, squeeze=False)
    for line, target in zip(axes, targets, strict=True):
        for axis, column, title in (
            (line[0], "pooled_r", "pooled Pearson r"),
            (line[1], "r2_gene_mean", "R² against the gene mean"),
        ):
            _draw_panel(axis, at(table, target=target), column)
            depth = "full-depth target" if target == "full" else "half-depth target"
            axis.set(xlabel="share of the values hidden", ylabel=title, title=f"{title}, {depth}")
        handles, labels = line[0].get_legend_handles_labels()  # this panel has the replicate's lines too
        line[1].legend(handles, labels, **OUTSIDE)
    return figure


def _draw_panel(axis: Any, table: pd.DataFrame, column: str) -> None:
    for name, rows in table.groupby([_name(row) for row in table.itertuples()], sort=False):
        rows = rows.sort_values("rate")
        first = rows.iloc[0]
        if first["predictor"] == "replicate":
            _draw_replicate(axis, first[column], column)
            continue
        is_model = first["predictor"] == "model"
        colour, width, marker = (
            _COLOURS.get(first["predictor"], "#555555"),
            2.0 if is_model else 1.3,
            "o" if is_model else ".",
        )
        style = {"linestyle": _STYLES.get(first["context"], "-"), "linewidth": width, "marker": marker, "markersize": 5}
        axis.plot(rows["rate"], rows[column], label=name, color=colour, zorder=3 if is_model else 2, **style)
        low, high = (rows[f"{column}_{end}"].astype(float) for end in ("low", "high"))
        axis.fill_between(rows["rate"], low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set_xlim(0, 1.03)
    clean(axis)


def _draw_replicate(axis: Any, value: float | None, column: str) -> None:
    """The replicate does not depend on what is hidden: a line across the panel, or a remark when it lies far below."""
    if value is None or not is_number(value):
        return
    if column == "r2_gene_mean" and value < -0.25:
        axis.annotate(f"replicate: R² {value:.2f}, far below", (0.02, 0.03), xycoords="axes fraction", fontsize=8)
        return
    axis.axhline(value, color=_COLOURS["replicate"], linestyle="-.", linewidth=1.3, label="replicate")
    if column == "pooled_r" and value > 0:
        axis.axhline(value**0.5, color=_COLOURS["replicate"], linestyle=":", label="square root of the replicate")
