"""One shard in the making, and the records on disk that let a killed `prepare` go on after the last finished shard."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sckit.data.cell_stream import KeptCells, StreamPosition
from sckit.data.compact import compressed
from sckit.data.layouts import MAPPED
from sckit.data.manifest import MANIFEST, broken_files, gene_dtype, shard_files
from sckit.data.views import indptr_of
from sckit.files import flush, replacing, write_json

WORK = "work"
"""Folder of the records, inside the unfinished store."""

Buffer = bytes | memoryview

_ARRAYS = ("fates", "gene_cells", "rows", "totals", "n_genes")


@dataclass(frozen=True)
class FinishedShard:
    """What is known of a stretch of the cell stream after its shard was written."""

    manifest_entry: dict[str, Any]
    """Cells, nonzeros and files; without files when nothing of the stretch was kept."""
    following: StreamPosition
    fates: np.ndarray  # int64 [sources, reasons + 1], cells by source and code
    gene_cells: np.ndarray  # int64 [G], cells of the shard in which the gene is detected
    rows: np.ndarray  # [C], rows in the united obs; this and what follows in the narrowest type
    totals: np.ndarray  # [C]
    n_genes: np.ndarray  # [C]

    def __post_init__(self) -> None:
        for name in ("rows", "totals", "n_genes"):  # held for all cells until the table of cells is written
            array = getattr(self, name)
            object.__setattr__(self, name, array.astype(np.min_scalar_type(int(array.max(initial=0)))))


class OpenShard:
    """The shard that is being filled, in the narrowest types that hold it: usually 3 bytes per entry."""

    def __init__(self, n_genes: int, fates_shape: tuple[int, int], layout: str) -> None:
        """Start an empty shard; `fates_shape` is (sources, reasons + 1)."""
        self._layout = layout
        self.n_cells = 0
        self.nonzeros = 0
        self._gene_dtype = gene_dtype(n_genes)
        self._genes: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._per_cell = [np.zeros((4, 0), np.int64)]  # each [4, c]: rows, totals, n_genes, entries
        self._fates = np.zeros(fates_shape, np.int64)
        self._gene_cells = np.zeros(n_genes, np.int64)
        self._following = StreamPosition()

    def add(self, kept: KeptCells) -> None:
        """Take in the kept cells of one block."""
        from sckit.kernels.clean_numba import count_genes  # slow to load

        self.n_cells += len(kept.rows)
        self.nonzeros += len(kept.genes)
        self._genes.append(kept.genes.astype(self._gene_dtype))
        self._counts.append(kept.counts.astype(np.min_scalar_type(int(kept.counts.max(initial=0)))))
        self._per_cell.append(np.stack([kept.rows, kept.totals, kept.n_genes, np.diff(kept.indptr)]))
        self._fates[kept.source] += np.bincount(kept.codes, minlength=self._fates.shape[1])
        count_genes(kept.genes, self._gene_cells)
        self._following = kept.following

    def _contents(self, lengths: np.ndarray) -> tuple[Iterable[Buffer], ...]:
        """Return what the files of the shard hold."""
        indptr = _npy([indptr_of(lengths)])
        if self._layout == MAPPED:
            return indptr, _npy(self._genes), _npy(self._counts)
        table, entries = compressed(lengths, self._genes, self._counts)
        return indptr, _npy([table]), entries

    def close(self, folder: Path, number: int) -> FinishedShard:
        """Write the arrays, then the record; without any cell write nothing."""
        rows, totals, n_genes, lengths = np.concatenate(self._per_cell, axis=1)
        files = {}
        if self.n_cells:
            names, contents = shard_files(number, self._layout), self._contents(lengths)
            files = {name: _write(folder / name, parts) for name, parts in zip(names, contents, strict=True)}
            flush(folder / "shards")
        entry = {"cells": self.n_cells, "nonzeros": self.nonzeros, "files": files}
        shard = FinishedShard(entry, self._following, self._fates, self._gene_cells, rows, totals, n_genes)
        if self.n_cells:
            save_record(folder, number, shard)
        return shard


def remove_records(out: Path) -> None:
    """Remove the records from a finished store, also those that a kill right after it got its name has left there."""
    if (out / MANIFEST).is_file():
        shutil.rmtree(out / WORK, ignore_errors=True)


def reuse_or_begin(folder: Path, plan: dict[str, Any]) -> None:
    """Keep the folder of an earlier call with the same plan (a JSON document), else make an empty one."""
    if read_json(folder / WORK / "plan.json") == plan:
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    (folder / WORK).mkdir()
    write_json(folder / WORK / "plan.json", plan)


def fingerprint(paths: Sequence[Path]) -> list[Any]:
    """Return the paths, and the number, sizes and latest time of change of their files; of a folder, of all in it."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    stats = [file.stat() for file in files]
    size, changed_ns = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return [[str(path.resolve()) for path in paths], len(stats), size, changed_ns]


def read_json(path: Path) -> Any:
    """Return the document of a file, or None when there is no whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def finished_shards(folder: Path) -> list[FinishedShard]:
    """Load the shards that an earlier call finished, in order, up to the first that is missing or damaged."""
    found = []
    while (path := _record_path(folder, len(found))).is_file():
        shard = _load(path)
        if any(broken_files(folder, shard.manifest_entry["files"], content=True)):
            break
        found.append(shard)
    return found


def _write(path: Path, parts: Iterable[Buffer]) -> dict[str, Any]:
    """Write a file; the checksum is of what was handed over, not of what reached the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
            size += len(part)
    flush(path)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _npy(parts: Sequence[np.ndarray]) -> Iterator[Buffer]:
    """Yield the joined parts as the file of one array, in the widest of their types."""
    dtype = max((part.dtype for part in parts), key=lambda kind: kind.itemsize)
    header, shape = io.BytesIO(), (sum(map(len, parts)), *parts[0].shape[1:])
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    yield header.getvalue()
    yield from (part.astype(dtype, copy=False).data.cast("B") for part in parts if part.size)


def _record_path(folder: Path, number: int) -> Path:
    return folder / WORK / f"{number:05d}.npz"


def save_record(folder: Path, number: int, shard: FinishedShard) -> None:
    """Write the record of a shard that is on the disk already."""
    with replacing(_record_path(folder, number)) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            manifest_entry=json.dumps(shard.manifest_entry),
            following=[shard.following.source, shard.following.cell],
            **{name: getattr(shard, name) for name in _ARRAYS},
        )


def _load(path: Path) -> FinishedShard:
    with np.load(path) as record:
        source, cell = record["following"].tolist()
        arrays = {name: record[name] for name in _ARRAYS}
        return FinishedShard(json.loads(str(record["manifest_entry"])), StreamPosition(source, cell), **arrays)
