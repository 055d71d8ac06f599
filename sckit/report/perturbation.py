"""Perturbation results to tables, sentences, CSV and JSON. Nothing is computed here."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sckit.config.finetune import ARMS
from sckit.files import to_json
from sckit.report.perturbation_cells import dead_line, print_cells
from sckit.report.perturbation_rows import (
    LABELS,
    Row,
    find,
    full_share,
    known,
    metrics,
    predictors,
    resampled,
    share_name,
    shares,
    shown_share,
    subsets,
    titled_table,
    with_interval,
)  # fmt: skip

if TYPE_CHECKING:
    from sckit.perturbation.summary import Finetuned

_WIDE = 190
_BETTER = {"helps": "better", "hurts": "worse"}
_LEGEND = (
    "Δ: profile less that of the control cells. Δ r perturbed: correlation over genes with the truth, both less the "
    "mean of the training perturbations and its direction, so that what all share scores 0; Δ r: the same against "
    "control; weighted R²: over genes weighted by their effect, 0 for that mean; discrim.: share of the other "
    "perturbations that are farther from the prediction than the right one (0.5 by chance); slope: size of the "
    "predicted effect (1 is right); DE overlap: of the top differential genes; gap closed: share of the way from the "
    "best of no change, mean and additive to the ceiling from halves, of Δ r perturbed."
)


def print_finetuned(result: "Finetuned", console: Console) -> None:
    """Score tables, learning curve, revealed shares, paired differences, notes; the verdict is the last line.

    A console narrower than 190 columns gets intervals of the headline only; all are in finetune.csv.
    """
    for subset in subsets(result):
        console.print(_scores(result, subset, wide=console.width >= _WIDE))
        console.print()
    for table in (_curve(result, "train_share", console.width), _curve(result, "revealed", console.width)):
        if table is not None:
            console.print(table)
            console.print()
    if result.paired:
        console.print(_differences(result))
        console.print()
    more = "" if console.width >= _WIDE else " Intervals of all columns are in finetune.csv."
    console.print(_LEGEND + more, style="dim", highlight=False)
    for line in [*dead_line(result.cells), *result.notes, *verdict_lines(result)]:
        console.print(line, highlight=False, soft_wrap=True)


def verdict_lines(result: "Finetuned") -> list[str]:
    """Sentences on the headline with all training data: pretrained against closed forms, then against scratch.

    The last sentence is the main one: every perturbation, the revealed share of the full table.
    """
    pairs = [p for p in result.paired if p["metric"] == result.headline and p["train_share"] == full_share(result)]
    shown = shown_share(result)
    main = [p for p in pairs if (p["a"], p["b"]) == ("pretrained", "scratch")]
    main = [p for p in main if p["revealed"] == shown or p["subset"] == "all"]
    main.sort(key=lambda p: (p["revealed"] == shown, p["subset"] == "all"))
    closed = [p for p in pairs if p["a"] == "pretrained" and p["b"] not in ARMS and p["revealed"] == shown]
    lines = [_sentence(result, pair) for pair in [*closed, *main]]
    return lines or ["no verdict: only the arms pretrained and scratch together give one."]


def _sentence(result: "Finetuned", pair: Row) -> str:
    word = str(pair["verdict"])
    word = word if pair["b"] in ARMS else _BETTER.get(word, word)
    within = {"no difference": f" within ±{result.margin:g}", "undecided": f" (margin ±{result.margin:g})"}
    row = find(
        result.rows, predictor=pair["a"], **{k: pair[k] for k in ("metric", "revealed", "train_share", "subset")}
    )
    which = resampled(result) + ("" if pair["subset"] == "all" else " whose effect repeats")
    few = f"{row['perturbations']} {which}, " if row else f"{which}, "
    seeds = f"{result.seeds} seed{'s' * (result.seeds != 1)}"
    where = _where(result, pair["revealed"])
    score = f"{result.headline} {with_interval(pair['diff'], pair['ci'], signed=True)}"
    # A correlation with a constant counts as exactly 0, so both arms say what the mean of the training says.
    silent = "; neither says more than the mean of the training perturbations" if _silent(result, pair) else ""
    return f"{pair['a']} against {pair['b']}, {where}: {word}{within.get(word, '')} ({score}, {few}{seeds}){silent}"


def _silent(result: "Finetuned", pair: Row) -> bool:
    where = {k: pair[k] for k in ("revealed", "train_share", "subset")} | {"metric": "delta_r_perturbed"}
    rows = [find(result.rows, predictor=pair[side], **where) for side in ("a", "b")]
    return all(row is not None and row["mean"] == 0 and row["ci"] == [0, 0] for row in rows)


def _where(result: "Finetuned", revealed: Any) -> str:
    level = " of single cells" if result.level == "cell" else ""
    return f"{result.task}{level}, {result.split}{'' if revealed is None else _revealed(revealed)}"


def _revealed(share: Any) -> str:
    return f", {share_name(share)} of the genes revealed"


def _scores(result: "Finetuned", subset: str, *, wide: bool) -> Table:
    revealed, full = shown_share(result), full_share(result)
    table = titled_table(f"{_where(result, revealed)}\n{_block(result, subset)}")
    names = metrics(result)
    table.add_column("predictor", no_wrap=True)
    for metric in names:
        interval = " [95 %]" if wide or metric == result.headline else ""
        table.add_column(LABELS.get(metric, metric) + interval, justify="right", no_wrap=True)
        if metric == result.headline:
            table.add_column("gap closed", justify="right", no_wrap=True)

    def add(label: str, found: dict[str, Row | None], gap: Row | None) -> None:
        cells = []
        for metric in names:
            row = found[metric]
            interval = row["ci"] if row and (wide or metric == result.headline) else None
            cells.append(with_interval(row["mean"] if row else None, interval))
            if metric == result.headline:
                share = gap["share"] if gap else None
                cells.append(f"{share:.0%}" if known(share) else "-")
        table.add_row(label, *cells)

    for name in predictors(result):
        where = {"predictor": name, "revealed": revealed, "train_share": full, "subset": subset}
        found = {metric: find(result.rows, **where, metric=metric) for metric in names}
        add(name, found, find(result.gap, **where, metric=result.headline))
    table.add_section()
    for kind in dict.fromkeys(row["kind"] for row in result.ceilings):
        where = {"kind": kind, "subset": subset, "revealed": revealed}
        found = {metric: find(result.ceilings, **where, metric=metric) for metric in names}
        if any(found.values()):
            add(f"ceiling: {kind}", found, None)
    return table


def _block(result: "Finetuned", subset: str) -> str:
    """What the rows of a subset are a mean over, with its number of perturbations."""
    of = {"metric": result.headline, "revealed": shown_share(result), "train_share": full_share(result)}
    counted = {name: find(result.rows, subset=name, **of) for name in ("all", "repeating")}
    count = {name: row["perturbations"] for name, row in counted.items() if row}
    units = resampled(result)
    if subset != "all":
        return f"the {count.get(subset, 0)} {units} whose effect repeats"
    dead = count.get("all", 0) - count.get("repeating", count.get("all", 0))
    without = f", {dead} of them without an effect that repeats" if dead else ""
    judged = [row["repeats"] for row in result.cells if row["repeats"] is not None]
    without = ", none of them with an effect that repeats" if judged and not any(judged) else without
    return f"all {count.get('all', 0)} {units}{without}"


def _curve(result: "Finetuned", axis: str, width: int) -> Table | None:
    """The headline over "train_share" or "revealed", and pretrained - scratch; None where there is one share only."""
    steps = shares(result, axis)
    if len(steps) < 2:
        return None
    other = {"revealed": shown_share(result)} if axis == "train_share" else {"train_share": full_share(result)}
    where = other | {"metric": result.headline, "subset": "all"}
    of = "training data" if axis == "train_share" else "genes revealed"
    fixed = "" if axis == "revealed" or where["revealed"] is None else _revealed(where["revealed"])
    label = LABELS.get(result.headline, result.headline)
    table = titled_table(f"{label} by the share of the {of}\nall {resampled(result)}{fixed}")
    table.add_column("predictor", no_wrap=True)
    for share in steps:
        table.add_column(share_name(share), justify="right", no_wrap=True)
    roomy = 27 + 26 * len(steps) <= width
    for name in predictors(result):
        found = [find(result.rows, predictor=name, **where, **{axis: share}) for share in steps]
        if sum(row is not None for row in found) > 1:
            cells = [with_interval(row["mean"], row["ci"] if roomy else None) if row else "-" for row in found]
            table.add_row(name, *cells)
    pairs = [find(result.paired, a="pretrained", b="scratch", **where, **{axis: share}) for share in steps]
    if any(pairs):
        table.add_section()
        ends = [with_interval(p["diff"], p["ci"] if roomy else None, signed=True) if p else "-" for p in pairs]
        table.add_row("pretrained - scratch", *ends)
    return table


def _differences(result: "Finetuned") -> Table:
    revealed, full = shown_share(result), full_share(result)
    label = LABELS.get(result.headline, result.headline)
    table = titled_table(f"paired differences of {label}, margin ±{result.margin:g}")
    table.add_column("", no_wrap=True)
    for subset in subsets(result):
        table.add_column("all [95 %]" if subset == "all" else f"{subset} [95 %]", justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
    pairs = dict.fromkeys((pair["a"], pair["b"]) for pair in result.paired)
    for a, b in sorted(pairs, key=lambda pair: (pair[1] not in ARMS, ARMS.index(pair[0]))):
        where = {"a": a, "b": b, "revealed": revealed, "train_share": full, "metric": result.headline}
        found = [find(result.paired, **where, subset=subset) for subset in subsets(result)]
        if any(found):
            words = _BETTER if b not in ARMS else {}
            cells = [
                (with_interval(p["diff"], p["ci"], signed=True), words.get(p["verdict"], p["verdict"]))
                if p
                else ("-", "")
                for p in found
            ]
            table.add_row(f"{a} - {b}", *(text for pair in cells for text in pair))
    return table


def save_finetuned(result: "Finetuned", folder: Path) -> list[Path]:
    """Write finetune.json, finetune.csv, and the figure as finetune.png and finetune.svg; returns the paths."""
    from sckit.report.perturbation_figure import draw_finetuned

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "finetune.json").write_text(json.dumps(to_json(result.document()), indent=1, allow_nan=False))
    _write_csv(result, folder / "finetune.csv")
    figures = draw_finetuned(result, folder / "finetune")
    return [folder / "finetune.json", folder / "finetune.csv", *figures]


def _write_csv(result: "Finetuned", path: Path) -> None:
    """One tidy table: scores with the share of the gap closed, ceilings, paired differences with their verdict."""
    keys = ("revealed", "train_share", "metric", "subset")
    lines = []
    for row in result.rows:
        gap = find(result.gap, predictor=row["predictor"], **{k: row[k] for k in keys}) or {}
        line = {"kind": "score", "predictor": row["predictor"], **{k: row[k] for k in keys}, "mean": row["mean"]}
        line |= _ends(row["ci"]) | {"perturbations": row["perturbations"]}
        lines.append(line | {"gap_closed": gap.get("share"), "gap_baseline": gap.get("baseline")})
    for row in result.ceilings:
        line = {"kind": "ceiling", "predictor": row["kind"], "metric": row["metric"], "subset": row["subset"]}
        lines.append(line | {"revealed": row.get("revealed"), "mean": row["mean"]} | _ends(row["ci"]))
    for row in result.paired:
        line = {"kind": "difference", "predictor": f"{row['a']} - {row['b']}", **{k: row[k] for k in keys}}
        lines.append(line | {"mean": row["diff"], **_ends(row["ci"]), "verdict": row["verdict"]})
    names = ("kind", "predictor", *keys, "mean", "ci_low", "ci_high", "perturbations")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, "gap_closed", "gap_baseline", "verdict"])
        writer.writeheader()
        writer.writerows(to_json(lines))


def _ends(interval: Any) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"ci_low": low, "ci_high": high}


__all__ = ["print_cells", "print_finetuned", "save_finetuned", "verdict_lines"]
