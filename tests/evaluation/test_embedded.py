"""What `sckit embed` writes block by block is what `embed` returns."""

import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal

from sckit.config import PrepareConfig, PretrainConfig, ReadingConfig
from sckit.data import h5ad_copy, new_h5ad
from sckit.data.prepare import prepare
from sckit.errors import BusyError, ConfigError
from sckit.evaluation import embedded
from sckit.evaluation.embed import embed
from sckit.evaluation.embedded import write_embedding
from sckit.locks import locked
from sckit.training.pretrain import pretrain

ROOT = Path(__file__).parents[2]
ENGINE = {"engine": "reference", "batch_tokens": 2000}


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    config = PretrainConfig(
        steps=2, batch_tokens=2000, components=3, factors=2, engine="reference", correction_steps=30
    )
    return pretrain(simulated.path, config, runs=tmp_path_factory.mktemp("runs"), name="run").run


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Let every list be cut into several blocks."""
    monkeypatch.setattr(h5ad_copy, "_ENTRIES", 700)
    monkeypatch.setattr(h5ad_copy, "_CHUNK", 512)
    monkeypatch.setattr(h5ad_copy, "_BLOCK", 2)
    monkeypatch.setattr(new_h5ad, "_TEXTS", 50)
    monkeypatch.setattr(embedded, "_CHUNK", 5000)
    monkeypatch.setattr(embedded, "_CELLS", 70)


def full(simulated, path):
    """Write 120 cells, two of which are empty, with all that an h5ad can hold along them."""
    data = anndata.read_h5ad(simulated.path.parent / "counts.h5ad")[:120].copy()
    data.X[[3, 77]] = 0
    counts, cells = data.X.copy(), np.arange(120)
    generator = np.random.default_rng(0)
    data.layers["columns"], data.layers["rows"] = sp.csc_matrix(counts), sp.csr_matrix(counts)
    data.raw = anndata.AnnData(sp.csc_matrix(counts), obs=data.obs, var=data.var.assign(more=1.5))
    data.obs["text"] = [f"text {i}" for i in cells]
    data.obs["ordered"] = pd.Categorical(np.where(cells < 60, "b", "a"), ["c", "b", "a"], ordered=True)
    data.obs["parts"] = pd.Categorical.from_codes(np.where(cells % 9, cells % 5, -1), list("vwxyz"))
    data.obs["years"] = pd.Categorical(cells // 40 + 2000)
    data.obs["whole"] = pd.array(np.where(cells % 7, cells, None), "Int64")
    data.obs["flag"] = pd.array(np.where(cells % 7, cells % 2 == 0, None), "boolean")
    data.obs["number"], data.obs["is"] = cells / 7, cells % 3 == 0
    data.obsm["X_umap"], data.obsm["sparse"] = generator.random((120, 2)), sp.csr_matrix(counts[:, :9])
    data.obsm["table"] = data.obs[["text", "parts", "number"]].copy()
    data.obsm["X_sckit"] = np.zeros((120, 3))
    near = generator.random((120, 120)) * (generator.random((120, 120)) < 0.1)
    data.obsp["rows"], data.obsp["columns"], data.obsp["dense"] = sp.csr_matrix(near), sp.csc_matrix(near), near
    data.varm["loadings"], data.varp["genes"] = generator.random((150, 3)), sp.csr_matrix(np.eye(150))
    data.uns |= {"ordered_colors": np.array(["red", "green", "blue"]), "parts_colors": np.array(["red"] * 2)}
    data.uns |= {"key": {"a": 1, "b": np.arange(3)}, "cell_type_colors": np.array(["red", "green", "blue"])}
    data.write_h5ad(path)
    return path


def same(run, data, out, reading=None):
    """Compare the file with what `embed` returns, notes included; return it."""
    notes = {"embed": [], "write": []}

    def hear(name):
        return lambda _, facts: notes[name].append(facts)

    expected = embed(run, data, **ENGINE, reading=reading, on_event=hear("embed"))
    shape = write_embedding(run, data, out, **ENGINE, reading=reading, on_event=hear("write"))
    found = anndata.read_h5ad(out)
    assert shape == found.obsm["X_sckit"].shape
    assert [facts for facts in notes["write"] if "text" in facts] == [
        facts for facts in notes["embed"] if "text" in facts
    ]
    np.testing.assert_array_equal(found.obsm.pop("X_sckit"), embedding := expected.obsm.pop("X_sckit"))
    expected.strings_to_categoricals()
    assert_equal(found, expected, exact=True)
    assert found.obs.dtypes.astype(str).tolist() == expected.obs.dtypes.astype(str).tolist()
    return found, embedding


FILTERS = {
    "none": None,
    "type": ReadingConfig(obs_filter="cell_type=='type1' and ordered=='b'"),
    "counts": ReadingConfig(min_counts=300),
    "rest": ReadingConfig(obs_filter="number>15"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_an_h5ad_is_copied(run, simulated, tmp_path, monkeypatch, name):
    path = full(simulated, tmp_path / "full.h5ad")
    monkeypatch.setattr(embedded, "embed", None)  # which would read it whole
    _, embedding = same(run, path, tmp_path / "out.h5ad", FILTERS[name])
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert isinstance(file["layers/columns"], h5py.Group)
    assert np.isnan(embedding).all(1).sum() == (2 if name == "none" else 0)


@pytest.mark.parametrize("name", ["none", "counts"])
def test_folders_without_an_encoding_are_copied_as_others(run, simulated, tmp_path, name):
    """As anndata reads them."""
    path = full(simulated, tmp_path / "full.h5ad")
    with h5py.File(path, "a") as file:
        for folder in ("layers", "obsm", "raw"):
            for attribute in list(file[folder].attrs):
                del file[folder].attrs[attribute]
    same(run, path, tmp_path / "out.h5ad", FILTERS[name])


@pytest.mark.parametrize("name", ["none", "rest"])
def test_names_of_cells_may_be_categories(run, simulated, tmp_path, name):
    data = anndata.read_h5ad(simulated.path.parent / "counts.h5ad")[:40].copy()
    data.obs["number"] = np.arange(40)
    data.obs.index = pd.CategoricalIndex(data.obs_names)
    data.write_h5ad(tmp_path / "names.h5ad")
    with h5py.File(tmp_path / "names.h5ad") as file:
        assert isinstance(file["obs/_index"], h5py.Group)
    shape = write_embedding(run, tmp_path / "names.h5ad", tmp_path / "out.h5ad", **ENGINE, reading=FILTERS[name])
    kept = data.obs_names[16 if name == "rest" else 0 :]
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs_names.tolist() == kept.tolist()
    assert shape[0] == len(kept)


@pytest.mark.parametrize("end", [".new", ".lock"])
def test_an_input_that_would_be_in_the_way_stays(run, simulated, tmp_path, end):
    data = tmp_path / f"out.h5ad{end}"
    data.write_bytes((simulated.path.parent / "counts.h5ad").read_bytes())
    with pytest.raises(ConfigError, match="which is the input; choose another name"):
        write_embedding(run, data, tmp_path / "out.h5ad", **ENGINE)
    assert data.stat().st_size


def test_own_output_can_be_embedded_again(run, simulated, tmp_path):
    same(run, simulated.path, tmp_path / "one.h5ad")
    same(run, tmp_path / "one.h5ad", tmp_path / "two.h5ad")


@pytest.mark.parametrize("layout", ["mapped", "compact"])
def test_a_store_is_written(run, simulated, tmp_path, layout):
    path = full(simulated, tmp_path / "full.h5ad")
    store = prepare([path], tmp_path / "full.sckit", config=PrepareConfig(layout=layout, cells_per_shard=50))
    found, _ = same(run, store.path, tmp_path / "out.h5ad")
    assert found.obs["ordered"].cat.categories.tolist() == ["c", "b", "a"]
    same(run, store.path, tmp_path / "out.h5ad", ReadingConfig(min_genes=80, obs_columns=("ordered",)))


def test_other_inputs_are_written(run, simulated, tmp_path):
    data = anndata.read_h5ad(simulated.path.parent / "counts.h5ad")[:50].copy()
    for part in ("one", "two"):
        (tmp_path / "in" / part).mkdir(parents=True)
    from scipy.io import mmwrite

    folder = tmp_path / "in" / "one"
    mmwrite(folder / "matrix.mtx", sp.csr_matrix(data.X.T.astype(int)))
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in data.obs_names))
    (folder / "genes.tsv").write_text("".join(f"{name}\t{name}\n" for name in data.var_names))
    same(run, folder, tmp_path / "out.h5ad")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_repeated_names_are_no_matter(run, simulated, tmp_path, monkeypatch):
    monkeypatch.undo()  # so that all lies in one block
    data = anndata.read_h5ad(simulated.path.parent / "counts.h5ad")[:9].copy()
    data.X[0] = 0
    data.obs_names = ["a", "a", "a#2", "b", "a", "b", "c", "c#2", "c"]
    data.write_h5ad(tmp_path / "twice.h5ad")
    _, embedding = same(run, tmp_path / "twice.h5ad", tmp_path / "out.h5ad")
    assert np.isnan(embedding).any(1).tolist() == [True, *[False] * 8]
    found, _ = same(run, tmp_path / "twice.h5ad", tmp_path / "out.h5ad", ReadingConfig(min_counts=1))
    assert found.obs_names.tolist() == data.obs_names[1:].tolist()


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("kind", ["old", "unknown", "zarr"])
def test_what_cannot_be_copied_is_read_whole(run, simulated, tmp_path, kind):
    data = full(simulated, tmp_path / "full.h5ad")
    if kind == "zarr":
        anndata.read_h5ad(data).write_zarr(tmp_path / "full.zarr")
        data = tmp_path / "full.zarr"
    else:
        with h5py.File(data, "a") as file:
            if kind == "old":
                del file.attrs["encoding-type"], file.attrs["encoding-version"]
            else:
                file.copy("uns/key", "obsm/unknown")
    assert not h5ad_copy.can_copy(data, whole=False)
    assert h5ad_copy.can_copy(data, whole=True) == (kind == "unknown")
    if kind != "unknown":  # which anndata refuses too
        same(run, data, tmp_path / "out.h5ad")


def test_a_second_command_is_refused(run, simulated, tmp_path):
    with locked(tmp_path / "out.h5ad"), pytest.raises(BusyError, match=r"another process is writing .*out\.h5ad"):
        write_embedding(run, simulated.path, tmp_path / "out.h5ad", **ENGINE)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from sckit.errors import WriteError
from sckit.evaluation.embedded import write_embedding
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    write_embedding(*sys.argv[1:], engine="reference")
except WriteError as error:
    print(error)
"""


def test_a_full_disk_is_one_sentence(run, simulated, tmp_path):
    (tmp_path / "out.h5ad").write_bytes((simulated.path.parent / "counts.h5ad").read_bytes())
    command = [sys.executable, "-c", LIMITED, run, simulated.path, tmp_path / "out.h5ad"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "out.h5ad cannot be written (File too large); make room, and run the command again." in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]
    assert "X_sckit" not in anndata.read_h5ad(tmp_path / "out.h5ad").obsm
