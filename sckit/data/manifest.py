"""The files of a store: their names and types, the records that the manifest keeps of them, damaged files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.files import checksum, matches, replacing

FORMAT = "sckit store"
VERSION = 1
MANIFEST = "manifest.json"
SHARD_ARRAYS = ("indptr", "genes", "counts")
OWN_COLUMNS = ("cell", "source", "total_counts", "n_genes")
"""Obs columns that the store writes itself; an input's column of such a name becomes input_NAME."""
NUMBERS = ("total_counts", "n_genes")
"""Those of them that are numbers; the others are text."""

_UINT16_GENES = 65_535
_FILES = {str: {"bytes": int, "sha256": str}}
_SOURCE = {"name": str, "path": str, "cells": int, "kept": int, "genes_summed": int, "has_assay": bool}
_SCHEMA = {
    **{"cells": int, "genes": int, "nonzeros": int, "vocabulary_sha256": str, "joined_on": str, "config": dict},
    **{"dropped": {str: int}, "sources": [_SOURCE], "tables": _FILES},
    "shards": [{"cells": int, "nonzeros": int, "files": _FILES}],
}


def shard_file(number: int, array: str) -> str:
    """Name one array of one shard, relative to the store."""
    return f"shards/{number:05d}.{array}.npy"


def gene_dtype(n_genes: int) -> np.dtype:
    """Return the type of the gene numbers of a store: uint16 where that is enough."""
    return np.dtype(np.uint16 if n_genes <= _UINT16_GENES else np.int32)


def is_manifest(manifest: Any) -> bool:
    """Return whether a JSON document has all that is read of a manifest, and names no files but those of the store."""
    if not matches(manifest, _SCHEMA) or not matches(manifest.get("notes", []), [str]):  # older stores have no notes
        return False
    shards = manifest["shards"]
    names = [{shard_file(number, array) for array in SHARD_ARRAYS} for number in range(len(shards))]
    return (
        [set(shard["files"]) for shard in shards] == names
        and set(manifest["tables"]) == {"genes.parquet", "obs.parquet"}
        and all(sum(shard[name] for shard in shards) == manifest[name] for name in ("cells", "nonzeros"))
    )


def write_table(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """Write a table as Parquet and return its record for the manifest."""
    with replacing(path) as unfinished:
        frame.to_parquet(unfinished, index=False)
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
