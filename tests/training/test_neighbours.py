"""Neighbours as keys: which cells they are, which of their values a cell sees, and that none of them is hidden."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sckit.config import EvalConfig, PretrainConfig
from sckit.data.batch import Hiding, Neighbours, Packer
from sckit.data.split import HELD_OUT, TRAIN, VALIDATION
from sckit.data.views import cell_of_entry
from sckit.errors import ConfigError
from sckit.evaluation.evaluate import evaluate
from sckit.evaluation.rows import best_of
from sckit.model.correction import facts_of_genes
from sckit.model.linear import Start
from sckit.model.neighbours import components_of, find_neighbours, nearest
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model
from sckit.training.baselines import cross_fits, offset_forms
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run
from sckit.training.starts import Starts

CPU = torch.device("cpu")
CONFIG = PretrainConfig(
    mask="uniform", group="dataset", neighbours=3, steps=4, batch_tokens=2000, components=3, factors=2,
    validate_cells=40, correction_steps=30, lr=3e-3,
)  # fmt: skip


def values(model, tokens):
    with torch.inference_mode():
        return model.values(tokens)


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    return open_run(pretrain(simulated.path, CONFIG, runs=tmp_path_factory.mktemp("runs"), name="run").run)


@pytest.fixture(scope="module")
def packer(run):
    plain = Packer(run.store, run.vocabulary, Hiding(0.4))
    of = offset_forms(run), plain, run.cells(HELD_OUT), run.cells(TRAIN), run.groups
    return replace(plain, neighbours=find_neighbours(*of, 3, 0))


def test_neighbours_are_the_nearest_others_of_training_and_of_the_pass(run, packer):
    forms, cells = offset_forms(run), run.cells(HELD_OUT)
    pool = np.union1d(run.cells(TRAIN), cells)
    x = components_of(forms, forms.of_cells(packer(pool)).x)
    for cell in cells:
        distance = ((x - x[pool == cell]) ** 2).sum(1)
        expected = [other for other in pool[np.argsort(distance)] if other != cell][:3]
        assert set(packer.neighbours.table[cell]) == set(expected)
    np.testing.assert_array_equal(np.flatnonzero(packer.neighbours.training), run.cells(TRAIN))


def test_fewer_cells_than_neighbours_leave_places_empty():
    found, there = nearest(np.zeros((2, 1)), np.array([[1.0], [2.0]]), np.array([[False, True], [True, True]]), 5)
    assert found.shape == (2, 2)
    assert there.tolist() == [[True, False], [False, False]]


def test_a_cell_sees_visible_values_of_its_own_genes_in_front_of_its_tokens(run, packer):
    cells = run.cells(HELD_OUT)[:7]
    batch = packer(cells)
    around, count = batch.around, len(batch.genes)
    others = around.batch
    for c, cell in enumerate(cells):
        own = set(batch.genes[batch.offsets[c] : batch.offsets[c + 1]])
        expected = []
        for other in packer.neighbours.table[cell]:
            at = int(np.flatnonzero(others.cells == other)[0])
            for token in range(others.offsets[at], others.offsets[at + 1]):
                if not others.hidden[token] and others.genes[token] in own:
                    expected.append(count + token)
        part = around.order[around.offsets[c] : around.offsets[c + 1]]
        length = batch.offsets[c + 1] - batch.offsets[c]
        np.testing.assert_array_equal(part[-length:], np.arange(batch.offsets[c], batch.offsets[c + 1]))
        assert sorted(part[:-length]) == sorted(expected)
        assert around.keys[c] == len(expected) + batch.keys[c]
    hidden_of = [others.hidden[cell_of_entry(others.offsets) == i].any() for i in range(len(others.cells))]
    np.testing.assert_array_equal(np.array(hidden_of), ~packer.neighbours.training[others.cells])


def test_training_cells_show_their_own_group_what_is_hidden_in_a_new_one(run, packer):
    cells, groups = run.cells(TRAIN), run.groups
    of = offset_forms(run), packer, cells, cells, groups
    batch = replace(packer, hiding=Hiding(1.0), neighbours=find_neighbours(*of, 8, 0))(cells)
    others, own = batch.around.batch, np.repeat(np.arange(len(cells)), np.diff(batch.around.offsets))
    token = batch.around.order - len(batch.genes)
    shown = token >= 0
    of_others = others.cells[cell_of_entry(others.offsets)[token[shown]]]
    assert len(of_others) > 100
    assert (groups[of_others] != groups[cells[own[shown]]]).all()
    found = find_neighbours(*of, 8, 0).table[cells]
    assert (groups[found] == groups[cells][:, None]).any()


def test_training_and_evaluation_show_neighbours(run, monkeypatch):
    state = load_file(max((run.path / "checkpoints").iterdir()) / "state.safetensors")
    assert state["model.other"].abs().sum() > 0  # it has a gradient where a neighbour is shown
    first = Model(run.model().config, Start.of(offset_forms(run))).blocks[0]
    size = len(first.qkv.weight) // 3
    alike = first.qkv.weight[: size // first.heads], first.qkv.weight[size : size + size // first.heads]
    torch.testing.assert_close(*alike)  # so that attention finds the same gene in other cells
    around, values_of = [], Model.values

    def heard(model, tokens, **options):
        around.extend([tokens.around] if options.get("attention", True) else [])
        return values_of(model, tokens, **options)

    monkeypatch.setattr(Model, "values", heard)
    evaluate(run.path, EvalConfig(masks=(0.4,), bootstraps=10))
    assert around
    assert all(each is not None for each in around)


def test_hidden_values_of_neighbours_and_the_cells_batch_change_nothing(run, packer):
    model, cells = run.model(), run.cells(HELD_OUT)
    with torch.no_grad():
        model.other.copy_(torch.linspace(-1, 1, len(model.other)))
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = packer(cells)
    plain = values(model, Tokens.of(batch, CPU))
    single = [values(model, Tokens.of(packer(np.array([cell])), CPU)) for cell in cells]
    np.testing.assert_allclose(np.concatenate(single), plain, atol=1e-4)
    around = batch.around
    shown = np.where(around.batch.hidden, 7.0, around.batch.values).astype(np.float32)
    changed = replace(batch, around=replace(around, batch=replace(around.batch, values=shown)))
    seen = np.isin(around.order, len(batch.genes) + np.flatnonzero(around.batch.hidden))
    assert not seen.any()
    np.testing.assert_allclose(values(model, Tokens.of(changed, CPU)), plain, atol=1e-4)
    shown = np.where(around.batch.hidden, 0.0, around.batch.values + 1).astype(np.float32)
    changed = replace(batch, around=replace(around, batch=replace(around.batch, values=shown)))
    assert np.abs(values(model, Tokens.of(changed, CPU)) - plain).max() > 1e-3


def test_a_cell_without_neighbours_is_predicted_as_alone(run, packer):
    cells = run.cells(HELD_OUT)[:5]
    none = Neighbours(np.full_like(packer.neighbours.table, -1), packer.neighbours.training)
    alone, around = (replace(packer, neighbours=each)(cells) for each in (None, none))
    model = run.model()
    np.testing.assert_allclose(values(model, Tokens.of(around, CPU)), values(model, Tokens.of(alone, CPU)), atol=1e-5)


def test_engines_agree_on_neighbours(run, packer):
    tokens, model, found = Tokens.of(packer(run.cells(HELD_OUT)), CPU), run.model(), []
    for engine in ("reference", "numba"):
        model.engine = engine
        found.append(values(model, tokens))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_a_start_without_a_fold_knows_nothing_of_it(run):
    """Neither the linear baseline nor what the correction knows of the genes."""
    model, fits = run.model(), cross_fits(run)
    starts = Starts(run, model, CPU)
    for fold in (0, None):
        starts.use(fold)
        forms = offset_forms(run) if fold is None else fits.forms(offset_forms(run), fold)
        np.testing.assert_array_equal(model.correction.facts.numpy(), facts_of_genes(forms))
        np.testing.assert_allclose(model.linear.gene_mean.numpy(), forms.gene_mean, rtol=1e-6)
    assert np.abs(facts_of_genes(fits.forms(offset_forms(run), 0)) - facts_of_genes(offset_forms(run))).max() > 0.01


def test_starts_leave_out_whole_groups_and_validation_cells_are_judged_by_their_own(run):
    groups, fits = run.store.obs["dataset"].to_numpy(), cross_fits(run)
    for group in set(groups[run.cells(TRAIN)]):
        assert len(set(fits.fold[groups[run.cells(TRAIN)] == group])) == 1
    starts = Starts(run, run.model(), CPU)
    assert sum(len(cells) for _, cells in starts.validation) == len(run.cells(VALIDATION))
    for fold, cells in starts.validation:
        of_fold = run.cells(TRAIN)[fits.fold == fold]
        assert set(groups[cells]) <= set(groups[of_fold])


def test_a_model_with_neighbours_is_compared_with_rows_that_know_other_cells(run, monkeypatch):
    known = {}

    def watched(name, errors, more=frozenset()):
        known[name] = more
        return best_of(name, errors, more)

    monkeypatch.setattr("sckit.evaluation.evaluate.best_of", watched)
    contexts = ("detected", "visible")
    found = evaluate(run.path, EvalConfig(masks=(0.3,), contexts=contexts, bootstraps=20, offset_group="dataset"))
    assert "value offset ridge + neighbours" in {row["predictor"] for row in found.rows}
    assert {name for name, more in known.items() if more} == {"model/detected", "model + group offsets/detected"}
    assert any(row["other"] == "value offset ridge + neighbours" for row in found.differences)


def test_neighbours_in_a_context_without_detection_are_refused():
    with pytest.raises(ConfigError, match="--neighbours 3 looks for cells with like detected genes"):
        PretrainConfig(neighbours=3, context="visible")
