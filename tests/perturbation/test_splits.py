from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.errors import DataError
from sckit.perturbation.splits import composition, group_moments, halve, make_fold, profiles, split_name, training_share

from .small_screens import CONFIG, dense_values, small_screen

COMBINED = ("A", "B", "C", "D", "A+B", "C+D", "A+E")
"""E is measured together with A only."""


def names(screen, units):
    return sorted(screen.units[u].name for u in units)


def folds(screen, split, count, **options):
    return [make_fold(screen, split, replace(CONFIG, **options), seed) for seed in range(count)]


@pytest.mark.parametrize("wanted", [2, 4, 6, 50], ids="{}-folds".format)
@pytest.mark.parametrize("split", ["perturbation", "covariate"])
def test_as_many_seeds_as_folds_test_each_group_once(rng, split, wanted):
    """Of a perturbation alone nothing tells it apart, so that a fold has two; a covariate value has six of them."""
    screen = small_screen(rng, contexts=6, cells=4, controls=4, genes=4)
    count = min(wanted, 3 if split == "perturbation" else 6)
    tested = [fold.test for fold in folds(screen, split, count, folds=wanted)]
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(36))
    for fold in folds(screen, split, count, folds=wanted):
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.arange(36))
    sizes = [len(units) for units in tested]
    assert max(sizes) - min(sizes) <= 6


def test_the_next_seeds_partition_anew_and_a_fold_is_a_function_of_the_seeds(rng):
    screen = small_screen(rng, conditions=tuple("ABCDEFGHIJ"), cells=4, controls=4, genes=4)
    first, again = (folds(screen, "perturbation", 10) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.test, other.test)
    partition, later = ({tuple(fold.test) for fold in part} for part in (first[:5], first[5:]))
    another = {tuple(fold.test) for fold in folds(screen, "perturbation", 5, seed=1)}
    assert len({frozenset(partition), frozenset(later), frozenset(another)}) == 3
    for chosen in (partition, later, another):
        assert sorted(sum(chosen, ())) == list(range(10))


def test_an_unseen_perturbation_is_not_seen_in_combinations_either(rng):
    screen = small_screen(rng, conditions=COMBINED, cells=4, controls=4, genes=4)
    for fold in folds(screen, "perturbation", 5):
        parts = [{p for u in units for p in screen.units[u].parts} for units in (fold.train, fold.test)]
        singles = {screen.units[u].parts[0] for u in fold.test if len(screen.units[u].parts) == 1}
        assert not parts[0] & singles
        for u in fold.test:
            assert not set(screen.units[u].parts) <= parts[0]
    held_out = [fold for fold in folds(screen, "perturbation", 2, folds=4) if "A" in names(screen, fold.test)]
    assert len(held_out) == 1
    assert set(names(screen, held_out[0].test)) > {"A", "A+B", "A+E"}


def test_an_unseen_context_holds_out_all_its_units_or_those_of_its_donor(rng):
    screen = small_screen(rng, contexts=4, cells=4, controls=4, genes=4)
    for fold in folds(screen, "covariate", 4):
        held_out = {screen.units[u].covariates for u in fold.test}
        assert len(held_out) == 1
        assert not held_out & {screen.units[u].covariates for u in fold.train}
    donors = replace(screen, unseen_of_covariates=("d1", "d2", "d1", "d2"))
    assert split_name(donors, replace(CONFIG, split="covariate")) == "covariate"
    for fold in folds(donors, "covariate", 2):
        assert {screen.units[u].covariates for u in fold.test} in ({0, 2}, {1, 3})
        assert len(fold.test) == 12


@pytest.mark.parametrize(("contexts", "sizes"), [(2, [1, 1]), (3, [2] * 2), (5, [2] * 3), (7, [2] * 4)])
def test_of_a_single_perturbation_two_covariate_values_are_held_out_where_there_are_three(rng, contexts, sizes):
    screen = small_screen(rng, conditions=("A",), contexts=contexts, cells=4, controls=4, genes=4)
    assert screen.single
    found = folds(screen, "covariate", len(sizes))
    assert [len(fold.test) for fold in found] == sizes
    assert {u for fold in found for u in fold.test} == set(range(contexts))
    assert screen.centring_groups(np.arange(contexts)).tolist() == [0] * contexts


