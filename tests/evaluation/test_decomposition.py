import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from sckit.config import EvalConfig, PretrainConfig, SimulateConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.labels import Labels
from sckit.data.simulate import simulate
from sckit.evaluation.decomposition import REST, STEP, fit_steps, parts
from sckit.evaluation.evaluate import evaluate
from sckit.evaluation.gains import GeneGains
from sckit.model.offset_fit import fit_offset_forms
from sckit.model.regression import TrainingCells
from sckit.training.pretrain import pretrain

CELLS, GENES = 600, 60


class Counts:
    """A view of dense counts."""

    def __init__(self, counts):
        self.counts = sp.csr_array(counts)
        self.sizes = counts.sum(1)

    def rows(self, cells):
        chosen = self.counts[cells]
        return chosen.indptr.astype(np.int64), chosen.indices.astype(np.int32), chosen.data.astype(np.int64)

    def totals(self, cells):
        return self.sizes[cells]


def world(seed, effect):
    """Poisson counts of two types of cells, whose genes differ by exp(effect times a normal number)."""
    generator = np.random.default_rng(seed)
    kind = np.arange(CELLS) % 2
    level = generator.gamma(0.8, size=GENES) + 0.1
    profile = level * np.exp(effect * kind[:, None] * generator.standard_normal(GENES))
    depth = np.exp(generator.normal(5.0, 0.5, CELLS))
    counts = generator.poisson(profile / profile.sum(1, keepdims=True) * depth[:, None])
    return Counts(counts), Labels.of(np.char.add("type", kind.astype(str)))


def errors_of(view, labels, cells, rate=0.15, *, guess=False):
    """Squared errors of the gene mean and of each step on `cells`, fitted on the first 400 cells."""
    vocabulary = np.arange(GENES, dtype=np.int32)
    training = TrainingCells(view, vocabulary, np.arange(400))
    offsets = fit_offset_forms(training, components=3, penalty=10.0, count_penalty=10.0, factors=2)
    steps = fit_steps(training, offsets, labels, guess=guess)
    batch = Packer(view, vocabulary, Hiding(rate), known_depth=not guess)(cells)
    truth, genes = batch.truth.astype(float), batch.genes[batch.targets]
    predicted = {"gene mean": offsets.gene_mean[genes]} | steps.predict(batch)
    return {name.removeprefix(STEP): ((truth - row) ** 2).sum() for name, row in predicted.items()}, offsets, batch


def test_parts_add_up_to_one_and_are_what_each_error_leaves_of_the_last():
    found = parts(np.array([[10.0, 6.0, 7.0, 2.0], [4.0, 4.0, 1.0, 0.5]]))
    np.testing.assert_allclose(found, [[0.4, -0.1, 0.5, 0.2], [0.0, 0.75, 0.125, 0.125]])
    np.testing.assert_allclose(found.sum(1), 1)


@pytest.mark.parametrize("seed", range(3))
def test_nested_steps_do_not_get_worse_on_the_cells_they_are_fitted_on(seed):
    view, labels = world(seed, 1.0)
    errors, _, _ = errors_of(view, labels, np.arange(400), rate=1.0)
    values = [errors[name] for name in ("normaliser", "depth", "label", "detection")]
    assert list(errors) == ["gene mean", "normaliser", "depth", "label", "detection", "visible values"]
    assert all(after <= before * (1 + 1e-3) for before, after in itertools.pairwise(values))
    assert errors["visible values"] == pytest.approx(errors["detection"])  # no value is visible


@pytest.mark.parametrize("seed", range(3))
def test_where_only_depth_matters_nothing_is_left_for_later_steps(seed):
    view, labels = world(seed, 0.0)
    errors, _, _ = errors_of(view, labels, np.arange(400, CELLS))
    share = parts(np.array([*errors.values(), 0.0]))[:-1]
    names = dict(zip(list(errors)[1:], share, strict=False))
    later = [abs(names[name]) for name in ("label", "detection", "visible values")]
    assert max(later) < 0.02
    assert names["normaliser"] + names["depth"] > 5 * max(later)


def test_labels_explain_where_types_differ_and_leave_less_for_the_detection_set():
    view, labels = world(0, 1.0)
    with_labels, _, _ = errors_of(view, labels, np.arange(400, CELLS))
    without, _, _ = errors_of(view, None, np.arange(400, CELLS))
    assert "label" not in without
    of_label = (with_labels["depth"] - with_labels["label"]) / with_labels["gene mean"]
    left_for_detection = (with_labels["label"] - with_labels["detection"]) / with_labels["gene mean"]
    assert of_label > 0.05
    assert left_for_detection < (without["depth"] - without["detection"]) / without["gene mean"]


def test_without_labels_the_steps_are_the_offset_rows():
    view, _ = world(1, 1.0)
    errors, offsets, batch = errors_of(view, None, np.arange(400, CELLS))
    rows, truth = offsets.predict(batch), batch.truth.astype(float)
    for step, row in (("detection", "detection + total offset ridge"), ("visible values", "value offset ridge")):
        assert errors[step] == pytest.approx(((truth - rows[row]) ** 2).sum(), rel=1e-9)


