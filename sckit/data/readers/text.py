"""Text files of an mtx folder: gzipped or not by content, tables of names, the head of a MatrixMarket file."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from sckit.errors import DataError

_KINDS = ("integer", "real", "float")  # "float" is not of the standard; STARsolo writes it
_LONGEST_LINE = 2**17
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class MtxHead(NamedTuple):
    """The sizes that the head of a MatrixMarket file promises."""

    rows: int
    columns: int
    entries: int
    lines: int
    """How many lines of the file the head takes."""


class _Text(io.TextIOWrapper):
    """Text without huge lines, which gzip makes small, and without zero bytes: pandas ends a number at one."""

    def read(self, size: int | None = -1, /) -> str:
        text = super().read(size)
        if "\0" in text or (len(text) > _LONGEST_LINE and "\n" not in text):
            msg = f"a line holds a zero byte or more than {_LONGEST_LINE:,} characters"
            raise ValueError(msg)
        return text

    def readline(self, size: int = -1, /) -> str:
        text = super().readline(_LONGEST_LINE if size < 0 else size)
        if len(text) == _LONGEST_LINE:
            msg = f"a line has more than {_LONGEST_LINE:,} characters"
            raise ValueError(msg)
        return text


def open_text(path: Path) -> IO[str]:
    """Open a text file, whatever its name says about gzip; a byte order mark is skipped."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return _Text(gzip.open(path) if zipped else path.open("rb"), encoding="utf-8-sig")


def read_names(path: Path, *, blank_lines: bool = False) -> list[np.ndarray]:
    """Read a table of names, fields between tabs, as its columns [rows] str; quotes around a field or a line go.

    Blank lines are no rows, or with `blank_lines` rows of the empty name.

    Raises `DataError` for an empty file and for lines of different numbers of fields.
    """
    with open_text(path) as file:
        rows = csv.reader(_lines(file), delimiter="\t", strict=True)
        columns = _columns((row if "".join(row).strip() else [""] for row in rows) if blank_lines else rows, path)
    if len(columns) == 1 and all("\t" in name for name in columns[0]):  # each line as a whole in quotes
        columns = _columns((name.split("\t") for name in columns[0]), path)
    return [np.array(column, dtype=object) for column in columns]


def _lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file, read in pieces so that a huge line is noticed; faster than `readline`."""
    rest = ""
    while piece := file.read(2 * _LONGEST_LINE):
        *lines, rest = (rest + piece).split("\n")
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def _columns(rows: Iterable[list[str]], path: Path) -> list[list[str]]:
    columns: list[list[str]] = []
    for row in rows:
        if not row or (len(row) == 1 and row[0].isspace()):
            continue  # a line of nothing or of spaces; one of two quotes is an empty name
        columns = columns or [[] for _ in row]
        if len(row) != len(columns):
            raise DataError(
                f"{path} has {len(columns)} fields in its first line and {len(row)} in that of {row[0][:80]!r}; write "
                "every line with the same fields, and tabs between them."
            )
        for column, field in zip(columns, row, strict=True):
            column.append(field)
    if not columns:
        raise DataError(f"{path} is empty; give one name per line.")
    return columns


def read_mtx_head(file: IO[str], path: Path) -> MtxHead:
    """Read up to the line of sizes; raises `DataError` for a file that is no sparse matrix of counts."""
    banner = file.readline().split()
    words = [word.lower() for word in banner]
    if words not in (["%%matrixmarket", "matrix", "coordinate", kind, "general"] for kind in _KINDS):
        raise DataError(
            f"{path} begins with {' '.join(banner)[:80]!r}, but a sparse matrix of counts begins with "
            "'%%MatrixMarket matrix coordinate integer general'; export it again in that form."
        )
    line, n_lines = file.readline(), 2
    while line and (not line.strip() or line.lstrip().startswith("%")):
        line, n_lines = file.readline(), n_lines + 1
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() for size in sizes):
        raise DataError(
            f"{path} has the line {line.strip()[:80]!r} where its numbers of rows, columns and entries belong; "
            "copy or export it again."
        )
    rows, columns, entries = map(int, sizes)
    return MtxHead(rows, columns, entries, n_lines)


def check_entries(file: IO[str], path: Path, head: MtxHead, *, at_most: int | None = None) -> None:
    """Raise `DataError` for the first line behind the head that is not three numbers: row, column, count.

    `at_most` lines are read. All are only where reading them faster has failed.
    """
    filled = (
        (number, line.split()) for number, line in enumerate(iter(file.readline, ""), head.lines + 1) if line.strip()
    )
    for number, fields in islice(filled, at_most):
        if len(fields) != 3 or not all(map(_NUMBER.fullmatch, fields)):
            raise DataError(
                f"{path} has {' '.join(fields)[:80]!r} in line {number:,}, but an entry is three numbers: row, column "
                "and count; export one matrix of counts."
            )
