"""Bootstrap intervals with one rule of what is resampled, paired differences, and the verdict that follows from them.

K groups (held-out perturbations, donors or libraries), S seeds, n units or scores.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from sckit.errors import ConfigError, DataError

FEW_GROUPS = 5
"""With fewer groups than this, units are resampled within each group instead of whole groups."""

_NORMAL = 1.959964  # 97.5 % quantile of the normal law
_BLOCK = 4_000_000  # draws x clusters worked on at a time


class Resampling:
    """The rule of every interval: what is drawn with replacement, and how much wider than its percentiles it is.

    Five groups or more are drawn whole. Resamples of fewer groups take too few values to make an interval, so that the
    units within each group are drawn instead; the interval then speaks of these groups only, which `sentence` says.
    Where one of fewer than five groups is a single unit, nothing is known of how it varies, and there is no interval.

    Percentiles of a bootstrap are too narrow for few draws. Deviations from the point estimate are widened by
    sqrt(n / (n - 1)) * t(0.975, freedom) / 1.96, where n is the number drawn from and the degrees of freedom are the
    sum of n - 1 over the groups that are drawn within: for one mean of normal values this is Student's interval.
    """

    def __init__(self, groups: np.ndarray, *, whole: bool | None = None) -> None:
        """Decide by the labels of the groups that n units (cells; perturbations with covariates) belong to.

        whole: whether groups are drawn whole, where that was decided for more units than have a score.
        """
        number, self.groups = _numbered(groups)
        self.whole = self.groups >= FEW_GROUPS if whole is None else whole
        self._piece = number if self.whole else np.arange(len(number))
        self._pieces = self.groups if self.whole else len(number)
        self.strata = [np.arange(self.groups)]  # what is drawn from among each other
        if not self.whole:
            self.strata = [np.flatnonzero(number == group) for group in range(self.groups)]
        sizes = [len(pieces) for pieces in self.strata]
        freedom = sum(sizes) - len(sizes)
        self.possible = min(sizes, default=0) > 1
        self.factors = [widening(n, freedom) if n > 1 else 0.0 for n in sizes]  # [strata]
        self._factor = float(np.average(self.factors, weights=sizes)) if self.possible else 0.0

    def resample(
        self, sums: dict[str, np.ndarray], generator: np.random.Generator, draws: int
    ) -> dict[str, np.ndarray]:
        """Return the totals [draws, columns] of sums [n, columns] over resamples, the same draws for every name.

        Memory: a block of the draws, whatever the number of units.
        """
        pieces, count = self._piece, self._pieces
        if self.whole:
            sums = {name: _added_up(part, pieces, count) for name, part in sums.items()}
        totals = {name: np.empty((draws, part.shape[1])) for name, part in sums.items()}
        for start in range(0, draws, step := max(1, _BLOCK // count)):
            block = slice(start, min(start + step, draws))
            weights = self._drawn(generator, block.stop - start)
            for name, part in sums.items():
                totals[name][block] = weights @ part
        return totals

    def weights(self, generator: np.random.Generator, draws: int) -> np.ndarray:
        """Draw how often each unit is in each resample, float64 [draws, n]."""
        return self._drawn(generator, draws)[:, self._piece]

    def _drawn(self, generator: np.random.Generator, draws: int) -> np.ndarray:
        """Draw how often each piece is in each resample, float64 [draws, pieces]."""
        weights = np.empty((draws, self._pieces))
        for pieces in self.strata:
            weights[:, pieces] = generator.multinomial(len(pieces), np.full(len(pieces), 1 / len(pieces)), draws)
        return weights

    def interval(self, point: float, resampled: np.ndarray) -> list[float | None]:
        """Return the 95 % interval [low, high] of a statistic from its values in resamples; those not finite drop out.

        Groups of different sizes are widened alike, by the mean over units of what each needs.
        """
        resampled = resampled[np.isfinite(resampled)]
        if not self.possible or not len(resampled):
            return [None, None]
        low, high = np.quantile((resampled - point) * self._factor, [0.025, 0.975])
        return [point + float(low), point + float(high)]

    def sentence(self, units: str, groups: str) -> str:
        """Say what the intervals resample and what they speak of; both names are plurals, like "cells"."""
        if not self.possible:
            return f"no intervals: there are fewer than {FEW_GROUPS} {groups}, and not each of them has several {units}"
        drawn = "intervals: 95 % bootstrap over"
        if self.whole:
            return f"{drawn} {self.groups:,} {groups}"
        if self.groups == 1:
            return f"{drawn} {units} within one group: they speak of its {units} only, not of other {groups}"
        return f"{drawn} {units} within each of {self.groups} {groups}: they do not speak of new {groups}"


@dataclass(frozen=True)
class Sample:
    """Scores of one predictor; a cluster may have several units (covariates, doses), a unit several seeds."""

    value: np.ndarray  # [n], NaN where a unit has no score
    cluster: np.ndarray  # int [n], what is held out as a whole: the perturbation, or the covariate
    seed: np.ndarray  # int [n]
    unit: np.ndarray | None = None  # int [n]; None where each cluster is a single unit
    centred: np.ndarray | None = None  # int [n], units that each score was centred with, itself included; None: not

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("value", "cluster", "seed")}
        shapes |= {"unit": self.units.shape} | ({} if self.centred is None else {"centred": self.centred.shape})
        if any(shape != (len(self.value),) for shape in shapes.values()):
            raise DataError(f"value, cluster, seed and unit must be as long as each other, not {shapes}.")

    @property
    def units(self) -> np.ndarray:
        """Unit of each score, int [n]."""
        return self.cluster if self.unit is None else self.unit

    def minus(self, other: "Sample") -> "Sample":
        """Subtract score by score, NaN where either is; the interval of the result is that of a paired difference.

        Raises DataError unless both samples are of the same units in the same order.
        """
        if not all(np.array_equal(getattr(self, k), getattr(other, k)) for k in ("cluster", "seed", "units")):
            raise DataError(
                f"two samples of {len(self.value)} and {len(other.value)} scores are not of the same perturbations and "
                "seeds in the same order; score both predictors on the same test units."
            )
        return replace(self, value=self.value - other.value)


@dataclass(frozen=True)
class Estimate:
    """A mean over clusters and its 95 % interval; None where there is nothing to compute it from."""

    mean: float | None
    low: float | None
    high: float | None
    clusters: int

    @property
    def ci(self) -> list[float | None]:
        """[low, high], as in the JSON document."""
        return [self.low, self.high]


def interval(sample: Sample, generator: np.random.Generator, *, draws: int = 1000) -> Estimate:
    """Mean over clusters of the mean within each cluster, with the interval of `Resampling`. NaN scores drop out.

    Clusters that are resampled whole carry the noise of their seeds and units in their means; resampling those as well
    would count it twice (Davison and Hinkley 1997, section 3.8).

    A seed moves all perturbations at once, because one network predicts them all, and resampling does not see that.
    The variance that what is drawn shares within a seed is estimated by analysis of variance (see `seed_variance`), and
    normal draws of it, widened for the number of seeds in the same way, are added. With one seed it is unknown and left
    out: the interval then speaks of that one training only.

    Residuals of m units about their mean add up to 0. Scores of residuals that know nothing correlate at 1 / (m - 1)^2
    by that, and deviations are widened by sqrt(m / (m - 1)). Without any score the mean is None too.
    """
    kept = ~np.isnan(sample.value)
    value, seed = sample.value[kept], sample.seed[kept]
    number, count = _numbered(sample.cluster[kept])
    if count == 0:
        return Estimate(None, None, None, 0)
    scores = np.bincount(number)
    means = np.bincount(number, value) / scores
    mean = float(means.mean())
    first, unit = np.unique(sample.units[kept], return_index=True, return_inverse=True)[1:]
    # The rule is that of all clusters asked about, also where some have no score.
    rule = Resampling(number[first], whole=Resampling(sample.cluster).whole)
    if not rule.possible:
        return Estimate(mean, None, None, count)
    if rule.whole:
        drawn_as, deviations = Sample(value, number, seed), means - mean
    else:  # what each unit adds to the mean over clusters: with equally many scores its deviation / clusters
        centred = value - means[number]
        share = np.bincount(number[first])[number] / scores[number] / count
        drawn_as, deviations = Sample(centred, unit, seed), np.bincount(unit, centred * share)
    strata = zip(rule.strata, rule.factors, strict=True)
    drawn = sum(_resampled(deviations[pieces], generator, draws) * factor for pieces, factor in strata)
    if sample.centred is not None:
        drawn = drawn * np.sqrt(np.mean(sample.centred[kept] / (sample.centred[kept] - 1)))
    column, seeds = _numbered(seed)
    if seeds > 1:
        weight = np.bincount(column, 1 / scores[number]) / count  # [S], of each seed in the mean
        spread = np.sqrt(seed_variance(drawn_as) * (weight**2).sum()) * heavier(seeds - 1)
        drawn = drawn + spread * generator.standard_normal(draws)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(mean, mean + float(low), mean + float(high), count)


def verdict(ci: list[float | None], margin: float) -> str:
    """What a 95 % interval of a paired difference says, given the margin stated before the run.

    "no difference": the whole interval lies within [-margin, +margin], even when it leaves 0 out: what there may be is
    smaller than was said to matter. Else "helps": all above 0; "hurts": all below 0; else, or without an interval,
    "undecided". Two one-sided tests (Schuirmann 1987) are customarily run at 5 %, that is with a 90 % interval; this is
    at 2.5 % and so stricter. Raises ConfigError for a negative margin.
    """
    if not margin >= 0:
        raise ConfigError(f"the margin is {margin}; it must be 0 or more, in units of the headline metric.")
    low, high = ci
    if low is None or high is None:
        return "undecided"
    if -margin <= low and high <= margin:
        return "no difference"
    return "helps" if low > 0 else "hurts" if high < 0 else "undecided"


def gap_closed(score: float | None, trivial: float | None, ceiling: float | None) -> float | None:
    """Share of the way from the best trivial baseline to the ceiling; negative below the baseline, above 1 beyond.

    None when a score is missing or the ceiling is not above the baseline: then there is no way to go.
    """
    if score is None or trivial is None or ceiling is None or not ceiling > trivial:
        return None
    return (score - trivial) / (ceiling - trivial)


def widening(count: int, freedom: int) -> float:
    """Factor that makes bootstrap deviations of the mean of `count` >= 2 normal numbers those of Student's interval."""
    return float(np.sqrt(count / (count - 1)) * heavier(freedom))


