"""Evaluation on held-out cells: the model, the linear baselines and the replicate at any mask rate.

The scored entries are the same at every rate, so the points of a sweep compare like with like, and every difference is
paired. For the half-depth target each cell's molecules are drawn into halves A and B. Every predictor predicts A: the
replicate from B, all others from what A shows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.config import EvalConfig
from sckit.data.batch import SCORED_SHARE, Batch, Hiding, Packer, swap_like_depth
from sckit.data.halves import Halves, nb_sizes, replicate_values
from sckit.data.labels import group_values
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.data.split import HELD_OUT, TRAIN
from sckit.data.views import CountsView, CutView
from sckit.device import choose_compute
from sckit.errors import DataError
from sckit.files import to_json
from sckit.metrics.values import CLOSED_FORMS, Scores, json_row, resampling
from sckit.model.closed_forms import ClosedForms, fit_label_depth
from sckit.model.predict import predict
from sckit.model.regression import value_blocks
from sckit.training.run import Run, find_run, fit_baselines, open_run

Predictor = Callable[[Batch], np.ndarray]

_CLUSTERS = 20


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: one row for each predictor, rate and target, and sentences on what they rest on."""

    run: Path
    cells: int
    entries: int
    table: pd.DataFrame  # the columns of `Scores.full_row`; intervals end in _low and _high
    notes: list[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table as JSON has them, intervals and differences as lists and objects of their own."""
        return [json_row(row) for row in to_json(self.table.to_dict("records"))]

    def document(self) -> dict[str, Any]:
        """Return the one JSON document that `sckit eval --json` prints."""
        facts = {"run": str(self.run), "cells": self.cells, "entries": self.entries, "rows": self.rows}
        return {"command": "eval"} | facts


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


class _Evaluator:
    def __init__(self, run: Run, config: EvalConfig, on_event: Callable) -> None:
        self.run, self.config, self.on_event = run, config, on_event
        self.store = run.store
        self.compute = choose_compute(config.device, config.engine)
        self.model = run.model(self.compute.device)
        self.model.engine = self.compute.engine
        self.vocabulary = run.vocabulary
        self.cells = run.cells(HELD_OUT)
        if config.max_cells is not None and config.max_cells < len(self.cells):
            drawn = np.random.default_rng(config.seed).permutation(self.cells)
            self.cells = np.sort(drawn[: config.max_cells])
        self.known_depth = config.known_depth or run.config.known_depth
        column = config.group or run.config.group
        self.cut = 0
        self.groups = group_values(self.store.obs, column) if column else None

    def evaluate(self) -> Evaluation:
        rows, entries = [], 0
        targets: dict[str, tuple[CountsView, ClosedForms]] = {"full": (self.store, self.run.forms)}
        if self.config.replicate_halves:
            targets["half"] = self._halves()
        for target, (view, forms) in targets.items():
            labels = self._labels(view, forms)
            for rate in self.config.masks:
                scores = self._score(view, forms, labels, rate, target)
                entries = max(entries, scores.entries)
                rows += self._rows(scores, rate, target)
        ends = {name: float for name in rows[0] if name.endswith(("_low", "_high"))}  # None where there is no interval
        return Evaluation(self.run.path, len(self.cells), entries, pd.DataFrame(rows).astype(ends), self._notes())

    def _halves(self) -> tuple[Halves, ClosedForms]:
        """Return the A halves of all cells, and the linear baselines fitted on the A halves of the training cells."""
        text = f"halving the molecules ({self.config.halving}); refitting the linear baselines on halves"
        self.on_event("note", {"text": text})
        train = self.run.cells(TRAIN)
        sizes = nb_sizes(self.store, train, self._clusters(train)) if self.config.halving == "nb" else None
        view = Halves(self.store, self.config.seed, sizes)
        return view, fit_baselines(view, self.vocabulary, train, self.run.config)

    def _clusters(self, cells: np.ndarray) -> np.ndarray:
        """Twenty clusters of like cells by their detection components, int64 [len(cells)]."""
        from scipy.cluster.vq import kmeans2

        blocks = value_blocks(self.store, self.vocabulary, cells)
        x = np.concatenate([self.run.forms.block_features(block)[:, 2:-1] for block in blocks])
        first = np.random.default_rng(self.config.seed).permutation(len(x))[:_CLUSTERS]
        return kmeans2(x, x[first], minit="matrix")[1].astype(np.int64)

    def _labels(self, view: CountsView, forms: ClosedForms) -> Predictor | None:
        if self.config.label is None:
            return None
        labels = group_values(self.store.obs, self.config.label)
        cut = CutView(view, self.vocabulary, self.run.config.max_genes, self.run.config.seed)
        return fit_label_depth(cut, self.vocabulary, self.run.cells(TRAIN), labels, forms)

    def _score(
        self, view: CountsView, forms: ClosedForms, labels: Predictor | None, rate: float, target: str
    ) -> Scores:
        packer = Packer(
            view,
            self.vocabulary,
            Hiding(rate, self.config.seed),
            known_depth=self.known_depth,
            scored=True,
            max_genes=self.run.config.max_genes,
        )
        lengths = np.zeros(self.store.n_cells, np.int64)
        lengths[self.cells] = detected_in(view, self.vocabulary, self.cells)
        partners = swap_like_depth(lengths, self.cells)
        scores = Scores(len(self.run.genes), seed=self.config.seed, bootstraps=self.config.bootstraps)
        parts = batches_by_tokens(self.cells, lengths, self.config.batch_tokens)
        for i, part in enumerate(parts):
            plain = packer(part)
            predicted = forms.predict(plain)
            if labels is not None:
                predicted["label + depth"] = labels(plain)
            if isinstance(view, Halves):
                predicted["replicate"] = replicate_values(view, plain, self.vocabulary)
            for context in self.config.contexts:
                shown = replace(packer, context=context, partners=partners)
                batch = plain if context == "detected" else shown(part)
                predicted[f"model/{context}"] = self._predict(batch, forms)
            scores.add(plain, predicted, view.totals(part))
            self.cut += plain.cut if rate == self.config.masks[0] and target == "full" else 0
            self.on_event("progress", {"done": i + 1, "of": len(parts), "what": f"target {target} rate {rate}"})
        if not scores.entries:
            raise DataError(f"no entry is scored with {rate:g} of the values hidden; hide more, or give more cells.")
        return scores

    def _predict(self, batch: Batch, forms: ClosedForms) -> np.ndarray:
        """Return the model's values; at half depth its linear part is refitted, and what it learned stays.

        Every linear baseline in the table was fitted on halves. The one that the model started from is therefore
        exchanged for the one fitted on halves, which changes nothing for the full-depth target.
        """
        values = predict(self.model, batch, self.compute)
        if forms is self.run.forms:
            return values
        start = "value ridge" if self.run.config.warm_start and batch.context != "visible" else "gene mean"
        return values + forms.predict(batch)[start] - self.run.forms.predict(batch)[start]

    def _rows(self, scores: Scores, rate: float, target: str) -> Iterator[dict[str, Any]]:
        """Yield the table rows of one rate and target: baselines, the replicate, and the model in each context."""
        groups = None if self.groups is None else self.groups[scores.cells]
        order = [name for name in (*CLOSED_FORMS, "replicate") if name in scores.predictors]
        for name in order + [name for name in scores.predictors if name.startswith("model/")]:
            predictor, _, context = name.partition("/")
            where = {"rate": rate, "context": context or None, "known_depth": self.known_depth, "target": target}
            yield scores.full_row(name, groups, **where) | {"predictor": predictor}

    def _notes(self) -> list[str]:
        """Return what a reader of the numbers has to know; the last sentence is about the intervals."""
        groups = None if self.groups is None else self.groups[self.cells]
        notes = []
        if self.config.replicate_halves:
            notes.append(
                "half-depth target: the linear baselines, and the one that the model starts from, are refitted on "
                "halves of the training cells"
            )
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
