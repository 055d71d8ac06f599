"""Evaluation on held-out cells: the model, the linear baselines and the replicate at any mask rate.

The scored entries are the same at every rate, so the points of a sweep compare like with like, and every difference is
paired. What is chosen or calibrated is so on validation cells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.config import EvalConfig
from sckit.data.batch import SCORED_SHARE
from sckit.data.halves import Halves, replicate_values
from sckit.data.split import VALIDATION
from sckit.errors import DataError
from sckit.evaluation.decomposition import STEP, Decomposed, Decomposition
from sckit.evaluation.left import Left, left_row
from sckit.evaluation.predictors import Fitted, Pass, Setting
from sckit.evaluation.rows import BASELINES, Errors, Floors, best_baselines, best_of
from sckit.files import to_json
from sckit.metrics.values import Scores, json_row, resampling
from sckit.model.offset_forms import OffsetForms
from sckit.training.run import find_run, open_run

_CALIBRATION_DRAWS = 5
"""Draws of what is hidden in validation cells; where everything is hidden one is all."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: one row for each predictor, rate and target, and sentences on what they rest on."""

    run: Path
    cells: int
    entries: int
    table: pd.DataFrame  # the columns of `Scores.full_row`; intervals end in _low and _high
    notes: list[str]
    best_baseline: str  # of full-depth values at the lowest rate, by validation cells
    left: pd.DataFrame  # what the best baseline leaves there, by strata of genes; the columns of `Left.table`
    total_from_detection: dict[str, float]
    calibration: list[dict[str, float]]  # of the best baseline: expected and observed mean counts by tenths
    detection_adds: list[dict[str, Any]]  # value offset ridge less visible offset ridge: rate, target, r2_gene_mean, ci
    replicate_zero: float | None  # share of the scored entries that are zero in the other half
    decomposition: Decomposed | None  # at the lowest rate, of full-depth values

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table as JSON has them, intervals and differences as lists and objects of their own."""
        return [json_row(row) for row in to_json(self.table.to_dict("records"))]

    def document(self) -> dict[str, Any]:
        """Return the one JSON document that `sckit eval --json` prints."""
        facts = {"run": str(self.run), "cells": self.cells, "entries": self.entries, "rows": self.rows}
        left = [left_row(row) for row in to_json(self.left.to_dict("records"))]
        more = {"total_from_detection": self.total_from_detection, "calibration": self.calibration}
        facts |= {"best_baseline": self.best_baseline, "left": left[:-2], "left_in_sum": left[-2:]}
        more |= {"detection_adds": to_json(self.detection_adds), "replicate_zero": self.replicate_zero}
        if self.decomposition is not None:
            more["decomposition"] = self.decomposition.document()
        return {"command": "eval"} | facts | more


def evaluate(
    run: str | Path | None = None,
    config: EvalConfig | None = None,
    *,
    runs: str | Path = "runs",
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Evaluation:
    """Score a run (path or name; the latest one by default) on its held-out cells.

    on_event(kind, facts) hears "note" and "progress" events. Raises ConfigError and DataError.
    """
    config = config or EvalConfig()
    opened = open_run(find_run(run, Path(runs)))
    return _Evaluator(opened, config, on_event).evaluate()


class _Evaluator(Setting):
    """Scores every row at every rate."""

    def evaluate(self) -> Evaluation:
        rows, adds, others, entries, self.cut = [], [], [], 0, 0
        self.replicate_zero, decomposition = None, None
        targets = self.targets()
        offsets = targets["full"].offsets
        left, best_baseline, calibration = Left(self.config.seed, self.config.bootstraps), "", []
        for target, fitted in targets.items():
            for rate in sorted(self.config.masks):
                predictor, first, watched = self.predictor(fitted, rate), not best_baseline, []
                if first and self.config.decompose:
                    decomposition = Decomposition(self, fitted, rate)
                    predictor = decomposition.with_steps(predictor)
                floors = self._calibrated(fitted, rate, predictor)
                errors = floors.errors
                if first:
                    best_baseline = best_baselines(errors)["detected"]
                    calibration, watched = floors.deciles[best_baseline], [left.watch(best_baseline, offsets)]
                    watched += [] if decomposition is None else [decomposition.calibrated(floors)]
                scores = self._score(fitted, rate, target, predictor, floors, watched)
                entries, groups = max(entries, scores.entries), self._groups(scores)
                rows += self._rows(scores, errors, rate, target)
                if rate < 1:
                    more = scores.difference("value offset ridge", "visible offset ridge", groups)
                    adds.append({"rate": rate, "target": target} | more)
                said = self.association.sentences(scores, groups) if self.association else []
                others += [f"{rate:.0%} hidden, {target} depth: {sentence}" for sentence in said]
        order = {rate: i for i, rate in enumerate(self.config.masks)}
        rows.sort(key=lambda row: (row["target"] != "full", order[row["rate"]]))
        ends = {name: float for name in rows[0] if name.endswith(("_low", "_high"))}  # None where there is no interval
        table, total = pd.DataFrame(rows).astype(ends), self._total_from_detection(offsets)
        found = left.table(self.groups)
        notes = self._notes(offsets, total, others)
        return Evaluation(
            self.run.path, len(self.cells), entries, table, notes, best_baseline, found, total, calibration, adds,
            self.replicate_zero, None if decomposition is None else decomposition.result(),
        )  # fmt: skip

    def _calibrated(self, fitted: Fitted, rate: float, predictor: Pass) -> Floors:
        """Calibrate every row on validation cells."""
        floors, cells = Floors(fitted.offsets), self.run.cells(VALIDATION)
        for epoch in range(_CALIBRATION_DRAWS):
            packer = self.packer(fitted.view, rate, scored=False, epoch=epoch + 1)
            predict = predictor(packer, cells)
            for batch in self.batches(packer, cells, f"validation cells, rate {rate}"):
                floors.add(batch, predict(batch), fitted.view.totals(batch.cells))
            if rate == 1.0:
                break
        if not floors.entries:
            raise DataError(f"no validation value is hidden at {rate:g}; hide more, or give more cells.")
        floors.fit(negative_binomial=self.config.noise == "nb")
        return floors

    def _score(
        self, fitted: Fitted, rate: float, target: str, predictor: Pass, floors: Floors,
        watched: Sequence[Left | Decomposition],
    ) -> Scores:  # fmt: skip
        packer = self.packer(fitted.view, rate, scored=True)
        scores = Scores(len(self.run.genes), seed=self.config.seed, bootstraps=self.config.bootstraps)
        predict, zeros = predictor(packer, self.cells), 0
        for batch in self.batches(packer, self.cells, f"target {target} rate {rate}"):
            predicted, totals = predict(batch), fitted.view.totals(batch.cells)
            laws = floors.laws(batch, predicted, totals)
            if isinstance(fitted.view, Halves):
                predicted["replicate"] = replicate_values(fitted.view, batch, self.vocabulary)
                zeros += int((predicted["replicate"] == 0).sum())
            for each in watched:
                each.add(batch, predicted, laws)
            scores.add(batch, {name: row for name, row in predicted.items() if not name.startswith(STEP)}, laws)
            self.cut += batch.cut if rate == min(self.config.masks) and target == "full" else 0
        if not scores.entries:
            raise DataError(f"no entry is scored with {rate:g} of the values hidden; hide more, or give more cells.")
        if target == "half":
            self.replicate_zero = zeros / scores.entries
        return scores

    def _groups(self, scores: Scores) -> np.ndarray | None:
        return None if self.groups is None else self.groups[scores.cells]

    def _rows(self, scores: Scores, errors: Errors, rate: float, target: str) -> Iterator[dict[str, Any]]:
        """Yield the table rows of one rate and target: baselines, the replicate, and the model in each context."""
        groups = self._groups(scores)
        order = [name for name in (*BASELINES, "replicate") if name in scores.predictors]
        for name in order + [name for name in scores.predictors if name.startswith("model")]:
            predictor, _, context = name.partition("/")
            where = {"rate": rate, "context": context or None, "known_depth": self.known_depth, "target": target}
            yield scores.full_row(name, best_of(name, errors), groups, **where) | {"predictor": predictor}

    def _total_from_detection(self, offsets: OffsetForms) -> dict[str, float]:
        """Say how well the detection set tells the total counts of the held-out cells."""
        packer = self.packer(self.store, 1.0, scored=True)
        parts = [offsets.of_cells(batch).guess for batch in self.batches(packer, self.cells, "total from detection")]
        log_total = np.log(self.store.totals(self.cells))
        error, spread = np.concatenate(parts) - log_total, log_total - log_total.mean()
        r2 = 1 - float(error @ error / max(spread @ spread, 1e-12))
        return {"r2": r2, "median_relative_error": float(np.median(np.abs(np.expm1(error))))}

    def _notes(self, offsets: OffsetForms, total: dict[str, float], others: list[str]) -> list[str]:
        """Return what a reader of the numbers has to know; the last sentence is about the intervals."""
        groups = None if self.groups is None else self.groups[self.cells]
        components, factors, penalty, count_penalty = offsets.chosen
        given = self.config.components is not None and self.config.penalty is not None
        notes = [
            f"offset baselines: {components:.0f} components, penalty {penalty:g}, {factors:.0f} value factors, penalty "
            f"{count_penalty:g} of the count regression" + ("" if given else ", chosen by inner validation"),
            f"total from detection: the detection set tells the log of the total counts with R² {total['r2']:.3f} "
            f"(median error {total['median_relative_error']:.0%})",
        ]
        if self.config.replicate_halves:
            notes.append(
                "half-depth target: the linear baselines, and the one that the model starts from, are refitted on "
                "halves of the training cells"
            )
        notes += others
        less = " (or below the share hidden, where that is less)" if min(self.config.masks) < SCORED_SHARE else ""
        notes.append(
            f"{len(self.cells):,} held-out cells; scored: detected entries with a hash below {SCORED_SHARE}{less}"
        )
        if self.cut:
            notes.append(f"{self.cut:,} entries of cells over {self.run.config.max_genes} genes were cut")
        if groups is not None and (groups == "").any():
            notes.append(
                f"{int((groups == '').sum()):,} held-out cells have no group: they count as a group of their own"
            )
        rule = resampling(groups, len(self.cells))
        return [*notes, rule.sentence("cells", "cells" if groups is None else "groups")]
