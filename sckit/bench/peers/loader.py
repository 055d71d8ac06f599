"""Engines of `sckit bench loader`: shuffled batches of an epoch from what lies on the disk."""

# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import FINGERPRINTS, Answer, Job, fingerprints, known, timed

_WARM_UP = 2  # batches
_DONORS = 16  # equal stretches of the file, as donors would lie in it
_SOME = 40  # batches whose order is looked at


class Loaded(NamedTuple):
    """A batch that has reached the caller."""

    cells: int
    nonzeros: int
    fingerprints: Callable[[], np.ndarray]


Engine = Callable[[Path, int], Callable[[], Iterator[Loaded]]]
"""From the folder of the data and the cells of a batch, after all imports: what begins an epoch."""


def run(job: Job) -> Answer:
    """Time an epoch, after two batches of another one.

    Returns seconds, cells and nonzeros; with job["check"], also whether each cell came once with its own counts,
    and how random the order was (see `order`).
    """
    folder = Path(job["folder"])
    begin = ENGINES[job["engine"]](folder, job["batch"])
    if job["check"]:
        found = [batch.fingerprints() for batch in begin()]
        right = known(folder, np.concatenate(found))
        facts = order(folder, found[:_SOME]) if right else {}
        return {"seconds": 0.0, "cells": job["cells"], "nonzeros": job["nonzeros"], "right": right} | facts
    for _ in itertools.islice(begin(), _WARM_UP):
        pass
    seconds, sizes = timed(lambda: [(batch.cells, batch.nonzeros) for batch in begin()])
    cells, nonzeros = np.sum(sizes, axis=0).tolist()
    return {"seconds": seconds, "cells": cells, "nonzeros": nonzeros}


