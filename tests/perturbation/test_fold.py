"""Most of all that nothing of the truth reaches a predictor. Counts change here, and totals stay: those are known."""

from dataclasses import replace

import numpy as np
import pytest

from sckit.config import PretrainConfig
from sckit.errors import ConfigError, DataError
from sckit.metrics.effects import METRICS
from sckit.perturbation.arms import Arms
from sckit.perturbation.baselines import RESPONSE, response_baselines
from sckit.perturbation.baselines_partial import PARTIAL
from sckit.perturbation.examples import fixed_panel
from sckit.perturbation.finetune import Job, score_job
from sckit.perturbation.questions import CEILING, ask, other_half, scores_of
from sckit.perturbation.splits import make_fold
from sckit.training.pretrain import pretrain

from . import small_screens
from .small_screens import CONFIG, dense_values, fold_of, small_screen, table_of, with_counts

ARM = "pretrained"
G = 20
TAUGHT = {"validation_share": 0.0}  # so that no arm stays where it began


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    config = PretrainConfig(
        engine="numba", batch_tokens=2000, components=3, factors=2, validate_cells=20, steps=2, correction_steps=30
    )
    return pretrain(simulated.path, config, name="run", runs=tmp_path_factory.mktemp("runs")).run


@pytest.fixture
def screen(rng):
    return small_screen(rng, contexts=2, genes=G, targets={"A": "GENE3", "B": "GENE4", "C": "GENE19", "D": "X"})


def garbage(screen, cells, genes=slice(None)):
    """The screen with counts of these cells at these genes replaced by larger ones, totals as they were."""
    counts = screen.counts.toarray()
    rows = np.zeros(len(counts), bool)
    rows[cells] = True
    columns = np.zeros(counts.shape[1], bool)
    columns[genes] = True
    at = np.ix_(rows, columns)
    counts[at] = np.random.default_rng(99).poisson(3 + counts[at][:, ::-1])
    return with_counts(screen, counts)


def material_seen(fold):
    """All that training and baselines of a job rest on, by name."""
    material, generator = fold.examples, np.random.default_rng(1)
    found = {name: getattr(material, name) for name in ("mean", "scale", "detected_mean", "expected", "cell_rms")}
    for i in range(12):
        example = material.draw(generator)
        found |= {f"example {i} {name}": value for name, value in vars(example).items()}
    for i, u in enumerate(fold.view.test):
        found[f"queries {i}"] = material.control_cell(
            int(material.control_cells(u, 1, generator)[0]), u, np.arange(3)
        ).values
    rows = dict(zip(("seen", "target", "group"), fold.training_rows, strict=True))
    return found | vars(fold.view) | rows | {"covariance": fold.control_covariance}


def predictions(fold, run):
    return small_screens.predictions(fold, run, (ARM,))


def same(one, other, at=slice(None)):
    """Whether the predictions of two jobs are equal to the last bit, by predictor; at: what of each is looked at."""
    assert one.keys() == other.keys()
    return {
        name: all(np.array_equal(a[at], b[at], equal_nan=True) for a, b in zip(one[name], other[name], strict=True))
        for name in one
    }


def cells_of(fold, units):
    return np.concatenate([fold.screen.units[u].cells for u in units])


@pytest.mark.parametrize("split", ["perturbation", "covariate", "combination"])
def test_response_predictors_know_nothing_of_test_units_nor_of_reference_controls(run, screen, split):
    fold = fold_of(screen, split=split, **TAUGHT)
    hidden = np.concatenate([cells_of(fold, fold.view.test), np.flatnonzero(fold.examples.cell_halves.reference)])
    other = fold_of(garbage(screen, hidden), split=split, **TAUGHT)
    before, after = material_seen(fold), material_seen(other)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert set(same(predictions(fold, run), predictions(other, run)).values()) == {True}
    for question, changed in zip(ask(fold), ask(other), strict=True):
        assert not np.allclose(question.truth.control, changed.truth.control)
        assert not np.allclose(question.truth.perturbed, changed.truth.perturbed)


@pytest.mark.parametrize("known", ["treated cells of training units", "input controls"])
def test_response_predictors_learn_from_training_units_and_input_controls(run, screen, known):
    fold = fold_of(screen, **TAUGHT)
    inputs = np.flatnonzero(fold.examples.cell_halves.inputs)
    cells = inputs if known == "input controls" else cells_of(fold, fold.view.train)
    other = fold_of(garbage(screen, cells), **TAUGHT)
    expected = dict.fromkeys((*RESPONSE, ARM), False) | {"no change": True}
    assert same(predictions(fold, run), predictions(other, run)) == expected


