"""Evaluation on held-out cells: the model, the linear baselines and the replicate at any mask rate.

The scored entries are the same at every rate, so the points of a sweep compare like with like, and every difference is
paired. What is chosen or calibrated is so on validation cells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.config import EvalConfig
from sckit.data.batch import SCORED_SHARE
from sckit.data.halves import Halves, replicate_values
from sckit.data.manifest import MANIFEST
from sckit.data.split import VALIDATION
from sckit.errors import ConfigError, DataError
from sckit.evaluation.association import ASSOCIATION_ROWS
from sckit.evaluation.decomposition import STEP, Decomposition
from sckit.evaluation.kept import Keeper, keeping
from sckit.evaluation.known_truth import TRUTH
from sckit.evaluation.left import Left
from sckit.evaluation.predictors import CALIBRATED, CORRECTED, Fitted, Pass, Setting
from sckit.evaluation.result import Evaluation
from sckit.evaluation.rows import BASELINES, Errors, Floors, best_baselines, best_of, errors_of_cells
from sckit.evaluation.trees import TREES
from sckit.files import checksum
from sckit.metrics.values import Scores, resampling
from sckit.model.offset_forms import OffsetForms
from sckit.training.folders import find_runs
from sckit.training.run import open_run

_CALIBRATION_DRAWS = 5
"""Draws of what is hidden in validation cells; where everything is hidden one is all."""


def evaluate(
    run: str | Path | None = None,
    config: EvalConfig | None = None,
    *,
    runs: str | Path = "runs",
    keep: Path | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Evaluation:
    """Score a run (path or name; the latest one by default) on its held-out cells.

    A folder that `pretrain --folds` made is scored as a whole: the held-out cells of all folds in one table, and the
    networks of several seeds as the mean of their scores. keep: a folder for the predictions of every scored entry, for
    `compare`. on_event(kind, facts) hears "note" and "progress" events.
    Raises ConfigError and DataError.
    """
    config = config or EvalConfig()
    found = find_runs(run, Path(runs))
    if len(found) > 1 and config.decompose:
        raise ConfigError(f"--decompose takes one run; name one of the folds, such as {found[0][0]}.")
    folds = [Setting([open_run(path) for path in paths], config, on_event) for paths in found]
    path = found[0][0] if len(found) == 1 else found[0][0].parent
    networks = {"networks": sum(len(fold.models) for fold in folds), "untrained": sum(fold.untrained for fold in folds)}
    facts = _facts(path, folds[0]) | networks
    with keeping(keep, facts) as keeper:
        found = _Evaluator(path, folds, config, keeper).evaluate()
    return replace(found, predictions=keep)


def _facts(path: Path, fold: Setting) -> dict[str, Any]:
    """Return what has to be the same in evaluations that are compared, and where they come from."""
    facts = {"store": checksum(fold.store.path / MANIFEST), "seed": fold.config.seed, "known_depth": fold.known_depth}
    column = fold.config.group or fold.run.config.group
    facts |= {"run": str(path), "store_path": str(fold.store.path), "cells": fold.store.n_cells}
    return facts | {"group": column}


@dataclass
class _Pooled:
    """What all folds have at one target and mask rate."""

    scores: Scores
    cells: list[np.ndarray] = field(default_factory=list)  # validation cells
    errors: list[Errors] = field(default_factory=list)  # in those cells
    said: list[str] = field(default_factory=list)


class _Evaluator:
    """Scores every row at every rate, on the held-out cells of one run or of all folds."""

    def __init__(self, path: Path, folds: Sequence[Setting], config: EvalConfig, keeper: Keeper | None) -> None:
        self.path, self.folds, self.config, self.keeper = path, folds, config, keeper
        self.pooled: dict[tuple[str, float], _Pooled] = {}
        self.left = Left(config.seed, config.bootstraps)
        self.decomposition: Decomposition | None = None
        self.calibration: list[list[dict[str, float]]] = []
        self.guesses: list[np.ndarray] = []
        self.chosen: list[np.ndarray] = []
        self.entries = self.cut = self.zeros = self.halved = 0

    def evaluate(self) -> Evaluation:
        """Go through the folds, and return the tables of all."""
        for number, fold in enumerate(self.folds):
            self._evaluate(number, fold)
        rows, adds, others, differences = [], [], [], []
        with_others = ASSOCIATION_ROWS if self.folds[0].run.config.neighbours else ()
        for (target, rate), pooled in self.pooled.items():
            scores, errors = pooled.scores, errors_of_cells(pooled.cells, pooled.errors)
            rows += self._rows(scores, errors, rate, target)
            if rate < 1:
                more = scores.difference("value offset ridge", "visible offset ridge", self._groups(scores))
                adds.append({"rate": rate, "target": target} | more)
            for other in (CALIBRATED, CORRECTED, TREES, *with_others):
                if not {other, "model/detected"} <= {*scores.predictors}:
                    continue
                less = scores.difference("model/detected", other, self._groups(scores))
                differences.append({"rate": rate, "target": target, "row": "model", "other": other} | less)
            others += [f"{100 * rate:.4g}% hidden, {target} depth: {sentence}" for sentence in pooled.said]
        order = {rate: i for i, rate in enumerate(self.config.masks)}
        rows.sort(key=lambda row: (row["target"] != "full", order[row["rate"]]))
        ends = {name: float for name in rows[0] if name.endswith(("_low", "_high"))}  # None where there is no interval
        table, total = pd.DataFrame(rows).astype(ends), self._total_from_detection()
        first = self.pooled["full", min(self.config.masks)]
        cells = sum(len(fold.cells) for fold in self.folds)
        return Evaluation(
            run=self.path,
            options=asdict(self.config),
            cells=cells,
            entries=self.entries,
            kept_steps=[step for fold in self.folds for step in fold.kept_steps],
            untrained=sum(fold.untrained for fold in self.folds),
            table=table,
            notes=self._notes(total, others),
            best_baseline=best_baselines(errors_of_cells(first.cells, first.errors))["detected"],
            left=self.left.table(self.folds[0].groups),
            total_from_detection=total,
            calibration=_mean_of_tenths(self.calibration),
            detection_adds=adds,
            differences=differences,
            replicate_zero=float(self.zeros / self.halved) if self.halved else None,
            decomposition=None if self.decomposition is None else self.decomposition.result(),
        )

    def _evaluate(self, number: int, fold: Setting) -> None:
        """Score the held-out cells of one fold at every target and rate."""
        targets = fold.targets()
        offsets = targets["full"].offsets
        self.chosen.append(offsets.chosen)
        self._guess_totals(fold, offsets)
        first = True
        for target, fitted in targets.items():
            for rate in sorted(self.config.masks):
                predictor, watched = fold.predictor(fitted, rate), []
                if first and self.config.decompose:
                    self.decomposition = Decomposition(fold, fitted, rate)
                    predictor = self.decomposition.with_steps(predictor)
                floors = _calibrated(fold, fitted, rate, predictor)
                if first:
                    best = best_baselines(floors.errors)["detected"]
                    self.calibration.append(floors.deciles[best])
                    watched = [self.left.watch(best, offsets)]
                    watched += [] if self.decomposition is None else [self.decomposition.watch(best)]
                    first = False
                self._score(number, fitted, rate, target, predictor, floors, watched)

    def _score(
        self, number: int, fitted: Fitted, rate: float, target: str, predictor: Pass, floors: Floors,
        watched: Sequence[Left | Decomposition],
    ) -> None:  # fmt: skip
        fold, seed, draws = self.folds[number], self.config.seed, self.config.bootstraps
        empty = _Pooled(Scores(fold.store.n_genes, seed=seed, bootstraps=draws))
        pooled = self.pooled.setdefault((target, rate), empty)
        pooled.cells.append(floors.cells)
        pooled.errors.append(floors.errors)
        scores, numbers = pooled.scores, np.flatnonzero(fold.vocabulary >= 0)
        packer = fold.packer(fitted.view, rate, scored=True)
        predict, before = predictor(packer, fold.cells), scores.entries
        for batch in fold.batches(packer, fold.cells, f"target {target} rate {rate}"):
            predicted, totals = predict(batch), fitted.view.totals(batch.cells)
            laws = floors.laws(batch, predicted, totals)
            if isinstance(fitted.view, Halves):  # the scored entries are the same at every rate
                predicted["replicate"] = replicate_values(fitted.view, batch, fold.vocabulary)
                self.zeros, self.halved = (
                    self.zeros + (predicted["replicate"] == 0).sum(),
                    self.halved + len(batch.truth),
                )
            for each in watched:
                each.add(batch, predicted, laws)
            rows = {name: row for name, row in predicted.items() if not name.startswith(STEP)}
            scores.add(batch, rows, laws, numbers=numbers, fold=number)
            if self.keeper is not None:
                self.keeper.add(batch, rows, numbers, target=target, rate=rate, fold=number)
            self.cut += batch.cut if rate == min(self.config.masks) and target == "full" else 0
        if scores.entries == before:
            raise DataError(f"no entry is scored with {rate:g} of the values hidden; hide more, or give more cells.")
        self.entries = max(self.entries, scores.entries)
        if fold.association:
            groups = self._groups(scores)
            pooled.said = fold.association.sentences(scores, groups) if number == len(self.folds) - 1 else []

    def _groups(self, scores: Scores) -> np.ndarray | None:
        groups = self.folds[0].groups
        return None if groups is None else groups[scores.cells]

    def _rows(self, scores: Scores, errors: Errors, rate: float, target: str) -> Iterator[dict[str, Any]]:
        """Yield the table rows of one rate and target: baselines, the replicate, and the model in each context."""
        groups, fold = self._groups(scores), self.folds[0]
        for name in [name.removesuffix("/0") for name in scores.predictors if name.endswith("/0")]:
            scores.average(name, [f"{name}/{seed}" for seed in range(len(fold.models))])
        order = [
            name for name in (*BASELINES, CALIBRATED, CORRECTED, TREES, TRUTH, "replicate") if name in scores.predictors
        ]
        for name in order + [name for name in scores.predictors if name.startswith("model")]:
            predictor, _, context = name.partition("/")
            others = name.startswith("model") and context.startswith("detected") and fold.run.config.neighbours
            best = best_of(name, errors, frozenset({"neighbours"} if others else ()))
            where = {"rate": rate, "context": context or None, "known_depth": fold.known_depth, "target": target}
            seeds = ", ".join(f"{each:+.4f}" for each in scores.by_seed(name, best))
            if seeds:
                self.pooled[target, rate].said.append(f"R² of {name} less that of the best baseline, by seed: {seeds}")
            yield scores.full_row(name, best, groups, **where) | {"predictor": predictor}

    def _guess_totals(self, fold: Setting, offsets: OffsetForms) -> None:
        """Guess the log of the total counts of the held-out cells from their detection sets."""
        packer = fold.packer(fold.store, 1.0, scored=True)
        parts = [offsets.of_cells(batch).guess for batch in fold.batches(packer, fold.cells, "total from detection")]
        self.guesses.append(np.concatenate(parts) - np.log(fold.store.totals(fold.cells)))

    def _total_from_detection(self) -> dict[str, float]:
        """Say how well the detection set tells the total counts of the held-out cells."""
        log_total = np.concatenate([np.log(fold.store.totals(fold.cells)) for fold in self.folds])
        error, spread = np.concatenate(self.guesses), log_total - log_total.mean()
        r2 = 1 - float(error @ error / max(spread @ spread, 1e-12))
        return {"r2": r2, "median_relative_error": float(np.median(np.abs(np.expm1(error))))}

    def _notes(self, total: dict[str, float], others: list[str]) -> list[str]:
        """Return what a reader of the numbers has to know; the last sentence is about the intervals."""
        cells = np.concatenate([fold.cells for fold in self.folds])
        groups = None if self.folds[0].groups is None else self.folds[0].groups[cells]
        components, factors, penalty, count_penalty = (
            " / ".join(f"{size:g}" for size in dict.fromkeys(sizes)) for sizes in zip(*self.chosen, strict=True)
        )
        given = self.config.components is not None and self.config.penalty is not None
        notes = [
            f"offset baselines: {components} components, penalty {penalty}, {factors} value factors, penalty "
            f"{count_penalty} of the count regression" + ("" if given else ", chosen by inner validation"),
            f"total from detection: the detection set tells the log of the total counts with R² {total['r2']:.3f} "
            f"(median error {total['median_relative_error']:.0%})",
        ]
        notes += self.folds[0].notes()
        notes += others
        less = " (or the share hidden, where that is less)" if min(self.config.masks) < SCORED_SHARE else ""
        notes.append(
            f"{len(cells):,} held-out cells{self._of_folds()}; scored: a fixed random "
            f"{100 * SCORED_SHARE:g} %{less} of the detected entries"
        )
        if self.cut:
            notes.append(f"{self.cut:,} entries of cells over {self.folds[0].run.config.max_genes} genes were cut")
        if groups is not None and (groups < 0).any():
            notes.append(
                f"{int((groups < 0).sum()):,} held-out cells have no group: they count as a group of their own"
            )
        rule = resampling(groups, len(cells))
        return [*notes, rule.sentence("cells", "cells" if groups is None else "groups")]

    def _of_folds(self) -> str:
        """Say how many folds and networks there are."""
        seeds = len(self.folds[0].models)
        if len(self.folds) == 1:
            return ""
        return f" of {len(self.folds)} folds" + (f", {seeds} networks for each" if seeds > 1 else "")


def _calibrated(fold: Setting, fitted: Fitted, rate: float, predictor: Pass) -> Floors:
    """Calibrate every row on validation cells."""
    floors, cells = Floors(fitted.offsets), fold.run.cells(VALIDATION)
    for epoch in range(_CALIBRATION_DRAWS):
        packer = fold.packer(fitted.view, rate, scored=False, epoch=epoch + 1)
        predict = predictor(packer, cells)
        for batch in fold.batches(packer, cells, f"validation cells, rate {rate}"):
            floors.add(batch, predict(batch), fitted.view.totals(batch.cells))
        if rate == 1.0:
            break
    if not floors.entries:
        raise DataError(f"no validation value is hidden at {rate:g}; hide more, or give more cells.")
    floors.fit(negative_binomial=fold.config.noise == "nb")
    return floors


def _mean_of_tenths(tenths: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Average expected and observed mean counts over folds, tenth by tenth."""
    means = pd.concat([pd.DataFrame(tenth) for tenth in tenths]).groupby(level=0).mean()
    return [dict(zip(means.columns, row, strict=True)) for row in means.to_numpy().tolist()]
