import itertools
from dataclasses import replace

import numpy as np
import pytest

from sckit.errors import DataError
from sckit.perturbation.baselines import RESPONSE, additive, mean_of_training
from sckit.perturbation.fold import FoldView

GENES = 120


def make_fold(delta, parts, context, test, **given):
    """A fold of all units but the test ones; the deltas of the test units are not there to be seen."""
    test = np.asarray(test)
    train = np.setdiff1d(np.arange(len(delta)), test)
    hidden = np.array(delta, dtype=float)
    hidden[test] = np.nan
    perturbations = max(map(max, parts)) + 1
    given = {
        "control": np.zeros_like(hidden),
        "target_genes": np.full(perturbations, -1),
        "components": np.eye(hidden.shape[1])[:, :3],
    } | given
    return FoldView(train, test, hidden, parts=tuple(parts), covariates=np.asarray(context), **given)


def response_baselines(fold):
    return {name: predict(fold) for name, predict in RESPONSE.items()}


def singles(count):
    return [(number,) for number in range(count)]


def regulated(rng, perturbations=60, *, noise=0.3):
    """Effects that are linear in two factors of the target gene: (deltas, target genes)."""
    genes = rng.normal(size=(GENES, 2))
    targets = rng.choice(GENES, perturbations, replace=False)
    # Turned, not squashed: of a factor that no gene answers, the effects of others could tell nothing.
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    effects = rng.normal(size=GENES) + 2 * genes[targets] @ turn @ genes.T
    return effects + noise * rng.normal(size=effects.shape), targets


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def test_the_mean_counts_each_perturbation_once(rng):
    delta = rng.normal(size=(5, 4))
    fold = make_fold(delta, [(0,), (0,), (0,), (1,), (2,)], [0, 1, 2, 0, 0], [4])
    expected = (delta[:3].mean(0) + delta[3]) / 2
    np.testing.assert_allclose(mean_of_training(fold), expected[None])


def test_a_combination_is_the_sum_of_its_singles(rng):
    delta = rng.normal(size=(6, 4))
    parts = [(0,), (1,), (2,), (0, 2), (2, 1), (0, 1, 2)]
    predicted = additive(make_fold(delta, parts, [0] * 6, [3, 4, 5]))
    expected = [delta[0] + delta[2], delta[1] + delta[2], delta[:3].sum(0)]
    np.testing.assert_allclose(predicted, expected, atol=1e-5)


def test_an_unseen_part_of_a_combination_brings_the_mean(rng):
    delta = rng.normal(size=(4, 4))
    predicted = additive(make_fold(delta, [(0,), (1,), (0, 2), (2, 3)], [0] * 4, [2, 3]))
    mean = delta[:2].mean(0)
    np.testing.assert_allclose(predicted, [delta[0] + mean, 2 * mean], atol=1e-5)


def test_additive_fills_the_holes_of_an_additive_table(rng):
    effect, context = rng.normal(size=(6, 4)), rng.normal(size=(4, 4))
    table = list(itertools.product(range(6), range(4)))
    delta = np.array([effect[p] + context[c] for p, c in table])
    test = rng.choice(24, 8, replace=False)
    predicted = additive(make_fold(delta, [(p,) for p, _ in table], [c for _, c in table], test))
    np.testing.assert_allclose(predicted, delta[test], atol=1e-4)


def test_additive_is_the_mean_where_it_has_nothing_to_add(rng):
    delta = rng.normal(size=(5, 4))
    for parts, context in ((singles(5), [0] * 5), ([(0,)] * 5, range(5))):
        fold = make_fold(delta, parts, list(context), [4])
        np.testing.assert_allclose(additive(fold), delta[:4].mean(0)[None], atol=1e-8)


def test_ridge_on_components_learns_what_the_target_gene_says(rng):
    delta, targets = regulated(rng)
    fold = make_fold(delta, singles(60), [0] * 60, np.arange(50, 60), target_genes=targets)
    predicted = response_baselines(fold)
    truth = delta[50:] - predicted["mean"]
    assert correlation(predicted["ridge on components"] - predicted["mean"], truth) > 0.9
    assert correlation(predicted["nearest neighbours"] - predicted["mean"], truth) > 0.6


def test_components_of_the_controls_alone_can_carry_it(rng):
    genes = rng.normal(size=(GENES, 2))
    targets = np.arange(12)
    delta = genes[targets] @ rng.normal(size=(2, 2)) @ genes.T
    # The target genes do not answer any other perturbation, so their effects tell nothing about them.
    delta[:, targets] = 0
    fold = make_fold(delta, singles(12), [0] * 12, [9, 10, 11], target_genes=targets, components=genes)
    predicted = response_baselines(fold)
    assert correlation(predicted["ridge on components"] - predicted["mean"], delta[9:] - predicted["mean"]) > 0.95


def test_shuffled_targets_bring_ridge_and_neighbours_to_the_mean(rng):
    worse = []
    for _ in range(6):
        delta, targets = regulated(rng, 40)
        fold = make_fold(delta, singles(40), [0] * 40, np.arange(30, 40), target_genes=rng.permutation(targets))
        predicted = response_baselines(fold)
        errors = {name: ((predicted[name] - delta[30:]) ** 2).mean() for name in RESPONSE}
        worse += [errors[name] / errors["mean"] for name in ("ridge on components", "nearest neighbours")]
    # Chosen by chance, a wrong setting costs something in a few of the worlds.
    assert np.mean(np.array(worse) < 1.1) >= 0.8


