"""Means over perturbations with 95 % intervals, paired differences, and the verdict that follows from them.

Perturbations (clusters) and seeds are both a sample of what could have been. K clusters, S seeds, n scores.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from sckit.errors import ConfigError, DataError

VERDICTS = ("helps", "hurts", "no difference", "undecided")

_NORMAL = 1.959964  # 97.5 % quantile of the normal law
_BLOCK = 4_000_000  # draws x clusters worked on at a time


@dataclass(frozen=True)
class Sample:
    """Scores of one predictor; a cluster may have several units (contexts, doses) and several seeds."""

    value: np.ndarray  # [n], NaN where a unit has no score
    cluster: np.ndarray  # int [n], the perturbation; the context when there is only one perturbation
    seed: np.ndarray  # int [n]

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("value", "cluster", "seed")}
        if any(shape != (len(self.value),) for shape in shapes.values()):
            raise DataError(f"value, cluster and seed must be as long as each other, not {shapes}.")

    def minus(self, other: "Sample") -> "Sample":
        """Differences score by score, NaN where either is. DataError unless both are of the same units in one order."""
        if not (np.array_equal(self.cluster, other.cluster) and np.array_equal(self.seed, other.seed)):
            raise DataError(
                f"two samples of {len(self.value)} and {len(other.value)} scores are not of the same perturbations and "
                "seeds in the same order; score both predictors on the same test units."
            )
        return Sample(self.value - other.value, self.cluster, self.seed)


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
    """Mean over clusters of the mean within each cluster, with its 95 % bootstrap interval. NaN scores drop out.

    Clusters are resampled whole: their means already carry the noise of their seeds and units, and resampling those as
    well would count it twice (Davison and Hinkley 1997, section 3.8). The percentiles of K resampled means are too
    narrow when K is small, so deviations from the mean are widened by sqrt(K / (K - 1)) * t(0.975, K - 1) / 1.96, which
    makes them those of Student's interval for normal clusters.

    A seed moves all perturbations at once, because one network predicts them all; resampling clusters does not see
    that. The variance which clusters share within a seed is estimated by analysis of variance (see `seed_variance`)
    and normal draws of it, widened for the number of seeds in the same way, are added. With one seed it is unknown and
    left out: the interval then speaks of that one training only.

    One cluster says nothing of others: low and high are None. No cluster: the mean is None too.
    """
    value, cluster, seed = _kept(sample)
    number, count = _numbered(cluster)
    if count == 0:
        return Estimate(None, None, None, 0)
    means = np.bincount(number, value) / np.bincount(number)
    mean = float(means.mean())
    if count == 1:
        return Estimate(mean, None, None, 1)
    deviations = _resampled(means - mean, generator, draws) * widening(count)
    column, seeds = _numbered(seed)
    if seeds > 1:
        weight = np.bincount(column, 1 / np.bincount(number)[number]) / count  # [S], of each seed in the mean
        spread = np.sqrt(seed_variance(sample) * (weight**2).sum()) * _heavier(seeds)
        deviations = deviations + spread * generator.standard_normal(draws)
    low, high = np.quantile(deviations, [0.025, 0.975])
    return Estimate(mean, mean + float(low), mean + float(high), count)


def paired(a: Sample, b: Sample, generator: np.random.Generator, *, draws: int = 1000) -> Estimate:
    """`interval` of a - b, unit by unit: both predictors see the same resamples. A NaN on either side drops the pair.

    Raises DataError unless both samples are of the same units in the same order.
    """
    return interval(a.minus(b), generator, draws=draws)


def verdict(ci: list[float | None], margin: float) -> str:
    """What a 95 % interval of a paired difference says, given the margin stated before the run; one of VERDICTS.

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


def widening(count: int) -> float:
    """Factor that makes bootstrap deviations of the mean of `count` >= 2 normal numbers those of Student's interval."""
    return float(np.sqrt(count / (count - 1)) * _heavier(count))


def seed_variance(sample: Sample) -> float:
    """Variance of the effect that a seed has on all clusters alike, at least 0.

    Analysis of variance of the means by cluster and seed, value = cluster + seed + noise, fitted by least squares
    whichever of them are missing: the squares of the fitted seed effects, less what noise gives them. NaN drop out.
    """
    value, cluster, seed = _kept(sample)
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


def _kept(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, cluster and seed of the scores that are not NaN."""
    kept = ~np.isnan(sample.value)
    return sample.value[kept], sample.cluster[kept], sample.seed[kept]


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


def _heavier(count: int) -> float:
    """How much wider Student's 95 % interval of `count` numbers is than the normal one."""
    return float(student.ppf(0.975, count - 1)) / _NORMAL