def test_a_share_of_the_training_units_leaves_nothing_of_the_others(run, rng):
    screen = small_screen(rng, conditions=tuple("ABCDEFGH"), genes=G)
    fold = fold_of(screen, share=0.3, **TAUGHT)
    left_out = np.setdiff1d(np.arange(8), np.concatenate([fold.view.train, fold.view.test]))
    assert len(left_out) > 2
    other = fold_of(garbage(screen, cells_of(fold, left_out)), share=0.3, **TAUGHT)
    assert set(same(predictions(fold, run), predictions(other, run)).values()) == {True}


def test_units_that_are_not_trained_on_have_no_delta(screen):
    fold = fold_of(screen)
    assert np.isnan(fold.view.delta[fold.view.test]).all()
    assert np.isfinite(fold.view.delta[fold.view.train]).all()


def partial(screen, **options):
    return fold_of(screen, **({"task": "partial", "revealed": (0.1,)} | TAUGHT | options))


def half_cells(fold, half):
    halves = (fold.examples.cell_halves.first, fold.examples.cell_halves.second)[half]
    return np.concatenate([halves[u] for u in fold.view.test])


@pytest.mark.parametrize("target", [0, 1], ids=["first half as target", "second half as target"])
def test_partial_predictors_know_nothing_of_the_target_half(run, screen, target):
    fold = partial(screen)
    hidden = np.concatenate([half_cells(fold, target), np.flatnonzero(fold.examples.cell_halves.reference)])
    other = partial(garbage(screen, hidden))
    before, after = predictions(fold, run), predictions(other, run)
    for name in before:
        np.testing.assert_array_equal(before[name][target], after[name][target], err_msg=name)
    moved = {name for name in before if not np.array_equal(before[name][1 - target], after[name][1 - target])}
    assert moved >= {"Gaussian conditional", ARM}  # there, the same half is the visible one
    assert not np.allclose(ask(fold)[target].truth.control, ask(other)[target].truth.control)


def test_partial_predictors_know_of_the_visible_half_what_is_revealed(run, screen):
    fold = partial(screen)
    panel = ask(fold)[0].panels[2]
    hidden = np.setdiff1d(np.arange(G), panel.revealed)
    test = cells_of(fold, fold.view.test)
    before = predictions(fold, run)
    after = predictions(partial(garbage(screen, test, hidden)), run)
    assert set(same(before, after, np.s_[:, panel.scored]).values()) == {True}
    others = np.setdiff1d(np.arange(G), panel.scored)
    assert not same(before, after, np.s_[:, others])[ARM]
    shown = same(before, predictions(partial(garbage(screen, test, panel.revealed)), run), np.s_[:, panel.scored])
    assert {name for name, still in shown.items() if not still} >= {"Gaussian conditional", ARM}


def test_nothing_revealed_is_nothing_known(run, screen):
    fold = partial(screen, revealed=(0.0,))
    test = cells_of(fold, fold.view.test)
    other = partial(garbage(screen, test), revealed=(0.0,))
    assert set(same(predictions(fold, run), predictions(other, run)).values()) == {True}


def test_a_fixed_panel_is_all_that_predictors_see(run, screen, tmp_path):
    (tmp_path / "panel").write_text("GENE2\nGENE7\nGENE11\n")
    options = {"panel": str(tmp_path / "panel")}
    fold = partial(screen, **options)
    test, revealed = cells_of(fold, fold.view.test), np.array([2, 7, 11])
    hidden = np.setdiff1d(np.arange(G), revealed)
    before = predictions(fold, run)
    after = predictions(partial(garbage(screen, test, hidden), **options), run)
    assert set(same(before, after).values()) == {True}
    assert all(np.isnan(delta[:, revealed]).all() for found in before.values() for delta in found)
    assert all(np.isfinite(delta[:, hidden]).all() for found in before.values() for delta in found)
    assert not same(before, predictions(partial(garbage(screen, test, revealed), **options), run))[ARM]


def test_the_first_partial_baselines_are_those_of_the_response_at_the_hidden_genes(screen):
    fold = partial(screen)
    found = small_screens.predictions(fold)
    for name in ("no change", "mean", "additive"):
        for question, delta in zip(ask(fold), found[name], strict=True):
            np.testing.assert_array_equal(delta, np.where(question.hidden, RESPONSE[name](fold.view), np.nan))


@pytest.mark.parametrize("task", ["response", "partial"])
def test_no_predictor_reads_the_truth_or_the_profiles_it_is_made_from(run, screen, task):
    fold, again = (partial(screen, task=task) for _ in range(2))
    untold = [replace(question, truth=None) for question in ask(again)]
    again.profiles = None
    found = small_screens.predictions(again, run, (ARM,), untold)
    assert set(same(predictions(fold, run), found).values()) == {True}
    np.testing.assert_array_equal(other_half(again, untold[0]), other_half(fold, ask(fold)[0]))


