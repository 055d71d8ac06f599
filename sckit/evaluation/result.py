"""The result of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sckit.evaluation.decomposition import Decomposed
from sckit.evaluation.left import left_row
from sckit.files import to_json
from sckit.metrics.values import json_row


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: one row for each predictor, rate and target, and sentences on what they rest on."""

    run: Path
    options: dict[str, Any]  # of the evaluation, by field of its config
    cells: int
    entries: int
    kept_steps: list[int | None]  # of each network: the step of its best model, 0 where attention added nothing
    untrained: int  # networks that are their linear start
    table: pd.DataFrame  # the columns of `Scores.full_row`; intervals end in _low and _high
    notes: list[str]
    best_baseline: str  # of full-depth values at the lowest rate, by validation cells
    left: pd.DataFrame  # what the best baseline leaves there, by strata of genes; the columns of `Left.table`
    total_from_detection: dict[str, float]
    calibration: list[dict[str, float]]  # of the best baseline: expected and observed mean counts by tenths
    detection_adds: list[dict[str, Any]]  # value offset ridge less visible offset ridge: rate, target, r2_gene_mean, ci
    differences: list[
        dict[str, Any]
    ]  # model less its start, its correction or trees: rate, target, row, other, r2_gene_mean, ci
    replicate_zero: float | None  # share of the scored entries that are zero in the other half
    decomposition: Decomposed | None  # at the lowest rate, of full-depth values
    predictions: Path | None = None  # folder of the kept predictions

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table as JSON has them, intervals and differences as lists and objects of their own."""
        return [json_row(row) for row in to_json(self.table.to_dict("records"))]

    def document(self) -> dict[str, Any]:
        """Return the one JSON document that `sckit eval --json` prints."""
        facts: dict[str, Any] = {"run": str(self.run), "cells": self.cells, "entries": self.entries}
        facts |= {"options": to_json(self.options), "kept_steps": self.kept_steps}
        facts |= {"untrained": self.untrained, "rows": self.rows}
        left = [left_row(row) for row in to_json(self.left.to_dict("records"))]
        more = {"total_from_detection": self.total_from_detection, "calibration": self.calibration}
        facts |= {"best_baseline": self.best_baseline, "left": left[:-2], "left_in_sum": left[-2:]}
        more |= {"detection_adds": to_json(self.detection_adds), "differences": to_json(self.differences)}
        more["replicate_zero"] = self.replicate_zero
        if self.decomposition is not None:
            more["decomposition"] = self.decomposition.document()
        return {"command": "eval"} | facts | more
