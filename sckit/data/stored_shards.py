"""The shards of a store, opened when they are first used, and where the counts of single cells lie in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from sckit.data.compact import CHUNK_CELLS, Chunk, CompactShard, Decoded
from sckit.data.layouts import COMPACT, DamagedError, MappedShard, Shard
from sckit.data.manifest import gene_dtype, layout_of, shard_files
from sckit.data.views import indptr_of
from sckit.errors import DataError

if TYPE_CHECKING:
    from sckit.kernels.located_numba import Located

_TOGETHER = 2**22  # entries of the chunks of one part

S = TypeVar("S", bound=Shard)


class StoredShards(ABC, Generic[S]):
    """The counts of the cells of a store. Raises `DataError` where a shard is damaged."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Read nothing yet."""
        self.path, self.manifest = path, manifest
        cells = [shard["cells"] for shard in manifest["shards"]]
        self._starts = indptr_of(cells)  # [shards + 1], the first cell of each
        self._chunks_before = indptr_of([-(-n // CHUNK_CELLS) for n in cells])
        self._opened: dict[int, S] = {}
        self._lock = Lock()
        self._bounds = np.zeros((len(cells), 2), np.int64)  # address of indptr, cells; of those that are opened

    @abstractmethod
    def located(self, cells: np.ndarray) -> Iterator[tuple[np.ndarray, Located]]:
        """Yield the cells [C] in parts: which of them, and where their entries lie."""

    @abstractmethod
    def _open(self, number: int) -> S:
        """Open a shard. Raises DamagedError."""

    @contextmanager
    def opened(self, number: int) -> Generator[S]:
        """Give a shard, and say of a damage that is found in it which store and shard it is."""
        try:
            if number not in self._opened:
                with self._lock:
                    self._add(number)
            yield self._opened[number]
        except DamagedError as error:
            raise DataError(f"{self.path} is corrupt: shard {number} {error}; prepare it again.") from error

    def _add(self, number: int) -> None:
        """Open a shard unless another thread was faster. Kernels read its bounds as soon as it is there."""
        if number not in self._opened:
            shard = self._open(number)
            self._bounds[number] = shard.indptr.ctypes.data, len(shard.indptr) - 1
            self._opened[number] = shard

    def find(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each cell's shard and its row there, int64 [C] each. Raises IndexError."""
        cells = np.asarray(cells, dtype=np.int64)
        if len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < self._starts[-1]:
            raise IndexError(f"cells must be in 0..{self._starts[-1] - 1}, not {cells.min()}..{cells.max()}")
        numbers = np.searchsorted(self._starts, cells, side="right") - 1
        return numbers, cells - self._starts[numbers]

    def chunks(self, cells: np.ndarray) -> np.ndarray:
        """Return the number of the chunk that each cell lies in, int32 [C]: up to 64 neighbours, of one shard."""
        numbers, local = self.find(cells)
        return (self._chunks_before[numbers] + local // CHUNK_CELLS).astype(np.int32)

    def lengths(self, cells: np.ndarray) -> np.ndarray:
        """Return the number of entries of each cell, int64 [C]."""
        begin, end, _ = self._spans(*self.find(cells), 1)
        return end - begin

    def _spans(self, numbers: np.ndarray, local: np.ndarray, chunk_cells: int) -> np.ndarray:
        """Return where each cell begins and ends in its chunk, and how many entries that has, int64 [3, C]."""
        from sckit.kernels.located_numba import spans  # slow to load

        for number in np.unique(numbers).tolist():
            with self.opened(number):
                pass
        spans(self._bounds, numbers, local, chunk_cells, found := np.empty((3, len(local)), np.int64))
        return found


class MappedShards(StoredShards[MappedShard]):
    """Shards whose arrays are memory-mapped."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Read nothing yet."""
        super().__init__(path, manifest)
        self._entries = np.zeros((len(self._bounds), 4), np.int64)  # where those of each shard lie

    def located(self, cells: np.ndarray) -> Iterator[tuple[np.ndarray, Located]]:
        """Yield all of the cells [C], and where their entries lie."""
        from sckit.kernels.located_numba import Located, largest_gene, places_of  # slow to load

        numbers, local = self.find(cells)
        begin, end, _ = self._spans(numbers, local, 2**62)
        places = places_of(self._entries[numbers], begin, end)
        if largest_gene(places) >= self.manifest["genes"]:
            for number in np.unique(numbers).tolist():
                with self.opened(number) as shard:
                    shard.check_genes(0, int(largest_gene(places[numbers == number])))
        yield np.arange(len(places)), Located(places, self)

    def _open(self, number: int) -> MappedShard:
        from sckit.kernels.located_numba import address  # slow to load

        shard = MappedShard(*_what_opens(self.path, self.manifest, number))
        self._entries[number] = address(shard.genes, shard.counts)
        return shard


class CompactShards(StoredShards[CompactShard]):
    """Shards in chunks, of which those that were decoded last are held."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Read nothing yet."""
        super().__init__(path, manifest)
        self.decoded = Decoded()

    def located(self, cells: np.ndarray) -> Iterator[tuple[np.ndarray, Located]]:
        """Yield the cells [C] in parts: which of them, and where their entries lie in chunks that are decoded.

        A chunk is decoded once for this call and the next ones, in this thread and others.
        """
        from sckit.kernels.located_numba import Located, places_of  # slow to load

        numbers, local = self.find(cells)
        begin, end, sizes = self._spans(numbers, local, CHUNK_CELLS)
        _, first, own = np.unique(self.chunks(cells), return_index=True, return_inverse=True)
        keys = list(zip(numbers[first].tolist(), (local[first] // CHUNK_CELLS).tolist(), strict=True))
        parts = np.cumsum(sizes[first]) // _TOGETHER  # of each chunk
        for part in np.unique(parts):
            chunks, places = np.flatnonzero(parts == part), np.flatnonzero(parts[own] == part)
            held = self.decoded.chunks([keys[chunk] for chunk in chunks.tolist()], self._decode)
            entries = np.array([chunk.place for chunk in held])[own[places] - chunks[0]]
            yield places, Located(places_of(entries, begin[places], end[places]), held)

    def _open(self, number: int) -> CompactShard:
        return CompactShard(*_what_opens(self.path, self.manifest, number))

    def _decode(self, key: tuple[int, int]) -> Chunk:
        """Decode a chunk of a shard."""
        from sckit.kernels.located_numba import address  # slow to load

        number, chunk = key
        with self.opened(number) as shard:
            genes, counts = shard.decode(chunk)
        return Chunk(genes, counts, address(genes, counts))


def stored_shards(path: Path, manifest: dict[str, Any]) -> MappedShards | CompactShards:
    """Return the shards of a store in either layout."""
    return (CompactShards if layout_of(manifest) == COMPACT else MappedShards)(path, manifest)


def _what_opens(path: Path, manifest: dict[str, Any], number: int) -> tuple[list[Path], dict[str, Any], np.dtype, int]:
    """Return what a shard is opened with: files, entry of the manifest, type and number of genes."""
    layout = layout_of(manifest)
    assert layout is not None
    files = [path / name for name in shard_files(number, layout)]
    return files, manifest["shards"][number], gene_dtype(manifest["genes"]), manifest["genes"]
