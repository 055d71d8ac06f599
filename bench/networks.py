"""What networks and trees add to the best linear baseline: `python bench/networks.py` reads what is kept and draws it.

It reads `results/folds-DATA-LOSS-known-depth.json` and `results/folds-DATA-LOSS-all-hidden.json`, prints one table in
Markdown and writes `results/networks.png`. Differences in R² are paired; intervals are over cells or over the groups
that were held out.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from sckit.report.evaluation_figure import FONT, GREY, ORANGE, VERMILLION
from sckit.report.files import clean
from sckit.report.text import with_interval

RESULTS = Path(__file__).parent / "results"
DATA = {
    "pbmc_panel": "seven PBMC libraries, each left out in turn",
    "kang_ifnb": "Kang PBMC, random fifths",
    "pbmc3k": "pbmc3k, random fifths",
    "onek1k_blood_1000genes": "OneK1K, donors left out",
    "mca_bladder": "mouse bladder (Microwell-seq), random fifths",
}
SETTINGS = {"all-hidden": "all values hidden", "known-depth": "15 % hidden, total known"}
LOSSES = "squared", "count"
TREES, MODEL = "value offset ridge + trees", "model"


def kept(data: str, loss: str, setting: str) -> dict[str, Any] | None:
    """Return what was kept of the networks of a data set, if it was."""
    path = RESULTS / f"folds-{data}-{loss}-{setting}.json"
    return json.loads(path.read_text()) if path.exists() else None


def row_of(result: dict[str, Any], predictor: str) -> dict[str, Any]:
    """Return the row of a predictor in the context `detected`."""
    return next(
        row
        for row in result["evaluation"]["rows"]
        if row["predictor"] == predictor and row["context"] in (None, "detected")
    )


def found(data: str, setting: str) -> dict[str, Any]:
    """Return the best baseline, what each adds to it, and the networks less trees: differences with low and high."""
    results = {loss: result for loss in LOSSES if (result := kept(data, loss, setting))}
    facts: dict[str, Any] = {}
    for loss, result in results.items():
        best = row_of(result, MODEL)["minus_best"]
        facts["best"] = best["predictor"], row_of(result, best["predictor"])["r2_gene_mean"]
        facts |= {"trees": difference(row_of(result, TREES)["minus_best"]), loss: difference(best)}
        less = next(row for row in result["evaluation"]["differences"] if row["other"] == TREES)
        facts |= {f"{loss} less trees": difference(less), f"{loss} hours": hours(result["training"])}
    return facts


def hours(networks: list[dict[str, Any]]) -> float:
    """Return what it took to train them: the median is taken for each, because some had to wait for other work."""
    return len(networks) * statistics.median(network["wall_s"] for network in networks) / 3600


def difference(row: dict[str, Any]) -> tuple[float, float, float]:
    """Return a difference in R² and its interval."""
    return (row["r2_gene_mean"], *row["ci"])


def table() -> str:
    """Return the table in Markdown."""
    names = {
        "trees": "trees", "squared": "network", "count": "network, count loss",
        "squared less trees": "network less trees", "count less trees": "count network less trees",
    }  # fmt: skip
    everything = [found(data, setting) for data in DATA for setting in SETTINGS]
    columns = [column for column in names if any(column in facts for facts in everything)]
    lines = [
        f"| data | hidden | best linear baseline | {' | '.join(names[c] for c in columns)} |",
        "|" + "---|" * (3 + len(columns)),
    ]
    for data, name in DATA.items():
        for setting, hidden in SETTINGS.items():
            if facts := found(data, setting):
                best = "{}: {:.3f}".format(*facts["best"])
                less = [with_interval(*facts[one], digits=4, signed=True) if one in facts else "" for one in columns]
                cells = [name, hidden, best, *less]
                lines.append(f"| {' | '.join(cells)} |")
    spent = {loss: [found(data, "all-hidden").get(f"{loss} hours", 0.0) for data in DATA] for loss in LOSSES}
    each = (f"{loss} loss {sum(of):.1f} hours" for loss, of in spent.items() if any(of))
    return "\n".join([*lines, "", f"Training: {', '.join(each)} of one core."])


def draw(path: Path) -> None:
    """Draw what each adds to the best linear baseline, one panel for each setting."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(FONT):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        panels = figure.subplots(1, len(SETTINGS), sharey=True)
        there = {data: name for data, name in DATA.items() if found(data, "all-hidden")}
        for panel, (setting, hidden) in zip(panels, SETTINGS.items(), strict=True):
            of_data = [found(data, setting) for data in there]
            for place, (name, colour, marker) in enumerate(
                [("trees", GREY, "s"), ("squared", VERMILLION, "o"), ("count", ORANGE, "o")]
            ):
                label = {"trees": "trees", "squared": "network", "count": "network, count loss"}[name]
                rows = [(-i - 0.22 * (place - 1), *facts[name]) for i, facts in enumerate(of_data) if name in facts]
                for height, value, low, high in rows:
                    panel.plot([low, high], [height, height], color=colour, lw=1.6)
                    panel.plot(value, height, marker, color=colour, ms=5)
                if rows:
                    panel.plot([], [], marker, color=colour, ms=5, label=label)
            panel.axvline(0, color="black", lw=0.7, zorder=0)
            panel.set_yticks([-i for i in range(len(there))], [name.replace(", ", "\n", 1) for name in there.values()])
            panel.locator_params(axis="x", nbins=4)
            panel.set_ylim(0.5 - len(there), 0.6)
            panel.set_title(hidden, loc="left")
            panel.set_xlabel("R² less that of the best linear baseline")
            clean(panel, "x")
        panels[0].legend(frameon=False, loc="lower right", fontsize=9)
        figure.savefig(path, dpi=160)


if __name__ == "__main__":
    print(table())
    draw(RESULTS / "networks.png")