def seed_variance(sample: Sample) -> float:
    """Variance of the effect that a seed has on all clusters alike, at least 0.

    Analysis of variance of the means by cluster and seed, value = cluster + seed + noise, fitted by least squares
    whichever of them are missing: the squares of the fitted seed effects, less what noise gives them. NaN drop out.
    """
    kept = ~np.isnan(sample.value)
    value, cluster, seed = sample.value[kept], sample.cluster[kept], sample.seed[kept]
    row, rows = _numbered(cluster)
    column, columns = _numbered(seed)
    flat = row * columns + column
    entries = np.bincount(flat, minlength=rows * columns).reshape(rows, columns)
    there = entries > 0  # [K, S]
    table = np.bincount(flat, value, minlength=rows * columns).reshape(rows, columns) / np.maximum(entries, 1)
    table = np.where(there, table - (table.sum(1) / there.sum(1))[:, None], 0.0)  # about each cluster's own mean
    share = there / there.sum(1, keepdims=True)
    normal = np.diag(there.sum(0)) - share.T @ there  # [S, S], of rank S - 1 when all seeds are linked by clusters
    inverse, rank = np.linalg.pinv(normal, rcond=1e-9, hermitian=True), np.linalg.matrix_rank(normal, hermitian=True)
    effect = inverse @ table.sum(0)
    freedom = there.sum() - rows - rank
    if rank < 1:
        return _nested_variance(value, cluster, seed)
    if freedom < 1:
        return 0.0
    noise = ((table - np.where(there, effect - (share @ effect)[:, None], 0.0)) ** 2).sum() / freedom
    return max(0.0, float((effect @ effect - noise * np.trace(inverse)) / rank))


