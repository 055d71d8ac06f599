"""The files of a store: shards of arrays, JSON and tables, written with checksums and fsync."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from sckit.data.views import indptr_of
from sckit.files import checksum, flush

FORMAT = "sckit store"
VERSION = 1
MANIFEST = "manifest.json"
SHARD_ARRAYS = ("indptr", "genes", "counts")
_UINT16_GENES = 65_535


def shard_file(number: int, array: str) -> str:
    """Name of one array of one shard, relative to the store."""
    return f"shards/{number:05d}.{array}.npy"


def gene_dtype(n_genes: int) -> np.dtype:
    """Type of the gene numbers of a store: uint16 where that is enough."""
    return np.dtype(np.uint16 if n_genes <= _UINT16_GENES else np.int32)


def narrowest(largest: int) -> np.dtype:
    """Narrowest unsigned type that holds every count of a shard."""
    return np.min_scalar_type(largest)


class ShardBuffer:
    """The cells of the shard that is being filled, in their narrowest types: 3 bytes an entry for usual counts."""

    def __init__(self, n_genes: int) -> None:
        """Start an empty shard of a store with `n_genes` genes."""
        self.n_cells = 0
        self.nonzeros = 0
        self._gene_dtype = gene_dtype(n_genes)
        self._lengths: list[np.ndarray] = []
        self._genes: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def add(self, lengths: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> None:
        """Take in cells: entries per cell [C], genes [nnz] and counts [nnz]."""
        self.n_cells += len(lengths)
        self.nonzeros += len(genes)
        self._lengths.append(lengths.astype(np.int64))
        self._genes.append(genes.astype(self._gene_dtype))
        self._counts.append(counts.astype(narrowest(int(counts.max(initial=0)))))

    def write(self, folder: Path, number: int) -> dict[str, Any]:
        """Write the three arrays of the shard to disk and give its record for the manifest."""
        dtype = max((part.dtype for part in self._counts), key=lambda kind: kind.itemsize)
        indptr = indptr_of(np.concatenate(self._lengths))
        arrays = {"indptr": [indptr], "genes": self._genes, "counts": self._counts}
        dtypes = {"indptr": np.dtype(np.int64), "genes": self._gene_dtype, "counts": dtype}
        files = {}
        for name in SHARD_ARRAYS:
            file = shard_file(number, name)
            files[file] = _write_npy(folder / file, arrays[name], dtypes[name])
        return {"cells": self.n_cells, "nonzeros": self.nonzeros, "files": files}


def _write_npy(path: Path, parts: Sequence[np.ndarray], dtype: np.dtype) -> dict[str, Any]:
    with _HashedFile(path) as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (sum(map(len, parts)),)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.astype(dtype, copy=False).tobytes())
    return file.record


class _HashedFile:
    """A file whose checksum is taken from what was handed over, not from what came to lie on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> _HashedFile:
        self._file: BinaryIO = self._path.open("wb")
        return self

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._bytes += len(data)
        return self._file.write(data)

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    @property
    def record(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


def write_table(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """Write a table as Parquet and give its record for the manifest."""
    frame.to_parquet(path, index=False)
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def broken_files(folder: Path, records: dict[str, dict[str, Any]], *, content: bool) -> Iterable[tuple[str, str]]:
    """Yield (file, what is wrong) for files that are missing, of another size or (`content`) of another checksum."""
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            yield name, "is missing"
        elif path.stat().st_size != record["bytes"]:
            yield name, f"has {path.stat().st_size} bytes instead of {record['bytes']}"
        elif content and checksum(path) != record["sha256"]:
            yield name, "does not have the checksum that was written down for it"
