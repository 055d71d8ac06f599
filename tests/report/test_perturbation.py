"""Tables, sentences, files and figure of a made-up perturbation result."""

import csv
import io
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sckit.perturbation.summary import COLUMNS
from sckit.report.perturbation import print_cells, print_finetuned, save_finetuned, verdict_lines
from sckit.report.perturbation_figure import finetuned_figure
from sckit.report.text import at

from .made_up_result import ARMS, BASELINES, made_up


def printed(show, what, width=120):
    console = Console(file=io.StringIO(), width=width)
    show(what, console)
    return console.file.getvalue()


def rows_after(text, title):
    """First words of the lines of the table below a title, up to the next empty line."""
    lines = text[text.index(title) :].splitlines()
    body = itertools.takewhile(str.strip, itertools.dropwhile(lambda line: "\u2500" not in line, lines))
    return [re.split(r"\s{2,}", line.strip())[0] for line in body][1:]


def test_the_headline_is_the_first_column_and_rows_are_baselines_then_arms():
    text = printed(print_finetuned, made_up())
    heads = next(line for line in text.splitlines() if "gap closed" in line)
    order = [heads.index(name) for name in ("predictor", "specific [95 %]", "gap closed", "weighted R\u00b2")]
    assert order == sorted(order)
    arms = ["pretrained", "scratch", "frozen", "shuffled"]
    assert rows_after(text, "all 25 perturbations") == [*BASELINES, *arms]
    ceilings = text[: text.index("the 12 perturbations")].splitlines()
    assert [line.split()[1] for line in ceilings if "ceiling:" in line] == ["half-cells", "replicates"]
    assert re.search(r"pretrained +0.430 \[0.400, 0.460\] +55% +0.420 +0.450", text)


def test_perturbations_whose_effect_repeats_stand_apart_and_the_others_are_counted():
    text = printed(print_finetuned, made_up())
    assert "all 25 perturbations, 13 of them without an effect that repeats" in text
    assert text.index("13 of them") < text.index("the 12 perturbations whose effect repeats")
    alive = made_up()
    alive = replace(alive, scores=alive.scores.assign(perturbations=25))
    assert "without an effect" not in printed(print_finetuned, alive)


def test_when_no_effect_repeats_the_only_block_says_so():
    result = made_up(cells=cell_rows(["control", "P0", "P1"], ["all"], repeats=False))
    result = replace(result, scores=at(result.scores, subset="all"))
    text = printed(print_finetuned, result)
    assert "all 25 perturbations, none of them with an effect that repeats" in text
    assert rows_after(text, "all 25 perturbations")


def test_where_covariates_are_held_out_the_means_are_over_those():
    cells = cell_rows(["control", "IFNB"], ["B cell", "T cell"], repeats=True)
    text = printed(print_finetuned, made_up(split="unseen context (donor)", held_out="values of donor", cells=cells))
    assert "response, unseen covariate (donor)" in text
    assert "all 25 values of donor" in text
    assert "25 values of donor, 5 seeds)" in text
    assert "25 perturbations" not in text


def test_what_the_intervals_resample_is_said_once():
    few = "intervals: over cells within each of 2 perturbations"
    text = printed(print_finetuned, made_up(intervals=[few], notes=["a note", few]))
    assert text.splitlines().count(few) == 1


def test_tables_fit_120_columns_and_a_wide_console_gets_every_interval():
    narrow, wide = (printed(print_finetuned, made_up((0.0, 0.1, 0.25, 0.5, 0.9)), width) for width in (120, 200))
    tables = narrow[: narrow.index("partial, unseen perturbation, 50 % of the genes revealed:")]
    assert max(map(len, tables.splitlines())) <= 120
    assert "\u2026" not in narrow
    assert narrow.count("[95 %]") < wide.count("[95 %]")
    assert "finetune.csv" in narrow
    assert "finetune.csv" not in wide


def test_the_full_table_of_the_partial_task_is_at_a_half_and_the_others_are_compact():
    text = printed(print_finetuned, made_up((0.0, 0.1, 0.25, 0.5, 0.9)))
    assert "partial, unseen perturbation, 50 % of the genes revealed" in text
    assert "by the share of the genes revealed" in text
    assert re.search(r"predictor +0 % +10 % +25 % +50 % +90 %", text)
    compact = text[text.index("by the share of the genes revealed") :].split("paired differences")[0]
    assert "pretrained - scratch" in compact
    assert "of the genes revealed" not in printed(print_finetuned, made_up())


