from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sckit.errors import DataError
from sckit.metrics import effects as perturb_metrics
from sckit.metrics.effects import METRICS, Truth, de_overlap, discrimination, score, weighted_r2

UNITS, CANDIDATES, GENES = 7, 12, 60


def make_truth(generator, *, units=UNITS, candidates=CANDIDATES, genes=GENES):
    """Effects that share a mean, as those of one screen do; the last genes are not detected by any cell."""
    shared = generator.normal(size=genes)
    everybody = shared + generator.normal(size=(candidates, genes))
    own = generator.permutation(candidates)[:units]
    se = np.abs(generator.normal(size=(units, genes))) + 0.1
    se[:, -4:], everybody[:, -4:] = 0, 0
    mean = np.tile(shared, (units, 1)) + 0.1 * generator.normal(size=(units, genes))
    control = everybody[own]
    perturbed = control + 0.05 * generator.normal(size=control.shape) - mean
    return Truth(control, perturbed, mean, se, everybody, own)


@pytest.fixture
def truth(rng):
    return make_truth(rng)


def residual(y, x):
    """What a regression of y on x with an intercept leaves."""
    design = np.column_stack([np.ones_like(x), x])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


def specific(p, truth, i, masks):
    """The headline of unit i: each side less the mean of the units for which the gene counts, at genes of several."""
    several = masks & (masks.sum(0) > 1)

    def row(effects, j):
        rest = {g: effects[j, g] - np.mean(effects[masks[:, g], g]) for g in np.flatnonzero(several[j])}
        middle = np.mean(list(rest.values()))
        length = np.sqrt(sum((x - middle) ** 2 for x in rest.values()))
        return np.array([(rest[g] - middle) / length if g in rest else 0 for g in range(GENES)])

    correlations = [row(p, j) @ row(truth.control, i) for j in range(UNITS)]
    return correlations[i] - np.mean(correlations)


