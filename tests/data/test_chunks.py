"""Chunks that several threads inflate hold what HDF5 reads, and damage is told as it is there."""

import time
import zlib

import h5py
import numpy as np
import pytest

from sckit.data.ahead import ahead
from sckit.data.readers import chunks
from sckit.data.readers.chunks import ChunkedList
from sckit.data.readers.hdf5 import readable
from sckit.errors import DataError

KINDS = [np.int64, np.int32, np.uint8, np.uint16, np.float32, np.float64]


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as opened:
        yield opened


@pytest.fixture
def inflated(monkeypatch):
    """How many chunks were inflated by us."""
    called = []

    def count(*arguments, **options):
        called.append(arguments)
        return inflate(*arguments, **options)

    inflate = chunks._inflated
    monkeypatch.setattr(chunks, "_inflated", count)
    return called


def read(values, *bounds):
    listed = ChunkedList(values)
    return np.concatenate([listed.finish(*listed.start(low, high)) for low, high in bounds])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_parts_of_a_list_are_what_hdf5_reads(file, rng, inflated, kind, shuffle):
    numbers = rng.integers(0, 2**40 if kind == np.int64 else 200, 1003).astype(kind)
    if np.dtype(kind).kind != "u":
        numbers[::7] *= -1
    values = file.create_dataset("a", data=numbers, chunks=(100,), compression="gzip", shuffle=shuffle)
    found = read(values, (0, 0), (0, 1), (1, 100), (100, 350), (350, 351), (351, 1003))
    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == numbers.dtype
    assert len(inflated) == 11  # each chunk once, the last one included
    np.testing.assert_array_equal(read(values, (950, 1003)), numbers[950:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (64,)},
        {"chunks": (64,), "compression": "lzf"},
        {"chunks": (64,), "compression": "gzip", "fletcher32": True},
        {"chunks": (64,), "compression": "gzip", "dtype": ">i4"},
    ],
    ids=["contiguous", "chunked", "lzf", "with checksums", "other byte order"],
)
def test_other_lists_are_read_by_hdf5(file, inflated, options):
    values = file.create_dataset("a", data=np.arange(200), **options)
    np.testing.assert_array_equal(read(values, (3, 130), (130, 200)), np.arange(3, 200))
    assert not inflated


def test_chunks_that_were_never_written_or_skip_a_filter_are_read_by_hdf5(file, inflated):
    values = file.create_dataset("a", (300,), np.int32, chunks=(100,), compression="gzip", fillvalue=7)
    values[:100] = np.arange(100)
    values.id.write_direct_chunk((200,), np.arange(100, 200, dtype=np.int32).tobytes(), 1)  # 1: not deflated
    expected = np.concatenate([np.arange(100), np.full(100, 7), np.arange(100, 200)])
    np.testing.assert_array_equal(values[:], expected)
    np.testing.assert_array_equal(read(values, (0, 300)), expected)
    assert len(inflated) == 1


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """What inflates: zlib where there is no isal."""
    if request.param == "zlib":
        monkeypatch.setattr(chunks, "isal_zlib", None)
    elif chunks.isal_zlib is None:
        pytest.skip("isal is not installed")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("content", [b"x", b"no deflated bytes", b"too few"])
def test_a_damaged_chunk_is_an_error(file, tmp_path, content):
    values = file.create_dataset("a", data=np.arange(300), chunks=(100,), compression="gzip", shuffle=True)
    raw = zlib.compress(b"too few") if content == b"too few" else content
    values.id.write_direct_chunk((100,), raw)
    with pytest.raises(zlib.error):
        read(values, (0, 300))
    with pytest.raises(DataError, match="truncated or corrupt"), readable(tmp_path / "x.h5"):
        read(values, (0, 300))


def test_items_are_made_ahead_in_order():
    made = []

    def items():
        for number in range(4):
            made.append(number)
            yield number

    found = ahead(items())
    assert next(found) == 0
    until = time.monotonic() + 20
    while len(made) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert made == [0, 1]  # the next one, and not the one after it
    assert list(found) == [1, 2, 3]


def test_an_error_comes_in_its_place_and_leaving_early_closes_the_items():
    closed = []

    def items():
        try:
            yield 1
            message = "broken"
            raise DataError(message)
        finally:
            closed.append(True)

    found = []
    with pytest.raises(DataError, match="broken"):
        found.extend(ahead(items()))
    assert closed == [True]
    numbers = (number for number in range(10))
    stopped = ahead(numbers)
    assert next(stopped) == 0
    stopped.close()
    assert list(numbers) == []
