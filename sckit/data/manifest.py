"""The files of a store: their names and types, the records that the manifest keeps of them, damaged files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sckit.data.layouts import ARRAYS, VERSIONS
from sckit.files import checksum, matches, replacing

FORMAT = "sckit store"
MANIFEST = "manifest.json"
OWN_COLUMNS = ("cell", "source", "total_counts", "n_genes")
"""Obs columns that the store writes itself; an input's column of such a name becomes input_NAME."""
NUMBERS = ("total_counts", "n_genes")
"""Those of them that are numbers; the others are text."""

_UINT16_GENES = 65_535
_ROWS = 2**17  # of a table that are written at a time
_FILES = {str: {"bytes": int, "sha256": str}}
_SOURCE = {"name": str, "path": str, "cells": int, "kept": int, "genes_summed": int, "has_assay": bool}
_SCHEMA = {
    **{"cells": int, "genes": int, "nonzeros": int, "vocabulary_sha256": str, "joined_on": str, "config": dict},
    **{"dropped": {str: int}, "sources": [_SOURCE], "tables": _FILES},
    "shards": [{"cells": int, "nonzeros": int, "files": _FILES}],
}


def shard_files(number: int, layout: str) -> list[str]:
    """Name the files of one shard, relative to the store."""
    return [f"shards/{number:05d}.{array}" for array in ARRAYS[layout]]


def layout_of(manifest: dict[str, Any]) -> str | None:
    """Return the layout of a store, None where its version is not one that this program reads."""
    return next((layout for layout, version in VERSIONS.items() if version == manifest.get("version")), None)


def gene_dtype(n_genes: int) -> np.dtype:
    """Return the type of the gene numbers of a store: uint16 where that is enough."""
    return np.dtype(np.uint16 if n_genes <= _UINT16_GENES else np.int32)


def is_manifest(manifest: Any) -> bool:
    """Return whether a JSON document has all that is read of a manifest, and names no files but those of the store."""
    if not matches(manifest, _SCHEMA) or not matches(manifest.get("notes", []), [str]):  # older stores have no notes
        return False
    shards, layout = manifest["shards"], layout_of(manifest)
    names = [set(shard_files(number, layout)) for number in range(len(shards))] if layout else None
    return (
        [set(shard["files"]) for shard in shards] == names
        and set(manifest["tables"]) == {"genes.parquet", "obs.parquet"}
        and all(sum(shard[name] for shard in shards) == manifest[name] for name in ("cells", "nonzeros"))
    )


def write_table(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """Write a table as Parquet and return its record for the manifest."""
    return write_rows(path, (frame.iloc[first : first + _ROWS] for first in range(0, len(frame), _ROWS)))


def write_rows(path: Path, blocks: Iterable[pd.DataFrame]) -> dict[str, Any]:
    """Write blocks of rows, at least one, as Parquet and return its record; all have the types of the first."""
    blocks = iter(blocks)
    table = pa.Table.from_pandas(next(blocks), preserve_index=False)
    with replacing(path) as unfinished, pq.ParquetWriter(unfinished, table.schema) as writer:
        writer.write_table(table)
        for block in blocks:
            writer.write_table(pa.Table.from_pandas(block, table.schema, preserve_index=False))
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def broken_files(folder: Path, records: dict[str, dict[str, Any]], *, content: bool) -> Iterator[tuple[str, str]]:
    """Yield (file, what is wrong) for files that are missing, of another size or (`content`) of another checksum."""
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            yield name, "is missing"
        elif path.stat().st_size != record["bytes"]:
            yield name, f"has {path.stat().st_size} bytes instead of {record['bytes']}"
        elif content and checksum(path) != record["sha256"]:
            yield name, "does not have the checksum that was written down for it"