@pytest.mark.parametrize(
    ("revealed", "shown"),
    [((None,), None), ((0.0, 0.5, 0.9), 0.5), ((0.0, 0.1, 0.3, 0.9), 0.3), ((0.0,), 0.0)],
    ids=["response", "with-a-half", "without-a-half", "nothing-revealed"],
)
def test_which_revealed_share_is_shown(revealed, shown):
    result = made_up(revealed)
    assert result.shown_share == shown
    assert printed(print_finetuned, result)


def test_the_last_line_is_the_verdict_on_every_perturbation():
    lines = verdict_lines(made_up())
    assert lines[-1] == (
        "pretrained against scratch, response, unseen perturbation: no difference within \u00b10.05 "
        "(delta_r_specific +0.003 [-0.010, +0.016], 25 perturbations, 5 seeds)"
    )
    assert "12 perturbations whose effect repeats" in lines[-2]
    assert printed(print_finetuned, made_up()).splitlines()[-1] == lines[-1]
    partial = verdict_lines(made_up((0.0, 0.5, 0.9)))
    assert "50 % of the genes revealed" in partial[-1]
    assert "25 perturbations" in partial[-1]
    assert sum("scratch" in line for line in partial) == 4


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("helps", ": helps ("),
        ("hurts", ": hurts ("),
        ("no difference", ": no difference within \u00b10.05 ("),
        ("undecided", ": undecided (margin \u00b10.05) ("),
    ],
)
def test_every_verdict_has_its_words(verdict, words):
    result = made_up()
    assert words in verdict_lines(replace(result, differences=result.differences.assign(verdict=verdict)))[-1]


def test_two_arms_that_learned_nothing_are_not_called_equal_without_saying_so():
    words = "neither tells the tested units apart"
    result = made_up()
    assert not [line for line in verdict_lines(result) if words in line]
    result.scores.loc[result.scores["predictor"].isin(["pretrained", "scratch"]), ["mean", "low", "high"]] = 0.0
    lines = verdict_lines(result)
    assert lines[-1].endswith(words)
    assert [words in line for line in lines] == ["against scratch" in line for line in lines]


def test_pairs_of_arms_come_before_pairs_with_baselines():
    result = made_up()
    result = replace(result, differences=result.differences[::-1])
    pairs = rows_after(printed(print_finetuned, result), "paired differences")
    assert set(pairs[:2]) == {"pretrained - scratch", "pretrained - shuffled"}
    assert pairs[2:] == ["pretrained - low-rank"]


def test_against_a_baseline_the_arm_is_better_or_worse_not_helped():
    lines = [line for line in verdict_lines(made_up()) if "low-rank" in line]
    assert lines
    assert all(": worse (" in line for line in lines)


def test_without_the_two_arms_there_is_no_verdict():
    result = made_up()
    result = replace(result, differences=result.differences[:0])
    assert verdict_lines(result)[-1].startswith("no verdict")
    assert "paired differences" not in printed(print_finetuned, result)


@pytest.mark.parametrize("revealed", [(None,), (0.0, 0.5)], ids=["response", "partial"])
def test_unknown_intervals_one_seed_and_one_perturbation_are_shown_without_complaint(revealed, tmp_path):
    result = made_up(revealed, train_shares=(1.0,), seeds=1, count=1, interval=None)
    result.scores.loc[5, "mean"] = float("nan")
    result.gaps.loc[1, "share"] = None
    result.ceilings.loc[0, "mean"] = float("nan")
    text = printed(print_finetuned, result)
    assert "nan" not in text
    assert "None" not in text
    assert "1 seed)" in text
    assert len(save_finetuned(result, tmp_path)) == 4


def test_missing_rows_are_dashes(tmp_path):
    result = made_up()
    gone = (result.scores["predictor"] == "scratch") & (result.scores["metric"] == "slope")
    result = replace(result, scores=result.scores[~gone], gaps=result.gaps[:0], ceilings=result.ceilings[:0])
    text = printed(print_finetuned, result)
    scratch = next(line for line in text.splitlines() if line.startswith(" scratch"))
    assert re.split(r"\s{2,}", scratch.strip())[2] == "-"
    assert re.split(r"\s{2,}", scratch.strip())[6] == "-"
    assert "ceiling:" not in text
    save_finetuned(result, tmp_path)


