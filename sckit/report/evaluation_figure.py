"""The figures of an evaluation: scores of every row, and what the best baseline leaves.

One mask rate is drawn as dots, one line per row of the table; several rates as curves. Intervals of scores that are not
paired hide what matters, so the paired difference to the best linear baseline is drawn next to them.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sckit.report.files import clean
from sckit.report.text import at, is_number, share_name

GREY, LIGHT = "#6B6B6B", "#BDBDBD"
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
"""Colours of Okabe and Ito (2008), which colour-blind people tell apart."""

FONT: dict[Any, Any] = {"font.size": 10.5, "axes.labelsize": 10.5, "axes.titlesize": 10.5, "svg.fonttype": "path"}
_WITHIN = 0.05  # rows that lie further from the best baseline are a number at the edge
_LINES = {
    "detection offset ridge": SKY, "visible offset ridge": PURPLE, "value offset ridge": BLUE,
    "count regression": GREEN, "label + depth": ORANGE, "model": VERMILLION,
}  # fmt: skip
"""Rows that a sweep shows in colour; the others are thin and grey."""


def row_name(row: Any) -> str:
    """Return the predictor, and the context where that is not the default one."""
    plain = not isinstance(row.context, str) or row.context == "detected"
    return row.predictor if plain else f"{row.predictor} ({row.context})"


def target_name(target: str) -> str:
    """Say in words which values are predicted."""
    return "values at full depth" if target == "full" else "values of half of the molecules"


def evaluation_figure(table: pd.DataFrame) -> Any:
    """Draw R2 against the gene mean and the paired difference to the best baseline, for every target."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    targets, sweep = list(table["target"].unique()), table["rate"].nunique() > 1
    lines = [len(at(table, target=target)) for target in targets]
    heights = [4.2 if sweep else 1.35 + 0.27 * n for n in lines]
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(8.4, sum(heights) + 0.3), layout="constrained")
        panels = figure.subplots(len(targets), 2, squeeze=False, height_ratios=heights)
        for (left, right), target in zip(panels, targets, strict=True):
            draw = _draw_sweep if sweep else _draw_dots
            draw(left, right, at(table, target=target))
            title = target_name(target)
            if not sweep:
                title += f", {share_name(table['rate'].iloc[0])} hidden"
            left.set_title(title, loc="left")
    return figure


def _draw_dots(left: Any, right: Any, table: Any) -> None:
    """Draw one line per row, the best on top, with its attainable score."""
    replicate = at(table, predictor="replicate")["r2_gene_mean"]
    rows = table[table["predictor"] != "replicate"].sort_values("r2_gene_mean", kind="stable")
    best, heights = _best(rows), np.arange(len(rows))
    away = rows["minus_best_r2_gene_mean"].to_numpy(float)
    for height, row, difference in zip(heights, rows.itertuples(), away, strict=True):
        colour = _colour(row.predictor, best)
        face = "white" if row.context == "visible" else colour
        style = {"fmt": "o", "color": colour, "mfc": face, "ms": 5, "lw": 1.5, "capsize": 0}
        left.errorbar(row.r2_gene_mean, height, xerr=_reach(row, "r2_gene_mean", "r2_gene_mean"), **style)
        if is_number(row.floor_r2_gene_mean):
            left.plot(row.floor_r2_gene_mean, height, "|", color="black", ms=9, mew=1.6)
        if abs(difference) <= _WITHIN:
            right.errorbar(difference, height, xerr=_reach(row, "minus_best_r2_gene_mean", "minus_best"), **style)
    left.plot(
        [], [], "|", color="black", ms=9, mew=1.6, label="attainable: if the predictions were the true expected values"
    )
    ends = _ends(rows[np.abs(away) <= _WITHIN], "minus_best")
    room = 0.08 * (ends[1] - ends[0])
    right.set_xlim(ends[0] - 4 * room * (np.abs(away) > _WITHIN).any() - room, ends[1] + room)
    for height, difference in zip(heights, away, strict=True):
        if abs(difference) > _WITHIN:
            right.annotate(
                f"◂ {difference:.2f}", (0.01, height), xycoords=("axes fraction", "data"),
                va="center", fontsize=8.5, color=GREY,
            )  # fmt: skip
    left.set_yticks(heights, [row_name(row) for row in rows.itertuples()])
    right.set_yticks(heights, [])
    for label, row in zip(left.get_yticklabels(), rows.itertuples(), strict=True):
        label.set_color(_colour(row.predictor, best, text=True))
    for panel in (left, right):
        panel.set_ylim(-0.6, len(rows) - 0.4)
    _mark_replicate(left, replicate, across=True)
    right.axvline(0, color="black", lw=0.7, zorder=0)
    left.set_xlabel("R² against the gene mean")
    right.set_xlabel(f"R² less that of the\n{best}")
    right.locator_params(axis="x", nbins=4)
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.42 / (0.27 * len(rows) + 0.6)), frameon=False, fontsize=9)
    clean(left, "x")
    clean(right, "x")