def order(folder: Path, found: list[np.ndarray]) -> dict[str, float]:
    """Return how random the cells of batches are: donor_bits and near.

    donor_bits: the entropy of 16 equal stretches of the file within a batch, at most 4; near: the share of neighbours
    in a sorted batch that are less than 64 rows apart in the file. A file has few cells with the same counts.
    """
    true = np.load(folder / FINGERPRINTS)
    rank = np.argsort(true, kind="stable")
    bits, near = [], []
    for batch in found:
        rows = rank[np.searchsorted(true[rank], batch)]
        share = np.bincount(rows * _DONORS // len(true), minlength=_DONORS) / len(rows)
        bits.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
        near.append((np.diff(np.sort(rows)) < 64).mean() if len(rows) > 1 else 0.0)
    return {"donor_bits": round(float(np.mean(bits)), 3), "near": round(float(np.mean(near)), 3)}


def of_sckit(layout: str) -> Engine:
    """sckit: finished batches (shuffled, normalised, hidden, packed, visible first), on as many threads as cores."""

    def prepared(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
        from sckit.data.batch import Batch, Hiding, Packer
        from sckit.data.loader import epoch_batches, packed
        from sckit.data.store import open_store
        from sckit.kernels.count_law import counts_of

        store = open_store(folder / f"{layout}.sckit")
        packer = Packer(store, np.arange(store.n_genes, dtype=np.int32), Hiding(0.15), max_genes=2**31 - 1)
        lengths = store.obs["n_genes"].to_numpy()
        tokens = int(batch * lengths.mean())

        def loaded(batch: Batch) -> Loaded:
            def own() -> np.ndarray:
                values = batch.values.astype(np.float64)
                values[batch.targets] = batch.truth
                counts = np.rint(counts_of(values, batch.totals[batch.cell_of_token]))
                return fingerprints(batch.offsets, batch.genes, counts)

            return Loaded(len(batch.cells), len(batch.genes), own)

        def begin() -> Iterator[Loaded]:
            cells = np.arange(store.n_cells)
            parts = [part for _, part in epoch_batches(cells, store.chunks(cells), lengths, tokens, (0, 0))]
            return map(loaded, packed(packer, parts, len(os.sched_getaffinity(0))))

        return begin

    return prepared


def of_maps(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
    """The floor: numpy copies cells of memory-mapped arrays, in the order of sckit's blocks."""
    indptr, genes, counts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("indptr", "genes", "counts"))
    indptr, genes, counts = np.asarray(indptr), np.asarray(genes), np.asarray(counts)
    generator = np.random.default_rng(0)

    def begin() -> Iterator[Loaded]:
        blocks = generator.permutation(-(-(len(indptr) - 1) // 64))
        for group in np.array_split(blocks, -(-len(blocks) // 64)):
            cells = (group[:, None] * 64 + np.arange(64)).ravel()
            cells = generator.permutation(cells[cells < len(indptr) - 1])
            for at in range(0, len(cells), batch):
                own = cells[at : at + batch]
                spans = [slice(indptr[cell], indptr[cell + 1]) for cell in own]
                parts = [np.concatenate([array[span] for span in spans]) for array in (genes, counts)]
                bounds = np.concatenate([[0], np.cumsum(indptr[own + 1] - indptr[own])])
                yield Loaded(len(own), len(parts[0]), lambda b=bounds, p=parts: fingerprints(b, *p))

    return begin


def of_csr(matrix: Any) -> Loaded:
    """Return a batch that is a sparse matrix of scipy."""
    rows = matrix.tocsr()
    return Loaded(rows.shape[0], rows.nnz, lambda: fingerprints(rows.indptr, rows.indices, rows.data))


def of_scdataset(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
    """scDataset: blocks of 16 rows of the h5ad, 64 batches fetched at a time."""
    import anndata
    import h5py
    from scdataset import BlockShuffling, scDataset

    group: Any = h5py.File(folder / "counts.h5ad")["X"]
    matrix = anndata.io.sparse_dataset(group)

    class Rows:
        """The rows of the file; scDataset asks for their number, which anndata's own class does not tell."""

        def __len__(self) -> int:
            return matrix.shape[0]

        def __getitem__(self, rows: Any) -> Any:
            return matrix[rows]

    return lambda: map(of_csr, scDataset(Rows(), BlockShuffling(block_size=16), batch_size=batch, fetch_factor=64))


def of_annbatch(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
    """annbatch: chunks of 32 rows of its own store, which was shuffled when it was made."""
    import anndata
    import zarr
    import zarrs  # noqa: F401
    from annbatch import DatasetCollection, Loader

    warnings.simplefilter("ignore")
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    store = folder / "annbatch.zarr"
    if not store.exists():
        DatasetCollection(str(store)).add_adatas(adata_paths=[str(folder / "counts.h5ad")], shuffle=True)

    def begin() -> Iterator[Loaded]:
        loader = Loader(batch_size=batch, chunk_size=32, preload_nchunks=512, preload_to_gpu=False, shuffle=True)
        collection = DatasetCollection(str(store))
        loader.use_collection(collection, load_adata=lambda g: anndata.AnnData(X=anndata.io.sparse_dataset(g["X"])))
        return (of_csr(found["X"]) for found in loader)

    return begin


def of_soma(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
    """tiledbsoma-ml: chunks of 64 rows, shuffled among 65,536."""
    import tiledbsoma
    from tiledbsoma_ml import ExperimentDataset, experiment_dataloader

    def begin() -> Iterator[Loaded]:
        with tiledbsoma.Experiment.open(str(folder / "counts.soma")) as experiment:
            options: dict[str, Any] = {"io_batch_size": 2**16, "shuffle_chunk_size": 64, "return_sparse_X": True}
            data = ExperimentDataset(
                experiment.axis_query("RNA"), layer_name="data", obs_column_names=["soma_joinid"], batch_size=batch,
                shuffle=True, seed=0, **options,
            )  # fmt: skip
        return (of_csr(matrix) for matrix, _ in experiment_dataloader(data, num_workers=0))

    return begin


def of_scdl(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
    """BioNeMo SCDL: its memory maps under torch's DataLoader, every row by itself."""
    import torch
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
    from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch

    store = folder / "scdl"
    if not store.exists():
        SingleCellMemMapDataset(str(store), str(folder / "counts.h5ad"), use_X_not_raw=True)
    data: Any = SingleCellMemMapDataset(str(store))

    def begin() -> Iterator[Loaded]:
        options: dict[str, Any] = {"shuffle": True, "collate_fn": collate_sparse_matrix_batch}
        for found in torch.utils.data.DataLoader(data, batch_size=batch, **options):
            parts = [part.numpy() for part in (found.crow_indices(), found.col_indices(), found.values())]
            yield Loaded(len(parts[0]) - 1, len(parts[2]), lambda p=parts: fingerprints(*p))

    return begin


def of_anndata(folder: Path, batch: int) -> Callable[[], Iterator[Loaded]]:
    """AnnData backed by the h5ad: every batch is scattered rows, read when they are asked for."""
    import anndata

    data: Any = anndata.read_h5ad(folder / "counts.h5ad", backed="r")
    generator = np.random.default_rng(0)

    def begin() -> Iterator[Loaded]:
        cells = generator.permutation(data.n_obs)
        return (of_csr(data.X[np.sort(cells[at : at + batch])]) for at in range(0, len(cells), batch))

    return begin


ENGINES: dict[str, Engine] = {
    "sckit compact": of_sckit("compact"),
    "sckit mapped": of_sckit("mapped"),
    "annbatch": of_annbatch,
    "scdataset": of_scdataset,
    "bionemo-scdl": of_scdl,
    "tiledbsoma-ml": of_soma,
    "AnnData backed": of_anndata,
    "memory map": of_maps,
}
