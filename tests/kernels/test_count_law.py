"""The law of a detected count compared with sums over the distributions of scipy."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import nbinom, poisson

from sckit.kernels.count_law import (
    count_moments,
    draw_counts,
    log_likelihood,
    log_rate_of_value,
    rate_of_mean,
    value_moments,
)

RATES = np.array([1e-6, 1e-4, 0.003, 0.1, 0.7, 1.0, 2.5, 9.0, 33.0, 59.0, 61.0, 120.0, 300.0])
DISPERSIONS = (0.0, 0.01, 0.3, 2.0)
PAIRS = [(total, phi) for total in (150.0, 2300.0, 60_000.0) for phi in DISPERSIONS]


def law(rate, phi):
    return poisson(rate) if phi == 0 else nbinom(1 / phi, 1 / (1 + phi * rate))


def truncated(rate, phi):
    """Counts from one, and their probabilities given that the count is not zero."""
    counts = np.arange(1, 40_000 if rate > 50 and phi else 3000)
    probability = law(rate, phi).pmf(counts)
    return counts, probability / probability.sum()


@pytest.mark.parametrize(("total", "phi"), PAIRS, ids=str)
def test_moments_of_values_are_sums_over_the_law(total, phi):
    means, variances = value_moments(RATES, np.full(len(RATES), total), phi)
    for rate, mean, variance in zip(RATES, means, variances, strict=True):
        counts, probability = truncated(rate, phi)
        values = np.log1p(1e4 * counts / total)
        expected = probability @ values
        spread = probability @ (values - expected) ** 2
        # Large negative-binomial rates with a dispersion of 2 have a tail beyond the counts that are added up.
        loose = 0.01 if phi == 2 and rate > 200 else 2e-3
        assert mean == pytest.approx(expected, abs=2e-4 if loose < 0.01 else 0.005), rate
        assert variance == pytest.approx(spread, rel=loose, abs=1e-9), rate


@pytest.mark.parametrize("phi", DISPERSIONS)
def test_moments_of_counts_are_sums_over_the_law(phi):
    means, variances = count_moments(RATES, phi)
    for rate, mean, variance in zip(RATES, means, variances, strict=True):
        counts, probability = truncated(rate, phi)
        expected = probability @ counts
        assert mean == pytest.approx(expected, rel=1e-7), rate
        assert variance == pytest.approx(probability @ (counts - expected) ** 2, rel=1e-5), rate


@pytest.mark.parametrize("phi", DISPERSIONS)
def test_a_rate_near_zero_leaves_a_single_count(phi):
    rates = np.array([1e-13, 1e-9])
    means, variances = value_moments(rates, np.full(2, 2000.0), phi)
    np.testing.assert_allclose(means, np.log1p(5.0), atol=1e-8)
    np.testing.assert_allclose(variances, 0, atol=1e-8)
    np.testing.assert_allclose(count_moments(rates, phi), [[1, 1], [0, 0]], atol=1e-8)
    assert (draw_counts(np.full(1000, 1e-9), np.random.default_rng(0), phi) == 1).all()


def test_dispersions_of_entries_are_their_own():
    rates, totals, phi = np.array([2.0, 2.0, 5.0]), np.array([1000.0, 3000.0, 3000.0]), np.array([0.0, 2.0, 0.3])
    together = np.array(value_moments(rates, totals, phi))
    alone = np.hstack([value_moments(rates[[i]], totals[[i]], phi[i]) for i in range(3)])
    np.testing.assert_array_equal(together, alone)
    alone = np.hstack([count_moments(rates[[i]], phi[i]) for i in range(3)])
    np.testing.assert_allclose(np.array(count_moments(rates, phi)), alone)


@pytest.mark.parametrize("phi", DISPERSIONS)
def test_the_rate_of_a_mean_is_the_inverse_of_the_mean(phi):
    rates = np.exp(np.linspace(np.log(1e-6), np.log(300), 400))
    found = rate_of_mean(count_moments(rates, phi)[0], phi)
    np.testing.assert_allclose(found, rates, rtol=1e-6, atol=2e-9)
    assert (np.diff(rate_of_mean(np.linspace(1, 50, 500), phi)) > 0).all()


@pytest.mark.parametrize("total", [150.0, 2300.0, 60_000.0])
def test_the_rate_of_a_value_is_the_inverse_of_its_mean(total):
    log_rates = np.linspace(-11.5, 8.5, 60)
    means = value_moments(np.exp(log_rates), np.full(60, total))[0]
    above = means - np.log1p(1e4 / total)
    found = log_rate_of_value(above, np.array([0, 60]), np.array([total]))
    np.testing.assert_allclose(found, log_rates, atol=2.5e-3)
    dense = log_rate_of_value(np.linspace(-0.1, above[-1] + 3, 3000), np.array([0, 3000]), np.array([total]))
    assert (np.diff(dense) >= 0).all()
    assert dense[0] == -12
    assert dense[-1] == 9.5


def test_the_rate_of_a_value_depends_on_the_total_of_its_own_cell():
    totals, indptr = np.array([500.0, 700.0, 5000.0]), np.array([0, 2, 2, 5])
    above = np.array([0.1, 0.5, 0.2, 0.1, 0.9])

    def exact(value, total):
        def error(log_rate):
            mean = value_moments(np.array([np.exp(log_rate)]), np.array([total]))[0][0]
            return mean - np.log1p(1e4 / total) - value

        return brentq(error, -11, 9)

    expected = [exact(value, total) for value, total in zip(above, totals[[0, 0, 2, 2, 2]], strict=True)]
    np.testing.assert_allclose(log_rate_of_value(above, indptr, totals), expected, atol=2.5e-3)


@pytest.mark.parametrize("phi", DISPERSIONS)
@pytest.mark.parametrize("rate", [0.02, 0.9, 7.0, 80.0])
def test_drawn_counts_follow_the_law(rate, phi):
    size = 60_000
    drawn = draw_counts(np.full(size, rate), np.random.default_rng(3), phi)
    assert drawn.min() >= 1
    mean, variance = (x[0] for x in count_moments(np.array([rate]), phi))
    assert drawn.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / size))
    counts, probability = truncated(rate, phi)
    below = np.cumsum(probability)
    observed = np.searchsorted(np.sort(drawn), counts, side="right") / size
    # The distance of Kolmogorov and Smirnov; rates from 60 on are rounded normal numbers where the law is nearly one.
    assert np.abs(observed - below).max() < 2.2 / np.sqrt(size) + (0.02 if rate > 60 and phi <= 0.01 else 0)


def test_the_log_likelihood_lacks_only_the_factorial():
    counts = np.array([1.0, 2.0, 5.0, 40.0, 300.0])
    for rate in (1e-6, 0.1, 3.0, 60.0, 300.0):
        rates = np.full(5, rate)
        expected = poisson.logpmf(counts, rate) - np.log(-np.expm1(-rate)) + gammaln(counts + 1)
        np.testing.assert_allclose(log_likelihood(counts, rates), expected, rtol=1e-9, atol=1e-6)
