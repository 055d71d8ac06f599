"""From scores of single units to means with intervals, paired differences, ceilings, gaps and verdicts."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sckit.config.finetune import ARMS, FinetuneConfig
from sckit.files import to_json
from sckit.metrics.effects import HEADLINE, METRICS
from sckit.metrics.intervals import Estimate, Sample, gap_closed, interval, paired, verdict
from sckit.perturbation.baselines import RESPONSE
from sckit.perturbation.baselines_partial import PARTIAL
from sckit.perturbation.fold import CEILING, Score
from sckit.perturbation.repeats import chance_level, repeat_correlation, replicate_scores
from sckit.perturbation.screen import Screen

TRIVIAL = ("no change", "mean", "additive")
_ORDER = {name: i for i, name in enumerate((*dict.fromkeys(RESPONSE + PARTIAL), *ARMS, CEILING))}

Where = tuple[float | None, float]
"""Revealed share and training share."""


@dataclass(frozen=True)
class Finetuned:
    """Result of `finetune`; `subset` is "all" perturbations or the "repeating" ones, whose effect repeats."""

    task: str
    level: str
    split: str
    seeds: int
    margin: float
    headline: str
    rows: list[dict[str, Any]]  # predictor, revealed, train_share, metric, mean, ci, perturbations, subset
    paired: list[dict[str, Any]]  # a, b, metric, revealed, train_share, diff, ci, verdict, subset
    ceiling: dict[
        str, float | None
    ]  # metric -> score of the other half of the same unit's cells (or counts), all units
    ceilings: list[dict[str, Any]]  # kind, subset, metric, mean, ci
    gap: list[dict[str, Any]]  # predictor, revealed, train_share, metric, subset, baseline, share
    cells: list[dict[str, Any]]  # condition, context, cells, repeats, repeat_r
    facts: dict[str, Any]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """The one JSON document that `sckit finetune --json` prints; `rows` and `paired` are of all perturbations."""
        parts = {name: getattr(self, name) for name in ("rows", "paired", "ceilings", "gap")}
        whole, repeating = (
            {name: [_without_subset(row) for row in rows if row["subset"] == subset] for name, rows in parts.items()}
            for subset in ("all", "repeating")
        )
        names = ("task", "level", "split", "seeds", "margin", "headline", "ceiling", "cells", "facts", "notes")
        head = {"command": "finetune"} | {name: getattr(self, name) for name in names}
        return to_json(head | whole | {"repeating": repeating})


def summarise(
    screen: Screen, config: FinetuneConfig, split: str, scores: Iterable[Score], *, facts: dict, notes: list[str]
) -> Finetuned:
    """Bring the scores of all jobs together. Which perturbations repeat is judged on their cells, by no predictor."""
    values = screen.values
    repeat_r, chance = repeat_correlation(screen, values, config.seed), chance_level(screen, values, config.seed)
    repeats = repeat_r > chance
    tables = _Tables(screen, config, split, list(scores))
    subsets = {"all": np.ones(len(repeats), bool)}
    if 0 < repeats.sum() < len(repeats):
        subsets["repeating"] = repeats
    rows, pairs, gaps = [], [], []
    ceilings: list[dict[str, Any]] = []
    replicates = replicate_scores(screen, values)
    for subset, chosen in subsets.items():
        label = {"subset": subset}
        rows += [row | label for row in tables.rows(chosen)]
        pairs += [row | label for row in tables.paired(chosen)]
        own: list[dict[str, Any]] = [row | label for row in tables.ceilings(chosen, replicates)]
        ceilings += own
        of_halves: dict[str, float | None] = {row["metric"]: row["mean"] for row in own if row["kind"] != "replicates"}
        gaps += [row | label for row in tables.gaps(chosen, of_halves)]
    first: dict[str, float | None] = {
        row["metric"]: row["mean"] for row in ceilings if row["subset"] == "all" and row["kind"] != "replicates"
    }
    column = f" ({config.unseen or ', '.join(config.context)})" if split == "context" else ""
    settings = asdict(config) | {"split": split}
    return Finetuned(
        task=config.task,
        level=config.level,
        split=f"unseen {split}{column}",
        seeds=config.seeds,
        margin=config.margin,
        headline=HEADLINE,
        rows=rows,
        paired=pairs,
        ceiling=first,
        ceilings=ceilings,
        gap=gaps,
        cells=_cells(screen, repeat_r, repeats),
        facts=facts | {"chance_repeat_r": chance, "repeating": int(repeats.sum()), "config": settings},
        notes=notes,
    )


class _Tables:
    """Scores as samples by predictor and place."""

    def __init__(self, screen: Screen, config: FinetuneConfig, split: str, scores: list[Score]) -> None:
        self.config = config
        self.largest = max(config.train_shares)
        # What is resampled is what is held out: of two donors with five cell types each there are two, not ten.
        by_context = split == "context"
        labels = [screen.unseen_of_context[u.context] if by_context else str(u.parts) for u in screen.units]
        number = {label: i for i, label in enumerate(sorted(set(labels)))}
        self.cluster = np.array([number[label] for label in labels])
        found: dict[tuple[str, Where], list[Score]] = {}
        for score in sorted(scores, key=lambda s: (s.unit, s.seed)):
            found.setdefault((score.predictor, (score.revealed, score.train_share)), []).append(score)
        self.scores = found
        self.places: list[Where] = sorted({where for _, where in found}, key=lambda w: (w[0] or 0.0, w[1]))

    def names(self, where: Where) -> list[str]:
        """Predictors scored at a place, baselines first."""
        return sorted((name for name, at in self.scores if at == where and name != CEILING), key=lambda n: _ORDER[n])

    def sample(self, name: str, where: Where, metric: str, chosen: np.ndarray, *, as_loss: bool = False) -> Sample:
        """Scores of a predictor on the chosen units; as_loss: of the slope, how near to 1 it is."""
        scores = [s for s in self.scores[name, where] if chosen[s.unit]]
        value = np.array([s.metrics[metric] for s in scores], np.float64)
        if as_loss and metric == "slope":
            value = -np.abs(1 - value)
        units = np.array([s.unit for s in scores], np.int64)
        return Sample(value, self.cluster[units], np.array([s.seed for s in scores], np.int64), units)

    def estimate(self, name: str, where: Where, metric: str, chosen: np.ndarray) -> Estimate:
        """Mean and interval; one generator seed for all, so that the resamples are shared."""
        sample = self.sample(name, where, metric, chosen)
        return interval(sample, self._generator(), draws=self.config.bootstraps)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, 30))

    def rows(self, chosen: np.ndarray) -> list[dict[str, Any]]:
        """Every predictor, place and metric."""
        found = []
        for where in self.places:
            for name in self.names(where):
                for metric in METRICS:
                    mean = self.estimate(name, where, metric, chosen)
                    found.append(
                        {"predictor": name, **_place(where), "metric": metric, "mean": mean.mean, "ci": mean.ci}
                        | {"perturbations": mean.clusters}
                    )
        return found

    def paired(self, chosen: np.ndarray) -> list[dict[str, Any]]:
        """The pretrained arm less every other; each arm less the best trivial baseline, the best of all, the mean."""
        found = []
        for where in self.places:
            arms = [name for name in self.names(where) if name in ARMS]
            pairs = [("pretrained", other) for other in arms if "pretrained" in arms and other != "pretrained"]
            trivial = self.best(where, chosen, TRIVIAL)
            strongest = self.best(where, chosen, [n for n in self.names(where) if n not in ARMS])
            pairs += [(arm, other) for arm in arms for other in dict.fromkeys((trivial, strongest, "mean"))]
            for a, b in pairs:
                for metric in METRICS:
                    one, other = (self.sample(name, where, metric, chosen, as_loss=True) for name in (a, b))
                    difference = paired(one, other, self._generator(), draws=self.config.bootstraps)
                    found.append(
                        {"a": a, "b": b, "metric": metric, **_place(where), "diff": difference.mean}
                        | {"ci": difference.ci, "verdict": verdict(difference.ci, self.config.margin)}
                    )
        return found

    def best(self, where: Where, chosen: np.ndarray, among: Iterable[str]) -> str:
        """The predictor of the highest headline score; a tie goes to the first."""
        names = [name for name in among if (name, where) in self.scores]
        return max(names, key=lambda name: self.estimate(name, where, HEADLINE, chosen).mean or 0.0)

    def ceilings(self, chosen: np.ndarray, replicates: dict[str, np.ndarray] | None) -> list[dict[str, Any]]:
        """The other half of a unit's cells (or of a cell's counts) as a predictor, and one replicate of another."""
        kind = "count halves" if self.config.level == "cell" else "half-cells"
        where = next(at for at in reversed(self.places) if (CEILING, at) in self.scores and at[1] == self.largest)
        found = []
        for metric in METRICS:
            mean = self.estimate(CEILING, where, metric, chosen)
            found.append({"kind": kind, "metric": metric, "mean": mean.mean, "ci": mean.ci})
        for metric in METRICS if replicates is not None else ():
            value = np.where(chosen, replicates[metric], np.nan)  # type: ignore[index]
            sample = Sample(value, self.cluster, np.zeros(len(value), np.int64), np.arange(len(value)))
            mean = interval(sample, self._generator(), draws=self.config.bootstraps)
            found.append({"kind": "replicates", "metric": metric, "mean": mean.mean, "ci": mean.ci})
        return found

    def gaps(self, chosen: np.ndarray, ceiling: dict[str, float | None]) -> list[dict[str, Any]]:
        """Share of the way from the best trivial baseline to the ceiling that each predictor goes."""
        found = []
        for where in self.places:
            trivial = self.best(where, chosen, TRIVIAL)
            for name in (n for n in self.names(where) if n not in TRIVIAL):
                for metric in (m for m in METRICS if m != "slope"):
                    score, base = (self.estimate(n, where, metric, chosen).mean for n in (name, trivial))
                    share = gap_closed(score, base, ceiling[metric])
                    found.append(
                        {"predictor": name, **_place(where), "metric": metric, "baseline": trivial, "share": share}
                    )
        return found


def _place(where: Where) -> dict[str, float | None]:
    return {"revealed": where[0], "train_share": where[1]}


def _without_subset(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "subset"}


def _cells(screen: Screen, repeat_r: np.ndarray, repeats: np.ndarray) -> list[dict[str, Any]]:
    """The table of cells with what is known of each unit's effect; controls first."""
    rows = [
        {"condition": row["condition"], "context": row["context"], "cells": row["cells"], "repeats": None}
        | {"repeat_r": None}
        for row in screen.table if row["control"]
    ]  # fmt: skip
    for unit, r, known in zip(screen.units, repeat_r, repeats, strict=True):
        rows.append(
            {"condition": unit.name, "context": screen.contexts[unit.context], "cells": len(unit.cells)}
            | {"repeats": bool(known), "repeat_r": float(r)}
        )
    return rows
