"""Copying an h5ad, or some of its cells, block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sckit.data.new_h5ad import GZIP, append, growing
from sckit.data.readers.hdf5 import Group, readable
from sckit.data.views import indptr_of

_PARTS = ("X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp")
_FOLDERS = ("layers", "obsm", "obsp", "raw", "uns", "varm", "varp")
_MATRICES = ("csr_matrix", "csc_matrix")
_COLUMNS = ("categorical", "nullable-integer", "nullable-boolean", "nullable-string-array")
_ENTRIES = 2**20  # of a sparse matrix that are in memory at a time
_CHUNK = 2**18  # bytes of an array, as are compressed together
_BLOCK = 16  # of these that are in memory at a time
_TEXT = 64  # bytes, assumed


@dataclass(frozen=True)
class _Kept:
    """Which of N rows are kept."""

    rows: np.ndarray  # int64 [K], rising
    of: int

    @cached_property
    def number(self) -> np.ndarray:
        """New number of each row, int32 [N], -1 for those that are left out."""
        number = np.full(self.of, -1, np.int32)
        number[self.rows] = np.arange(len(self.rows))
        return number


def can_copy(path: Path, *, whole: bool) -> bool:
    """Return whether `copy_h5ad` can copy a file, `whole` or some of its cells.

    It cannot copy .zarr folders, files of before anndata 0.8, and parts in an encoding that it does not know.
    """
    if not path.is_file():
        return False
    with readable(path), h5py.File(path) as file:
        if file.attrs.get("encoding-type") != "anndata" or not _is_table(file["obs"]):
            return False
        if any(isinstance(file.get(name), h5py.Dataset) for name in _FOLDERS):
            return False
        return whole or all(_is_known(file[place]) for place in _places(file) if _along_cells(place))


def copy_h5ad(source: Group, target: Group, rows: np.ndarray | None, without: Collection[str] = ()) -> None:
    """Copy an h5ad, of all its cells or of those in `rows`, int64 [K] rising, but for the parts `without`.

    Of some cells, what has a value for each cell is written compressed. Categories that no cell has any more are left
    out, and their colours in uns, as anndata does.
    """
    _copy_attributes(source, target)
    kept = None if rows is None else _Kept(rows, cells_of(source))
    for place in _places(source):
        part, (above, _, name) = source[place], place.rpartition("/")
        if kept is not None and place.partition("/")[0] not in _PARTS:
            continue  # anndata does not know it
        if above and above not in target:
            _copy_attributes(source[above], target.create_group(above))
        if place in without:
            continue
        parent = target[above] if above else target
        if kept is None or not _along_cells(place) or part.attrs.get("encoding-type") == "null":
            source.copy(part, parent, name)
        else:
            _copy_part(part, parent, name, kept, pairs=above == "obsp")
    if kept is not None:
        _drop_colours(source, target)


def _places(file: Group) -> Iterator[str]:
    """Name the parts of a file: tables and matrices, and what has none below it."""
    for name, part in file.items():
        if name in _FOLDERS and isinstance(part, h5py.Group) and len(part):
            yield from (f"{name}/{below}" for below in part)
        else:
            yield name


def _along_cells(place: str) -> bool:
    first, below, _ = place.partition("/")
    return place in ("X", "obs", "raw/X") or (bool(below) and first in ("layers", "obsm", "obsp"))


def _is_table(part: Any) -> bool:
    return (part.attrs.get("encoding-type"), part.attrs.get("encoding-version")) == ("dataframe", "0.2.0")


def _is_known(part: Any) -> bool:
    if isinstance(part, h5py.Dataset) or part.attrs.get("encoding-type") in _MATRICES:
        return True
    return _is_table(part) and all(
        isinstance(column, h5py.Dataset) or column.attrs.get("encoding-type") in _COLUMNS for column in part.values()
    )


def cells_of(file: Group) -> int:
    """Return the number of cells."""
    index = file["obs"][file["obs"].attrs["_index"]]
    parts: Any = {} if isinstance(index, h5py.Dataset) else index
    return len(parts["codes"] if "codes" in parts else _values(index))


def _values(column: Any) -> Any:
    """Return the list of values of a column, of which some may be missing."""
    return column["values"] if isinstance(column, h5py.Group) else column


def _copy_attributes(source: Any, target: Any) -> None:
    for name, value in source.attrs.items():
        target.attrs.create(name, value, dtype=source.attrs.get_id(name).dtype)


def _copy_part(source: Any, parent: Group, name: str, kept: _Kept, *, pairs: bool = False) -> None:
    """Copy the rows that are kept of an array, a matrix, a table or a column of one; of pairs of cells those of two."""
    if isinstance(source, h5py.Dataset):
        _copy_array(source, parent, name, kept, pairs=pairs)
        return
    target = parent.create_group(name)
    _copy_attributes(source, target)
    encoding = source.attrs["encoding-type"]
    if encoding in _MATRICES:
        cells, others = kept, kept if pairs else None
        sides = (cells, others) if encoding == "csr_matrix" else (others, cells)
        columns = len(kept.rows) if pairs else source.attrs["shape"][1]
        target.attrs["shape"] = np.array([len(kept.rows), columns])
        _copy_matrix(source, target, *sides)
    elif encoding == "categorical":
        _copy_categories(source, target, kept)
    else:
        for below, part in source.items():
            _copy_part(part, target, below, kept)


def _copy_array(source: Any, parent: Group, name: str, kept: _Kept, *, pairs: bool = False) -> None:
    """Copy rows of an array: of numbers, or of texts."""
    columns = (len(kept.rows),) if pairs else source.shape[1:]
    shape = (len(kept.rows), *columns)
    size = _TEXT if source.dtype.kind == "O" else source.dtype.itemsize
    rows = max(1, _CHUNK // max(size * int(np.prod(source.shape[1:])), 1))
    packed = GZIP | {"shuffle": source.dtype.kind != "O", "chunks": (min(rows, shape[0]), *columns)}
    target = parent.create_dataset(name, shape, source.dtype, **(packed if 0 not in shape else {}))
    _copy_attributes(source, target)
    of_chunk = source.chunks[0] if source.chunks else 1
    step = -(-rows * _BLOCK // of_chunk) * of_chunk  # each chunk is read once
    for first in range(0, kept.of, step):
        low, high = np.searchsorted(kept.rows, [first, first + step])
        if low < high:
            block = source[first : first + step][kept.rows[low:high] - first]
            target[low:high] = block[:, kept.rows] if pairs else block


def _copy_matrix(source: Group, target: Group, major: _Kept | None, minor: _Kept | None) -> None:
    """Copy a sparse matrix: of what indptr counts what is kept in `major`, of the indices what is kept in `minor`."""
    bounds = source["indptr"][:].astype(np.int64)
    lengths = np.zeros(len(bounds) - 1, np.int64)
    data, indices = (growing(target, name, source[name].dtype) for name in ("data", "indices"))
    for low in range(0, int(bounds[-1]), _ENTRIES):
        high = min(low + _ENTRIES, int(bounds[-1]))
        first, last = int(np.searchsorted(bounds, low, "right")) - 1, int(np.searchsorted(bounds, high))
        line = np.repeat(np.arange(first, last), np.diff(np.clip(bounds[first : last + 1], low, high)))
        others, values = source["indices"][low:high], source["data"][low:high]
        if minor is not None:
            others = minor.number[others]
        good = others >= 0
        if major is not None:
            good &= major.number[line] >= 0
        lengths[first:last] += np.bincount(line[good] - first, minlength=last - first)
        append(data, values[good])
        append(indices, others[good])
    found = indptr_of(lengths if major is None else lengths[major.rows])
    target.create_dataset("indptr", data=found.astype(source["indptr"].dtype), **GZIP)


def _copy_categories(source: Group, target: Group, kept: _Kept) -> None:
    """Copy a column of categories, without those that no cell has any more."""
    codes = source["codes"][:][kept.rows]
    categories = source["categories"]
    length = len(_values(categories))
    used = _Kept(np.flatnonzero(np.bincount(codes[codes >= 0], minlength=length)), length)
    number = np.append(used.number, -1)[codes]
    _copy_attributes(source["codes"], target.create_dataset("codes", data=number.astype(codes.dtype), **GZIP))
    _copy_part(categories, target, "categories", used)


def _drop_colours(source: Group, target: Group) -> None:
    """Leave out the colours of categories that were left out, and all where there is not one for each category."""
    for name, column in source["obs"].items():
        place = f"uns/{name}_colors"
        colours = target.get(place)
        if column.attrs.get("encoding-type") != "categorical" or not isinstance(colours, h5py.Dataset):
            continue
        before, after = ([*map(str, _values(file["obs"][name]["categories"])[:])] for file in (source, target))
        if len(colours.shape) != 1 or len(colours) == len(before) == len(after):
            continue
        values, encoding, dtype = colours[:], dict(colours.attrs), colours.dtype
        del target[place]
        if len(values) == len(before):
            left = target.create_dataset(place, data=values[np.isin(before, after)], dtype=dtype)
            left.attrs.update(encoding)
