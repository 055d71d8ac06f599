"""Reader of AnnData on disk: .h5ad files (today's layout and the old one) and .zarr folders."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from sckit.data.readers.chunks import MatrixLists
from sckit.data.readers.features import TYPE_COLUMNS, choose_features
from sckit.data.readers.hdf5 import Group, array, dataset, entries_before, group, is_array, readable, strings
from sckit.data.readers.names import contradictions, gene_table
from sckit.data.readers.source import DENSE_VALUES, Source, nonzero_rows, other_matrices
from sckit.data.readers.spool import CellSpool, Chunk
from sckit.data.readers.texts import text_series
from sckit.data.views import Csr
from sckit.errors import DataError

_ENTRIES_PER_CHUNK = 2**20
_CATEGORIES = 2**20  # of one column: a table cut from a large one may have more of them than rows


class H5ad(Source):
    """X, one layer or raw of AnnData on disk: CSR, CSC or dense."""

    def __init__(self, path: Path, *, layer: str | None = None, raw: bool = False, genome: str | None = None) -> None:
        """Read genes and obs; the matrix itself stays on disk."""
        with readable(path), _open(path) as file:
            self.key, var_key = _matrix_key(file, path, layer=layer, raw=raw)
            self._encoding, shape = _encoding(file[self.key])
            obs, var = (_frame(file, key, rows, path) for key, rows in zip(("obs", var_key), shape, strict=True))
            n_rows = {"csr": len(obs), "csc": len(var)}.get(self._encoding)
            indptr = None if n_rows is None else entries_before(group(file, self.key), n_rows, path)
            remedy = _remedy(file, self.key, path)
        table = gene_table(var, path)
        types = next((strings(var[name]) for name in TYPE_COLUMNS if name in var), None)
        genomes = strings(var["genome"]) if "genome" in var else None
        chosen = choose_features(types, genomes, table.named, genome, path)
        notes = [*chosen.notes, *contradictions(var, table, path)]
        super().__init__(path, table, obs, lost=chosen.lost, notes=notes)
        self.unit = f"layer {layer!r}" if layer else "raw" if raw else "X"
        self.remedy = remedy
        self._n_columns = len(var)
        self._entries_before = indptr if self._encoding == "csr" else None
        if self._encoding == "dense":
            self._cells_at_most = max(1, DENSE_VALUES // len(var))
        self._spool: CellSpool | None = None

    @contextmanager
    def _opened(self) -> Iterator[Group | MatrixLists | CellSpool]:
        if self._encoding == "csc" and self._spool is not None:
            yield self._spool
            return
        with _open(self.path) as file:
            if self._encoding == "csr":
                yield MatrixLists(group(file, self.key))
                return
            if self._encoding == "dense":
                yield file
                return
            matrix = group(file, self.key)
            chunks = _column_chunks(matrix, entries_before(matrix, self._n_columns, self.path))
            self._spool = CellSpool(chunks, self.n_cells, dataset(matrix, "data").dtype)
            self._entries_before = self._spool.indptr
        yield self._spool

    def _read(self, handle: Group | MatrixLists | CellSpool, first: int, last: int) -> Csr:
        if isinstance(handle, CellSpool):
            return handle.read(first, last)
        if isinstance(handle, MatrixLists):
            assert self._entries_before is not None
            return handle.rows(self._entries_before, first, last)
        return nonzero_rows(array(handle, self.key, first, last))


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


@contextmanager
def _open(path: Path) -> Iterator[Group]:
    """Open an HDF5 file, or a folder as zarr. Raises `DataError` for a zarr codec that would run code of the file."""
    if path.is_file():
        with h5py.File(path) as file:
            yield file
        return
    import zarr

    for name in (".zarray", ".zmetadata", "zarr.json"):
        for file in path.rglob(name):
            if _names_pickle(json.loads(file.read_bytes())):
                raise DataError(f"{path} holds pickled objects, which could run any code; write it without them.")
    yield zarr.open_group(path, mode="r")


def _names_pickle(document: Any) -> bool:
    """Return whether metadata of zarr name the codec that unpickles objects, in whatever depth."""
    if isinstance(document, dict):
        codec = next((str(document[key]) for key in ("id", "name") if key in document), "")
        return codec.rpartition(".")[2] == "pickle" or any(map(_names_pickle, document.values()))
    return isinstance(document, list) and any(map(_names_pickle, document))


def _matrix_key(file: Group, path: Path, *, layer: str | None, raw: bool) -> tuple[str, str]:
    """Return the names of the matrix and of its gene table inside the file."""
    layers = _layers(file)
    if layer is not None:
        if layer not in layers:
            known = ", ".join(layers) or "none"
            raise DataError(f"{path} has no layer {layer!r}; its layers are: {known}. Its X is read by {path}::layer=.")
        return f"layers/{layer}", "var"
    if raw:
        for key, var_key in (("raw/X", "raw/var"), ("raw.X", "raw.var")):
            if key in file:
                return key, var_key
        raise DataError(f"{path} has no raw matrix; its X is read without --raw and ::raw, or by {path}::raw=false.")
    if "X" not in file or file["X"].attrs.get("encoding-type") == "null":
        raise DataError(f"{path} has no X{_remedy(file, 'X', path)}.")
    return "X", "var"


def _remedy(file: Group, key: str, path: Path) -> str:
    """Say what else in this file may hold the counts, as the end of a sentence."""
    layers = [f"layer={name}" for name in _layers(file) if f"layers/{name}" != key]
    raw = ["raw"] if ("raw/X" in file or "raw.X" in file) and not key.startswith("raw") else []
    return other_matrices(path, layers + raw) or "; the file holds no other matrix, so export it with its raw counts"


def _layers(file: Group) -> list[str]:
    return list(group(file, "layers")) if "layers" in file else []


def _encoding(matrix: Any) -> tuple[str, tuple[int, int]]:
    """Return the storage of the matrix ("dense", "csr" or "csc") and its shape (cells, genes)."""
    if is_array(matrix):
        return "dense", matrix.shape
    encoding, shape = ("encoding-type", "shape") if "shape" in matrix.attrs else ("h5sparse_format", "h5sparse_shape")
    rows, columns = np.asarray(matrix.attrs[shape]).tolist()
    name = str(strings(np.ravel(matrix.attrs[encoding]))[0]).removesuffix("_matrix")
    if name not in ("csr", "csc"):
        raise ValueError(f"its matrix is stored as {name!r}, not as csr, csc or dense")
    return name, (rows, columns)


def _frame(file: Group, key: str, rows: int, path: Path) -> pd.DataFrame:
    """Read a table of cells or genes; old files store it as one compound dataset with categories under `uns`.

    Raises `DataError` when it does not have the number of rows that the matrix has.
    """
    stored = file[key]
    _check_rows(stored, key, rows, path)
    if not is_array(stored):
        from anndata.io import read_elem

        frame = _table(group(file, key)) if _is_table(stored) else read_elem(group(file, key))
        if not isinstance(frame, pd.DataFrame):
            raise ValueError(f"{key} is not a table")
        return frame
    records = stored[:]
    names = list(records.dtype.names)
    columns: dict[str, object] = {}
    for name in names[1:]:
        values = records[name]
        categories = file.get(f"uns/{name}_categories")
        if is_array(categories) and values.dtype.kind in "iu" and values.max(initial=-1) < categories.size:
            _check_rows(categories, f"uns/{name}_categories", rows, path)
            known = strings(np.ravel(categories[()]))  # a single one may stand alone
            columns[name] = pd.Categorical.from_codes(values, known.tolist())
        else:
            columns[name] = strings(values) if values.dtype.kind in "SO" else values
    return pd.DataFrame(columns, index=pd.Index(strings(records[names[0]])))


def _is_table(stored: Group) -> bool:
    """Return whether a table is stored as anndata does since 0.8; it reads the older ways itself."""
    return (stored.attrs.get("encoding-type"), stored.attrs.get("encoding-version")) == ("dataframe", "0.2.0")


def _table(stored: Group) -> pd.DataFrame:
    """Read a table as anndata does, but long lists of texts, which may be names of cells, without Python strings."""
    from anndata.io import read_elem

    def read(name: str) -> Any:
        is_text = is_array(stored[name]) and stored[name].attrs.get("encoding-type") == "string-array"
        return text_series(stored[name]).array if is_text else read_elem(stored[name])

    columns, index = {name: read(name) for name in stored.attrs["column-order"]}, stored.attrs["_index"]
    return pd.DataFrame(columns, pd.Index(read(index), name=None if index == "_index" else index), copy=False)


def _check_rows(stored: Any, key: str, rows: int, path: Path) -> None:
    """Raise `DataError` for a list of a table that has not as many entries as the matrix has rows: it may be huge."""
    parts = {key: stored}
    if not is_array(stored):
        names = [stored.attrs["_index"], *stored.attrs["column-order"]]
        parts = {f"{key}/{name}": stored[name] for name in names}
        for at, one in [*parts.items()]:
            if not is_array(one):
                if not ({"codes", "categories"} <= set(one) or {"values", "mask"} <= set(one)):
                    raise ValueError(f"the column {at} holds neither codes nor values")
                parts |= {f"{at}/{part}": one[part] for part in one}
    for place, one in parts.items():
        shape = one.shape if is_array(one) else (rows,)
        if shape != (rows,) and not (place.endswith("categories") and len(shape) < 2 and sum(shape) <= _CATEGORIES):
            raise DataError(
                f"{path} is corrupt: {place} has the shape {shape}, and the matrix has {rows:,} rows or columns for "
                "it; copy or export it again."
            )


def _column_chunks(matrix: Group, indptr: np.ndarray) -> Iterator[Chunk]:
    """Yield the entries of a CSC matrix as (cells, genes, values), in file order."""
    for low in range(0, int(indptr[-1]), _ENTRIES_PER_CHUNK):
        high = min(low + _ENTRIES_PER_CHUNK, int(indptr[-1]))
        per_gene = np.diff(np.clip(indptr, low, high))
        genes = np.repeat(np.arange(len(per_gene), dtype=np.int32), per_gene)
        yield array(matrix, "indices", low, high), genes, array(matrix, "data", low, high)
