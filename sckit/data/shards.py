"""One shard in the making, and the record of a finished one that lets a killed `prepare` continue behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sckit.data.cell_stream import KeptCells, Place
from sckit.data.manifest import ShardBuffer, broken_files
from sckit.files import flush, replacing

WORK = "work"
"""Folder of the records, inside the unfinished store."""

_ARRAYS = ("fates", "gene_cells", "rows", "totals", "n_genes")


@dataclass(frozen=True)
class FinishedShard:
    """What is known of a stretch of the cell stream after its shard was written."""

    manifest_entry: dict[str, Any]
    """Cells, nonzeros and files; without files when nothing of the stretch was kept."""
    following: Place
    fates: np.ndarray  # int64 [sources, reasons + 1], cells by source and code
    gene_cells: np.ndarray  # int64 [G], cells of the shard in which the gene is detected
    rows: np.ndarray  # int64 [C], rows in the united obs
    totals: np.ndarray  # int64 [C]
    n_genes: np.ndarray  # int64 [C]


class OpenShard:
    """The shard that is being filled."""

    def __init__(self, n_genes: int, fates_shape: tuple[int, int]) -> None:
        """Start an empty shard; `fates_shape` is (sources, reasons + 1)."""
        self.buffer = ShardBuffer(n_genes)
        self._fates = np.zeros(fates_shape, np.int64)
        self._gene_cells = np.zeros(n_genes, np.int64)
        self._per_cell: list[np.ndarray] = []  # each [3, c]: rows, totals, n_genes
        self._following = Place()

    def add(self, kept: KeptCells) -> None:
        """Take in the kept cells of one block."""
        self.buffer.add(np.diff(kept.indptr), kept.genes, kept.counts)
        self._fates[kept.source] += np.bincount(kept.codes, minlength=self._fates.shape[1])
        self._gene_cells += np.bincount(kept.genes, minlength=len(self._gene_cells))
        self._per_cell.append(np.stack([kept.rows, kept.totals, kept.n_genes]))
        self._following = kept.following

    def close(self, folder: Path, number: int) -> FinishedShard:
        """Write the arrays, then the record; without any cell write nothing."""
        rows, totals, n_genes = np.concatenate([np.zeros((3, 0), np.int64), *self._per_cell], axis=1)
        entry = {"cells": 0, "nonzeros": 0, "files": {}}
        if self.buffer.n_cells:
            entry = self.buffer.write(folder, number)
            flush(folder / "shards")
        shard = FinishedShard(entry, self._following, self._fates, self._gene_cells, rows, totals, n_genes)
        if self.buffer.n_cells:
            _save(shard, _record_path(folder, number))
        return shard


def finished_shards(folder: Path) -> list[FinishedShard]:
    """Load the shards that an earlier call finished, in order, up to the first that is missing or damaged."""
    found = []
    while (path := _record_path(folder, len(found))).is_file():
        shard = _load(path)
        if any(broken_files(folder, shard.manifest_entry["files"], content=True)):
            break
        found.append(shard)
    return found


def _record_path(folder: Path, number: int) -> Path:
    return folder / WORK / f"{number:05d}.npz"


def _save(shard: FinishedShard, path: Path) -> None:
    """Write the record of a shard that is on the disk already."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
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
        return FinishedShard(json.loads(str(record["manifest_entry"])), Place(source, cell), **arrays)
