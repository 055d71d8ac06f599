from dataclasses import replace

import numpy as np
import pytest
import torch

from sckit.config import ModelConfig
from sckit.data.split import run_vocabulary
from sckit.device import choose_compute
from sckit.model.closed_forms import fit_closed_forms
from sckit.model.transformer import Model
from sckit.perturbation.fit import fit, predict_response
from sckit.perturbation.responder import Example, Responder, TokenTable, pack_examples

from .small_screens import fold_of, small_screen

CPU = torch.device("cpu")
G = 24
# Of 24 genes the last four are unknown to the run. Behind them: a gene that only the run knows, and an unknown one.
TABLE = TokenTable(np.array([*range(30, 50), -1, -1, -1, -1, 77, -1]), G, np.array([3, 22, 24, 25]))
RUN_ONLY, UNKNOWN = 24, 25
NOTHING = np.zeros(0)
# Sums of some hundred float32 terms of size one, in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def start(simulated):
    cells = np.arange(280)
    vocabulary = run_vocabulary(simulated, cells, 1)
    model = Model(ModelConfig(), fit_closed_forms(simulated, vocabulary, cells, components=3, factors=2))
    disturb(model)
    model.engine = "reference"
    return model


def disturb(model):
    """Give every weight some noise, so that a test sees the whole network and not its zeros."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def responder(start, *, factors=False, transferred=True, seed=0):
    return Responder(start, TABLE, factors=factors, seed=seed, transferred=transferred)


def example(rng, shown=9, *, perturbations=(RUN_ONLY,), dose=0.0, queries=7):
    genes = np.sort(rng.permutation(G)[:shown])
    return Example(
        genes,
        rng.uniform(1, 5, shown),
        rng.normal(size=shown),
        perturbations,
        dose,
        np.sort(rng.permutation(G)[:queries]),
        rng.normal(size=queries),
    )


GUESS = np.concatenate([np.linspace(-1, 2, G), [0, 0]])


def predict(model, *examples, guess=GUESS):
    with torch.inference_mode():
        return model(pack_examples(examples, guess, CPU)).numpy()


VARIANTS = pytest.mark.parametrize("factors", [False, True], ids=["response", "partial"])


def test_before_the_first_step_a_response_is_the_mean_exactly(start, rng):
    for transferred in (False, True):
        model = responder(start, transferred=transferred)
        assert not predict(model, example(rng), example(rng, dose=3.0, perturbations=(3, 22))).any()


def test_before_the_first_step_a_partial_prediction_is_what_the_factors_of_the_run_say(start, rng):
    one, blind = example(rng, 12, perturbations=()), example(rng, 0, perturbations=())
    model = responder(start, factors=True)
    known = TABLE.run_genes[:G] >= 0
    loadings, noise = np.zeros((G, 2)), np.ones(G)
    loadings[known] = start.linear.loadings.detach().numpy()[TABLE.run_genes[:G][known]]
    noise[known] = start.linear.noise.numpy()[TABLE.run_genes[:G][known]]
    shown = loadings[one.genes] / noise[one.genes, None]
    factors = np.linalg.solve(shown.T @ loadings[one.genes] + np.eye(2), shown.T @ one.residual)
    got = predict(model, one, blind)
    np.testing.assert_allclose(got[:7], loadings[one.queries] @ factors, **CLOSE)
    assert np.abs(got[:7]).max() > 0.01
    assert not got[7:].any()


@VARIANTS
@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_an_example_is_predicted_the_same_whatever_else_is_in_its_batch(start, rng, factors, engine):
    model = disturb(responder(start, factors=factors))
    model.engine = engine
    one, empty, two = (
        example(rng),
        example(rng, 0, perturbations=()),
        example(rng, 4, perturbations=(3, UNKNOWN), dose=1),
    )
    alone = [predict(model, e) for e in (one, empty, two)]
    np.testing.assert_allclose(predict(model, one, empty, two), np.concatenate(alone), **CLOSE)
    np.testing.assert_allclose(predict(model, two, one), np.concatenate([alone[2], alone[0]]), **CLOSE)


@VARIANTS
def test_a_query_does_not_see_the_other_queries(start, rng, factors):
    model = disturb(responder(start, factors=factors))
    whole = replace(example(rng), queries=np.arange(G))
    together = predict(model, whole)
    for gene in (0, 3, 23):
        np.testing.assert_allclose(predict(model, replace(whole, queries=np.array([gene])))[0], together[gene], **CLOSE)
    twice = predict(model, replace(whole, queries=np.array([5, 2, 5])))
    np.testing.assert_allclose(twice, together[[5, 2, 5]], **CLOSE)


@VARIANTS
def test_the_order_of_what_is_shown_does_not_matter(start, rng, factors):
    model = disturb(responder(start, factors=factors))
    one = example(rng, 15, perturbations=(3, RUN_ONLY), dose=2.0)
    mixed = rng.permutation(15)
    other = replace(
        one, genes=one.genes[mixed], values=one.values[mixed], residual=one.residual[mixed], perturbations=(RUN_ONLY, 3)
    )
    np.testing.assert_allclose(predict(model, other), predict(model, one), **CLOSE)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"perturbations": (3,)}, id="perturbation"),
        pytest.param({"perturbations": ()}, id="no perturbation"),
        pytest.param({"perturbations": (3, RUN_ONLY)}, id="combination"),
        pytest.param({"dose": 1.0}, id="dose"),
        pytest.param({"values": np.full(9, 2.0)}, id="values"),
        pytest.param({"residual": np.zeros(9)}, id="residual"),
        pytest.param({"genes": np.arange(9)}, id="genes shown"),
    ],
)
def test_whatever_is_said_matters_once_the_head_is_trained(start, rng, change):
    one = example(rng)
    fresh, trained = responder(start), disturb(responder(start))
    np.testing.assert_array_equal(predict(fresh, one), predict(fresh, replace(one, **change)))
    assert np.abs(predict(trained, one) - predict(trained, replace(one, **change))).min() > 1e-4


def test_the_guess_is_of_the_genes_there_are(start, rng):
    model = disturb(responder(start))
    one = replace(example(rng), genes=np.arange(9), queries=np.arange(12, 18))
    before = predict(model, one)
    moved = GUESS.copy()
    moved[[9, 10, 11, 18, 23]] += 1
    np.testing.assert_array_equal(predict(model, one, guess=moved), before)
    moved[12] += 1
    after = predict(model, one, guess=moved)
    assert abs(after[0] - before[0]) > 1e-5
    np.testing.assert_allclose(after[1:], before[1:], **CLOSE)


def test_the_loss_is_the_mean_squared_error(start, rng):
    model = disturb(responder(start, factors=True))
    examples = [example(rng), example(rng, queries=3)]
    truth = np.concatenate([e.truth for e in examples])
    loss = float(model.loss(pack_examples(examples, GUESS, CPU)).detach())
    assert loss == pytest.approx(np.mean((predict(model, *examples) - truth) ** 2), rel=1e-5)
    untold = [examples[0], replace(examples[1], truth=None)]
    assert pack_examples(untold, GUESS, CPU).truth is None


def test_engines_agree_in_value_and_gradient(start, rng):
    batch = pack_examples([example(rng), example(rng, 3, perturbations=(3, 22), dose=1.0)], GUESS, CPU)
    found = []
    for engine in ("reference", "numba"):
        model = disturb(responder(start, factors=True))
        model.engine = engine
        loss = model.loss(batch)
        loss.backward()
        found.append(
            (float(loss.detach()), {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None})
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], gradient, rtol=1e-3, atol=1e-5, err_msg=name)
    assert np.abs(found[0][1]["gene.weight"][3]).max() > 0


def test_pack_lays_out_shown_genes_perturbations_and_queries():
    first = Example(np.array([4, 9]), np.array([1.0, 2.0]), np.array([0.5, -0.5]), (24, 3), 0.7, np.array([9, 0]))
    second = Example(NOTHING.astype(int), NOTHING, NOTHING, (), 0.0, np.array([1]))
    batch = pack_examples([first, second], GUESS, CPU)
    assert batch.genes.tolist() == [4, 9, 24, 3, 9, 0, 1]
    assert batch.cell.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert batch.in_context.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert batch.hidden.tolist() == [False, False, False, False, True, True, True]
    assert batch.values.tolist() == [1, 2, 0, 0, 0, 0, 0]
    assert batch.residual.tolist() == [0.5, -0.5, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(batch.expected, GUESS[[4, 9, 24, 3, 9, 0, 1]], rtol=1e-6)
    assert batch.perturbed.at.tolist() == [2, 3]
    np.testing.assert_allclose(batch.perturbed.dose, [0.7, 0.7], rtol=1e-6)
    assert batch.targets.tolist() == [4, 5, 6]
    assert batch.target_rows.rows.tolist() == [9, 0, 1]
    assert batch.cell[batch.targets].tolist() == [0, 0, 1]
    np.testing.assert_allclose(batch.log_detected, [np.log(2), 0], rtol=1e-6)


def test_known_genes_bring_their_vectors_and_unknown_ones_start_as_in_every_arm(start):
    transferred, scratch = responder(start, factors=True), responder(start, factors=True, transferred=False)
    rows, fresh = (model.gene.weight.detach() for model in (transferred, scratch))
    known = torch.from_numpy(TABLE.run_genes >= 0)
    torch.testing.assert_close(rows[known], start.gene.weight.detach()[TABLE.run_genes[TABLE.run_genes >= 0]])
    torch.testing.assert_close(rows[20:G], fresh[20:G])
    assert float(fresh[:G].std()) == pytest.approx(0.5, rel=0.1)
    assert not fresh[G:].any()
    assert not rows[UNKNOWN].any()
    assert not transferred.loadings.detach()[~known].any()
    torch.testing.assert_close(transferred.noise[:20], start.linear.noise[30:50])
    assert (scratch.noise == 1).all()
    for name in transferred.new_parameters() & set(dict(transferred.named_parameters())):
        torch.testing.assert_close(transferred.get_parameter(name), scratch.get_parameter(name))
    torch.testing.assert_close(responder(start, transferred=False, seed=1).marker, scratch.marker)
    assert not torch.equal(responder(start, transferred=False, seed=1).gene.weight, fresh)


@pytest.mark.parametrize("task", ["response", "partial"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "free"])
def test_a_frozen_arm_learns_in_its_new_parameters_alone(start, rng, task, frozen):
    material = fold_of(small_screen(rng, genes=G), task=task, validation_share=0.0).examples
    model = Responder(start, material.table, factors=task == "partial", seed=0, transferred=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = fit(model, material, choose_compute("cpu", "reference"), frozen=frozen, seed=(0, 0)).model
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    learns = {"shared_head", "head.weight"} | ({"gain", "log_noise_scale"} if task == "partial" else {"perturbed"})
    assert moved >= learns
    assert moved <= trained.new_parameters() if frozen else {"gene.weight", "cell.weight", "norm.weight"} <= moved


def test_an_untrained_arm_predicts_the_mean_of_the_training_perturbations(start, rng):
    fold, compute = (
        fold_of(small_screen(rng, genes=G), validation_share=0.2, steps=1, lr=1e-12),
        choose_compute("cpu", "numba"),
    )
    model = Responder(start, fold.examples.table, factors=False, seed=0, transferred=True)
    arm = fit(model, fold.examples, compute, frozen=False, seed=(0, 0))
    got = predict_response(arm, fold, compute)
    np.testing.assert_allclose(got, np.tile(fold.view.mean, (len(fold.view.test), 1)), atol=1e-9)


def test_genes_without_a_noise_of_the_run_have_that_of_the_screen(start):
    known = TABLE.run_genes >= 0
    made = Responder(start, TABLE, factors=True, seed=0, transferred=True, noise=0.25).noise.numpy()
    np.testing.assert_array_equal(made[known], start.linear.noise.numpy()[TABLE.run_genes[known]])
    assert (made[~known] == 0.25).all()
    assert (Responder(start, TABLE, factors=True, seed=0, transferred=False, noise=0.25).noise == 0.25).all()
