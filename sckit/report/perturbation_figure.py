"""The figure of a perturbation result: predictors, learning curve, revealed shares."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sckit.config.finetune import ARMS
from sckit.report.perturbation_rows import (
    LABELS,
    Row,
    find,
    full_share,
    known,
    predictors,
    resampled,
    share_name,
    shares,
    shown_share,
    subsets,
)  # fmt: skip

if TYPE_CHECKING:
    from sckit.perturbation.summary import Finetuned

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


def draw_finetuned(result: "Finetuned", stem: Path) -> list[Path]:
    """Write the figure as PNG and SVG beside each other; returns the paths."""
    figure = finetuned_figure(result)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def finetuned_figure(result: "Finetuned") -> Any:
    """Headline of every predictor, and over the training share and the revealed share where there are several."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes_shown = [axis for axis in ("train_share", "revealed") if len(shares(result, axis)) > 1]
    count = len(predictors(result))
    height = max(4.4, 1.6 + 0.34 * count)
    figure = Figure(figsize=(6.2 + 5.0 * len(axes_shown), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + len(axes_shown), squeeze=False, width_ratios=[1.2, *[1.0] * len(axes_shown)])[0]
    _draw_predictors(panels[0], result)
    for panel, axis in zip(panels[1:], axes_shown, strict=True):
        _draw_curve(panel, result, axis)
    if axes_shown:
        handles = {}
        for panel in panels[1:]:
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        names = [name for name in [*predictors(result), "ceiling"] if name in handles]
        place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False, "fontsize": 8}
        panels[-1].legend([handles[name] for name in names], names, **place)
    level = " of single cells" if result.level == "cell" else ""
    figure.suptitle(f"{result.task}{level}, {result.split}, {_times(result.seeds, 'seed')}", fontsize=11)
    return figure


def _draw_predictors(axis: Any, result: "Finetuned") -> None:
    """One line a predictor: filled for every perturbation, hollow for those whose effect repeats."""
    names = predictors(result)
    where = {"metric": result.headline, "revealed": shown_share(result), "train_share": full_share(result)}
    for subset in subsets(result):
        whole = subset == "all"
        rows = [find(result.rows, predictor=name, subset=subset, **where) for name in names]
        count = next((row["perturbations"] for row in rows if row), 0)
        label = f"all {count} {resampled(result)}" if whole else f"the {count} whose effect repeats"
        for place, (name, row) in enumerate(zip(names, rows, strict=True)):
            if row is None or not known(row["mean"]):
                continue
            colour = _COLOURS.get(name, "#1f77b4")
            height = place + (-0.13 if whole else 0.13)
            face = colour if whole else "white"
            axis.errorbar(
                row["mean"], height, xerr=_reach([row]), fmt="o", color=colour, mfc=face, ms=5.5, lw=1.4, capsize=2
            )
        axis.plot([], [], "o", color="#444444", mfc="#444444" if whole else "white", ms=5.5, label=label)
        ceiling = _ceiling(result, subset, where["revealed"])
        if ceiling is not None:
            name = "ceiling" if whole else "ceiling of those"
            axis.axvline(ceiling, color=_CEILING, linestyle="-." if whole else ":", lw=1.3, label=name)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.axvline(0, color="#000000", lw=0.6, zorder=0)
    revealed = where["revealed"]
    axis.set_xlabel(_label(result))
    axis.set_title("all training data" + _revealed(revealed), fontsize=10)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    _clean(axis, "x")


def _draw_curve(axis: Any, result: "Finetuned", along: str) -> None:
    """Arms with intervals, closed forms as thin lines, the ceiling as a line; along "train_share" or "revealed"."""
    steps = shares(result, along)
    places = range(len(steps))
    other = {"revealed": shown_share(result)} if along == "train_share" else {"train_share": full_share(result)}
    where = other | {"metric": result.headline, "subset": "all"}
    for name in predictors(result):
        rows = [find(result.rows, predictor=name, **where, **{along: share}) for share in steps]
        at, found = _points(places, rows)
        colour = _COLOURS.get(name, "#1f77b4")
        if name in ARMS and found:
            offset = 0.05 * (ARMS.index(name) - 1.5)
            x, y = [place + offset for place in at], [row["mean"] for row in found]
            width = 2.0 if name == "pretrained" else 1.4
            axis.errorbar(
                x, y, yerr=_reach(found), color=colour, marker="o", ms=4.5, lw=width, capsize=2, label=name, zorder=3
            )
        elif len(found) > 1:
            axis.plot(at, [row["mean"] for row in found], color=colour, lw=1.1, ls="--", label=name)
        elif found and along == "train_share" and name == "mean":
            axis.axhline(found[0]["mean"], color=colour, lw=1.1, ls="--", label=name)
    ceilings = [_ceiling(result, "all", share if along == "revealed" else where["revealed"]) for share in steps]
    if all(known(ceiling) for ceiling in ceilings):
        axis.plot(places, ceilings, color=_CEILING, ls="-.", lw=1.3, label="ceiling")
    axis.set_xticks(places, [share_name(share) for share in steps])
    axis.axhline(0, color="#000000", lw=0.6, zorder=0)
    what = "training data" if along == "train_share" else "genes revealed"
    axis.set(xlabel=f"share of the {what}", ylabel=_label(result))
    axis.set_title(f"all {resampled(result)}" + _revealed(where.get("revealed")), fontsize=10)
    _clean(axis, "both")


def _points(places: range, rows: list[Row | None]) -> tuple[list[int], list[Row]]:
    kept = [(place, row) for place, row in zip(places, rows, strict=True) if row is not None and known(row["mean"])]
    return [place for place, _ in kept], [row for _, row in kept]


def _reach(rows: list[Row]) -> list[list[float]]:
    """How far the intervals reach below and above the means, [2, n]; 0 where an end is unknown."""
    reach = [[0.0] * len(rows), [0.0] * len(rows)]
    for i, row in enumerate(rows):
        for side, sign in ((0, -1), (1, 1)):
            end = row["ci"][side] if row["ci"] else None
            if known(end):
                reach[side][i] = max(0.0, sign * (end - row["mean"]))
    return reach


def _ceiling(result: "Finetuned", subset: str, revealed: Any) -> float | None:
    where = {"subset": subset, "metric": result.headline, "revealed": revealed}
    row = find([row for row in result.ceilings if row["kind"] != "replicates"], **where)
    value = row["mean"] if row else result.ceiling.get(result.headline) if subset == "all" else None
    return value if known(value) else None


def _revealed(share: Any) -> str:
    return "" if share is None else f", {share_name(share)} of the genes revealed"


def _label(result: "Finetuned") -> str:
    return LABELS.get(result.headline, result.headline)


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _clean(axis: Any, grid: str) -> None:
    axis.grid(visible=True, axis=grid, alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
