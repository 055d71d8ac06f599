"""Readers of .h5ad files (today's layout and the old one) and of the PBMC sample that comes with scanpy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from sckit.data.readers.hdf5 import array, csr_rows, dataset, group, readable, strings
from sckit.data.readers.source import GENE_EXPRESSION, NOT_EXPRESSION, Source, gene_table, other_matrices
from sckit.data.readers.spool import CellSpool, Chunk
from sckit.data.views import Csr, indptr_of
from sckit.errors import DataError
from sckit.kernels.counts_reference import TARGET_SUM

_DENSE_VALUES = 2**23
_ENTRIES_PER_CHUNK = 2**20


class H5ad(Source):
    """X, one layer or raw of an .h5ad file: CSR, CSC or dense."""

    def __init__(self, path: Path, *, layer: str | None = None, raw: bool = False) -> None:
        """Read genes and obs; the matrix itself stays on disk."""
        with readable(path), h5py.File(path) as file:
            self.key, var_key = _matrix_key(file, path, layer=layer, raw=raw)
            self._encoding, shape = _encoding(file[self.key])
            obs, var = _frame(file, "obs"), _frame(file, var_key)
            if shape != (len(obs), len(var)):
                raise DataError(f"{path} is corrupt: {self.key} is {shape} for {len(obs)} cells and {len(var)} genes.")
            is_csr = self._encoding == "csr"
            entries_before = array(group(file, self.key), "indptr").astype(np.int64) if is_csr else None
            remedy = _remedy(file, self.key)
        lost = {NOT_EXPRESSION: (var["feature_types"] != GENE_EXPRESSION).to_numpy()} if "feature_types" in var else {}
        super().__init__(path, gene_table(var), obs, lost=lost)
        self.unit = f"layer {layer!r}" if layer else "raw" if raw else "X"
        self.remedy = remedy
        self._entries_before = entries_before
        if self._encoding == "dense":
            self._cells_at_most = max(1, _DENSE_VALUES // len(var))
        self._spool: CellSpool | None = None

    def _opened(self) -> AbstractContextManager[h5py.File | CellSpool]:
        if self._encoding != "csc":
            return h5py.File(self.path)
        if self._spool is None:
            with h5py.File(self.path) as file:
                matrix = group(file, self.key)
                chunks = _column_chunks(matrix)
                self._spool = CellSpool(chunks, self.n_cells, dataset(matrix, "data").dtype)
                self._entries_before = self._spool.indptr
        return nullcontext(self._spool)

    def _read(self, handle: h5py.File | CellSpool, first: int, last: int) -> Csr:
        if isinstance(handle, CellSpool):
            return handle.read(first, last)
        if self._entries_before is None:
            return _dense_rows(dataset(handle, self.key), first, last)
        return csr_rows(group(handle, self.key), self._entries_before, first, last)


class Sample(H5ad):
    """The 700 PBMC (10x 3' v1, 765 genes) inside the scanpy package, turned back into whole counts.

    The file keeps log1p of counts per 10,000 and each cell's total over all genes; see `largest_distance`.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at `path`."""
        super().__init__(path, raw=True)
        self._per_cell = self.obs["n_counts"].to_numpy(np.float64)
        self.totals = np.rint(self._per_cell).astype(np.int64)
        self.largest_distance = 0.0
        """Largest distance of a recovered count from a whole number among the cells read so far."""

    def _read(self, handle: h5py.File | CellSpool, first: int, last: int) -> Csr:
        indptr, features, values = super()._read(handle, first, last)
        per_entry = np.repeat(self._per_cell[first:last], np.diff(indptr))
        counts = np.expm1(values.astype(np.float64)) * per_entry / TARGET_SUM
        whole = np.rint(counts)
        self.largest_distance = max(self.largest_distance, float(np.abs(counts - whole).max(initial=0.0)))
        return indptr, features, whole


def sample_path() -> Path:
    """Find the file of the PBMC sample inside the scanpy package; scanpy itself is not imported."""
    spec = importlib.util.find_spec("scanpy")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        path = Path(place) / "datasets" / "10x_pbmc68k_reduced.h5ad"
        if path.is_file():
            return path
    msg = "No input was given and scanpy, whose PBMC sample would be used, is not installed; name an input."
    raise DataError(msg)


def _matrix_key(file: h5py.File, path: Path, *, layer: str | None, raw: bool) -> tuple[str, str]:
    """Return the names of the matrix and of its gene table inside the file."""
    layers = _layers(file)
    if layer is not None:
        if layer not in layers:
            known = ", ".join(layers) or "none"
            raise DataError(f"{path} has no layer {layer!r}; its layers are: {known}.")
        return f"layers/{layer}", "var"
    if raw:
        for key, var_key in (("raw/X", "raw/var"), ("raw.X", "raw.var")):
            if key in file:
                return key, var_key
        raise DataError(f"{path} has no raw matrix; leave out --raw.")
    if "X" not in file or file["X"].attrs.get("encoding-type") == "null":
        raise DataError(f"{path} has no X{_remedy(file, 'X')}.")
    return "X", "var"


def _remedy(file: h5py.File, key: str) -> str:
    """Say what else in this file may hold the counts, as the end of a sentence."""
    layers = [f"--layer {name}" for name in _layers(file) if f"layers/{name}" != key]
    raw = ["--raw"] if ("raw/X" in file or "raw.X" in file) and not key.startswith("raw") else []
    return other_matrices(layers + raw) or "; the file holds no other matrix, so export it with its raw counts"


def _layers(file: h5py.File) -> list[str]:
    return list(group(file, "layers")) if "layers" in file else []


def _encoding(matrix: object) -> tuple[str, tuple[int, int]]:
    """Return the storage of the matrix ("dense", "csr" or "csc") and its shape (cells, genes)."""
    if isinstance(matrix, h5py.Dataset):
        return "dense", matrix.shape
    if not isinstance(matrix, h5py.Group):
        raise ValueError(f"the matrix is a {type(matrix).__name__}")
    encoding, shape = ("encoding-type", "shape") if "shape" in matrix.attrs else ("h5sparse_format", "h5sparse_shape")
    rows, columns = np.asarray(matrix.attrs[shape]).tolist()
    return str(matrix.attrs[encoding]).removesuffix("_matrix"), (rows, columns)


def _frame(file: h5py.File, key: str) -> pd.DataFrame:
    """Read a table of cells or genes; old files store it as one compound dataset with categories under `uns`."""
    stored = file[key]
    if not isinstance(stored, h5py.Dataset):
        from anndata.io import read_elem

        frame = read_elem(group(file, key))
        if not isinstance(frame, pd.DataFrame):
            raise ValueError(f"{key} is not a table")
        return frame
    records = stored[:]
    names = list(records.dtype.names)
    columns: dict[str, object] = {}
    for name in names[1:]:
        values = records[name]
        categories = file.get(f"uns/{name}_categories")
        if isinstance(categories, h5py.Dataset) and values.dtype.kind in "iu":
            columns[name] = pd.Categorical.from_codes(values, strings(categories[:]).tolist())
        else:
            columns[name] = strings(values) if values.dtype.kind in "SO" else values
    return pd.DataFrame(columns, index=pd.Index(strings(records[names[0]])))


def _dense_rows(matrix: h5py.Dataset, first: int, last: int) -> Csr:
    """Read the nonzero entries of some rows of a dense matrix: (indptr, genes, values)."""
    piece = matrix[first:last]  # [c, G]
    rows, columns = np.nonzero(piece)
    indptr = indptr_of(np.bincount(rows, minlength=len(piece)))
    return indptr, columns, piece[rows, columns]


def _column_chunks(matrix: h5py.Group) -> Iterator[Chunk]:
    """Yield the entries of a CSC matrix as (cells, genes, values), in file order."""
    indptr = array(matrix, "indptr").astype(np.int64)
    for low in range(0, int(indptr[-1]), _ENTRIES_PER_CHUNK):
        high = min(low + _ENTRIES_PER_CHUNK, int(indptr[-1]))
        per_gene = np.diff(np.clip(indptr, low, high))
        genes = np.repeat(np.arange(len(per_gene), dtype=np.int32), per_gene)
        yield array(matrix, "indices", low, high), genes, array(matrix, "data", low, high)
