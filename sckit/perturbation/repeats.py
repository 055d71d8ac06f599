"""Which perturbations have an effect at all: one that repeats between disjoint cells, or between replicates."""

import itertools

import numpy as np
import scipy.sparse as sp

from sckit.metrics import FORMER_HEADLINE, METRICS, Truth, correlation_of_rows, score
from sckit.perturbation.screen import Screen
from sckit.perturbation.splits import composition, group_moments, halve, stratum_moments

_NULLS = 200
_QUANTILE = 0.99
_HALVINGS = 5


def repeat_correlation(screen: Screen, values: sp.csr_array, seed: int) -> np.ndarray:
    """Correlation over genes between the deltas of two disjoint halves, controls disjoint too; mean of five [U]."""
    strata, scored, found = composition(screen), screen.scored(np.arange(len(screen.units))), []
    for i in range(_HALVINGS):
        halving = halve(screen, np.random.default_rng((seed, 20, i)))
        first, second = (
            group_moments(values, cells)[0] - strata @ stratum_moments(screen, values, controls)[0]
            for cells, controls in ((halving.first, halving.inputs), (halving.second, halving.reference))
        )
        found.append(correlation_of_rows(first, second, scored))
    return np.mean(found, 0)


def chance_level(screen: Screen, values: sp.csr_array, seed: int) -> float:
    """The 99th percentile of the same correlation between quarters of control cells, where nothing was done."""
    generator = np.random.default_rng((seed, 21))
    strata = [np.flatnonzero(screen.control & (screen.stratum == s)) for s in np.unique(screen.stratum)]
    strata = [cells for cells in strata if len(cells) >= 4]
    if not strata:
        return 1.0
    found = []
    for _ in range(_NULLS):
        mixed = [generator.permutation(cells) for cells in strata]
        quarters = [np.concatenate([cells[i::4] for cells in mixed]) for i in range(4)]
        a, b, c, d = group_moments(values, quarters)[0]
        found.append(correlation_of_rows((a - b)[None], (c - d)[None], np.ones((1, len(a)), bool))[0])
    return float(np.quantile(found, _QUANTILE))


def replicate_scores(screen: Screen, values: sp.csr_array) -> dict[str, np.ndarray]:
    """Metric -> score of one replicate's delta as the prediction of another's, mean over ordered pairs [U].

    Each replicate has its own controls. NaN for a unit with fewer than two replicates of two cells; empty where no
    unit has two.
    """
    names = sorted(set(screen.replicate) - {""})
    deltas, errors = [], []
    for name in names:
        mine = screen.replicate == name
        cells = [unit.cells[mine[unit.cells]] for unit in screen.units]
        controls = [
            np.flatnonzero(screen.control & mine & np.isin(screen.stratum, np.unique(screen.stratum[c]))) for c in cells
        ]
        (mean, variance, n), (control, spread, m) = (group_moments(values, groups) for groups in (cells, controls))
        there = (n >= 2) & (m >= 2)
        n, m = np.maximum(n, 1)[:, None], np.maximum(m, 1)[:, None]
        deltas.append(np.where(there[:, None], mean - control, np.nan))
        errors.append(np.sqrt(variance / n + spread / m))
    sums = {name: np.zeros(len(screen.units)) for name in METRICS}
    count = np.zeros(len(screen.units))
    for i, j in itertools.permutations(range(len(names)), 2):
        both = np.flatnonzero(np.isfinite(deltas[i][:, 0]) & np.isfinite(deltas[j][:, 0]))
        if not len(both):
            continue
        a, b = deltas[i][both], deltas[j][both]
        mean_a, mean_b = a.mean(0), b.mean(0)
        mean = np.tile(mean_b, (len(both), 1))
        truth = Truth(b, b - mean_b, mean, errors[j][both], b, np.arange(len(both)), screen.centring_groups(both))
        genes = screen.scored(both)
        centred = score(a - mean_a + mean_b, truth, genes)
        found = score(a, truth, genes) | {name: centred[name] for name in (FORMER_HEADLINE, "weighted_r2")}
        for name in METRICS:
            sums[name][both] += found[name]
        count[both] += 1
    if not count.any():
        return {}
    return {name: np.where(count > 0, total / np.maximum(count, 1), np.nan) for name, total in sums.items()}
