"""Counts that can be predicted from (row, gene), as files and as stores."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.config.prepare import PrepareConfig
from sckit.config.reading import ReadingConfig
from sckit.data.prepare import prepare
from sckit.data.readers.open import open_sources


def known_counts(n_cells=23, n_genes=11):
    row, gene = np.indices((n_cells, n_genes))
    return (row * 3 + gene * 5) % 7 * ((row + gene) % 2) + (gene == row % n_genes) * (1 + 300 * (row == 20))


def write_h5ad(path, counts=None, *, symbols=None, obs=None):
    counts = known_counts() if counts is None else counts
    index = [f"cell{i}" for i in range(len(counts))]
    obs = pd.DataFrame(index=index) if obs is None else obs.set_index(pd.Index(index))
    var = pd.DataFrame(index=symbols or [f"gene{i}" for i in range(counts.shape[1])])
    anndata.AnnData(scipy.sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


def dense(store, cells=None):
    cells = np.arange(store.n_cells) if cells is None else cells
    indptr, genes, counts = store.rows(cells)
    return scipy.sparse.csr_matrix(
        (counts, genes.astype(np.int64), indptr), shape=(len(cells), store.n_genes)
    ).toarray()


def folder_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session", name="known_counts")
def known_counts_fixture():
    return known_counts


@pytest.fixture(scope="session", name="write_h5ad")
def write_h5ad_fixture():
    return write_h5ad


@pytest.fixture(scope="session", name="dense")
def dense_fixture():
    return dense


@pytest.fixture(scope="session", name="folder_bytes")
def folder_bytes_fixture():
    return folder_bytes


@pytest.fixture
def sharded(tmp_path):
    """A store of 23 cells in shards of 5, 5, 5, 5 and 3."""
    return prepare([write_h5ad(tmp_path / "x.h5ad")], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=5))


@pytest.fixture(scope="session")
def open_source():
    """Open an input that is one source, with reading options by name."""

    def open_one(path, **options):
        (source,) = open_sources(path, ReadingConfig(**options))
        return source

    return open_one
