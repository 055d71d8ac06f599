"""Reader of a TileDB-SOMA experiment, on this machine or at an S3 address, such as one of the CELLxGENE Census."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sckit.config.reading import ReadingConfig
from sckit.data.readers.features import TYPE_COLUMNS, choose_features
from sckit.data.readers.hdf5 import readable, strings
from sckit.data.readers.names import contradictions, gene_table
from sckit.data.readers.pushdown import ObsQuery
from sckit.data.readers.remote import Address, attempt, tiledb_config
from sckit.data.readers.source import DENSE_VALUES, Source, nonzero_rows, other_matrices
from sckit.data.views import Csr
from sckit.errors import DataError

if TYPE_CHECKING:
    from sckit.kernels.clean_numba import Places

_CELLS_PER_BLOCK = 1024
_CELLS_PER_READ = 8192
_ENTRIES_PER_READ = 2**22
_WIDEST_TABLE = 2**22
"""Join ids among which a table is the quickest way to find one."""
_COUNT_LAYERS = ("counts", "raw", "data")
_CELL_ID_COLUMNS = ("obs_id", "cell_id", "barcode", "soma_joinid")
_GENE_ID_COLUMNS = ("var_id", "feature_id", "soma_joinid")


class Soma(Source):
    """One X layer of the measurement RNA (or the only one); cells and genes in the order of their join ids."""

    def __init__(self, path: Path, options: ReadingConfig) -> None:
        """Read var, and the cells of obs that the options keep; X layer by default the first of counts, raw, data."""
        self._config = tiledb_config(path, region=options.region, anonymous=options.anonymous)
        with readable(path):
            obs, var = attempt(lambda: self._tables(path, options), path)
        self._obs_ids = obs["soma_joinid"].to_numpy()
        self._var_ids = var["soma_joinid"].to_numpy()
        obs = obs.set_index(next(name for name in _CELL_ID_COLUMNS if name in obs))
        var = var.set_index(next(name for name in _GENE_ID_COLUMNS if name in var), drop=False)
        table = gene_table(var.drop(columns="soma_joinid"), path)
        types = next((strings(var[name]) for name in TYPE_COLUMNS if name in var), None)
        genomes = strings(var["genome"]) if "genome" in var else None
        chosen = choose_features(types, genomes, table.named, options.genome, path)
        obs = obs.drop(columns="soma_joinid", errors="ignore")
        notes = [*chosen.notes, *contradictions(var, table, path)]
        super().__init__(path, table, obs, lost=chosen.lost, notes=notes, left_out=self._query.left_out)
        self.assays = self._query.assays
        self.files = [] if isinstance(path, Address) else [path]
        self.identity = hashlib.sha256(self._obs_ids.tobytes() + self._var_ids.tobytes()).hexdigest()
        self._width = int(self._var_ids[-1] - self._var_ids[0]) + 1  # of what is read of a dense matrix
        self._cells_at_most = min(_CELLS_PER_BLOCK, max(1, DENSE_VALUES // self._width) if self._dense else 2**31)
        self._read_ahead: tuple[int, int, Csr] | None = None  # the first cell, the last, their counts
        self._cells_per_read = _CELLS_PER_BLOCK
        self.unit = f"X layer {self._layer!r}"
        self.remedy = other_matrices(path, self._others) or self.remedy

    def _tables(self, path: Path, options: ReadingConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Choose the matrix and read obs and var, in the order of their join ids."""
        with _open(path, self._config) as experiment:
            if "ms" not in experiment or "obs" not in experiment:
                raise DataError(f"{path} is a {type(experiment).__name__}, not a SOMA experiment; give its folder.")
            measurements, measurement = list(experiment.ms), options.measurement
            if measurement is not None and measurement not in measurements:
                known = ", ".join(measurements) or "none"
                raise DataError(f"{path} has no measurement {measurement!r}; its measurements are: {known}.")
            self._measurement = measurement or _choose(measurements, ("RNA",), "--measurement", path)
            layers, layer = list(experiment.ms[self._measurement].X), options.layer
            if layer is not None and layer not in layers:
                raise DataError(f"{path} has no X layer {layer!r}; its layers are: {', '.join(layers) or 'none'}.")
            self._layer = layer or _choose(layers, _COUNT_LAYERS, "--layer", path)
            self._others = [f"layer={name}" for name in layers if name != self._layer]
            self._others += [f"measurement={name}" for name in measurements if name != self._measurement]
            matrix = experiment.ms[self._measurement].X[self._layer]
            self._dense = matrix.soma_type == "SOMADenseNDArray"
            self._query = ObsQuery(experiment.obs, options, _CELL_ID_COLUMNS)
            obs = _by_join_id(self._query.read())
            extent = None if self._dense or self._query.left_out else matrix.non_empty_domain()
            first, last = obs["soma_joinid"].iloc[[0, -1]] if len(obs) else (0, 0)
            if extent and len(obs) and not first <= extent[0][0] <= extent[0][1] <= last:
                raise DataError(
                    f"{path} is corrupt: the layer {self._layer!r} has the cells {extent[0][0]} to {extent[0][1]}, and "
                    f"obs the cells {first} to {last}; export it again."
                )
            return obs, _by_join_id(experiment.ms[self._measurement].var.read().concat().to_pandas())

    def _opened(self) -> AbstractContextManager[Any]:
        self._read_ahead = None
        return _open(self.path, self._config)

    def _read(self, handle: Any, first: int, last: int) -> Csr:
        """Cut the block out of what was read, and read several at a time where that is not too much."""
        if self._dense:
            return self._dense_rows(handle, first, last)
        if self._read_ahead is None or not self._read_ahead[0] <= first <= last <= self._read_ahead[1]:
            size = max(1, last - first)
            blocks = max(1, self._cells_per_read // size)  # whole ones, so that no cell is read twice
            stop = min(first + blocks * size, self.n_cells)
            indptr, genes, values = self._sparse_rows(handle, first, stop)
            fits = int(_ENTRIES_PER_READ / max(len(genes) / (stop - first), 1))
            self._cells_per_read = int(np.clip(fits, _CELLS_PER_BLOCK, _CELLS_PER_READ))
            self._read_ahead = first, stop, (indptr, genes, values)
        start, _stop, (indptr, genes, values) = self._read_ahead
        low, high = indptr[first - start], indptr[last - start]
        return indptr[first - start : last - start + 1] - low, genes[low:high], values[low:high]

    def _matrix(self, handle: Any) -> Any:
        """Return the X layer, which may have to be opened over the network."""
        return handle.ms[self._measurement].X[self._layer]

    def _sparse_rows(self, handle: Any, first: int, last: int) -> Csr:
        from sckit.kernels.clean_numba import grouped  # slow to load

        ids = self._obs_ids[first:last]
        contiguous = ids[-1] - ids[0] == len(ids) - 1
        wanted = (slice(int(ids[0]), int(ids[-1])) if contiguous else ids,)
        table = attempt(lambda: self._matrix(handle).read(wanted).tables().concat(), self.path)
        cells, of_cell = _places(ids, table["soma_dim_0"].to_numpy())
        genes, of_gene = _places(self._var_ids, table["soma_dim_1"].to_numpy())
        found = grouped(cells, genes, table["soma_data"].to_numpy(), of_cell, of_gene, len(ids))
        if isinstance(found, str):
            what = "cell that was not asked for" if found == "cell" else "gene that var does not have"
            raise DataError(f"{self.path} is corrupt: {self.unit} has an entry for a {what}.")
        return found

    def _dense_rows(self, handle: Any, first: int, last: int) -> Csr:
        ids = self._obs_ids[first:last]
        contiguous = ids[-1] - ids[0] == len(ids) - 1
        parts = [(ids[0], ids[-1])] if contiguous else list(zip(ids, ids, strict=True))
        columns = slice(int(self._var_ids[0]), int(self._var_ids[-1]))

        def read() -> list[np.ndarray]:
            matrix = self._matrix(handle)
            return [matrix.read((slice(int(low), int(high)), columns)).to_numpy() for low, high in parts]

        return nonzero_rows(np.concatenate(attempt(read, self.path))[:, self._var_ids - self._var_ids[0]])


def _places(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, Places]:
    """Return ids [N], and where each stands among the known ones, which rise."""
    from sckit.kernels.clean_numba import Places  # slow to load

    width = int(known[-1] - known[0]) + 1
    if width > _WIDEST_TABLE:  # places take the part of ids
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[at] == wanted, at, -1), Places(0, np.arange(len(known), dtype=np.int32))
    table = np.full(width, -1, np.int32)
    table[known - known[0]] = np.arange(len(known))
    return wanted, Places(int(known[0]), table)


def _by_join_id(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in the order of their join ids."""
    return table if table["soma_joinid"].is_monotonic_increasing else table.sort_values("soma_joinid")


@contextmanager
def _open(path: Path, config: dict[str, Any]) -> Iterator[Any]:
    """Open the experiment; TileDB's own errors become `OSError`, which `readable` puts into a sentence."""
    import tiledbsoma

    context = tiledbsoma.SOMATileDBContext(tiledb_config=config) if config else None
    try:
        with attempt(lambda: tiledbsoma.open(str(path), context=context), path) as experiment:
            yield experiment
    except tiledbsoma.SOMAError as error:
        if isinstance(path, Address):
            raise
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
