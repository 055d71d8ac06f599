"""Writing an h5ad with cell embeddings block by block: what `embed` returns, in memory that cells hardly add to."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sckit.config import ReadingConfig
from sckit.data.h5ad_copy import can_copy, cells_of, copy_h5ad
from sckit.data.new_h5ad import GZIP, encoded_group, write_counts, write_obs
from sckit.data.new_hdf5 import new_hdf5
from sckit.data.readers.hdf5 import Group, readable
from sckit.data.readers.open import is_anndata, parse_input
from sckit.errors import ConfigError, WriteError
from sckit.evaluation.embed import KEY, Cells, Listener, embed, genes_of, keeps_all, opened_cells
from sckit.files import replacing
from sckit.locks import locked

_CHUNK = 2**18  # bytes of embeddings that are compressed together
_CELLS = 1024  # whose counts are written at a time


def write_embedding(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    runs: str | Path = "runs",
    reading: ReadingConfig | None = None,
    engine: str = "auto",
    device: str = "auto",
    batch_tokens: int = 32768,
    on_event: Listener = lambda _kind, _facts: None,
) -> tuple[int, int]:
    """Write what `embed` returns as an h5ad, and return the shape of the embeddings.

    Memory holds blocks and some numbers for each cell. Only .zarr folders, and .h5ad files that hold what is not known
    here or are older than anndata 0.8, are read whole. Raises ConfigError, DataError, and BusyError where another
    process writes the same file.
    """
    from anndata.io import write_elem

    out, reading = Path(out), reading or ReadingConfig()
    path = parse_input(data, reading)[0]
    _refuse(out, path)
    given = {"runs": runs, "reading": reading, "engine": engine, "device": device, "batch_tokens": batch_tokens}
    with ExitStack() as held:
        try:
            held.enter_context(locked(out))
        except OSError as error:
            raise WriteError(out, error) from error
        copied, whole = path if is_anndata(path) else None, keeps_all(reading)
        if copied is not None and not can_copy(copied, whole=whole):
            return _write_whole(embed(run, data, **given, on_event=on_event), out)
        cells = held.enter_context(opened_cells(run, data, **given, on_event=on_event))
        try:
            with replacing(out) as unfinished, new_hdf5(unfinished) as file:
                rows = _write_store(file, cells) if copied is None else _write_copy(file, cells, copied, whole=whole)
                write_elem(encoded_group(file, "uns", "dict", "0.1.0"), KEY, cells.origin)
                return _write_embeddings(encoded_group(file, "obsm", "dict", "0.1.0"), cells, rows)
        except OSError as error:
            raise WriteError(out, error) from error


def _refuse(out: Path, data: Path) -> None:
    """Raise ConfigError, before the work, for a place that cannot be written or holds something that is no h5ad."""
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out} lies in a folder that does not exist; make it first.")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name the h5ad to write.")
    for place in (out, out.with_name(f"{out.name}.new"), out.with_name(f"{out.name}.lock")):
        if place.exists() and data.exists() and place.samefile(data):
            what = "is the input itself" if place == out else f"is written by way of {place}, which is the input"
            raise ConfigError(f"--out {out} {what}; choose another name.")
    if out.exists() and not is_anndata(out):
        raise ConfigError(f"--out {out} exists and is no h5ad, so it is not replaced; choose another name.")


def _write_whole(adata: Any, out: Path) -> tuple[int, int]:
    """Write what is in memory, and return the shape of the embeddings."""
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    try:
        with replacing(out) as unfinished, new_hdf5(unfinished) as file:
            write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
    except OSError as error:
        raise WriteError(out, error) from error
    return adata.obsm[KEY].shape


@dataclass(frozen=True)
class _Rows:
    """Where in the output the cells of a store lie."""

    of_cells: np.ndarray  # int64 [C], rising
    number: int  # of rows in all


def _write_copy(file: Group, cells: Cells, path: Path, *, whole: bool) -> _Rows:
    """Write what an h5ad holds, of all its cells or of those that are in the store, but for earlier embeddings."""
    rows = cells.store.input_rows
    assert rows is not None
    with readable(path), h5py.File(path) as source:
        n_cells = cells_of(source) if whole else len(rows)
        cells.tell(n_cells - len(rows), replaces=f"obsm/{KEY}" in source)
        copy_h5ad(source, file, None if whole else rows, without={f"obsm/{KEY}", f"uns/{KEY}"})
    return _Rows(rows if whole else np.arange(n_cells), n_cells)


def _write_store(file: Group, cells: Cells) -> _Rows:
    """Write counts, obs and var of a store."""
    from anndata import AnnData
    from anndata.io import write_elem

    store, n_cells = cells.store, cells.store.n_cells
    cells.tell(0, replaces=False)
    without_cells = AnnData(var=genes_of(store))
    without_cells.strings_to_categoricals()
    write_elem(file, "/", without_cells)
    del file["obs"]
    write_obs(file, store.cells)
    blocks = (store.block(first, min(first + _CELLS, n_cells)) for first in range(0, n_cells, _CELLS))
    write_counts(file, (n_cells, store.n_genes), blocks)
    return _Rows(np.arange(n_cells), n_cells)


def _write_embeddings(obsm: Group, cells: Cells, rows: _Rows) -> tuple[int, int]:
    """Write the embeddings, NaN for cells that have none, and return their shape."""
    dataset, length = None, 0
    for part, values in cells.blocks():
        if dataset is None:
            width = values.shape[1]
            length = max(1, _CHUNK // (4 * width))
            chunks = (min(length, rows.number), width)
            shape = (rows.number, width)
            dataset = obsm.create_dataset(KEY, shape, np.float32, chunks=chunks, fillvalue=np.nan, **GZIP)
            dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        at = rows.of_cells[part]
        for own in np.split(np.arange(len(at)), np.flatnonzero(np.diff(at // length)) + 1):
            first = int(at[own[0]])  # all own rows lie in one chunk
            block = np.full((int(at[own[-1]]) + 1 - first, values.shape[1]), np.nan, np.float32)
            block[at[own] - first] = values[own]
            dataset[first : first + len(block)] = block
    assert dataset is not None  # a store has cells
    return dataset.shape