def by_hand(p, truth, i, masks):
    """The metrics of unit i, in words of numpy."""
    genes = masks[i]
    t, u, mu, se = (x[i, genes] for x in (truth.control, truth.perturbed, truth.mean, truth.se))
    q = p[i, genes]
    known = se > 0
    weight, rank_t, rank_p = np.zeros_like(t), np.zeros_like(t), np.zeros_like(t)
    rank_t[known], rank_p[known] = np.abs(t[known] / se[known]), np.abs(q[known] / se[known])
    weight = rank_t**2
    distance = [np.abs(c[genes] - q).sum() for c in truth.candidates]
    top = min(50, max(5, genes.sum() // 10))
    best = [set(np.argsort(-key, kind="stable")[:top]) for key in (rank_t, rank_p)]
    return {
        "delta_r_specific": specific(p, truth, i, masks),
        "delta_r_perturbed": np.corrcoef(residual(q, mu), residual(u, mu))[0, 1],
        "delta_r": np.corrcoef(q, t)[0, 1],
        "weighted_r2": max(-1, 1 - np.average((u + mu - q) ** 2, weights=weight) / np.average(u**2, weights=weight)),
        "discrimination": np.mean([d > distance[truth.own[i]] for k, d in enumerate(distance) if k != truth.own[i]]),
        "slope": np.linalg.lstsq(t[:, None], q, rcond=None)[0][0],
        "de_overlap": len(best[0] & best[1]) / top,
    }


@pytest.mark.parametrize("which", ["all genes", "some genes", "each unit its own few", "each unit all but one"])
def test_metrics_are_what_numpy_says(truth, rng, which):
    masks = {
        "all genes": np.ones(GENES, bool),
        "some genes": rng.random(GENES) < 0.4,
        "each unit its own few": rng.random((UNITS, GENES)) < 0.4,
        "each unit all but one": np.arange(GENES) != np.arange(UNITS)[:, None],
    }
    predicted = truth.mean + 0.5 * truth.perturbed + rng.normal(size=truth.mean.shape)
    found = score(predicted, truth, None if which == "all genes" else masks[which])
    assert list(found) == list(METRICS)
    for i in range(UNITS):
        expected = by_hand(predicted, truth, i, np.broadcast_to(masks[which], (UNITS, GENES)))
        assert {name: found[name][i] for name in METRICS} == pytest.approx(expected, abs=1e-12)


def test_the_truth_itself_scores_full_marks(truth):
    found = score(truth.control, truth)
    for name in ("delta_r", "discrimination", "slope", "de_overlap"):
        assert found[name] == pytest.approx(np.ones(UNITS)), name
    # One score may be above 1 and another below it; their mean is 1 where the effects of all units are as strong.
    assert 0.95 < found["delta_r_specific"].mean() <= 1
    found = score(truth.perturbed + truth.mean, truth)
    for name in ("delta_r_perturbed", "weighted_r2"):
        assert found[name] == pytest.approx(np.ones(UNITS)), name


def test_no_change_scores_nothing(truth):
    found = score(np.zeros_like(truth.control), truth)
    for name in ("delta_r_specific", "delta_r", "slope"):
        assert (found[name] == 0).all(), name
    top = 6
    # Everything ties; a truth whose top genes are all told apart meets each with probability top / genes.
    assert found["de_overlap"] == pytest.approx(np.full(UNITS, top / GENES))
    half = score(np.zeros_like(truth.control), truth, np.arange(GENES) >= GENES // 2)
    assert half["de_overlap"] == pytest.approx(np.full(UNITS, 5 / (GENES // 2)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=str)
def test_the_mean_is_the_zero_of_both_headlines_and_of_r2_whatever_the_rounding(truth, dtype):
    mean = (truth.mean * 3 / 3 + 1 - 1).astype(dtype)
    found = score(mean, truth)
    assert (found["delta_r_perturbed"] == 0).all()
    assert (score(np.tile(mean[0], (UNITS, 1)), truth)["delta_r_specific"] == 0).all()
    assert found["weighted_r2"] == pytest.approx(np.zeros(UNITS), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 2.0])
def test_a_multiple_of_the_mean_says_nothing_particular(truth, share):
    assert (score(share * truth.mean, truth)["delta_r_perturbed"] == 0).all()


def test_a_prediction_that_is_the_same_for_every_gene_correlates_with_nothing(truth):
    assert (score(np.full_like(truth.control, 0.1), truth)["delta_r"] == 0).all()


def test_a_truth_without_variance_counts_as_zero_and_stays_finite(truth, rng):
    flat = np.zeros_like(truth.control)
    dead = Truth(flat, flat, flat, flat, np.zeros_like(truth.candidates), truth.own)
    found = score(rng.normal(size=flat.shape), dead)
    assert all(np.isfinite(values).all() for values in found.values())
    assert (found["delta_r"] == 0).all()
    assert (found["delta_r_specific"] == 0).all()
    assert (found["delta_r_perturbed"] == 0).all()
    assert (found["slope"] == 0).all()
    assert (found["weighted_r2"] == 0).all()  # no gene has weight: neither better nor worse than the mean
    assert (found["discrimination"] == 0.5).all()


@pytest.mark.parametrize("change", ["genes", "candidates", "units"])
def test_order_plays_no_part(truth, rng, change):
    predicted = truth.mean + rng.normal(size=truth.mean.shape)
    before = score(predicted, truth)
    parts = [truth.control, truth.perturbed, truth.mean, truth.se]
    if change == "genes":
        order = rng.permutation(GENES)
        other = Truth(*(x[:, order] for x in parts), truth.candidates[:, order], truth.own)
        after = score(predicted[:, order], other)
    elif change == "candidates":
        order = rng.permutation(CANDIDATES)
        other = Truth(*parts, truth.candidates[order], np.argsort(order)[truth.own])
        after = score(predicted, other)
    else:
        order = rng.permutation(UNITS)
        other = Truth(*(x[order] for x in parts), truth.candidates, truth.own[order])
        after = {name: values[np.argsort(order)] for name, values in score(predicted[order], other).items()}
    for name in METRICS:
        assert after[name] == pytest.approx(before[name], abs=1e-12), name


@pytest.mark.parametrize("own_masks", [False, True], ids=["one mask", "a mask a unit"])
def test_blocks_of_units_change_nothing(truth, rng, monkeypatch, own_masks):
    predicted = truth.mean + rng.normal(size=truth.mean.shape)
    genes = rng.random((UNITS, GENES) if own_masks else GENES) < 0.5
    before = score(predicted, truth, genes)
    monkeypatch.setattr(perturb_metrics, "_BLOCK", 2 * GENES)
    after = score(predicted, truth, genes)
    assert all(np.array_equal(before[name], after[name]) for name in METRICS)


@given(seed=st.integers(0, 1000), power=st.integers(-6, 6), levels=st.integers(1, 3))
def test_scores_are_finite_and_in_range_with_many_ties(seed, power, levels):
    scale = 2.0**power  # scales without rounding, so that ties stay ties
    predicted, perturbed, mean, se, *everybody = (
        np.random.default_rng(seed).integers(-levels, levels + 1, (8, 3, 9)) * 1.0
    )
    everybody = np.concatenate(everybody)
    truth = Truth(everybody[:3], perturbed, mean, np.abs(se), everybody, np.arange(3))
    found, larger = score(predicted, truth), score(scale * predicted, truth)
    for name, low in zip(METRICS, (-4 / 3, -1, -1, -1, 0, -np.inf, 0), strict=True):
        assert np.isfinite(found[name]).all()
        assert (found[name] >= low - 1e-12).all()
        high = {"slope": np.inf, "delta_r_specific": 2 * (1 - 1 / 3)}.get(name, 1)
        assert (found[name] <= high + 1e-12).all()
    assert larger["delta_r"] == pytest.approx(found["delta_r"], abs=1e-9)
    assert larger["slope"] == pytest.approx(scale * found["slope"], abs=1e-9)
    assert larger["de_overlap"] == pytest.approx(found["de_overlap"], abs=1e-9)


def test_a_constant_prediction_discriminates_at_chance_over_all_units(rng):
    everybody = rng.normal(size=(9, 30))
    for constant in (np.zeros(30), everybody.mean(0), rng.normal(size=30)):
        found = discrimination(np.tile(constant, (9, 1)), everybody, np.arange(9))
        assert found.mean() == pytest.approx(0.5, abs=1e-12)
        assert found.std() > 0.1


def test_random_predictions_discriminate_at_chance(rng):
    everybody = rng.normal(size=(20, 30))
    own = rng.integers(20, size=2000)
    found = discrimination(rng.normal(size=(2000, 30)), everybody, own)
    # A uniform rank of 20 has a standard deviation of 0.303; four standard errors of the mean of 2,000.
    assert abs(found.mean() - 0.5) < 4 * 0.31 / np.sqrt(2000)


def test_the_farthest_own_truth_has_discrimination_zero(rng):
    everybody = np.arange(5.0)[:, None] * np.ones(3)
    assert discrimination(everybody[:1], everybody, np.array([4])) == [0]
    assert discrimination(everybody[4:], everybody, np.array([4])) == [1]


@pytest.mark.parametrize("genes", [None, np.array([[True] * 30, [True] * 29 + [False]])], ids=["all", "own masks"])
def test_candidates_that_are_the_same_share_their_ranks(rng, genes):
    everybody = np.repeat(rng.normal(size=(1, 30)), 5, axis=0)
    assert (discrimination(rng.normal(size=(2, 30)), everybody, np.array([0, 3]), genes) == 0.5).all()


def test_candidates_as_far_to_rounding_share_their_ranks(rng):
    everybody = rng.permuted(np.tile(rng.normal(size=30), (5, 1)), axis=1)
    assert len(set(np.abs(everybody).sum(1))) > 1
    assert (discrimination(np.zeros((5, 30)), everybody, np.arange(5)) == 0.5).all()


@pytest.mark.parametrize("left_out", [1, 25], ids=["most genes scored", "few genes scored"])
def test_genes_that_are_not_scored_tell_nothing(rng, left_out):
    genes = np.tile(np.arange(30) >= left_out, (6, 1))
    everybody, noise = rng.normal(size=(2, 6, 30)) * np.where(genes, 1, 1000)
    predicted = np.where(genes, everybody, noise)
    assert (discrimination(predicted, everybody, np.arange(6), genes) == 1).all()


def test_leaving_out_only_the_own_perturbed_gene_favours_the_right_answer(rng):
    everybody = 0.3 * rng.normal(size=(20, 60))
    everybody[np.arange(20), np.arange(20)] = -4.0  # perturbation i silences gene i
    no_change, own = np.zeros((20, 60)), np.arange(20)
    own_left_out = discrimination(no_change, everybody, own, np.arange(60) != own[:, None])
    all_left_out = discrimination(no_change, everybody, own, np.arange(60) >= 20)
    assert own_left_out.mean() > 0.9
    assert all_left_out.mean() == pytest.approx(0.5)


def test_one_candidate_cannot_be_told_from_others(rng):
    alone = make_truth(rng, units=1, candidates=1)
    found = score(alone.control, alone)
    undefined = {"discrimination", "delta_r_specific"}
    assert all(np.isnan(found[name]).all() == (name in undefined) for name in METRICS)


def test_overlap_under_ties_is_the_mean_over_random_orders(rng):
    genes = 40
    truth, predicted = (rng.integers(0, 3, (2, genes)).astype(float) for _ in range(2))
    expected = np.zeros(2)
    for _ in range(4000):
        sets = [np.argsort(-x - 1e-3 * rng.random(x.shape), axis=1)[:, :5] for x in (truth, predicted)]
        expected += [len(set(a) & set(b)) / 5 for a, b in zip(*sets, strict=True)]
    found = de_overlap(predicted, truth, np.ones((1, genes), bool))
    # The overlap of five of five lies in [0, 1], so its deviation is under 0.5; four standard errors.
    assert found == pytest.approx(expected / 4000, abs=4 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize(("genes", "top"), [(3, 3), (20, 5), (300, 30), (900, 50)])
def test_the_top_is_a_tenth_within_bounds(genes, top, rng):
    truth = 1 + rng.permutation(genes)[None].astype(float)
    predicted = np.where(truth > genes - top, 1.0, 0.0)
    predicted[0, np.argmax(truth)] = 0
    found = de_overlap(predicted, truth, np.ones((1, genes), bool))
    others = genes - top + 1  # the gene that lost its place draws for it against all the untouched ones
    assert found == pytest.approx([(top - 1 + 1 / others) / top])


def test_r2_counts_genes_by_their_squared_t(rng):
    truth = Truth(
        control=np.array([[2.0, 1.0, 3.0]]),
        perturbed=np.array([[1.0, 2.0, 5.0]]),
        mean=np.array([[0.5, 0.5, 0.5]]),
        se=np.array([[1.0, 0.5, 0.0]]),
        candidates=rng.normal(size=(2, 3)),
        own=np.array([0]),
    )
    found = score(np.array([[1.5, 1.5, 9.0]]), truth)["weighted_r2"]  # errors 0, 1; weights 4, 4; the third unknown
    assert found == pytest.approx([1 - 4 * 1 / (4 * 1 + 4 * 4)])


def test_r2_of_a_perturbation_without_effect_is_floored():
    dead = np.full((1, 10), 1e-6)
    assert weighted_r2(np.ones((1, 10)), dead, np.ones((1, 10))) == [-1]
    assert weighted_r2(np.ones((1, 10)), 0 * dead, np.ones((1, 10))) == [-1]
    assert weighted_r2(np.zeros((1, 10)), 0 * dead, np.ones((1, 10))) == [0]


@pytest.mark.parametrize(
    ("predicted", "genes", "message"),
    [
        (np.full((UNITS, GENES), np.nan), None, "unit 0 is not finite"),
        (np.zeros((UNITS, GENES - 1)), None, "the prediction is"),
        (np.zeros((UNITS, GENES)), np.ones(3, bool), "the scored genes are"),
        (np.zeros((UNITS, GENES)), np.arange(UNITS)[:, None] != 2 + np.zeros(GENES), "unit 2 has no scored gene"),
        (np.zeros((UNITS, GENES)), np.zeros(GENES, bool), "unit 0 has no scored gene"),
    ],
    ids=["diverged", "another shape", "a mask of another length", "a unit without genes", "no genes"],
)
def test_what_cannot_be_scored_is_refused(truth, predicted, genes, message):
    with pytest.raises(DataError, match=message):
        score(predicted, truth, genes)


@pytest.mark.parametrize("fault", ["mean", "own", "candidates", "group"])
def test_a_truth_that_does_not_fit_is_refused(truth, fault):
    faults = {"mean": truth.mean[:1], "own": truth.own[:1], "candidates": np.full_like(truth.candidates, np.nan)}
    faults |= {"group": truth.own[:1]}
    with pytest.raises(DataError):
        replace(truth, **{fault: faults[fault]})
