"""Folders of text matrices: writing, and reading with scipy and a few lines."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import scipy.io
from content import content
from hdf5_formats import Cells, plan
from judge import Case, Refused, Table
from mutations import pick

_LAYOUTS = {
    "": ("matrix.mtx", "features.tsv", "barcodes.tsv"),
    "old": ("matrix.mtx", "genes.tsv", "barcodes.tsv"),
    "geo": ("GSM1_matrix.mtx", "GSM1_features.tsv", "GSM1_barcodes.tsv"),
    "kallisto": ("cells_x_genes.mtx", "cells_x_genes.genes.txt", "cells_x_genes.barcodes.txt"),
    "starsolo": ("UniqueAndMult-EM.mtx", "features.tsv", "barcodes.tsv"),
    "outs": ("outs/filtered_feature_bc_matrix/matrix.mtx",) * 3,
    "genome": ("hg19/matrix.mtx", "hg19/genes.tsv", "hg19/barcodes.tsv"),
}


class Mtx(Cells):
    """A folder with a matrix of text and its lists."""

    name = "mtx"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated folder."""
        made = content(rng)
        layout = pick(rng, ("", "", "", "old", "geo", "kallisto", "starsolo", "outs", "genome"))
        matrix, features, barcodes = _LAYOUTS[layout]
        if layout == "outs":
            features, barcodes = (matrix.replace("matrix.mtx", name) for name in ("features.tsv", "barcodes.tsv"))
        case = Case(folder / "sample", edits=made.odd)
        n_fields = 1 if layout == "kallisto" else pick(rng, (1, 2, 3, 3, 3)) if layout != "old" else 2
        if any(name.startswith("mm10_") for name in made.ids):
            if layout == "genome":  # which has a folder for each genome
                return self.make(rng, folder)
            case.options = {"genome": "GRCh38"}
        counts = made.counts if layout == "kallisto" else made.counts.T
        columns = [made.ids, made.symbols, made.types][:n_fields]
        files = {
            matrix: _mtx(counts, rng),
            features: ["\t".join(row) + "\n" for row in zip(*columns, strict=True)],
            barcodes: [name + "\n" for name in made.cells],
        }
        if layout == "kallisto" and rng.random() < 0.5:
            files["cells_x_genes.genes.names.txt"] = [name + "\n" for name in made.symbols]
        text = {name: [line.encode() for line in lines] for name, lines in files.items()}
        n_edits, damaged = plan(rng)
        for _ in range(n_edits):
            name = pick(rng, list(text))
            if name == matrix and rng.random() < 0.6:
                text[name], edit = _edit_matrix(rng, text[name])
            else:
                text[name], edit = mutations.change_lines(rng, text[name])
            case.edits.append(f"{Path(name).stem}: {edit}")
        for name, lines in text.items():
            (case.path / name).parent.mkdir(parents=True, exist_ok=True)
            (case.path / name).write_bytes(b"".join(lines))
        for name in text:
            if rng.random() < 0.12:
                case.edits.append(mutations.maybe_gzip(rng, case.path / name))
        if rng.random() < 0.01:
            case.edits.append(_plant_huge_line(rng, case.path / pick(rng, list(text))))
        if damaged:
            case.edits.append(mutations.damage_folder(rng, case.path))
        return case

    def theirs(self, case: Case) -> Table:
        """Read the lists with a few lines and the matrix with scipy."""
        files = [file for file in sorted(case.path.rglob("*")) if file.is_file()]
        matrix = _only(files, r".*\.mtx(\.gz)?")
        features, barcodes = _only(files, r".*(features\.tsv|genes\.tsv|\.genes\.txt)(\.gz)?"), None
        barcodes = _only(files, r".*barcodes\.(tsv|txt)(\.gz)?")
        rows = _rows(features)
        cells = _first_names([list(column) for column in zip(*_rows(barcodes), strict=True)])
        if len({len(row) for row in rows}) != 1:
            msg = "ragged"
            raise Refused(msg)
        columns = {str(i): [row[i] for row in rows] for i in range(len(rows[0]))}
        types = columns.pop("2", None)
        for names in [file for file in files if re.fullmatch(r".*\.genes\.names\.txt(\.gz)?", file.name)]:
            columns["1"] = [row[0] for row in _rows(names, blank=True)]
            if len(columns["1"]) != len(rows):
                msg = "another number of symbols"
                raise Refused(msg)
        counts, instead = _matrix(matrix)
        if "cells_x_genes" not in matrix.name and counts.shape == (len(rows), len(cells)):
            counts = counts.T
        if counts.shape != (len(cells), len(rows)):
            msg = f"{counts.shape} is not {len(cells)} cells and {len(rows)} features"
            raise Refused(msg)
        return Table(cells, counts, columns, types, instead=instead)


def _first_names(columns: list[list[str]]) -> list[str]:
    """Return the first column in which most entries differ and are neither empty nor numbers, else the first one."""
    for column in columns:
        numbers = sum(re.fullmatch(r"[+-]?\d+(\.\d*)?|", name) is not None for name in column)
        given = [name for name in column if name]
        if 2 * numbers < len(column) and 2 * len(set(given)) > len(given):
            return column
    return columns[0]


