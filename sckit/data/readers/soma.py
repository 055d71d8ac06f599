"""Reader of a local TileDB-SOMA experiment, such as a slice of the CELLxGENE Census."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sckit.data.readers.hdf5 import readable
from sckit.data.readers.source import Source, gene_table, other_matrices
from sckit.data.views import Csr, indptr_of
from sckit.errors import DataError

_CELLS_PER_BLOCK = 1024
_COUNT_LAYERS = ("counts", "raw", "data")
_CELL_ID_COLUMNS = ("obs_id", "cell_id", "barcode", "soma_joinid")
_GENE_ID_COLUMNS = ("var_id", "feature_id", "soma_joinid")


class Soma(Source):
    """One X layer of the measurement RNA (or the only one); cells and genes in the order of their join ids."""

    def __init__(self, path: Path, *, layer: str | None = None) -> None:
        """Read obs and var; X layer `layer`, by default the first of counts, raw, data."""
        with readable(path), _open(path) as experiment:
            if "ms" not in experiment or "obs" not in experiment:
                raise DataError(f"{path} is a {type(experiment).__name__}, not a SOMA experiment; give its folder.")
            self._measurement = _choose(list(experiment.ms), ("RNA",), f"measurement of {path}")
            layers = list(experiment.ms[self._measurement].X)
            if layer is not None and layer not in layers:
                raise DataError(f"{path} has no X layer {layer!r}; its layers are: {', '.join(layers) or 'none'}.")
            self._layer = layer or _choose(layers, _COUNT_LAYERS, f"X layer of {path}")
            obs = experiment.obs.read().concat().to_pandas().sort_values("soma_joinid")
            var = experiment.ms[self._measurement].var.read().concat().to_pandas().sort_values("soma_joinid")
        self._obs_ids = obs["soma_joinid"].to_numpy()
        self._var_ids = var["soma_joinid"].to_numpy()
        obs = obs.set_index(next(name for name in _CELL_ID_COLUMNS if name in obs))
        var = var.set_index(next(name for name in _GENE_ID_COLUMNS if name in var), drop=False)
        super().__init__(path, gene_table(var), obs.drop(columns="soma_joinid", errors="ignore"))
        self._cells_at_most = _CELLS_PER_BLOCK
        self.unit = f"X layer {self._layer!r}"
        self.remedy = other_matrices([f"--layer {name}" for name in layers if name != self._layer])

    def _opened(self) -> AbstractContextManager[Any]:
        return _open(self.path)

    def _read(self, handle: Any, first: int, last: int) -> Csr:
        ids = self._obs_ids[first:last]
        contiguous = ids[-1] - ids[0] == len(ids) - 1
        matrix = handle.ms[self._measurement].X[self._layer]
        table = matrix.read((slice(int(ids[0]), int(ids[-1])) if contiguous else ids,)).tables().concat()
        cells = np.searchsorted(ids, table["soma_dim_0"].to_numpy())
        genes = np.searchsorted(self._var_ids, table["soma_dim_1"].to_numpy())
        order = np.argsort(cells, kind="stable")
        indptr = indptr_of(np.bincount(cells, minlength=len(ids)))
        return indptr, genes[order], table["soma_data"].to_numpy()[order]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open the experiment; TileDB's own errors become `OSError`, which `readable` puts into a sentence."""
    import tiledbsoma

    try:
        with tiledbsoma.open(str(path)) as experiment:
            yield experiment
    except tiledbsoma.SOMAError as error:
        raise OSError(str(error)) from error


def _choose(known: list[str], preferred: tuple[str, ...], what: str) -> str:
    """Return the first preferred name that is known, else the only known one."""
    for name in preferred:
        if name in known:
            return name
    if len(known) == 1:
        return known[0]
    raise DataError(f"No {what} is named {' or '.join(preferred)}, there are: {', '.join(known) or 'none'}.")