def test_a_guessed_total_is_used_in_the_fit_too():
    view, labels = world(2, 0.0)
    known, _, _ = errors_of(view, labels, np.arange(400, CELLS), rate=1.0)
    guessed, offsets, batch = errors_of(view, labels, np.arange(400, CELLS), rate=1.0, guess=True)
    row = offsets.predict(batch)["detection offset ridge"]
    own = ((batch.truth - row) ** 2).sum()
    assert known["depth"] < guessed["depth"]
    assert guessed["detection"] == pytest.approx(own, rel=0.02)


def test_the_gain_of_a_gene_comes_from_the_gene_that_shares_its_factor():
    view, _ = world(0, 0.0)
    offsets = fit_offset_forms(
        TrainingCells(view, np.arange(GENES, dtype=np.int32), np.arange(400)),
        components=2, penalty=10.0, count_penalty=10.0, factors=1,
    )  # fmt: skip
    offsets.loadings[:] = 0
    offsets.loadings[[4, 9, 20]] = [[1.0], [2.0], [0.5]]
    offsets.noise[:] = 1.0
    gains = GeneGains(np.array([f"G{i}" for i in range(GENES)]), offsets, np.full(GENES, 0.5))
    found, shares = gains.sources(np.array([4]), 0.2)
    assert list(found[0, :2]) == [9, 20]
    assert shares[0, 0] == pytest.approx(4 / 4.25)


@pytest.fixture(scope="module")
def evaluation(simulated, tmp_path_factory):
    config = PretrainConfig(epochs=1, batch_tokens=2000, components=3, factors=2, correction_steps=30)
    run = pretrain(simulated.path, config, runs=tmp_path_factory.mktemp("runs"), name="run").run
    config = EvalConfig(masks=(0.15,), decompose=True, label="cell_type", bootstraps=50)
    return evaluate(run, config)


def test_every_part_of_the_entries_is_decomposed_into_the_same_steps(evaluation):
    table = evaluation.decomposition.table
    steps = ["normaliser", "depth", "label", "detection", "visible values", "network", *REST]
    for (kind, part), rows in table.groupby(["kind", "part"]):
        assert list(rows["step"]) == steps
        for measure in ("r2", "deviance"):
            assert rows[measure].sum() == pytest.approx(1, abs=1e-9), (kind, part)
    whole = table[table["kind"] == "all"]
    assert (whole["r2_low"] <= whole["r2"]).all()
    assert (whole["r2"] <= whole["r2_high"]).all()


def test_strata_and_thirds_hold_every_entry_once(evaluation):
    table = evaluation.decomposition.table
    shares = table[table["step"] == "depth"].groupby("kind")["entries"].sum()
    np.testing.assert_allclose(shares[["all", "mean count", "depth"]], 1)


def test_the_sum_of_the_steps_is_the_score_of_the_last_row(evaluation):
    table, document = evaluation.decomposition.table, evaluation.document()
    whole = table[(table["kind"] == "all") & ~table["step"].isin(REST)]
    (model,) = [row for row in document["rows"] if row["predictor"] == "model"]
    assert whole["r2"].sum() == pytest.approx(model["r2_gene_mean"], abs=1e-9)
    assert document["decomposition"]["total"] == "read off the visible values"
    assert {"step", "r2", "r2_ci", "deviance", "deviance_ci"} < set(document["decomposition"]["parts"][0])


def test_the_rows_of_the_table_are_not_those_of_the_steps(evaluation):
    assert not [row for row in evaluation.rows if row["predictor"].startswith(STEP)]


@pytest.fixture(scope="module")
def of_libraries(tmp_path_factory):
    """Counts of four libraries that differ, and a run on three of them whose network was hardly trained."""
    folder = tmp_path_factory.mktemp("libraries")
    simulate(SimulateConfig(cells=500, genes=400, libraries=4, types=2), folder / "known.sckit")
    config = PretrainConfig(
        steps=1, correction_steps=0, batch_tokens=2000, components=3, factors=2, group="library",
        lr=1e-9,
    )  # fmt: skip
    return pretrain(folder / "known.sckit", config, runs=folder, name="run").run


def test_the_network_step_knows_the_group_offsets_that_the_step_above_it_knows(of_libraries):
    config = EvalConfig(masks=(0.15,), decompose=True, offset_group="library", bootstraps=20)
    found = evaluate(of_libraries, config).decomposition.table
    part = found[found["kind"] == "all"].set_index("step")["r2"]
    assert part["group offsets"] > 0.01
    assert abs(part["network"]) < 1e-4  # the start of the model is the row that the step above it is


def test_sampling_noise_does_not_depend_on_which_rows_are_asked_for(of_libraries):
    def found(**more):
        config = EvalConfig(masks=(0.15,), decompose=True, bootstraps=2, **more)
        return evaluate(of_libraries, config).decomposition

    one, two = found(), found(offset_group="library", neighbours=10)
    assert one.floor_of == two.floor_of == "value offset ridge"
    noise = [each.table[each.table["step"] == REST[1]]["r2"].to_numpy() for each in (one, two)]
    np.testing.assert_array_equal(*noise)
