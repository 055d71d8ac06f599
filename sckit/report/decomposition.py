"""The decomposition of an evaluation as tables, sentences, files and a stacked bar. Nothing is computed here."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from sckit.evaluation.decomposition import REST, STEP, Decomposed
from sckit.files import replacing
from sckit.report.evaluation_figure import BLUE, FONT, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from sckit.report.files import save_report
from sckit.report.text import at, number, share_name, titled_table, with_interval

DECOMPOSITION_FILES = (*(f"decomposition.{kind}" for kind in ("json", "csv", "png", "svg")), "genes.csv")
"""What `save_decomposition` writes."""

_COLOURS = {
    "normaliser": "#000000", "depth": "#6B6B6B", "label": ORANGE, "detection": SKY, "visible values": BLUE,
    "group offsets": GREEN, "network": VERMILLION, REST[0]: PURPLE, REST[1]: "#E3E3E3",
}  # fmt: skip
_ON_DARK = {"normaliser", "depth", "visible values", "group offsets", "network"}
_SHORT = {"visible values": "values", "group offsets": "group", REST[0]: "unexplained", REST[1]: "noise"}
_LEAST_WRITTEN = 0.045
_GENES = 10
_GENES_LEGEND = (
    "R² without: R² of the gene without visible values (detection + total offset ridge); gain: what the value offset "
    "ridge adds to it; of all: the gain as a share of the squared error of all genes, the largest first; z: gain over "
    "its standard error; from: the genes whose values move the prediction most, with their shares"
)


def decomposition_tables(found: Decomposed) -> list[Table]:
    """Return the parts with their intervals, the parts of R2 by strata, and the genes that gain most from values."""
    title = f"Parts of R² and of deviance, {share_name(found.rate)} hidden, total {found.total}"
    tables = [titled_table(title, "step", "R² [95 %]", "deviance [95 %]", left=("step",))]
    for row in at(found.table, kind="all").itertuples():
        r2 = with_interval(row.r2, row.r2_low, row.r2_high)
        tables[0].add_row(row.step, r2, with_interval(row.deviance, row.deviance_low, row.deviance_high))
    steps: list[str] = list(dict.fromkeys(found.table["step"]))
    title = "Parts of R² by the gene's mean count and by the depth of the cell"
    tables.append(titled_table(title, "part", "entries", *(_SHORT.get(step, step) for step in steps), left=("part",)))
    for kind, part in bars_of(found.table):
        rows = at(found.table, kind=kind, part=part)
        values = rows.set_index("step")["r2"]
        name = f"{kind} {part}" if kind == "mean count" else part
        entries = f"{100 * rows['entries'].iloc[0]:.0f} %"
        tables[1].add_row(name, entries, *(number(values[step]) for step in steps))
    if len(found.genes):
        title = "Genes whose visible values in the same cell remove the most squared error"
        columns = ("gene", "mean count", "R² without", "gain", "of all", "z", "from")
        tables.append(titled_table(title, *columns, left=("gene", "from")))
        tables[2].caption, tables[2].caption_justify = _GENES_LEGEND, "left"
        for row in found.genes.head(_GENES).to_dict("records"):
            sources = [f"{row[f'source_{i}']} {row[f'share_{i}']:.0%}" for i in (1, 2, 3) if f"source_{i}" in row]
            numbers = [number(row["mean_count"]), number(row["r2_without_values"])]
            numbers += [
                number(row["gain"], signed=True),
                f"{number(100 * row['of_all'], digits=2)} %",
                number(row["z"], digits=1),
            ]
            tables[2].add_row(row["gene"], *numbers, ", ".join(sources))
    return tables


def bars_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return kind and name of what is decomposed: all entries, strata of genes, thirds of the cells."""
    return list(dict.fromkeys(zip(table["kind"], table["part"], strict=True)))


