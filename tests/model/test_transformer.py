from dataclasses import replace

import numpy as np
import pytest
import torch

from sckit.config import PRESETS, ModelConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.split import run_vocabulary
from sckit.errors import ConfigError
from sckit.model.closed_forms import fit_closed_forms
from sckit.model.linear import Start
from sckit.model.offset_fit import fit_offset_forms
from sckit.model.regression import TrainingCells
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(simulated):
    cells = np.arange(280)
    vocabulary = run_vocabulary(simulated, cells, 5)
    return simulated, vocabulary, fit_closed_forms(simulated, vocabulary, cells, components=3, factors=2)


def predict(model, batch):
    with torch.inference_mode():
        return model(Tokens.of(batch, CPU)).numpy()


def disturbed(model):
    """Give every weight some noise, so that a test sees the whole network and not its zeros."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def starts(world):
    """What a model starts from: the value ridge of runs of before, and the value offset ridge."""
    store, vocabulary, forms = world
    choices = {"components": 3, "penalty": 5.0, "factors": 2, "count_penalty": 10.0}
    offsets = fit_offset_forms(TrainingCells(store, vocabulary, np.arange(280)), **choices)
    return {"ridge": (forms, "value ridge"), "offset": (offsets, "value offset ridge")}


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.95, 1.0], ids=lambda r: f"{r:.0%}-hidden")
@pytest.mark.parametrize("known_depth", [False, True], ids=["depth-unknown", "depth-known"])
@pytest.mark.parametrize("start", ["ridge", "offset"])
def test_before_the_first_step_the_model_is_its_linear_baseline(world, starts, start, rate, known_depth):
    store, vocabulary, _ = world
    forms, row = starts[start]
    batch = Packer(store, vocabulary, Hiding(rate), known_depth=known_depth)(np.arange(300, 340))
    got = predict(Model(ModelConfig(start=start), forms), batch)
    np.testing.assert_allclose(got, forms.predict(batch)[row], atol=1e-5)


def test_the_value_offset_ridge_is_the_detection_ridge_where_nothing_is_seen(world, starts):
    store, vocabulary, _ = world
    batch = Packer(store, vocabulary, Hiding(1.0))(np.arange(300, 340))
    for forms, row in starts.values():
        rows = forms.predict(batch)
        np.testing.assert_allclose(rows[row], rows[row.replace("value", "detection")], atol=1e-12)


def test_without_warm_start_the_model_begins_at_the_gene_mean(world):
    store, vocabulary, forms = world
    batch = Packer(store, vocabulary, Hiding(0.5))(np.arange(300, 320))
    got = predict(Model(ModelConfig(), Start.of(forms).without()), batch)
    np.testing.assert_allclose(got, forms.predict(batch)["gene mean"], atol=1e-5)


@pytest.mark.parametrize("context", ["detected", "visible"])
def test_a_cell_is_predicted_the_same_whatever_else_is_in_its_batch(world, context):
    store, vocabulary, forms = world
    model = disturbed(Model(ModelConfig(hidden_sum=True), forms))
    packer = Packer(store, vocabulary, Hiding(0.5), context)
    together, alone = packer(np.array([310, 4, 77])), packer(np.array([4]))
    of_cell = predict(model, together)[together.target_cells == 1]
    np.testing.assert_allclose(of_cell, predict(model, alone), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("context", ["detected", "visible"])
def test_hidden_values_cannot_be_seen(world, context):
    store, vocabulary, forms = world
    model = disturbed(Model(ModelConfig(hidden_sum=True), forms))
    batch = Packer(store, vocabulary, Hiding(0.5), context)(np.arange(20))
    other = replace(batch, truth=batch.truth + 1)
    np.testing.assert_array_equal(predict(model, batch), predict(model, other))
    values = batch.values.copy()
    values[~batch.hidden] += 0.5
    assert not np.allclose(predict(model, replace(batch, values=values)), predict(model, batch))


def test_visible_context_at_full_hiding_knows_nothing_but_the_gene(world):
    store, vocabulary, forms = world
    model = disturbed(Model(ModelConfig(hidden_sum=True), forms))
    batch = Packer(store, vocabulary, Hiding(1.0), "visible")(np.arange(60))
    got, genes = predict(model, batch), batch.genes[batch.targets]
    np.testing.assert_allclose(got, model.linear.gene_mean.numpy()[genes], atol=1e-5)
    detected = predict(model, Packer(store, vocabulary, Hiding(1.0))(np.arange(60)))
    assert np.ptp(detected[genes == np.unique(genes)[0]]) > 1e-3


def test_visible_context_does_not_show_which_hidden_genes_there_are(world):
    store, vocabulary, forms = world
    model = disturbed(Model(ModelConfig(hidden_sum=True), forms))
    batch = Packer(store, vocabulary, Hiding(0.5), "visible")(np.array([9]))
    last = batch.offsets[-1] - 1
    keep = np.arange(len(batch.genes)) < last
    fewer = replace(
        batch,
        genes=batch.genes[keep],
        values=batch.values[keep],
        hidden=batch.hidden[keep],
        offsets=np.array([0, last], np.int32),
        targets=batch.targets[batch.targets < last],
        truth=batch.truth[batch.targets < last],
    )
    np.testing.assert_allclose(predict(model, fewer), predict(model, batch)[: len(fewer.targets)], atol=2e-6, rtol=1e-5)


def test_cells_without_a_known_gene_and_batches_without_a_token(world):
    store, vocabulary, forms = world
    nothing = np.full_like(vocabulary, -1)
    model = Model(ModelConfig(), forms)
    empty = Packer(store, nothing, Hiding(1.0))(np.arange(3))
    assert predict(model, empty).shape == (0,)
    assert all(values.shape == (0,) for values in forms.predict(empty).values())
    with torch.inference_mode():
        assert model.embed(Tokens.of(empty, CPU)).shape == (3, 64)


def test_a_vocabulary_of_one_gene(simulated):
    vocabulary = np.where(np.arange(simulated.n_genes) == 3, 0, -1).astype(np.int32)
    forms = fit_closed_forms(simulated, vocabulary, np.arange(280))
    batch = Packer(simulated, vocabulary, Hiding(1.0))(np.arange(280, 300))
    np.testing.assert_allclose(
        predict(Model(ModelConfig(), forms), batch), forms.predict(batch)["value ridge"], atol=1e-5
    )


def test_every_parameter_learns(world):
    store, vocabulary, forms = world
    model = disturbed(Model(ModelConfig(), forms))
    for context in ("detected", "visible"):
        tokens = Tokens.of(Packer(store, vocabulary, Hiding("uniform"), context)(np.arange(40)), CPU)
        ((model(tokens) - tokens.truth) ** 2).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []


@pytest.mark.parametrize("engine", ["numba", "reference"])
def test_engines_agree(world, engine):
    store, vocabulary, forms = world
    batch = Packer(store, vocabulary, Hiding(0.5))(np.arange(10))
    model = disturbed(Model(ModelConfig(), forms))
    auto = predict(model, batch)
    model.engine = engine
    np.testing.assert_allclose(predict(model, batch), auto, atol=2e-5)


def test_embedding_has_one_row_a_cell_and_separates_types(world):
    store, vocabulary, forms = world
    batch = Packer(store, vocabulary, Hiding(1e-12))(np.arange(60))
    with torch.inference_mode():
        rows = Model(ModelConfig(), forms).embed(Tokens.of(batch, CPU)).numpy()
    assert rows.shape == (60, 64)
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    config = ModelConfig(**PRESETS[preset])
    assert config.width % config.heads == 0


@pytest.mark.parametrize("bad", [{"width": 60}, {"heads": 5}, {"knots": 1}, {"layers": -1}], ids=str)
def test_bad_shapes_are_refused(bad):
    with pytest.raises(ConfigError):
        ModelConfig(**bad)


def test_the_model_compiles_into_one_graph_whatever_the_batch(world):
    store, vocabulary, forms = world
    model = disturbed(Model(ModelConfig(hidden_sum=True), forms))
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    for cells, rate, context in (
        (range(12), 0.5, "detected"),
        (range(30, 75), "uniform", "detected"),
        (range(9), 0.5, "visible"),
    ):
        tokens = Tokens.of(Packer(store, vocabulary, Hiding(rate), context)(np.array(cells)), CPU)
        results = []
        for loss in (model.loss, compiled):
            model.zero_grad()
            value = loss(tokens)
            value.backward()
            results.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_the_visible_context_starts_at_the_gene_above_a_single_count(world, starts):
    store, vocabulary, _ = world
    forms = starts["offset"][0]
    for rate, known in ((0.3, False), (1.0, False), (1.0, True)):
        batch = Packer(store, vocabulary, Hiding(rate), "visible", known_depth=known)(np.arange(300, 330))
        got = predict(Model(ModelConfig(start="offset"), forms), batch)
        np.testing.assert_allclose(got, forms.gene_start(batch), atol=1e-5)
        if rate == 1.0 and not known:
            np.testing.assert_allclose(got, forms.gene_mean[batch.genes[batch.targets]], atol=1e-5)


def test_the_total_tells_the_sum_of_the_hidden_counts(world):
    store, vocabulary, _ = world
    batch = Packer(store, vocabulary, Hiding(0.4), known_depth=True)(np.array([3, 7, 11]))
    values = np.log1p(3e4 / batch.totals)[batch.cell_of_token]  # three counts; those of visible tokens are not used
    log_total = torch.from_numpy(np.where([True, True, False], batch.log_total, np.nan))
    excess, expected = Tokens.of(batch, CPU).hidden_sum(torch.from_numpy(values), log_total).numpy().T
    cell = batch.target_cells
    hidden = np.bincount(cell, batch.counts)
    visible = np.bincount(batch.cell_of_token, np.expm1(batch.values.astype(np.float64))) * batch.totals / 1e4
    np.testing.assert_allclose(expected[:2], np.log(3 * np.bincount(cell))[:2], rtol=1e-5)
    np.testing.assert_allclose(excess[:2], (np.log(batch.totals - visible) - expected)[:2], rtol=1e-4)
    assert (hidden <= (batch.totals - visible) * 1.0001).all()
    assert excess[2] == expected[2] == 0
    above, of_above = Tokens.of(batch, CPU).hidden_sum(torch.from_numpy(values), log_total, above=True).numpy().T
    np.testing.assert_allclose(of_above[:2], np.log1p(2 * np.bincount(cell))[:2], rtol=1e-5)
    rest = batch.totals - visible - np.bincount(cell)  # a detected gene has one count at least
    np.testing.assert_allclose(above[:2], (np.log1p(rest) - of_above)[:2].clip(-3, 3), rtol=1e-3, atol=1e-3)
    assert above[2] == of_above[2] == 0
    shown = Tokens.of(replace(batch, hidden=np.zeros_like(batch.hidden)), CPU)
    assert not shown.hidden_sum(torch.from_numpy(values), torch.from_numpy(batch.log_total)).any()
