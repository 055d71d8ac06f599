"""The files that `sckit bench prepare`, `loader` and `train` read: the same counts in every format.

By default the counts are made up. A folder keeps its files, so that a second run takes them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np

from sckit.bench.peers import FINGERPRINTS, fingerprints
from sckit.config import PretrainConfig
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.store import Store, open_store
from sckit.data.views import Csr, indptr_of
from sckit.kernels.counts_reference import TARGET_SUM

CASES_OF_TRAINING = {"median 700 genes": 700, "median 250 genes": 250}
"""The cells of `sckit bench train`, by their median number of detected genes."""
TRAINING_GENES = 20_000

_GENES, _SPREAD, _MEDIAN_TOTAL, _DEPTHS = 20_000, 2.4, 2_300, 0.5  # about 1,200 detected genes
_BLOCK = 4096
_CHUNK = 80_000  # of Cell Ranger's files
_FEW = 64
_STEPS = 1_000_000  # more than any benchmark takes, so that the learning rate is that of the first steps
_TRAINING_CELLS, _SIGMA, _FEWEST, _MOST = 2_000, 0.55, 100, 2_500


def made_up(n_cells: int) -> Iterator[Csr]:
    """Yield blocks of cells with Poisson counts of 20,000 genes: lognormal depths and shares, 1,200 genes detected."""
    generator = np.random.default_rng(0)
    share = generator.lognormal(0, _SPREAD, _GENES)
    share /= share.sum()
    for first in range(0, n_cells, _BLOCK):
        lengths, genes, counts = [], [], []
        for depth in generator.lognormal(np.log(_MEDIAN_TOTAL), _DEPTHS, min(_BLOCK, n_cells - first)):
            drawn = generator.poisson(depth * share)
            genes.append(np.flatnonzero(drawn).astype(np.int32))
            counts.append(drawn[genes[-1]])
            lengths.append(len(genes[-1]))
        yield indptr_of(lengths), np.concatenate(genes), np.concatenate(counts).astype(np.int32)


def of_store(store: Store) -> Iterator[Csr]:
    """Yield the cells of a store in blocks."""
    for first in range(0, store.n_cells, _BLOCK):
        indptr, genes, counts = store.block(first, min(first + _BLOCK, store.n_cells))
        yield indptr, genes.astype(np.int32), counts.astype(np.int32)


def write_inputs(folder: Path, data: Path | None, n_cells: int) -> dict[str, int]:
    """Write the files for `prepare` and `loader`, unless they are there; return the numbers of cells, genes, nonzeros.

    data: an input of `sckit prepare` whose counts are taken, by default `n_cells` made up ones.
    """
    if not (folder / "mapped.sckit").exists():
        folder.mkdir(parents=True, exist_ok=True)
        genes, blocks = _GENES, made_up(n_cells)
        if data is not None:
            source = prepare([data], folder / "source.sckit", config=PrepareConfig(assay="any"), overwrite=True)
            genes, blocks = source.n_genes, of_store(source)
        _write_files(folder, genes, blocks)
        for layout in ("compact", "mapped"):  # in the order in which they are looked for
            config = PrepareConfig(assay="any", layout=layout)
            prepare([folder / "counts.h5ad"], folder / f"{layout}.sckit", config=config, overwrite=True)
    store = open_store(folder / "mapped.sckit")
    return {"cells": store.n_cells, "genes": store.n_genes, "nonzeros": store.nonzeros}


def _write_files(folder: Path, n_genes: int, blocks: Iterator[Csr]) -> None:
    parts = list(blocks)
    lengths = np.concatenate([np.diff(indptr) for indptr, _, _ in parts])
    whole = indptr_of(lengths), *(np.concatenate(arrays) for arrays in zip(*(part[1:] for part in parts), strict=True))
    np.save(folder / FINGERPRINTS, fingerprints(*whole))
    for name, array in zip(("indptr", "genes", "counts"), whole, strict=True):
        np.save(folder / f"{name}.npy", array)
    for few, cells in (("few-", min(_FEW, len(lengths))), ("", len(lengths))):
        end = whole[0][cells]
        csr = whole[0][: cells + 1], whole[1][:end], whole[2][:end]
        _write_tenx(folder / f"{few}counts.h5", csr, n_genes)
        _write_h5ad(folder / f"{few}counts.h5ad", csr, n_genes)
        if find_spec("tiledbsoma"):
            _write_soma(folder / f"{few}counts.soma", folder / f"{few}counts.h5ad")


def _write_h5ad(path: Path, csr: Csr, n_genes: int) -> None:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    indptr, genes, counts = csr
    matrix = sp.csr_matrix((counts.astype(np.float32), genes, indptr), (len(indptr) - 1, n_genes))
    cells = [f"cell{i}" for i in range(len(indptr) - 1)]
    names = pd.DataFrame(index=pd.Index(cells)), pd.DataFrame(index=pd.Index(_names(n_genes)))
    anndata.AnnData(matrix, obs=names[0], var=names[1]).write_h5ad(path)


def _write_tenx(path: Path, csr: Csr, n_genes: int) -> None:
    """Write what Cell Ranger writes: int64 indices, deflated and shuffled chunks, names of a fixed length."""
    indptr, genes, counts = csr
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        for name, array in (("data", counts), ("indices", genes.astype(np.int64)), ("indptr", indptr)):
            matrix.create_dataset(name, data=array, chunks=(min(_CHUNK, len(array)),), compression=1, shuffle=True)
        matrix["shape"] = np.array([n_genes, len(indptr) - 1], np.int32)
        matrix["barcodes"] = np.array([f"cell{i}" for i in range(len(indptr) - 1)], "S")
        features = matrix.create_group("features")
        for name in ("id", "name"):
            features[name] = np.array(_names(n_genes), "S")
        features["feature_type"] = np.full(n_genes, b"Gene Expression")
        features["genome"] = np.full(n_genes, b"GRCh38")
        features["_all_tag_keys"] = np.array([b"genome"])


def _write_soma(path: Path, h5ad: Path) -> None:
    import tiledbsoma.io

    tiledbsoma.io.from_h5ad(str(path), str(h5ad), measurement_name="RNA")


def _names(n_genes: int) -> list[str]:
    return [f"GENE{i:05d}" for i in range(n_genes)]


def write_training(folder: Path, cells_per_batch: int) -> None:
    """Write, for each case of training, packed rows and a run of the `small` preset that has not been trained."""
    from sckit.training.pretrain import begin

    folder.mkdir(parents=True, exist_ok=True)
    for case, median in CASES_OF_TRAINING.items():
        if (folder / f"run-{case}").exists():
            continue
        csr = _cells_of_median(median)
        _write_h5ad(folder / f"{case}.h5ad", csr, TRAINING_GENES)
        store = prepare(
            [folder / f"{case}.h5ad"], folder / f"{case}.sckit", config=PrepareConfig(assay="any"), overwrite=True
        )
        indptr, genes, counts = store.block(0, store.n_cells)
        totals = store.totals(np.arange(store.n_cells))
        values = np.log1p(counts * np.repeat(TARGET_SUM / totals, np.diff(indptr)))
        for name, array in (("indptr", indptr), ("genes", genes), ("values", values.astype(np.float32))):
            np.save(folder / f"{case}-{name}.npy", array)
        tokens = int(cells_per_batch * store.nonzeros / store.n_cells)
        config = PretrainConfig(preset="small", steps=_STEPS, batch_tokens=tokens, correction_steps=0, min_cells=1)
        with ExitStack() as held:
            begin(held, [folder / f"{case}.sckit"], config, f"run-{case}", folder)


def _cells_of_median(median: int) -> Csr:
    """Return cells whose numbers of detected genes are lognormal about a median."""
    generator = np.random.default_rng(median)
    share = generator.lognormal(0, 1.0, TRAINING_GENES)
    drawn = np.exp(generator.normal(np.log(median), _SIGMA, _TRAINING_CELLS))
    lengths = np.clip(drawn, _FEWEST, _MOST).astype(int)
    keys = (np.sort(np.argpartition(generator.exponential(size=TRAINING_GENES) / share, n)[:n]) for n in lengths)
    genes = np.concatenate(list(keys)).astype(np.int32)
    return indptr_of(lengths), genes, (1 + generator.poisson(0.6, len(genes))).astype(np.int32)
