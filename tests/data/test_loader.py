"""Every cell of an epoch in one batch, in a shuffled order that is a function of (seed, epoch)."""

from itertools import pairwise

import numpy as np
import pytest

from sckit.data.loader import batches_by_tokens, detected_in, epoch_batches, shuffle


def test_an_epoch_has_every_cell_once_within_the_budget(simulated):
    lengths = simulated.obs["n_genes"].to_numpy()
    cells = np.arange(simulated.n_cells)
    batches = epoch_batches(cells, lengths, 1000, (0, 1))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), cells)
    assert max(lengths[b].sum() for b in batches) <= 1000 + lengths.max()
    again = epoch_batches(cells, lengths, 1000, (0, 1))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    other = epoch_batches(cells, lengths, 1000, (0, 2))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_shuffle_mixes_within_its_buffer(rng):
    order = shuffle(np.arange(10_000), rng)
    assert np.mean(np.abs(np.diff(order)) < 64) < 0.2


@pytest.mark.parametrize("cells", [[], [3], [3, 4, 5]], ids=["none", "one", "three"])
def test_batches_by_tokens_keep_the_order(cells):
    parts = batches_by_tokens(np.array(cells, np.int64), np.full(10, 100), 150)
    np.testing.assert_array_equal(np.concatenate([*parts, np.zeros(0, np.int64)]), cells)


def test_detected_genes_are_those_of_the_vocabulary_in_the_order_of_the_cells(simulated, monkeypatch):
    monkeypatch.setattr("sckit.data.loader._BLOCK_CELLS", 3)
    vocabulary = np.where(np.arange(simulated.n_genes) % 3 == 1, -1, 0)
    cells = np.array([7, 3, 300, 3, 5, 0, 1])
    indptr, genes, _ = simulated.rows(cells)
    expected = [(genes[low:high] % 3 != 1).sum() for low, high in pairwise(indptr)]
    assert detected_in(simulated, vocabulary, cells).tolist() == expected
    assert detected_in(simulated, vocabulary, cells[:0]).tolist() == []
