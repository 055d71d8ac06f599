"""Packed counts come back exactly, as a decoder in plain Python reads them; bytes that are damaged never do harm."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.kernels.packing_numba import pack_entries, unpack_entries

GENES = 70_000
COUNTS = (1, 2, 14, 15, 16, 17, 142, 143, 144, 255, 256, 65_535, 65_536, 2**32 - 1)


@st.composite
def cells(draw):
    """CSR of up to five cells whose genes lie close together or far apart, with counts around every limit."""
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        gaps = draw(st.lists(st.sampled_from([0, 0, 1, 3, 253, 254, 255, 256, 509, 510, 511, 9000]), max_size=12))
        parts.append(np.cumsum(np.array(gaps, np.int64) + 1) - 1)
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    genes = np.concatenate([*parts, np.empty(0, np.int64)])
    limit = draw(st.sampled_from([2**8, 2**16, 2**32]))
    chosen = [count for count in COUNTS if count < limit]
    counts = draw(st.lists(st.sampled_from(chosen), min_size=len(genes), max_size=len(genes)))
    return indptr, genes.astype(np.int32), np.array(counts, np.min_scalar_type(limit - 1))


def decoded(indptr, gaps, halves):
    """Genes and counts as the module's first paragraph says it."""
    total = int(indptr[-1])

    def numbers(small, largest, behind):
        for number in small:
            if number == largest:
                shift = 0
                while True:
                    byte = next(behind)
                    number += (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
            yield number

    gap = list(numbers(gaps[:total].tolist(), 255, iter(gaps[total:].tolist())))
    half = [part for byte in halves[: (total + 1) // 2].tolist() for part in (byte & 15, byte >> 4)][:total]
    counts = [1 + one for one in numbers(half, 15, iter(halves[(total + 1) // 2 :].tolist()))]
    genes = [gene for a, b in pairwise(indptr) for gene in np.cumsum(np.array(gap[a:b]) + 1) - 1]
    return genes, counts


@settings(deadline=None)
@given(csr=cells())
def test_what_is_packed_comes_back(csr):
    indptr, genes, counts = csr
    packed = pack_entries(indptr, genes, counts)
    assert decoded(indptr, *packed) == (genes.tolist(), counts.tolist())
    found = np.empty_like(genes), np.empty_like(counts)
    sums = unpack_entries(indptr, packed, *found, GENES)
    assert sums == (genes.sum(dtype=np.int64), counts.sum(dtype=np.int64))
    np.testing.assert_array_equal(found[0], genes)
    np.testing.assert_array_equal(found[1], counts)
    if len(genes):
        assert unpack_entries(indptr, packed, *found, int(genes.max())) is None  # the largest is not below itself


@settings(deadline=None)
@given(csr=cells(), seed=st.integers(0, 2**32), kind=st.sampled_from(["short", "long", "other"]))
def test_damaged_bytes_are_refused_or_read_within_the_arrays(csr, seed, kind):
    indptr, genes, counts = csr
    generator = np.random.default_rng(seed)
    guard = np.full(len(genes) + 2, 7, genes.dtype), np.full(len(counts) + 2, 7, counts.dtype)
    packed = list(pack_entries(indptr, genes, counts))
    which = int(generator.integers(2))
    if kind == "short":
        packed[which] = packed[which][: len(packed[which]) // 2]
    elif kind == "long":
        packed[which] = np.append(packed[which], generator.integers(0, 256, 3, dtype=np.uint8))
    else:
        packed[which] = generator.integers(0, 256, len(packed[which]), dtype=np.uint8)
    sums = unpack_entries(indptr, (packed[0], packed[1]), guard[0][1:-1], guard[1][1:-1], GENES)
    assert all((array[0], array[-1]) == (7, 7) for array in guard)
    if kind != "other":
        assert sums is None or len(packed[which]) == 0


@pytest.mark.parametrize("nonzeros", [0, 1])
def test_cells_without_counts_have_no_bytes(nonzeros):
    indptr = np.array([0, 0, nonzeros, nonzeros], np.int64)
    genes, counts = np.zeros(nonzeros, np.uint16), np.ones(nonzeros, np.uint8)
    packed = pack_entries(indptr, genes, counts)
    assert [len(part) for part in packed] == [nonzeros, nonzeros]
    assert unpack_entries(indptr, packed, genes, counts, 1) == (0, nonzeros)