def _draw_sweep(left: Any, right: Any, table: Any) -> None:
    """Draw the curves of all rows, and the paired differences of those near the best baseline, with their names."""
    rates = np.sort(table["rate"].unique())
    names: list[list[tuple[float, float, str, str]]] = [[], []]
    others: list[tuple[float, float]] = []
    for name, rows in table.groupby([row_name(row) for row in table.itertuples()], sort=False):
        rows = rows.sort_values("rate")
        predictor, visible = rows["predictor"].iloc[0], rows["context"].iloc[0] == "visible"
        if predictor == "replicate":
            continue
        colour = _LINES.get(predictor)
        dashes, face = ("--", "white") if visible else ("-", colour)
        if colour is None:
            left.plot(rows["rate"], rows["r2_gene_mean"], color=LIGHT, lw=1, zorder=1)
            others.append((rows["r2_gene_mean"].iloc[-1], rows["rate"].iloc[-1]))
            continue
        style = {"color": colour, "lw": 1.7, "ls": dashes, "marker": "o", "ms": 4, "mfc": face}
        left.plot(rows["rate"], rows["r2_gene_mean"], zorder=3 if predictor == "model" else 2, **style)
        names[0].append((rows["r2_gene_mean"].iloc[-1], rows["rate"].iloc[-1], str(name), colour))
        near = rows[rows["minus_best_r2_gene_mean"].abs() <= _WITHIN]
        if len(near) and not (predictor == "model" and visible):
            right.plot(near["rate"], near["minus_best_r2_gene_mean"], **style)
            low, high = (near[f"minus_best_{end}"].astype(float) for end in ("low", "high"))
            right.fill_between(near["rate"], low, high, color=colour, alpha=0.18, lw=0)
            names[1].append((near["minus_best_r2_gene_mean"].iloc[-1], near["rate"].iloc[-1], str(name), colour))
    best = _best(table)
    floors = at(table, predictor=best).sort_values("rate")
    if floors["floor_r2_gene_mean"].notna().any():
        left.plot(floors["rate"], floors["floor_r2_gene_mean"].astype(float), ":", color="black", lw=1.4)
        names[0].append((float(floors["floor_r2_gene_mean"].iloc[-1]), rates[-1], "attainable", "black"))
    _mark_replicate(left, at(table, predictor="replicate")["r2_gene_mean"], across=False)
    right.axhline(0, color="black", lw=0.7, zorder=0)
    if others:
        names[0].append((*sorted(others)[min(1, len(others) - 1)], "other rows", GREY))
    for panel, found in zip((left, right), names, strict=True):
        panel.set_xlim(rates[0] - 0.04, rates[-1] + 0.03)
        panel.set_xticks(rates, [f"{rate * 100:.3g}" for rate in rates])
        panel.set_xlabel("% of the values hidden")
        clean(panel)
        _name_at_the_end(panel, found)
    left.set_ylabel("R² against the gene mean")
    right.set_ylabel("R² less that of the best linear baseline")


def _name_at_the_end(panel: Any, found: Iterable[tuple[float, float, str, str]]) -> None:
    """Write the names of curves to the right of the panel, moved apart where they would overlap.

    found: the value and the place of each curve's last point, its name and its colour.
    """
    found = sorted(found)
    low, high = panel.get_ylim()
    gap = 0.062 * (high - low)
    places = np.array([value for value, *_ in found])
    for _ in range(200):
        short = np.maximum(gap - np.diff(places), 0) / 2
        if not (short > 1e-3 * gap).any():
            break
        places[:-1] -= short
        places[1:] += short
    for place, (value, end, name, colour) in zip(places, found, strict=True):
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}
        panel.annotate(
            name, (end, value), (1.06, (place - low) / (high - low)), textcoords="axes fraction", fontsize=9,
            color=colour, va="center", annotation_clip=False, arrowprops=line,
        )  # fmt: skip


