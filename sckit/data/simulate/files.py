"""Writing simulated cells block by block, as h5ad or in the layout of Cell Ranger 3."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from sckit.data.new_hdf5 import new_hdf5
from sckit.data.simulate.truth import Truth
from sckit.data.views import Csr

_CHUNK = 2**18


def write_h5ad(path: Path, truth: Truth, blocks: Iterable[Csr]) -> None:
    """Write an h5ad with counts as CSR float32 in X, the labels of the cells in obs and gene_ids in var."""
    import anndata
    from anndata.io import write_elem

    with new_hdf5(path) as file:
        write_elem(file, "/", anndata.AnnData(obs=truth.obs, var=truth.genes))
        if "X" in file:
            del file["X"]
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        matrix.attrs["shape"] = np.array([truth.config.cells, truth.config.genes])
        _write_csr(matrix, blocks, np.dtype(np.float32))


def write_tenx(path: Path, truth: Truth, blocks: Iterable[Csr]) -> None:
    """Write the `filtered_feature_bc_matrix.h5` of Cell Ranger 3, which has barcodes and no other labels of cells."""
    genes = truth.genes
    with new_hdf5(path) as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = truth.obs.index.to_numpy().astype("S")
        matrix["shape"] = np.array([truth.config.genes, truth.config.cells], np.int32)
        features = matrix.create_group("features")
        features["id"] = genes["gene_ids"].to_numpy().astype("S")
        features["name"] = genes.index.to_numpy().astype("S")
        features["feature_type"] = np.full(len(genes), b"Gene Expression")
        features["genome"] = np.full(len(genes), b"simulated")
        features["_all_tag_keys"] = np.array([b"genome"])
        _write_csr(matrix, blocks, np.dtype(np.int32))


def _write_csr(group: h5py.Group, blocks: Iterable[Csr], dtype: np.dtype) -> None:
    """Append blocks of cells to `data` and `indices`; both layouts keep the genes of one cell after another."""
    data, indices = (
        group.create_dataset(
            name, (0,), kind, maxshape=(None,), chunks=(_CHUNK,), compression="gzip", compression_opts=1, shuffle=True
        )
        for name, kind in (("data", dtype), ("indices", np.dtype(np.int32)))
    )
    ends = [np.zeros(1, np.int64)]
    for indptr, genes, counts in blocks:
        first = int(ends[-1][-1])
        for dataset, values in ((data, counts), (indices, genes)):
            dataset.resize((first + len(values),))
            dataset[first:] = values
        ends.append(first + indptr[1:].astype(np.int64))
    group["indptr"] = np.concatenate(ends)
