"""The linear baselines in count space on worlds whose rates are known."""

from dataclasses import replace

import numba
import numpy as np
import pytest

from sckit.data.batch import Hiding, Packer
from sckit.kernels.count_law import value_moments
from sckit.model import offset_fit
from sckit.model.offset_fit import fit_offset_forms, fit_visible
from sckit.model.offset_forms import OFFSET_PREDICTORS
from sckit.model.regression import TrainingCells

from ..planted_counts import Counts, World, planted

DETECTION, TOTAL, VALUE, COUNT = OFFSET_PREDICTORS
FIXED = {"components": 3, "penalty": 5.0, "factors": 2, "count_penalty": 10.0}
HELD_OUT = np.arange(320, 400)
TRAINING = np.arange(320)


def training(world, cells=TRAINING, *, grouped=True):
    groups = world.groups[cells] if grouped else None
    return TrainingCells(world.view, world.vocabulary, cells, groups)


def pack(world, rate, cells=HELD_OUT, **options):
    return Packer(world.view, world.vocabulary, Hiding(rate), **options)(cells)


def rows_of(forms, visible, batch):
    return forms.predict(batch) | {"visible offset ridge": visible.predict(batch)}


@pytest.fixture(scope="module")
def world():
    return planted(400, 120)


@pytest.fixture(scope="module")
def forms(world):
    return fit_offset_forms(training(world), **FIXED)


@pytest.fixture(scope="module")
def visible(world, forms):
    return fit_visible(training(world), forms, 0.3, 4096)


def r2(batch, predicted, gene_mean):
    mean = gene_mean[batch.genes[batch.targets]]
    return 1 - ((batch.truth - predicted) ** 2).sum() / ((batch.truth - mean) ** 2).sum()


def test_rows_rise_with_what_they_know(world, forms, visible):
    batch = pack(world, 0.3, known_depth=True)
    found = {name: r2(batch, p, forms.gene_mean) for name, p in rows_of(forms, visible, batch).items()}
    assert 0.2 < found[DETECTION] < found[TOTAL] - 0.01
    assert found[TOTAL] < found[VALUE]
    assert found[COUNT] > found[TOTAL]
    assert found["visible offset ridge"] > 0.2


def test_the_total_row_is_a_ridge_on_what_lies_above_a_single_count(world, forms):
    cells = np.arange(320)
    batch = pack(world, 1.0, cells, known_depth=True)
    counts, totals = world.view.counts[cells], world.view.totals(cells)
    detected = (counts > 0).astype(float)
    of_cells = forms.of_cells(batch)
    components = detected @ forms.axes - forms.origin
    np.testing.assert_allclose(components.std(0), 1, rtol=0.01)
    logs = np.log(detected.sum(1)), np.log(totals)
    depth, total = ((x - x.mean()) / x.std() for x in logs)
    full = np.column_stack([np.ones(320), depth, components, total])
    np.testing.assert_allclose(of_cells.full, full, atol=1e-6)
    predicted, one = forms.predict(batch)[TOTAL], np.log1p(1e4 / totals)
    for gene in (0, 31, 77):
        seen = detected[:, gene] > 0
        x, y = full[seen], np.log1p(1e4 * counts[seen, gene] / totals[seen]) - one[seen]
        beta = np.linalg.solve(x.T @ x + np.diag([0.0] + [5.0] * 5), x.T @ y)
        mine = batch.genes[batch.targets] == gene
        np.testing.assert_allclose(predicted[mine], one[seen] + np.maximum(x @ beta, 0), atol=1e-5)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_nothing_is_predicted_below_a_single_count(world, forms, visible, rate):
    batch = pack(world, rate, known_depth=True)
    one = np.log1p(1e4 / world.view.totals(HELD_OUT))[batch.target_cells]
    rows = rows_of(forms, visible, batch) if rate < 1 else forms.predict(batch)
    rows.pop(DETECTION)  # does not know the total
    for name, predicted in rows.items():
        assert (predicted >= one - 1e-9).all(), name


def test_nothing_of_a_hidden_value_passes(world, forms, visible):
    batch = pack(world, 0.3, known_depth=True)
    counts = world.view.counts.copy()
    counts[batch.cells[batch.target_cells], batch.genes[batch.targets]] += 7
    changed = World(Counts(counts, world.view.totals(np.arange(400))), world.rates, world.groups)
    other = pack(changed, 0.3, known_depth=True)
    assert (other.truth > batch.truth).all()
    again = rows_of(forms, visible, other)
    for name, predicted in rows_of(forms, visible, batch).items():
        np.testing.assert_array_equal(again[name], predicted, err_msg=name)


