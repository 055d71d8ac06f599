"""Most of all that nothing of the truth reaches a predictor. Counts change here, and totals stay: those are known."""

from dataclasses import replace

import numpy as np
import pytest

from sckit.config import PretrainConfig
from sckit.device import choose_compute
from sckit.errors import ConfigError, DataError
from sckit.metrics.effects import METRICS
from sckit.perturbation import fold as perturb_fold
from sckit.perturbation.baselines import RESPONSE
from sckit.perturbation.baselines_partial import PARTIAL
from sckit.perturbation.examples import fixed_panel
from sckit.perturbation.fold import CEILING, count_halves
from sckit.training.pretrain import pretrain

from .small_screens import CONFIG, dense_values, fold_run, small_screen, with_counts

CPU = choose_compute("cpu", "numba")
ARM = "pretrained"
G = 20
TAUGHT = {"validation_share": 0.0}  # so that no arm stays where it began


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    config = PretrainConfig(engine="numba", batch_tokens=2000, components=3, factors=2, validate_cells=20, steps=2)
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


def lesson_seen(fold):
    """All that training and baselines of a job rest on, by name."""
    lesson, generator = fold.lesson, np.random.default_rng(1)
    found = {name: getattr(lesson, name) for name in ("mean", "scale", "detected_mean", "guess", "cell_rms")}
    for i in range(12):
        example = lesson.draw(generator)
        found |= {f"example {i} {name}": value for name, value in vars(example).items()}
    for i, u in enumerate(fold.fold.test):
        found[f"queries {i}"] = lesson.control_cell(
            int(lesson.control_cells(u, 1, generator)[0]), u, np.arange(3)
        ).values
    return found | {"delta": fold.fold.delta, "control": fold.fold.control, "components": fold.fold.components}


def predictions(fold):
    return fold.baselines() | {ARM: fold.arm(ARM, CPU)}


def same(one, other, at=slice(None)):
    """Whether the predictions of two jobs are equal to the last bit, by predictor; at: what of each is looked at."""
    assert one.keys() == other.keys()
    return {
        name: all(np.array_equal(a[at], b[at], equal_nan=True) for a, b in zip(one[name], other[name], strict=True))
        for name in one
    }


def cells_of(fold, units):
    return np.concatenate([fold.screen.units[u].cells for u in units])


@pytest.mark.parametrize("split", ["perturbation", "context", "combination"])
def test_response_predictors_know_nothing_of_test_units_nor_of_reference_controls(run, screen, split):
    fold = fold_run(screen, run, split=split, **TAUGHT)
    hidden = np.concatenate([cells_of(fold, fold.fold.test), np.flatnonzero(fold.lesson.halving.reference)])
    other = fold_run(garbage(screen, hidden), run, split=split, **TAUGHT)
    before, after = lesson_seen(fold), lesson_seen(other)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert set(same(predictions(fold), predictions(other)).values()) == {True}
    for question, changed in zip(fold.questions, other.questions, strict=True):
        assert not np.allclose(question.truth.control, changed.truth.control)
        assert not np.allclose(question.truth.perturbed, changed.truth.perturbed)


@pytest.mark.parametrize("known", ["treated cells of training units", "input controls"])
def test_response_predictors_learn_from_training_units_and_input_controls(run, screen, known):
    fold = fold_run(screen, run, **TAUGHT)
    inputs = np.flatnonzero(fold.lesson.halving.inputs)
    cells = inputs if known == "input controls" else cells_of(fold, fold.fold.train)
    other = fold_run(garbage(screen, cells), run, **TAUGHT)
    expected = dict.fromkeys((*RESPONSE, ARM), False) | {"no change": True}
    assert same(predictions(fold), predictions(other)) == expected


def test_a_share_of_the_training_units_leaves_nothing_of_the_others(run, rng):
    screen = small_screen(rng, conditions=tuple("ABCDEFGH"), genes=G)
    fold = fold_run(screen, run, share=0.3, **TAUGHT)
    left_out = np.setdiff1d(np.arange(8), np.concatenate([fold.fold.train, fold.fold.test]))
    assert len(left_out) > 2
    other = fold_run(garbage(screen, cells_of(fold, left_out)), run, share=0.3, **TAUGHT)
    assert set(same(predictions(fold), predictions(other)).values()) == {True}


