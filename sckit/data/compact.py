"""The compact layout of a shard: chunks of cells in few bytes, each of which is decoded as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import pyarrow as pa

from sckit.data.layouts import DamagedError, Entries, check, check_indptr, mapped, mapped_bytes
from sckit.data.views import indptr_of

CHUNK_CELLS = 64
_COLUMNS = 5  # of the table of chunks: ends of gaps and of counts, bytes of gaps unpacked, largest count, sum
_LEVEL = 1  # of zstd: higher levels save nothing
_MOST_BYTES = 6  # of an unpacked entry
_RING_ENTRIES = 2**25
_READERS = 8  # threads whose chunks find room at the same time


class Ring:
    """The chunks that were decoded last, one after another in two arrays that begin anew at their end.

    For all shards and threads of a store. Whoever reads or writes holds `lock`.
    """

    def __init__(self, gene_dtype: np.dtype, n_genes: int) -> None:
        """Make room for 33 million entries, and for any chunk; what is never filled takes no memory."""
        self.lock = Lock()
        self.size = max(_RING_ENTRIES, CHUNK_CELLS * n_genes)
        self._dtype = gene_dtype
        self._held: deque[tuple[int, int, np.ndarray, int]] = deque()  # bounds, where its shard notes it, chunk
        self._end = 0

    @cached_property
    def arrays(self) -> Entries:
        """Gene numbers and counts [size]."""
        return np.empty(self.size, self._dtype), np.empty(self.size, np.uint32)

    def put(self, places: np.ndarray, chunk: int, entries: Entries) -> None:
        """Write a chunk over the oldest ones; places[chunk] becomes where it begins, and -1 for what is lost."""
        begin = self._end
        if begin + len(entries[0]) > self.size:
            self._forget(begin, self.size)
            begin = 0
        self._end = begin + len(entries[0])
        self._forget(begin, self._end)
        for array, part in zip(self.arrays, entries, strict=True):
            array[begin : self._end] = part
        self._held.append((begin, self._end, places, chunk))
        places[chunk] = begin

    def _forget(self, begin: int, end: int) -> None:
        while self._held and self._held[0][0] < end and self._held[0][1] > begin:
            _, _, places, chunk = self._held.popleft()
            places[chunk] = -1


class CompactShard:
    """A shard in chunks of 64 cells: the gaps between genes, compressed with zstd, and the counts in half a byte."""

    def __init__(
        self, paths: list[Path], manifest_entry: dict[str, Any], gene_dtype: np.dtype, n_genes: int, ring: Ring
    ) -> None:
        """Read where the chunks lie. Raises DamagedError."""
        self.indptr, self._table = (mapped(path) for path in paths[:2])
        check_indptr(self.indptr, manifest_entry)
        chunks = -(-manifest_entry["cells"] // CHUNK_CELLS)
        check((self._table.shape, self._table.dtype) == ((chunks, _COLUMNS), np.int64))
        self._bounds = np.concatenate(([0], self._table[:, :2].ravel()))  # of gaps and counts of all chunks
        self._bytes = mapped_bytes(paths[2]) if self._bounds[-1] else np.empty(0, np.uint8)
        check(bool((np.diff(self._bounds) >= 0).all()) and self._bounds[-1] == len(self._bytes))
        self._gene_dtype, self._n_genes, self._ring = gene_dtype, n_genes, ring
        self._places = np.full(chunks, -1)  # where in the ring a chunk begins
        self._coming: dict[int, Event] = {}  # chunks that a thread decodes
        self._codec = pa.Codec("zstd")

    def entries(self, first: int, last: int) -> Entries:
        """Return the entries of cells first..last. Raises DamagedError."""
        parts = []
        for chunk in range(first // CHUNK_CELLS, -(-last // CHUNK_CELLS)):
            begin = chunk * CHUNK_CELLS
            low, high = self.indptr[[max(first, begin), min(last, begin + CHUNK_CELLS)]] - self.indptr[begin]
            parts.append([array[low:high] for array in self._decode(chunk)])
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        genes, counts = (
            zip(*parts, strict=True) if parts else ([np.empty(0, self._gene_dtype)], [np.empty(0, np.uint8)])
        )
        return np.concatenate(genes), np.concatenate(counts)

    def copy(self, cells: np.ndarray, to: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> None:
        """Write the entries of cells [C] into genes and counts, those of each cell from the place `to` [C] on.

        Their chunks are decoded once and stay in the ring for the next calls. Raises DamagedError.
        """
        chunks, of_cell = np.unique(cells // CHUNK_CELLS, return_inverse=True)
        ends = self.indptr[np.minimum((chunks + 1) * CHUNK_CELLS, len(self.indptr) - 1)]
        part = np.cumsum(ends - self.indptr[chunks * CHUNK_CELLS]) // (self._ring.size // _READERS)
        for number in range(int(part[-1]) + 1 if len(part) else 0):  # nearly always one
            own = part[of_cell] == number
            self._copy(chunks[part == number], cells[own], to[own], genes, counts)

    def _copy(
        self, chunks: np.ndarray, cells: np.ndarray, to: np.ndarray, genes: np.ndarray, counts: np.ndarray
    ) -> None:
        """Copy cells whose chunks find room in the ring together."""
        from sckit.kernels.counts_numba import copy_cells  # slow to load

        while True:
            with self._ring.lock:
                missing = chunks[self._places[chunks] < 0].tolist()
                if not missing:
                    begin = self.indptr[cells // CHUNK_CELLS * CHUNK_CELLS] - self._places[cells // CHUNK_CELLS]
                    bounds = np.stack([self.indptr[cells], self.indptr[cells + 1]], 1) - begin[:, None]
                    copy_cells(bounds, *self._ring.arrays, to, genes, counts)
                    return
                chunk = next((chunk for chunk in missing if chunk not in self._coming), None)
                event = self._coming[missing[0]] if chunk is None else self._coming.setdefault(chunk, Event())
            if chunk is None:
                event.wait()
            else:
                self._bring(chunk, event)

    def _bring(self, chunk: int, event: Event) -> None:
        """Decode a chunk into the ring; threads that wait for the event go on, also where it is damaged."""
        entries = None
        try:
            entries = self._decode(chunk)
        finally:
            with self._ring.lock:
                if entries is not None:
                    self._ring.put(self._places, chunk, entries)
                del self._coming[chunk]
            event.set()

    def _decode(self, chunk: int) -> Entries:
        from sckit.kernels.packing_numba import unpack_entries  # slow to load

        first, last = chunk * CHUNK_CELLS, min((chunk + 1) * CHUNK_CELLS, len(self.indptr) - 1)
        indptr = self.indptr[first : last + 1] - self.indptr[first]
        n_gaps, largest, total = self._table[chunk, 2:].tolist()
        # Before memory of that size is taken:
        check(n_gaps <= _MOST_BYTES * int(indptr[-1]) and 0 <= largest < 2**32)
        start, middle, end = self._bounds[2 * chunk : 2 * chunk + 3].tolist()
        genes = np.empty(int(indptr[-1]), self._gene_dtype)
        counts = np.empty(len(genes), np.min_scalar_type(largest))
        try:
            gaps = self._codec.decompress(pa.py_buffer(self._bytes[start:middle]), n_gaps)
        except (OSError, ValueError, pa.ArrowException) as error:
            message = f"cannot be decompressed at cell {first} ({error})"
            raise DamagedError(message) from error
        packed = np.frombuffer(gaps, np.uint8), np.asarray(self._bytes[middle:end])
        sums = unpack_entries(indptr, packed, genes, counts, self._n_genes)
        if sums is None or _sum_of(*sums) != total:
            message = f"has other counts at cell {first} than were written"
            raise DamagedError(message)
        return genes, counts


def compressed(
    lengths: np.ndarray, genes: Iterable[np.ndarray], counts: Iterable[np.ndarray]
) -> tuple[np.ndarray, list[bytes]]:
    """Return the table of chunks, int64 [chunks, 5], and the bytes of a shard, in parts.

    lengths: int64 [C], entries of each cell; genes, counts: those of all cells in order, cut anywhere.
    """
    from sckit.kernels.packing_numba import pack_entries

    codec, written, table = pa.Codec("zstd", compression_level=_LEVEL), [], []
    chunks = [lengths[first : first + CHUNK_CELLS] for first in range(0, len(lengths), CHUNK_CELLS)]
    sizes = [int(chunk.sum()) for chunk in chunks]
    for chunk, own_genes, own_counts in zip(chunks, _cut(genes, sizes), _cut(counts, sizes), strict=True):
        gaps, halves = pack_entries(indptr_of(chunk), own_genes, own_counts)
        written += [codec.compress(gaps.tobytes(), asbytes=True), halves.tobytes()]
        total = _sum_of(int(own_genes.sum(dtype=np.int64)), int(own_counts.sum(dtype=np.int64)))
        table.append((*map(len, written[-2:]), len(gaps), int(own_counts.max(initial=0)), total))
    found = np.array(table, np.int64).reshape(-1, _COLUMNS)
    found[:, :2] = found[:, :2].cumsum().reshape(-1, 2)  # from numbers of bytes to where they end
    return found, written


def _cut(parts: Iterable[np.ndarray], sizes: Iterable[int]) -> Iterator[np.ndarray]:
    """Yield joined parts, cut into these sizes."""
    rest, parts = np.empty(0, np.uint8), iter(parts)
    for size in sizes:
        while len(rest) < size:
            rest = np.concatenate([rest, next(parts)]) if len(rest) else next(parts)
        yield rest[:size]
        rest = rest[size:]


def _sum_of(genes: int, counts: int) -> int:
    """Return the number by which a chunk that was decoded wrongly is told, from the sums of its genes and counts."""
    return (genes + (counts << 20)) & (2**62 - 1)
