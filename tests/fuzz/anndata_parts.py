"""What sckit needs of AnnData on disk, read with a few lines: for files that anndata as a whole refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
from judge import Refused, Table, dense, texts

_MOST = 2**20


def anndata_table(
    cells: list[str],
    counts: np.ndarray,
    columns: dict[str, list[str]],
    totals: list[float] | None,
    options: dict[str, Any],
) -> Table:
    """Return the table of cells and of the columns of var, by name."""
    types, genomes = (columns.get(name) for name in ("feature_types", "genome"))
    return Table(cells, counts, columns, types, genomes, "from_log1p" in options, totals)


def anndata_parts(file: Any, options: dict[str, Any]) -> Table:
    """Read one matrix, the names of cells and the table of genes from an open file or folder."""
    layer, var_key = options.get("layer"), "var"
    key = f"layers/{layer}" if layer else "X"
    if options.get("raw"):
        key, var_key = ("raw/X", "raw/var") if "raw/X" in file else ("raw.X", "raw.var")
    counts = _matrix(file[key])
    obs, var = _columns(file["obs"]), _columns(file[var_key])
    cells, names = texts(obs[""]), {name or "index": texts(values) for name, values in var.items()}
    if counts.shape != (len(cells), len(names["index"])):
        msg = "the matrix has another shape than its tables"
        raise Refused(msg)
    if {len(column) for column in names.values()} != {counts.shape[1]}:
        msg = "columns of var differ in length"
        raise Refused(msg)
    totals = [float(v) for v in obs[options["totals"]]] if "totals" in options else None
    return anndata_table(cells, counts, names, totals, options)


_STORAGE = ("encoding-type", "h5sparse_format", "shape", "h5sparse_shape")


def _matrix(stored: Any) -> np.ndarray:
    if hasattr(stored, "shape"):
        return np.asarray(stored[:], dtype=np.float64)
    attrs = {name: stored.attrs[name] for name in stored.attrs if name in _STORAGE}
    kind = str(attrs.get("encoding-type") or attrs["h5sparse_format"]).removesuffix("_matrix")
    rows, columns = (int(n) for n in (attrs["shape"] if "shape" in attrs else attrs["h5sparse_shape"]))
    data, indices, indptr = (_array(stored, name) for name in ("data", "indices", "indptr"))
    if kind == "csr":
        return dense(data, indices, indptr, (rows, columns))
    if kind != "csc":
        msg = f"a matrix of the kind {kind}"
        raise Refused(msg)
    return dense(data, indices, indptr, (columns, rows)).T


def _columns(stored: Any) -> dict[str, Any]:
    """Return the index as "" and the columns by name."""
    if hasattr(stored, "shape"):
        records = stored[:]
        first, *others = records.dtype.names
        return {"": records[first]} | {name: records[name] for name in others}
    index = stored.attrs["_index"]
    return {"" if name == index else name: _column(stored[name]) for name in (index, *stored.attrs["column-order"])}


def _column(stored: Any) -> Any:
    if hasattr(stored, "shape"):
        if stored.ndim != 1 or stored.shape[0] > _MOST:
            msg = "a column is no list"
            raise Refused(msg)
        return stored[:]
    if "codes" in stored:
        codes, categories = _array(stored, "codes").astype(np.int64), _array(stored, "categories").astype(object)
        if codes.min(initial=0) < -1 or codes.max(initial=-1) >= len(categories):
            msg = "codes without a category"
            raise Refused(msg)
        return np.array([*categories, None], dtype=object)[codes]
    return np.where(_array(stored, "mask"), None, _array(stored, "values").astype(object))


def _array(stored: Any, name: str) -> Any:
    found = stored[name]
    if found.ndim != 1 or found.shape[0] > _MOST:
        msg = f"{name} is no list"
        raise Refused(msg)
    return found[:]