def decomposition_lines(found: Decomposed) -> list[str]:
    """Say how the parts are to be read."""
    floor = found.floor_of.removeprefix(STEP).removesuffix("/detected")
    lines = [
        "decomposition: a part is what a step adds to the steps above it, so that what two steps both know goes to the "
        f"first; {REST[0]} and {REST[1]} rest on the noise floor of the row '{floor}'; all parts add up to 1",
        "decomposition: the deviance of the gene mean already takes the total as given, so that normaliser and depth "
        "are to be read together there",
    ]
    if found.label is not None:
        lines.append(f"decomposition: labels of {found.label} may come from expression, and then hold values")
    if found.total.startswith("guessed"):
        lines.append(
            "decomposition: the total is unknown and guessed from the detected genes, so that the normaliser holds "
            "some of what the detection set tells"
        )
    if gains := found.gains:
        first = gains["share_of_the_gain_in_the_first_twentieth"]
        lines.append(
            f"values: {gains['gain']:.0%} of the {gains['genes']:,.0f} genes with 20 scored entries gain from visible "
            f"values, {gains['clear_gain']:.0%} by more than 1.96 standard errors and {gains['clear_loss']:.0%} lose "
            f"as much (chance: 2.5 % each); a twentieth of the genes has {first:.0%} of the gain"
        )
    return lines


def save_decomposition(found: Decomposed, folder: Path) -> list[Path]:
    """Write decomposition.json, .csv, .png, .svg, and genes.csv; returns the paths."""
    paths = save_report(folder, "decomposition", found.document(), found.table, decomposition_figure(found.table))
    with replacing(folder / "genes.csv") as unfinished:
        found.genes.to_csv(unfinished, index=False)
    return [*paths, folder / "genes.csv"]


def decomposition_figure(table: pd.DataFrame) -> Any:
    """Draw the parts of R2 as stacked bars: all entries, strata of genes, thirds of cells; negative ones leftwards."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    bars = bars_of(table)
    steps: list[str] = list(dict.fromkeys(table["step"]))
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(7.6, 1.7 + 0.38 * len(bars)), layout="constrained")
        axis = figure.subplots()
        heights, height, before = [], 0.0, None
        for kind, part in bars:
            height -= 0 if before is None else 1.0 if kind == before else 1.55
            heights.append(height)
            values = at(table, kind=kind, part=part).set_index("step")["r2"].astype(float)
            _draw_bar(axis, values, steps, height)
            before = kind
        for step in steps:
            axis.barh([0], [0], color=_COLOURS.get(step, "#999999"), label=step)
        names = {"all": "all entries", "mean count": "{} counts", "depth": "{}"}
        axis.set_yticks(heights, [names[kind].format(part) for kind, part in bars])
        axis.axvline(0, color="black", lw=0.8)
        low = min(0.0, *(sum(min(x, 0) for x in rows["r2"]) for _, rows in table.groupby(["kind", "part"])))
        axis.set_xlim(low - 0.02 * (low < 0), max(1.0, 1.0 - low) + 0.01)
        axis.set_xlabel("part of the squared error about the gene mean")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper center", ncols=min(4, len(steps)), frameon=False, fontsize=9.5)
    return figure


def _draw_bar(axis: Any, values: pd.Series, steps: list[str], height: float) -> None:
    """Stack positive parts to the right of zero and negative ones to its left, with percentages where there is room."""
    ends = np.zeros(2)
    for step in steps:
        value, side = values[step], int(values[step] < 0)
        colour = _COLOURS.get(step, "#999999")
        axis.barh(height, value, left=ends[side], height=0.82, color=colour, edgecolor="white", lw=0.6)
        if abs(value) >= _LEAST_WRITTEN:
            ink = "white" if step in _ON_DARK else "black"
            text = f"{100 * value:.0f}"
            axis.text(ends[side] + value / 2, height, text, ha="center", va="center", fontsize=8.5, color=ink)
        ends[side] += value
