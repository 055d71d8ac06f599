from dataclasses import replace

import numpy as np
import pytest

from sckit.perturbation import baselines_partial as perturb_partial
from sckit.perturbation.baselines_partial import FITTED, Revealed, predict_scored
from sckit.perturbation.ridge import (
    PENALTIES,
    Ridge,
    first_best,
    group_weights,
    neighbour_means,
    rows_by_fold,
    truncated_svd,
)

R, S = 30, 12


def planted(rng, n, *, groups=None, m=40, noise=0.3, factors=3, prior=0.0):
    """Rows whose deviations have a few factors, as untreated cells have: (data, truth of the test rows [m, S])."""
    loadings = rng.normal(size=(factors, R + S))
    group = np.arange(n) % (groups or n)
    of_group = rng.normal(size=(group.max() + 1, factors))
    train = of_group[group] @ loadings + noise * rng.normal(size=(n, R + S))
    clean = rng.normal(size=(m, factors)) @ loadings
    test = clean + noise * rng.normal(size=clean.shape)
    covariance = loadings.T @ loadings + noise**2 * np.eye(R + S)
    data = Revealed(
        train[:, :R] + prior,
        train[:, R:] + prior,
        test[:, :R] + prior,
        np.full(R + S, prior),
        group,
        covariance[R:, :R],
        covariance[:R, :R],
    )
    return data, test[:, R:] + prior


