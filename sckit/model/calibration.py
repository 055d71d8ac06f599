"""From predicted values to laws of counts, for the noise floor of `sckit eval` and for models with a count loss.

A prediction is turned into the rate of a zero-truncated Poisson law of the count, given the cell's total. The rate is
calibrated on cells which the prediction was not fitted on: the law has to give the counts that were seen, on average,
wherever the prediction is high or low.
"""

from dataclasses import dataclass

import numpy as np

from sckit.data.batch import Batch
from sckit.kernels.count_law import count_moments, log_rate_of_value, rate_of_mean
from sckit.model.offset_forms import LOG_RATES, OfCells

STRATA = (1.0, 1.1, 1.3, 2.0, 5.0, 20.0, np.inf)
"""Edges of the strata of genes, by their mean count in the training cells in which they are detected."""

_KNOTS = 10
_STEPS = 30
_LEAST_ABOVE = 1e-4
_MOST_DISPERSION = 20.0


def log_rates(batch: Batch, cells: OfCells, predicted: np.ndarray) -> np.ndarray:
    """Return log rates [M] whose law has the predicted values as means, before they are calibrated.

    cells: what the baselines know of the batch's cells; where a total is unknown, the guessed one is used.
    """
    cell = batch.target_cells
    indptr = np.searchsorted(cell, np.arange(len(batch.cells) + 1))
    above = np.maximum(predicted - cells.one[cell], _LEAST_ABOVE)
    return log_rate_of_value(above, indptr, np.exp(cells.log_total))


@dataclass(frozen=True)
class Calibration:
    """A piecewise linear map from log rates to calibrated log rates; beyond the outer knots its slope is one."""

    knots: np.ndarray
    values: np.ndarray

    def __call__(self, log_rate: np.ndarray) -> np.ndarray:
        """Return calibrated rates."""
        beyond = log_rate - np.clip(log_rate, self.knots[0], self.knots[-1])
        return np.exp(np.clip(np.interp(log_rate, self.knots, self.values) + beyond, *LOG_RATES))


def calibrate(log_rate: np.ndarray, counts: np.ndarray) -> Calibration:
    """Fit the map by maximum likelihood of counts [N] under zero-truncated Poisson laws, with knots at quantiles."""
    knots = np.unique(np.quantile(log_rate, np.linspace(0, 1, _KNOTS)))
    if len(knots) < 2:
        rate = float(np.log(rate_of_mean(np.maximum(counts.mean(), 1 + 1e-4))))
        return Calibration(np.array([knots[0], knots[0] + 1]), np.array([rate, rate + 1]))
    at = np.clip(np.searchsorted(knots, log_rate, side="right") - 1, 0, len(knots) - 2)
    part = (log_rate - knots[at]) / (knots[at + 1] - knots[at])
    values = knots.copy()
    for _ in range(_STEPS):
        mean, variance = count_moments(np.exp(np.clip((1 - part) * values[at] + part * values[at + 1], *LOG_RATES)))
        gradient, hessian = np.zeros(len(knots)), np.diag(np.full(len(knots), 1e-3))
        for a, share in ((0, 1 - part), (1, part)):
            gradient += np.bincount(at + a, share * (counts - mean), minlength=len(knots))
            for b, other in ((0, 1 - part), (1, part)):
                flat = np.bincount((at + a) * len(knots) + at + b, share * other * variance, minlength=len(knots) ** 2)
                hessian += flat.reshape(hessian.shape)
        step = np.clip(np.linalg.solve(hessian, gradient), -1, 1)
        values = np.clip(values + step, *LOG_RATES)
        if np.abs(step).max() < 1e-6:
            break
    return Calibration(knots, values)


def stratum_of(mean_counts: np.ndarray) -> np.ndarray:
    """Return the stratum of genes with these mean counts, from 0."""
    return np.clip(np.searchsorted(STRATA, mean_counts, side="right") - 1, 0, len(STRATA) - 2)


@dataclass(frozen=True)
class Noise:
    """The law of counts given their calibrated Poisson rates: Poisson, or negative binomial with the same means."""

    dispersion: np.ndarray  # [strata], 0 is Poisson

    def law(self, rates: np.ndarray, mean_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rate and dispersion [M] of each count; mean_counts: [M], of its gene."""
        phi = self.dispersion[stratum_of(mean_counts)]
        if not phi.any():
            return rates, phi
        return rate_of_mean(np.maximum(count_moments(rates)[0], 1 + 1e-9), phi), phi


POISSON = Noise(np.zeros(len(STRATA) - 1))


def fit_dispersion(rates: np.ndarray, counts: np.ndarray, mean_counts: np.ndarray) -> Noise:
    """Return negative-binomial noise whose variance equals that of the counts about their means, in each stratum."""
    stratum, dispersion = stratum_of(mean_counts), np.zeros(len(STRATA) - 1)
    for s in np.unique(stratum):
        mean = count_moments(rates[stratum == s])[0]
        wanted = ((counts[stratum == s] - mean) ** 2).sum()
        low, high = 0.0, _MOST_DISPERSION
        for _ in range(30):
            middle = 0.5 * (low + high)
            variance = count_moments(rate_of_mean(np.maximum(mean, 1 + 1e-9), middle), middle)[1].sum()
            low, high = (middle, high) if variance < wanted else (low, middle)
        dispersion[s] = low
    return Noise(dispersion)


def by_decile(rates: np.ndarray, counts: np.ndarray) -> list[dict[str, float]]:
    """Compare expected with observed mean counts in tenths of the entries, by their rate."""
    expected = count_moments(rates)[0]
    tenth = np.argsort(np.argsort(expected, kind="stable"), kind="stable") * 10 // max(len(expected), 1)
    entries = np.maximum(np.bincount(tenth, minlength=10), 1)
    means = (np.bincount(tenth, x, minlength=10) / entries for x in (expected, counts))
    return [{"expected": float(e), "observed": float(o)} for e, o in zip(*means, strict=True)]