def test_the_truth_is_the_target_half_against_the_reference_and_against_the_mean(screen):
    fold = fold_of(screen)
    dense, cell_halves = dense_values(screen), fold.examples.cell_halves
    assert [question.revealed for question in ask(fold)] == [None, None]
    reference_deltas = []
    for u in fold.view.train:
        context = cell_halves.reference & (screen.stratum == screen.units[u].covariates)
        reference_deltas.append(dense[screen.units[u].cells].mean(0) - dense[context].mean(0))
    for target, question in enumerate(ask(fold)):
        for row, u in enumerate(fold.view.test):
            context = screen.stratum == screen.units[u].covariates
            inputs, reference = (dense[side & context] for side in (cell_halves.inputs, cell_halves.reference))
            halves = [dense[half[u]] for half in (cell_halves.first, cell_halves.second)]
            profile, visible = halves[target].mean(0), halves[1 - target].mean(0)
            truth = question.truth
            np.testing.assert_allclose(truth.control[row], profile - reference.mean(0), atol=1e-12)
            rest = profile - reference.mean(0) - np.mean(reference_deltas, 0)
            np.testing.assert_allclose(truth.perturbed[row], rest, atol=1e-12)
            np.testing.assert_allclose(truth.candidates[u], truth.control[row], atol=1e-12)
            np.testing.assert_allclose(other_half(fold, question)[row], visible - inputs.mean(0), atol=1e-12)
            parts = (own.var(0, ddof=1) / len(own) for own in (halves[target], reference))
            np.testing.assert_allclose(truth.se[row] ** 2, sum(parts), atol=1e-12)
            assert truth.own[row] == u


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 1), ({"task": "partial"}, 2)],
    ids=["response", "partial"],
)
def test_every_predictor_has_a_score_of_every_test_unit(run, screen, options, rows):
    config = replace(CONFIG, revealed=(0.0, 0.5), **options)
    arms, job = Arms(run, None, table_of(screen)), Job(1, 1.0, ("scratch",))
    scores, trained = score_job(job, screen, config, "perturbation", arms)
    test = make_fold(screen, "perturbation", config, 1).test
    baselines = PARTIAL if options else RESPONSE
    assert {s.predictor for s in scores} == {*baselines, CEILING, "scratch"}
    assert len(scores) == (len(baselines) + 2) * len(test) * rows
    assert {s.unit for s in scores} == set(test)
    assert all(set(s.metrics) == set(METRICS) and np.isfinite(list(s.metrics.values())).all() for s in scores)
    assert [row["arm"] for row in trained] == ["scratch"]


def test_one_unit_and_its_truth_score_the_best(screen):
    fold = fold_of(screen)
    for score in scores_of("truth", lambda _, q: q.truth.perturbed + fold.view.mean, fold, ask(fold)):
        assert score.metrics["delta_r_perturbed"] == pytest.approx(1)
        assert score.metrics["delta_r_specific"] == pytest.approx(1)
        assert score.metrics["delta_r"] < 1 - 1e-6  # the controls are others
    for score in scores_of("mean", response_baselines()["mean"], fold, ask(fold)):
        assert score.metrics["delta_r_perturbed"] == 0
        assert score.metrics["delta_r_specific"] == 0


def test_a_job_is_a_function_of_its_seeds_and_of_no_other_arm(run, screen):
    one, again, other = (fold_of(screen, seed=seed) for seed in (0, 0, 1))
    first = small_screens.predictions(one, run, ("scratch",))["scratch"]
    after = small_screens.predictions(again, run, ("pretrained", "scratch"))["scratch"]
    np.testing.assert_array_equal(after[0], first[0])
    assert not np.array_equal(one.view.test, other.view.test)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        pytest.param(None, ConfigError, "cannot be read .*; give one gene id or symbol per line", id="no file"),
        pytest.param("other\n", DataError, "0 of the 1 genes .* among the 20 predicted", id="unknown genes"),
        pytest.param("\n".join(f"GENE{g}" for g in range(18)), DataError, "three must be left", id="too many"),
    ],
)
def test_a_panel_that_cannot_be_used_is_refused(screen, tmp_path, text, error, words):
    if text is not None:
        (tmp_path / "panel").write_text(text)
    config = replace(CONFIG, task="partial", panel=str(tmp_path / "panel"))
    with pytest.raises(error, match=words):
        fixed_panel(screen, config)
    assert fixed_panel(screen, replace(config, task="response")) is None