def test_units_that_are_not_trained_on_have_no_delta(screen):
    fold = fold_run(screen)
    assert np.isnan(fold.fold.delta[fold.fold.test]).all()
    assert np.isfinite(fold.fold.delta[fold.fold.train]).all()


def partial(screen, run, **options):
    return fold_run(screen, run, task="partial", **({"revealed": (0.1,)} | TAUGHT | options))


def half_cells(fold, half):
    halves = (fold.lesson.halving.first, fold.lesson.halving.second)[half]
    return np.concatenate([halves[u] for u in fold.fold.test])


@pytest.mark.parametrize("target", [0, 1], ids=["first half as target", "second half as target"])
def test_partial_predictors_know_nothing_of_the_target_half(run, screen, target):
    fold = partial(screen, run)
    hidden = np.concatenate([half_cells(fold, target), np.flatnonzero(fold.lesson.halving.reference)])
    other = partial(garbage(screen, hidden), run)
    before, after = predictions(fold), predictions(other)
    for name in before:
        np.testing.assert_array_equal(before[name][target], after[name][target], err_msg=name)
    moved = {name for name in before if not np.array_equal(before[name][1 - target], after[name][1 - target])}
    assert moved >= {"Gaussian conditional", ARM}  # there, the same half is the visible one
    assert not np.allclose(fold.questions[target].truth.control, other.questions[target].truth.control)


def test_partial_predictors_know_of_the_visible_half_what_is_revealed(run, screen):
    fold = partial(screen, run)
    panel = fold.questions[0].panels[2]
    hidden = np.setdiff1d(np.arange(G), panel.revealed)
    test = cells_of(fold, fold.fold.test)
    before = predictions(fold)
    after = predictions(partial(garbage(screen, test, hidden), run))
    assert set(same(before, after, np.s_[:, panel.scored]).values()) == {True}
    others = np.setdiff1d(np.arange(G), panel.scored)
    assert not same(before, after, np.s_[:, others])[ARM]
    shown = same(before, predictions(partial(garbage(screen, test, panel.revealed), run)), np.s_[:, panel.scored])
    assert {name for name, still in shown.items() if not still} >= {"Gaussian conditional", ARM}


@pytest.mark.parametrize("level", ["pseudobulk", "cell"])
def test_nothing_revealed_is_nothing_known(run, screen, level):
    fold = partial(screen, run, revealed=(0.0,), level=level)
    test = cells_of(fold, fold.fold.test)
    other = partial(garbage(screen, test), run, revealed=(0.0,), level=level)
    assert set(same(predictions(fold), predictions(other)).values()) == {True}


def test_a_fixed_panel_is_all_that_predictors_see(run, screen, tmp_path):
    (tmp_path / "panel").write_text("GENE2\nGENE7\nGENE11\n")
    options = {"panel": str(tmp_path / "panel")}
    fold = partial(screen, run, **options)
    test, revealed = cells_of(fold, fold.fold.test), np.array([2, 7, 11])
    hidden = np.setdiff1d(np.arange(G), revealed)
    before = predictions(fold)
    after = predictions(partial(garbage(screen, test, hidden), run, **options))
    assert set(same(before, after).values()) == {True}
    assert all(np.isnan(delta[:, revealed]).all() for found in before.values() for delta in found)
    assert all(np.isfinite(delta[:, hidden]).all() for found in before.values() for delta in found)
    assert not same(before, predictions(partial(garbage(screen, test, revealed), run, **options)))[ARM]


def test_predictors_of_cells_know_of_the_shown_counts_what_is_revealed(run, screen, monkeypatch):
    fold = partial(screen, run, level="cell")
    (question,) = fold.questions
    panel = question.panels[1]
    test, reference = cells_of(fold, fold.fold.test), fold.lesson.halving.reference

    def changed(of_shown, of_target):
        """The job with these (cells, genes) of either count half set to other values."""

        def halves(some, seed):
            found = [half.tolil() for half in count_halves(some, seed)]
            for half, (cells, genes) in zip(found, (of_shown, of_target), strict=True):
                half[np.ix_(cells, genes)] = np.random.default_rng(5).uniform(1, 5, (len(cells), len(genes)))
            return tuple(half.tocsr() for half in found)

        monkeypatch.setattr(perturb_fold, "count_halves", halves)
        return predictions(partial(screen, run, level="cell"))

    before = predictions(fold)
    everything, nobody = np.arange(G), np.zeros(0, np.int64)
    outside = np.concatenate([test, np.flatnonzero(reference)])
    hidden = np.setdiff1d(everything, panel.revealed)
    kept = changed((np.flatnonzero(reference), everything), (outside, everything))
    assert set(same(before, kept).values()) == {True}
    kept = changed((test, hidden), (outside, everything))
    assert set(same(before, kept, np.s_[:, panel.scored]).values()) == {True}
    shown = same(before, changed((test, panel.revealed), (nobody, everything)), np.s_[:, panel.scored])
    assert not any(shown[name] for name in ("Gaussian conditional", ARM))


