"""Lists in HDF5 files, whose compressed chunks are inflated on several threads; HDF5 itself uses one."""

from __future__ import annotations

import os
import sys
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import h5py
import numpy as np

from sckit.data.readers.hdf5 import Group, dataset
from sckit.data.views import Csr

try:
    from isal import isal_zlib  # inflates twice as fast
except ImportError:  # no build for this machine
    isal_zlib = None

_PIPELINES = ([h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])
_MOST_THREADS = 8


class MatrixLists:
    """The lists `indices` and `data` of a compressed matrix, for reading rows one block after another."""

    def __init__(self, matrix: Group) -> None:
        """matrix: a group of an HDF5 file or zarr folder. Raises KeyError where it lacks a list."""
        self._indices, self._data = (ChunkedList(dataset(matrix, name)) for name in ("indices", "data"))

    def rows(self, indptr: np.ndarray, first: int, last: int) -> Csr:
        """Read rows first..last of the matrix, whose indptr [rows + 1] is known: their (indptr, indices, data)."""
        low, high = int(indptr[first]), int(indptr[last])
        parts = self._indices.start(low, high), self._data.start(low, high)
        return indptr[first : last + 1] - low, self._indices.finish(*parts[0]), self._data.finish(*parts[1])


class ChunkedList:
    """A list in a file. The chunk that was inflated last is kept, because the next part begins in it."""

    def __init__(self, values: Any) -> None:
        """values: a one-dimensional dataset."""
        self._values = values
        self._inflates = _can_inflate(values)
        self._last: tuple[int, Future[np.ndarray]] | None = None

    def start(self, low: int, high: int) -> tuple[int, int, list[Future[np.ndarray]]]:
        """Begin to read entries low..high; the result goes to `finish`."""
        if not self._inflates or low >= high:
            return low, high, []
        size, found = self._values.chunks[0], []
        for number in range(low // size, -(-high // size)):
            if self._last is None or self._last[0] != number:
                self._last = number, self._inflate(number)
            found.append(self._last[1])
        return low, high, found

    def finish(self, low: int, high: int, chunks: list[Future[np.ndarray]]) -> np.ndarray:
        """Return entries low..high. Raises zlib.error where a chunk is damaged."""
        if not chunks:
            return np.asarray(self._values[low:high])
        size, parts = self._values.chunks[0], [chunk.result() for chunk in chunks]
        begin = low // size * size
        parts[-1] = parts[-1][: high - begin - size * (len(parts) - 1)]
        parts[0] = parts[0][low - begin :]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _inflate(self, number: int) -> Future[np.ndarray]:
        """Return a chunk that is inflated on another thread, or one that HDF5 has read."""
        size = self._values.chunks[0]
        stored = self._values.id.get_chunk_info_by_coord((number * size,))
        if stored.byte_offset is None or stored.filter_mask:  # never written, or without all filters
            done: Future[np.ndarray] = Future()
            done.set_result(np.asarray(self._values[number * size : (number + 1) * size]))
            return done
        _, raw = self._values.id.read_direct_chunk((number * size,))
        return _pool(os.getpid()).submit(_inflated, raw, size, self._values.dtype, shuffled=bool(self._values.shuffle))


def _can_inflate(values: Any) -> bool:
    """Return whether the chunks of a list are numbers of this machine that were deflated, after shuffling or not."""
    if not isinstance(values, h5py.Dataset) or values.chunks is None or not values.dtype.isnative:
        return False
    properties = values.id.get_create_plist()
    codes = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    plain = values.dtype.kind in "iuf" and values.dtype.itemsize <= 8 and sys.byteorder == "little"
    return plain and codes in _PIPELINES and len(values.shape) == 1


def _inflated(raw: bytes, size: int, dtype: np.dtype, *, shuffled: bool) -> np.ndarray:
    """Return the numbers of a chunk. Raises zlib.error unless there are `size` of them."""
    wanted = size * dtype.itemsize
    if isal_zlib is None:
        data = zlib.decompressobj().decompress(raw, wanted)
    else:
        try:
            data = isal_zlib.decompress(raw, bufsize=wanted)
        except isal_zlib.error as error:  # pyright: ignore[reportGeneralTypeIssues]
            raise zlib.error(str(error)) from error
    if len(data) != wanted:
        message = f"a chunk holds {len(data)} bytes instead of {wanted}"
        raise zlib.error(message)
    if not shuffled or dtype.itemsize == 1:
        return np.frombuffer(data, dtype)
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, size)  # the lowest byte of all numbers comes first
    number = np.dtype(f"u{dtype.itemsize}")
    found = planes[0].astype(number)
    for place in range(1, dtype.itemsize):
        if planes[place].any():  # the highest ones of gene numbers and counts are zero
            found |= planes[place].astype(number) << number.type(8 * place)
    return found.view(dtype)


def _threads() -> int:
    """Return how many threads inflate chunks."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST_THREADS)


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """Return this process's threads; a forked child has none of its parent's and gets its own."""
    return ThreadPoolExecutor(_threads(), thread_name_prefix="sckit-inflate")
