"""Sparse matrices as text (MatrixMarket) with their lists of cells and features: Cell Ranger, GEO, kallisto, STARsolo.

    matrix.mtx  barcodes.tsv  features.tsv (or genes.tsv)               Cell Ranger, STARsolo
    GSM1_matrix.mtx  GSM1_barcodes.tsv  GSM1_features.tsv               GEO: a name in front, behind, or both
    UniqueAndMult-EM.mtx  barcodes.tsv  features.tsv                    STARsolo, several matrices in one folder
    cells_x_genes.mtx  cells_x_genes.barcodes.txt  cells_x_genes.genes.txt    kallisto, one row per cell

Each file may be gzipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sckit.data.readers.features import are_types, choose_features, choose_genome
from sckit.data.readers.hdf5 import readable
from sckit.data.readers.names import are_names, feature_table
from sckit.data.readers.source import Source
from sckit.data.readers.spool import CellSpool, Chunk
from sckit.data.readers.text import check_entries, open_text, read_mtx_head, read_names
from sckit.data.readers.texts import text_series
from sckit.data.views import Csr
from sckit.errors import DataError

_LINES_PER_CHUNK = 2**20
_UNSPLIT = re.compile(r"\S*ENS[A-Z]*G\d{6,}\S*[;, ]+\S.*")


class MtxFiles(NamedTuple):
    """The files of one matrix; `symbols` where they are apart from the ids."""

    matrix: Path
    features: Path
    barcodes: Path
    symbols: Path | None
    cells_first: bool


class TenxMtx(Source):
    """One sparse text matrix with its lists of names.

    The text is parsed once, into a temporary file in cell order, whatever the order of its lines.
    """

    def __init__(self, path: Path, files: MtxFiles, *, genome: str | None = None) -> None:
        """Read features, barcodes and the head of the matrix; `path` is the folder or matrix that was named."""
        self._matrix_path = files.matrix
        with readable(files.features):
            names, *more = read_names(files.features)
            if files.symbols is not None:
                more = read_names(files.symbols, blank_lines=True)[:1]
        with readable(files.barcodes):
            lists = read_names(files.barcodes)
            barcodes = next((column for column in lists if are_names(column)), lists[0])
        with readable(files.matrix), open_text(files.matrix) as file:
            head = read_mtx_head(file, files.matrix)
            check_entries(file, files.matrix, head, at_most=1)
        rows, columns, self._nonzeros = head[:3]
        named = len(names), len(barcodes)
        self._cells_first = files.cells_first or (rows, columns) != named
        if named != ((columns, rows) if self._cells_first else (rows, columns)) or len({*map(len, more), named[0]}) > 1:
            of_row, of_column = ("barcode", "feature") if files.cells_first else ("feature", "barcode")
            raise DataError(
                f"{files.matrix} is {rows} x {columns}, but {path} names {named[0]} features and {named[1]} barcodes; "
                f"it must have one row per {of_row} and one column per {of_column}, and the lists no heading."
            )
        columns_of_names = [names, *more]
        types = None
        if files.symbols is None and len(columns_of_names) > 1:  # a third column holds types, wherever it is
            at = next((i for i, column in enumerate(columns_of_names) if are_types(column)), 2)
            types = columns_of_names.pop(at) if at < len(columns_of_names) else None
        names, *more = columns_of_names
        if not more and len([name for name in names if _UNSPLIT.fullmatch(name)]) * 2 >= len(names):
            raise DataError(f"{files.features} has no tabs between its columns, as in {names[0]!r}; put them there.")
        table = feature_table(names, more[0] if more else names, path)
        chosen = choose_features(types, None, table.named, genome, path)
        super().__init__(
            path, table, pd.DataFrame(index=pd.Index(text_series(barcodes))), lost=chosen.lost, notes=chosen.notes
        )
        self.files = [file for file in files[:4] if isinstance(file, Path)]
        self._spool: CellSpool | None = None

    def _opened(self) -> AbstractContextManager[CellSpool]:
        if self._spool is None:
            self._spool = CellSpool(self._chunks(), self.n_cells, np.dtype(np.float64))
            self._entries_before = self._spool.indptr
        return nullcontext(self._spool)

    def _read(self, handle: CellSpool, first: int, last: int) -> Csr:
        return handle.read(first, last)

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the lines of the matrix as (cells, features, values), counted from 0."""
        n_lines = 0
        cell, feature = ("row", "column") if self._cells_first else ("column", "row")
        with readable(self._matrix_path), open_text(self._matrix_path) as file:
            read_mtx_head(file, self._matrix_path)
            dtypes = {"row": np.int64, "column": np.int64, "value": np.float64}
            options = {"sep": r"\s+", "header": None, "names": list(dtypes), "dtype": dtypes}
            try:
                for lines in pd.read_csv(file, chunksize=_LINES_PER_CHUNK, **options):
                    if lines["value"].isna().any():
                        msg = "a line has no value"
                        raise ValueError(msg)
                    n_lines += len(lines)
                    yield lines[cell].to_numpy() - 1, lines[feature].to_numpy() - 1, lines["value"].to_numpy()
            except pd.errors.EmptyDataError:
                pass  # a matrix without entries
            except ValueError:
                with open_text(self._matrix_path) as again:
                    check_entries(again, self._matrix_path, read_mtx_head(again, self._matrix_path))
                raise  # a line that only pandas refuses
        if n_lines != self._nonzeros:
            raise DataError(
                f"{self._matrix_path} is truncated or corrupt: it promises {self._nonzeros} entries and has {n_lines}; "
                "copy or export it again."
            )


