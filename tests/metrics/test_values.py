import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import t

from sckit.data.batch import Hiding, Packer
from sckit.metrics.laws import truncated_poisson_deviance
from sckit.metrics.values import Scores, resampling


@pytest.fixture
def scored(simulated, rng):
    """Two batches of 60 cells, three made-up predictors, and the same entries as plain arrays."""
    packer = Packer(simulated, np.arange(simulated.n_genes, dtype=np.int32), Hiding(1.0))
    scores, flat = Scores(simulated.n_genes, bootstraps=400), []
    for cells in (np.arange(40), np.arange(40, 60)):
        batch = packer(cells)
        noise = rng.normal(size=(2, len(batch.truth)))
        mean = 4 + 0.1 * np.sin(batch.genes[batch.targets])
        predicted = {
            "gene mean": mean,
            "gene mean + depth": mean + 0.05 * noise[0],
            "good": batch.truth + 0.2 * noise[0],
            "bad": mean + 2 * noise[1],
        }
        scores.add(batch, predicted)
        flat.append((batch.cells[batch.target_cells], batch.genes[batch.targets], batch.truth, *predicted.values()))
    columns = ("cell", "gene", "y", "gene mean", "gene mean + depth", "good", "bad")
    return scores, dict(zip(columns, map(np.concatenate, zip(*flat, strict=True)), strict=True))


def test_columns_are_what_numpy_says(scored):
    scores, flat = scored
    y, p, mean, depth = (flat[k].astype(float) for k in ("y", "good", "gene mean", "gene mean + depth"))
    row = scores.row("good", rate=1.0, context=None, known_depth=False)
    assert row["pooled_r"] == pytest.approx(np.corrcoef(y, p)[0, 1])
    assert row["centred_r"] == pytest.approx(np.corrcoef(y - mean, p - mean)[0, 1])
    assert row["r2_gene_mean"] == pytest.approx(1 - ((y - p) ** 2).sum() / ((y - mean) ** 2).sum())
    assert row["r2_depth"] == pytest.approx(1 - ((y - p) ** 2).sum() / ((y - depth) ** 2).sum())
    cells = [np.corrcoef(y[flat["cell"] == c], p[flat["cell"] == c])[0, 1] for c in np.unique(flat["cell"])]
    assert row["per_cell_r"] == pytest.approx(np.mean(cells))
    genes, counts = np.unique(flat["gene"], return_counts=True)
    each = [np.corrcoef(y[flat["gene"] == g], p[flat["gene"] == g])[0, 1] for g in genes[counts >= 20]]
    assert row["per_gene_r"] == pytest.approx(np.median(each))
    beyond = [
        np.corrcoef((y - depth)[flat["gene"] == g], (p - depth)[flat["gene"] == g])[0, 1] for g in genes[counts >= 20]
    ]
    assert row["per_gene_r_beyond_depth"] == pytest.approx(np.median(beyond))
    assert row["genes_worse_than_mean"] == 0
    assert scores.row("bad", rate=1.0, context=None, known_depth=False)["genes_worse_than_mean"] > 0.9


def test_gene_mean_has_no_correlation_of_its_own(scored):
    row = scored[0].row("gene mean", rate=1.0, context=None, known_depth=False)
    assert row["centred_r"] is None
    assert row["per_gene_r"] is None
    assert row["r2_gene_mean"] == 0


def test_intervals_cover_the_score_and_pair_differences(scored):
    scores, _ = scored
    low, high = scores.intervals("good", None)["r2_gene_mean"]
    assert low < scores.r2("good") < high
    same = scores.difference("good", "good", None)
    assert same == {"r2_gene_mean": 0, "ci": [0, 0]}
    gap = scores.difference("good", "bad", None)
    assert gap["ci"][0] > 0
    width = gap["ci"][1] - gap["ci"][0]
    assert width < 2 * (high - low) + (lambda i: i[1] - i[0])(scores.intervals("bad", None)["r2_gene_mean"])


