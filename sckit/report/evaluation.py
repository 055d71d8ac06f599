"""Numbers to tables, CSV and figures. Nothing is computed here."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sckit.evaluation.evaluate import Evaluation

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
_WIDE = 160
_CORE = ("predictor", "pooled r", "centred r", "R² [95 %]", "gene r", "cell r", "minus best [95 %]")
_MORE = ("minus ridge [95 %]", "R² depth", "gene r - depth", "deviance", "worse genes")
_LEGEND = (
    "R²: against the gene mean (R² depth: against gene mean + depth); gene r: median over genes of the correlation "
    "across cells; minus best: R² less that of the best closed form; deviance: count deviance explained; "
    "worse genes: share predicted worse than by their own mean."
)
_STYLES = {"detected": "-", "visible": "--", "shuffled": ":"}


def row_name(row: dict[str, Any]) -> str:
    """The predictor, and the context where that is not the default one."""
    return row["predictor"] if row["context"] in (None, "detected") else f"{row['predictor']} ({row['context']})"


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The table, one block a target and rate, and what it says in words; a narrow console gets the core columns."""
    wide = console.width >= _WIDE
    paired = list(zip(evaluation.rows, evaluation.extras, strict=True))
    for target, rate in dict.fromkeys((row["target"], row["rate"]) for row in evaluation.rows):
        depth = "full depth" if target == "full" else "half of the molecules"
        known = ", exact total known" if evaluation.rows[0]["known_depth"] else ""
        title = f"{rate:.0%} of the values hidden, target at {depth}{known}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        for name in (*_CORE, *(_MORE if wide else ())):
            table.add_column(name, justify="left" if name == "predictor" else "right", no_wrap=True)
        for row, extra in paired:
            if (row["target"], row["rate"]) == (target, rate):
                table.add_row(*_core_cells(row), *(_more_cells(row, extra) if wide else ()))
        console.print(table)
        console.print()
    console.print(_LEGEND + ("" if wide else " More columns in eval.csv."), style="dim", highlight=False)
    for note in [*evaluation.notes, *verdicts(evaluation)]:
        console.print(note, highlight=False)


def verdicts(evaluation: Evaluation) -> list[str]:
    """What the rows say, as sentences: model against closed forms, contexts, replicate."""
    lines = []
    for row in (r for r in evaluation.rows if row_name(r) == "model"):
        where = f"{row['rate']:.0%} hidden, {row['target']} depth"
        best = row["minus_best"]
        lines.append(
            f"{where}: the model is {_compare(best['ci'])} the best closed form ({best['predictor']}), "
            f"R² {best['r2_gene_mean']:+.4f} [{best['ci'][0]:+.4f}, {best['ci'][1]:+.4f}]"
        )
    return lines + _information(evaluation.rows) + _ceiling(evaluation.rows)


def _information(rows: list[dict[str, Any]]) -> list[str]:
    """Detected minus visible (or shuffled) at the same rate."""
    model = {(r["target"], r["rate"], r["context"]): r["r2_gene_mean"] for r in rows if r["predictor"] == "model"}
    lines = []
    for (target, rate, context), r2 in model.items():
        # Below 1.0 the visible context also lacks the closed forms, so the gap would say more than that.
        if context == "visible" and rate == 1.0 and (target, rate, "detected") in model:
            gain = model[target, rate, "detected"] - r2
            text = f"information in the detection set (detected - visible): R² {gain:+.3f}"
            lines.append(f"{rate:.0%} hidden, {target} depth: {text}")
    return lines


def _ceiling(rows: list[dict[str, Any]]) -> list[str]:
    """The model on the half-depth target beside the other half of the same cell."""
    lines = []
    replicate = {r["rate"]: r for r in rows if r["predictor"] == "replicate"}
    for row in (r for r in rows if row_name(r) == "model" and r["target"] == "half"):
        ceiling = replicate[row["rate"]]["pooled_r"]
        if ceiling is None or row["pooled_r"] is None:
            continue
        low, high = row["ci"]["pooled_r"]
        place = "above" if low > ceiling else "below" if high < ceiling else "at"
        root = f", its square root {ceiling**0.5:.3f}" if ceiling > 0 else ""
        lines.append(
            f"{row['rate']:.0%} hidden: half-depth replicate r {ceiling:.3f}{root}; "
            f"the model's {row['pooled_r']:.3f} [{low:.3f}, {high:.3f}] lies {place} the replicate"
        )
    return lines


