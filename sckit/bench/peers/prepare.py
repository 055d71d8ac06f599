"""Engines of `sckit bench prepare`: from a file of counts to what training reads."""

# pyright: reportMissingImports=false

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import Answer, Job, fingerprints, known, timed

Csr = tuple[np.ndarray, np.ndarray, np.ndarray]
Engine = Callable[[Path, Path], Callable[[], Csr | None]]
"""From an input and a free place, after all imports: what is timed, which returns the counts if they are in memory."""

FILES = {"10x h5": "counts.h5", "h5ad": "counts.h5ad", "SOMA": "counts.soma"}


def run(job: Job) -> Answer:
    """Bring a file into the form of an engine, after the first cells alone, which compiles what has to be.

    Returns seconds, cells and nonzeros; with job["check"], also whether the counts are those of the data.
    """
    folder, engine = Path(job["folder"]), ENGINES[job["engine"]]
    name, out = FILES[job["case"]], folder / "out"
    for few in ("few-", ""):
        shutil.rmtree(out, ignore_errors=True)
        seconds, csr = timed(engine(folder / f"{few}{name}", out))
    answer = {"seconds": seconds, "cells": job["cells"], "nonzeros": job["nonzeros"]}
    if job["check"]:
        csr = read_back(out) if job["engine"] == "sckit" else csr
        answer["right"] = csr is None or known(folder, fingerprints(*csr))
    shutil.rmtree(out, ignore_errors=True)
    return answer


def read_back(out: Path) -> Csr:
    """Return the counts of a store of sckit."""
    from sckit.data.store import open_store

    store = open_store(out)
    return store.block(0, store.n_cells)


def of_sckit(source: Path, out: Path) -> Callable[[], None]:
    """`sckit prepare`: checked counts, totals, detected genes, tables and checksums, on disk."""
    from sckit.config.prepare import PrepareConfig
    from sckit.data.prepare import prepare

    config = PrepareConfig(assay="any")

    def run() -> None:
        prepare([source], out, config=config)

    return run


def of_scanpy(source: Path, _out: Path) -> Callable[[], Csr]:
    """scanpy: read, normalise to 10,000, log1p, in memory; the counts are kept for the check."""
    import anndata
    import scanpy

    def run() -> Csr:
        data: Any = scanpy.read_10x_h5(source) if source.suffix == ".h5" else anndata.read_h5ad(source)
        counts = data.X.data.copy()
        scanpy.pp.normalize_total(data, target_sum=1e4)
        scanpy.pp.log1p(data)
        return data.X.indptr, data.X.indices, counts

    return run


def of_tiledbsoma(source: Path, _out: Path) -> Callable[[], Csr]:
    """tiledbsoma: a query of all cells into an AnnData."""
    import tiledbsoma

    def run() -> Csr:
        with tiledbsoma.Experiment.open(str(source)) as experiment, experiment.axis_query("RNA") as query:
            matrix: Any = query.to_anndata(X_name="data").X
        return matrix.indptr, matrix.indices, matrix.data

    return run


def of_annbatch(source: Path, out: Path) -> Callable[[], None]:
    """annbatch: its shuffled zarr collection on disk."""
    import zarrs  # noqa: F401
    from annbatch import DatasetCollection

    def run() -> None:
        DatasetCollection(str(out)).add_adatas(adata_paths=[str(source)], shuffle=True)

    return run


def of_scdl(source: Path, out: Path) -> Callable[[], None]:
    """BioNeMo SCDL: its memory maps on disk."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

    def run() -> None:
        SingleCellMemMapDataset(str(out), str(source), use_X_not_raw=True)

    return run


def of_h5py(source: Path, _out: Path) -> Callable[[], Csr]:
    """The floor of HDF5 files: h5py reads the three arrays."""
    import h5py

    def run() -> Csr:
        with h5py.File(source) as file:
            matrix: Any = file["matrix"] if "matrix" in file else file["X"]
            return matrix["indptr"][:], matrix["indices"][:], matrix["data"][:]

    return run


def of_soma_read(source: Path, _out: Path) -> Callable[[], None]:
    """The floor of SOMA: tiledbsoma reads all tables of the query, and lets go of them."""
    import tiledbsoma

    def run() -> None:
        with tiledbsoma.Experiment.open(str(source)) as experiment, experiment.axis_query("RNA") as query:
            for _table in query.X("data").tables():
                pass

    return run


ENGINES: dict[str, Engine] = {
    "sckit": of_sckit,
    "scanpy": of_scanpy,
    "tiledbsoma to_anndata": of_tiledbsoma,
    "annbatch": of_annbatch,
    "bionemo-scdl": of_scdl,
    "h5py read": of_h5py,
    "tiledbsoma read": of_soma_read,
}
