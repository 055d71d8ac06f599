"""The compact layout of a shard: chunks of cells in few bytes, each of which is decoded as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sckit.data.layouts import DamagedError, Entries, check, check_indptr, mapped, mapped_bytes
from sckit.data.views import indptr_of

CHUNK_CELLS = 64
_COLUMNS = 5  # of the table of chunks: ends of gaps and of counts, bytes of gaps unpacked, largest count, sum
_LEVEL = 1  # of zstd: higher levels save nothing
_MOST_BYTES = 6  # of an unpacked entry

Key = tuple[int, int]
"""The number of a shard and of a chunk in it."""


class Chunk(NamedTuple):
    """A chunk that is decoded."""

    genes: np.ndarray
    counts: np.ndarray
    place: tuple[int, int, int, int]  # its `address`


class Decoded:
    """The chunks of a store that were decoded last, for all of its shards and threads. No thread waits for another."""

    def __init__(self, room: int = 2**25) -> None:
        """room: how many entries are held, besides those that threads still use."""
        self.room = room
        self._lock = Lock()
        self._held: dict[Key, Chunk] = {}
        self._claimed: set[Key] = set()
        self._entries = 0

    def chunks(self, keys: list[Key], decode: Callable[[Key], Chunk]) -> list[Chunk]:
        """Return chunks, decoded; those that another thread has claimed come last, when they mostly are there."""
        with self._lock:
            found = {key: self._held.get(key) for key in keys}
        claimed = []
        for key in keys:
            if found[key] is None:
                if self._claim(key):
                    found[key] = self._keep(key, decode(key))
                else:
                    claimed.append(key)
        for key in claimed:
            found[key] = self._held.get(key) or self._keep(key, decode(key))
        return [each for each in found.values() if each is not None]

    def _claim(self, key: Key) -> bool:
        """Return whether a chunk is for the caller to decode: it is not held, and no other thread has claimed it."""
        with self._lock:
            if key in self._held or key in self._claimed:
                return False
            self._claimed.add(key)
            return True

    def _keep(self, key: Key, decoded: Chunk) -> Chunk:
        """Hold a chunk, and let the oldest ones go."""
        with self._lock:
            self._claimed.discard(key)
            if key not in self._held:
                self._held[key] = decoded
                self._entries += len(decoded.genes)
            while self._entries > self.room and len(self._held) > 1:
                self._entries -= len(self._held.pop(next(iter(self._held))).genes)
        return decoded


class CompactShard:
    """A shard in chunks of 64 cells: the gaps between genes, compressed with zstd, and the counts in half a byte."""

    def __init__(self, paths: list[Path], manifest_entry: dict[str, Any], gene_dtype: np.dtype, n_genes: int) -> None:
        """Read where the chunks lie. Raises DamagedError."""
        self.indptr, self._table = (mapped(path) for path in paths[:2])
        check_indptr(self.indptr, manifest_entry)
        chunks = -(-manifest_entry["cells"] // CHUNK_CELLS)
        check((self._table.shape, self._table.dtype) == ((chunks, _COLUMNS), np.int64))
        self._bounds = np.concatenate(([0], self._table[:, :2].ravel()))  # of gaps and counts of all chunks
        self._bytes = mapped_bytes(paths[2]) if self._bounds[-1] else np.empty(0, np.uint8)
        check(bool((np.diff(self._bounds) >= 0).all()) and self._bounds[-1] == len(self._bytes))
        self._gene_dtype, self._n_genes = gene_dtype, n_genes
        self._codec = pa.Codec("zstd")

    def entries(self, first: int, last: int) -> Entries:
        """Return the entries of cells first..last. Raises DamagedError."""
        parts = []
        for chunk in range(first // CHUNK_CELLS, -(-last // CHUNK_CELLS)):
            begin = chunk * CHUNK_CELLS
            low, high = self.indptr[[max(first, begin), min(last, begin + CHUNK_CELLS)]] - self.indptr[begin]
            parts.append([array[low:high] for array in self.decode(chunk)])
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        genes, counts = (
            zip(*parts, strict=True) if parts else ([np.empty(0, self._gene_dtype)], [np.empty(0, np.uint8)])
        )
        return np.concatenate(genes), np.concatenate(counts)

    def decode(self, chunk: int) -> Entries:
        """Return the entries of a chunk. Raises DamagedError."""
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
