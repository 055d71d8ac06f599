import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, t

from sckit.errors import ConfigError, DataError
from sckit.metrics.intervals import Resampling, Sample, gap_closed, interval, seed_variance, verdict, widening


def crossed(table):
    """The sample of a table [clusters, seeds]."""
    cluster, seed = np.indices(table.shape)
    return Sample(table.ravel(), cluster.ravel(), seed.ravel())


def paired(a, b, rng):
    return interval(a.minus(b), rng)


def tables(clusters, seeds, spread, number):
    """Tables of mean 0 with standard deviations between clusters, between seeds, and of the rest."""
    for i in range(number):
        generator = np.random.default_rng(i)
        of_cluster, of_seed, rest = spread
        table = of_cluster * generator.normal(size=(clusters, 1)) + of_seed * generator.normal(size=(1, seeds))
        yield table + rest * generator.normal(size=(clusters, seeds)), generator


def coverage(clusters, seeds, spread, *, number=800, missing=0.0):
    """How many of the intervals hold the 0 that is true."""
    held = 0
    for table, generator in tables(clusters, seeds, spread, number):
        table[generator.random(table.shape) < missing] = np.nan
        low, high = interval(crossed(table), generator, draws=400).ci
        held += low <= 0 <= high
    return held


@pytest.mark.parametrize(
    ("clusters", "seeds", "spread"),
    [(5, 1, (1, 0, 0)), (25, 1, (1, 0, 0)), (25, 5, (1, 0, 1)), (25, 5, (0.3, 0.3, 0.3)), (25, 3, (1, 0.5, 1))],
    ids=[
        "5 clusters",
        "25 clusters",
        "25 clusters of 5 noisy seeds",
        "5 seeds that move all clusters",
        "3 seeds that move all clusters",
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(clusters, seeds, spread):
    held = coverage(clusters, seeds, spread)
    assert held >= binom.ppf(0.001, 800, 0.93)  # 0.95 less what 400 draws and an estimated variance may cost
    assert held <= binom.ppf(0.999, 800, 0.975)


def test_intervals_hold_the_truth_when_half_the_scores_are_missing():
    assert coverage(25, 4, (1, 0.3, 1), missing=0.5) >= binom.ppf(0.001, 800, 0.93)


def test_without_the_widening_five_clusters_hold_it_too_rarely(monkeypatch):
    monkeypatch.setattr("sckit.metrics.intervals.widening", lambda *_: 1.0)
    assert coverage(5, 1, (1, 0, 0)) < binom.ppf(0.001, 800, 0.9)


def test_without_the_variance_of_seeds_common_shifts_hold_it_too_rarely(monkeypatch):
    monkeypatch.setattr("sckit.metrics.intervals.seed_variance", lambda sample: 0.0)
    assert coverage(25, 3, (1, 0.5, 1)) < binom.ppf(0.001, 800, 0.9)


@pytest.mark.parametrize("count", [5, 25, 200])
def test_the_interval_of_normal_clusters_is_nearly_that_of_student(count, rng):
    value = rng.normal(size=count)
    found = interval(Sample(value, np.arange(count), np.zeros(count, int)), rng, draws=20_000)
    half = t.ppf(0.975, count - 1) * value.std(ddof=1) / np.sqrt(count)
    assert found.mean == pytest.approx(value.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_widening_vanishes_with_many_clusters():
    assert widening(5, 4) == pytest.approx(np.sqrt(5 / 4) * 2.7764 / 1.96, rel=1e-4)
    assert widening(100_000, 99_999) == pytest.approx(1, abs=1e-4)


def test_the_mean_is_over_clusters_not_over_scores(rng):
    sample = Sample(np.array([1.0, 1.0, 1.0, 5.0]), np.array([3, 3, 3, 8]), np.array([0, 0, 1, 0]))
    assert interval(sample, rng).mean == 3
    assert interval(sample, rng).clusters == 2


def test_units_and_seeds_of_a_cluster_are_not_more_clusters(rng):
    value = rng.normal(size=10)
    once = interval(Sample(value, np.arange(10), np.zeros(10, int)), np.random.default_rng(1))
    copies = Sample(np.repeat(value, 30), np.repeat(np.arange(10), 30), np.tile(np.arange(30) % 5, 10))
    assert interval(copies, np.random.default_rng(1)).ci == pytest.approx(once.ci)


# ---- the rule, with few groups and many


def of_cells(rng, groups, cells, of_group):
    """Values of cells in groups of these sizes, with group effects of standard deviation `of_group`, and the labels."""
    label = np.repeat(np.arange(groups), cells)
    return of_group * rng.normal(size=groups)[label] + rng.normal(size=len(label)), label


@pytest.mark.parametrize("widened", [True, False])
def test_intervals_of_six_groups_hold_the_truth_only_when_widened(widened):
    """Group effects of 1 and cells of 1 in six groups of 30; of 3,000, 0.95 hold the truth, plain percentiles 0.86."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(1000):
        value, label = of_cells(rng, 6, 30, 1.0)
        rule = Resampling(label)
        means = rule.weights(rng, 500) @ value / len(value)
        low, high = rule.interval(value.mean(), means) if widened else np.quantile(means, [0.025, 0.975])
        held += low <= 0 <= high
    bounds = (0.93, 0.97) if widened else (0.84, 0.88)
    assert binom.ppf(0.001, 1000, bounds[0]) <= held <= binom.ppf(0.999, 1000, bounds[1])


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 9), (6,)], ids=str)
def test_intervals_of_few_groups_hold_the_mean_of_those_very_groups(sizes):
    """Units of groups that stay are drawn again, cells by weights and units by scores.

    Of 3,000, 0.94 hold the truth; 0.90 for units of 3 and 9, where the mean of three decides and summed degrees of
    freedom flatter it. Plain percentiles: 0.85 to 0.89.
    """
    rng, cells, units = np.random.default_rng(2), 0, 0
    label = np.repeat(np.arange(len(sizes)), sizes)
    effects = np.array([3.0, -5.0, 9.0])[: len(sizes)]
    for _ in range(1000):
        value = effects[label] + rng.normal(size=len(label))
        rule = Resampling(label)
        low, high = rule.interval(value.mean(), rule.weights(rng, 500) @ value / len(value))
        cells += low <= effects[label].mean() <= high
        sample = Sample(value, label, np.zeros(len(label), int), np.arange(len(label)))
        units += (found := interval(sample, rng, draws=500)).low <= effects.mean() <= found.high
    for held in (cells, units):
        assert binom.ppf(0.001, 1000, 0.90) <= held <= binom.ppf(0.999, 1000, 0.96)


def test_groups_are_drawn_whole_from_five_on_and_never_mixed_below(rng):
    many, few = (Resampling(np.arange(20) % count) for count in (5, 2))
    drawn = many.weights(rng, 50)
    assert (drawn == drawn[:, np.arange(20) % 5]).all()
    assert (drawn[:, :5].sum(1) == 5).all()
    drawn = few.weights(rng, 50)
    assert (drawn[:, ::2].sum(1) == 10).all()
    assert (drawn[:, 1::2].sum(1) == 10).all()
    assert (drawn[:, 0] != drawn[:, 2]).any()


def test_the_sentence_says_what_is_resampled_and_what_that_says_nothing_of():
    def said(labels):
        return Resampling(np.array(labels)).sentence("cells", "donors")

    assert said(range(1200)) == "intervals: 95 % bootstrap over 1,200 donors"
    assert said([0, 0, 1, 1]).endswith("over cells within each of 2 donors: they do not speak of new donors")
    assert said([0, 0, 0]).endswith("within one group: they speak of its cells only, not of other donors")
    assert said([0, 1, 2]) == "no intervals: there are fewer than 5 donors, and not each of them has several cells"


def test_fewer_than_five_single_units_have_no_interval(rng):
    sample = Sample(rng.normal(size=4), np.arange(4), np.zeros(4, int))
    assert interval(sample, rng).ci == [None, None]
    rule = Resampling(np.arange(4))
    assert rule.interval(0.0, rule.weights(rng, 10) @ sample.value) == [None, None]


def test_within_few_clusters_units_count_by_their_scores_and_seeds_by_what_they_share(rng):
    """One unit of three has twice the scores, so the mean over clusters leans on it; a seed moves all units."""
    value, cluster, unit = np.array([1.0, 1.0, 4.0, 2.0, 6.0]), np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 3])
    assert interval(Sample(value, cluster, np.array([0, 1, 0, 0, 0]), unit), rng).mean == 3.0
    table = rng.normal(size=(12, 1)) + np.array([-2.0, 2.0, 0.0]) + 0.1 * rng.normal(size=(12, 3))
    units, seeds = np.indices(table.shape)
    moved, still = (
        interval(Sample(values.ravel(), units.ravel() % 3, seeds.ravel(), units.ravel()), np.random.default_rng(0))
        for values in (table, table - table.mean(0))
    )
    assert moved.high - moved.low > 2 * (still.high - still.low)


def test_the_same_generator_gives_the_same_interval_and_order_plays_no_part(rng):
    sample = crossed(rng.normal(size=(12, 4)))
    order = rng.permutation(48)
    shuffled = Sample(sample.value[order], sample.cluster[order], sample.seed[order])
    first, again, other = (interval(s, np.random.default_rng(3)) for s in (sample, sample, shuffled))
    assert first == again
    assert other.ci == pytest.approx(first.ci)
    assert interval(sample, np.random.default_rng(4)) != first


def test_many_clusters_are_drawn_in_blocks_like_few(rng, monkeypatch):
    sample = crossed(rng.normal(size=(50, 1)))
    whole = interval(sample, np.random.default_rng(3))
    monkeypatch.setattr("sckit.metrics.intervals._BLOCK", 500)
    assert interval(sample, np.random.default_rng(3)).ci == pytest.approx(whole.ci)


def test_scores_that_are_missing_drop_out(rng):
    table = rng.normal(size=(6, 3))
    table[0] = np.nan
    table[1, 2] = np.nan
    found = interval(crossed(table), rng)
    assert found.clusters == 5
    assert found.mean == pytest.approx(np.nanmean(table[1:], axis=1).mean())


@pytest.mark.parametrize(("count", "mean"), [(0, None), (1, 0.5)], ids=["no cluster", "one cluster"])
def test_fewer_than_two_clusters_have_no_interval(count, mean, rng):
    sample = Sample(np.full(3 * count, 0.5), np.zeros(3 * count, int), np.arange(3 * count))
    found = interval(sample, rng)
    assert (found.mean, found.clusters) == (mean, count)
    assert json.dumps(found.ci) == "[null, null]"
    assert verdict(found.ci, 0.05) == "undecided"


def test_a_paired_difference_is_free_of_what_both_share(rng):
    shared = rng.normal(size=(20, 3))
    a, b = crossed(shared + 0.3 + 0.01 * rng.normal(size=(20, 3))), crossed(shared)
    found = paired(a, b, np.random.default_rng(0))
    assert found.mean == pytest.approx(0.3, abs=0.01)
    assert found.high - found.low < 0.05
    alone = interval(a, np.random.default_rng(0))
    assert alone.high - alone.low > 0.5
    assert paired(b, a, np.random.default_rng(0)).mean == pytest.approx(-found.mean)


def test_a_predictor_does_not_differ_from_itself(rng):
    a = crossed(rng.normal(size=(20, 3)))
    found = paired(a, a, rng)
    assert found.ci == [0, 0]
    assert verdict(found.ci, 0.01) == "no difference"


def test_a_missing_score_on_either_side_drops_the_pair(rng):
    first, second = rng.normal(size=(2, 5, 2))
    first[0], second[1] = np.nan, np.nan
    found = paired(crossed(first), crossed(second), rng)
    assert found.clusters == 3
    assert found.mean == pytest.approx((first - second)[2:].mean())


def test_samples_of_other_units_do_not_pair(rng):
    a = crossed(rng.normal(size=(5, 2)))
    others = Sample(a.value, a.cluster[::-1], a.seed), Sample(a.value, a.cluster, 1 - a.seed)
    for other in (*others, Sample(a.value, a.cluster, a.seed, np.arange(10))):
        with pytest.raises(DataError, match="same perturbations and seeds"):
            paired(a, other, rng)
    with pytest.raises(DataError, match="as long as each other"):
        Sample(a.value, a.cluster[:3], a.seed)


@pytest.mark.parametrize("missing", [0.0, 0.4], ids=["every seed of every cluster", "some missing"])
def test_seed_variance_is_unbiased_where_it_is_not_cut_at_zero(missing):
    found = []
    for table, generator in tables(20, 5, (1, 0.8, 0.5), 400):
        table[generator.random(table.shape) < missing] = np.nan
        found.append(seed_variance(crossed(table)))
    # The variance of 5 normal numbers has a relative deviation of sqrt(2 / 4).
    assert np.mean(found) == pytest.approx(0.64, abs=4 * 0.64 * np.sqrt(1 / 2 / 400) + 0.02)


def test_seed_variance_is_the_textbook_one_in_a_full_table(rng):
    table = rng.normal(size=(8, 1)) + 2 * rng.normal(size=(1, 4)) + 0.1 * rng.normal(size=(8, 4))
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    between, within = 8 * table.mean(0).var(ddof=1), (residual**2).sum() / (7 * 3)
    assert seed_variance(crossed(table)) == pytest.approx((between - within) / 8)


def of_folds(rng, clusters, seeds, spread):
    """Each cluster with the one seed that tests it; seeds differ by `spread`, clusters by 1."""
    seed = np.arange(clusters) % seeds
    return Sample(rng.normal(size=clusters) + spread * rng.normal(size=seeds)[seed], np.arange(clusters), seed)


def test_seed_variance_of_folds_is_the_textbook_one(rng):
    sample = of_folds(rng, 25, 5, 3.0)
    table = sample.value.reshape(5, 5)  # [cluster of the fold, fold]
    between, within = 5 * table.mean(0).var(ddof=1), table.var(0, ddof=1).mean()
    assert seed_variance(sample) == pytest.approx((between - within) / 5)


def test_what_a_fold_shares_is_in_the_interval():
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(300):
        found = interval(of_folds(rng, 50, 5, 0.5), rng, draws=300)
        hits += found.low <= 0 <= found.high
    assert hits / 300 > 0.90  # 0.91; without the folds' own part 0.72


def test_a_seed_alone_or_a_cluster_alone_has_no_known_variance(rng):
    assert seed_variance(crossed(rng.normal(size=(10, 1)))) == 0
    assert seed_variance(crossed(rng.normal(size=(1, 10)))) == 0


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        ([-0.01, 0.02], "no difference"),
        ([0.01, 0.04], "no difference"),
        ([-0.05, 0.05], "no difference"),
        ([0.01, 0.06], "helps"),
        ([0.2, 0.3], "helps"),
        ([-0.3, -0.01], "hurts"),
        ([-0.3, -0.2], "hurts"),
        ([-0.06, 0.01], "undecided"),
        ([-0.2, 0.2], "undecided"),
        ([0.0, 0.2], "undecided"),
        ([None, None], "undecided"),
    ],
    ids=str,
)
def test_verdicts(ci, expected):
    assert verdict(ci, 0.05) == expected


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_verdicts_change_sides_with_the_arms(low, width, margin):
    opposite = {"helps": "hurts", "hurts": "helps"}
    found = verdict([low, low + width], margin)
    assert verdict([-low - width, -low], margin) == opposite.get(found, found)


@pytest.mark.parametrize("margin", [-0.1, float("nan")], ids=str)
def test_a_margin_below_zero_is_refused(margin):
    with pytest.raises(ConfigError, match="margin"):
        verdict([0.0, 1.0], margin)


@pytest.mark.parametrize(
    ("score", "trivial", "ceiling", "share"),
    [
        (0.5, 0.2, 0.8, 0.5),
        (0.2, 0.2, 0.8, 0.0),
        (0.1, 0.2, 0.7, -0.2),
        (0.9, 0.2, 0.7, 1.4),
        (0.5, 0.8, 0.8, None),
        (0.5, 0.9, 0.8, None),
        (None, 0.2, 0.8, None),
        (0.5, 0.2, None, None),
        (0.5, 0.2, float("nan"), None),
    ],
    ids=str,
)
def test_the_share_of_the_gap_closed(score, trivial, ceiling, share):
    assert gap_closed(score, trivial, ceiling) == (None if share is None else pytest.approx(share))


def test_a_group_of_a_single_unit_among_few_groups_leaves_no_interval():
    value, cluster = np.array([0.9, -0.5, 0.3, 0.20, 0.21]), np.array([0, 1, 2, 3, 3])
    sample = Sample(value, cluster, np.zeros(5, int), np.arange(5))
    found = interval(sample, np.random.default_rng(0))
    assert found.ci == [None, None]
    assert verdict(found.ci, 0.05) == "undecided"


def test_the_rule_is_that_of_all_clusters_also_where_one_has_no_score():
    effects = np.repeat([1.0, -1.0, 0.5, -0.2, 0.4], 3) + np.tile([-0.01, 0.0, 0.01], 5)
    cluster = np.repeat(np.arange(5), 3)
    effects[cluster == 4] = np.nan
    found = interval(Sample(effects, cluster, np.zeros(15, int), np.arange(15)), np.random.default_rng(0))
    assert found.clusters == 4
    assert found.high - found.low > 1  # whole clusters, which differ by 2, and not units within them
