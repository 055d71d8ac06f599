"""What every test shares: Triton's interpreter without a GPU, the real data, a simulated store, a generator."""

import os
import subprocess
import sys
from pathlib import Path

# What the tests compute is small, and several threads would mostly wait for each other, above all where tests run in
# several processes. The libraries read this when they are loaded, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let Triton interpret, on CPU tensors, unless the tests that need a GPU were asked for."""
    # Triton reads this when @triton.jit decorates, so it has to be set before any kernel is imported.
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real count data next to the checkout; tests that need it skip when it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data folder ../shared/data is not next to this checkout")
    return SHARED_DATA


@pytest.fixture
def rng() -> np.random.Generator:
    """One seeded generator a test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """A store of 360 simulated cells and 150 genes: three types, four datasets, lognormal depth, Poisson counts."""
    import anndata
    import pandas as pd

    from sckit.data.prepare import prepare

    generator = np.random.default_rng(11)
    cells, genes, types = 360, 150, 3
    kind = generator.integers(types, size=cells)
    profile = generator.gamma(0.5, size=(types, genes)) + 0.02
    depth = np.exp(generator.normal(6.0, 0.4, cells))
    rate = profile[kind] / profile[kind].sum(1, keepdims=True) * depth[:, None]
    obs = pd.DataFrame(
        {"dataset": [f"run{i % 4}" for i in range(cells)], "cell_type": [f"type{k}" for k in kind]},
        index=[f"cell{i}" for i in range(cells)],
    )
    var = pd.DataFrame(index=[f"GENE{g}" for g in range(genes)])
    folder = tmp_path_factory.mktemp("simulated")
    adata = anndata.AnnData(generator.poisson(rate).astype(np.float32), obs=obs, var=var)
    adata.write_h5ad(folder / "counts.h5ad")
    return prepare([folder / "counts.h5ad"], folder / "counts.sckit")


_WATCHED = """
import threading, time

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak = 0

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
"""


@pytest.fixture(scope="session")
def anonymous_peak():
    """Run code with arguments in a process of its own, and return the most anonymous memory it held, in bytes."""

    def measured(code, *arguments):
        command = [sys.executable, "-c", f"{_WATCHED}\n{code}\nprint(max(peak, anonymous()))", *map(str, arguments)]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    return measured
