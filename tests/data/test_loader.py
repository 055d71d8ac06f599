"""Every cell of an epoch in one batch, in a shuffled order that is a function of (seed, epoch)."""

from itertools import pairwise

import numpy as np
import pytest

from sckit.data.batch import Hiding, Packer
from sckit.data.loader import batches_by_tokens, detected_in, epoch_batches, packed, shuffle
from sckit.data.views import ShuffledView


@pytest.mark.parametrize("n_folds", [0, 3])
def test_an_epoch_has_every_cell_once_within_the_budget(simulated, rng, n_folds):
    lengths = simulated.obs["n_genes"].to_numpy()
    cells = np.arange(0, simulated.n_cells, 2)
    fold_of = rng.integers(n_folds, size=simulated.n_cells) if n_folds else None
    folds = None if fold_of is None else fold_of[cells]
    batches = epoch_batches(cells, cells // 64, lengths, 1000, (0, 1), folds)
    rows = [part for _, part in batches]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), cells)
    assert max(lengths[part].sum() for part in rows) <= 1000 + lengths.max()
    for fold, part in batches:
        assert fold is None if fold_of is None else (fold_of[part] == fold).all()
    again = epoch_batches(cells, cells // 64, lengths, 1000, (0, 1), folds)
    assert all(a[0] == b[0] and (a[1] == b[1]).all() for a, b in zip(batches, again, strict=True))
    other = epoch_batches(cells, cells // 64, lengths, 1000, (0, 2), folds)
    assert not np.array_equal(np.concatenate(rows), np.concatenate([part for _, part in other]))


@pytest.mark.parametrize("n_folds", [0, 5])
def test_an_epoch_reads_a_block_of_cells_within_a_short_stretch(rng, n_folds):
    """So that a chunk of a compact store is decoded once, however many folds there are."""
    cells = np.flatnonzero(rng.random(64 * 64 * 8) < 0.8)
    folds = rng.integers(n_folds, size=len(cells)) if n_folds else None
    lengths = np.full(64 * 64 * 8, 10)
    parts = [part for _, part in epoch_batches(cells, cells // 64, lengths, 700, (3, 1), folds)]
    place = np.full(len(lengths), -1)
    place[np.concatenate(parts)] = np.arange(len(cells))
    first = np.where(place < 0, len(cells), place).reshape(-1, 64).min(1)
    most = 2 * 64 * 64 if n_folds else 64 * 64 + 64  # batches of folds are mixed where two stretches meet
    assert (place.reshape(-1, 64).max(1) - first).max() < most
    assert np.corrcoef(place[cells], cells)[0, 1] < 0.1  # the chunks come in a random order


@pytest.mark.parametrize("in_chunk", [64, 1])
def test_shuffle_mixes_chunks_within_stretches(rng, in_chunk):
    chunks = np.arange(20_000) // in_chunk
    order = shuffle(chunks, rng)
    np.testing.assert_array_equal(np.sort(order), np.arange(20_000))
    assert np.mean(np.abs(np.diff(order)) < 64) < 0.05  # whether chunks hold many cells that are wanted, or few


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


@pytest.mark.parametrize("is_store", [True, False])
@pytest.mark.parametrize(("job_cells", "job_entries"), [(1, 10**6), (30, 10**6), (1000, 10**6), (1000, 900)])
def test_batches_made_together_are_those_made_one_by_one(simulated, monkeypatch, is_store, job_cells, job_entries):
    monkeypatch.setattr("sckit.data.loader._STRETCH_CELLS", job_cells)
    monkeypatch.setattr("sckit.data.loader._JOB_ENTRIES", job_entries)
    view = simulated if is_store else ShuffledView(simulated, 3)
    packer = Packer(view, np.arange(simulated.n_genes, dtype=np.int32), Hiding(0.3), scored=True, max_genes=20)
    cells, lengths = np.arange(100), simulated.obs["n_genes"].to_numpy()
    parts = [part for _, part in epoch_batches(cells, simulated.chunks(cells), lengths, 500, (0, 0))]
    assert len(parts) > 5
    for batch, part in zip(packed(packer, parts, 3), parts, strict=True):
        for name, value in vars(packer(part)).items():
            np.testing.assert_array_equal(getattr(batch, name), value)
    assert list(packed(packer, [], 2)) == []
