"""What TileDB filters is what pandas would keep, and what is not read is counted all the same."""

import anndata
import numpy as np
import pyarrow as pa
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.config.reading import ReadingConfig
from sckit.data.obs import obs_matches
from sckit.data.prepare import prepare
from sckit.data.readers.open import open_sources
from sckit.data.readers.pushdown import pushed_down
from sckit.data.store import describe
from sckit.errors import ConfigError, DataError

from ...census import ASSAYS, write_census


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    """The folder of an experiment, its counts [300, 40] and its obs table."""
    path = tmp_path_factory.mktemp("census") / "homo_sapiens"
    return path, *write_census(path)


QUERIES = [
    "is_primary_data == True",
    "is_primary_data",
    "is_primary_data == True and tissue == 'blood'",
    "(tissue == 'blood') & (age > 20) | (score >= 0.5)",
    "tissue in ['blood', \"eye's lens\"] and 20 < age",
    "tissue not in ['blood'] and age != 3",
    "age in [1, 2, 3] or is_primary_data == False",
    "score < 1 and age <= 10 and cell_type == 'B cell'",
    "tissue == 'nothing such' or age == 5",
    "score * 2 > 1 and not is_primary_data",
    "cell_type == ['B cell']",
]


@pytest.mark.parametrize("query", QUERIES)
def test_what_is_read_is_what_pandas_keeps(census, query):
    path, _counts, obs = census
    obs["cell"] = obs["soma_joinid"].astype(str)
    kept = obs_matches(obs, query)
    store = open_sources(path, ReadingConfig(obs_filter=query, assay="any"))[0]
    left = obs_matches(store.obs.reset_index(), query)
    assert store.obs.index[left].tolist() == obs["soma_joinid"][kept].tolist()
    assert store.n_cells + sum(store.left_out.values()) == len(obs)


def test_only_what_means_the_same_is_pushed_down():
    schema = pa.schema(
        [
            pa.field("always", pa.int64(), nullable=False),
            pa.field("age", pa.int64()),
            pa.field("small", pa.int8()),
            pa.field("tissue", pa.dictionary(pa.int32(), pa.large_string())),
            pa.field("source", pa.large_string()),
            pa.field("flag", pa.bool_()),
        ]
    )
    same = {
        "always != 3": "always != 3",
        "7 < age": "age > 7",
        "flag": "flag == True",
        "tissue == 'a' or age == 1": "(tissue == 'a' or age == 1)",
    }
    assert {query: pushed_down(query, schema) for query in same} == {query: [told] for query, told in same.items()}
    other = ["age != 3", "age == 1.5", "small == 300", "tissue < 'b'", "tissue == 3", "source == 'x'", "unknown == 1"]
    other += ["flag == 1", "not flag", "age == [1]", "1 < age < 3", "age == 1 or age + 1 == 3", "age = 3", "`a b` == 1"]
    assert {query: pushed_down(query, schema) for query in other} == {query: [] for query in other}


def test_a_store_of_a_part_of_the_census(census, tmp_path, dense):
    path, counts, obs = census
    config = PrepareConfig(obs_filter="is_primary_data == True and tissue != 'blood'")
    store = prepare([path], tmp_path / "s.sckit", config=config)
    is_10x = obs["assay"].isin(ASSAYS[:2])
    kept = is_10x & obs["is_primary_data"] & (obs["tissue"] != "blood")
    np.testing.assert_array_equal(_matrix(store), counts[kept])
    assert store.obs["cell"].tolist() == obs["soma_joinid"][kept].astype(str).tolist()
    lost = {f"cells of assay {label!r}": int((obs["assay"] == label).sum()) for label in sorted(ASSAYS[2:])}
    lost[f"cells outside --obs-filter {config.obs_filter}"] = int((is_10x & ~kept).sum())
    assert store.manifest["dropped"] == lost
    (source,) = store.manifest["sources"]
    assert (source["cells"], source["kept"]) == (len(obs), int(kept.sum()))
    of_all, of_kept = obs["assay"].value_counts(), obs["assay"][kept].value_counts()
    told = {label: {"cells": int(of_all[label]), "kept": int(of_kept.get(label, 0))} for label in sorted(ASSAYS)}
    assert source["assays"] == told
    assert ("assay Drop-seq", f"0 of {of_all['Drop-seq']} cells of homo_sapiens") in describe(store)


def test_the_same_store_as_from_a_file_that_filters_after_reading(census, tmp_path):
    path, counts, obs = census
    table = obs.set_index(obs["soma_joinid"].astype(str)).drop(columns="soma_joinid")
    adata = anndata.AnnData(counts.astype(np.float32), obs=table)
    adata.var_names = [f"ENSG{i:011d}" for i in range(counts.shape[1])]
    adata.var["gene_name"] = [f"GENE{i}" for i in range(counts.shape[1])]
    adata.write_h5ad(tmp_path / "homo_sapiens.h5ad")
    config = PrepareConfig(obs_filter="is_primary_data and tissue != 'blood' and score > 0.2", min_genes=12)
    pushed, read = (
        prepare([one], tmp_path / f"{one.suffix[1:]}.sckit", config=config)
        for one in (path, tmp_path / "homo_sapiens.h5ad")
    )
    np.testing.assert_array_equal(_matrix(pushed), _matrix(read))
    assert pushed.manifest["dropped"] == read.manifest["dropped"]
    assert pushed.obs.astype(str).equals(read.obs[pushed.obs.columns].astype(str))


def test_only_the_columns_that_are_wanted_are_read_and_kept(census, tmp_path):
    path, *_ = census
    config = ReadingConfig(obs_filter="age > 3 and is_primary_data", obs_columns=("tissue", "dataset_id"), assay="10x")
    (source,) = open_sources(path, config)
    assert source.obs.columns.tolist() == ["dataset_id", "assay", "is_primary_data", "tissue", "age"]
    config = PrepareConfig(obs_filter=config.obs_filter, obs_columns=config.obs_columns)
    store = prepare([path], tmp_path / "s.sckit", config=config)
    assert store.obs.columns.tolist() == ["cell", "source", "total_counts", "n_genes", "dataset_id", "tissue"]


def test_what_leaves_no_cell_is_said_as_for_any_input(census, tmp_path):
    path, _, obs = census
    lost = rf"No cell is left of {len(obs)}: .* cells outside --obs-filter tissue == 'moon'; keep them with --assay any"
    with pytest.raises(DataError, match=lost):
        prepare([path], tmp_path / "s.sckit", config=PrepareConfig(obs_filter="tissue == 'moon'"))
    with pytest.raises(ConfigError, match=r"'Drop-sec' is no assay of the inputs, which have only .*'Smart-seq2'"):
        prepare([path], tmp_path / "s.sckit", config=PrepareConfig(assay="Drop-sec"))
    with pytest.raises(DataError, match=r"name 'tisue' is not defined; the obs columns are: .* dataset_id, assay"):
        prepare([path], tmp_path / "s.sckit", config=PrepareConfig(obs_filter="tisue == 'moon'"))


def _matrix(store):
    from sckit.data.views import as_matrix

    return as_matrix(store.block(0, store.n_cells), store.n_genes).toarray()
