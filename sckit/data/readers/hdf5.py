"""Reading files that may be broken: errors in one sentence, parts of HDF5 files, text."""

from __future__ import annotations

import errno
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sckit.data.views import Csr
from sckit.errors import DataError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what h5py, gzip and the text parser say about a broken file into one sentence."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or path} does not exist; check the path.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:  # what is read column by column or as text is put in order on disk first
            folder = tempfile.gettempdir()
            raise DataError(f"{folder} is full while {path} is put in order; set TMPDIR to a larger disk.") from error
        raise _unreadable(path, error) from error
    except (EOFError, zlib.error, KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    return DataError(
        f"{path} cannot be read: truncated, corrupt or of another format ({reason}); copy or export it again."
    )


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """Return a child group of an HDF5 file; raises `KeyError` when it is missing or something else."""
    found = parent[name]
    if not isinstance(found, h5py.Group):
        raise KeyError(f"{name} is not a group")
    return found


def dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    """Return a child dataset of an HDF5 file; raises `KeyError` when it is missing or something else."""
    found = parent[name]
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"{name} is not a dataset")
    return found


def array(parent: h5py.Group, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
    """Read entries first..last of a dataset into memory."""
    return np.asarray(dataset(parent, name)[first:last])


def strings(values: Any) -> np.ndarray:
    """Turn bytes, str, categories or numbers [N] into str objects [N]; missing values become ""."""
    found = np.asarray(values, dtype=object)
    if all(type(value) is str for value in found):
        return found
    text = [
        value.decode() if isinstance(value, bytes) else "" if value is None or value != value else str(value)
        for value in found
    ]
    return np.array(text, dtype=object)


def csr_rows(matrix: h5py.Group, entries_before: np.ndarray, first: int, last: int) -> Csr:
    """Read rows of a compressed matrix whose indptr is `entries_before` [rows + 1]: their (indptr, indices, data)."""
    low, high = int(entries_before[first]), int(entries_before[last])
    return entries_before[first : last + 1] - low, array(matrix, "indices", low, high), array(matrix, "data", low, high)
