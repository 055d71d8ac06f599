"""Views of counts, and the steps that everything which reads CSR shares."""

import numpy as np
import pytest
import scipy.sparse

from sckit.data.views import CutView, ShuffledView, as_matrix, cell_of_entry, in_blocks, indptr_of, log_values


def test_shuffled_values_keep_detection_and_depth(simulated):
    cells = np.array([5, 3, 200])
    shuffled = ShuffledView(simulated, seed=1)
    indptr, genes, counts = shuffled.rows(cells)
    true = simulated.rows(cells)
    np.testing.assert_array_equal(indptr, true[0])
    np.testing.assert_array_equal(genes, true[1])
    for c in range(3):
        span = slice(indptr[c], indptr[c + 1])
        np.testing.assert_array_equal(np.sort(counts[span]), np.sort(true[2][span]))
        assert (counts[span] != true[2][span]).any()
    np.testing.assert_array_equal(shuffled.rows(cells[2:])[2], counts[indptr[2] :])  # whatever else is in the batch
    assert (ShuffledView(simulated, seed=2).rows(cells)[2] != counts).any()


def test_a_cut_view_keeps_a_choice_of_genes_that_no_other_cell_changes(simulated):
    vocabulary = np.where(np.arange(simulated.n_genes) % 5 == 2, -1, np.arange(simulated.n_genes)).astype(np.int32)
    cut = CutView(simulated, vocabulary, 20, seed=1)
    cells = np.array([5, 3, 200])
    whole, kept = (as_matrix(view.rows(cells), simulated.n_genes).toarray() for view in (simulated, cut))
    assert ((kept == whole) | (kept == 0)).all()
    assert (kept[:, vocabulary < 0] == 0).all()
    np.testing.assert_array_equal((kept > 0).sum(1), np.minimum((whole[:, vocabulary >= 0] > 0).sum(1), 20))
    np.testing.assert_array_equal(as_matrix(cut.rows(cells[1:]), simulated.n_genes).toarray(), kept[1:])
    np.testing.assert_array_equal(cut.totals(cells), simulated.totals(cells))


@pytest.mark.parametrize("size", [1, 3, 4, 99])
def test_blocks_are_consecutive_and_hold_every_cell_once(size):
    cells = np.array([4, 2, 9, 9])
    blocks = list(in_blocks(cells, size))
    np.testing.assert_array_equal(np.concatenate(blocks), cells)
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert list(in_blocks(cells[:0], size)) == []


@pytest.mark.parametrize("lengths", [[], [0], [2, 0, 3], np.array([True, False])], ids=str)
def test_lengths_and_cells_of_entries_say_the_same(lengths):
    indptr = indptr_of(lengths)
    assert indptr.dtype == np.int64
    np.testing.assert_array_equal(np.diff(indptr), lengths)
    np.testing.assert_array_equal(cell_of_entry(indptr), np.repeat(np.arange(len(lengths)), lengths))


def test_log_values_keep_the_entries_and_survive_a_cell_without_counts(rng):
    counts = rng.poisson(0.5, (6, 4)).astype(np.uint32)
    counts[2] = 0
    totals = counts.sum(1) + np.array([3, 0, 0, 5, 1, 2])
    values = log_values(scipy.sparse.csr_array(counts), totals)
    np.testing.assert_allclose(values.toarray(), np.log1p(counts / np.maximum(totals, 1)[:, None] * 1e4))
