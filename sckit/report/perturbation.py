"""Perturbation results as tables, sentences and files. Nothing is computed here."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from sckit.config.finetune import ARMS
from sckit.metrics import FORMER_HEADLINE, HEADLINE, METRICS
from sckit.perturbation.summary import Finetuned
from sckit.report.files import save_report
from sckit.report.perturbation_figure import finetuned_figure
from sckit.report.text import at, is_number, number, revealed_text, share_name, texts, titled_table, with_interval

_WIDE = 190
_SHOWN_CELLS = 48
_COLUMNS_OF_COVARIATES = 8
_NAMED = 12
_COLUMNS = [name for name in METRICS if name != FORMER_HEADLINE]  # that one is in the files only
_LEGEND = (
    "Δ: profile less that of the control cells. "
    + "; ".join(f"{METRICS[name].label}: {METRICS[name].description}" for name in _COLUMNS)
    + "; gap closed: share of the way from the best of no change, mean and additive to the ceiling from halves, of "
    f"{METRICS[HEADLINE].label}."
)


def print_finetuned(result: Finetuned, console: Console) -> None:
    """Print score tables, learning curve, revealed shares, differences and notes; the verdict is the last line.

    A console narrower than 190 columns gets intervals of the headline only; all are in finetune.csv.
    """
    wide = console.width >= _WIDE
    tables = [_scores(result, subset, wide=wide) for subset in result.subsets]
    tables += [_curve(result, along, console.width) for along in ("train_share", "revealed")]
    for table in [*tables, _differences(result)]:
        if table is not None:
            console.print(table)
            console.print()
    more = "" if wide else " Intervals of all columns are in finetune.csv."
    console.print(_LEGEND + more, style="dim", highlight=False)
    notes = dict.fromkeys([*result.notes, *result.intervals])
    for line in [*unrepeated_effects(result.cells), *notes, *verdict_lines(result)]:
        console.print(line, highlight=False, soft_wrap=True)


def verdict_lines(result: Finetuned) -> list[str]:
    """Sentences on the headline with all training data: pretrained against linear baselines, then against scratch.

    The last sentence is the main one: every perturbation, the revealed share of the full table.
    """
    pairs = at(result.differences, metric=result.headline, train_share=result.full_share, a="pretrained")
    shown = at(pairs, revealed=result.shown_share)
    main = at(pairs, b="scratch")
    main = main.assign(shown=main.index.isin(shown.index), whole=main["subset"] == "all")
    main = main[main["shown"] | main["whole"]].sort_values(["shown", "whole"], kind="stable")
    chosen = [*shown[~shown["b"].isin(ARMS)].to_dict("records"), *main.to_dict("records")]
    lines = [_sentence(result, pair) for pair in chosen]
    return lines or ["no verdict: only the arms pretrained and scratch together give one."]


def _sentence(result: Finetuned, pair: dict[str, Any]) -> str:
    word = _word(pair["verdict"], pair["b"])
    within = {"no difference": f" within ±{result.margin:g}", "undecided": f" (margin ±{result.margin:g})"}
    revealed = pair["revealed"] if is_number(pair["revealed"]) else None
    scores = at(result.scores, revealed=revealed, train_share=pair["train_share"], subset=pair["subset"])
    one, other = (at(scores, predictor=pair[side], metric=result.headline) for side in ("a", "b"))
    few = "".join(f"{count} " for count in one["perturbations"]) + result.held_out
    few += "" if pair["subset"] == "all" else " whose effect repeats"
    score = f"{result.headline} {with_interval(pair['diff'], pair['low'], pair['high'], signed=True)}"
    # A prediction that is the same for all units tested together scores exactly 0.
    silent = all(len(rows) and (rows[["mean", "low", "high"]] == 0).all(axis=None) for rows in (one, other))
    nothing = "; neither tells the tested units apart" if silent else ""
    name = f"{pair['a']} against {pair['b']}, {_where(result, revealed)}"
    seeds = f"{result.seeds} seed{'s' * (result.seeds != 1)}"
    return f"{name}: {word}{within.get(word, '')} ({score}, {few}, {seeds}){nothing}"


def _word(verdict: str, other: str) -> str:
    """The verdict; against a baseline, pretraining does not help but is better."""
    return verdict if other in ARMS else {"helps": "better", "hurts": "worse"}.get(verdict, verdict)


def _where(result: Finetuned, revealed: float | None) -> str:
    return f"{result.task}, {result.split.replace('context', 'covariate')}{revealed_text(revealed)}"


def _scores(result: Finetuned, subset: str, *, wide: bool) -> Table:
    shown = result.shown | {"subset": subset}
    metrics = [name for name in _COLUMNS if name in set(result.scores["metric"])]
    detailed = metrics if wide else metrics[:1]
    first, *heads = (METRICS[name].label.replace(", ", ",\n") + " [95 %]" * (name in detailed) for name in metrics)
    title = f"{_where(result, result.shown_share)}\n{_block(result, subset)}"
    table = titled_table(title, "predictor", first, "gap closed", *heads)
    scores, ceilings = at(result.scores, **shown), at(result.ceilings, subset=subset)
    ceilings = ceilings.assign(predictor="ceiling: " + ceilings["kind"])
    gaps = at(result.gaps, metric=result.headline, **shown).set_index("predictor")["share"]
    for found, names in ((scores, result.predictors), (ceilings, ceilings["predictor"].unique())):
        plain, full = (texts(found, "predictor", "metric", ends=ends) for ends in (False, True))
        for name in names:
            first, *rest = ((full if m in detailed else plain).get((name, m), "-") for m in metrics)
            share = gaps.get(name)
            table.add_row(name, first, f"{share:.0%}" if is_number(share) else "-", *rest)
        table.add_section()
    return table


def _block(result: Finetuned, subset: str) -> str:
    """What the rows of a subset are a mean over, with its number of perturbations."""
    count = at(result.scores, metric=result.headline, **result.shown).groupby("subset")["perturbations"].first()
    if subset != "all":
        return f"the {count.get(subset, 0)} {result.held_out} whose effect repeats"
    unrepeated = count.get("all", 0) - count.get("repeating", count.get("all", 0))
    without = f", {unrepeated} of them without an effect that repeats" if unrepeated else ""
    judged = list(result.cells["repeats"].dropna())
    without = ", none of them with an effect that repeats" if judged and not any(judged) else without
    return f"all {count.get('all', 0)} {result.held_out}{without}"


def _curve(result: Finetuned, along: str, width: int) -> Table | None:
    """The headline over "train_share" or "revealed", and pretrained - scratch; None where there is one share only."""
    steps = result.shares(along)
    if len(steps) < 2:
        return None
    where = {k: v for k, v in result.shown.items() if k != along} | {"metric": result.headline, "subset": "all"}
    ends = 27 + 26 * len(steps) <= width
    scores = texts(at(result.scores, **where), "predictor", along, ends=ends)
    pairs = at(result.differences, a="pretrained", b="scratch", **where)
    pairs = texts(pairs, along, value="diff", ends=ends, signed=True)
    of = "training data" if along == "train_share" else "genes revealed"
    whole = f"all {result.held_out}" + ("" if along == "revealed" else revealed_text(result.shown_share))
    title = f"{METRICS[result.headline].label} by the share of the {of}\n{whole}"
    table = titled_table(title, "predictor", *map(share_name, steps))
    for name in result.predictors:
        if sum((name, share) in scores for share in steps) > 1:
            table.add_row(name, *(scores.get((name, share), "-") for share in steps))
    if pairs:
        table.add_section()
        table.add_row("pretrained - scratch", *(pairs.get((share,), "-") for share in steps))
    return table


def _differences(result: Finetuned) -> Table | None:
    shown = at(result.differences, metric=result.headline, **result.shown)
    if shown.empty:
        return None
    heads = [head for subset in result.subsets for head in (f"{subset} [95 %]", "verdict")]
    title = f"paired differences of {METRICS[result.headline].label}, margin ±{result.margin:g}"
    table = titled_table(title, "", *heads, left=("", "verdict"))
    differences = texts(shown, "a", "b", "subset", value="diff", signed=True)
    verdicts = shown.set_index(["a", "b", "subset"])["verdict"].to_dict()
    pairs = dict.fromkeys(zip(shown["a"], shown["b"], strict=True))
    for a, b in sorted(pairs, key=lambda pair: (pair[1] not in ARMS, ARMS.index(pair[0]))):
        cells = []
        for subset in result.subsets:
            cells += [differences.get((a, b, subset), "-"), _word(verdicts.get((a, b, subset), ""), b)]
        table.add_row(f"{a} - {b}", *cells)
    return table


def print_cells(rows: pd.DataFrame | list[dict[str, Any]], console: Console) -> None:
    """Print the cells of each condition and covariate, controls first; whether effects repeat where it is known.

    Covariates become columns where there are a few of them; a long table is cut in the middle and says so.
    """
    cells = pd.DataFrame(rows).reindex(columns=["condition", "context", "cells", "repeats", "repeat_r"])
    covariates = list(cells["context"].unique())
    pivot = 1 < len(covariates) <= _COLUMNS_OF_COVARIATES
    judged = cells["repeats"].dropna()
    more = ("effect repeats", "r of the halves") if len(judged) else ()
    heads = ("condition", *covariates) if pivot else ("condition", "covariate", "cells", *more)
    table = titled_table("cells of each condition and covariate", *heads, left=("condition", "covariate"), fold=True)
    lines: dict[str, list[str]] = {}
    for i, (condition, covariate, count, repeats, r) in enumerate(cells.itertuples(index=False)):
        if pivot:
            line = lines.setdefault(condition, [condition, *["-"] * len(covariates)])
            known = f" {number(r)}" if is_number(r) else ""
            line[1 + covariates.index(covariate)] = f"{count:,}{known}{'*' * (repeats is True)}"
        else:
            repeated = [{True: "yes", False: "no"}.get(repeats, "-"), number(r)] if len(judged) else []
            lines[str(i)] = [condition, covariate, f"{count:,}", *repeated]
    shown, kept = list(lines.values()), _SHOWN_CELLS // 2
    if len(shown) > _SHOWN_CELLS:
        cut = [f"... {len(shown) - 2 * kept} more", *[""] * (len(heads) - 1)]
        shown = [*shown[:kept], cut, *shown[-kept:]]
    for line in shown:
        table.add_row(*line)
    console.print(table)
    if len(judged):
        few = f"{judged.sum()} of {len(judged)}"
        star = ", marked *; next to the cells is the correlation of the halves" if pivot else ""
        console.print(f"{few} have an effect that repeats between halves of their cells{star}.", highlight=False)
    console.print()


def unrepeated_effects(cells: pd.DataFrame) -> list[str]:
    """Name the units without an effect that repeats, or a few of them; no sentence where there is none."""
    judged = cells.dropna(subset="repeats")
    several = cells["context"].nunique() > 1
    without = judged[~judged["repeats"].astype(bool)]
    names = [f"{c} in {x}" if several else c for c, x in zip(without["condition"], without["context"], strict=True)]
    few = ", ".join(names[:_NAMED]) + (", ... (all in finetune.json)" if len(names) > _NAMED else "")
    sentence = f"no effect that repeats between halves of the cells in {len(names)} of {len(judged)}: {few}"
    return [sentence] if names else []


def save_finetuned(result: Finetuned, folder: Path) -> list[Path]:
    """Write finetune.json, finetune.csv, and the figure as finetune.png and finetune.svg; returns the paths."""
    return save_report(folder, "finetune", result.document(), _tidy(result), finetuned_figure(result))


def _tidy(result: Finetuned) -> pd.DataFrame:
    """One table: scores with the share of the gap closed, ceilings, paired differences with their verdict."""
    keys = ["predictor", "revealed", "train_share", "metric", "subset"]
    gaps = result.gaps.rename(columns={"share": "gap_closed", "baseline": "gap_baseline"})
    pairs = result.differences.rename(columns={"diff": "mean"})
    parts = {
        "score": result.scores.merge(gaps, how="left", on=keys),
        "ceiling": result.ceilings.rename(columns={"kind": "predictor"}),
        "difference": pairs.assign(predictor=pairs["a"] + " - " + pairs["b"]),
    }
    columns = ["kind", *keys, "mean", "ci_low", "ci_high", "perturbations", "gap_closed", "gap_baseline", "verdict"]
    whole = pd.concat([part.assign(kind=kind).astype(object) for kind, part in parts.items()])  # integers stay so
    return whole.rename(columns={"low": "ci_low", "high": "ci_high"}).reindex(columns=columns)
