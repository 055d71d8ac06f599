from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.perturbation.examples import Panel, panels

from .small_screens import dense_values, fold_of, small_screen


def material_of(screen, **options):
    return fold_of(screen, **options).examples


def expected_delta(screen, material, u):
    """Mean of the treated cells less the input controls of the unit's context, one stratum a context."""
    dense = dense_values(screen)
    controls = material.cell_halves.inputs & (screen.stratum == screen.units[u].covariates)
    return dense[material.trainable[u]].mean(0) - dense[controls].mean(0)


def row_of(example, dense, cells):
    """The one among the cells whose detected values are those shown."""
    whole = np.zeros(dense.shape[1])
    whole[example.genes] = example.values
    (found,) = [cell for cell in cells if np.allclose(dense[cell], whole)]
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 43), st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 1000))
def test_panels_score_each_gene_once_from_others_and_are_nested(n_genes, low, high, seed):
    low, high = sorted((low, high))
    few, many = (panels(n_genes, share, None, np.random.default_rng(seed)) for share in (low, high))
    for found, share in ((few, low), (many, high)):
        np.testing.assert_array_equal(np.sort(np.concatenate([p.scored for p in found])), np.arange(n_genes))
        for panel in found:
            assert not set(panel.revealed) & set(panel.scored)
            assert len(panel.revealed) == min(round(share * n_genes), n_genes - len(panel.scored))
            assert len(set(panel.revealed)) == len(panel.revealed)
    for small, large in zip(few, many, strict=True):
        np.testing.assert_array_equal(small.scored, large.scored)
        assert set(small.revealed) <= set(large.revealed)


def test_a_fixed_panel_leaves_its_own_genes_unpredicted(rng):
    (panel,) = panels(6, 0.3, np.array([1, 4]), rng)
    assert panel.revealed.tolist() == [1, 4]
    assert panel.scored.tolist() == [0, 2, 3, 5]


def test_every_perturbation_is_drawn_as_often_as_every_other(rng):
    screen = small_screen(rng, conditions=tuple("ABCDEF"), contexts=3, cells=4, controls=6, genes=5)
    uneven = replace(screen, units=tuple(u for u in screen.units if u.covariates == 0 or u.name == "A"))
    material = material_of(uneven, folds=2)
    rows = Counter(material.draw(rng).perturbations for _ in range(900))
    trained = {uneven.units[u].parts for u in material.trainable}
    assert len(rows) == len(trained) == 3
    assert (0,) in trained  # A, which has three units
    # 900 draws of a third each have a standard deviation of 14.
    assert all(abs(count - 300) < 70 for count in rows.values())


def test_a_lesson_of_some_units_knows_the_mean_and_the_scale_of_those_alone(rng):
    material = material_of(
        small_screen(rng, conditions=("A", "B", "C", "D", "E", "F"), cells=4, controls=6, genes=5), folds=3
    )
    kept = sorted(material.trainable)[:2]
    own = material.only(kept)
    assert sorted(own.trainable) == kept
    deltas = material.delta[kept]
    np.testing.assert_allclose(own.mean, deltas.mean(0), atol=1e-12)
    assert own.scale == pytest.approx(np.sqrt(np.mean((deltas - deltas.mean(0)) ** 2)))
    assert own.scale != material.scale


def test_a_response_example_is_an_input_control_and_the_effect_of_the_perturbation(rng):
    screen = small_screen(rng, contexts=2, genes=20, cells=8)
    material = material_of(screen)
    dense = dense_values(screen)
    deltas = {u: expected_delta(screen, material, u) for u in material.trainable}
    by_name = {}
    for u, delta in deltas.items():
        by_name.setdefault(screen.units[u].parts, []).append(delta)
    mean = np.mean([np.mean(of_name, 0) for of_name in by_name.values()], 0)
    np.testing.assert_allclose(material.mean, mean, atol=1e-12)
    scale = np.sqrt(np.mean([(delta - mean) ** 2 for delta in deltas.values()]))
    assert material.scale == pytest.approx(scale)
    shown, perturbed = set(), set()
    for _ in range(60):
        example = material.draw(rng)
        cell = row_of(example, dense, np.flatnonzero(material.cell_halves.inputs))
        shown.add(cell)
        context = screen.stratum[cell]
        (u,) = [
            u for u in material.trainable
            if screen.units[u].covariates == context and material.control_cell(cell, u, np.arange(1)).perturbations
            == example.perturbations
        ]  # fmt: skip
        perturbed.add(u)
        np.testing.assert_allclose(example.truth, ((deltas[u] - mean) / scale)[example.queries], atol=1e-9)
        assert len(set(example.queries)) == len(example.queries) == 20
    assert len(shown) > 8
    assert len(perturbed) > 5