def test_units_are_centred_within_their_covariate_group_where_there_are_several_perturbations(rng):
    screen = small_screen(rng, conditions=("A", "B"), contexts=2, cells=4, controls=4, genes=4)
    assert not screen.single
    units = np.array([3, 0, 1])
    assert screen.centring_groups(units).tolist() == [screen.units[u].covariates for u in units]


def test_an_unseen_combination_has_parts_and_context_that_are_seen(rng):
    screen = small_screen(rng, conditions=COMBINED, contexts=2, cells=4, controls=4, genes=4)
    tested = []
    for fold in folds(screen, "combination", 2):
        trained = {screen.units[u].name for u in fold.train}
        seen = {p for u in fold.train for p in screen.units[u].parts}
        for u in fold.test:
            assert len(screen.units[u].parts) == 2
            assert screen.units[u].name not in trained
            assert set(screen.units[u].parts) <= seen
        tested += names(screen, fold.test)
    assert sorted(tested) == ["A+B", "A+B", "C+D", "C+D"]  # of A+E, E is seen nowhere else


def test_without_combined_perturbations_a_combination_is_a_perturbation_in_a_context(rng):
    screen = small_screen(rng, conditions=("A", "B", "C"), contexts=3, cells=4, controls=4, genes=4)
    rare = replace(screen, units=tuple(u for u in screen.units if u.name != "C" or u.covariates == 0))
    for fold in folds(rare, "combination", 3):
        trained = [rare.units[u] for u in fold.train]
        for u in fold.test:
            assert rare.units[u].parts in {unit.parts for unit in trained}
            assert rare.units[u].covariates in {unit.covariates for unit in trained}
            assert (rare.units[u].parts, rare.units[u].covariates) not in {(t.parts, t.covariates) for t in trained}
    tested = [u for fold in folds(rare, "combination", 5) for u in fold.test]
    assert "C" not in {rare.units[u].name for u in tested}
    assert len(tested) == len(set(tested))


def test_doses_of_a_perturbation_are_held_out_together(rng):
    screen = small_screen(rng, conditions=("A @ 1", "A @ 2", "B @ 1"), contexts=2, cells=4, controls=4, genes=4)
    for fold in folds(screen, "combination", 4):
        seen = {(screen.units[u].parts, screen.units[u].covariates) for u in fold.train}
        assert not seen & {(screen.units[u].parts, screen.units[u].covariates) for u in fold.test}
    lonely = replace(screen, units=tuple(u for u in screen.units if (u.name, u.covariates) != ("B @ 1", 1)))
    tested = [fold.test for fold in folds(lonely, "combination", 2)]
    assert [names(lonely, units) for units in tested] == [["A @ 1", "A @ 2"]] * 2  # B is in one context alone


