"""Readers of what Cell Ranger writes: .h5 files of every version, and folders with matrix.mtx."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import pandas as pd

from sckit.data.readers.hdf5 import array, csr_rows, dataset, group, readable, strings
from sckit.data.readers.source import GENE_EXPRESSION, NOT_EXPRESSION, GeneTable, Source
from sckit.data.readers.spool import CellSpool, Chunk
from sckit.data.views import Csr
from sckit.errors import DataError

_LINES_PER_CHUNK = 2**20


def genome_groups(file: h5py.File) -> list[str]:
    """List the genomes in a file of Cell Ranger 1 or 2, which keeps one matrix per genome."""
    return [name for name, item in file.items() if isinstance(item, h5py.Group) and {"barcodes", "indptr"} <= set(item)]


class TenxH5(Source):
    """A Cell Ranger .h5 file: one group per genome (versions 1 and 2) or the group `matrix` (3 and later)."""

    def __init__(self, path: Path, *, genome: str | None = None) -> None:
        """Read features and barcodes; with several genomes in the file, `genome` has to name one."""
        with readable(path), h5py.File(path) as file:
            is_old = "matrix" not in file
            self._key = _choose_genome(genome_groups(file), genome, path) if is_old else "matrix"
            matrix = group(file, self._key)
            if is_old:
                ids, symbols = strings(array(matrix, "genes")), strings(array(matrix, "gene_names"))
                lost = {}
            else:
                features = group(matrix, "features")
                ids, symbols = strings(array(features, "id")), strings(array(features, "name"))
                lost = _lost_features(features, genome, path)
            obs = pd.DataFrame(index=pd.Index(strings(array(matrix, "barcodes"))))
            indptr = array(matrix, "indptr").astype(np.int64)
        if len(indptr) != len(obs) + 1:
            raise DataError(f"{path} is corrupt: it has {len(obs)} barcodes but {len(indptr) - 1} columns.")
        super().__init__(path, GeneTable(ids, symbols), obs, lost=lost)
        self._indptr = self._entries_before = indptr

    def _opened(self) -> AbstractContextManager[h5py.File]:
        return h5py.File(self.path)

    def _read(self, handle: h5py.File, first: int, last: int) -> Csr:
        return csr_rows(group(handle, self._key), self._indptr, first, last)


class TenxMtx(Source):
    """A folder with matrix.mtx, barcodes.tsv and features.tsv (or genes.tsv), gzipped or not.

    The text is parsed once, into a temporary file in cell order, whatever the order of its lines.
    """

    def __init__(self, path: Path, *, genome: str | None = None) -> None:
        """Read features, barcodes and the head of the matrix."""
        folder = mtx_folder(path, genome)
        if folder is None:
            raise DataError(f"{path} is a folder without matrix.mtx or matrix.mtx.gz; give the folder that holds it.")
        features_path = _find(folder, "features.tsv", "genes.tsv")
        self._matrix_path = _find(folder, "matrix.mtx")
        with readable(features_path):
            features = _read_tsv(features_path)
        with readable(folder):
            barcodes = _read_tsv(_find(folder, "barcodes.tsv"))[0].to_numpy(object)
        with readable(self._matrix_path), _open_text(self._matrix_path) as file:
            n_features, n_cells, self._nonzeros = _read_mtx_head(file)
        if (n_features, n_cells) != (len(features), len(barcodes)):
            raise DataError(
                f"{self._matrix_path} is {n_features} x {n_cells}, but {folder} names {len(features)} features and "
                f"{len(barcodes)} barcodes; it must have one row per feature and one column per barcode."
            )
        ids = features[0].to_numpy(object)
        symbols = features[1].to_numpy(object) if features.shape[1] > 1 else ids
        lost = {NOT_EXPRESSION: (features[2] != GENE_EXPRESSION).to_numpy()} if features.shape[1] > 2 else {}
        super().__init__(path, GeneTable(ids, symbols), pd.DataFrame(index=pd.Index(barcodes)), lost=lost)
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
        with _open_text(self._matrix_path) as file:
            _read_mtx_head(file)
            dtypes = {"feature": np.int64, "cell": np.int64, "value": np.float64}
            if self._nonzeros:
                options = {"sep": r"\s+", "header": None, "names": list(dtypes), "dtype": dtypes}
                for lines in pd.read_csv(file, chunksize=_LINES_PER_CHUNK, **options):
                    n_lines += len(lines)
                    yield lines["cell"].to_numpy() - 1, lines["feature"].to_numpy() - 1, lines["value"].to_numpy()
        if n_lines != self._nonzeros:
            raise DataError(
                f"{self._matrix_path} is truncated: it promises {self._nonzeros} entries and has {n_lines}; "
                "copy or export it again."
            )


def mtx_folder(path: Path, genome: str | None) -> Path | None:
    """Find the folder with matrix.mtx: `path`, or its subfolder for one genome (Cell Ranger 1 and 2), or None."""
    if _is_mtx(path):
        return path
    genomes = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and _is_mtx(folder))
    return path / _choose_genome(genomes, genome, path) if genomes else None


def _is_mtx(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("matrix.mtx", "matrix.mtx.gz"))


def _choose_genome(genomes: list[str], genome: str | None, path: Path) -> str:
    known = ", ".join(genomes)
    if genome is None and len(genomes) > 1:
        raise DataError(f"{path} holds {len(genomes)} genomes ({known}); say which with --genome {genomes[0]}.")
    if genome is not None and genome not in genomes:
        raise DataError(f"{path} has no genome {genome!r}; it holds: {known}.")
    return genome or genomes[0]


def _lost_features(features: h5py.Group, genome: str | None, path: Path) -> dict[str, np.ndarray]:
    """Mark the features [F] bool of Cell Ranger 3 and later that are left out, by reason."""
    lost = {}
    is_expression = np.ones(len(dataset(features, "id")), dtype=bool)
    if "feature_type" in features:
        is_expression = strings(array(features, "feature_type")) == GENE_EXPRESSION
        lost[NOT_EXPRESSION] = ~is_expression
    if "genome" in features and is_expression.any():
        genomes = strings(array(features, "genome"))
        chosen = _choose_genome(sorted(set(genomes[is_expression])), genome, path)
        lost["genes of another genome"] = is_expression & (genomes != chosen)
    return lost


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(f"{folder} has a matrix but no {' or '.join(names)} (gzipped or not) next to it; add the file.")


def _open_text(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _read_tsv(path: Path) -> pd.DataFrame:
    with _open_text(path) as file:
        return pd.read_csv(file, sep="\t", header=None, dtype=str, na_filter=False, quoting=3)


def _read_mtx_head(file: IO[str]) -> tuple[int, int, int]:
    """Read up to the line of sizes: (features, cells, entries); raises `ValueError` for other kinds of mtx."""
    banner = file.readline().lower().split()
    if banner not in (["%%matrixmarket", "matrix", "coordinate", field, "general"] for field in ("integer", "real")):
        raise ValueError(
            f"its first line is {' '.join(banner)!r}, not '%%MatrixMarket matrix coordinate integer general'"
        )
    line = file.readline()
    while line.startswith("%"):
        line = file.readline()
    n_features, n_cells, nonzeros = map(int, line.split())
    return n_features, n_cells, nonzeros
