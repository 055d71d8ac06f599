"""The scores compared with those of cell-eval (Arc Institute) on the same predictions, where it is installed.

Checked against cell-eval 0.8.2, which has an environment of its own: `pip install cell-eval pytest`, then
`python -m pytest --noconftest -o filterwarnings=default tests/metrics/test_cell_eval.py` from the root of the checkout.

The same number, to rounding:
- delta_r is `pearson_delta`. The two sides have their own controls there too: ours of the input half go with the
  prediction, those of the reference half with the truth, so that noise of the controls is not shared.
- discrimination is `discrimination_score_l1`, once its rank over N is stretched to one over N - 1 so that chance is 0.5
  (theirs = 1 - (1 - ours) (N - 1) / N), and when each unit's mask leaves out the gene perturbed in it, as theirs does.
- The squared error in the numerator of weighted_r2, with all weights equal, is `mse_delta` when both sides have the
  same controls.

Not the same, and why:
- Tied candidates count half here; there the order of sorting decides (`argsort`), so a constant truth or a repeated one
  scores by its name.
- A correlation without variance is 0 here. There it is NaN or, when profile and controls are averaged to numbers that
  differ by rounding, the correlation of rounding errors: no change at all got 0.17 for one unit of this screen.
- Leaving out only the gene perturbed in the unit, as there, lifts any prediction above chance, because the right
  candidate loses its largest change and the others keep theirs. Here the caller hands over one mask for all units.
- There every unit is a test unit: candidates are the perturbations of the prediction file. Here they are all units.
- de_overlap: `overlap_at_N` ranks the |log fold change| of genes significant in a rank test of single cells, on both
  sides. A prediction here is a profile without cells, so it has no such test; its genes are ranked by |effect| over the
  standard error of the truth. Only the order can agree: tested is that both put half-cells before the mean before
  noise when cells are made around the profiles.
- delta_r_specific, delta_r_perturbed, weighted_r2 and slope have no counterpart there.
"""

import logging

import numpy as np
import pandas as pd
import pytest

from sckit.metrics.effects import Truth, score

cell_eval = pytest.importorskip("cell_eval", reason="cell-eval is not installed; it has an environment of its own")

UNITS, GENES, CELLS = 15, 120, 40


@pytest.fixture(scope="module")
def screen():
    """log1p(CP10k) of cells [cells, GENES] by condition, and which half; perturbation i is of gene i."""
    generator = np.random.default_rng(5)
    base = generator.gamma(1.0, size=GENES) + 0.1
    shared = 0.4 * generator.normal(size=GENES) * (generator.random(GENES) < 0.4)
    cells = {}
    for name in ("control", *(f"GENE{i}" for i in range(UNITS))):
        change = (
            0 if name == "control" else shared + 0.8 * generator.normal(size=GENES) * (generator.random(GENES) < 0.2)
        )
        rate = base * np.exp(change)
        if name != "control":
            rate[int(name[4:])] *= 0.02  # a knock-down that works gives its own gene away
        depth = np.exp(generator.normal(6.5, 0.3, (2 * CELLS, 1)))
        counts = generator.poisson(depth * rate / rate.sum())
        cells[name] = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    return cells


@pytest.fixture(scope="module")
def profiles(screen):
    """Names of the units in cell-eval's order, and (input or visible, reference or target) halves of their cells."""
    names = sorted(name for name in screen if name != "control")
    return names, {name: (x[:CELLS], x[CELLS:]) for name, x in screen.items()}


@pytest.fixture(scope="module")
def predictions(profiles):
    """Predicted profiles [UNITS, GENES], no value below zero, as cell-eval wants them."""
    names, halves = profiles
    visible = np.array([halves[name][0].mean(0) for name in names])
    generator = np.random.default_rng(6)
    return {
        "half-cells": visible,
        "halfway to the mean": 0.5 * visible + 0.5 * visible.mean(0),
        "mean": np.tile(visible.mean(0), (UNITS, 1)),
        "of other units": visible[generator.permutation(UNITS)],
        "noise": np.abs(visible.mean(0) + 0.3 * generator.normal(size=visible.shape)),
    }


def make_truth(profiles):
    names, halves = profiles
    control, reference = halves["control"]
    target = np.array([halves[name][1].mean(0) for name in names])
    visible = np.array([halves[name][0].mean(0) for name in names])
    mean = np.tile(visible.mean(0) - control.mean(0), (UNITS, 1))
    variance = np.array([halves[name][1].var(0, ddof=1) for name in names])
    se = np.sqrt((variance + reference.var(0, ddof=1)) / CELLS)
    against_control = target - reference.mean(0)
    perturbed = target - control.mean(0) - mean
    return Truth(against_control, perturbed, mean, se, against_control, np.arange(UNITS))


