"""The headline: what centring on the units tested together does to scores, and to their intervals."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sckit.metrics.effects import HEADLINE, Truth, score, specific_correlation
from sckit.metrics.intervals import Sample, interval

GENES = 40


def truth_of(effects, group=None):
    """A truth of the units alone, for the headline: its other parts play no part in it."""
    nothing = np.zeros_like(effects)
    return Truth(effects, nothing, nothing, nothing, effects, np.arange(len(effects)), group)


def headline(predicted, effects, group=None, genes=None):
    return score(predicted, truth_of(effects, group), genes)[HEADLINE]


def test_groups_are_centred_apart(rng):
    effects, predicted = rng.normal(size=(2, 7, GENES))
    group = np.array([4, 1, 4, 1, 4, 1, 1])
    found = headline(predicted, effects, group)
    for name in (1, 4):
        rows = group == name
        assert found[rows] == pytest.approx(headline(predicted[rows], effects[rows]), abs=1e-12)
    of_group = predicted + 5 * rng.normal(size=(5, GENES))[group]
    assert headline(of_group, effects, group) == pytest.approx(found, abs=1e-12)


def test_a_unit_alone_in_its_group_has_no_score(rng):
    effects, predicted = rng.normal(size=(2, 3, GENES))
    found = headline(predicted, effects, np.array([0, 1, 0]))
    assert np.isnan(found).tolist() == [False, True, False]
    assert truth_of(effects, np.array([0, 1, 0])).group_sizes.tolist() == [2, 1, 2]


def test_two_units_are_mirror_images(rng):
    effects, predicted = rng.normal(size=(2, 2, GENES))
    first, second = headline(predicted, effects)
    assert first == pytest.approx(second, abs=1e-12)
    assert first == pytest.approx(np.corrcoef(predicted[0] - predicted[1], effects[0] - effects[1])[0, 1], abs=1e-12)


def test_a_gene_that_a_unit_perturbs_tells_nothing_of_the_others(rng):
    """It is not scored for that unit, and would otherwise come back in the mean that the others are compared with."""
    effects = rng.normal(size=(5, GENES))
    own = np.arange(GENES) == np.arange(5)[:, None]
    effects[own] = -30
    only_own = np.where(own, -3.0, rng.normal(size=GENES))
    assert (headline(only_own, effects, genes=~own) == 0).all()
    assert headline(only_own, effects).min() > 0.5


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_rounding_of_a_prediction_that_is_the_same_for_all_is_no_score(rng, size):
    effects, constant = rng.normal(size=(6, GENES)), size * rng.normal(size=GENES)
    assert (headline(np.tile(constant, (6, 1)), effects) == 0).all()
    assert (headline(constant + 1e-9 * size * rng.normal(size=(6, GENES)), effects) == 0).all()
    small = constant + 1e-3 * size * effects
    assert headline(small, effects) == pytest.approx(headline(effects, effects), abs=1e-9)


def test_predictions_dealt_to_the_units_at_random_score_exactly_nothing_on_average(rng):
    effects, predicted = rng.normal(size=(2, 5, GENES)) * rng.exponential(size=(2, 5, 1)) ** 3 + rng.normal(size=GENES)
    found = [headline(predicted[list(deal)], effects) for deal in itertools.permutations(range(5))]
    assert np.mean(found) == pytest.approx(0, abs=1e-12)
    assert np.abs(found).max() > 0.1


def test_a_strong_effect_given_to_any_unit_is_no_knowledge(rng):
    """Of the centred effects all units but the strong one are minus the strong one, and so are the predictions.

    Their plain correlation is 1 for the units that are strong on neither side, though the wrong unit was named.
    """
    strong = rng.normal(size=GENES)
    effects = 0.01 * rng.normal(size=(5, GENES))
    effects[0] += strong
    found, plain = [], []
    for named in range(5):
        predicted = np.zeros((5, GENES))
        predicted[named] = strong
        found.append(headline(predicted, effects).mean())
        rows = zip(predicted - predicted.mean(0), effects - effects.mean(0), strict=True)
        plain.append(np.mean([np.corrcoef(a, b)[0, 1] for a, b in rows]))
    assert found[0] > 0.5
    assert np.mean(found) == pytest.approx(0, abs=1e-12)
    assert np.mean(plain) > 0.3


def scores_of_noise(generator, folds, together, size):
    """Scores [folds, together] of random predictions; size: of the true effects and of the predictions, [n]."""
    size = size[:, None]
    draws = generator.normal(size=(2, folds * together, GENES)) * size + 0.5 * generator.normal(size=(1, 1, GENES))
    predicted, effects = draws + 0.2 * generator.normal(size=draws.shape)
    truth = truth_of(effects, np.arange(len(effects)) // together)
    return specific_correlation(predicted, truth, np.ones(effects.shape, bool)).reshape(folds, together)


@pytest.mark.parametrize("together", [2, 3, 5])
def test_scores_of_noise_correlate_as_the_interval_assumes(together):
    found = scores_of_noise(np.random.default_rng(1), 4000, together, np.ones(4000 * together))
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(found.size / 2)
    shared = together * found.mean(1).var() / found.var()  # of independent scores 1
    # A variance of 4,000 numbers is known to 2.2 %; three standard errors.
    assert shared == pytest.approx(together / (together - 1), rel=0.07)


@pytest.mark.parametrize(
    ("folds", "together", "uneven"),
    [(1, 6, False), *itertools.product((5, 12), (2, 3, 5), (False, True))],
)
def test_intervals_of_predictions_that_know_nothing_cover_zero(folds, together, uneven):
    """Uneven: a few perturbations are twenty times as strong and the prediction knows which.

    They decide all scores of their fold. How much a fold has in common is seen from several folds only: of a single one
    of that kind 265 of 300 intervals cover zero.
    """
    generator, covered, worlds = np.random.default_rng(folds), 0, 300
    units = np.arange(folds * together)
    for _ in range(worlds):
        size = np.where(generator.random(len(units)) < 0.25, 2.0, 0.1) if uneven else np.ones(len(units))
        value = scores_of_noise(generator, folds, together, size).reshape(-1)
        sample = Sample(value, units, units // together, centred=np.full(len(units), together))
        found = interval(sample, generator, draws=300)
        covered += found.low <= 0 <= found.high
    # Of 300 intervals at 95 %, 285 +- 4 cover; three standard errors below.
    assert covered >= 273


def test_without_the_widening_one_fold_covers_too_little_of_what_noise_does():
    generator = np.random.default_rng(2)
    widths = []
    value = generator.normal(size=6)
    for centred in (None, np.full(6, 6)):
        sample = Sample(value, np.arange(6), np.zeros(6, np.int64), centred=centred)
        found = interval(sample, np.random.default_rng(0), draws=300)
        widths.append(found.high - found.low)
        assert replace(sample, value=value + 1).minus(sample).centred is centred
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(6 / 5))