def test_the_visible_row_does_not_see_which_genes_are_hidden(world, forms, visible):
    batch = pack(world, 0.3, scored=True)
    rest = np.setdiff1d(np.flatnonzero(batch.hidden), batch.targets)
    assert len(rest) > 100
    genes = batch.genes.copy()
    genes[rest] = (genes[rest] + 17) % 120
    changed = replace(batch, genes=genes, n_detected=batch.n_detected + 5)
    np.testing.assert_array_equal(visible.predict(changed), visible.predict(batch))
    assert np.abs(forms.predict(changed)[TOTAL] - forms.predict(batch)[TOTAL]).max() > 0.01


def test_the_visible_row_predicts_a_training_entry_without_itself(world, forms, visible):
    """Visible tokens get the residuals that hidden ones would, so that their own detection may not count."""
    batch = pack(world, 0.3, known_depth=True)
    cells, own = visible.of_tokens(batch)
    token = np.flatnonzero(~batch.hidden)[5]
    cell = batch.cell_of_token[token]
    mine = np.arange(batch.offsets[cell], batch.offsets[cell + 1])
    others = mine[~batch.hidden[mine] & (mine != token)]
    without = forms.axes[batch.genes[others]].sum(0) / 0.7 - forms.origin
    np.testing.assert_allclose(cells.x[cell, 2:] - own[token], without, atol=1e-10)


def test_the_visible_row_guesses_an_unknown_total_from_visible_tokens(world, forms):
    """A guess that was made for all detected genes is far off where few of them are visible."""
    batch = pack(world, 0.98)
    assert np.isnan(batch.log_total).all()
    few = fit_visible(training(world), forms, 0.98, 4096)
    totals = np.log(world.view.totals(batch.cells))
    assert np.abs(few.of_tokens(batch)[0].guess - totals).mean() < 1.2 * np.abs(totals - totals.mean()).mean()
    assert r2(batch, few.predict(batch), forms.gene_mean) > 0


def test_rows_are_equal_where_they_know_the_same(world, forms):
    known, unknown = (forms.predict(pack(world, 1.0, known_depth=k)) for k in (True, False))
    np.testing.assert_array_equal(known[VALUE], known[TOTAL])
    np.testing.assert_array_equal(unknown[VALUE], unknown[TOTAL])
    np.testing.assert_array_equal(unknown[TOTAL], unknown[DETECTION])
    np.testing.assert_array_equal(known[DETECTION], unknown[DETECTION])
    assert np.abs(known[TOTAL] - unknown[TOTAL]).max() > 0.1


def test_an_unknown_total_is_guessed_from_the_detected_genes(world, forms):
    batch, totals = pack(world, 1.0), np.log(world.view.totals(HELD_OUT))
    cells = forms.of_cells(batch)
    assert not cells.known.any()
    np.testing.assert_array_equal(cells.log_total, cells.guess)
    assert np.corrcoef(cells.guess, totals)[0, 1] > 0.4
    one = np.log1p(1e4 * np.exp(-cells.guess))[batch.target_cells]
    assert (forms.predict(batch)[COUNT] >= one - 1e-9).all()


def test_inner_validation_leaves_whole_groups_out(world, monkeypatch):
    seen = []
    sums = offset_fit._sums

    def spy(cells, features, fold):
        seen.append((cells.groups, fold))
        return sums(cells, features, fold)

    monkeypatch.setattr(offset_fit, "_sums", spy)
    dealt = np.random.default_rng(1).permutation(world.groups[TRAINING])
    fit_offset_forms(replace(training(world), groups=dealt), penalty=10.0, factors=0, count_penalty=10.0)
    ((groups, fold),) = seen
    assert len(np.unique(fold)) == 4
    assert all(len(set(fold[groups == group])) == 1 for group in np.unique(groups))
    many = training(world).folds(), training(world, grouped=False).folds()
    assert [len(np.unique(f)) for f in many] == [4, 5]
    uneven = replace(training(world), groups=np.repeat(list("abcdefg"), [200, 50, 30, 15, 10, 10, 5])).folds()
    assert sorted(np.bincount(uneven)) == [15, 25, 30, 50, 200] or np.bincount(uneven).max() == 200


