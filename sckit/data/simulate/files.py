"""Writing simulated cells block by block, as h5ad or in the layout of Cell Ranger 3."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sckit.data.new_h5ad import write_counts, write_entries
from sckit.data.new_hdf5 import new_hdf5
from sckit.data.simulate.truth import Truth
from sckit.data.views import Csr


def write_h5ad(path: Path, truth: Truth, blocks: Iterable[Csr]) -> None:
    """Write an h5ad with counts as CSR float32 in X, the labels of the cells in obs and gene_ids in var."""
    import anndata
    from anndata.io import write_elem

    with new_hdf5(path) as file:
        write_elem(file, "/", anndata.AnnData(obs=truth.obs, var=truth.genes))
        if "X" in file:
            del file["X"]
        write_counts(file, (truth.config.cells, truth.config.genes), blocks)


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
        matrix["indptr"] = write_entries(matrix, blocks, np.int32)
