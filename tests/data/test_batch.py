import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.data.batch import Hiding, Packer, revealed_log_total
from sckit.errors import ConfigError
from sckit.kernels import counts_numba, counts_reference
from sckit.kernels.counts_reference import Hide
from sckit.kernels.hashing import entry_uniform


def everything(store):
    return np.arange(store.n_genes, dtype=np.int32)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**63),
    rate=st.sampled_from([1e-9, 0.15, 0.5, 1.0]),
    max_genes=st.sampled_from([1, 5, 100]),
)
def test_compiled_packing_is_the_reference(lengths, seed, rate, max_genes):
    generator = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    genes = np.concatenate([np.sort(generator.permutation(40)[:n]) for n in lengths] or [[]]).astype(np.int32)
    counts = generator.integers(1, 9, len(genes)).astype(np.uint32)
    cells, totals = generator.integers(0, 1000, len(lengths)), generator.integers(50, 999, len(lengths))
    vocabulary = np.where(np.arange(40) % 7 == 3, -1, np.arange(40)).astype(np.int32)
    arguments = (indptr, genes, counts), cells, totals, Hide(seed, np.full(len(lengths), rate))
    fast = counts_numba.pack(*arguments, vocabulary=vocabulary, max_genes=max_genes)
    slow = counts_reference.pack(*arguments, vocabulary=vocabulary, max_genes=max_genes)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)


def test_hash_is_uniform_and_independent_between_epochs():
    cells, genes = np.divmod(np.arange(200_000), 500)
    first = entry_uniform(Hiding(0.15, 3, 0).key, cells, genes)
    second = entry_uniform(Hiding(0.15, 3, 1).key, cells, genes)
    shares = np.histogram(first, 20, (0, 1))[0] / len(first)
    assert np.abs(shares - 0.05).max() < 5 * np.sqrt(0.05 * 0.95 / len(first))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / np.sqrt(len(first))


def test_masks_at_rising_rates_are_nested_and_score_the_same_entries(simulated):
    cells = np.arange(40)
    hidden, scored = [], []
    for rate in (0.15, 0.3, 0.9, 1.0):
        batch = Packer(simulated, everything(simulated), Hiding(rate), scored=True)(cells)
        entries = list(zip(batch.cell_of_token.tolist(), batch.genes.tolist(), strict=True))
        hidden.append({e for e, h in zip(entries, batch.hidden, strict=True) if h})
        scored.append({entries[i]: v for i, v in zip(batch.targets, batch.truth, strict=True)})
    assert hidden[0] < hidden[1] < hidden[2] < hidden[3]
    assert scored[0] == scored[1] == scored[2] == scored[3]
    assert len(scored[0]) == pytest.approx(0.15 * len(hidden[3]), rel=0.1)


def test_hiding_does_not_depend_on_the_other_cells(simulated):
    packer = Packer(simulated, everything(simulated), Hiding("uniform", seed=5))
    together = packer(np.array([7, 3, 200]))
    alone = packer(np.array([3]))
    span = slice(together.offsets[1], together.offsets[2])
    np.testing.assert_array_equal(together.genes[span], alone.genes)
    np.testing.assert_array_equal(together.values[span], alone.values)
    np.testing.assert_array_equal(together.hidden[span], alone.hidden)


def test_visible_tokens_come_first_and_hidden_values_are_not_in_the_batch(simulated):
    batch = Packer(simulated, everything(simulated), Hiding(0.5))(np.arange(20))
    for c in range(20):
        hidden = batch.hidden[batch.offsets[c] : batch.offsets[c + 1]]
        assert (np.diff(hidden.astype(int)) >= 0).all()
    assert (batch.values[batch.hidden] == 0).all()
    assert (batch.values[~batch.hidden] > 0).all()
    assert (batch.truth > 0).all()


def test_values_are_log1p_of_counts_per_ten_thousand(simulated):
    batch = Packer(simulated, everything(simulated), Hiding(1.0))(np.array([5]))
    _, genes, counts = simulated.rows(np.array([5]))
    expected = np.log1p(counts / simulated.obs["total_counts"][5] * 1e4)
    np.testing.assert_allclose(batch.truth, expected[np.argsort(genes)], rtol=1e-6)


def test_contexts_differ_in_keys_only(simulated):
    cells = np.arange(10)
    detected = Packer(simulated, everything(simulated), Hiding(0.5))(cells)
    visible = Packer(simulated, everything(simulated), Hiding(0.5), "visible")(cells)
    np.testing.assert_array_equal(detected.genes, visible.genes)
    np.testing.assert_array_equal(detected.keys, np.diff(detected.offsets))
    np.testing.assert_array_equal(visible.keys, [(~h).sum() for h in np.split(detected.hidden, detected.offsets[1:-1])])
    assert (visible.n_detected == visible.keys).all()


def test_total_is_given_away_by_a_single_count_and_not_at_full_hiding(simulated):
    cells = np.arange(100)
    totals = np.log(simulated.totals(cells))
    half = Packer(simulated, everything(simulated), Hiding(0.5))(cells)
    told = np.isfinite(half.log_total)
    assert told.mean() > 0.9
    np.testing.assert_allclose(half.log_total[told], totals[told], rtol=1e-4)
    full = Packer(simulated, everything(simulated), Hiding(1.0))(cells)
    assert np.isnan(full.log_total).all()
    known = Packer(simulated, everything(simulated), Hiding(1.0), known_depth=True)(cells)
    np.testing.assert_allclose(known.log_total, totals)
    few = revealed_log_total(np.full(2, 1.0, np.float32), np.array([7, 8]))
    assert np.isnan(few).tolist() == [True, False]


def test_over_long_cells_are_cut_and_counted(simulated):
    packer = Packer(simulated, everything(simulated), Hiding(0.5), max_genes=10)
    batch = packer(np.arange(50))
    lengths = simulated.obs["n_genes"].to_numpy()[:50]
    assert (np.diff(batch.offsets) == np.minimum(lengths, 10)).all()
    assert batch.cut == np.maximum(lengths - 10, 0).sum()


def test_uniform_rates_cover_the_range_and_hide_some_cells_whole():
    rates = Hiding("uniform", seed=1).rates(np.arange(20_000))
    assert (rates == 1).mean() == pytest.approx(0.3, abs=0.02)
    part = rates[rates < 1]
    assert part.min() > 0
    np.testing.assert_allclose(np.histogram(part, 10, (0, 1))[0] / len(part), 0.1, atol=0.02)


@pytest.mark.parametrize("rate", [0, -0.1, 1.2, "half", float("nan")], ids=str)
def test_bad_rates_are_refused(rate):
    with pytest.raises(ConfigError, match="--mask"):
        Hiding(rate)