def test_inner_validation_finds_the_planted_components(monkeypatch):
    """Four strong components: one is too few, and forty in 320 cells fit noise."""
    world = planted(400, 120, components=4, size=1.0, depth=1200)
    monkeypatch.setattr(offset_fit, "COMPONENTS", (1, 4, 60))
    monkeypatch.setattr(offset_fit, "PENALTIES", (1.0,))
    found = fit_offset_forms(training(world), factors=0, count_penalty=10.0)
    assert found.chosen[0] == 4
    assert found.axes.shape == (120, 4)
    assert found.ridge.shape == (120, 6)


def test_inner_validation_shrinks_noise_and_leaves_signal(monkeypatch):
    chosen = []
    monkeypatch.setattr(offset_fit, "COMPONENTS", (8,))
    monkeypatch.setattr(offset_fit, "PENALTIES", (0.3, 30.0))
    for components, size in ((8, 1.2), (1, 0.0)):
        world = planted(400, 100, components=components, size=size, depth=1200)
        chosen.append(fit_offset_forms(training(world), factors=0, count_penalty=10.0).chosen[2])
    assert chosen == [0.3, 30.0]


def test_given_components_and_penalty_are_kept(world, forms):
    assert tuple(forms.chosen) == (3, 2, 5, 10)
    assert forms.axes.shape[1] == 3
    some = fit_offset_forms(training(world), components=0, factors=0, count_penalty=10.0)
    assert some.chosen[0] == 0
    assert some.chosen[2] in offset_fit.PENALTIES
    assert np.isfinite(some.predict(pack(world, 0.3))[VALUE]).all()


def test_blocks_and_threads_do_not_matter(world, forms, monkeypatch):
    monkeypatch.setattr("sckit.model.regression.BLOCK_CELLS", 37)
    monkeypatch.setattr("sckit.model.offset_fit.BLOCK_CELLS", 37)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        again = fit_offset_forms(training(world), **FIXED)
        batch = pack(world, 0.3)
        predicted = again.predict(batch)
        row = fit_visible(training(world), again, 0.3, 4096).predict(batch)
    finally:
        numba.set_num_threads(threads)
    for name, values in forms.predict(batch).items():
        np.testing.assert_allclose(predicted[name], values, atol=1e-8, err_msg=name)
    whole = fit_visible(training(world), forms, 0.3, 4096).predict(batch)
    np.testing.assert_allclose(row, whole, atol=1e-8)


def test_the_count_regression_finds_planted_rates():
    """One component and many counts: log rates come back up to the noise of 320 cells."""
    world = planted(400, 60, components=1, size=0.6, depth=3000)
    found = fit_offset_forms(training(world), components=2, penalty=1.0, factors=2, count_penalty=1.0)
    batch = pack(world, 0.15, known_depth=True)
    rates = world.rates[batch.cells[batch.target_cells], batch.genes[batch.targets]]
    expected, variance = value_moments(rates, np.exp(batch.log_total)[batch.target_cells])
    mean = found.gene_mean[batch.genes[batch.targets]]
    error = ((found.predict(batch)[COUNT] - expected) ** 2).sum()
    assert error < 0.2 * ((mean - expected) ** 2).sum()
    assert error < 0.5 * variance.sum()
    assert np.median(np.abs(found.excess - 1)) < 0.1


@pytest.mark.parametrize("kind", ["one gene", "three cells", "all counts one", "a gene of one group"])
def test_small_and_odd_data(kind):
    world = planted(40, 30, depth=60)
    counts, groups = world.view.counts.copy(), world.groups
    cells = np.arange(32)
    if kind == "one gene":
        counts = counts[:, :1] + 1
    elif kind == "three cells":
        cells = cells[:3]
    elif kind == "all counts one":
        counts = np.minimum(counts, 1)
    else:
        counts[groups != "g0", 4] = 0
        counts[groups == "g0", 4] += 1
        counts[:32, 7] = 0  # never detected in training
        counts[35, 7] = 3
    odd = World(Counts(counts), world.rates, groups)
    found = fit_offset_forms(training(odd, cells))
    row = fit_visible(training(odd, cells), found, 0.5, 4096)
    for rate in (0.5, 1.0):
        batch = pack(odd, rate, np.arange(32, 40), known_depth=True)
        rows = found.predict(batch) | ({"visible": row.predict(batch)} if rate < 1 else {})
        one = np.log1p(1e4 / odd.view.totals(batch.cells))[batch.target_cells]
        for name, predicted in rows.items():
            assert np.isfinite(predicted).all(), name
            assert (np.abs(predicted - one) < 6).all(), name
        if kind == "all counts one":
            np.testing.assert_allclose(rows[TOTAL], one, atol=0.02)
            np.testing.assert_allclose(rows[COUNT], one, atol=0.02)
