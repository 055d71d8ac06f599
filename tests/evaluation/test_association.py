"""Rows that know other cells: planted offsets of groups are found, hidden values do not leak, noise gives nothing."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from sckit.config import EvalConfig, PretrainConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.labels import Labels
from sckit.errors import ConfigError
from sckit.evaluation.association import ASSOCIATION_ROWS, Association, group_codes
from sckit.evaluation.evaluate import evaluate
from sckit.evaluation.other_cells import Neighbours, Shown, fit_group_offsets, fit_weights, shown
from sckit.evaluation.rows import best_baselines, best_of, information
from sckit.model.offset_fit import fit_offset_forms
from sckit.model.regression import TrainingCells
from sckit.training.pretrain import pretrain

GENES, TRAINING, VALIDATION, SCORED = 40, 300, 100, 300
ALL = TRAINING + VALIDATION + SCORED
BASE = "value offset ridge"


class Counts:
    """Counts [cells, genes] with totals that do not change when counts are changed."""

    def __init__(self, counts, totals):
        self.counts, self._totals = counts, totals

    def rows(self, cells):
        matrix = sp.csr_array(self.counts[cells])
        return matrix.indptr, matrix.indices, matrix.data

    def totals(self, cells):
        return self._totals[cells]


class World:
    """Training cells, then validation cells, then cells to score; each of these has six groups with planted offsets."""

    def __init__(self, seed):
        generator = np.random.default_rng(seed)
        self.groups = np.arange(ALL) % 6
        self.offsets = generator.normal(0, 0.4, (6, GENES))
        self.offsets[:, ::2] = 0
        self.offsets -= self.offsets.mean(0)
        kind, profile = generator.integers(3, size=ALL), generator.gamma(3.0, 4.0, (3, GENES))
        depth = np.exp(generator.normal(0, 0.3, ALL))
        rates = profile[kind] * depth[:, None] * np.exp(self.offsets[self.groups])
        rates[:TRAINING] = (profile[kind] * depth[:, None])[:TRAINING]
        totals = np.full(ALL, 2000) * depth
        self.view = Counts(generator.poisson(rates), np.rint(totals).astype(np.int64))
        training = TrainingCells(self.view, self.vocabulary, np.arange(TRAINING))
        self.forms = fit_offset_forms(training, components=2, penalty=10.0, count_penalty=30.0, factors=1)

    vocabulary = np.arange(GENES, dtype=np.int32)
    validation, scored = np.arange(TRAINING, TRAINING + VALIDATION), np.arange(ALL - SCORED, ALL)

    def batches(self, cells, rate=0.15, *, counts=None, epoch=0):
        view = self.view if counts is None else Counts(counts, self.view.totals(np.arange(ALL)))
        packer = Packer(view, self.vocabulary, Hiding(rate, epoch=epoch), known_depth=True)
        return lambda: iter([packer(part) for part in np.array_split(cells, 3)])

    def association(self, *, groups=None, neighbours=0, rate=0.15, with_offsets=True):
        pool = shown(self.forms, self.batches(np.arange(TRAINING), 1e-12)()) if neighbours else None
        codes = self.groups if groups is None else groups
        made = Association(self.forms, codes=codes, with_offsets=with_offsets, neighbours=neighbours, training=pool)
        made.fit(self.batches(self.validation, rate, epoch=1))
        return made

    def rows(self, association, **how):
        batches = self.batches(self.scored, **how)
        added = association.over(batches)
        parts = []
        for batch in batches():
            plain = self.forms.predict(batch)
            plain |= {"model/detected": plain[BASE] - 0.1}
            parts.append({"truth": batch.truth.astype(float)} | plain | added(batch, plain))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def world():
    return World(3)


def error(rows, name):
    return float(((rows[name] - rows["truth"]) ** 2).mean())


def test_planted_offsets_are_found(world):
    cells = shown(world.forms, world.batches(world.scored)())
    found = fit_group_offsets(cells, world.groups, world.forms.mean_count)
    planted, unplanted = world.offsets[:, 1::2], found.table[:, ::2]
    off = found.table[:, 1::2] - planted
    assert np.sqrt((off**2).mean()) < 0.4 * planted.std()
    assert np.corrcoef(found.table[:, 1::2].ravel(), planted.ravel())[0, 1] > 0.93
    assert unplanted.std() < 0.3 * planted.std()


def test_offsets_lower_the_error_and_permuted_groups_do_not(world, rng):
    rows = world.rows(world.association())
    names = ("detection + total offset ridge", BASE, "count regression")
    for name in names:
        assert error(rows, f"{name} + group offsets") < 0.97 * error(rows, name)
    assert error(rows, "model + group offsets/detected") < error(rows, "model/detected")
    permuted = world.rows(world.association(groups=rng.permutation(world.groups)))
    for name in names:
        assert error(permuted, f"{name} + group offsets") == pytest.approx(error(permuted, name), rel=0.02)


def test_hidden_values_do_not_leak_and_visible_ones_of_other_cells_count(world, rng):
    association = world.association(neighbours=10)
    rows = world.rows(association)
    hidden, visible = world.view.counts.copy(), world.view.counts.copy()
    for batch in world.batches(world.scored)():
        at = batch.cells[batch.target_cells], batch.genes[batch.targets]
        hidden[at] += rng.integers(1, 50, len(batch.targets))
        seen = np.flatnonzero(~batch.hidden)
        visible[batch.cells[batch.cell_of_token[seen]], batch.genes[seen]] += 20
    changed = world.rows(association, counts=hidden)
    assert not np.array_equal(changed["truth"], rows["truth"])
    moved = world.rows(association, counts=visible)
    for name in ("model + group offsets/detected", *ASSOCIATION_ROWS):
        np.testing.assert_array_equal(changed[name], rows[name])
        assert not np.allclose(moved[name] - moved.get("truth"), rows[name] - rows["truth"])


def test_a_visible_value_of_another_cell_moves_only_its_group(world):
    """The gene of a target is raised wherever other cells of one group show it."""
    association = world.association()
    gene, counts = 7, world.view.counts.copy()
    rows = world.rows(association)
    for batch in world.batches(world.scored)():
        seen = np.flatnonzero(~batch.hidden & (batch.genes == gene))
        cells = batch.cells[batch.cell_of_token[seen]]
        counts[cells[world.groups[cells] == 2], gene] += 30
    moved = world.rows(association, counts=counts)
    targets = [(batch.cells[batch.target_cells], batch.genes[batch.targets]) for batch in world.batches(world.scored)()]
    cells, genes = map(np.concatenate, zip(*targets, strict=True))
    shift = (
        moved["detection + total offset ridge + group offsets"] - rows["detection + total offset ridge + group offsets"]
    )
    assert shift[(genes == gene) & (world.groups[cells] == 2)].min() > 0.2
    assert np.abs(shift[(genes != gene) & (world.groups[cells] != 2)]).max() < 0.05


def test_everything_hidden_leaves_nothing_of_offsets(world):
    rows = world.rows(world.association(rate=1.0), rate=1.0)
    for name in ("detection + total offset ridge", BASE, "count regression"):
        np.testing.assert_array_equal(rows[f"{name} + group offsets"], rows[name])
    np.testing.assert_array_equal(rows["model + group offsets/detected"], rows["model/detected"])


def test_noise_is_shrunk_to_nothing_and_a_lone_cell_has_no_offset(rng):
    left = sp.csr_array(rng.normal(size=(400, GENES)).astype(np.float32))
    cells = Shown(np.arange(400), np.zeros((400, 1), np.float32), left)
    means = np.full(GENES, 1.05)
    noise = fit_group_offsets(cells, np.arange(400) % 8, means)
    assert noise.kappa[0] > 300
    assert noise.table.std() < 0.2 * np.sqrt(8 / 400)
    shifted = Shown(cells.cells, cells.components, sp.csr_array(left.toarray() + np.arange(400)[:, None] % 2))
    codes = np.where(np.arange(400) < 10, -1, np.arange(400) % 2)
    found = fit_group_offsets(shifted, codes, means)
    assert found.of(np.arange(9, 12), np.zeros(3, int))[[0, 2]] == pytest.approx([0, 1], abs=0.2)
    # The only cell of a group shows other genes than those that are hidden in it.
    lone = np.concatenate([np.zeros(399, int), [1]])
    hidden = left.toarray()
    hidden[399, :5] = 0
    assert (
        not fit_group_offsets(Shown(cells.cells, cells.components, sp.csr_array(hidden)), lone, means)
        .table[1, :5]
        .any()
    )


def test_neighbours_are_the_nearest_other_cells_of_other_groups(rng):
    components = rng.normal(size=(60, 3)).astype(np.float32)
    pool = Shown(np.arange(60), components, sp.csr_array(np.ones((60, GENES), np.float32)))
    groups = np.arange(60) % 3
    distance = np.linalg.norm(components[:, None] - components, axis=2)
    np.fill_diagonal(distance, np.inf)
    found = Neighbours(pool, 5).find(np.arange(60), components).toarray() > 0
    np.testing.assert_array_equal(np.sort(np.argsort(distance)[:, :5]), np.nonzero(found)[1].reshape(60, 5))
    distance[groups[:, None] == groups] = np.inf
    other = Neighbours(pool, 5, groups=groups).find(np.arange(60), components).toarray() > 0
    np.testing.assert_array_equal(np.sort(np.argsort(distance)[:, :5]), np.nonzero(other)[1].reshape(60, 5))
    few = Neighbours(pool, 100, groups=np.minimum(np.arange(60), 1)).find(np.array([0, 1]), components[:2])
    assert few.sum(1).tolist() == [59, 1]


def test_weights_find_how_much_neighbours_say(rng):
    counts = rng.integers(1, 20, 20_000)
    truth = rng.normal(0, 0.5, 20_000)
    sums = counts * truth + rng.normal(0, 1.5, 20_000) * np.sqrt(counts)
    left = truth + rng.normal(0, 1, 20_000)
    fitted = fit_weights(left, sums, counts, np.full(20_000, 1.5))
    assert fitted.kappa[2] in (3.0, 10.0, 30.0)  # the noise over the variance of the truth is 9
    added = fitted(sums, counts, np.full(20_000, 1.5))
    assert ((left - added) ** 2).mean() < 0.92 * (left**2).mean()
    assert not fit_weights(-left, sums, counts, np.full(20_000, 1.5)).weight.any()


def test_a_row_is_compared_with_baselines_that_know_no_more():
    errors = {
        "gene mean": 9.0, "label + depth": 4.0, "visible offset ridge": 6.0, BASE: 5.0, f"{BASE} + group offsets": 3.0,
        f"{BASE} + neighbours": 2.0, f"{BASE} + group offsets + neighbours": 1.0,
    }  # fmt: skip
    assert best_baselines(errors) == {"detected": BASE, "visible": "visible offset ridge"}
    assert best_of("model/detected", errors) == BASE
    assert best_of("model/visible", errors) == "visible offset ridge"
    assert best_of("gene mean", errors) == BASE
    assert best_of("replicate", errors) == BASE
    assert best_of("model/detected", errors, frozenset({"neighbours"})) == f"{BASE} + neighbours"
    assert best_of("model + group offsets/detected", errors) == f"{BASE} + group offsets"
    assert best_of(f"{BASE} + neighbours", errors) == f"{BASE} + neighbours"
    assert best_of(f"{BASE} + group offsets + neighbours", errors) == f"{BASE} + group offsets + neighbours"
    assert information(f"{BASE} + neighbours of other groups") == {"detected", "neighbours"}


def test_a_column_of_too_many_groups_is_one_sentence():
    values = np.array([f"cell{i}" for i in range(501)])
    with pytest.raises(ConfigError, match="--offset-group name has 501 values"):
        group_codes(Labels.of(values), "name")
    np.testing.assert_array_equal(group_codes(Labels.of(np.array(["b", "", "a", "b"])), None), [1, -1, 0, 1])


def test_an_evaluation_has_the_rows_and_says_what_carries_the_gain(simulated, tmp_path):
    config = PretrainConfig(
        steps=1, batch_tokens=2000, components=2, factors=1, group="dataset", hold_out=("run1",),
        correction_steps=30,
    )  # fmt: skip
    run = pretrain(simulated.path, config, runs=tmp_path, name="run").run
    asked = EvalConfig(
        masks=(0.15, 1.0), offset_group="dataset", neighbours=5, components=2, penalty=30.0, bootstraps=20,
    )  # fmt: skip
    found = evaluate(run, asked)
    table = found.table.set_index(["rate", "predictor"])
    for name in ("model + group offsets", *ASSOCIATION_ROWS):
        assert np.isfinite(table.loc[(0.15, name), "r2_gene_mean"])
    for name in (BASE, "model"):
        assert table.loc[(1.0, name), "r2_gene_mean"] == table.loc[(1.0, f"{name} + group offsets"), "r2_gene_mean"]
    assert "group" not in table.loc[(0.15, "model"), "minus_best_predictor"]
    text = "\n".join(found.notes)
    assert "15% hidden, full depth: group offsets of one group: kappa" in text
    assert text.count("only one group is scored: its offsets also hold what any new group has") == 1
    assert "with group offsets, " in text
    assert "--neighbours" not in text
    more = "\n".join(evaluate(run, replace(asked, neighbours=1000)).notes)
    assert "--neighbours 1000 is more than there are: the 332 other cells are all neighbours of each cell" in more
    assert "100% hidden, full depth: nothing that is visible tells groups apart" in text
