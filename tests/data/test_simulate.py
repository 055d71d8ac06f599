"""Simulated data are what their truth says, entry by entry, and are read like any other input."""

from dataclasses import replace

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

import sckit
from sckit.config import SimulateConfig
from sckit.data.simulate import draw_truth, read_truth, simulate, truth_path, write_simulation
from sckit.data.simulate.law import SPREAD
from sckit.data.simulate.truth import CELLS_PER_BLOCK
from sckit.data.simulate.world import REGULATOR_SPREAD
from sckit.data.store import open_store
from sckit.errors import ConfigError, DataError

SMALL = SimulateConfig(cells=240, genes=300, depth=600, programmes=4, seed=3)
ALL = replace(SMALL, interactions=0.8, network=True, perturbations=5, perturbation_cells=20, dispersion=0.2)


def counts_of(truth, cells=None, cells_per_block=64):
    if cells is not None:
        return np.array([truth.counts(cell) for cell in cells])
    blocks = [sp.csr_array((c, g, p), (len(p) - 1, truth.config.genes)) for p, g, c in truth.blocks(cells_per_block)]
    return sp.vstack(blocks).toarray()


def moved_by(truth, cells, **without):
    """Log rate that a part of the world adds, up to one number per cell."""
    bare = replace(truth, world=replace(truth.world, **without))
    moved = np.log(truth.rates(cells)) - np.log(bare.rates(cells))
    return moved - np.median(moved, axis=1, keepdims=True)


def test_the_same_config_gives_the_same_counts_and_another_seed_gives_others():
    first, second = draw_truth(ALL), draw_truth(ALL)
    np.testing.assert_array_equal(counts_of(first), counts_of(second))
    assert (counts_of(draw_truth(replace(ALL, seed=4))) != counts_of(first)).mean() > 0.1


def test_counts_and_rates_of_a_cell_do_not_depend_on_the_cells_around_it():
    truth = draw_truth(ALL)
    whole = counts_of(truth, cells_per_block=1000)
    np.testing.assert_array_equal(counts_of(truth, cells_per_block=7), whole)
    np.testing.assert_array_equal(counts_of(truth, [200, 3]), whole[[200, 3]])
    np.testing.assert_array_equal(truth.rates([200, 3]), truth.rates(range(240))[[200, 3]])
    assert truth.rates([]).shape == (0, 300)


def test_structure_that_is_asked_for_does_not_move_the_rest_of_the_world():
    plain, rich = draw_truth(SMALL), draw_truth(ALL)
    for name in ("log_share", "type_profile", "library_offset", "programme", "loading", "links"):
        np.testing.assert_array_equal(getattr(plain.world, name), getattr(rich.world, name))


def test_rates_are_those_of_the_law_in_the_documentation():
    truth = draw_truth(replace(SMALL, perturbations=5, perturbation_cells=20))
    world, cells = truth.world, truth.cells
    for c in range(0, 240, 7):
        log_rate = np.zeros(300)
        for g in range(300):
            log_rate[g] = world.log_share[g] + world.type_profile[cells.cell_type[c], g]
            log_rate[g] += world.library_offset[cells.library[c], g]
            log_rate[g] += world.loading[g] * cells.activity[c, world.programme[g]]
            log_rate[g] += world.effects[cells.perturbation[c], g] if cells.perturbation[c] >= 0 else 0
        share = np.exp(log_rate) / np.exp(log_rate).sum()
        np.testing.assert_allclose(truth.rates([c])[0], cells.depth[c] * share, rtol=1e-10)
    depth = np.log(cells.depth) - world.library_depth[cells.library]
    assert depth.mean() == pytest.approx(np.log(600), abs=5 * 0.4 / np.sqrt(240))
    assert depth.std() == pytest.approx(0.4, rel=0.25)
    assert cells.activity.std() == pytest.approx(0.6, rel=0.1)
    assert np.exp(world.log_share).sum() == pytest.approx(1)


@pytest.mark.parametrize("config", [SMALL, replace(ALL, dispersion=0.0)], ids=["plain", "all"])
def test_poisson_counts_are_as_far_from_their_rates_as_poisson_counts_are(config):
    """72,000 entries: Pearson's statistic is their number within five standard errors, in parts of any rate too."""
    truth = draw_truth(config)
    rates, counts = truth.rates(range(240)), counts_of(truth)
    np.testing.assert_allclose(rates.sum(1), truth.cells.depth, rtol=1e-12)
    for low, high in ((0, 0.1), (0.1, 1), (1, 10), (10, np.inf)):
        of_part = (rates >= low) & (rates < high)
        rate, count = rates[of_part], counts[of_part]
        assert of_part.sum() > 500
        assert abs((count - rate).sum()) < 5 * np.sqrt(rate.sum())
        # For Poisson counts, the variance of (count - rate)^2 / rate is 2 + 1 / rate.
        square = (count - rate) ** 2 / rate
        assert abs((square - 1).sum()) < 5 * np.sqrt((2 + 1 / rate).sum())