def partial_baselines(data):
    mean = np.tile(data.prior[data.seen_train.shape[1] :], (len(data.seen_test), 1))
    return {"no change": 0 * mean, "mean": mean} | {name: predict_scored(name, data) for name in FITTED}


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def textbook_ridge(x, y, weight, penalty):
    """Weighted ridge with a free intercept as least squares on stacked rows: (slopes, intercept)."""
    root = np.sqrt(weight)[:, None]
    rows = np.hstack([root * x, root])
    held = np.hstack([np.sqrt(penalty) * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))])
    targets = np.vstack([root * y, np.zeros((x.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(np.vstack([rows, held]), targets, rcond=None)[0]
    return solution[:-1], solution[-1]


SHAPES = pytest.mark.parametrize(
    ("n", "groups"),
    [(12, 12), (14, 5), (80, 9)],
    ids=["more genes than rows", "unequal groups", "more rows than genes"],
)


def regression(rng, n, groups):
    x, y = rng.normal(size=(n, R)), rng.normal(size=(n, S))
    group = np.concatenate([np.arange(groups), rng.integers(0, groups, n - groups)])
    return x, y, group, group_weights(group)


@SHAPES
def test_slopes_are_the_textbook_ridge(rng, n, groups):
    x, y, _, weight = regression(rng, n, groups)
    ridge = Ridge(x, y, weight)
    for penalty in PENALTIES[1:]:
        expected, _ = textbook_ridge(x, y, weight, penalty * ridge.power[0])
        np.testing.assert_allclose(ridge.coefficients(penalty), expected, atol=1e-7)
    assert not ridge.coefficients(np.inf).any()


@SHAPES
def test_left_out_errors_are_those_of_refits(rng, n, groups):
    x, y, group, weight = regression(rng, n, groups)
    ridge = Ridge(x, y, weight)
    expected = np.zeros(len(PENALTIES))
    for left in rows_by_fold(group, n):
        kept = np.delete(np.arange(n), left)
        for i, penalty in enumerate(PENALTIES):
            scaled = penalty * ridge.power[0] if np.isfinite(penalty) else 1e14
            slopes, intercept = textbook_ridge(x[kept], y[kept], weight[kept], scaled)
            expected[i] += weight[left] @ ((y[left] - x[left] @ slopes - intercept) ** 2).sum(1)
    np.testing.assert_allclose(ridge.left_out_errors(rows_by_fold(group, n)), expected, rtol=1e-6)


@SHAPES
def test_left_out_errors_of_factors_are_those_of_refits(rng, n, groups):
    rows, _ = planted(rng, n, groups=groups)
    model = perturb_partial._Factors(rows)
    ranks, penalties = [1, 2, 3], model.top * np.array([1.0, 1e-2, 1e-4])
    expected = np.zeros((3, 3))
    for left in rows.folds:
        kept = np.delete(np.arange(n), left)
        share = rows.weight[kept] / rows.weight[kept].sum()
        mean = share @ rows.all[kept]
        axes, power = truncated_svd(np.sqrt(rows.weight[kept])[:, None] * (rows.all[kept] - mean), 3)
        apart = rows.all[left] - mean
        for i, rank in enumerate(ranks):
            v, held = axes[:, :rank], np.diag(1 / power[:rank])
            for j, penalty in enumerate(penalties):
                z = np.linalg.solve(v[:R].T @ v[:R] + penalty * held, v[:R].T @ apart[:, :R].T)
                expected[i, j] += rows.weight[left] @ ((apart[:, R:] - z.T @ v[R:].T) ** 2).sum(1)
    np.testing.assert_allclose(model.left_out_errors(rows, ranks, penalties), expected, rtol=1e-6)


def test_the_mean_has_the_same_left_out_error_everywhere(rng):
    rows, _ = planted(rng, 20, groups=7)
    ridge = Ridge(rows.seen, rows.truth, rows.weight)
    np.testing.assert_allclose(ridge.left_out_errors(rows.folds)[0], rows.unexplained)


def test_factors_of_full_rank_are_the_ridge(rng, monkeypatch):
    rows, _ = planted(rng, 9)
    ridge = Ridge(rows.seen, rows.truth, rows.weight)
    monkeypatch.setattr(perturb_partial._Factors, "choose", lambda *_: (8, 1e-2 * ridge.power[0]))
    predicted = perturb_partial._low_rank(rows)
    np.testing.assert_allclose(predicted, rows.test @ ridge.coefficients(1e-2), atol=1e-8)


@pytest.mark.parametrize(("n", "groups"), [(30, 30), (300, 20)], ids=["units", "cells"])
def test_hidden_genes_of_a_low_rank_world_are_recovered(rng, n, groups):
    data, truth = planted(rng, n, groups=groups)
    predicted = partial_baselines(data)
    for name in ("ridge revealed to hidden", "low-rank", "Gaussian conditional"):
        assert correlation(predicted[name], truth) > 0.95, name
    assert correlation(predicted["nearest neighbours"], truth) > 0.5


def test_only_the_covariance_knows_where_training_rows_do_not_tell(rng):
    # Two perturbations in training, three factors in the test: what controls say is all there is.
    data, truth = planted(rng, 60, groups=3)
    predicted = partial_baselines(data)
    assert correlation(predicted["Gaussian conditional"], truth) > 0.95
    assert correlation(predicted["Gaussian conditional"], truth) > correlation(predicted["low-rank"], truth) + 0.05


def test_a_covariance_that_misleads_is_shrunk_away(rng):
    data, truth = planted(rng, 40)
    order = rng.permutation(R)
    predicted = partial_baselines(replace(data, cross=-data.cross[:, order], own=data.own[np.ix_(order, order)]))
    error = {name: ((value - truth) ** 2).mean() for name, value in predicted.items()}
    assert error["Gaussian conditional"] <= 1.02 * error["mean"]


def test_a_noisy_covariance_is_shrunk_about_as_much_as_hindsight_would(rng):
    data, truth = planted(rng, 40, noise=1.0)
    seen = rng.multivariate_normal(np.zeros(R), data.own, size=35)
    hidden = seen @ np.linalg.solve(data.own, data.cross.T) + rng.normal(size=(35, S))
    covariance = np.cov(np.hstack([seen, hidden]).T)
    own, cross = covariance[:R, :R], covariance[R:, :R]
    predicted = partial_baselines(replace(data, own=own, cross=cross))["Gaussian conditional"]
    hindsight = {}
    for shrinkage in perturb_partial.SHRINKAGES:
        slopes = np.linalg.solve(own + shrinkage * np.diag(own.diagonal()), cross.T)
        hindsight[shrinkage] = ((data.seen_test @ slopes - truth) ** 2).mean()
    assert ((predicted - truth) ** 2).mean() < 1.1 * min(hindsight.values())
    assert hindsight[0.01] > 1.3 * min(hindsight.values())


def test_a_perturbation_counts_the_same_however_many_rows_it_has(rng):
    data, _ = planted(rng, 24, groups=8)
    again = np.concatenate([np.arange(24), np.flatnonzero(data.group < 2)])
    fields = ("seen_train", "truth_train", "group")
    repeated = replace(data, **{field: getattr(data, field)[again] for field in fields})
    for name in ("ridge revealed to hidden", "low-rank", "Gaussian conditional"):
        expected = partial_baselines(data)[name]
        np.testing.assert_allclose(partial_baselines(repeated)[name], expected, atol=1e-8, err_msg=name)


def test_shuffled_rows_bring_everything_fitted_to_the_mean(rng):
    worse = []
    for _ in range(6):
        data, truth = planted(rng, 30)
        shuffled = replace(data, truth_train=rng.permutation(data.truth_train))
        predicted = partial_baselines(shuffled)
        error = {name: ((predicted[name] - truth) ** 2).mean() for name in predicted}
        worse += [error[name] / error["mean"] for name in list(FITTED)[:3]]
    assert np.median(worse) < 1.02
    assert max(worse) < 1.5


def test_a_prior_averaged_over_the_row_itself_gives_nothing_away(rng):
    # With three noise rows, deviations from their own mean add up to zero: each is known from the two others.
    data, _ = planted(rng, 3, factors=1, noise=1.0)
    about = np.hstack([data.seen_train, data.truth_train])
    averaged = replace(data, prior=about.mean(0))
    shifted = replace(data, prior=about.mean(0) + 5)
    np.testing.assert_allclose(averaged.judged, shifted.judged)
    others = np.array([np.delete(about, i, 0).mean(0) for i in range(3)])
    np.testing.assert_allclose(averaged.judged, about - others)


def test_a_prior_that_is_not_zero_is_added_back(rng):
    state = rng.bit_generator.state
    plain = partial_baselines(planted(rng, 25)[0])
    rng.bit_generator.state = state
    moved = partial_baselines(planted(rng, 25, prior=2.0)[0])
    assert not moved["no change"].any()
    for name in ("mean", *FITTED):
        np.testing.assert_allclose(moved[name], plain[name] + 2, atol=1e-8, err_msg=name)


def test_one_test_row_knows_nothing_of_the_others(rng):
    data, _ = planted(rng, 25)
    alone = replace(data, seen_test=data.seen_test[:1])
    for name, value in partial_baselines(data).items():
        np.testing.assert_allclose(partial_baselines(alone)[name], value[:1], atol=1e-10, err_msg=name)


def test_the_order_of_training_rows_does_not_matter(rng):
    data, _ = planted(rng, 26, groups=8)
    order = rng.permutation(26)
    fields = ("seen_train", "truth_train", "group")
    shuffled = replace(data, **{field: getattr(data, field)[order] for field in fields})
    for name, value in partial_baselines(data).items():
        np.testing.assert_allclose(partial_baselines(shuffled)[name], value, atol=1e-8, err_msg=name)


def test_nothing_revealed_leaves_the_mean(rng):
    data, _ = planted(rng, 20, prior=1.5)
    empty = np.zeros((20, 0)), np.zeros((40, 0))
    blind = replace(data, seen_train=empty[0], seen_test=empty[1], prior=data.prior[R:])
    predicted = partial_baselines(replace(blind, cross=np.zeros((S, 0)), own=np.zeros((0, 0))))
    for name in FITTED:
        np.testing.assert_array_equal(predicted[name], np.full((40, S), 1.5))


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (5, 1), (2, 2)], ids=["one row", "one group", "two rows"])
def test_too_few_groups_to_judge_leave_the_mean(rng, n, groups):
    data, _ = planted(rng, n, groups=groups)
    predicted = partial_baselines(data)
    for name in list(FITTED)[:-1] if groups > 1 else FITTED:
        np.testing.assert_array_equal(predicted[name], predicted["mean"], err_msg=name)
    assert np.isfinite(predicted["Gaussian conditional"]).all()


def test_genes_that_never_vary_do_no_harm(rng):
    data, truth = planted(rng, 30)
    seen, own, cross = data.seen_train.copy(), data.own.copy(), data.cross.copy()
    seen[:, :8], own[:8], own[:, :8], cross[:, :8] = 0, 0, 0, 0
    for name, value in partial_baselines(replace(data, seen_train=seen, own=own, cross=cross)).items():
        assert np.isfinite(value).all()
        if name in ("ridge revealed to hidden", "low-rank", "Gaussian conditional"):
            assert correlation(value, truth) > 0.9, name
    for value in partial_baselines(replace(data, seen_train=0 * seen, truth_train=0 * data.truth_train)).values():
        assert np.isfinite(value).all()


def test_a_covariance_that_is_not_positive_is_no_crash(rng):
    data, _ = planted(rng, 20)
    for own in (-data.own, np.zeros_like(data.own), data.own - 2 * np.diag(data.own.diagonal()[rng.permutation(R)])):
        predicted = partial_baselines(replace(data, own=own))
        assert np.isfinite(predicted["Gaussian conditional"]).all()
    np.testing.assert_array_equal(partial_baselines(replace(data, own=-data.own))["Gaussian conditional"], 0)


def test_neighbours_as_near_as_the_last_one_are_all_taken():
    values = np.array([[1.0], [2.0], [6.0], [100.0]])
    distances = np.array([[1.0, 4.0, 4.0, 9.0]])
    one, two, three = neighbour_means(distances, values, np.array([1.0, 1.0, 2.0, 1.0]), (1, 2, 3))
    assert one == 1
    np.testing.assert_allclose(two, (1 + 2 + 2 * 6) / 4)
    np.testing.assert_array_equal(two, three)


def test_groups_are_dealt_into_few_folds_and_never_split(rng):
    group = rng.integers(0, 130, 400)
    folds = rows_by_fold(group, 50)
    assert len(folds) == 50
    assert sorted(np.concatenate(folds)) == list(range(400))
    assert sum(len(np.unique(group[rows])) for rows in folds) == len(np.unique(group))
    assert [rows.tolist() for rows in rows_by_fold(np.array([7, 3, 7, 9]), 50)] == [[1], [0, 2], [3]]
    np.testing.assert_allclose(np.bincount(group, group_weights(group))[np.unique(group)], 1)


def test_a_tie_goes_to_the_first():
    assert first_best(np.array([2.0, 1.0 + 1e-12, 1.0])) == 1
