"""The trees find what is not linear, find nothing where nothing is, and see no hidden value."""

from dataclasses import replace

import numpy as np
import pytest

from sckit.data.batch import Hiding, Packer
from sckit.evaluation.trees import fit_trees
from sckit.model.correction import facts_of_genes
from sckit.model.offset_fit import cross_fitted, fit_offset_forms
from sckit.model.regression import TrainingCells

from ..planted_counts import Counts, World

FIXED = {"components": 3, "penalty": 5.0, "factors": 2, "count_penalty": 10.0}
CELLS, GENES, HELD_OUT = 900, 150, np.arange(700, 900)


def world(interaction, size=0.6, outside=0.0):
    """Counts of two components; in the genes with many counts their product raises or lowers the rate as well.

    outside: counts of genes outside the vocabulary for each one inside; they make the sum of hidden counts say little.
    """
    rng = np.random.default_rng(1)
    of_gene, z = rng.normal(0, 1.0, GENES), rng.normal(size=(CELLS, 2))
    log_rate = of_gene + z @ rng.normal(size=(2, GENES)) * size
    log_rate += interaction * (of_gene > 0) * (z[:, :1] * z[:, 1:])
    rates = np.exp(np.clip(log_rate, -6, 4))
    rates *= np.exp(rng.normal(np.log(900), 0.3, CELLS))[:, None] / rates.sum(1, keepdims=True)
    counts = rng.poisson(rates)
    totals = counts.sum(1) + rng.poisson(outside * rates.sum(1))
    return World(Counts(counts, totals), rates, np.zeros(CELLS))


def fitted(world, rate):
    training = TrainingCells(world.view, world.vocabulary, np.arange(700))
    forms = fit_offset_forms(training, **FIXED)

    def packers(draw):
        return Packer(world.view, world.vocabulary, Hiding(rate, 0, draw + 1), known_depth=True)

    return training, forms, fit_trees(training, forms, packers, 1 if rate == 1 else 2, seed=0)


def gain(world, rate):
    _, forms, trees = fitted(world, rate)
    batch = Packer(world.view, world.vocabulary, Hiding(rate), known_depth=True)(HELD_OUT)
    linear, corrected = forms.predict(batch)["value offset ridge"], trees.predict(batch)
    mean = forms.gene_mean[batch.genes[batch.targets]]
    errors = [((batch.truth - p) ** 2).sum() for p in (mean, linear, corrected)]
    return (errors[1] - errors[2]) / errors[0]


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_trees_find_an_interaction_and_nothing_where_there_is_nothing(rate):
    with_it, without, nothing = (gain(world(*each), rate) for each in ((1.2,), (0.0,), (0.0, 0.0)))
    assert with_it > without + 0.005
    assert nothing < 0.004


def test_the_trees_see_the_sum_of_the_hidden_counts():
    """Where all genes are known, the total less the visible counts says how large the hidden ones are together."""
    assert gain(world(0.0, 0.0), 0.3) > gain(world(0.0, 0.0, outside=1.0), 0.3) + 0.005


def test_no_prediction_depends_on_a_hidden_value_or_lies_below_a_single_count():
    small = world(0.8)
    _, _, trees = fitted(small, 0.3)
    batch = Packer(small.view, small.vocabulary, Hiding(0.3), known_depth=True)(HELD_OUT)
    predicted = trees.predict(batch)
    np.testing.assert_array_equal(predicted, trees.predict(replace(batch, truth=batch.truth + 1)))
    one = np.log1p(1e4 / small.view.totals(HELD_OUT))
    assert (predicted >= one[batch.target_cells] - 1e-9).all()
    empty = Packer(small.view, np.full_like(small.vocabulary, -1), Hiding(1.0))(HELD_OUT[:3])
    assert trees.predict(empty).shape == (0,)


def test_the_cross_fits_do_not_know_their_own_fold():
    """A gene that is large in one fold alone is not expected to be large by the fit that left this fold out."""
    small = world(0.0)
    training = TrainingCells(small.view, small.vocabulary, np.arange(700))
    fold, _ = cross_fitted(training, fit_offset_forms(training, **FIXED))
    counts = small.view.counts.copy()
    counts[np.flatnonzero(fold == 2), 5] += 400
    changed = replace(training, view=Counts(counts, small.view.totals(np.arange(CELLS))))
    forms = fit_offset_forms(changed, **FIXED)
    fold_again, fits = cross_fitted(changed, forms)
    np.testing.assert_array_equal(fold, fold_again)
    batch = Packer(changed.view, small.vocabulary, Hiding(1.0), known_depth=True)(np.flatnonzero(fold == 2))
    of_gene = batch.genes[batch.targets] == 5
    before = cross_fitted(training, fit_offset_forms(training, **FIXED))[1][2]
    expected, left_out, others = (
        each.value_ridge(batch, each.of_cells(batch))[of_gene].mean() for each in (before, fits[2], fits[0])
    )
    assert others > expected + 0.5
    assert abs(left_out - expected) < 0.1 * (others - expected)
    np.testing.assert_array_equal(facts_of_genes(fits[2])[5, 1:4], facts_of_genes(before)[5, 1:4])
    assert (facts_of_genes(fits[0])[5, 1:4] > facts_of_genes(before)[5, 1:4] + 0.5).any()
    np.testing.assert_allclose(fits[2].cells, forms.cells, rtol=0.2)  # as if it had as many cells
    counts[:, 5] = np.where(np.arange(CELLS) == np.flatnonzero(fold == 2)[0], 40, 0)  # a gene of a single cell
    alone = replace(training, view=Counts(counts, small.view.totals(np.arange(CELLS))))
    means = cross_fitted(alone, fit_offset_forms(alone, **FIXED))[1][2].gene_mean
    assert means.min() < means[5] < means.max()
