"""Sums over bootstrap draws, block by block: what they are, and how much memory they take."""

import tracemalloc

import numpy as np
import pytest

from sckit.metrics.intervals import Resampling


@pytest.mark.parametrize("groups", [30, 3], ids=["whole groups", "cells within groups"])
def test_sums_over_draws_in_blocks_have_the_same_distribution(rng, monkeypatch, groups):
    """Blocks of two draws: means and spreads are those of one block, and two names have the same draws."""
    values = rng.normal(2, 1, (90, 2))
    rule, sums = Resampling(np.arange(90) % groups), {"a": values, "b": values[:, ::-1] * 2}
    whole = rule.resample(sums, np.random.default_rng(0), 3000)
    monkeypatch.setattr("sckit.metrics.intervals._BLOCK", 180)
    blocks = rule.resample(sums, np.random.default_rng(1), 3000)
    for found in (whole, blocks):
        assert found["a"].shape == (3000, 2)
        np.testing.assert_allclose(found["b"], found["a"][:, ::-1] * 2)
        np.testing.assert_allclose(found["a"].mean(0), values.sum(0), rtol=0.01)
    np.testing.assert_allclose(blocks["a"].std(0), whole["a"].std(0), rtol=0.08)
    assert len(np.unique(blocks["a"][:, 0])) > 2000
    np.testing.assert_allclose(
        np.quantile(blocks["a"], [0.025, 0.975], axis=0), np.quantile(whole["a"], [0.025, 0.975], axis=0), rtol=0.02
    )


def test_sums_over_draws_are_those_of_the_weights(rng):
    values = rng.normal(size=(40, 3))
    for groups in (8, 2):
        rule = Resampling(np.arange(40) % groups)
        weights = rule.weights(np.random.default_rng(5), 200)
        found = rule.resample({"": values}, np.random.default_rng(5), 200)[""]
        np.testing.assert_allclose(found, weights @ values, atol=1e-10)


def test_memory_of_draws_does_not_grow_with_cells(rng):
    """20,000 cells times 1,000 draws would be 160 MB of weights at once."""
    rule, sums = Resampling(np.arange(20_000)), {"a": rng.normal(size=(20_000, 3))}
    tracemalloc.start()
    try:
        rule.resample(sums, rng, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6