@pytest.mark.parametrize(
    ("conditions", "contexts", "expected"),
    [
        (tuple("ABCDE"), 3, "perturbation"),
        (tuple("ABCD"), 3, "covariate"),
        (tuple("ABCD"), 1, "perturbation"),
        (("A",), 2, "covariate"),
    ],
    ids=["five perturbations", "few perturbations", "few and one context", "one perturbation"],
)
def test_auto_takes_the_first_split_that_the_data_can_bear(rng, conditions, contexts, expected):
    screen = small_screen(rng, conditions=conditions, contexts=contexts, cells=4, controls=4, genes=4)
    assert split_name(screen, CONFIG) == expected


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("perturbation", "needs at least two perturbations, to hold one out; the data have 1 perturbation"),
        ("covariate", "1 covariates, .*name columns with --covariates"),
        ("combination", "choose another --split"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(rng, split, words):
    screen = small_screen(rng, conditions=("A",), cells=4, controls=4, genes=4)
    with pytest.raises(DataError, match=words):
        split_name(screen, replace(CONFIG, split=split))


@pytest.mark.parametrize(
    ("conditions", "split"),
    [(tuple("ABCDEFGHIJ"), "perturbation"), (tuple("ABC"), "covariate"), (("A",), "covariate")],
    ids=["of perturbations", "of the cells, other contexts unseen", "of the cells of one perturbation"],
)
def test_shares_of_the_training_data_are_nested_and_never_below_two(rng, conditions, split):
    screen = small_screen(rng, conditions=conditions, contexts=3, cells=10, controls=4, genes=4)
    fold = make_fold(screen, split, CONFIG, 0)
    before = set()
    for share in (0.01, 0.1, 0.3, 0.7, 1.0):
        units, cells = training_share(screen, fold, split, share, np.random.default_rng(3))
        assert list(cells) == list(units)
        assert np.isin(units, fold.train).all()
        kept = {int(cell) for mine in cells.values() for cell in mine}
        assert before <= kept
        before = kept
        for u, mine in cells.items():
            assert np.isin(mine, screen.units[u].cells).all()
            assert len(mine) >= 2
        perturbations = {screen.units[u].parts for u in units}
        whole = {screen.units[u].parts for u in fold.train}
        if split == "perturbation":
            assert len(perturbations) == max(2, round(share * len(whole)))
        else:
            assert perturbations == whole
            assert [len(mine) for mine in cells.values()] == [max(2, round(share * 10))] * len(fold.train)
    assert before == {int(cell) for u in fold.train for cell in screen.units[u].cells}


def test_halves_are_disjoint_whole_and_even_within_strata(rng):
    screen = small_screen(rng, contexts=2, replicates=3, cells=7, controls=9)
    cell_halves = halve(screen, np.random.default_rng(4))
    assert not (cell_halves.inputs & cell_halves.reference).any()
    np.testing.assert_array_equal(cell_halves.inputs | cell_halves.reference, screen.control)
    for s in np.unique(screen.stratum):
        assert [(side & (screen.stratum == s)).sum() for side in (cell_halves.inputs, cell_halves.reference)] == [4, 5]
    for unit, first, second in zip(screen.units, cell_halves.first, cell_halves.second, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), unit.cells)
        counts = [np.bincount(screen.stratum[half], minlength=6) for half in (first, second)]
        assert np.abs(counts[0] - counts[1]).max() <= 1
        assert abs(len(first) - len(second)) <= 1
    other = halve(screen, np.random.default_rng(5))
    assert any((a.shape != b.shape) or (a != b).any() for a, b in zip(cell_halves.first, other.first, strict=True))


def test_profiles_are_plain_means_of_the_cells_with_controls_of_the_same_strata(rng):
    screen = small_screen(rng, contexts=2, replicates=2, cells=6, controls=8, genes=10)
    uneven = replace(screen, units=tuple(replace(u, cells=np.delete(u.cells, [0, 1, 4])) for u in screen.units))
    cell_halves = halve(uneven, np.random.default_rng(0))
    trainable = {0: uneven.units[0].cells, 3: uneven.units[3].cells[:4]}
    values = uneven.values
    got = profiles(uneven, values, cell_halves, trainable)
    dense = dense_values(screen)
    for u, unit in enumerate(uneven.units):
        weight = np.bincount(uneven.stratum[unit.cells], minlength=4) / len(unit.cells)
        for side, mean in ((cell_halves.inputs, got.inputs), (cell_halves.reference, got.reference)):
            expected = sum(w * dense[side & (uneven.stratum == s)].mean(0) for s, w in enumerate(weight) if w > 0)
            np.testing.assert_allclose(mean[u], expected, atol=1e-12)
        for i, half in enumerate((cell_halves.first[u], cell_halves.second[u])):
            np.testing.assert_allclose(got.halves[i][u], dense[half].mean(0), atol=1e-12)
            np.testing.assert_allclose(got.variances[i][u], dense[half].var(0, ddof=1), atol=1e-12)
            assert got.sizes[i][u] == len(half)
        error = sum(
            w**2 * (own := dense[cell_halves.reference & (uneven.stratum == s)]).var(0, ddof=1) / len(own)
            for s, w in enumerate(weight) if w > 0
        )  # fmt: skip
        np.testing.assert_allclose(got.reference_error[u], error, atol=1e-12)
        if u in trainable:
            np.testing.assert_allclose(got.treated[u], dense[trainable[u]].mean(0), atol=1e-12)
        else:
            assert np.isnan(got.treated[u]).all()
    np.testing.assert_allclose(composition(uneven).sum(1), 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_group_moments_are_those_of_numpy(seed, sizes):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(12, 5)) * (generator.random((12, 5)) < 0.5)
    groups = [generator.choice(12, size, replace=False) for size in sizes]
    mean, variance, count = group_moments(sp.csr_array(values), groups)
    np.testing.assert_array_equal(count, sizes)
    for i, group in enumerate(groups):
        np.testing.assert_allclose(mean[i], values[group].mean(0) if len(group) else 0, atol=1e-12)
        np.testing.assert_allclose(variance[i], values[group].var(0, ddof=1) if len(group) > 1 else 0, atol=1e-12)
