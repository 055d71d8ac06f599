"""Which cells and genes are kept by their counts, and that every lost cell has a reason."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.data.filters import GeneMoments, QualityRules, drop_counts, highly_variable, mito_genes
from sckit.data.readers.source import CountsBlock, GeneTable
from sckit.errors import DataError


def source_of(symbols):
    """As much of a source as the search for mitochondrial genes needs."""
    return SimpleNamespace(path="fake.h5ad", genes=GeneTable(np.array([""] * len(symbols)), np.array(symbols)))


def block_of(counts):
    matrix = scipy.sparse.csr_matrix(np.array(counts))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(matrix.shape[0])])
    indptr, genes = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    counts = matrix.data.astype(np.uint32)
    totals, n_genes = np.asarray(matrix.sum(1)).ravel(), np.diff(indptr)
    return CountsBlock(indptr, genes, counts, obs, totals, n_genes, np.ones(len(obs), bool))


def test_each_cell_is_lost_for_the_first_rule_it_breaks():
    rules = QualityRules(min_genes=2, min_counts=5, max_counts=50, max_mito=0.5)
    block = block_of([[0, 0, 0], [9, 0, 0], [1, 1, 0], [60, 1, 0], [1, 1, 8], [4, 2, 3], [5, 0, 5]])
    codes = rules.broken(block, np.array([False, False, True]))
    assert codes.tolist() == [1, 2, 3, 4, 5, 0, 0]
    assert drop_counts(np.bincount(codes, minlength=6), rules.reasons()) == {
        "cells without counts": 1,
        "cells with fewer than 2 genes": 1,
        "cells with fewer than 5 counts": 1,
        "cells with more than 50 counts": 1,
        "cells with more than 0.5 of their counts mitochondrial": 1,
    }


def test_without_rules_only_empty_cells_are_lost():
    block = block_of([[0, 0], [1, 0]])
    assert QualityRules().broken(block, None).tolist() == [1, 0]


@pytest.mark.parametrize(("symbols", "expected"), [(["MT-CO1", "A"], [True, False]), (["A", "mt-Nd1"], [False, True])])
def test_mito_genes_of_man_and_mouse(symbols, expected):
    assert mito_genes(source_of(symbols)).tolist() == expected


def test_mito_share_without_mito_genes_is_refused():
    with pytest.raises(DataError, match=r"no gene whose symbol begins with MT-.*; leave out --max-mito"):
        mito_genes(source_of(["A"]))


def test_moments_in_blocks_equal_those_of_the_whole_matrix(rng):
    counts = rng.poisson(0.7, (50, 9))
    counts[:, 4] = 0
    totals = counts.sum(axis=1) + 3
    moments = GeneMoments(9)
    for start in range(0, 50, 7):
        block = block_of(counts[start : start + 7])
        moments.add(block.indptr, block.genes, block.counts, totals[start : start + 7])
    mean, variance = moments.mean_and_variance()
    normalised = counts / totals[:, None] * 1e4
    np.testing.assert_allclose(mean, normalised.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(variance, normalised.var(axis=0, ddof=1), rtol=1e-9, atol=1e-9)


def test_highly_variable_genes_equal_scanpy(shared_data, open_source):
    import scanpy

    path = shared_data / "pbmc3k" / "pbmc3k.h5ad"
    source = open_source(path)
    moments = GeneMoments(len(source.genes))
    for block in source.blocks():
        moments.add(block.indptr, block.genes, block.counts, block.totals)
    data = scanpy.read_h5ad(path)
    scanpy.pp.normalize_total(data, target_sum=1e4)
    scanpy.pp.log1p(data)
    for n_top in (1, 50, 2000):
        scanpy.pp.highly_variable_genes(data, flavor="seurat", n_top_genes=n_top)
        chosen = highly_variable(*moments.mean_and_variance(), n_top)
        np.testing.assert_array_equal(chosen, np.flatnonzero(data.var["highly_variable"]))


def test_genes_without_counts_are_never_chosen():
    mean, variance = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 5.0, 1.0, 2.0])
    assert highly_variable(mean, variance, 10).tolist() == [1, 2, 3]
