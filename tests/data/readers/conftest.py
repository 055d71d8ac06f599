"""Counts that can be predicted from (row, gene), and sources read back as matrices."""

import numpy as np
import pytest
import scipy.sparse


@pytest.fixture(scope="session")
def known() -> np.ndarray:
    """Counts of 7 cells in 5 genes; the last cell is empty."""
    row, gene = np.indices((7, 5))
    counts = (row * 3 + gene * 5) % 7 * ((row + gene) % 2)
    counts[-1] = 0
    return counts


def _read(source, **options):
    """All blocks of a source as one sparse matrix; checks the promises of a block on the way."""
    rows = []
    for block in source.blocks(**options):
        assert block.indptr.dtype == np.int64
        assert block.genes.dtype == np.int32
        assert block.counts.dtype == np.uint32
        assert len(block.obs) == len(block.indptr) - 1
        assert (block.counts > 0).all()
        matrix = scipy.sparse.csr_matrix(
            (block.counts, block.genes, block.indptr), shape=(len(block.obs), len(source.genes))
        )
        assert matrix.has_canonical_format
        rows.append(matrix)
    return scipy.sparse.vstack(rows, format="csr")


@pytest.fixture(scope="session")
def read():
    return _read


@pytest.fixture(scope="session")
def dense():
    return lambda source, **options: _read(source, **options).toarray()
