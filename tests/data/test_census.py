"""`--census` reads a version by its date from wherever the address says, here a folder with the same columns."""

import re

import numpy as np
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data.census import _PUBLIC
from sckit.data.prepare import prepare
from sckit.errors import ConfigError, DataError

from ..census import ASSAYS, write_census


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    (folder / "2024-07-01").mkdir()
    return folder, *write_census(folder / "2024-07-01" / "homo_sapiens")


@pytest.fixture(autouse=True)
def address(versions, monkeypatch):
    monkeypatch.setenv("SCKIT_CENSUS", f"file://{versions[0]}/{{version}}/{{organism}}")


def test_a_version_means_its_primary_10x_cells(versions, tmp_path, dense):
    _, counts, obs = versions
    store = prepare([], tmp_path / "s.sckit", config=PrepareConfig(census="2024-07-01", obs_filter="tissue == 'lung'"))
    kept = obs["assay"].isin(ASSAYS[:2]) & obs["is_primary_data"] & (obs["tissue"] == "lung")
    np.testing.assert_array_equal(dense(store), counts[kept])
    assert store.obs.columns.tolist()[2:] == ["total_counts", "n_genes", "dataset_id", "assay", "cell_type", "tissue"]
    manifest = store.manifest
    assert manifest["config"]["census"] == "2024-07-01"
    assert manifest["config"]["obs_filter"] == "is_primary_data == True and (tissue == 'lung')"
    assert not manifest["is_sample"]
    assert "no input has the obs column donor_id of --obs-columns" in manifest["notes"]
    assert sum(of["cells"] for of in manifest["sources"][0]["assays"].values()) == len(obs)


def test_other_assays_and_columns_can_be_asked_for(versions, tmp_path):
    _, _, obs = versions
    config = PrepareConfig(census="2024-07-01", assay="Smart-seq2", obs_columns=("score",))
    store = prepare([], tmp_path / "s.sckit", config=config)
    assert store.n_cells == int((obs["is_primary_data"] & (obs["assay"] == "Smart-seq2")).sum())
    assert store.obs.columns.tolist()[4:] == ["score"]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"census": "stable"}, ConfigError, "--census stable is no version; give the date of one, such as 2025-11-08"),
        ({"census": "2024-07-02"}, DataError, "The Census has no version 2024-07-02 of homo_sapiens .*; give the date"),
        ({"census": "2024-07-01", "organism": "homo"}, DataError, "no version 2024-07-01 of homo .there is nothing at"),
    ],
)
def test_an_unknown_version_is_one_sentence(tmp_path, options, error, sentence):
    with pytest.raises(error, match=sentence):
        prepare([], tmp_path / "s.sckit", config=PrepareConfig(**options))
    assert not list(tmp_path.iterdir())


def test_the_public_address_has_a_place_for_version_and_organism():
    assert re.fullmatch(r"s3://[a-z0-9-]+/cell-census/\{version\}/soma/census_data/\{organism\}", _PUBLIC)
