"""Long lists of texts, such as the names of cells, as Arrow has them: a Python string takes 50 bytes more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.util import hash_array

from sckit.data.readers.hdf5 import strings
from sckit.data.views import indptr_of

TEXTS = {kind: pd.StringDtype("pyarrow") for kind in (pa.string(), pa.large_string())}
"""How pandas holds columns of these types."""

_ROWS = 2**16  # that are Python strings at a time


def text_series(values: Any) -> pd.Series:
    """Read a list of bytes, str, categories or numbers [N], which may lie on disk, as texts; missing ones become ""."""
    if getattr(values, "dtype", None) == TEXTS[pa.large_string()]:
        return pd.Series(values.array)
    parts = [_arrow(strings(values[at : at + _ROWS])) for at in range(0, np.shape(values)[0], _ROWS)]
    return pa.chunked_array(parts, pa.large_string()).to_pandas(types_mapper=TEXTS.get)


def _arrow(texts: np.ndarray) -> pa.Array:
    """Return texts as Arrow has them, in as much memory as they need: `pa.array` takes several times that."""
    encoded = [text.encode() for text in texts]
    buffers = [None, pa.py_buffer(indptr_of([*map(len, encoded)])), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def unique_names(names: Any) -> tuple[pd.Series, int]:
    """Return the names of cells as texts, with "#2" behind the second of a name and so on, and how many repeat one."""
    own = text_series(names)
    hashes = np.concatenate([np.zeros(0, np.uint64), *_hashes(own)])
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return own, 0
    rows = np.flatnonzero(np.isin(hashes, repeated))
    found = own.iloc[rows].astype(object).reset_index(drop=True)
    nth, taken = found.groupby(found).cumcount().to_numpy(), set[str]()
    for at in np.flatnonzero(nth):
        number = int(nth[at]) + 1
        while (name := f"{found[at]}#{number}") in taken or _is_in(name, ordered):
            number += 1
        taken.add(name)
        found[at] = name
    own = own.copy()
    own.iloc[rows] = found.to_numpy()
    return own, int((nth > 0).sum())


def _hashes(names: Iterable[str]) -> Iterator[Any]:
    """Yield the hashes of the names, uint64, block by block."""
    names = pd.Series(names)
    for at in range(0, len(names), _ROWS):
        yield hash_array(names.iloc[at : at + _ROWS].to_numpy(object))


def _is_in(name: str, ordered: np.ndarray) -> bool:
    """Return whether the hash of a name is among others in order; that of a name that is not has a chance of 2^-40."""
    (one,) = _hashes([name])
    return bool(ordered[min(np.searchsorted(ordered, one[0]), len(ordered) - 1)] == one[0])
