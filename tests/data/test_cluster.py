"""Two workers of a Dask cluster prepare the store that a single call prepares."""

import numpy as np
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data.cluster import prepare_on_dask
from sckit.data.prepare import prepare
from sckit.errors import ConfigError, DataError

SMALL = {"cells_per_shard": 4}


@pytest.fixture(scope="module")
def cluster():
    """The address of a scheduler with two workers, each a process."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (sckit[dask])")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as local:
        yield local


@pytest.fixture
def source(tmp_path, write_h5ad):
    return write_h5ad(tmp_path / "x.h5ad", np.random.default_rng(4).poisson(0.6, (150, 25)))


@pytest.mark.filterwarnings("ignore")
def test_the_store_of_a_cluster_is_that_of_one_process(cluster, source, tmp_path, folder_bytes, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers are somewhere else
    (tmp_path / "genes.txt").write_text("\n".join(f"gene{i}" for i in range(3, 20)))
    for options in ({"genes": 10}, {"genes": "genes.txt"}):
        config, seen = PrepareConfig(**SMALL, **options), []
        store = prepare_on_dask(
            ["x.h5ad"], "s.sckit", cluster.scheduler_address, config=config, overwrite=True,
            on_event=lambda kind, facts, seen=seen: seen.append((kind, facts.get("what"))),
        )  # fmt: skip
        assert ("progress", "parts") in seen
        straight = prepare(["x.h5ad"], "t.sckit", config=config, overwrite=True)
        assert folder_bytes(store.path) == folder_bytes(straight.path)
    assert not (tmp_path / "s.sckit.parts").exists()


@pytest.mark.filterwarnings("ignore")
def test_an_error_of_a_worker_is_that_of_prepare(cluster, tmp_path, write_h5ad):
    bad = write_h5ad(tmp_path / "bad.h5ad", np.full((90, 25), 0.5))
    with pytest.raises(DataError, match="which is not whole"):
        prepare_on_dask([bad], tmp_path / "s.sckit", cluster.scheduler_address, config=PrepareConfig(**SMALL))


@pytest.mark.filterwarnings("ignore")
def test_no_scheduler_is_one_sentence(source, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("sckit.data.cluster._WAIT_S", 1)
    for address in ("tcp://127.0.0.1:1", "no address"):
        with pytest.raises(ConfigError, match=f"--dask {address}: no Dask scheduler answers there; give the address"):
            prepare_on_dask([source], tmp_path / "s.sckit", address)


def test_without_dask_the_extra_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"--dask x needs Dask, which `pip install 'sckit\[dask\]'` brings"):
        prepare_on_dask([source], tmp_path / "s.sckit", "x")