def test_negative_binomial_counts_have_the_variance_that_the_dispersion_says():
    """As above, with variance rate + PHI rate^2; entries are many and the tail is short at this dispersion."""
    truth = draw_truth(ALL)
    rates, counts = truth.rates(range(240)), counts_of(truth)
    variance = rates + 0.2 * rates**2
    assert abs((counts - rates).sum()) < 5 * np.sqrt(variance.sum())
    high = rates > 5
    assert ((counts - rates) ** 2 / variance)[high].mean() == pytest.approx(1, abs=0.15)
    assert ((counts - rates) ** 2 / rates)[high].mean() > 2


def test_counts_are_as_sparse_as_those_of_blood_cells():
    """A 10x data set of 2,700 blood cells: 2,196 counts, 816 detected genes, 70 % of the entries a count of one."""
    truth = draw_truth(SimulateConfig(cells=300))
    counts = counts_of(truth)
    assert 2000 < np.median(counts.sum(1)) < 2600
    assert 700 < np.median((counts > 0).sum(1)) < 950
    assert 0.6 < (counts == 1).sum() / (counts > 0).sum() < 0.72
    share = np.sort(counts.sum(0))[::-1] / counts.sum()
    assert 0.4 < share[:100].sum() < 0.6
    assert 2000 < (truth.world.type_profile != 0).any(0).sum() < 6000
    assert np.abs(truth.world.library_offset).std() > 0.1
    assert set(truth.cells.library) == {0, 1, 2, 3}
    assert set(truth.cells.cell_type) == set(range(6))


def test_interactions_move_their_genes_and_are_unknown_to_a_linear_model_of_the_activities():
    truth = draw_truth(replace(SMALL, cells=3000, interactions=0.8))
    world, cells = truth.world, range(3000)
    moved = moved_by(truth, cells, interacting=np.empty(0, int))
    still = np.setdiff1d(np.arange(300), world.interacting)
    assert len(world.interacting) == 30
    np.testing.assert_allclose(moved[:, still], 0, atol=1e-9)
    product = (truth.cells.activity[:, world.pair] / SPREAD).prod(2)
    np.testing.assert_allclose(moved[:, world.interacting], 0.8 * np.clip(product, -3, 3), atol=1e-9)
    activity = np.column_stack([np.ones(3000), truth.cells.activity])
    fitted = activity @ np.linalg.lstsq(activity, moved[:, world.interacting], rcond=None)[0]
    assert fitted.var() < 0.02 * moved[:, world.interacting].var()


def test_targets_follow_the_deviations_of_their_regulators_by_the_weights_of_the_edges():
    truth = draw_truth(replace(SMALL, cells=2000, network=True))
    world = truth.world
    nothing = {"regulators": np.empty(0, int), "edges": np.empty((0, 2), int), "weight": np.empty(0)}
    moved = moved_by(truth, range(2000), **nothing)
    deviation = moved[:, world.regulators] / REGULATOR_SPREAD  # [C, R]
    assert deviation.std(0) == pytest.approx(np.ones(len(world.regulators)), abs=0.08)
    targets = np.setdiff1d(np.arange(300), world.regulators)
    expected = np.zeros((2000, 300))
    for (regulator, target), weight in zip(world.edges, world.weight, strict=True):
        expected[:, target] += weight * deviation[:, np.flatnonzero(world.regulators == regulator)[0]]
    np.testing.assert_allclose(moved[:, targets], expected[:, targets], atol=1e-9)
    own = moved[:, world.regulators] - expected[:, world.regulators]
    assert own.std(0) == pytest.approx(world.own_spread, abs=0.05)
    rank = {gene: number for number, gene in enumerate(world.regulators)}
    assert any(target in rank for _, target in world.edges)
    assert all(rank[a] < rank[b] for a, b in world.edges if b in rank)


