"""Which cells and genes are kept, and that every lost one has a reason."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.data.filters import (
    GeneMoments,
    QualityRules,
    assay_codes,
    drop_counts,
    highly_variable,
    judge_obs,
    mito_genes,
    obs_matches,
    unite_obs,
)
from sckit.data.readers.open import CountsBlock, GeneTable, open_source
from sckit.errors import ConfigError, DataError


@dataclass
class FakeSource:
    """As much of a source as judging labels needs."""

    obs: pd.DataFrame
    path: str = "fake.h5ad"
    genes: GeneTable = field(default_factory=lambda: GeneTable(np.array([""]), np.array(["A"])))

    @property
    def n_cells(self):
        return len(self.obs)


def block_of(counts):
    matrix = scipy.sparse.csr_matrix(np.array(counts))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(matrix.shape[0])])
    indptr, genes = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    return CountsBlock(indptr, genes, matrix.data.astype(np.uint32), obs)


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("10x 3' v1", True),
        ("10x 3' v2", True),
        ("10x 3' v3", True),
        ("10x 3' v4", True),
        ("10x 5' v1", True),
        ("10x 5' v2", True),
        ("10x multiome", True),
        ("10x 3' transcription profiling", True),
        ("10x 5' transcription profiling", True),
        ("10X 3\u2032 v3", True),
        ("10x gene expression flex", False),
        ("10x feature barcode (cell surface protein profiling)", False),
        ("10x scATAC-seq", False),
        ("Smart-seq2", False),
        ("MERFISH", False),
        (None, False),
    ],
)
def test_default_assay_keeps_10x_transcripts_only(label, kept):
    codes, reasons = assay_codes(pd.DataFrame({"assay": [label, "10x 3' v2"]}), "10x", "fake")
    assert codes.tolist() == [0 if kept else 1, 0]
    assert reasons == ([] if kept else [f"cells of assay {label or 'not given'!r}"])


def test_assay_may_be_any_or_a_list_of_labels():
    obs = pd.DataFrame({"assay": pd.Categorical(["Drop-seq", "CEL-seq2", "10x 3' v2", "Drop-seq"])})
    assert assay_codes(obs, "any", "fake")[0].tolist() == [0, 0, 0, 0]
    codes, reasons = assay_codes(obs, "drop-seq, 10x 3' v2", "fake")
    assert drop_counts(np.bincount(codes, minlength=2), reasons) == {"cells of assay 'CEL-seq2'": 1}


def test_without_an_assay_column_the_default_keeps_and_a_list_is_refused():
    assert assay_codes(pd.DataFrame(index=range(3)), "10x", "fake")[0].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="fake has no obs column 'assay'"):
        assay_codes(pd.DataFrame(index=range(3)), "Drop-seq", "fake")


def test_obs_filter_on_labels_and_numbers():
    obs = pd.DataFrame({"tissue": pd.Categorical(["blood", None, "lung"]), "age": [3.0, np.nan, 40.0]})
    assert obs_matches(obs, "tissue == 'blood'").tolist() == [True, False, False]
    assert obs_matches(obs, "age > 30 or tissue == 'blood'").tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        pytest.param(
            "colour == 'red'", DataError, "'colour' is not defined; the obs columns are: tissue", id="unknown"
        ),
        pytest.param("tissue ==", ConfigError, "is not a condition on obs columns", id="syntax"),
        pytest.param("tissue", ConfigError, "is not true or false for every cell", id="not-a-condition"),
    ],
)
def test_bad_obs_filter_is_one_sentence(query, error, message):
    with pytest.raises(error, match=message) as caught:
        obs_matches(pd.DataFrame({"tissue": ["blood"]}), query)
    assert "\n" not in str(caught.value)


def test_each_cell_is_lost_for_the_first_rule_it_breaks():
    rules = QualityRules(min_genes=2, min_counts=5, max_counts=50, max_mito=0.5)
    block = block_of([[0, 0, 0], [9, 0, 0], [1, 1, 0], [60, 1, 0], [1, 1, 8], [4, 2, 3], [5, 0, 5]])
    totals = np.diff(np.concatenate(([0], np.cumsum(block.counts)))[block.indptr])
    codes = rules.broken(block, totals, np.array([False, False, True]))
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
    assert QualityRules().broken(block, np.array([0, 1]), None).tolist() == [1, 0]


@pytest.mark.parametrize(("symbols", "expected"), [(["MT-CO1", "A"], [True, False]), (["A", "mt-Nd1"], [False, True])])
def test_mito_genes_of_man_and_mouse(symbols, expected):
    source = FakeSource(pd.DataFrame(index=["c"]), genes=GeneTable(np.array(["", ""]), np.array(symbols)))
    assert mito_genes(source).tolist() == expected


def test_mito_share_without_mito_genes_is_refused():
    with pytest.raises(DataError, match=r"no gene whose symbol begins with MT-.*; leave out --max-mito"):
        mito_genes(FakeSource(pd.DataFrame(index=["c"])))


def test_obs_of_several_inputs_are_united():
    first = FakeSource(
        pd.DataFrame(
            {
                "tissue": pd.Categorical(["lung", "blood"]),
                "age": [3, 4],
                "primary": [True, False],
                "total_counts": [1, 2],
            },
            index=["c", "c"],
        )
    )
    second = FakeSource(pd.DataFrame({"tissue": ["skin"], "empty": [np.nan]}, index=["c"]))
    third = FakeSource(pd.DataFrame(index=["d"]))
    obs, repeats = unite_obs([first, second, third], ["r1", "r2", "r3"])
    assert repeats == [1, 0, 0]
    assert obs["cell"].tolist() == ["r1:c", "r1:c#2", "r2:c", "r3:d"]
    assert obs["source"].tolist() == ["r1", "r1", "r2", "r3"]
    assert list(obs.columns) == ["cell", "source", "tissue", "age", "primary", "input_total_counts", "empty"]
    assert obs["tissue"].astype(object).fillna("-").tolist() == ["lung", "blood", "skin", "-"]
    assert obs_matches(obs, "primary == True").tolist() == [True, False, False, False]
    assert obs_matches(obs, "primary == False").tolist() == [False, True, False, False]
    assert obs_matches(obs, "age > 3").tolist() == [False, True, False, False]


def test_one_input_keeps_its_cell_ids():
    obs, _ = unite_obs([FakeSource(pd.DataFrame(index=["a", "b"]))], ["run"])
    assert obs["cell"].tolist() == ["a", "b"]


def test_labels_are_judged_over_all_inputs():
    sources = [
        FakeSource(pd.DataFrame({"assay": ["Drop-seq", "10x 3' v2"]}, index=["a", "b"])),
        FakeSource(pd.DataFrame({"assay": ["MERFISH", "Drop-seq"], "tissue": ["lung", "lung"]}, index=["a", "b"])),
        FakeSource(pd.DataFrame({"tissue": ["blood", "lung"]}, index=["a", "b"])),
    ]
    names = ["r1", "r2", "r3"]
    obs, _ = unite_obs(sources, names)
    codes, reasons = judge_obs(sources, names, obs, assay="10x", obs_filter="tissue == 'blood'")
    assert codes.tolist() == [1, 3, 2, 1, 0, 3]
    assert reasons[0] == "cells of assay 'Drop-seq'"
    assert reasons[2] == "cells outside --obs-filter tissue == 'blood'"


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


def test_highly_variable_genes_equal_scanpy(shared_data):
    import scanpy

    path = shared_data / "pbmc3k" / "pbmc3k.h5ad"
    source = open_source(path)
    moments = GeneMoments(len(source.genes))
    for block in source.blocks():
        moments.add(block.indptr, block.genes, block.counts, block.totals())
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