def test_what_a_control_cell_is_compared_with_comes_from_the_input_controls_alone(rng):
    screen = small_screen(rng, genes=20)
    material = material_of(screen)
    controls = dense_values(screen)[material.cell_halves.inputs]
    mean = np.array([column[column > 0].mean() if (column > 0).any() else 0 for column in controls.T])
    np.testing.assert_allclose(material.detected_mean, mean)
    floor = np.log1p(1e4 / np.median(screen.totals[material.cell_halves.inputs]))
    np.testing.assert_allclose(material.expected[:20], mean - floor)
    assert not material.expected[20:].any()
    assert material.cell_rms == pytest.approx(np.sqrt(np.mean((controls - mean)[controls > 0] ** 2)))
    cell = int(np.flatnonzero(material.cell_halves.inputs)[0])
    example = material.control_cell(cell, 0, np.arange(20))
    np.testing.assert_allclose(example.residual, (dense_values(screen)[cell] - mean)[example.genes])


def test_a_combination_at_a_dose_names_its_parts_and_the_dose(rng):
    screen = small_screen(rng, conditions=("A+B @ 3", "A @ 0", "B @ 1"), genes=10, targets={"B": "GENE4"})
    material = material_of(screen, folds=2)
    units = {unit.name: u for u, unit in enumerate(screen.units)}
    example = material.control_cell(0, units["A+B @ 3"], np.arange(3))
    assert example.perturbations == (10, 4)  # A has a row of its own behind the genes, B acts on a gene predicted
    assert example.dose == pytest.approx(np.log(4))
    assert material.control_cell(0, units["A @ 0"], np.arange(3)).dose == 0


def test_control_cells_are_drawn_from_the_strata_of_the_unit(rng):
    screen = small_screen(rng, replicates=3, cells=9, controls=8, genes=5)
    first = screen.units[0]
    cells = first.cells[np.isin(screen.stratum[first.cells], [0, 2])]
    cells = np.concatenate([cells[screen.stratum[cells] == 0][:3], cells[screen.stratum[cells] == 2]])
    material = material_of(replace(screen, units=(replace(first, cells=np.sort(cells)), *screen.units[1:])))
    drawn = material.control_cells(0, 800, rng)
    assert material.cell_halves.inputs[drawn].all()
    strata = np.bincount(screen.stratum[drawn], minlength=3)
    assert strata[1] == 0
    assert abs(strata[0] - 200) < 60  # a standard deviation is 12
    assert len(set(drawn)) == 8


def test_a_profile_example_shows_one_half_and_asks_for_the_other(rng):
    screen = small_screen(rng, cells=2, genes=12)  # halves of one cell each
    material = material_of(screen, task="partial")
    dense = dense_values(screen)
    seen = set()
    for _ in range(40):
        example = material.draw(rng)
        assert not set(example.genes) & set(example.queries)
        assert (example.perturbations, example.dose) == ((), 0.0)
        pairs = [
            (visible, target, u)
            for u, cells in material.trainable.items()
            for visible, target in (cells, cells[::-1])
            if np.allclose(dense[visible][example.genes], example.values)
        ]
        fits = [
            (visible, target)
            for visible, target, u in pairs
            if np.allclose(
                ((dense[target] - material.control[u] - material.mean) / material.scale)[example.queries],
                example.truth,
            )
        ]
        assert fits
        seen.update(fits)
    assert len(seen) > 6


def test_deviations_of_a_profile_are_given_in_the_size_of_those_of_cells(rng):
    screen = small_screen(rng, genes=12)
    material = material_of(screen, task="partial")
    panel = Panel(np.array([2, 5, 7]), np.array([0, 1]))
    profile = rng.normal(size=12)
    example = material.shown_profile(profile, 3, panel, np.arange(12.0))
    units = (profile - material.control[3] - material.mean) / material.scale
    np.testing.assert_allclose(example.residual, units[[2, 5, 7]] * material.cell_rms)
    np.testing.assert_array_equal(example.values, profile[[2, 5, 7]])
    np.testing.assert_array_equal(example.truth, [0, 1])
    hidden = np.where(np.isin(np.arange(12), panel.revealed), profile, np.nan)
    np.testing.assert_array_equal(material.shown_profile(hidden, 3, panel).residual, example.residual)


def test_with_a_fixed_panel_every_example_reveals_it_and_asks_for_others(rng, tmp_path):
    (tmp_path / "panel").write_text("GENE3\nGENE9\nother\n")
    material = material_of(small_screen(rng, genes=12), task="partial", panel=str(tmp_path / "panel"))
    for _ in range(5):
        example = material.draw(rng)
        assert example.genes.tolist() == [3, 9]
        assert example.queries.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]