def test_knocking_a_regulator_down_moves_its_targets_along_the_edges():
    world = draw_truth(replace(SMALL, network=True, perturbations=5, perturbation_cells=20)).world
    assert set(world.targets) <= set(world.regulators)
    np.testing.assert_allclose(world.effects[np.arange(5), world.targets], np.log(0.2))
    for effect in world.effects:
        passed = np.zeros(300)
        np.add.at(passed, world.edges[:, 1], world.weight * effect[world.edges[:, 0]] / REGULATOR_SPREAD)
        others = np.setdiff1d(np.arange(300), world.targets)
        np.testing.assert_allclose(effect[others], passed[others], atol=1e-12)


@pytest.mark.parametrize("structure", ["shared", "unrelated"])
def test_knock_downs_lower_their_target_and_its_programme(structure):
    config = replace(SMALL, cells=700, perturbations=6, perturbation_cells=60, depth=3000, structure=structure)
    truth = draw_truth(config)
    world, perturbation = truth.world, truth.cells.perturbation
    assert (world.answers == world.programme).all() == (structure == "shared")
    assert np.bincount(perturbation + 1).tolist() == [340, *[60] * 6]
    values = counts_of(truth) / truth.cells.depth[:, None]
    control = values[perturbation < 0].mean(0)
    for number, target in enumerate(world.targets):
        treated = values[perturbation == number].mean(0)
        assert treated[target] < 0.5 * control[target]
        with_it = (world.answers == world.answers[target]) & (world.response > 0) & (control > 1e-4)
        assert np.median(treated[with_it] / control[with_it]) < 0.7
        assert (truth.world.effects[number][world.response == 0] == 0).all()


@pytest.mark.parametrize("suffix", [".h5ad", ".h5", ".sckit"])
def test_every_format_is_read_as_it_was_drawn(tmp_path, suffix):
    out = tmp_path / f"known{suffix}"
    assert sckit.simulate(ALL, out) == out
    truth, expected = read_truth(tmp_path / "known.truth.h5"), counts_of(draw_truth(ALL))
    store = open_store(out) if suffix == ".sckit" else sckit.prepare([out], tmp_path / "read.sckit")
    store.verify()
    indptr, genes, counts = store.rows(np.arange(store.n_cells))
    read = sp.csr_array((counts, genes, indptr), (240, store.n_genes)).toarray()
    order = [f"GENE{g}" for g in range(300)]
    assert store.genes["symbol"].tolist() == order
    assert store.genes["id"][7] == "ENSSIMG00000000007"
    np.testing.assert_array_equal(read, expected)
    for name in truth.obs:
        assert (name in store.obs) == (suffix != ".h5")
        if suffix != ".h5":
            assert store.obs[name].astype(str).tolist() == truth.obs[name].astype(str).tolist()
    assert sorted(path.name for path in tmp_path.glob("known*")) == sorted([out.name, "known.truth.h5"])
    assert not list(tmp_path.glob(".*"))


def test_an_h5ad_of_several_blocks_is_read_by_anndata(tmp_path):
    config = replace(ALL, cells=1100, genes=60, depth=100, perturbations=3)
    assert config.cells > 2 * CELLS_PER_BLOCK
    done = write_simulation(config, tmp_path / "known.h5ad")
    adata, expected = anndata.read_h5ad(done.path), counts_of(draw_truth(config))
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    assert adata.var_names[0] == "GENE0"
    assert (adata.obs["perturbation"] == "control").sum() == 1040
    assert done.median_counts == np.median(expected.sum(1))
    assert done.median_genes == np.median((expected > 0).sum(1))
    assert done.share_of_ones == (expected == 1).sum() / (expected > 0).sum()


def test_the_truth_that_is_read_is_the_one_that_was_drawn(tmp_path):
    simulate(ALL, tmp_path / "known.h5ad")
    drawn, read = draw_truth(ALL), read_truth(truth_path(tmp_path / "known.h5ad"))
    assert read.config == ALL
    np.testing.assert_array_equal(read.rates(range(0, 240, 9)), drawn.rates(range(0, 240, 9)))
    np.testing.assert_array_equal(read.counts(11), drawn.counts(11))