def test_interval_of_a_null_difference_holds_zero(simulated):
    packer = Packer(simulated, np.arange(simulated.n_genes, dtype=np.int32), Hiding(1.0))
    batch = packer(np.arange(60))
    covered = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=(2, len(batch.truth)))
        mean = np.full(len(batch.truth), 4.0)
        scores = Scores(simulated.n_genes, bootstraps=300)
        predicted = {"gene mean": mean, "gene mean + depth": mean, "a": mean + noise[0], "b": mean + noise[1]}
        scores.add(batch, predicted)
        low, high = scores.difference("a", "b", None)["ci"]
        covered += low <= 0 <= high
    assert covered >= 33  # 95 % of 40 is 38; below 33 has a probability under 1 in 1,000


def test_many_groups_are_resampled_whole_and_few_are_not(scored):
    scores, _ = scored
    few, many = np.arange(60) % 2, np.arange(60) % 10
    assert resampling(None, 60).sentence("cells", "cells").endswith("over 60 cells")
    assert "cells within each of 2 groups" in resampling(few, 60).sentence("cells", "groups")
    assert resampling(many, 60).sentence("cells", "groups").endswith("over 10 groups")
    assert scores.intervals("good", few) != scores.intervals("good", many)


def test_without_groups_only_a_factor_near_one_sets_intervals_apart_from_percentiles(scored):
    scores, flat = scored
    rule = resampling(None, 60)
    drawn = rule.weights(np.random.default_rng(0), 400)
    squares = {name: (flat["y"] - flat[name]) ** 2 for name in ("good", "gene mean")}
    error, of_mean = (drawn @ np.bincount(flat["cell"], x) for x in squares.values())
    plain, found = np.quantile(1 - error / of_mean, [0.025, 0.975]), scores.intervals("good", None)["r2_gene_mean"]
    factor = np.sqrt(60 / 59) * t.ppf(0.975, 59) / 1.959964
    assert np.array(found) - scores.r2("good") == pytest.approx(factor * (plain - scores.r2("good")))


@pytest.mark.parametrize("mean", [1.2, 2.0, 7.5], ids=str)
def test_truncated_poisson_deviance_is_twice_the_log_likelihood_ratio(mean):
    def rate_of(target):
        return brentq(lambda r: r / -np.expm1(-r) - target, 1e-9, 200)

    def log_likelihood(count, target):
        rate = rate_of(target)
        return count * np.log(rate) - rate - np.log(-np.expm1(-rate))

    for count in (2.0, 5.0, 30.0):
        expected = 2 * (log_likelihood(count, count) - log_likelihood(count, mean))
        found = truncated_poisson_deviance(np.array([count]), np.array([rate_of(mean)]))[0]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert truncated_poisson_deviance(np.array([1.0]), np.array([1e-9]))[0] == pytest.approx(0, abs=1e-7)


def test_medians_over_genes_are_of_the_same_genes_in_every_row(simulated, rng):
    """A row that is constant in half of the genes has no correlation there, and takes them out of every row."""
    batch = Packer(simulated, np.arange(simulated.n_genes, dtype=np.int32), Hiding(1.0))(np.arange(120))
    gene = batch.genes[batch.targets]
    mean, noise = np.full(len(gene), 4.0), rng.normal(size=(2, len(gene)))
    half = gene < 75
    good = batch.truth + np.where(half, 0.1, 3.0) * noise[0]
    some = np.where(half, mean, batch.truth + 0.5 * noise[1])
    alone, both = Scores(simulated.n_genes), Scores(simulated.n_genes)
    rows = {"gene mean": mean, "gene mean + depth": mean + 0.1 * noise[1], "good": good}
    alone.add(batch, rows)
    both.add(batch, rows | {"some": some})

    def median(scores, name):
        return scores.row(name, rate=1.0, context=None, known_depth=False)["per_gene_r"]

    def by_hand(p, genes):
        found = [np.corrcoef(batch.truth[gene == g], p[gene == g])[0, 1] for g in genes if (gene == g).sum() >= 20]
        return np.median(found)

    assert median(alone, "good") == pytest.approx(by_hand(good, range(150)))
    assert median(both, "good") == pytest.approx(by_hand(good, range(75, 150)))
    assert median(both, "some") == pytest.approx(by_hand(some, range(75, 150)))
    assert median(both, "good") < median(alone, "good") - 0.1
    assert median(both, "gene mean") is None