def _matrix(path: Path) -> tuple[np.ndarray, str | None]:
    """Read with scipy, and where it refuses the text with a few lines, which take any number for an entry."""
    try:
        with _opened(path) as file:
            if not re.fullmatch(rb"(?:[%\n].*\n)*(?:\d+[ \t]+\d+[ \t]+-?\d+(?:\.\d+)?\n)*", file.read()):
                # Other bytes end the whole process, the ".0" of an index 1.0 becomes the value, and 1e3 becomes 1.
                msg = "no plain lines"
                raise Refused(msg)
        with _opened(path) as file:
            found: Any = scipy.io.mmread(io.BytesIO(file.read()))
        return np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=np.float64), None
    except Exception as error:
        with _opened(path) as file:
            lines = file.read().decode("utf-8-sig").replace("\ufeff", "").splitlines()
        body = [line.split() for line in lines[1:] if line.strip() and not line.lstrip().startswith("%")]
        rows, columns, entries = map(int, body[0])
        if len(body) != entries + 1 or any(len(fields) != 3 for fields in body) or rows * columns > 10**6:
            msg = f"{len(body) - 1} entries"
            raise Refused(msg) from error
        counts = np.zeros((rows, columns))
        for row, column, value in body[1:]:
            at = float(row) - 1, float(column) - 1
            if not (at[0] in range(rows) and at[1] in range(columns)):
                msg = "an entry outside"
                raise Refused(msg) from error
            counts[int(at[0]), int(at[1])] += float(value)
        return counts, f"scipy refuses the matrix ({type(error).__name__}); a few lines read the same"


def _mtx(counts: np.ndarray, rng: np.random.Generator) -> list[str]:
    rows, columns = np.nonzero(counts)
    order = rng.permutation(len(rows)) if rng.random() < 0.3 else np.arange(len(rows))
    real = rng.random() < 0.3
    head = [f"%%MatrixMarket matrix coordinate {'real' if real else 'integer'} general\n"]
    if rng.random() < 0.5:
        head.append('%metadata_json: {"format_version": 2}\n')
    body = [f"{rows[i] + 1} {columns[i] + 1} {counts[rows[i], columns[i]]}{'.0' if real else ''}\n" for i in order]
    return [*head, f"{counts.shape[0]} {counts.shape[1]} {len(rows)}\n", *body]


def _plant_huge_line(rng: np.random.Generator, path: Path) -> str:
    """Put a line of some gigabytes into a gzipped file that stays small."""
    if not path.is_file():
        return "no file"
    lines = path.read_bytes().splitlines(keepends=True)
    at = int(rng.integers(len(lines) + 1))
    huge = gzip.compress(b"7" * 2**24) * 2**8
    path.write_bytes(gzip.compress(b"".join(lines[:at])) + huge + gzip.compress(b"".join(lines[at:])))
    return "gzip: huge line"


def _edit_matrix(rng: np.random.Generator, lines: list[bytes]) -> tuple[list[bytes], str]:
    """Change one field of a matrix: of its banner, its sizes or an entry."""
    new = list(lines)
    at = int(rng.integers(len(new)))
    fields = new[at].split()
    field = int(rng.integers(max(len(fields), 1)))
    value = pick(
        rng,
        (
            *(
                b"0",
                b"-1",
                b"1",
                b"2",
                b"3",
                b"7",
                b"99999",
                b"2147483648",
                b"4294967295",
                b"4294967296",
                b"1e3",
                b"1.5",
            ),
            *(
                b"nan",
                b"inf",
                b"",
                b"x",
                b"1_000",
                b"0x10",
                b"+2",
                b"1.0",
                b"18446744073709551616",
                b"3.0000002",
                b"NA",
            ),
            *(
                b"symmetric",
                b"pattern",
                b"array",
                b"complex",
                b"real",
                b"Float",
                b"INTEGER",
                b"1,5",
                b"\xd9\xa3",
                b"2e0",
            ),
        ),
    )
    if fields:
        fields[field] = value
    new[at] = pick(rng, (b" ", b" ", b"\t", b"  ")).join(fields) + b"\n"
    return new, f"entry: {'banner' if at == 0 else f'field {field}'} {value.decode(errors='replace')[:12]}"


def _only(files: list[Path], pattern: str) -> Path:
    found = {file.name.removesuffix(".gz"): file for file in reversed(files) if re.fullmatch(pattern, file.name)}
    if len(found) != 1:
        msg = f"{len(found)} files are like {pattern}"
        raise Refused(msg)
    return next(iter(found.values()))


def _opened(path: Path):
    zipped = path.read_bytes()[:2] == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _rows(path: Path, *, blank: bool = False) -> list[list[str]]:
    """Return the fields of each line; by the rules of CSV only where there are quotes, within which lines may end.

    Blank lines are left out, or with `blank` hold the empty name.
    """
    with _opened(path) as file:
        text = re.sub("\r\n?", "\n", file.read().decode("utf-8-sig"))
    if '"' in text:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t", strict=True))
    else:
        rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    if blank:
        rows = [row if any(map(str.strip, row)) else [""] for row in rows]
    rows = [row for row in rows if blank or len(row) > 1 or (row and (row[0].strip() or ('"' in text and not row[0])))]
    if rows and all(len(row) == 1 and "\t" in row[0] for row in rows):  # quotes around whole lines
        rows = [row[0].split("\t") for row in rows]
    return rows
