"""Text files of an mtx folder: gzipped or not by content, tables of names, the head of a MatrixMarket file."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd

from sckit.errors import DataError

_KINDS = ("integer", "real", "float")  # "float" is not of the standard; STARsolo writes it


class MtxHead(NamedTuple):
    """The sizes that the head of a MatrixMarket file promises."""

    rows: int
    columns: int
    entries: int


def open_text(path: Path) -> IO[str]:
    """Open a text file, whatever its name says about gzip; a byte order mark is skipped."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8-sig") if zipped else path.open(encoding="utf-8-sig")


def read_names(path: Path) -> list[np.ndarray]:
    """Read a table of names, fields between tabs, as its columns [rows] str; quotes around a field or a line go.

    Raises `DataError` for an empty file.
    """
    with open_text(path) as file:
        try:
            frame = pd.read_csv(file, sep="\t", header=None, dtype=str, na_filter=False, quoting=csv.QUOTE_MINIMAL)
        except pd.errors.EmptyDataError as error:
            raise DataError(f"{path} is empty; give one name per line.") from error
    if frame.shape[1] == 1 and frame[0].str.contains("\t").all():  # each line as a whole in quotes
        frame = frame[0].str.split("\t", expand=True)
    return [frame[column].fillna("").to_numpy(object) for column in frame]


def read_mtx_head(file: IO[str], path: Path) -> MtxHead:
    """Read up to the line of sizes; raises `DataError` for a file that is no sparse matrix of counts."""
    banner = file.readline().split()
    words = [word.lower() for word in banner]
    if words not in (["%%matrixmarket", "matrix", "coordinate", kind, "general"] for kind in _KINDS):
        raise DataError(
            f"{path} begins with {' '.join(banner)[:80]!r}, but a sparse matrix of counts begins with "
            "'%%MatrixMarket matrix coordinate integer general'; export it again in that form."
        )
    line = file.readline()
    while line and (not line.strip() or line.lstrip().startswith("%")):
        line = file.readline()
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() for size in sizes):
        raise DataError(
            f"{path} has the line {line.strip()[:80]!r} where its numbers of rows, columns and entries belong; "
            "copy or export it again."
        )
    return MtxHead(*map(int, sizes))


def check_first_entry(file: IO[str], path: Path) -> None:
    """Raise `DataError` where the line after the sizes is not three numbers: row, column, count.

    All other lines are compared with the first when the matrix is read.
    """
    fields = next((line.split() for line in file if line.strip()), [])
    if len(fields) not in (0, 3):
        raise DataError(
            f"{path} has the line {' '.join(fields)[:80]!r} with {len(fields)} fields, but an entry has three: row, "
            "column and count; export one matrix of counts."
        )
