"""How much anonymous memory a cell takes, measured in processes of their own."""

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from sckit.data.manifest import write_table

FEW, MANY = 60_000, 240_000  # both hold more than the blocks that are read ahead

PREPARE = """
import sys
from sckit.data.prepare import prepare
from sckit.data.store import describe

describe(prepare([sys.argv[1]], sys.argv[2]))
"""

READ = """
import sys
import numpy as np
from pathlib import Path
from sckit.data.cell_table import CellTable

table = CellTable(Path(sys.argv[1]), int(sys.argv[2]))
kept = table.labels("donor").codes, table.numbers("total_counts")
"""


def labels_of(cells):
    columns = {
        name: pd.Categorical.from_codes(np.arange(cells) % 60, [f"{name} {i}" for i in range(60)]) for name in "abcd"
    }
    columns["donor"] = pd.Categorical.from_codes(np.arange(cells) // 1500, [f"donor {i}" for i in range(160)])
    return pd.DataFrame(columns, index=[f"AAACCTGAGAAACCAT-{i:07d}" for i in range(cells)])


def write_cells(path, cells):
    """Ten counts in each cell, names as long as barcodes, and five columns of labels."""
    genes = np.sort((np.arange(cells)[:, None] * 37 + np.arange(10) * 13) % 200, axis=1).ravel().astype(np.int32)
    shape, indptr = (cells, 200), np.arange(0, cells * 10 + 1, 10)
    counts = scipy.sparse.csr_matrix(((genes % 5 + 1).astype(np.float32), genes, indptr), shape=shape)
    var = pd.DataFrame(index=[f"gene{i}" for i in range(200)])
    anndata.AnnData(counts, obs=labels_of(cells), var=var).write_h5ad(path)


def test_preparing_takes_little_memory_for_each_cell(tmp_path, anonymous_peak):
    peaks = {}
    for cells in (FEW, MANY):
        write_cells(tmp_path / f"{cells}.h5ad", cells)
        peaks[cells] = anonymous_peak(PREPARE, tmp_path / f"{cells}.h5ad", tmp_path / f"{cells}.sckit")
    assert (peaks[MANY] - peaks[FEW]) / (MANY - FEW) < 230  # bytes; 82 from 300,000 cells on, 305 with Python strings


def test_reading_a_column_takes_little_memory_for_each_cell(tmp_path, anonymous_peak):
    peaks = {}
    for cells in (FEW, MANY * 4):
        obs = labels_of(MANY).iloc[np.arange(cells) % MANY].reset_index(names="cell")
        obs = obs.assign(source=pd.Categorical(["one"] * cells), total_counts=np.arange(cells), n_genes=10)
        write_table(tmp_path / f"{cells}.parquet", obs)
        peaks[cells] = anonymous_peak(READ, tmp_path / f"{cells}.parquet", cells)
    assert (peaks[MANY * 4] - peaks[FEW]) / (MANY * 4 - FEW) < 30  # bytes; 12 are kept, and a table takes over 100
