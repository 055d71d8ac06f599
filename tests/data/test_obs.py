"""One table for the cells of all inputs, cells lost by their labels, columns and names as strings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sckit.data.filters import drop_counts
from sckit.data.labels import group_values
from sckit.data.obs import (
    assay_codes,
    judge_obs,
    mixed_columns,
    obs_matches,
    source_names,
    unite_obs,
)
from sckit.data.readers.texts import unique_names
from sckit.errors import ConfigError, DataError


@dataclass
class FakeSource:
    """As much of a source as judging labels needs."""

    obs: pd.DataFrame

    @property
    def n_cells(self):
        return len(self.obs)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        pytest.param(["a/x.h5ad", "b/x.h5ad", "y.h5"], ["x", "x-2", "y"], id="same-file-name"),
        pytest.param(
            ["s1/outs/filtered_feature_bc_matrix.h5", "s2/outs/filtered_feature_bc_matrix"],
            ["s1", "s2"],
            id="cell-ranger",
        ),
        pytest.param(
            ["S1/Solo.out/Gene/filtered", "S2/Solo.out/GeneFull/raw/matrix.mtx", "S3_Solo.out/Gene/filtered"],
            ["S1", "S2", "S3"],
            id="starsolo",
        ),
        pytest.param(
            [
                "per_sample_outs/D1/count/sample_filtered_feature_bc_matrix.h5",
                "run/outs/per_sample_outs/D2/count/sample_filtered_feature_bc_matrix",
                "s3/outs/filtered_gene_bc_matrices/hg19",
                "D4_filtered_feature_bc_matrix.h5",
            ],
            ["D1", "D2", "s3", "D4"],
            id="cell-ranger-multi",
        ),
        pytest.param(
            ["GSE1/GSM1_matrix.mtx.gz", "GSE1/GSM2.matrix.mtx", "kb/counts_unfiltered/cells_x_genes.mtx", "a.zarr"],
            ["GSM1", "GSM2", "kb", "a"],
            id="geo-and-kallisto",
        ),
        pytest.param(["x", "x", "x-2"], ["x", "x-2", "x-2-2"], id="name-that-is-taken"),
        pytest.param(["x-2", "x", "x"], ["x-2", "x", "x-3"], id="name-that-was-taken"),
    ],
)
def test_inputs_get_names_of_their_own(paths, names):
    assert source_names([Path(path) for path in paths]) == names


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
        ("10x transcription profiling", True),
        ("10X", True),
        ("10x Genomics", True),
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


def test_own_columns_of_an_input_get_names_that_are_free():
    obs = pd.DataFrame({"total_counts": [1], "input_total_counts": [2], "n_genes": [3], "input_total_counts_2": [4]})
    united, _ = unite_obs([FakeSource(obs)], ["x"])
    assert dict(united.iloc[0, 2:]) == {
        "input_total_counts": 2, "input_total_counts_2": 4, "input_total_counts_3": 1, "input_n_genes": 3,
    }  # fmt: skip


def test_a_repeated_name_gets_a_number_that_no_other_cell_has():
    assert [*unique_names(["A", "A", "A#2", "B", "A"])[0]] == ["A", "A#3", "A#2", "B", "A#4"]


def test_whole_numbers_with_gaps_are_labels_without_a_point():
    obs = pd.DataFrame({"donor": [1.0, None, 2.0], "dose": [0.5, 1.0, None]})
    assert group_values(obs, "donor").tolist() == ["1", "", "2"]
    assert group_values(obs, "dose").tolist() == ["0.5", "1.0", ""]


def test_an_assay_that_no_input_has_is_named():
    source = FakeSource(pd.DataFrame({"assay": ["10x 3' v3", "Drop-seq"]}))
    with pytest.raises(ConfigError, match=r"--assay 'typo' is no assay of the inputs, which have only .*'Drop-seq'"):
        judge_obs([source], ["x"], source.obs, assay="10x 3' v3,typo", obs_filter=None)


def source_of(**columns):
    obs = pd.DataFrame(columns)
    return FakeSource(obs.set_axis([f"c{i}" for i in range(len(obs))]))


def test_numbers_in_one_input_and_text_in_another_are_the_same_labels():
    sources = [source_of(donor=pd.Categorical(["1", "2"])), source_of(donor=[np.nan, 2.0]), source_of(donor=[1, 2])]
    assert mixed_columns(sources) == ["donor"]
    obs, _ = unite_obs(sources, ["a", "b", "c"])
    assert group_values(obs, "donor").tolist() == ["1", "2", "", "2", "1", "2"]
    assert mixed_columns(sources[1:]) == []
    assert group_values(unite_obs(sources[1:], ["b", "c"])[0], "donor").tolist() == ["", "2", "1", "2"]


def test_large_whole_numbers_stay_apart_when_an_input_lacks_the_column():
    sources = [source_of(donor=[2**60 + 1, 2**60 + 2]), source_of(other=[1, 2])]
    obs, _ = unite_obs(sources, ["a", "b"])
    assert group_values(obs, "donor").tolist() == [str(2**60 + 1), str(2**60 + 2), "", ""]
    assert group_values(pd.DataFrame({"donor": [1e20, 3.0]}), "donor").tolist() == ["1" + "0" * 20, "3"]


@pytest.mark.parametrize("query", ["donor != 1", "1 < donor", "age == '3'", "age > 2 and donor == 2"])
def test_a_filter_does_not_compare_text_with_numbers(query):
    obs = pd.DataFrame({"donor": pd.Categorical(["1", "2"]), "age": [3, 4]})
    with pytest.raises(
        ConfigError, match=r"but its values are of another kind: ('1', '2'|3, 4), \.\.\.; text stands in"
    ):
        obs_matches(obs, query)


def test_index_in_a_filter_is_the_cell():
    obs = pd.DataFrame({"cell": ["x", "y"], "age": [3, 4]})
    assert obs_matches(obs, "index != 'x'").tolist() == [False, True]
    assert obs_matches(obs, "age in (3, 5)").tolist() == [True, False]


def test_an_assay_with_a_comma_is_first_tried_whole():
    obs = pd.DataFrame({"assay": ["sci-RNA-seq, v3", "10x 3' v3", "sci-RNA-seq, v3"]})
    sources, names = [FakeSource(obs)], ["a"]
    assert judge_obs(sources, names, obs, assay="sci-RNA-seq, v3", obs_filter=None)[0].tolist() == [0, 1, 0]
    assert judge_obs(sources, names, obs, assay="10x 3' v3,10X 3' V3", obs_filter=None)[0].tolist() == [1, 0, 1]
