"""How the counts of a shard lie in files: as arrays that are memory-mapped, or compressed (see `compact.py`)."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

MAPPED, COMPACT = "mapped", "compact"
VERSIONS = {MAPPED: 1, COMPACT: 2}
"""The version of a store in each layout: programs that know only the first refuse the second."""
ARRAYS = {MAPPED: ("indptr.npy", "genes.npy", "counts.npy"), COMPACT: ("indptr.npy", "chunks.npy", "entries.bin")}
"""The files of a shard in each layout; docs/store.md says what they hold."""

_LONGEST_HEAD = 2**16  # bytes

Entries = tuple[np.ndarray, np.ndarray]
"""Gene numbers and counts of some cells, [nnz] each."""


class Shard(Protocol):
    """The counts of C cells."""

    indptr: np.ndarray  # int64 [C + 1]

    def entries(self, first: int, last: int) -> Entries:
        """Return the entries of cells first..last, counts in an unsigned type that holds them."""
        ...


class DamagedError(Exception):
    """The files of a shard are not what `prepare` wrote; the text says what is wrong, after "the shard"."""


class MappedShard:
    """A shard whose arrays are memory-mapped."""

    def __init__(self, paths: list[Path], manifest_entry: dict[str, Any], gene_dtype: np.dtype, n_genes: int) -> None:
        """Map the arrays. Raises DamagedError."""
        self._n_genes = n_genes
        self.indptr, self.genes, self.counts = (mapped(path) for path in paths)
        check_indptr(self.indptr, manifest_entry)
        shape = (manifest_entry["nonzeros"],)
        check((self.genes.shape, self.counts.shape, self.genes.dtype) == (shape, shape, gene_dtype))
        check(self.counts.dtype in (np.uint8, np.uint16, np.uint32))

    def entries(self, first: int, last: int) -> Entries:
        """Return views of the entries of cells first..last. Raises DamagedError."""
        low, high = int(self.indptr[first]), int(self.indptr[last])
        genes = self.genes[low:high]
        self.check_genes(int(genes.min(initial=0)), int(genes.max(initial=0)))
        return genes, self.counts[low:high]

    def check_genes(self, smallest: int, largest: int) -> None:
        """Raise DamagedError where these are no numbers of genes."""
        if not 0 <= smallest <= max(largest, 0) < self._n_genes:
            message = "holds a count of a gene that the store does not have"
            raise DamagedError(message)


def mapped(path: Path) -> np.ndarray:
    """Map an array. Raises DamagedError."""
    try:
        found = mapped_bytes(path)
        head = io.BytesIO(found[:_LONGEST_HEAD].tobytes())
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[np.lib.format.read_magic(head)](head)
        return found[head.tell() :][: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
    except Exception as error:  # of numpy, which has many kinds for a broken head
        message = f"has a broken {path.name} ({error})"
        raise DamagedError(message) from error


def mapped_bytes(path: Path) -> np.ndarray:
    """Map a file that is not empty, uint8 [bytes], without keeping it open: a large store has thousands of files."""
    with pa.memory_map(str(path)) as file:
        return np.frombuffer(file.read_buffer(), np.uint8)


def check_indptr(indptr: np.ndarray, manifest_entry: dict[str, Any]) -> None:
    """Raise DamagedError where these are not the bounds of the cells of a shard."""
    check((indptr.shape, indptr.dtype) == ((manifest_entry["cells"] + 1,), np.int64))
    check(indptr[0] == 0 and indptr[-1] == manifest_entry["nonzeros"] and bool((np.diff(indptr) >= 0).all()))


def check(as_written: bool) -> None:  # noqa: FBT001
    """Raise DamagedError unless this holds."""
    if not as_written:
        message = "is not what its manifest says"
        raise DamagedError(message)