def _mark_replicate(panel: Any, found: Any, *, across: bool) -> None:
    """Draw the replicate as a line, or say where it lies when that is far below the rows."""
    value = next(iter(found), None)
    if not is_number(value):
        return
    low, high = panel.get_xlim() if across else panel.get_ylim()
    if value < low - 0.1 * (high - low):
        place = (0.98, 0.02) if across else (0.98, 0.98)
        panel.annotate(
            f"replicate: R² {value:.2f}, off the scale", place, xycoords="axes fraction",
            ha="right", va="bottom" if across else "top", fontsize=8.5, color=GREY,
        )  # fmt: skip
        return
    line = panel.axvline if across else panel.axhline
    line(value, color=PURPLE, ls="-.", lw=1.4, label="replicate: the other half of the molecules")


def _best(rows: Any) -> str:
    """Return the best linear baseline of what rows in the context `detected` know, at the lowest rate."""
    rows = rows[(rows["context"] != "visible") & (rows["rate"] == rows["rate"].min())]
    return str(rows["minus_best_predictor"].iloc[0])


def _colour(predictor: str, best: str, *, text: bool = False) -> str:
    colours = {"model": VERMILLION, best: BLUE, "label + depth": "#8A6100" if text else ORANGE}
    return colours.get(predictor, "#333333" if text else GREY)


def _ends(rows: Any, column: str) -> tuple[float, float]:
    """Return the outermost ends of the intervals, with 0 between them."""
    low, high = (rows[f"{column}_{end}"].astype(float).fillna(0.0) for end in ("low", "high"))
    return min(low.min(), -0.001), max(high.max(), 0.001)


def _reach(row: Any, value: str, ends: str) -> np.ndarray | None:
    """Return how far the interval of a row reaches to both sides, [2, 1]; None where it is unknown."""
    middle, low, high = (getattr(row, name) for name in (value, f"{ends}_low", f"{ends}_high"))
    if not (is_number(low) and is_number(high)):
        return None
    return np.maximum([[middle - low], [high - middle]], 0.0)


def left_figure(left: Any, best: str) -> Any:
    """Draw by strata of genes how much more than Poisson the residuals vary, and how much of that repeats."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = left.iloc[:-2][left["entries"].iloc[:-2] > 0].reset_index(drop=True)
    x = np.arange(len(rows))
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        ratio = rows["variance_over_poisson"].to_numpy(float)
        above.plot(x, ratio, "o-", color=BLUE, lw=1.2, ms=6)
        above.axhline(1, color="black", lw=0.9, ls="--")
        above.annotate("Poisson", (1.01, 1), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        above.set_yscale("log")
        ticks = [tick for tick in (0.5, 1, 2, 3, 5, 10, 20) if 0.7 * min(ratio.min(), 1) < tick < 1.5 * ratio.max()]
        above.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        above.minorticks_off()
        above.set_ylabel("residual variance\nover Poisson variance")
        above.set_title(f"what the {best} leaves", loc="left")
        gain = rows["own_half_gain"].to_numpy(float)
        ends = [rows[f"own_half_gain_{end}"].astype(float).to_numpy() for end in ("low", "high")]
        reach = np.nan_to_num(np.maximum([gain - ends[0], ends[1] - gain], 0.0))
        below.errorbar(x, 100 * gain, yerr=100 * reach, fmt="o", color=VERMILLION, ms=6, lw=1.5, label="real counts")
        drawn = 100 * rows["own_half_gain_simulated"].to_numpy(float)
        below.plot(x, drawn, "o", mfc="white", color=GREY, ms=6, label="pure sampling noise, simulated")
        below.axhline(0, color="black", lw=0.7, zorder=0)
        below.set_ylabel("% of what is left that\nthe gene's other half tells")
        below.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2)
        names = [_stratum(row) + f"\n{100 * row.entries:.0f} %" for row in rows.itertuples()]
        below.set_xticks(x, names)
        below.set_xlabel("mean count of the gene where it is detected, and share of the entries")
        for panel in (above, below):
            panel.set_xlim(-0.5, len(rows) - 0.5)
            clean(panel, "y")
    return figure


def _stratum(row: Any) -> str:
    low, high = row.mean_count_low, row.mean_count_high
    return f"{low:g}-{high:g}" if is_number(high) else f"{low:g} or more"
