"""The law of a detected count: zero-truncated Poisson, or negative binomial, and its values log1p(1e4 count / total).

An entry has a rate (the mean of the law before zero is taken away), the total of its cell and a dispersion phi: the
variance before truncation is rate + phi rate^2, and 0 is Poisson. All arrays are float64 [N].
"""

import math

import numpy as np
from numba import njit

from sckit.kernels.counts_reference import TARGET_SUM
from sckit.kernels.threads import run_ranges

_LARGE = 60.0  # of a Poisson rate: from here on the logarithm is expanded about the rate, wrong by less than 1e-4
_MOST = 4000  # counts that are added up one by one
_TAIL = 1e-9
_TINY = 1e-8
_LOG_RATES = (-12.0, 9.5)  # rates that a value is turned into lie in exp of these
_KNOTS = 200  # of the table by which a cell's values are turned into rates


@njit(cache=True, nogil=True)
def _zero(rate, phi):
    """Return the probability that a count is zero."""
    return math.exp(-rate) if phi * rate < _TINY else math.exp(-math.log1p(phi * rate) / phi)


@njit(cache=True, nogil=True)
def _first(rate, phi):
    """Return the probability of one given that the count is not zero."""
    if rate < _TINY:
        return 1.0
    seen = -math.expm1(-rate) if phi * rate < _TINY else -math.expm1(-math.log1p(phi * rate) / phi)
    return rate / (1.0 + phi * rate) * _zero(rate, phi) / seen


@njit(cache=True, nogil=True)
def _value_moments(rate, phi, scale):
    """Return the mean and variance of log1p(scale * count), given that the count is not zero."""
    if rate > _LARGE and (phi == 0.0 or 1.0 / phi > _LARGE):
        slope = scale / (1.0 + scale * rate)
        spread, skew = slope * slope * (rate + phi * rate * rate), slope * (1.0 + 2.0 * phi * rate)
        mean = math.log1p(scale * rate) - spread * (0.5 - skew / 3.0 + 0.75 * spread)
        return mean, spread * (1.0 - skew + 2.5 * spread)
    probability, seen, total, squares = _first(rate, phi), 0.0, 0.0, 0.0
    least, count = math.log1p(scale), 1
    while True:
        above = math.log1p(scale * count) - least
        seen += probability
        total += probability * above
        squares += probability * above * above
        if count == _MOST or (count > rate and probability < _TAIL and 1.0 - seen < 1e-6):
            break
        probability *= rate * (1.0 + phi * count) / ((1.0 + phi * rate) * (count + 1))
        count += 1
    total, squares = total / seen, squares / seen
    return least + total, max(squares - total * total, 0.0)


@njit(cache=True, nogil=True)
def _all_value_moments(first, last, rates, totals, phi, means, variances):
    for i in range(first, last):
        means[i], variances[i] = _value_moments(rates[i], phi[i], TARGET_SUM / totals[i])


def value_moments(
    rates: np.ndarray, totals: np.ndarray, dispersion: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the variance of each entry's value, log1p of counts per 10,000."""
    means, variances = np.empty(len(rates)), np.empty(len(rates))
    phi = np.ascontiguousarray(np.broadcast_to(np.asarray(dispersion, np.float64), rates.shape))
    run_ranges(lambda first, last: _all_value_moments(first, last, rates, totals, phi, means, variances), len(rates))
    return means, variances


@njit(cache=True, nogil=True)
def _all_rates(first, last, above, indptr, totals, log_rates):
    low, high = _LOG_RATES
    step = (high - low) / (_KNOTS - 1)
    for c in range(first, last):
        scale = TARGET_SUM / totals[c]
        least = math.log1p(scale)
        table = np.empty(_KNOTS)
        for n in range(_KNOTS if indptr[c + 1] > indptr[c] else 0):
            table[n] = _value_moments(math.exp(low + n * step), 0.0, scale)[0] - least
        for i in range(indptr[c], indptr[c + 1]):
            n = min(max(np.searchsorted(table, above[i]), 1), _KNOTS - 1)
            part = (above[i] - table[n - 1]) / (table[n] - table[n - 1])
            log_rates[i] = low + (n - 1 + min(max(part, 0.0), 1.0)) * step


def log_rate_of_value(above: np.ndarray, indptr: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return the log of the Poisson rate whose mean value exceeds that of a single count by `above` [N].

    The entries indptr[c] up to indptr[c + 1] belong to the cell with totals[c]. Interpolated, within 0.002.
    """
    log_rates = np.empty(len(above))
    run_ranges(lambda first, last: _all_rates(first, last, above, indptr, totals, log_rates), len(totals))
    return log_rates


def count_moments(rates: np.ndarray, dispersion: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the variance of each entry's count, given that it is not zero."""
    phi = np.asarray(dispersion, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(phi * rates < _TINY, np.exp(-rates), np.exp(-np.log1p(phi * rates) / np.where(phi > 0, phi, 1)))
        mean = rates / (1 - zero)
        variance = mean * (1 + rates + phi * rates) - mean**2
    small = rates < 1e-5
    half = rates * (1 + phi) / 2
    return np.where(small, 1 + half, mean), np.where(small, half, np.maximum(variance, 0.0))


def draw_counts(rates: np.ndarray, generator: np.random.Generator, dispersion: np.ndarray | float = 0.0) -> np.ndarray:
    """Draw a count of at least one for each entry, int64, by adding up probabilities."""
    counts = np.empty(len(rates), np.int64)
    phi = np.ascontiguousarray(np.broadcast_to(np.asarray(dispersion, np.float64), rates.shape))
    _draw(rates, phi, generator.random(len(rates)), generator.standard_normal(len(rates)), counts)
    return counts


@njit(cache=True, nogil=True)
def _draw(rates, phi, uniform, normal, counts):
    for i in range(len(rates)):
        rate = rates[i]
        if rate > _LARGE and (phi[i] == 0.0 or 1.0 / phi[i] > _LARGE):
            counts[i] = max(1, round(rate + normal[i] * math.sqrt(rate + phi[i] * rate * rate)))
            continue
        probability, count = _first(rate, phi[i]), 1
        below = probability
        while below < uniform[i] and count < _MOST:
            probability *= rate * (1.0 + phi[i] * count) / ((1.0 + phi[i] * rate) * (count + 1))
            count += 1
            below += probability
        counts[i] = count


def counts_of(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return the counts that values, log1p of counts per 10,000, stand for in cells with these totals."""
    return np.maximum(np.rint(np.expm1(values) * (totals / TARGET_SUM)), 1)


def log_likelihood(counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return the log of the zero-truncated Poisson probability of each count >= 1, less that of log(count!)."""
    return counts * np.log(rates) - rates - np.log(-np.expm1(-rates))


def rate_of_mean(mean: np.ndarray, dispersion: np.ndarray | float = 0.0) -> np.ndarray:
    """Return the rate whose mean count, given that it is not zero, is `mean`; Newton's method, within 1e-9."""
    rate = np.maximum(np.where(mean < 1.5, 2 * (mean - 1) / (1 + np.asarray(dispersion)), mean), _TINY)
    for _ in range(12):
        value, variance = count_moments(rate, dispersion)
        slope = np.maximum(variance / (rate * (1 + dispersion * rate)), 1e-3)
        rate = np.maximum(rate - (value - mean) / slope, rate / 8)
    return rate
