"""Reader of a local TileDB-SOMA experiment, such as a slice of the CELLxGENE Census."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sckit.data.readers.features import TYPE_COLUMNS, choose_features
from sckit.data.readers.hdf5 import readable, strings
from sckit.data.readers.names import contradictions, gene_table
from sckit.data.readers.source import DENSE_VALUES, Source, nonzero_rows, other_matrices
from sckit.data.views import Csr, indptr_of
from sckit.errors import DataError

_CELLS_PER_BLOCK = 1024
_COUNT_LAYERS = ("counts", "raw", "data")
_CELL_ID_COLUMNS = ("obs_id", "cell_id", "barcode", "soma_joinid")
_GENE_ID_COLUMNS = ("var_id", "feature_id", "soma_joinid")


class Soma(Source):
    """One X layer of the measurement RNA (or the only one); cells and genes in the order of their join ids."""

    def __init__(
        self, path: Path, *, layer: str | None = None, measurement: str | None = None, genome: str | None = None
    ) -> None:
        """Read obs and var; X layer `layer`, by default the first of counts, raw, data."""
        with readable(path), _open(path) as experiment:
            if "ms" not in experiment or "obs" not in experiment:
                raise DataError(f"{path} is a {type(experiment).__name__}, not a SOMA experiment; give its folder.")
            measurements = list(experiment.ms)
            if measurement is not None and measurement not in measurements:
                known = ", ".join(measurements) or "none"
                raise DataError(f"{path} has no measurement {measurement!r}; its measurements are: {known}.")
            self._measurement = measurement or _choose(measurements, ("RNA",), "--measurement", path)
            layers = list(experiment.ms[self._measurement].X)
            if layer is not None and layer not in layers:
                raise DataError(f"{path} has no X layer {layer!r}; its layers are: {', '.join(layers) or 'none'}.")
            self._layer = layer or _choose(layers, _COUNT_LAYERS, "--layer", path)
            matrix = experiment.ms[self._measurement].X[self._layer]
            dense = matrix.soma_type == "SOMADenseNDArray"
            extent = None if dense else matrix.non_empty_domain()
            obs = experiment.obs.read().concat().to_pandas().sort_values("soma_joinid")
            var = experiment.ms[self._measurement].var.read().concat().to_pandas().sort_values("soma_joinid")
        self._obs_ids = obs["soma_joinid"].to_numpy()
        if extent and len(obs) and not self._obs_ids[0] <= extent[0][0] <= extent[0][1] <= self._obs_ids[-1]:
            raise DataError(
                f"{path} is corrupt: the layer {self._layer!r} has the cells {extent[0][0]} to {extent[0][1]}, and obs "
                f"the cells {self._obs_ids[0]} to {self._obs_ids[-1]}; export it again."
            )
        self._var_ids = var["soma_joinid"].to_numpy()
        obs = obs.set_index(next(name for name in _CELL_ID_COLUMNS if name in obs))
        var = var.set_index(next(name for name in _GENE_ID_COLUMNS if name in var), drop=False)
        table = gene_table(var.drop(columns="soma_joinid"), path)
        types = next((strings(var[name]) for name in TYPE_COLUMNS if name in var), None)
        genomes = strings(var["genome"]) if "genome" in var else None
        chosen = choose_features(types, genomes, table.named, genome, path)
        obs = obs.drop(columns="soma_joinid", errors="ignore")
        super().__init__(path, table, obs, lost=chosen.lost, notes=[*chosen.notes, *contradictions(var, table, path)])
        self._width = int(self._var_ids[-1] - self._var_ids[0]) + 1  # of what is read of a dense matrix
        self._cells_at_most = min(_CELLS_PER_BLOCK, max(1, DENSE_VALUES // self._width) if dense else _CELLS_PER_BLOCK)
        self.unit = f"X layer {self._layer!r}"
        others = [f"layer={name}" for name in layers if name != self._layer]
        others += [f"measurement={name}" for name in measurements if name != self._measurement]
        self.remedy = other_matrices(path, others) or self.remedy

    def _opened(self) -> AbstractContextManager[Any]:
        return _open(self.path)

    def _read(self, handle: Any, first: int, last: int) -> Csr:
        ids = self._obs_ids[first:last]
        matrix = handle.ms[self._measurement].X[self._layer]
        contiguous = ids[-1] - ids[0] == len(ids) - 1
        if matrix.soma_type == "SOMADenseNDArray":
            parts = [(ids[0], ids[-1])] if contiguous else zip(ids, ids, strict=True)
            columns = slice(int(self._var_ids[0]), int(self._var_ids[-1]))
            rows = [matrix.read((slice(int(low), int(high)), columns)).to_numpy() for low, high in parts]
            return nonzero_rows(np.concatenate(rows)[:, self._var_ids - self._var_ids[0]])
        table = matrix.read((slice(int(ids[0]), int(ids[-1])) if contiguous else ids,)).tables().concat()
        cells = _places(ids, table["soma_dim_0"].to_numpy())
        genes = _places(self._var_ids, table["soma_dim_1"].to_numpy())
        if cells is None or genes is None:
            what = "cell that was not asked for" if cells is None else "gene that var does not have"
            raise DataError(f"{self.path} is corrupt: {self.unit} has an entry for a {what}.")
        order = np.argsort(cells, kind="stable")
        indptr = indptr_of(np.bincount(cells, minlength=len(ids)))
        return indptr, genes[order], table["soma_data"].to_numpy()[order]


def _places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """Return where each wanted number stands among the known ones, which rise; None where one is not there."""
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places if np.array_equal(known[places], wanted) else None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open the experiment; TileDB's own errors become `OSError`, which `readable` puts into a sentence."""
    import tiledbsoma

    try:
        with tiledbsoma.open(str(path)) as experiment:
            yield experiment
    except tiledbsoma.SOMAError as error:
        raise OSError(str(error)) from error


def _choose(known: list[str], preferred: tuple[str, ...], option: str, path: Path) -> str:
    """Return the first preferred name that is known, else the only known one."""
    for name in preferred:
        if name in known:
            return name
    if len(known) == 1:
        return known[0]
    raise DataError(
        f"{path} does not say where its counts are; choose with {option} among: {', '.join(known) or 'none'}."
    )
