"""How much anonymous memory `sckit embed` takes for each cell, measured in processes of their own."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.config import PrepareConfig, PretrainConfig
from sckit.data.prepare import prepare
from sckit.training.pretrain import pretrain

pytestmark = pytest.mark.slow  # four processes, each of which imports torch

FEW, MANY = 60_000, 180_000  # both hold more than the blocks

EMBED = """
import sys
import torch
from sckit.evaluation.embedded import write_embedding
from sckit.model.transformer import Model

Model.embed = lambda self, tokens: torch.rand(len(tokens.offsets) - 1, 64)  # only the network takes long
write_embedding(*sys.argv[1:], engine="reference")
"""


def write_cells(path, cells):
    """Thirty counts in each cell, names as long as barcodes, and two columns of labels."""
    genes = (np.arange(cells)[:, None] % 5 + np.arange(30) * 5).ravel().astype(np.int32)
    values, indptr = (genes % 4 + 1).astype(np.float32), np.arange(0, cells * 30 + 1, 30)
    counts = scipy.sparse.csr_matrix((values, genes, indptr), (cells, 150))
    labels = {
        name: pd.Categorical.from_codes(np.arange(cells) % 20, [f"{name} {i}" for i in range(20)]) for name in "ab"
    }
    obs = pd.DataFrame(labels, index=[f"AAACCTGAGAAACCAT-{i:07d}" for i in range(cells)])
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(150)])).write_h5ad(path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for cells in (FEW, MANY):
        write_cells(folder / f"{cells}.h5ad", cells)
        prepare([folder / f"{cells}.h5ad"], folder / f"{cells}.sckit", config=PrepareConfig(assay="any"))
    return folder


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    config = PretrainConfig(steps=1, batch_tokens=2000, components=3, factors=2, engine="reference", correction_steps=0)
    return pretrain(simulated.path, config, runs=tmp_path_factory.mktemp("runs"), name="run").run


@pytest.mark.parametrize("kind", ["sckit", "h5ad"])
def test_embedding_takes_little_memory_for_each_cell(inputs, run, tmp_path, anonymous_peak, kind):
    few, many = (anonymous_peak(EMBED, run, inputs / f"{cells}.{kind}", tmp_path / "out.h5ad") for cells in (FEW, MANY))
    # Bytes: 104 to 112 of a store and 85 to 119 of an h5ad, and 71 and 63 from 240,000 to 960,000 cells, where buffers
    # are full. With the embeddings held in a list it was 340 and 378, with genes and counts held 284 and 302.
    assert (many - few) / (MANY - FEW) < 200