def test_what_exists_is_replaced_on_request_only(tmp_path):
    for suffix in (".h5ad", ".h5", ".sckit"):
        out = tmp_path / f"{suffix[1:]}{suffix}"
        simulate(SMALL, out)
        with pytest.raises(ConfigError, match=f"{suffix} exists already; choose another --out or give --overwrite"):
            simulate(SMALL, out)
        simulate(replace(SMALL, cells=50), out, overwrite=True)
        assert read_truth(truth_path(out)).config.cells == 50
    with pytest.raises(ConfigError, match=r"h5ad.truth.h5 exists already"):
        simulate(SMALL, tmp_path / "h5ad.h5")
    with pytest.raises(ConfigError, match=r"h5ad.truth.h5 is the truth of .*h5ad.h5ad too; remove that, or choose"):
        simulate(SMALL, tmp_path / "h5ad.h5", overwrite=True)
    assert read_truth(tmp_path / "h5ad.truth.h5").config.cells == 50


def test_a_store_is_the_same_each_time_and_nothing_stays_next_to_it(tmp_path):
    out = tmp_path / "known.sckit"
    (tmp_path / "known.sckit.simulated").mkdir()  # of a process that was killed
    manifests = []
    for _ in range(2):
        simulate(SMALL, out, overwrite=True)
        manifests.append((out / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]
    assert {path.name for path in tmp_path.iterdir()} == {"known.sckit", "known.truth.h5"}


@pytest.mark.parametrize("name", ["known.csv", "nowhere/known.h5ad", "folder.h5ad"])
def test_places_that_cannot_be_written_are_refused(tmp_path, name):
    (tmp_path / "folder.h5ad").mkdir()
    with pytest.raises(ConfigError, match=r"must end in|is not a folder|is a folder"):
        simulate(SMALL, tmp_path / name, overwrite=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cells": 10_000_001}, "--cells must be between 1 and 10000000, not 10000001"),
        ({"genes": 3}, "--genes must be between 20 and 50000"),
        ({"depth": 0}, "--depth must be between"),
        ({"dispersion": -1.0}, "--dispersion must be between"),
        ({"interactions": 3.0}, "--interactions must be between 0 and 2"),
        ({"structure": "other"}, "choose shared or unrelated"),
        ({"perturbations": 30}, "need 3100 cells; give --cells 3100"),
        ({"genes": 100, "perturbations": 19}, "10 genes that can be targets"),
        ({"genes": 100, "perturbations": 6, "network": True}, "5 regulators among 100 genes"),
        ({"network": True, "structure": "unrelated"}, "--structure unrelated has no meaning with --network"),
    ],
)
def test_options_out_of_bounds_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        SimulateConfig(**options)


def test_the_smallest_worlds_can_be_drawn():
    for network in (False, True):
        config = SimulateConfig(
            cells=30, genes=20, depth=5, types=1, libraries=1, programmes=2, interactions=1, network=network,
            perturbations=2, perturbation_cells=10,
        )  # fmt: skip
        truth = draw_truth(config)
        assert len(truth.world.targets) == 2
        assert np.isfinite(truth.rates(range(30))).all()
        assert counts_of(truth).shape == (30, 20)


def test_files_that_are_no_truth_are_refused(tmp_path):
    simulate(SMALL, tmp_path / "known.h5ad")
    with pytest.raises(DataError, match=r"is not the truth of a simulation"):
        read_truth(tmp_path / "known.h5ad")
    with pytest.raises(DataError, match=r"cannot be read"):
        read_truth(tmp_path / "nothing.truth.h5")
    with h5py.File(tmp_path / "known.truth.h5", "r+") as file:
        del file["world/loading"]
    with pytest.raises(DataError, match=r"simulate the data again"):
        read_truth(tmp_path / "known.truth.h5")


def test_interactions_are_seen_by_products_of_linear_predictions_and_hardly_by_linear_predictions():
    """The ridge on which genes are detected is what masked models have to beat."""
    truth = draw_truth(SimulateConfig(cells=1200, genes=1500, depth=1500, programmes=8, interactions=1, seed=3))
    detected = (counts_of(truth) > 0).astype(float)
    detected -= detected[:900].mean(0)
    activity, pair = truth.cells.activity / SPREAD, truth.world.pair
    product = np.clip(activity[:, pair[:, 0]] * activity[:, pair[:, 1]], -3, 3)
    weights = detected[:900].T @ np.linalg.inv(detected[:900] @ detected[:900].T + 300 * np.eye(900))

    def explained(predicted, values):
        return 1 - ((predicted - values[900:]) ** 2).sum() / (values[900:] ** 2).sum()

    linear = detected[900:] @ (weights @ product[:900])
    of_activities = detected[900:] @ (weights @ activity[:900])
    non_linear = of_activities[:, pair[:, 0]] * of_activities[:, pair[:, 1]]
    assert explained(linear, product) < 0.2
    assert explained(non_linear, product) > explained(linear, product) + 0.1
