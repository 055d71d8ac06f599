"""Parts of an h5ad that are written block by block, so that memory does not grow with the number of cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from sckit.data.cell_table import CellTable
from sckit.data.readers.hdf5 import Group
from sckit.data.views import Csr

GZIP: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_CHUNK = 2**18
_TEXTS = 2**16  # that are Python strings at a time


def encoded_group(parent: Group, name: str, encoding: str, version: str, **attributes: Any) -> Group:
    """Make a group, or take the one that is there, and mark it as anndata does."""
    group = parent.require_group(name)
    group.attrs.update({"encoding-type": encoding, "encoding-version": version, **attributes})
    return group


def growing(group: Group, name: str, dtype: Any) -> Any:
    """Make an empty list of numbers to which `append` adds."""
    return group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,), **GZIP)


def append(dataset: Any, values: np.ndarray) -> None:
    """Add values at the end."""
    first = len(dataset)
    dataset.resize((first + len(values),))
    dataset[first:] = values


def write_entries(group: Group, blocks: Iterable[Csr], dtype: Any) -> np.ndarray:
    """Append blocks of cells to `data` and `indices`; return where each cell begins, and the end: int64 [C + 1]."""
    data, indices = growing(group, "data", dtype), growing(group, "indices", np.int32)
    ends = [np.zeros(1, np.int64)]
    for indptr, genes, counts in blocks:
        ends.append(len(data) + indptr[1:].astype(np.int64))
        append(data, counts)
        append(indices, genes)
    return np.concatenate(ends)


def write_counts(file: Group, shape: tuple[int, int], blocks: Iterable[Csr]) -> None:
    """Write X as CSR float32."""
    matrix = encoded_group(file, "X", "csr_matrix", "0.1.0", shape=np.array(shape))
    indptr = write_entries(matrix, blocks, np.float32)
    matrix["indptr"] = indptr.astype(np.int32) if indptr[-1] < 2**31 else indptr  # as scipy has them


def write_obs(file: Group, table: CellTable) -> None:
    """Write obs, a column at a time; texts become categories, but for the names of the cells."""
    from anndata.io import write_elem

    columns = [name for name in table.columns if name != "cell"]
    order = np.array(columns, h5py.string_dtype())
    obs = encoded_group(file, "obs", "dataframe", "0.2.0", **{"_index": "_index", "column-order": order})
    _write_texts(obs, "_index", table.n_cells, (names for _, names in table.blocks("cell")))
    for name in columns:
        found = table.categories(name)
        if found is None:
            column = table.column(name)
            values = column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
            write_elem(obs, name, values, dataset_kwargs=GZIP)
            continue
        values, codes, ordered = found
        group = encoded_group(obs, name, "categorical", "0.2.0", ordered=ordered)
        narrow = next(kind for kind in (np.int8, np.int16, np.int32) if len(values) <= np.iinfo(kind).max)
        write_elem(group, "codes", codes.astype(narrow), dataset_kwargs=GZIP)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            _write_texts(group, "categories", len(values), [values])
        else:
            write_elem(group, "categories", values.to_numpy(zero_copy_only=False))


def _write_texts(group: Group, name: str, length: int, parts: Iterable[pa.Array]) -> None:
    """Write a list of texts that comes in parts."""
    packed = {"compression": "gzip"} if length else {}
    dataset = group.create_dataset(name, (length,), h5py.string_dtype(), **packed)
    dataset.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    first = 0
    for texts in _cut(parts):
        dataset[first : first + len(texts)] = texts.to_numpy(zero_copy_only=False)
        first += len(texts)


def _cut(parts: Iterable[pa.Array]) -> Iterator[pa.Array]:
    for part in parts:
        values = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
        for first in range(0, len(values), _TEXTS):
            yield values.slice(first, _TEXTS)