def save_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write eval.json, eval.csv, and the figure as eval.png and eval.svg; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(evaluation.document(), indent=1, allow_nan=False))
    _write_csv(evaluation, folder / "eval.csv")
    figures = draw_sweep(evaluation, folder / "eval")
    return [folder / "eval.json", folder / "eval.csv", *figures]


def draw_sweep(evaluation: Evaluation, stem: Path) -> list[Path]:
    """Share hidden on x, pooled r and R² on y: the model, every closed form, and the replicate lines; PNG and SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(row["target"] for row in evaluation.rows))
    figure = Figure(figsize=(11, 4.2 * len(targets)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(targets), 2, squeeze=False)
    for line, target in zip(axes, targets, strict=True):
        rows = [row for row in evaluation.rows if row["target"] == target]
        for axis, column, title in (
            (line[0], "pooled_r", "pooled Pearson r"),
            (line[1], "r2_gene_mean", "R² against the gene mean"),
        ):
            _draw_panel(axis, rows, column)
            depth = "full-depth target" if target == "full" else "half-depth target"
            axis.set(xlabel="share of the values hidden", ylabel=title, title=f"{title}, {depth}")
        handles, labels = line[0].get_legend_handles_labels()  # this panel has the replicate's lines too
        line[1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def _draw_panel(axis: Any, rows: list[dict[str, Any]], column: str) -> None:
    for name in dict.fromkeys(row_name(row) for row in rows):
        points = sorted((row for row in rows if row_name(row) == name), key=lambda row: row["rate"])
        if points[0]["predictor"] == "replicate":
            _draw_replicate(axis, points[0][column], column)
            continue
        x = [row["rate"] for row in points]
        y = [float("nan") if row[column] is None else row[column] for row in points]
        is_model = points[0]["predictor"] == "model"
        style = {"color": _COLOURS[points[0]["predictor"]], "linestyle": _STYLES[points[0]["context"] or "detected"]}
        style |= {"marker": "o" if is_model else ".", "linewidth": 2.0 if is_model else 1.3, "markersize": 5}
        axis.plot(x, y, label=name, zorder=3 if is_model else 2, **style)
        low, high = zip(*(row["ci"][column] for row in points), strict=True)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axis.set_xlim(0, 1.03)
    axis.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_replicate(axis: Any, value: float | None, column: str) -> None:
    """The replicate does not depend on what is hidden: a line across the panel, or a remark when it lies far below."""
    if value is None:
        return
    if column == "r2_gene_mean" and value < -0.25:
        axis.annotate(f"replicate: R² {value:.2f}, far below", (0.02, 0.03), xycoords="axes fraction", fontsize=8)
        return
    axis.axhline(value, color=_COLOURS["replicate"], linestyle="-.", linewidth=1.3, label="replicate")
    if column == "pooled_r" and value > 0:
        axis.axhline(value**0.5, color=_COLOURS["replicate"], linestyle=":", label="square root of the replicate")


def _core_cells(row: dict[str, Any]) -> list[str]:
    low, high = row["ci"]["r2_gene_mean"]
    scores = [_number(row[name]) for name in ("pooled_r", "centred_r")]
    r2 = f"{_number(row['r2_gene_mean'])} [{low:.3f}, {high:.3f}]"
    return [row_name(row), *scores, r2, _number(row["per_gene_r"]), _number(row["per_cell_r"]), _gap(row["minus_best"])]


def _more_cells(row: dict[str, Any], extra: dict[str, Any]) -> list[str]:
    more = [extra["per_gene_r_beyond_depth"], extra["deviance_explained"], extra["genes_worse_than_mean"]]
    return [_gap(row["minus_ridge"]), _number(row["r2_depth"]), *map(_number, more)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _gap(gap: dict[str, Any]) -> str:
    return f"{gap['r2_gene_mean']:+.4f} [{gap['ci'][0]:+.4f}, {gap['ci'][1]:+.4f}]"


def _compare(interval: list[float]) -> str:
    return "above" if interval[0] > 0 else "below" if interval[1] < 0 else "not distinguishable from"


def _write_csv(evaluation: Evaluation, path: Path) -> None:
    flat = []
    for row, extra in zip(evaluation.rows, evaluation.extras, strict=True):
        line = {k: v for k, v in row.items() if not isinstance(v, dict)} | extra
        line |= {f"{k}_{end}": v[i] for k, v in row["ci"].items() for i, end in enumerate(("low", "high"))}
        for gap in ("minus_ridge", "minus_best"):
            line |= {f"{gap}_{k}": v for k, v in row[gap].items() if k != "ci"}
            line |= {f"{gap}_{end}": row[gap]["ci"][i] for i, end in enumerate(("low", "high"))}
        flat.append(line)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
