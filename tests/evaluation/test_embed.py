"""What `embed` returns: the whole input with one embedding per cell, which does not depend on the other cells."""

import anndata
import numpy as np
import pandas as pd
import pytest

from sckit.config import PretrainConfig, ReadingConfig
from sckit.errors import ConfigError
from sckit.evaluation.embed import embed
from sckit.evaluation.embedded import write_embedding
from sckit.training.pretrain import pretrain


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    config = PretrainConfig(
        steps=2, batch_tokens=2000, components=3, factors=2, engine="reference", correction_steps=30
    )
    return pretrain(simulated.path, config, runs=tmp_path_factory.mktemp("runs"), name="run").run


@pytest.fixture
def full(simulated, tmp_path):
    """Twenty cells with everything that an h5ad can hold; cell 3 is empty, cell 5 has an unknown gene only."""
    data = anndata.read_h5ad(simulated.path.parent / "counts.h5ad")[:20].copy()
    other = anndata.AnnData(np.zeros((20, 1), np.float32), obs=data.obs, var=pd.DataFrame(index=["UNKNOWN"]))
    data = anndata.concat([data, other], axis="var", merge="same")
    data.X[[3, 5]] = 0
    data.X[5, -1] = 4
    data.obs["total_counts"] = data.obs["n_genes"] = 1.0
    data.var["highly_variable"] = True
    data.layers["counts"] = data.X.copy()
    data.obsm["X_umap"] = np.ones((20, 2))
    data.uns["key"] = {"a": 1}
    data.write_h5ad(tmp_path / "full.h5ad")
    return tmp_path / "full.h5ad"


def heard(run, data, **options):
    notes = []
    adata = embed(run, data, engine="reference", on_event=lambda _, facts: notes.append(facts.get("text")), **options)
    return adata, [note for note in notes if note]


def test_everything_in_the_input_stays(run, full, tmp_path):
    before = anndata.read_h5ad(full)
    adata, notes = heard(run, full)
    write_embedding(run, full, tmp_path / "out.h5ad", engine="reference")
    after = anndata.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(after.obs, before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    np.testing.assert_array_equal(after.layers["counts"], before.X)
    np.testing.assert_array_equal(after.obsm["X_umap"], before.obsm["X_umap"])
    assert after.uns["key"] == before.uns["key"]
    np.testing.assert_array_equal(after.obsm["X_sckit"], adata.obsm["X_sckit"])
    assert np.isnan(adata.obsm["X_sckit"]).all(1).nonzero()[0].tolist() == [3, 5]
    assert "1 cells have no count in the run's genes: their embedding is NaN; leave them out afterwards" in notes
    assert "left out: 1 cells without counts" in notes
    assert "the 1 cells that were left out are kept, and their embedding is NaN" in notes


def test_the_input_is_not_overwritten(run, full):
    with pytest.raises(ConfigError, match=r"full\.h5ad is the input itself; choose another name"):
        write_embedding(run, full, full)


def test_own_output_can_be_embedded_again_and_filters_leave_cells_out(run, full, tmp_path):
    first, _ = heard(run, full)
    write_embedding(run, full, tmp_path / "out.h5ad", engine="reference")
    again, notes = heard(
        run, tmp_path / "out.h5ad", reading=ReadingConfig(min_counts=1, obs_filter="cell_type=='type1'")
    )
    kept = (first.obs["cell_type"] == "type1").to_numpy() & (np.arange(20) != 3)
    assert again.obs_names.tolist() == first.obs_names[kept].tolist()
    np.testing.assert_allclose(again.obsm["X_sckit"], first.obsm["X_sckit"][kept], atol=1e-5)
    assert "the obsm 'X_sckit' of the input is replaced" in notes


def test_a_store_of_the_same_cells_gives_the_same_embedding(run, simulated):
    stored, _ = heard(run, simulated.path)
    whole, _ = heard(run, simulated.path.parent / "counts.h5ad")
    assert stored.obs_names.tolist() == whole.obs_names.tolist()
    np.testing.assert_array_equal(stored.obsm["X_sckit"], whole.obsm["X_sckit"])


def test_few_shared_genes_are_called_few(run, simulated, tmp_path):
    data = anndata.read_h5ad(simulated.path.parent / "counts.h5ad")[:20, :40].copy()
    data.write_h5ad(tmp_path / "few.h5ad")
    _, notes = heard(run, tmp_path / "few.h5ad")
    assert any(
        "40 of the run's 150 genes are in the data (40 genes): embeddings rest on 27 %" in note for note in notes
    )


@pytest.mark.parametrize("name", ["counts.h5", "here", "nowhere/x.h5ad"])
def test_only_an_h5ad_is_replaced(run, simulated, tmp_path, name):
    (tmp_path / "counts.h5").write_bytes(b"raw counts")
    (tmp_path / "here").mkdir()
    with pytest.raises(ConfigError, match=r"--out .* (is no h5ad|is a folder|does not exist)"):
        write_embedding(run, simulated.path, tmp_path / name)
    assert (tmp_path / "counts.h5").read_bytes() == b"raw counts"