def test_the_truth_is_the_target_half_against_the_reference_and_against_the_mean(screen):
    fold = fold_run(screen)
    dense, halving = dense_values(screen), fold.lesson.halving
    assert [question.revealed for question in fold.questions] == [None, None]
    reference_deltas = []
    for u in fold.fold.train:
        context = halving.reference & (screen.stratum == screen.units[u].context)
        reference_deltas.append(dense[screen.units[u].cells].mean(0) - dense[context].mean(0))
    for target, question in enumerate(fold.questions):
        for row, u in enumerate(fold.fold.test):
            context = screen.stratum == screen.units[u].context
            inputs, reference = (dense[side & context] for side in (halving.inputs, halving.reference))
            halves = [dense[half[u]] for half in (halving.first, halving.second)]
            profile, visible = halves[target].mean(0), halves[1 - target].mean(0)
            truth = question.truth
            np.testing.assert_allclose(truth.control[row], profile - reference.mean(0), atol=1e-12)
            rest = profile - reference.mean(0) - np.mean(reference_deltas, 0)
            np.testing.assert_allclose(truth.perturbed[row], rest, atol=1e-12)
            np.testing.assert_allclose(truth.candidates[u], truth.control[row], atol=1e-12)
            np.testing.assert_allclose(question.ceiling[row], visible - inputs.mean(0), atol=1e-12)
            parts = (own.var(0, ddof=1) / len(own) for own in (halves[target], reference))
            np.testing.assert_allclose(truth.se[row] ** 2, sum(parts), atol=1e-12)
            assert truth.own[row] == u


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 1), ({"task": "partial"}, 2), ({"task": "partial", "level": "cell"}, 2)],
    ids=["response", "partial", "partial of cells"],
)
def test_every_predictor_has_a_score_of_every_test_unit(run, screen, options, rows):
    fold = fold_run(screen, run, arms=("scratch",), revealed=(0.0, 0.5), seed=1, **options)
    scores = list(fold.scores(CPU))
    baselines = PARTIAL if options else RESPONSE
    assert {s.predictor for s in scores} == {*baselines, CEILING, "scratch"}
    assert len(scores) == (len(baselines) + 2) * len(fold.fold.test) * rows
    assert {s.unit for s in scores} == set(fold.fold.test)
    assert all(set(s.metrics) == set(METRICS) and np.isfinite(list(s.metrics.values())).all() for s in scores)
    assert [row["arm"] for row in fold.trained] == ["scratch"]


def test_one_unit_and_its_truth_score_the_best(screen):
    fold = fold_run(screen)
    truths = [question.truth.perturbed + fold.lesson.mean for question in fold.questions]
    for score in fold._score("truth", truths):
        assert score.metrics["delta_r_perturbed"] == pytest.approx(1)
        assert score.metrics["delta_r"] < 1 - 1e-6  # the controls are others
    for score in fold._score("mean", [np.tile(fold.lesson.mean, (len(fold.fold.test), 1))] * 2):
        assert score.metrics["delta_r_perturbed"] == 0


def test_a_job_is_a_function_of_its_seeds_and_of_no_other_arm(run, screen):
    one, again, other = (fold_run(screen, run, seed=seed) for seed in (0, 0, 1))
    first = one.arm("scratch", CPU)
    again.arm("pretrained", CPU)
    np.testing.assert_array_equal(again.arm("scratch", CPU)[0], first[0])
    assert not np.array_equal(one.fold.test, other.fold.test)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        pytest.param(None, ConfigError, "cannot be read .*; give one gene a line", id="no file"),
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
