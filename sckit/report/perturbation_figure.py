"""The figure of a perturbation result: predictors, learning curve, revealed shares."""

from typing import Any

import numpy as np
import pandas as pd

from sckit.config.finetune import ARMS
from sckit.metrics import METRICS
from sckit.perturbation.summary import Finetuned
from sckit.report.files import OUTSIDE, clean
from sckit.report.text import at, is_number, revealed_text, share_name

_COLOURS = {
    "no change": "#b0b0b0",
    "mean": "#8c8c8c",
    "additive": "#c49c94",
    "ridge on components": "#1f77b4",
    "ridge revealed to hidden": "#1f77b4",
    "low-rank": "#2ca02c",
    "nearest neighbours": "#17becf",
    "Gaussian conditional": "#bcbd22",
    "pretrained": "#d62728",
    "scratch": "#000000",
    "frozen": "#ff7f0e",
    "shuffled": "#e377c2",
    "start": "#8c564b",
}
_CEILING = "#9467bd"


def finetuned_figure(result: Finetuned) -> Any:
    """Draw the headline of every predictor, and its curve over the shares of data or genes where there are several."""
    from matplotlib.figure import Figure

    curves = [along for along in ("train_share", "revealed") if len(result.shares(along)) > 1]
    height = max(4.4, 1.6 + 0.34 * len(result.predictors))
    figure = Figure(figsize=(6.2 + 5.0 * len(curves), height), layout="constrained")
    panels = figure.subplots(1, 1 + len(curves), squeeze=False, width_ratios=[1.2, *[1.0] * len(curves)])[0]
    _draw_predictors(panels[0], result)
    for panel, along in zip(panels[1:], curves, strict=True):
        _draw_curve(panel, result, along)
    if curves:
        handles = {}
        for panel in panels[1:]:
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        names = [name for name in [*result.predictors, "ceiling"] if name in handles]
        panels[-1].legend([handles[name] for name in names], names, **OUTSIDE)
    seeds = f"{result.seeds} seed{'s' * (result.seeds != 1)}"
    figure.suptitle(f"{result.task}, {result.split.replace('context', 'covariate')}, {seeds}", fontsize=11)
    return figure


def _draw_predictors(axis: Any, result: Finetuned) -> None:
    """One line per predictor: filled for every perturbation, hollow for those whose effect repeats."""
    names, shown = result.predictors, at(result.scores, metric=result.headline, **result.shown)
    for subset in result.subsets:
        whole = subset == "all"
        rows = at(shown, subset=subset)
        count = rows["perturbations"].iloc[0] if len(rows) else 0
        face = None if whole else "white"
        for row in rows[rows["mean"].notna()].itertuples():
            style = {"fmt": "o", "color": _COLOURS[row.predictor], "mfc": face, "ms": 5.5, "lw": 1.4, "capsize": 2}
            height = names.index(row.predictor) + (-0.13 if whole else 0.13)
            axis.errorbar(row.mean, height, xerr=_reach(rows.loc[[row.Index]]), **style)
        label = f"all {count} {result.held_out}" if whole else f"the {count} whose effect repeats"
        axis.plot([], [], "o", color="#444444", mfc="#444444" if whole else "white", ms=5.5, label=label)
        ceiling = _ceiling(result, subset)
        if is_number(ceiling):
            name = "ceiling" if whole else "ceiling of those"
            axis.axvline(ceiling, color=_CEILING, linestyle="-." if whole else ":", lw=1.3, label=name)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.axvline(0, color="#000000", lw=0.6, zorder=0)
    axis.set_xlabel(METRICS[result.headline].label)
    axis.set_title("all training data" + revealed_text(result.shown_share), fontsize=10)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    clean(axis, "x")


def _draw_curve(axis: Any, result: Finetuned, along: str) -> None:
    """Arms with intervals, linear baselines as thin lines, the ceiling as a line; along "train_share" or "revealed"."""
    steps = result.shares(along)
    where = {k: v for k, v in result.shown.items() if k != along}
    scores = at(result.scores, metric=result.headline, subset="all", **where).dropna(subset="mean")
    for name in result.predictors:
        rows = at(scores, predictor=name).sort_values(along)
        places, means, colour = [steps.index(share) for share in rows[along]], list(rows["mean"]), _COLOURS[name]
        if name in ARMS and means:
            x = [place + 0.05 * (ARMS.index(name) - 1.5) for place in places]
            style = {"marker": "o", "ms": 4.5, "lw": 2.0 if name == "pretrained" else 1.4, "capsize": 2}
            axis.errorbar(x, means, yerr=_reach(rows), label=name, zorder=3, color=colour, **style)
        elif len(means) > 1:
            axis.plot(places, means, lw=1.1, ls="--", label=name, color=colour)
        elif means and along == "train_share" and name == "mean":
            axis.axhline(means[0], lw=1.1, ls="--", label=name, color=colour)
    ceiling = _ceiling(result, "all")
    if is_number(ceiling):
        axis.plot(range(len(steps)), [ceiling] * len(steps), color=_CEILING, ls="-.", lw=1.3, label="ceiling")
    axis.set_xticks(range(len(steps)), [share_name(share) for share in steps])
    axis.axhline(0, color="#000000", lw=0.6, zorder=0)
    what = "training data" if along == "train_share" else "genes revealed"
    axis.set(xlabel=f"share of the {what}", ylabel=METRICS[result.headline].label)
    axis.set_title(f"all {result.held_out}" + revealed_text(where.get("revealed")), fontsize=10)
    clean(axis)


def _reach(rows: pd.DataFrame) -> Any:
    """How far the intervals reach below and above the means, [2, n]; 0 where an end is unknown."""
    mean, low, high = (rows[name].astype(float).to_numpy() for name in ("mean", "low", "high"))
    return np.nan_to_num(np.maximum([mean - low, high - mean], 0.0))


def _ceiling(result: Finetuned, subset: str) -> float | None:
    halves = at(result.ceilings, subset=subset, metric=result.headline, kind="half-cells")["mean"]
    return next(iter(halves), None)
