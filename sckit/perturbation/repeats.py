"""Which perturbations have an effect at all: one that repeats between disjoint cells, or between replicates."""

import numpy as np
import scipy.sparse as sp

from sckit.metrics import METRICS, Truth, centred, correlation_of_sums, score
from sckit.perturbation.screen import Screen
from sckit.perturbation.splits import composition, group_moments, halve

_NULLS = 200
_QUANTILE = 0.99
_HALVINGS = 5


def repeat_correlation(screen: Screen, values: sp.csr_array, seed: int) -> np.ndarray:
    """Correlation over genes between the deltas of two disjoint halves, controls disjoint too; mean of five [U]."""
    found = []
    for i in range(_HALVINGS):
        halving = halve(screen, np.random.default_rng((seed, 20, i)))
        strata = composition(screen)
        first, second = (
            group_moments(values, cells)[0] - strata @ _stratum_means(screen, values, controls)
            for cells, controls in ((halving.first, halving.inputs), (halving.second, halving.reference))
        )
        found.append(_correlations(first, second, screen.scored(np.arange(len(screen.units)))))
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
        quarters: list[list[np.ndarray]] = [[], [], [], []]
        for cells in strata:
            mixed = generator.permutation(cells)
            for i in range(4):
                quarters[i].append(mixed[i::4])
        a, b, c, d = group_moments(values, [np.concatenate(quarter) for quarter in quarters])[0]
        found.append(_correlations((a - b)[None], (c - d)[None], np.ones((1, len(a)), bool))[0])
    return float(np.quantile(found, _QUANTILE))


def replicate_scores(screen: Screen, values: sp.csr_array) -> dict[str, np.ndarray] | None:
    """Metric -> score of one replicate's delta as the prediction of another's, mean over ordered pairs [U].

    Each replicate has its own controls. NaN for a unit with fewer than two replicates of two cells; None where no unit
    has two.
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
    for i in range(len(names)):
        for j in range(len(names)):
            both = np.flatnonzero(np.isfinite(deltas[i][:, 0]) & np.isfinite(deltas[j][:, 0]))
            if i == j or not len(both):
                continue
            a, b = deltas[i][both], deltas[j][both]
            mean_a, mean_b = a.mean(0), b.mean(0)
            mean = np.tile(mean_b, (len(both), 1))
            truth = Truth(b, b - mean_b, mean, errors[j][both], b, np.arange(len(both)))
            genes = screen.scored(both)
            centred = score(a - mean_a + mean_b, truth, genes)
            found = score(a, truth, genes) | {name: centred[name] for name in ("delta_r_perturbed", "weighted_r2")}
            for name in METRICS:
                sums[name][both] += found[name]
            count[both] += 1
    if not count.any():
        return None
    return {name: np.where(count > 0, total / np.maximum(count, 1), np.nan) for name, total in sums.items()}


def _stratum_means(screen: Screen, values: sp.csr_array, chosen: np.ndarray) -> np.ndarray:
    count = int(screen.stratum.max()) + 1
    return group_moments(values, [np.flatnonzero(chosen & (screen.stratum == s)) for s in range(count)])[0]


def _correlations(a: np.ndarray, b: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Correlation of the rows of a and b [N, G] over the scored genes, 0 where one is constant."""
    a, b = centred(a, scored), centred(b, scored)
    r = correlation_of_sums(1.0, 0.0, (a**2).sum(1), 0.0, (b**2).sum(1), (a * b).sum(1))
    return np.nan_to_num(r)