def test_a_knocked_down_target_does_not_pass_for_knowledge(rng):
    # Every unit is noise but for its own target gene, which falls far: nothing of it carries over to other units.
    targets = rng.choice(GENES, 30, replace=False)
    delta = 0.3 * rng.normal(size=(30, GENES))
    delta[np.arange(30), targets] -= 10
    predicted = response_baselines(make_fold(delta, singles(30), [0] * 30, [27, 28, 29], target_genes=targets))
    others = np.setdiff1d(np.arange(GENES), targets)
    spread = (delta[:27, others] - delta[:27, others].mean(0)).std()
    assert (predicted["ridge on components"] - predicted["mean"])[:, others].std() < 0.4 * spread


def test_a_knocked_down_target_does_not_hide_what_it_says_of_the_others(rng):
    found = []
    for _ in range(8):
        delta, targets = regulated(rng, 40)
        delta[np.arange(40), targets] -= 15
        predicted = response_baselines(make_fold(delta, singles(40), [0] * 40, range(30, 40), target_genes=targets))
        others = np.setdiff1d(np.arange(GENES), targets)
        truth = (delta[30:] - predicted["mean"])[:, others]
        found.append(
            [
                correlation((predicted[name] - predicted["mean"])[:, others], truth)
                for name in ("ridge on components", "nearest neighbours")
            ]
        )
    ridge, neighbours = np.mean(found, 0)
    assert ridge > 0.95
    assert neighbours > 0.65


def test_unknown_targets_are_predicted_by_the_mean(rng):
    delta, targets = regulated(rng)
    targets[55:] = -1
    fold = make_fold(delta, singles(60), [0] * 60, np.arange(50, 60), target_genes=targets)
    predicted = response_baselines(fold)
    for name in ("ridge on components", "nearest neighbours"):
        assert not np.allclose(predicted[name][:5], predicted["mean"][:5])
    np.testing.assert_allclose(predicted["nearest neighbours"][5:], predicted["mean"][5:])
    distance = np.linalg.norm(predicted["ridge on components"] - predicted["mean"], axis=1)
    assert distance[5:].max() < 0.2 * distance[:5].mean()


def test_an_unseen_context_is_read_off_its_controls(rng):
    state, weights = rng.normal(size=(12, 3)), rng.normal(size=(3, GENES))
    components = np.linalg.qr(rng.normal(size=(GENES, 3)))[0]
    control, delta = 5 + state @ components.T, 1 + state @ weights
    fold = make_fold(delta, [(0,)] * 12, range(12), [10, 11], control=control, components=components)
    predicted = response_baselines(fold)
    assert correlation(predicted["ridge on components"] - predicted["mean"], delta[10:] - predicted["mean"]) > 0.98
    np.testing.assert_allclose(predicted["additive"], predicted["mean"], atol=1e-8)


def test_like_contexts_are_neighbours_of_a_perturbation_without_target(rng):
    context = np.repeat([0, 1], 10)
    delta = np.array([[1.0], [-1.0]])[context] * rng.normal(size=GENES) + 0.1 * rng.normal(size=(20, GENES))
    control = np.array([[0.0], [3.0]])[context] * np.ones(GENES)
    parts = [(number % 10,) for number in range(20)]
    predicted = response_baselines(make_fold(delta, parts, context, [9, 19], control=control))
    np.testing.assert_allclose(predicted["nearest neighbours"], [delta[:9].mean(0), delta[10:19].mean(0)])


def test_nothing_but_the_training_rows_is_read(rng):
    delta, targets = regulated(rng, 30)
    fold = make_fold(delta, singles(30), [0] * 30, [3, 28], target_genes=targets)
    told = replace(fold, delta=delta + 1e3 * np.isnan(fold.delta))
    for name, predicted in response_baselines(fold).items():
        assert np.isfinite(predicted).all(), name
        np.testing.assert_array_equal(predicted, response_baselines(told)[name], err_msg=name)


def test_the_order_of_units_and_of_test_units_does_not_matter(rng):
    delta, targets = regulated(rng, 18)
    fold = make_fold(delta, singles(18), [0] * 18, [3, 11, 16], target_genes=targets)
    shuffled = replace(fold, train=rng.permutation(fold.train), test=fold.test[::-1])
    for name, predicted in response_baselines(fold).items():
        np.testing.assert_allclose(predicted, response_baselines(shuffled)[name][::-1], atol=1e-8, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 3], ids=["one unit", "two units", "three units"])
def test_few_training_units_give_finite_numbers(rng, count):
    delta = rng.normal(size=(count + 1, GENES))
    delta[:, :5] = 0
    fold = make_fold(delta, singles(count + 1), [0] * (count + 1), [count], target_genes=np.arange(count + 1) * 2)
    predicted = response_baselines(fold)
    assert all(np.isfinite(value).all() and value.shape == (1, GENES) for value in predicted.values())
    if count == 1:
        for name in list(RESPONSE)[1:]:
            np.testing.assert_allclose(predicted[name], delta[:1])


def test_effects_that_are_all_the_same_are_predicted_exactly(rng):
    delta = np.tile(rng.normal(size=GENES), (8, 1))
    predicted = response_baselines(make_fold(delta, singles(8), [0] * 8, [6, 7], target_genes=np.arange(8)))
    for name in list(RESPONSE)[1:]:
        np.testing.assert_allclose(predicted[name], delta[6:], atol=1e-6, err_msg=name)


def test_a_fold_without_training_units_is_refused():
    with pytest.raises(DataError, match="no training unit"):
        make_fold(np.zeros((1, 4)), [(0,)], [0], [0])
