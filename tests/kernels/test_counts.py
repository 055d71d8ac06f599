"""Counts kernels: each equals its reference in every type, and halves follow the laws they claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, binom, chi2

from sckit.bench import competitors
from sckit.bench.counts import bench_counts
from sckit.errors import SckitError
from sckit.kernels import counts_numba, counts_reference
from sckit.kernels.counts_reference import Hide
from sckit.kernels.hashing import entry_uniform

COUNT_TYPES = (np.uint8, np.uint16, np.uint32, np.int64)
GENE_TYPES = (np.uint16, np.int32)
GENES = 60
VOCABULARY = np.where(np.arange(GENES) % 7 == 3, -1, np.arange(GENES)[::-1]).astype(np.int32)


@st.composite
def csr_counts(draw):
    """CSR of up to six cells of up to 40 genes, some of them empty, and the numbers of the cells."""
    lengths = draw(st.lists(st.integers(0, 40), max_size=6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    genes = np.concatenate([np.sort(generator.permutation(GENES)[:n]) for n in lengths] or [np.zeros(0)])
    counts = generator.choice([1, 2, 15, 16, 63, 64, 65, 200], len(genes))
    csr = indptr, genes.astype(draw(st.sampled_from(GENE_TYPES))), counts.astype(draw(st.sampled_from(COUNT_TYPES)))
    return csr, generator.integers(0, 2**31, len(lengths))


def totals_of(csr, outside=0):
    return np.diff(np.concatenate([[0], np.cumsum(csr[2], dtype=np.int64)])[csr[0]]) + outside


def assert_same(fast, slow):
    for a, b in zip(fast, slow, strict=True):
        if isinstance(a, tuple):
            assert_same(a, b)
        else:
            np.testing.assert_array_equal(a, b)
            assert np.asarray(a).dtype == np.asarray(b).dtype


@settings(max_examples=60, deadline=None)
@given(drawn=csr_counts(), key=st.integers(0, 2**64 - 1), max_genes=st.sampled_from([1, 7, 100]))
def test_cut_is_the_reference(drawn, key, max_genes):
    csr, cells = drawn
    fast, slow = (
        engine.cut(csr, cells, key, vocabulary=VOCABULARY, max_genes=max_genes)
        for engine in (counts_numba, counts_reference)
    )
    assert_same(fast, slow)
    assert (np.diff(fast[0]) <= max_genes).all()


@settings(max_examples=60, deadline=None)
@given(drawn=csr_counts())
def test_normalise_is_the_reference(drawn):
    csr, _ = drawn
    totals = np.maximum(totals_of(csr), 1)
    fast, slow = (engine.normalise(csr, totals, VOCABULARY) for engine in (counts_numba, counts_reference))
    assert_same(fast[:2], slow[:2])
    np.testing.assert_allclose(fast[2], slow[2], rtol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    drawn=csr_counts(),
    key=st.integers(0, 2**64 - 1),
    outside=st.sampled_from([0, 1, 700]),
    size=st.sampled_from([None, 1e-3, 2.0, 1e4]),
)
def test_halves_are_the_reference_and_add_up(drawn, key, outside, size):
    csr, cells = drawn
    totals = totals_of(csr, outside)
    sizes = None if size is None else np.full(GENES, size)
    halves = []
    for second in (False, True):
        fast, slow = (
            engine.halve(csr, cells, totals, key, sizes=sizes, second=second)
            for engine in (counts_numba, counts_reference)
        )
        assert_same(fast, slow)
        halves.append(fast)
    (first, first_totals), (second, second_totals) = halves
    np.testing.assert_array_equal(dense(first) + dense(second), dense(csr))
    both = (first_totals > 1) & (second_totals > 1)  # a half of nothing has the total 1
    np.testing.assert_array_equal((first_totals + second_totals)[both], totals[both])


@settings(max_examples=30, deadline=None)
@given(drawn=csr_counts(), key=st.just(2**64 - 1) | st.integers(0, 2**64 - 1))
def test_packing_is_the_reference_in_every_type(drawn, key):
    csr, cells = drawn
    arguments = csr, cells, np.maximum(totals_of(csr), 1), Hide(key, np.full(len(cells), 0.4))
    for scored in (1.0, 0.15):
        options = {"vocabulary": VOCABULARY, "max_genes": 9, "scored": scored}
        assert_same(*(engine.pack(*arguments, **options) for engine in (counts_numba, counts_reference)))


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_total_of_zero_is_infinite_as_in_the_reference():
    csr = np.array([0, 2, 3]), np.array([1, 4, 2], np.int32), np.array([3, 40, 3], np.uint32)
    totals = np.array([0, 3])
    fast, slow = (engine.normalise(csr, totals, VOCABULARY) for engine in (counts_numba, counts_reference))
    np.testing.assert_allclose(fast[2], slow[2], rtol=1e-15)
    assert np.isinf(fast[2]).tolist() == [True, True, False]
    arguments = csr, np.arange(2), totals, Hide(7, np.full(2, 0.4))
    assert_same(*(e.pack(*arguments, vocabulary=VOCABULARY, max_genes=9) for e in (counts_numba, counts_reference)))


def dense(csr):
    indptr, genes, counts = csr
    table = np.zeros((len(indptr) - 1, GENES), np.int64)
    table[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), genes] = counts
    return table


def test_dot_products_of_entries_are_the_reference(rng):
    of_gene, of_cell = rng.standard_normal((GENES, 13)), rng.standard_normal((9, 13))
    for n in (0, 1, 200):
        genes, cells = rng.integers(0, GENES, n).astype(np.int32), rng.integers(0, 9, n)
        fast, slow = (e.entry_dot(of_gene, genes, of_cell, cells) for e in (counts_numba, counts_reference))
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(counts_numba.entry_dot(of_gene[:, :0], genes, of_cell[:, :0], cells), 0)
    strided = counts_numba.entry_dot(of_gene[:, :2], genes, of_cell[:, :2], cells)
    np.testing.assert_allclose(strided, (of_gene[genes, :2] * of_cell[cells, :2]).sum(1), rtol=1e-12, atol=1e-13)


def test_huge_counts_are_halved_without_overflow():
    largest = 2**31 - 1
    csr = np.array([0, 3]), np.array([0, 1, 2], np.int32), np.array([largest, largest, 2**32 - 1], np.uint32)
    total = np.array([2 * largest + 2**32 - 1])
    (first, first_total), (second, second_total) = (
        counts_numba.halve(csr, np.array([5]), total, 1, second=half) for half in (False, True)
    )
    np.testing.assert_array_equal(dense(first) + dense(second), dense(csr))
    assert first_total[0] + second_total[0] == total[0] > 2**32
    deviation = np.abs(first[2].astype(float) - csr[2] / 2) / np.sqrt(csr[2] / 4)
    assert (deviation < 5).all()
    assert (deviation > 0).all()


def test_a_cell_without_counts_has_halves_of_total_one():
    csr = np.zeros(3, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.uint8)
    empty, totals = counts_numba.halve(csr, np.array([1, 2]), np.zeros(2, np.int64), 0)
    assert empty[0].tolist() == [0, 0, 0]
    assert totals.tolist() == [1, 1]


def drawn_halves(count, n, sizes=None, key=3):
    """First halves of one count in n cells of one gene, int64 [n]."""
    csr = np.arange(n + 1), np.full(n, 4, np.int32), np.full(n, count, np.uint32)
    (indptr, _, kept), totals = counts_numba.halve(csr, np.arange(n), np.full(n, count), key, sizes=sizes)
    first = np.zeros(n, np.int64)
    first[np.diff(indptr) > 0] = kept
    np.testing.assert_array_equal(totals, np.maximum(first, 1))
    return first


@pytest.mark.parametrize("count", [1, 2, 5, 63, 64, 65, 150])
def test_a_halved_count_is_binomial(count):
    assert_law(drawn_halves(count, 40_000), binom(count, 0.5), count)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("size", [0.3, 2.0, 1e4])
def test_a_count_halved_by_the_urn_is_beta_binomial(count, size):
    first = drawn_halves(count, 40_000, np.full(GENES, size))
    assert_law(first, betabinom(count, size / 2, size / 2), count)


def assert_law(first, law, count):
    """Chi-square at one in a hundred thousand, cells of small expectation put together."""
    seen, expected = np.bincount(first, minlength=count + 1), len(first) * law.pmf(np.arange(count + 1))
    group = np.cumsum(expected) // 25
    seen, expected = (np.bincount(np.unique(group, return_inverse=True)[1], x) for x in (seen, expected))
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-5, max(len(seen) - 1, 1))


@pytest.mark.parametrize("count", [1, 2, 5, 63, 64, 65, 150])
def test_competitors_of_the_benchmark_follow_the_laws_too(rng, count):
    csr = np.arange(40_001), np.arange(40_000, dtype=np.int32), np.full(40_000, count, np.uint32)
    assert_law(spread(competitors.halve_numpy(csr, rng)), binom(count, 0.5), count)
    assert_law(spread(competitors.halve_urn_numpy(csr, rng, 2.0)), betabinom(count, 1.0, 1.0), count)


def test_a_competitor_halves_without_bitwise_count(rng, monkeypatch):
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    csr = np.arange(40_001), np.arange(40_000, dtype=np.int32), np.full(40_000, 7, np.uint32)
    assert_law(spread(competitors.halve_numpy(csr, rng)), binom(7, 0.5), 7)


def spread(half):
    """Counts of 40,000 cells of one gene each, from CSR without zeros."""
    indptr, _, kept = half
    first = np.zeros(len(indptr) - 1, np.int64)
    first[np.diff(indptr) > 0] = kept
    return first


def test_halves_of_poisson_counts_are_independent(rng):
    counts = rng.poisson(3.0, (20_000, 2)) + 0
    cell, gene = np.nonzero(counts)
    csr = np.searchsorted(cell, np.arange(20_001)), gene.astype(np.uint16), counts[cell, gene].astype(np.uint8)
    (first, _), (second, _) = (
        counts_numba.halve(csr, np.arange(20_000), counts.sum(1), 9, second=half) for half in (False, True)
    )
    a, b = dense(first)[:, :2], dense(second)[:, :2]
    correlation = np.corrcoef(np.column_stack([a, b]).T)
    off = correlation[~np.eye(4, dtype=bool)]
    assert np.abs(off).max() < 4.5 / np.sqrt(20_000)
    assert a.mean() == pytest.approx(1.5, abs=0.03)
    assert a.var() == pytest.approx(1.5, abs=0.05)


def test_a_half_does_not_know_the_other_cells_nor_the_hash_that_hides(rng):
    counts = rng.integers(1, 30, (50, GENES)).astype(np.uint16)
    csr = np.arange(51) * GENES, np.tile(np.arange(GENES, dtype=np.uint16), 50), counts.ravel()
    whole, totals = counts_numba.halve(csr, np.arange(50) * 3, counts.sum(1), 8)
    one = np.array([0, GENES]), csr[1][:GENES], counts[20]
    alone, total = counts_numba.halve(one, np.array([60]), counts[20:21].sum(1), 8)
    np.testing.assert_array_equal(dense(alone)[0], dense(whole)[20])
    assert total[0] == totals[20]
    u = entry_uniform(9, np.repeat(np.arange(50) * 3, GENES), csr[1])
    assert abs(np.corrcoef(u, (dense(whole) / counts).ravel())[0, 1]) < 5 / np.sqrt(50 * GENES)


def test_bench_reports_every_operation_and_refuses_a_wrong_engine(monkeypatch):
    told = []
    document = bench_counts(1, lambda kind, facts: told.append(facts) if kind == "row" else None, cells=[20])
    assert document["rows"] == told
    assert {row["engine"] for row in told} == {"sckit", "numpy", "torch"}
    assert all(row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] for row in told)
    for engine, name in ((counts_numba, "entry_dot"), (competitors, "dot_torch")):
        with monkeypatch.context() as patch:
            patch.setattr(engine, name, lambda *_: np.zeros(7))
            with pytest.raises(SckitError, match="entry dot"):
                bench_counts(1, cells=[20])