def test_files_hold_every_row_and_strict_json(tmp_path):
    result = made_up((0.0, 0.5))
    result.scores.loc[0, "mean"] = float("nan")
    result.scores.loc[1, "mean"] = np.float32(0.25)
    result.facts["genes"] = np.int64(7)
    paths = save_finetuned(result, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["finetune.json", "finetune.csv", "finetune.png", "finetune.svg"]
    assert all(path.stat().st_size > 500 for path in paths)
    document = json.loads(paths[0].read_text(), parse_constant=pytest.fail)
    assert document["rows"][0]["mean"] is None
    assert document["rows"][1]["mean"] == 0.25
    assert document["facts"]["genes"] == 7
    with paths[1].open(newline="") as file:
        lines = list(csv.DictReader(file))
    kinds = [line["kind"] for line in lines]
    assert [kinds.count(k) for k in ("score", "ceiling", "difference")] == [
        len(result.scores), len(result.ceilings), len(result.differences),
    ]  # fmt: skip
    assert {line["verdict"] for line in lines if line["kind"] == "difference"} == {"no difference", "helps", "hurts"}
    assert lines[2]["gap_baseline"] == "additive"
    assert float(lines[2]["ci_low"]) < float(lines[2]["mean"]) < float(lines[2]["ci_high"])


def panel_of(result, panel):
    """What a panel of the figure shows: label -> heights of its points."""
    figure = finetuned_figure(result)
    axis = figure.axes[panel]
    containers = {c.get_label(): list(c.lines[0].get_ydata()) for c in axis.containers}
    return containers | {line.get_label(): list(line.get_ydata()) for line in axis.lines if line.get_label()[0] != "_"}


def test_the_figure_draws_the_numbers():
    result = made_up((0.0, 0.1, 0.5))
    curve, revealed = panel_of(result, 1), panel_of(result, 2)
    expected = at(result.scores, predictor="scratch", metric=result.headline, subset="all", revealed=0.5)
    assert curve["scratch"] == list(expected.sort_values("train_share")["mean"])
    assert curve["ceiling"] == [0.7] * 3
    assert set(ARMS) | {"low-rank", "ceiling"} <= set(revealed)
    assert revealed["pretrained"] == sorted(revealed["pretrained"])
    assert len(finetuned_figure(made_up()).axes) == 2
    assert len(finetuned_figure(made_up(train_shares=(1.0,))).axes) == 1


def cell_rows(conditions, contexts, repeats=None):
    rows = [
        {
            "condition": c,
            "context": x,
            "cells": 20 + i,
            "repeats": None if c == "control" else repeats,
            "repeat_r": None,
        }
        for i, (c, x) in enumerate(itertools.product(conditions, contexts))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS["cells"])).astype({"repeats": object})


def test_cells_of_one_covariate_are_a_line_each():
    rows = cell_rows(["control", "P0", "P1"], ["all"], repeats=True)
    rows.loc[2, ["repeats", "repeat_r"]] = False, 0.04
    text = printed(print_cells, rows)
    assert re.search(r"control +all +20 +- +-", text)
    assert re.search(r"P0 +all +21 +yes +-", text)
    assert re.search(r"P1 +all +22 +no +0.040", text)
    assert "1 of 2 have an effect that repeats" in text


def test_a_few_covariates_become_columns_and_missing_units_dashes():
    rows = cell_rows(["control", "P0"], ["B cell", "T cell"])[:3]
    rows.loc[2, ["repeats", "repeat_r"]] = True, 0.61
    text = printed(print_cells, rows)
    assert re.search(r"condition +B cell +T cell", text)
    assert re.search(r"P0 +22 0.610\* +-", text)


def test_before_anything_is_judged_there_is_no_column_of_it():
    for contexts in (["all"], ["B cell", "T cell"]):
        rows = cell_rows(["control", "P0"], contexts)[["condition", "context", "cells"]]
        text = printed(print_cells, rows.to_dict("records"))
        assert "repeats" not in text
        assert re.search(r"P0 .*2[12]", text)


def test_perturbations_without_a_repeated_effect_are_named_and_a_long_list_is_cut():
    alive = cell_rows(["control", "P0", "P1"], ["all"], repeats=True)
    assert "no effect that repeats" not in printed(print_finetuned, made_up(cells=alive))
    dead = cell_rows([f"D{i}" for i in range(20)], ["all"], repeats=False)
    text = printed(print_finetuned, made_up(cells=pd.concat([alive, dead])))
    assert "in 20 of 22: D0, D1, " in text
    assert "D11, ... (all in finetune.json)" in text
    assert "D12" not in text


def test_a_long_table_of_cells_is_cut_and_says_so():
    text = printed(print_cells, cell_rows(["control", *(f"P{i}" for i in range(300))], ["all"]))
    assert len(text.splitlines()) < 60
    assert "... 253 more" in text
    assert "P299" in text
