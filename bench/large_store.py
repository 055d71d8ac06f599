"""Measure a store with many cells and few counts: `python bench/large_store.py --cells 30000000 --out large.sckit`.

Its obs table has columns such as those of the CELLxGENE Census, and all of its shards have the same counts, as links to
the files of one. It shows what opening a store, reading its labels and the order of an epoch cost; the counts mean
nothing. Appends the seconds and the anonymous memory of each to results/large-store.jsonl.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from memory import measure

from sckit.bench.report import append_rows
from sckit.config.prepare import PrepareConfig
from sckit.data.genes import vocabulary_hash
from sckit.data.manifest import MANIFEST, write_rows, write_table
from sckit.data.prepare import prepare
from sckit.data.store import open_store
from sckit.files import to_json, write_json
from sckit.provenance import commit, environment

GENES, PER_SHARD, ROWS = 2000, 32_768, 2**17
"""Genes, cells of a shard, and cells whose labels are made at a time."""

_SIZES = {"dataset_id": 1500, "donor_id": 20_000, "assay": 25, "cell_type": 900, "tissue": 350, "disease": 120}
_SIZES |= {"development_stage": 200, "sex": 3, "tissue_general": 60, "suspension_type": 2}


_SPLIT = """
import sys
from sckit.config import PretrainConfig
from sckit.data.split import split_cells
from sckit.data.store import open_store

split_cells(open_store(sys.argv[1]), PretrainConfig(group="donor_id"))
"""
_ORDER = """
import sys
import numpy as np
from sckit.data.loader import epoch_batches
from sckit.data.store import open_store

store = open_store(sys.argv[1])
cells = np.arange(store.n_cells)
lengths = store.cells.numbers("n_genes").astype(np.int32)
assert sum(len(part) for _, part in epoch_batches(cells, store.chunks(cells), lengths, 32_768, (0, 0))) == len(cells)
"""


def main() -> None:
    """Write the store unless it is there, and measure what it costs in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=30_000_000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not arguments.out.exists():
        write_large(arguments.out, arguments.cells)
    out, cells = str(arguments.out), open_store(arguments.out).n_cells
    for what, words in {
        "sckit info": [sys.executable, "-m", "sckit", "info", out],
        "split by a column": [sys.executable, "-c", _SPLIT, out],
        "order of the first epoch": [sys.executable, "-c", _ORDER, out],
    }.items():
        line = {"what": what, "cells": cells} | measure(words) | {"commit": commit(), "environment": environment()}
        print(line)
        append_rows({"rows": [line]}, Path(__file__).parent / "results" / "large-store.jsonl")


def write_large(out: Path, cells: int) -> None:
    """Write one shard as `sckit prepare` does, link it as often as there are shards, and write the labels.

    The store has this many cells, rounded up to whole shards.
    """
    one = prepare([_one_shard(out)], out, config=PrepareConfig(cells_per_shard=PER_SHARD, layout="mapped"))
    shards, (first,) = -(-cells // PER_SHARD), one.manifest["shards"]
    entries = [first]
    for number in range(1, shards):
        names = {name: name.replace("00000", f"{number:05d}") for name in first["files"]}
        for name, other in names.items():
            os.link(out / name, out / other)
        entries.append(first | {"files": {names[name]: record for name, record in first["files"].items()}})
    size = {"cells": shards * PER_SHARD, "nonzeros": shards * first["nonzeros"]}
    totals = one.obs["total_counts"].to_numpy(), one.obs["n_genes"].to_numpy()
    blocks = range(0, size["cells"], ROWS)
    obs = write_rows(out / "obs.parquet", (_labels(at, min(at + ROWS, size["cells"]), *totals) for at in blocks))
    genes = one.genes.assign(n_cells=one.genes["n_cells"] * shards)
    tables = {"genes.parquet": write_table(out / "genes.parquet", genes), "obs.parquet": obs}
    manifest: dict[str, Any] = one.manifest | size | {"shards": entries, "tables": tables}
    manifest["vocabulary_sha256"] = vocabulary_hash(genes["id"], genes["symbol"])
    write_json(out / MANIFEST, to_json(manifest))


def _one_shard(out: Path) -> Path:
    """Write the input of one shard: 10 counts in each cell."""
    import anndata
    import scipy.sparse as sp

    path = out.with_name(f"{out.name}.h5ad")
    generator = np.random.default_rng(0)
    genes = np.sort(generator.permuted(np.tile(np.arange(GENES), (PER_SHARD, 1)), axis=1)[:, :10], axis=1)
    shape, indptr = (PER_SHARD, GENES), np.arange(0, PER_SHARD * 10 + 1, 10)
    counts = sp.csr_matrix((generator.integers(1, 9, genes.size).astype(np.float32), genes.ravel(), indptr), shape)
    anndata.AnnData(counts, var=pd.DataFrame(index=pd.Index([f"gene{g}" for g in range(GENES)]))).write_h5ad(path)
    return path


def _labels(first: int, last: int, totals: np.ndarray, n_genes: np.ndarray) -> pd.DataFrame:
    """Return the rows of the cells first..last."""
    cell = np.arange(first, last)
    generator = np.random.default_rng(first)
    columns: dict[str, Any] = {
        "cell": [f"AAACCTGAGAAACCAT-{c:08d}" for c in cell],
        "source": pd.Categorical.from_codes(np.zeros(len(cell), np.int8), ["census"]),
        "total_counts": totals[cell % PER_SHARD],
        "n_genes": n_genes[cell % PER_SHARD],
        "raw_mean_nnz": generator.random(len(cell)),
    }
    for name, size in _SIZES.items():
        names = [f"{name} {i}" for i in range(size)]
        stretch = cell // 1500 if name in ("dataset_id", "donor_id") else generator.integers(0, size, len(cell))
        columns[name] = pd.Categorical.from_codes(stretch % size, names)
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
