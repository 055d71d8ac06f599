"""The noise floor on counts whose rates are known: what it says of a predictor is what simulation gives."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from sckit.config import EvalConfig, PretrainConfig, SimulateConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.simulate import simulate
from sckit.evaluation.evaluate import evaluate
from sckit.evaluation.left import Left
from sckit.evaluation.rows import Floors, best_baselines, errors_of_cells
from sckit.kernels.count_law import count_moments, draw_counts, rate_of_mean, value_moments
from sckit.metrics.laws import Laws
from sckit.metrics.values import Scores
from sckit.model.calibration import STRATA, by_decile, calibrate, fit_dispersion, stratum_of
from sckit.model.offset_fit import fit_offset_forms
from sckit.model.regression import TrainingCells
from sckit.training.pretrain import pretrain

from ..planted_counts import planted

CELLS, GENES = 900, 400
TRAIN, VALIDATION, HELD_OUT = np.arange(300), np.arange(300, 600), np.arange(600, 900)


class Known:
    """A world, the baselines fitted on its training cells, and rates of its entries by any change of the true ones."""

    def __init__(self, dispersion):
        self.world = planted(CELLS, GENES, components=3, size=0.5, depth=2500, dispersion=dispersion, seed=4)
        cells = TrainingCells(self.world.view, self.world.vocabulary, TRAIN)
        self.offsets = fit_offset_forms(cells, components=2, penalty=10.0, factors=0, count_penalty=30.0)
        self.dispersion = dispersion

    def batch(self, cells):
        return Packer(self.world.view, self.world.vocabulary, Hiding(1.0), known_depth=True)(cells)

    def rates(self, batch):
        return self.world.rates[batch.cells[batch.target_cells], batch.genes[batch.targets]]

    def totals(self, batch):
        return self.world.view.totals(batch.cells).astype(np.float64)

    def predicted(self, batch, noise):
        """Predictions of the rows that scores need and of "row", whose log rates are off by noise * normal numbers."""
        genes, totals = batch.genes[batch.targets], self.totals(batch)[batch.target_cells]
        phi = self.dispersion
        off = np.random.default_rng(int(batch.cells[0])).normal(size=len(genes))
        rates = self.rates(batch) * np.exp(noise * off)
        mean = self.offsets.gene_mean[genes]
        return {"gene mean": mean, "gene mean + depth": mean, "row": value_moments(rates, totals, phi)[0]}

    def scored(self, noise, *, negative_binomial=False):
        """Scores of "row", with its law calibrated on validation cells, and the laws of the held-out cells."""
        floors, scores = Floors(self.offsets), Scores(GENES, bootstraps=20)
        batch = self.batch(VALIDATION)
        predicted = self.predicted(batch, noise)
        floors.add(batch, predicted | {"count regression": predicted["row"]}, self.totals(batch))
        floors.fit(negative_binomial=negative_binomial)
        batch = self.batch(HELD_OUT)
        predicted = self.predicted(batch, noise)
        laws = floors.laws(batch, predicted, self.totals(batch))
        scores.add(batch, predicted, laws)
        return scores, laws, batch

    def row(self, noise, **options):
        return self.scored(noise, **options)[0].row("row", rate=1.0, context=None, known_depth=True)

    def explainable(self, noise):
        """The true share: what the row explains of what the true rates explain, in expectation over the counts."""
        batch = self.batch(HELD_OUT)
        predicted, totals = self.predicted(batch, noise), self.totals(batch)[batch.target_cells]
        mean, variance = value_moments(self.rates(batch), totals, self.dispersion)
        of_mean, of_row = (
            ((predicted[name] - mean) ** 2 + variance).sum() for name in ("gene mean", "row")
        )  # fmt: skip
        return (of_mean - of_row) / (of_mean - variance.sum())


@pytest.fixture(scope="module")
def poisson():
    return Known(0.0)


@pytest.fixture(scope="module")
def overdispersed():
    return Known(0.5)


def test_the_true_rates_explain_all_that_can_be_explained(poisson):
    row = poisson.row(0.0)
    assert row["explainable_share"] == pytest.approx(1, abs=0.01)
    assert row["floor_r2_gene_mean"] == pytest.approx(row["floor_simulated"], abs=0.02)


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_the_share_of_a_worse_predictor_is_the_true_one(poisson, share):
    """Noise in the log rates until the row truly explains so much of what can be explained."""
    noise = brentq(lambda s: poisson.explainable(s) - share, 0.01, 1.5, xtol=1e-3)
    row = poisson.row(noise)
    assert poisson.explainable(noise) == pytest.approx(share, abs=0.01)
    assert row["explainable_share"] == pytest.approx(share, abs=0.02)


def test_the_floor_does_not_depend_on_the_counts_that_are_scored(poisson):
    scores, laws, batch = poisson.scored(0.0)
    predicted = poisson.predicted(batch, 0.0)
    rng = np.random.default_rng(0)
    drawn = draw_counts(laws.rates["row"], rng)
    values = np.log1p(1e4 * drawn / laws.totals).astype(np.float32)
    other = Scores(GENES, bootstraps=20)
    other.add(replace(batch, truth=values), predicted, laws)
    one, two = (s.row("row", rate=1.0, context=None, known_depth=True) for s in (scores, other))
    assert one["floor_simulated"] == pytest.approx(two["floor_simulated"], abs=1e-12)
    assert two["r2_gene_mean"] == pytest.approx(one["floor_r2_gene_mean"], abs=0.01)
    swapped = Scores(GENES, bootstraps=20)
    swapped.add(replace(batch, truth=rng.permutation(batch.truth)), predicted, laws)
    three = swapped.row("row", rate=1.0, context=None, known_depth=True)
    assert three["floor_simulated"] == pytest.approx(one["floor_simulated"], abs=1e-12)
    assert three["r2_gene_mean"] < 0


def test_negative_binomial_noise_comes_nearer_to_the_truth_than_poisson(overdispersed):
    """The mean of the true law is predicted, so that what it scores is what can be attained."""
    narrow, wide = (overdispersed.row(0.0, negative_binomial=nb) for nb in (False, True))
    truth = narrow["r2_gene_mean"]
    off = [abs(row["floor_r2_gene_mean"] - truth) for row in (narrow, wide)]
    assert off[1] < 0.5 * off[0]
    assert off[1] < 0.03
    assert narrow["floor_r2_gene_mean"] > truth + 0.03


def test_negative_binomial_noise_of_poisson_counts_is_poisson(poisson):
    narrow, wide = (poisson.row(0.0, negative_binomial=nb) for nb in (False, True))
    assert wide["floor_r2_gene_mean"] == pytest.approx(narrow["floor_r2_gene_mean"], abs=0.01)


# ---- calibration


@pytest.mark.parametrize("distort", [lambda x: 0.5 * x - 1, lambda x: x + 0.7, lambda x: np.sinh(0.4 * x)])
def test_calibration_recovers_a_planted_distortion(distort, rng):
    log_rate = rng.normal(0, 1.2, 60_000)
    counts = draw_counts(np.exp(log_rate), rng)
    found = calibrate(distort(log_rate), counts)
    tested = np.linspace(-1, 2.5, 30)
    np.testing.assert_allclose(np.log(found(distort(tested))), tested, atol=0.25)
    assert (np.diff(found(distort(np.linspace(-8, 8, 100)))) >= 0).all()


def test_calibration_of_constant_predictions_is_the_mean_count(rng):
    counts = draw_counts(np.full(5000, 1.7), rng)
    found = calibrate(np.full(5000, -3.0), counts)
    assert count_moments(found(np.array([-3.0])))[0][0] == pytest.approx(counts.mean(), rel=1e-6)
    assert np.isfinite(calibrate(np.array([0.3]), np.array([1.0]))(np.array([-50.0, 0.3, 50.0]))).all()


def test_tenths_compare_expected_with_observed_counts(rng):
    rates = np.exp(rng.normal(0, 1.5, 20_000))
    counts = draw_counts(rates, rng)
    tenths = by_decile(rates, counts)
    expected = count_moments(np.sort(rates))[0].reshape(10, -1).mean(1)
    np.testing.assert_allclose([t["expected"] for t in tenths], expected)
    np.testing.assert_allclose([t["observed"] for t in tenths], expected, rtol=0.05)
    off = by_decile(rates, 2 * counts)
    assert all(t["observed"] > 1.8 * t["expected"] for t in off)
    assert len(by_decile(rates[:3], counts[:3])) == 10


def test_dispersion_is_found_in_the_strata_that_have_it(rng):
    rates, mean_counts = np.exp(rng.normal(0.5, 1, 60_000)), rng.choice([1.05, 3.0, 9.0], 60_000)
    planted_phi = np.select([mean_counts == 3.0, mean_counts == 9.0], [0.4, 1.5], 0.0)
    counts = draw_counts(rates, rng, planted_phi)
    means = count_moments(rates, planted_phi)[0]
    noise = fit_dispersion(rate_of_mean(np.maximum(means, 1 + 1e-9)), counts, mean_counts)
    found = noise.dispersion[stratum_of(np.array([1.05, 3.0, 9.0]))]
    np.testing.assert_allclose(found, [0, 0.4, 1.5], rtol=0.15, atol=0.05)
    assert not noise.dispersion[-1]  # a stratum without entries
    of_law, phi = noise.law(rate_of_mean(np.maximum(means, 1 + 1e-9)), mean_counts)
    np.testing.assert_allclose(count_moments(of_law, phi)[0], np.maximum(means, 1 + 1e-9), rtol=1e-6)


def test_strata_hold_their_lower_ends():
    edges = np.array(STRATA[:-1])
    np.testing.assert_array_equal(stratum_of(edges), np.arange(len(edges)))
    np.testing.assert_array_equal(stratum_of(np.array([0.0, 1.29, 1e6])), [0, 1, len(edges) - 1])


# ---- what is left


def gains(known):
    batch = known.batch(HELD_OUT)
    rates, totals = known.rates(batch), known.totals(batch)[batch.target_cells]
    left = Left(0, 200).watch("row", known.offsets)
    if known.dispersion:
        rates = rate_of_mean(count_moments(rates, known.dispersion)[0])
    left.add(batch, {}, Laws({"row": rates}, {}, totals))
    return left.table(None)


def test_other_halves_explain_what_is_left_only_where_counts_vary_more_than_poisson(poisson, overdispersed):
    plain, more = gains(poisson).iloc[-1], gains(overdispersed).iloc[-1]
    assert plain["own_half_gain"] < 0.02
    assert abs(plain["own_half_gain"] - plain["own_half_gain_simulated"]) < 0.01
    assert plain["variance_over_poisson"] == pytest.approx(1, abs=0.03)
    assert more["own_half_gain"] > 0.05
    assert more["own_half_gain_low"] > 0.05
    assert more["own_half_gain_simulated"] < 0.02
    assert more["variance_over_poisson"] > 1.1


def test_the_table_of_what_is_left_adds_up(poisson):
    table = gains(poisson)
    strata, few, every = table.iloc[:-2], table.iloc[-2], table.iloc[-1]
    assert strata["entries"].sum() == pytest.approx(1)
    assert few["entries"] == pytest.approx(strata["entries"][strata["mean_count_high"] <= 2].sum())
    assert every["entries"] == 1
    known = strata.dropna(subset=["own_half_gain_low"])
    assert (known["own_half_gain_low"] <= known["own_half_gain"] + 1e-9).all()
    assert (known["own_half_gain"] <= known["own_half_gain_high"] + 1e-9).all()


# ---- the best baseline, and all of it through a run


def test_the_best_baseline_is_that_of_the_validation_cells(poisson):
    """Rows are compared with the best one on validation cells, also where it is the worst on held-out ones."""
    floors, batch = Floors(poisson.offsets), poisson.batch(VALIDATION)
    mean, truth = poisson.offsets.gene_mean[batch.genes[batch.targets]], batch.truth.astype(float)
    good, bad = truth + 0.01, truth + 3.0
    rows = {"gene mean": mean, "gene mean + depth": mean, "label + depth": truth, "model/detected": truth}
    rows |= {"detection ridge": good, "value ridge": bad}
    floors.add(batch, rows, poisson.totals(batch))
    best = best_baselines(floors.errors)
    assert best == {"detected": "detection ridge", "visible": "gene mean"}
    held_out = poisson.batch(HELD_OUT)
    mean, truth = poisson.offsets.gene_mean[held_out.genes[held_out.targets]], held_out.truth.astype(float)
    scores = Scores(GENES, bootstraps=20)
    rows = {"gene mean": mean, "gene mean + depth": mean, "detection ridge": truth + 3.0, "value ridge": truth + 0.01}
    scores.add(held_out, rows)
    row = scores.full_row("value ridge", best["detected"], None, rate=1.0, context=None, known_depth=True)
    assert row["minus_best_predictor"] == "detection ridge"
    assert row["minus_best_r2_gene_mean"] > 1


def test_the_offset_ridge_stays_the_best_unless_another_row_is_clearly_better(rng):
    ridge = rng.uniform(1, 2, 100)
    noise = rng.normal(0, 0.2, 100)
    errors = {
        "gene mean": ridge + 9,
        "value offset ridge": ridge,
        "count regression": ridge - 0.005 + noise - noise.mean(),
    }
    assert best_baselines(errors)["detected"] == "value offset ridge"
    clearly = errors | {"count regression": ridge - 0.06 + noise - noise.mean()}
    assert best_baselines(clearly)["detected"] == "count regression"


def test_a_validation_cell_of_several_folds_counts_once(rng):
    """Its errors are no independent evidence: the same cells four times say no more than once."""
    ridge, cells = rng.uniform(1, 2, 100), rng.permutation(100)
    noise = rng.normal(0, 0.2, 100)
    noise += 1.2 * noise.std() / 10 - noise.mean()  # 1.2 standard errors, 2.4 if each cell counted four times
    errors = {"gene mean": ridge + 9, "value offset ridge": ridge, "count regression": ridge - noise}
    fold = {name: of[cells] for name, of in errors.items()}
    once, four = errors_of_cells([cells], [fold]), errors_of_cells([cells] * 4, [fold] * 4)
    assert all(four[name] == pytest.approx(4 * of) for name, of in once.items())
    assert best_baselines(once)["detected"] == best_baselines(four)["detected"] == "value offset ridge"
    repeated = {name: np.tile(of, 4) for name, of in once.items()}
    assert best_baselines(repeated)["detected"] == "count regression"
    same = errors | {"detection offset ridge": ridge, "detection + total offset ridge": ridge}
    assert best_baselines(same)["detected"] == "detection offset ridge"


def test_visible_rows_are_compared_with_what_knows_no_hidden_gene():
    errors = {"gene mean": 3.0, "visible offset ridge": 2.0, "detection ridge": 1.0, "label + depth": 0.5}
    assert best_baselines(errors | {"model/visible": 0.1}) == {
        "detected": "detection ridge",
        "visible": "visible offset ridge",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("floor")
    settings = SimulateConfig(cells=500, genes=300, depth=900, types=3, programmes=4, libraries=2)
    store = simulate(settings, folder / "known.sckit")
    config = PretrainConfig(steps=1, batch_tokens=4000, components=4, factors=2, correction_steps=30)
    return pretrain(store, config, runs=folder, name="untrained").run


def test_an_untrained_model_goes_through_the_whole_evaluation(run):
    settings = EvalConfig(masks=(0.3,), known_depth=True, bootstraps=30)
    found = evaluate(run, settings)
    rows = found.table.set_index("predictor")
    rows = rows.drop(index="gene mean")
    assert rows["floor_r2_gene_mean"].between(0, 1).all()
    assert (rows["floor_low"] <= rows["floor_r2_gene_mean"]).all()
    assert (rows["floor_r2_gene_mean"] <= rows["floor_high"]).all()
    best = rows.loc[found.best_baseline]
    assert 0.6 < best["explainable_share"] <= 1.02
    assert best["r2_gene_mean"] > 0.9 * rows["r2_gene_mean"].max()
    assert len(found.left) == len(STRATA) + 1
    assert all(abs(t["expected"] / t["observed"] - 1) < 0.25 for t in found.calibration)
    assert found.total_from_detection["r2"] > 0.5
    assert (run / "offset_forms.safetensors").is_file()


@pytest.mark.slow
def test_negative_binomial_noise_holds_what_the_best_row_does_not_know(run):
    """These counts are Poisson, but the baselines do not know all that moves their rates."""
    one, two = (evaluate(run, EvalConfig(known_depth=True, bootstraps=10, noise=noise)) for noise in ("poisson", "nb"))
    a, b = (x.table.set_index("predictor").loc[one.best_baseline, "floor_r2_gene_mean"] for x in (one, two))
    assert b < a
    assert b > one.table.set_index("predictor").loc[one.best_baseline, "r2_gene_mean"] - 0.05
