import numpy as np
import pytest

from sckit.data.batch import Hiding, Packer
from sckit.data.labels import Labels
from sckit.data.split import run_vocabulary
from sckit.metrics.values import Scores
from sckit.model.closed_forms import PREDICTORS, fit_closed_forms, fit_label_depth
from sckit.model.regression import value_blocks


@pytest.fixture(scope="module")
def fitted(simulated):
    cells = np.arange(280)
    vocabulary = run_vocabulary(simulated, cells, 5)
    forms = fit_closed_forms(simulated, vocabulary, cells, components=2, factors=3, penalty=2.0)
    return simulated, vocabulary, cells, forms


def dense(store, vocabulary, cells):
    return np.vstack([block.values.toarray() for block in value_blocks(store, vocabulary, cells)])


def test_every_regression_is_the_textbook_ridge(fitted):
    store, vocabulary, cells, forms = fitted
    values = dense(store, vocabulary, cells)
    detected = values > 0
    log_detected, log_total = np.log(detected.sum(1)), np.log(store.totals(cells))
    depth = (log_detected - log_detected.mean()) / log_detected.std()
    total = (log_total - log_total.mean()) / log_total.std()
    centred = detected - detected.mean(0)
    components = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    components /= components.std(0)
    x = np.column_stack([np.ones(len(cells)), depth, components, total])
    batch = Packer(store, vocabulary, Hiding(1.0), known_depth=True)(cells)
    predicted = forms.predict(batch)
    for gene in (0, 17, 60):
        seen = detected[:, gene]
        own = batch.genes[batch.targets] == gene
        for name, k in (("gene mean + depth", 2), ("detection ridge", 4), ("detection + total ridge", 5)):
            penalty = np.diag([0.0] + [2.0] * (k - 1))
            a, y = x[seen, :k], values[seen, gene]
            expected = a @ np.linalg.solve(a.T @ a + penalty, a.T @ y)
            np.testing.assert_allclose(predicted[name][own], expected, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(predicted["gene mean"][own], values[seen, gene].mean())


def test_rows_are_nested_when_nothing_is_visible(fitted):
    store, vocabulary, _, forms = fitted
    predicted = forms.predict(Packer(store, vocabulary, Hiding(1.0))(np.arange(280, 320)))
    np.testing.assert_array_equal(predicted["detection + total ridge"], predicted["detection ridge"])
    np.testing.assert_array_equal(predicted["value ridge"], predicted["detection ridge"])


def test_value_ridge_is_the_posterior_mean(fitted):
    store, vocabulary, _, forms = fitted
    batch = Packer(store, vocabulary, Hiding(0.3))(np.array([300]))
    predicted = forms.predict(batch)
    x, t = forms.features(batch)
    seen = ~batch.hidden
    genes = batch.genes[seen]
    residual = batch.values[seen] - np.append(x[0], t[0]) @ forms.total[genes].T
    loadings = forms.loadings
    between = loadings @ loadings.T
    # The same posterior written as a Gaussian conditional of the hidden on the visible residuals.
    covariance = between[np.ix_(genes, genes)] + np.diag(forms.noise[genes])
    hidden = batch.genes[batch.targets]
    expected = between[np.ix_(hidden, genes)] @ np.linalg.solve(covariance, residual)
    np.testing.assert_allclose(predicted["value ridge"] - predicted["detection + total ridge"], expected, atol=1e-8)


def test_the_ladder_rises_on_cells_it_has_not_seen(fitted):
    store, vocabulary, _, forms = fitted
    scores = Scores(len(forms.gene_mean))
    packer = Packer(store, vocabulary, Hiding(0.15), scored=True)
    batch = packer(np.arange(280, 360))
    scores.add(batch, forms.predict(batch))
    r2 = {name: scores.r2(name) for name in PREDICTORS}
    assert r2["gene mean"] == 0
    assert r2["gene mean"] < r2["gene mean + depth"] < r2["detection ridge"] < r2["detection + total ridge"]


def test_label_and_depth_knows_labels_and_survives_unseen_ones(fitted):
    store, vocabulary, cells, forms = fitted
    labels = store.obs["cell_type"].to_numpy().astype(str)
    batch = Packer(store, vocabulary, Hiding(1.0))(np.arange(280, 360))
    right = fit_label_depth(store, vocabulary, cells, Labels.of(labels), forms, penalty=1.0)(batch)
    shuffled = np.random.default_rng(0).permutation(labels)
    wrong = fit_label_depth(store, vocabulary, cells, Labels.of(shuffled), forms, penalty=1.0)(batch)
    assert ((right - batch.truth) ** 2).mean() < 0.9 * ((wrong - batch.truth) ** 2).mean()
    unseen = np.where(np.arange(len(labels)) >= 280, "new type", labels)
    values = fit_label_depth(store, vocabulary, cells, Labels.of(unseen), forms, penalty=1.0)(batch)
    assert np.isfinite(values).all()


def test_order_of_cells_and_blocks_does_not_matter(fitted, monkeypatch):
    store, vocabulary, cells, forms = fitted
    monkeypatch.setattr("sckit.model.regression.BLOCK_CELLS", 37)
    again = fit_closed_forms(store, vocabulary, cells[::-1].copy(), components=2, factors=3, penalty=2.0)
    np.testing.assert_allclose(again.ridge, forms.ridge, atol=1e-6)
    np.testing.assert_allclose(np.abs(again.loadings), np.abs(forms.loadings), atol=1e-5)
