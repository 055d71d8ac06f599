"""The correction of the linear baseline: what it must not see, and that it finds what is there and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sckit.config import ModelConfig, PretrainConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.split import run_vocabulary
from sckit.errors import DataError
from sckit.model.correction import Correction, Entries
from sckit.model.offset_fit import fit_offset_forms
from sckit.model.regression import TrainingCells
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model
from sckit.training import correction as fitting
from sckit.training.correction import fit_correction
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

CPU = torch.device("cpu")
SHAPE = {"start": "offset", "hidden_sum": True, "correction": True}


@pytest.fixture(scope="module")
def world(simulated):
    cells = np.arange(280)
    vocabulary = run_vocabulary(simulated, cells, 5)
    choices = {"components": 3, "penalty": 5.0, "factors": 2, "count_penalty": 10.0}
    return simulated, vocabulary, fit_offset_forms(TrainingCells(simulated, vocabulary, cells), **choices)


@pytest.fixture(scope="module")
def model(world):
    """A model whose correction says something, and whose attention says nothing."""
    model = Model(ModelConfig(**SHAPE), world[-1])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.correction.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def predict(model, batch, **options):
    with torch.inference_mode():
        return model.values(Tokens.of(batch, CPU), **options)


def test_the_correction_of_a_cell_depends_on_no_other_cell_and_no_hidden_value(world, model):
    store, vocabulary, offsets = world
    packer = Packer(store, vocabulary, Hiding(0.5))
    together, alone = packer(np.array([310, 4, 77])), packer(np.array([4]))
    corrected = predict(model, together)
    plain = offsets.value_ridge(together, offsets.of_cells(together))
    assert np.abs(corrected - plain).max() > 0.05
    np.testing.assert_allclose(corrected[together.target_cells == 1], predict(model, alone), atol=1e-5)
    np.testing.assert_array_equal(corrected, predict(model, replace(together, truth=together.truth + 1)))
    np.testing.assert_allclose(corrected, predict(model, together, attention=False), atol=1e-6)


def test_the_context_visible_is_not_corrected(world, model):
    store, vocabulary, offsets = world
    batch = Packer(store, vocabulary, Hiding(0.5), "visible")(np.arange(20))
    np.testing.assert_allclose(predict(model, batch), offsets.gene_start(batch), atol=1e-5)


def planted(*, effect, cells=600, genes=12, of_cell=60, seed=0):
    """Draws of entries whose residual is `effect` times a curve of the entry plus, in a gene of its own sign, a product
    of two facts of the cell, in noise of size one; and the share of the variance that this is."""
    generator = torch.Generator().manual_seed(seed)
    facts = torch.randn(cells, 6, generator=generator)
    sign = torch.where(torch.arange(genes) % 2 == 0, 1.0, -1.0)
    draws = []
    for _ in range(4):
        entries = F.pad(torch.randn(cells * of_cell, 5, generator=generator), (0, 5))  # and nothing known of genes
        gene = torch.randint(0, genes, (cells * of_cell,), generator=generator)
        cell = torch.arange(cells).repeat_interleave(of_cell)
        signal = torch.sin(2 * entries[:, 0]) + sign[gene] * facts[cell, 2] * facts[cell, 3]
        noise = torch.randn(len(signal), generator=generator)
        draws.append((Entries(entries, gene, cell, facts), effect * signal, effect * signal + noise))
    return draws


class Planted:
    """Stands for a model whose baseline is zero."""

    def __init__(self, genes=12):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.correction = Correction(np.zeros((genes, 5)), 6)

    def to_correct(self, draw):
        return draw[0], torch.zeros(len(draw[2])), draw[2]

    def losses_of(self, predicted, truth, _genes):
        return (predicted - truth).square()


def fit(stub, draws, *, cells=3e3, steps=300, check=None):
    check = check or planted(effect=0.5, cells=100, seed=2)
    return fit_correction(
        stub, lambda number: [draws[number % 4]], lambda number: [check[number % 4]], torch.full((12,), cells),
        steps=steps, seed=0,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "least"), [(0.5, 0.8), (0.0, None)])
def test_a_planted_correction_is_found_and_none_where_there_is_none(effect, least):
    stub, new = Planted(), planted(effect=effect, seed=1)[0]
    check = planted(effect=effect, cells=100, seed=2)
    assert fit(stub, planted(effect=effect), steps=600, check=check).steps == 600
    with torch.no_grad():
        found = stub.correction(new[0])
    rest = (new[1] - found).square().mean()  # of the signal alone, where noise of size one cannot help
    assert least <= 1 - float(rest / new[1].square().mean()) if effect else float(rest) <= 0.01
    assert not any(p.requires_grad for p in stub.correction.parameters())


@pytest.mark.slow
def test_a_gene_of_few_cells_is_penalised_more():
    sizes = {}
    for cells in (10.0, 1e6):
        stub = Planted()
        fit(stub, planted(effect=0.5), cells=cells)
        sizes[cells] = float(stub.correction.gene.weight.square().mean())
    assert sizes[10.0] < 0.05 * sizes[1e6]


def test_validation_cells_choose_the_penalty_or_no_correction():
    draws = planted(effect=0.5)
    least, most = sorted(fitting._PENALTIES)
    assert fit(Planted(), draws, cells=20.0).penalty == least  # there are products, and few cells for them
    noise = planted(effect=0, cells=40, of_cell=20)
    check = planted(effect=0, cells=200, seed=2)
    assert fit(Planted(), noise, cells=1e5, check=check).penalty in (None, most)
    against = [(seen, -signal, truth - 2 * signal) for seen, signal, truth in planted(effect=0.5, cells=100, seed=2)]
    stub = Planted()
    assert fit(stub, draws, check=against).penalty is None
    assert all(not stub.correction.state_dict()[name].any() for name in ("shared.4.weight", "gene.weight"))


def test_a_correction_is_better_by_more_than_a_standard_error_over_cells():
    before = torch.zeros(100, dtype=torch.float64)
    noise = torch.linspace(-1, 1, 100, dtype=torch.float64)
    error = float(noise.std()) / 10
    assert not fitting._better(noise - 0.9 * error, before)
    assert fitting._better(noise - 1.1 * error, before)
    assert not fitting._better(before[:1] - 1, before[:1])
    stub, check = Planted(), planted(effect=0.5, cells=50)  # every draw shows the same 50 cells
    checked = fitting._collect(stub, lambda number: [check[number % 4]], 0)
    losses = fitting._losses(stub, checked)
    assert losses.shape == (50,)
    assert float(losses.sum()) == pytest.approx(float(checked.truth.double().square().sum()))


def test_it_is_trained_before_the_network_and_stays_as_it_is(simulated, tmp_path):
    heard, weights = [], []
    small = {"components": 3, "factors": 2, "validate_cells": 20, "batch_tokens": 2000}
    for steps in (1, 3):
        path = pretrain(
            simulated.path, PretrainConfig(steps=steps, correction_steps=30, lr=1e-2, **small), runs=tmp_path,
            name=f"run{steps}", on_event=lambda kind, facts: heard.append(facts["text"]) if kind == "note" else None,
        ).run  # fmt: skip
        weights.append(load_file(max((path / "checkpoints").iterdir()) / "state.safetensors"))
    kept = load_file(path / "model.safetensors")
    save_file(kept | {"correction.shared.0.weight": torch.ones(64, 26)}, path / "model.safetensors")
    with pytest.raises(DataError, match="earlier form of the correction, which is not read; train again"):
        open_run(path).model()
    assert any("trained a correction of the linear baseline, without attention, 30 steps" in text for text in heard)
    one, three = weights
    names = [name for name in one if name.startswith("model.correction.")]
    assert one["model.correction.shared.4.weight"].abs().max() > 0
    assert all(torch.equal(one[name], three[name]) for name in names)
    assert not torch.equal(one["model.shared_head"], three["model.shared_head"])


@pytest.mark.parametrize("options", [{"correction_steps": 0}, {"warm_start": False}, {"context": "visible"}])
def test_runs_without_a_correction_have_none(options):
    assert not PretrainConfig(**options).model.correction
    assert PretrainConfig().model.correction
    assert not ModelConfig().correction
    with pytest.raises(ValueError, match="no correction"):
        fit_correction(SimpleNamespace(correction=None), lambda _: [], lambda _: [], torch.ones(1), steps=3, seed=0)
