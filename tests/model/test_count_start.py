"""The law of counts that a model with a count loss starts from, and its loss, against numpy and scipy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from sckit.config import ModelConfig
from sckit.data.batch import Hiding, Packer
from sckit.kernels.count_law import log_rate_of_value, value_moments
from sckit.model.count_start import CountLaw, CountStart
from sckit.model.offset_fit import fit_offset_forms
from sckit.model.offset_forms import LOG_RATES
from sckit.model.regression import TrainingCells
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model

from ..planted_counts import planted

FIXED = {"components": 3, "penalty": 5.0, "factors": 2, "count_penalty": 10.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world():
    world = planted(500, 120, dispersion=0.3)
    training = TrainingCells(world.view, world.vocabulary, np.arange(300))
    return world, fit_offset_forms(training, **FIXED)


@pytest.fixture(scope="module")
def start(world):
    world, forms = world
    batch = Packer(world.view, world.vocabulary, Hiding("uniform"))(np.arange(300, 400))
    cells = forms.of_cells(batch)
    return CountStart.fit(forms, [(batch, cells, forms.value_ridge(batch, cells))])


HELD_OUT = np.arange(400, 500)


def pack(world, rate, cells=HELD_OUT, **options):
    return Packer(world.view, world.vocabulary, Hiding(rate), **options)(cells)


def test_log_rates_by_table_are_those_by_search(rng):
    """Values of laws of all rates and totals, turned back."""
    levels = np.tile(np.linspace(*LOG_RATES, 257), (6, 1))  # no calibration
    law = CountLaw(CountStart(levels, np.full(6, 1e-3), np.zeros(5, np.int64)))
    totals = np.exp(rng.uniform(np.log(60), np.log(3e5), 4000))
    log_rate = rng.uniform(-6, 7, 4000)
    above = value_moments(np.exp(log_rate), totals)[0] - np.log1p(1e4 / totals)
    tensors = (torch.from_numpy(x).float() for x in (above, np.log(totals)))
    found = law.start(*tensors, torch.zeros(4000, dtype=torch.int64)).numpy()
    seen = above > 2e-4
    np.testing.assert_allclose(found[seen], log_rate[seen], atol=0.03)
    searched = log_rate_of_value(above, np.arange(4001), totals)
    np.testing.assert_allclose(found[seen], searched[seen], atol=0.03)


def test_the_loss_is_the_likelihood_of_a_negative_binomial_without_zeros(rng):
    start = CountStart(np.zeros((6, 257)), np.array([0.1, 0.3, 0.5, 1.0, 2.0, 1e-3]), np.arange(6))
    rates, genes = np.exp(rng.uniform(-4, 4, 300)), rng.integers(0, 6, 300)
    counts = 1 + rng.poisson(rates)
    size = 1 / start.dispersion[genes]
    expected = nbinom.logpmf(counts, size, size / (size + rates)) - nbinom.logsf(0, size, size / (size + rates))
    log_rate = torch.from_numpy(np.log(rates)).float().requires_grad_()
    losses = CountLaw(start).losses(log_rate, torch.from_numpy(counts).float(), torch.from_numpy(genes))
    np.testing.assert_allclose(losses.detach().numpy(), -expected, rtol=1e-3, atol=2e-4)
    losses.sum().backward()
    assert torch.isfinite(log_rate.grad).all()
    assert CountLaw(start).losses(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_extreme_log_rates_have_finite_loss_and_gradient():
    start = CountStart(np.zeros((6, 257)), np.full(6, 1e-3), np.zeros(1, np.int64))
    log_rate = torch.tensor([-50.0, -12.0, 0.0, 9.0, 50.0], requires_grad=True)
    counts, genes = torch.tensor([1.0, 40.0, 1.0, 1.0, 4000.0]), torch.zeros(5, dtype=torch.int64)
    losses = CountLaw(start).losses(log_rate, counts, genes)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(log_rate.grad).all()


@pytest.mark.parametrize("rate", [0.15, 1.0])
@pytest.mark.parametrize("known", [True, False])
def test_before_the_first_step_the_model_is_the_calibrated_baseline(world, start, rate, known):
    world, forms = world
    batch = pack(world, rate, known_depth=known)
    cells = forms.of_cells(batch)
    expected = start.values(batch, cells, forms.value_ridge(batch, cells))
    model = Model(ModelConfig(start="offset", loss="count"), forms, start)
    with torch.inference_mode():
        got = model.values(Tokens.of(batch, CPU))
    np.testing.assert_allclose(got, expected, atol=2e-3)
    again = CountStart.of_weights(model.state_dict(), len(forms.gene_mean))
    np.testing.assert_allclose(again.values(batch, cells, forms.value_ridge(batch, cells)), expected, atol=1e-4)


@pytest.mark.parametrize("dispersion", [0.0, 0.6])
def test_the_law_finds_the_dispersion_and_keeps_the_mean_value(dispersion):
    world = planted(900, 120, dispersion=dispersion, components=1, size=0.3)
    forms = fit_offset_forms(TrainingCells(world.view, world.vocabulary, np.arange(500)), **FIXED)
    parts = [pack(world, 0.5, cells, known_depth=True) for cells in (np.arange(500, 700), np.arange(700, 900))]
    cells = [forms.of_cells(batch) for batch in parts]
    values = [forms.value_ridge(batch, of_cells) for batch, of_cells in zip(parts, cells, strict=True)]
    start = CountStart.fit(forms, [(parts[0], cells[0], values[0])])
    entries = np.bincount(start.stratum[parts[0].genes[parts[0].targets]], minlength=6)
    mean = np.average(start.dispersion, weights=entries)
    assert mean < 0.1 if dispersion == 0 else 0.3 < mean < 1.0
    bias = (start.values(parts[1], cells[1], values[1]) - parts[1].truth).mean()
    assert abs(bias) < 0.04


def test_the_loss_uses_the_counts_and_no_prediction_does(world, start):
    world, forms = world
    model = Model(ModelConfig(start="offset", loss="count"), forms, start)
    batch = pack(world, 0.5)
    other = replace(batch, truth=np.full_like(batch.truth, 9.0), totals=batch.totals * 3)
    with torch.inference_mode():
        np.testing.assert_array_equal(model.values(Tokens.of(batch, CPU)), model.values(Tokens.of(other, CPU)))
        assert model.loss(Tokens.of(batch, CPU)) != model.loss(Tokens.of(other, CPU))
    none = {"targets": batch.targets[:0], "truth": batch.truth[:0]}
    loss = model.loss(Tokens.of(replace(batch, **none), CPU))
    loss.backward()  # a batch in which nothing is hidden takes part in training, and changes nothing
    assert loss == 0


def test_weights_of_another_law_are_refused(world, start):
    weights = Model(ModelConfig(start="offset", loss="count"), world[1], start).state_dict()
    with pytest.raises(ValueError, match="law of counts"):
        CountStart.of_weights(weights, 7)
    with pytest.raises(ValueError, match="law of counts"):
        CountStart.of_weights(weights | {"counts.stratum": weights["counts.stratum"] + 9}, len(world[1].gene_mean))
