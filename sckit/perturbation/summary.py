"""From scores of single units to means with intervals, paired differences, ceilings, gaps and verdicts."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sckit.config import ARMS, FinetuneConfig, as_documented
from sckit.files import to_json
from sckit.metrics import HEADLINE, METRICS, Estimate, Resampling, Sample, gap_closed, interval, verdict
from sckit.perturbation.baselines import RESPONSE
from sckit.perturbation.baselines_partial import PARTIAL
from sckit.perturbation.questions import CEILING, Score
from sckit.perturbation.repeats import chance_level, repeat_correlation, replicate_scores
from sckit.perturbation.screen import Screen

TRIVIAL = ("no change", "mean", "additive")
COLUMNS = {
    "scores": ("predictor", "revealed", "train_share", "metric", "mean", "low", "high", "perturbations", "subset"),
    "differences": ("a", "b", "metric", "revealed", "train_share", "diff", "low", "high", "verdict", "subset"),
    "ceilings": ("kind", "metric", "mean", "low", "high", "subset"),
    "gaps": ("predictor", "revealed", "train_share", "metric", "baseline", "share", "subset"),
    "cells": ("condition", "context", "cells", "repeats", "repeat_r"),
}
"""Columns of the tables of a result; low and high are the ends of the 95 % interval."""

_IN_JSON = {"rows": "scores", "paired": "differences", "ceilings": "ceilings", "gap": "gaps"}
_ORDER = [*dict.fromkeys((*RESPONSE, *PARTIAL)), *ARMS]


class Where(NamedTuple):
    """A place in the tables: how much was revealed and how much was learned from."""

    revealed: float | None
    train_share: float


@dataclass(frozen=True)
class Finetuned:
    """Result of `finetune`; `subset` is "all" perturbations or the "repeating" ones, whose effect repeats."""

    task: str
    split: str
    held_out: str  # what a mean is over, in the plural: "perturbations" or "values of donor"
    seeds: int
    margin: float
    headline: str
    scores: pd.DataFrame  # the columns of this and the next four are in COLUMNS
    differences: pd.DataFrame
    ceilings: pd.DataFrame  # the other half of the same unit's cells, and replicates, as predictors
    gaps: pd.DataFrame
    cells: pd.DataFrame
    facts: dict[str, Any]
    notes: list[str]
    intervals: list[str]  # what they resample and speak of, a sentence for each subset

    @property
    def ceiling(self) -> dict[str, float]:
        """Score of the other half of the same unit's cells by metric, over all units."""
        halves = self.ceilings[(self.ceilings["kind"] != "replicates") & (self.ceilings["subset"] == "all")]
        return dict(zip(halves["metric"], halves["mean"], strict=True))

    @property
    def predictors(self) -> list[str]:
        """Names: baselines in the order of the scores, then the arms in their own."""
        # Scores with all training data come first: with less of it only some of the baselines may be there.
        names = list(self.scores.sort_values("train_share", ascending=False, kind="stable")["predictor"].unique())
        return [name for name in names if name not in ARMS] + [arm for arm in ARMS if arm in names]

    @property
    def subsets(self) -> list[str]:
        """Subsets of the perturbations, "all" first."""
        return sorted(self.scores["subset"].unique(), key=lambda name: name != "all")

    def shares(self, along: str) -> list[float]:
        """Shares along "train_share" or "revealed", rising; none where nothing is revealed."""
        return sorted(self.scores[along].dropna().unique())

    @property
    def full_share(self) -> float:
        """The largest share of the training data."""
        return max(self.shares("train_share"), default=1.0)

    @property
    def shown_share(self) -> float | None:
        """Revealed share of the full table: a half, else the middle one of those above 0; None where there is none."""
        revealed = self.shares("revealed")
        if 0.5 in revealed:
            return 0.5
        positive = [share for share in revealed if share > 0] or revealed
        return positive[len(positive) // 2] if positive else None

    @property
    def shown(self) -> dict[str, float | None]:
        """Columns and values of the rows of the full table."""
        return {"revealed": self.shown_share, "train_share": self.full_share}

    def document(self) -> dict[str, Any]:
        """Return the one JSON document that `sckit finetune --json` prints; `rows` and `paired` are of all units."""
        names = ("task", "level", "split", "seeds", "margin", "headline", "ceiling", "cells", "facts", "notes")
        given = vars(self) | {"level": "pseudobulk", "ceiling": self.ceiling, "cells": self.cells.to_dict("records")}
        head = {"command": "finetune"} | {name: given[name] for name in names}
        whole, repeating = (
            {name: _json_rows(getattr(self, table), subset) for name, table in _IN_JSON.items()}
            for subset in ("all", "repeating")
        )
        return to_json(head | whole | {"repeating": repeating})


def _json_rows(table: pd.DataFrame, subset: str) -> list[dict[str, Any]]:
    """Rows of a subset, with the ends of the interval in one list."""
    found = table.loc[table["subset"] == subset].drop(columns="subset").rename(columns={"low": "ci"})
    rows: Any = found.to_dict("records")
    for row in rows:
        if "ci" in row:
            row["ci"] = [row["ci"], row.pop("high")]
    return rows


def summarise(
    screen: Screen, config: FinetuneConfig, split: str, scores: Iterable[Score], *, facts: dict, notes: list[str]
) -> Finetuned:
    """Bring the scores of all jobs together. Which perturbations repeat is judged on their cells, by no predictor."""
    values = screen.values
    repeat_r, chance = repeat_correlation(screen, values, config.seed), chance_level(screen, values, config.seed)
    repeats = repeat_r > chance
    subsets = {"all": np.ones(len(repeats), bool)}
    if 0 < repeats.sum() < len(repeats):
        subsets["repeating"] = repeats
    column = config.unseen or ", ".join(config.covariates)
    held_out, within = (f"values of {column}", f" ({column})") if split == "covariate" else ("perturbations", "")
    cluster = held_out_together(screen, split)
    replicates = replicate_scores(screen, values)
    groups = screen.centring_groups(np.arange(len(repeats)))
    scores = sorted(scores, key=lambda s: (s.unit, s.seed))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    intervals = []
    for subset, chosen in subsets.items():
        tables = _Tables(config, cluster, np.bincount(groups)[groups], scores, chosen)
        found = {"scores": tables.scores(), "differences": tables.differences(), "gaps": tables.gaps()}
        for name, some in (found | {"ceilings": tables.ceilings(replicates)}).items():
            rows[name] += [row | {"subset": subset} for row in some]
        those = "" if subset == "all" else "where the effect repeats, "
        intervals.append(those + tables.resampling.sentence("perturbation-covariate pairs", held_out))
        notes = notes if tables.resampling.whole else [*notes, intervals[-1]]
    tests = {(s.seed, s.unit): s.group_size for s in scores}
    if alone := sum(size == 1 for size in tests.values()):
        text = "tests of a unit have no headline, because no other unit of its covariate group is in the same fold"
        notes = [*notes, f"{alone} of {len(tests)} {text}; fewer --folds can help"]
    rows["cells"] = list(_cells(screen, repeat_r, repeats))
    documented = "context" if split == "covariate" else split  # as documents have always named it
    settings = as_documented(config) | {"split": documented}
    return Finetuned(
        task=config.task,
        split=f"unseen {documented}{within}",
        held_out=held_out,
        seeds=config.seeds,
        margin=config.margin,
        headline=HEADLINE,
        **{name: pd.DataFrame(rows[name], columns=pd.Index(columns)) for name, columns in COLUMNS.items()},
        facts=facts | {"chance_repeat_r": chance, "repeating": int(repeats.sum()), "config": settings},
        notes=notes,
        intervals=intervals,
    )


def held_out_together(screen: Screen, split: str) -> np.ndarray:
    """Return the number of what is held out with each unit, int [U]: of two donors with five cell types each, two."""
    by_value = split == "covariate"
    labels = [screen.unseen_of_covariates[u.covariates] if by_value else str(u.parts) for u in screen.units]
    return np.unique(labels, return_inverse=True)[1]


class _Tables:
    """Rows of the tables of some units, from their scores by predictor and place."""

    def __init__(
        self, config: FinetuneConfig, cluster: np.ndarray, sizes: np.ndarray, scores: list[Score], chosen: np.ndarray
    ) -> None:
        """sizes: units that each unit is centred with between replicates, int [U]; chosen: units of the rows."""
        self.config, self.cluster, self.sizes, self.chosen = config, cluster, sizes, chosen
        self.samples: dict[tuple[str, Where], list[Score]] = {}
        for score in scores:
            found = self.samples.setdefault((score.predictor, Where(score.revealed, score.train_share)), [])
            found += [score] if chosen[score.unit] else []
        tested = {score.unit for found in self.samples.values() for score in found}
        self.resampling = Resampling(cluster[sorted(tested)])
        self.places = sorted({where for _, where in self.samples}, key=lambda w: (w.revealed or 0.0, w.train_share))
        self.estimates = {
            (*of, metric): self.estimate(self.sample(*of, metric)) for of in self.samples for metric in METRICS
        }

    def names(self, where: Where) -> list[str]:
        """Predictors scored at a place, baselines first."""
        return sorted((name for name, at in self.samples if at == where and name != CEILING), key=_ORDER.index)

    def sample(self, name: str, where: Where, metric: str, *, as_loss: bool = False) -> Sample:
        """Scores of a predictor; as_loss: of the slope, how near to 1 it is."""
        scores = self.samples[name, where]
        value = np.array([s.metrics[metric] for s in scores], np.float64)
        if as_loss and metric == "slope":
            value = -np.abs(1 - value)
        units = np.array([s.unit for s in scores], np.int64)
        sizes = np.array([s.group_size for s in scores], np.int64) if metric == HEADLINE else None
        return Sample(value, self.cluster[units], np.array([s.seed for s in scores], np.int64), units, sizes)

    def estimate(self, sample: Sample) -> Estimate:
        """Mean and interval; one generator seed for all, so that the resamples are shared."""
        return interval(sample, np.random.default_rng((self.config.seed, 30)), draws=self.config.bootstraps)

    def best(self, where: Where, among: Iterable[str]) -> str:
        """The predictor of the highest headline score; a tie goes to the first."""
        names = [name for name in among if (name, where) in self.samples]
        return max(names, key=lambda name: self.estimates[name, where, HEADLINE].mean or 0.0)

    def scores(self) -> Iterator[dict[str, Any]]:
        """Every predictor, place and metric."""
        for where in self.places:
            for name, metric in itertools.product(self.names(where), METRICS):
                found = self.estimates[name, where, metric]
                row = {"predictor": name, "metric": metric, "perturbations": found.clusters}
                yield row | where._asdict() | vars(found)

    def differences(self) -> Iterator[dict[str, Any]]:
        """The pretrained arm less every other; each arm less the best trivial baseline, the best of all, the mean."""
        for where in self.places:
            names = self.names(where)
            arms = [name for name in names if name in ARMS]
            pairs = [("pretrained", other) for other in arms if "pretrained" in arms and other != "pretrained"]
            strongest = self.best(where, [name for name in names if name not in ARMS])
            baselines = dict.fromkeys((self.best(where, TRIVIAL), strongest, "mean"))
            pairs += itertools.product(arms, baselines)
            for (a, b), metric in itertools.product(pairs, METRICS):
                one, other = (self.sample(name, where, metric, as_loss=True) for name in (a, b))
                found = self.estimate(one.minus(other))
                row = {"a": a, "b": b, "metric": metric, "verdict": verdict(found.ci, self.config.margin)}
                yield row | where._asdict() | vars(found) | {"diff": found.mean}

    def ceilings(self, replicates: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """The other half of a unit's cells as a predictor, and one replicate as a predictor of another."""
        where = self._at_ceiling
        for metric in METRICS:
            yield {"kind": "half-cells", "metric": metric} | vars(self.estimates[CEILING, where, metric])
        for metric, of_units in replicates.items():
            value, units = np.where(self.chosen, of_units, np.nan), np.arange(len(self.chosen))
            sizes = self.sizes if metric == HEADLINE else None
            found = self.estimate(Sample(value, self.cluster, np.zeros_like(units), units, sizes))
            yield {"kind": "replicates", "metric": metric} | vars(found)

    def gaps(self) -> Iterator[dict[str, Any]]:
        """Share of the way from the best trivial baseline to the ceiling that each predictor goes."""
        for where in self.places:
            trivial = self.best(where, TRIVIAL)
            names = [name for name in self.names(where) if name not in TRIVIAL]
            for name, metric in itertools.product(names, (metric for metric in METRICS if metric != "slope")):
                places = (name, where), (trivial, where), (CEILING, self._at_ceiling)
                share = gap_closed(*(self.estimates[*place, metric].mean for place in places))
                row = {"predictor": name, "metric": metric, "baseline": trivial, "share": share}
                yield row | where._asdict()

    @property
    def _at_ceiling(self) -> Where:
        """Where the ceiling is read off: the most revealed, all training data."""
        largest = max(self.config.train_shares)
        return next(at for at in reversed(self.places) if (CEILING, at) in self.samples and at.train_share == largest)


def _cells(screen: Screen, repeat_r: np.ndarray, repeats: np.ndarray) -> Iterator[dict[str, Any]]:
    """The table of cells with what is known of each unit's effect; controls first."""
    for row in screen.table:
        if row["control"]:
            yield {"condition": row["condition"], "context": row["context"], "cells": row["cells"]}
    for unit, r, known in zip(screen.units, repeat_r, repeats, strict=True):
        where = {"condition": unit.name, "context": screen.covariates[unit.covariates], "cells": len(unit.cells)}
        yield where | {"repeats": bool(known), "repeat_r": float(r)}