def open_mtx(path: Path, *, genome: str | None = None) -> list[TenxMtx]:
    """Open the matrix that `path` is, or each matrix of a folder that has lists of its own; none gives no source."""
    if path.is_dir() and not _matrices(path):
        genomes = {folder.name: folder for folder in sorted(path.iterdir()) if folder.is_dir() and _matrices(folder)}
        if not genomes or set(genomes) & {"raw", "filtered"}:
            return []
        if len(genomes) > 1 and not path.name.endswith("gene_bc_matrices"):
            raise DataError(
                f"{path} holds folders with matrices of their own ({', '.join(genomes)}); name each to read."
            )
        path, genome = genomes[choose_genome(list(genomes), genome, path)], None  # as Cell Ranger 1 and 2 wrote it
    matrices = _matrices(path) if path.is_dir() else [path]
    return [
        TenxMtx(matrix.parent if _stem(matrix) == "matrix" else matrix, _with_lists(matrix), genome=genome)
        for matrix in matrices
    ]


def _stem(matrix: Path) -> str:
    return re.sub(r"(\.mtx)?(\.gz)?$", "", matrix.name, count=1, flags=re.IGNORECASE)


def _matrices(folder: Path) -> list[Path]:
    """List the matrices of a folder that stand for cells of their own: all those called matrix, else the only one."""
    files = [*sorted(folder.glob("[!.]*.mtx.gz")), *sorted(folder.glob("[!.]*.mtx"))]
    found = {_stem(file): file for file in files if file.is_file()}  # the one that is not gzipped where there are both
    called = sorted(stem for stem in found if "matrix" in stem)
    with_own = sorted(stem for stem, file in found.items() if _own_lists(file))
    for chosen in (called, [stem for stem in found if stem == "cells_x_genes"], with_own):
        if chosen:
            return [found[stem] for stem in chosen]
    if len(found) > 1:
        names = ", ".join(file.name for file in found.values())
        raise DataError(f"{folder} holds several matrices of the same cells ({names}); name one of these files.")
    return list(found.values())


def _with_lists(matrix: Path) -> MtxFiles:
    """Find the lists of names of a matrix. Raises `DataError` where one is missing."""
    stem, folder = _stem(matrix), matrix.parent
    for front in (stem, stem.split(".")[0]):
        genes, barcodes = (_first(folder, [f"{front}.{what}.txt"]) for what in ("genes", "barcodes"))
        if genes and barcodes:
            return MtxFiles(matrix, genes, barcodes, _first(folder, [f"{front}.genes.names.txt"]), cells_first=True)
    before, word, behind = stem.rpartition("matrix")
    own = _own_lists(matrix)
    if own:
        return MtxFiles(matrix, *own, None, cells_first=False)
    before, behind = (before, behind) if word else ("", "")

    def find(*words: str) -> Path:
        names = [f"{before}{one}{behind}.tsv" for one in words]
        file = _first(folder, names)
        if file is None:
            raise DataError(
                f"{matrix} has no {' or '.join(names)} (gzipped or not) next to it; add the file that belongs to it."
            )
        return file

    return MtxFiles(matrix, find("features", "genes"), find("barcodes"), None, cells_first=False)


def _own_lists(matrix: Path) -> tuple[Path, Path] | None:
    """Find lists whose name begins like that of a matrix that is not called matrix: GSM1_counts, GSM1_features."""
    stem = _stem(matrix)
    if "matrix" in stem:
        return None
    for at in sorted((i + 1 for i, sign in enumerate(stem) if sign in "_.-"), reverse=True):
        features = _first(matrix.parent, [f"{stem[:at]}{word}.tsv" for word in ("features", "genes")])
        barcodes = _first(matrix.parent, [f"{stem[:at]}barcodes.tsv"])
        if features and barcodes:
            return features, barcodes
    return None


def _first(folder: Path, names: list[str]) -> Path | None:
    files = (folder / (name + ending) for name in names for ending in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)