def annotated(cells):
    """AnnData of cells by condition."""
    import anndata

    obs = pd.DataFrame({"target": np.repeat(list(cells), [len(x) for x in cells.values()])})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"GENE{g}" for g in range(GENES)])
    return anndata.AnnData(np.concatenate(list(cells.values())), obs=obs, var=var)


def theirs(profiles, predicted, folder, *, control="input", spread=None):
    """cell-eval's results by metric, in our order of units. spread: cells around the profile, or the profile alone."""
    logging.getLogger("cell_eval").setLevel(logging.ERROR)
    names, halves = profiles
    real = annotated({name: halves[name][1] for name in ("control", *names)})
    around = {
        name: row[None] if spread is None else spread(name, row) for name, row in zip(names, predicted, strict=True)
    }
    pred = annotated({"control": halves["control"][0 if control == "input" else 1]} | around)
    evaluator = cell_eval.MetricsEvaluator(
        pred, real, control_pert="control", outdir=str(folder), num_threads=1, skip_de=spread is None
    )
    # The two need a neighbour graph and distances of single cells; nothing here is compared with them.
    slow = ["pearson_edistance", "clustering_agreement"] if spread is None else None
    results, _ = evaluator.compute(
        profile="anndata" if spread is None else "minimal", skip_metrics=slow, write_csv=False, break_on_error=True
    )
    assert results["perturbation"].to_list() == names
    return {name: results[name].to_numpy() for name in results.columns if name != "perturbation"}


CASES = ["half-cells", "halfway to the mean", "mean", "of other units", "noise"]


@pytest.mark.parametrize("case", CASES)
def test_delta_r_is_their_pearson_delta(profiles, predictions, tmp_path, case):
    ours = score(predictions[case] - profiles[1]["control"][0].mean(0), make_truth(profiles))["delta_r"]
    found = theirs(profiles, predictions[case], tmp_path)["pearson_delta"]
    assert ours == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_discrimination_is_theirs_but_for_the_scale(profiles, predictions, tmp_path, case):
    names = profiles[0]
    others = np.array([[f"GENE{g}" != name for g in range(GENES)] for name in names])
    ours = score(predictions[case] - profiles[1]["control"][0].mean(0), make_truth(profiles), others)["discrimination"]
    found = theirs(profiles, predictions[case], tmp_path)["discrimination_score_l1"]
    assert 1 - (1 - ours) * (UNITS - 1) / UNITS == pytest.approx(found, abs=1e-9)


def test_the_perturbed_gene_gives_a_unit_away_unless_it_is_left_out(profiles, predictions):
    truth, control = make_truth(profiles), profiles[1]["control"][0].mean(0)
    own = np.array([[f"GENE{g}" == name for g in range(GENES)] for name in profiles[0]])
    knows_one_gene = np.where(own, predictions["half-cells"], predictions["mean"]) - control
    kept, left_out = (score(knows_one_gene, truth, genes)["discrimination"].mean() for genes in (None, ~own))
    assert kept > left_out + 0.1


@pytest.mark.parametrize("case", CASES)
def test_the_error_under_equal_weights_is_their_mse_delta(profiles, predictions, tmp_path, case):
    _, halves = profiles
    reference = halves["control"][1].mean(0)
    truth = make_truth(profiles)
    # With the reference controls on both sides, a mean of zero and t = 1 everywhere, error = (1 - R2) mean(truth^2).
    plain = Truth(
        truth.control, truth.control, np.zeros_like(truth.mean), np.abs(truth.control), truth.candidates, truth.own
    )
    r2 = score(predictions[case] - reference, plain)["weighted_r2"]
    found = theirs(profiles, predictions[case], tmp_path, control="reference")["mse_delta"]
    above_floor = r2 > -1
    assert above_floor.any()
    assert ((1 - r2) * (truth.control**2).mean(1))[above_floor] == pytest.approx(found[above_floor], rel=1e-9)


def test_overlap_of_top_genes_orders_predictions_as_theirs_does(profiles, predictions, tmp_path):
    _, halves = profiles
    generator = np.random.default_rng(7)
    control = halves["control"][0]

    def spread(name, row):
        return np.maximum(control[generator.permutation(CELLS)] - control.mean(0) + row, 0)

    ours, found = {}, {}
    for case in ("half-cells", "mean", "noise"):
        ours[case] = score(predictions[case] - control.mean(0), make_truth(profiles))["de_overlap"].mean()
        found[case] = theirs(profiles, predictions[case], tmp_path / case, spread=spread)["overlap_at_N"].mean()
    for values in (ours, found):
        assert values["half-cells"] > values["mean"] > values["noise"]