def _nested_variance(value: np.ndarray, cluster: np.ndarray, seed: np.ndarray) -> float:
    """The same where each cluster has one seed: one-way analysis of variance of cluster means between and within seeds.

    Seeds that test different perturbations differ by those too; what is beyond that is the seed's own.
    """
    number, count = _numbered(cluster)
    means = np.bincount(number, value) / np.bincount(number)
    of_seed = np.zeros(count, np.int64)
    column, seeds = _numbered(seed)
    of_seed[number] = column
    sizes = np.bincount(of_seed, minlength=seeds)
    if seeds < 2 or count <= seeds:
        return 0.0
    centres = np.bincount(of_seed, means, minlength=seeds) / sizes
    within = ((means - centres[of_seed]) ** 2).sum() / (count - seeds)
    between = (sizes * (centres - means.mean()) ** 2).sum() / (seeds - 1)
    typical = (count - (sizes**2).sum() / count) / (seeds - 1)
    return max(0.0, float((between - within) / typical))


def _added_up(sums: np.ndarray, piece: np.ndarray, count: int) -> np.ndarray:
    """Add up rows [n, columns] by the piece that each belongs to, [pieces, columns]."""
    return np.stack([np.bincount(piece, column, minlength=count) for column in sums.T], 1)


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels as numbers from 0 [n], and how many there are."""
    names, number = np.unique(labels, return_inverse=True)
    return number, len(names)


def _resampled(deviations: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Means [draws] of the deviations [K] drawn with replacement."""
    count = len(deviations)
    step = max(1, _BLOCK // count)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    return np.concatenate([deviations[generator.integers(count, size=(n, count))].mean(1) for n in sizes])


def heavier(freedom: int) -> float:
    """How much wider Student's 95 % interval is than the normal one."""
    return float(student.ppf(0.975, freedom)) / _NORMAL
