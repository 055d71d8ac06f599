"""The simulator keeps its promises: what the other tests of the perturbation tasks rest on."""

import numpy as np
import pytest

from sckit.data.simulate.screen import simulate_controls, simulate_screen


def log_cp10k(counts):
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def within_minus_between(correlation, groups):
    """Mean correlation of two genes of one group, less that of two genes of different groups."""
    same = groups[:, None] == groups[None, :]
    pairs = ~np.eye(len(groups), dtype=bool)
    return correlation[same & pairs].mean() - correlation[~same].mean()


def test_counts_are_whole_and_columns_are_there(rng):
    screen, truth = simulate_screen(rng, contexts=2, replicates=3, combos=2, perturbations=4, truth_cells=50)
    assert screen.X.dtype == np.float32
    assert np.array_equal(screen.X, np.round(screen.X))
    assert screen.X.min() == 0
    assert np.median(screen.X.sum(1)) == pytest.approx(2000, rel=0.1)
    assert screen.obs_names.is_unique
    assert set(screen.obs["condition"]) == {"control", "P0", "P1", "P2", "P3", "P0+P1", "P1+P2"}
    assert set(screen.obs["context"]) == {"context0", "context1"}
    assert set(screen.obs["replicate"]) == {"replicate0", "replicate1", "replicate2"}
    assert truth.units[:2] == [("P0", "context0"), ("P1", "context0")]
    assert truth.delta.shape == (12, 200)
    np.testing.assert_array_equal(truth.hits["P0+P1"], truth.hits["P0"] + truth.hits["P1"])


@pytest.mark.parametrize("structure", ["shared", "unrelated"])
def test_controls_vary_by_the_modules_that_respond_only_where_the_structure_is_shared(rng, structure):
    _, truth = simulate_screen(rng, structure=structure, truth_cells=500)
    controls = simulate_controls(rng, truth.world, 1500)
    among_controls = np.corrcoef(log_cp10k(controls.X).T)
    assert within_minus_between(among_controls, truth.world.programmes.programme) > 0.2
    gap = within_minus_between(among_controls, truth.world.programmes.answers)
    assert gap > 0.2 if structure == "shared" else abs(gap) < 0.02
    among_responses = np.corrcoef(truth.delta.T)
    assert within_minus_between(among_responses, truth.world.programmes.answers) > 0.5


@pytest.mark.parametrize("structure", ["shared", "unrelated"])
def test_observed_deltas_are_the_truth_within_their_standard_errors(rng, structure):
    screen, truth = simulate_screen(rng, structure=structure, contexts=2, replicates=2, combos=1, truth_cells=3000)
    values = log_cp10k(screen.X)
    condition, context = screen.obs["condition"].to_numpy(), screen.obs["context"].to_numpy()
    z = []
    for (name, place), delta in zip(truth.units, truth.delta, strict=True):
        treated = values[(condition == name) & (context == place)]
        control = values[(condition == "control") & (context == place)]
        variance = treated.var(0, ddof=1) * (1 / len(treated) + 1 / 3000)
        variance += control.var(0, ddof=1) * (1 / len(control) + 1 / 3000)
        z.append((treated.mean(0) - control.mean(0) - delta) / np.sqrt(variance))
    assert np.std(z) == pytest.approx(1, abs=0.08)
    assert np.abs(z).max() < 6
    assert np.abs(truth.delta).max() > 1


def test_a_target_answers_like_the_module_it_hits_and_targets_differ(rng):
    _, truth = simulate_screen(rng, perturbations=16, programmes=8, truth_cells=100)
    targets = [int(truth.target_map[f"P{p}"].removeprefix("GENE")) for p in range(16)]
    assert len(set(targets)) == 16
    np.testing.assert_array_equal(truth.world.programmes.answers[targets], np.arange(16) % 8)
    alike = np.corrcoef(truth.hits["P0"], truth.hits["P8"])[0, 1]
    assert alike == pytest.approx(1)


def test_dead_perturbations_do_nothing_and_are_the_last(rng):
    _, truth = simulate_screen(rng, perturbations=6, dead=2, truth_cells=3000)
    size = np.abs(truth.delta).mean(1)
    assert size[4:].max() < 0.05 < size[:4].min() / 2


def test_the_same_generator_gives_the_same_screen():
    first, second, other = (
        simulate_screen(np.random.default_rng(seed), perturbations=2, truth_cells=20)[0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.X, second.X)
    assert not np.array_equal(first.X, other.X)
