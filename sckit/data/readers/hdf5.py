"""Reading files that may be broken: errors in one sentence, parts of HDF5 files and zarr folders, text."""

from __future__ import annotations

import errno
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.errors import DataError, SckitError, said

with suppress(ImportError):  # registers more compression filters where it is installed
    import hdf5plugin  # noqa: F401  # pyright: ignore[reportMissingImports]


Group = Any
"""A group of an HDF5 file or of a zarr folder, which have the same methods."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the libraries say about a file that they cannot read into one sentence, which is true."""
    try:
        yield
    except SckitError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or path} does not exist; check the path.") from error
    except MemoryError as error:
        raise DataError(f"{path} names sizes that do not fit into memory; it is corrupt, or too large.") from error
    except KeyError as error:
        raise DataError(f"{path} lacks a part that its kind of file has ({said(error)}); export it again.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:  # what is read column by column or as text is put in order on disk first
            folder = tempfile.gettempdir()
            raise DataError(f"{folder} is full while {path} is put in order; set TMPDIR to a larger disk.") from error
        if "not registered" in str(error) or "plugin" in str(error) or "not available" in str(error):
            raise DataError(
                f"{path} is compressed with an HDF5 filter that is not installed ({said(error)}); "
                "`pip install hdf5plugin` brings the usual ones."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise DataError(f"{path} must not be read ({error.strerror}); change its permissions.") from error
        raise DataError(f"{path} cannot be read: it is truncated or corrupt ({said(error)}); copy it again.") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: it is truncated or corrupt ({said(error)}); copy it again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds bytes that are not UTF-8 text ({said(error)}); export it again.") from error
    except Exception as error:  # of h5py, zarr, anndata, pandas, tiledbsoma, each with kinds of its own
        kind = type(error).__name__
        raise DataError(
            f"{path} is not in a form that is known here ({kind}: {said(error)}); export it again."
        ) from error


def is_array(node: Any) -> bool:
    """Return whether a part of an HDF5 file or zarr folder is an array, not a group."""
    return hasattr(node, "shape") and hasattr(node, "dtype")


def group(parent: Group, name: str) -> Group:
    """Return a child group; raises `KeyError` when it is missing or something else."""
    found = parent[name]
    if is_array(found):
        raise KeyError(f"{name} is not a group")
    return found


def dataset(parent: Group, name: str) -> Any:
    """Return a child array; raises `KeyError` when it is missing or something else."""
    found = parent[name]
    if not is_array(found):
        raise KeyError(f"{name} is not a dataset")
    return found


def array(parent: Group, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
    """Read entries first..last of a dataset into memory."""
    return np.asarray(dataset(parent, name)[first:last])


def length(parent: Group, name: str) -> int:
    """Return the number of entries of a list, which is not read for that; raises `ValueError` for what is no list."""
    shape = dataset(parent, name).shape
    if len(shape) != 1:
        raise ValueError(f"{name} is no list")
    return shape[0]


def strings(values: Any) -> np.ndarray:
    """Turn bytes, str, categories or numbers [N] into str objects [N]; missing values become ""."""
    found = np.asarray(values, dtype=object)
    if all(type(value) is str for value in found):
        return found
    text = [value.decode() if isinstance(value, bytes) else str(value) for value in found]
    return np.where(pd.isna(found), "", np.array(text, dtype=object))


def entries_before(matrix: Group, n_rows: int, path: Path) -> np.ndarray:
    """Read the indptr of a compressed matrix: [rows + 1] int64, rising from 0 to the number of entries.

    Raises `DataError` where it is anything else. A list of another length is not read: it may be huge.
    """
    lists = [dataset(matrix, name) for name in ("indptr", "indices", "data")]
    is_whole = [one.dtype.kind in "iu" for one in lists[:2]]
    if not all(is_whole) or {len(one.shape) for one in lists} != {1} or lists[1].shape != lists[2].shape:
        raise DataError(f"{path} is corrupt: its matrix is not three lists of numbers of one length; copy it again.")
    n_entries = lists[1].shape[0]
    found = array(matrix, "indptr").astype(np.int64) if lists[0].shape == (n_rows + 1,) else np.zeros(0, np.int64)
    if not len(found) or found[0] != 0 or (np.diff(found) < 0).any() or found[-1] != n_entries:
        raise DataError(
            f"{path} is corrupt: its indptr does not divide the {n_entries:,} entries among {n_rows:,} rows; copy or "
            "export it again."
        )
    return found
