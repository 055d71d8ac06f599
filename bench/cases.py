"""Where the cases of `sckit bench kernels` come from.

`python bench/cases.py` prints their table: cells, median, maximum.
`python bench/cases.py FILE [--genes 3000]` measures a data set: the quantiles that `sckit/bench/cases.py` holds.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from sckit.bench.cases import CASES, PERCENTS, SHAPES
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.store import open_store


def detected_genes(path: Path, genes: str) -> np.ndarray:
    """Return the number of detected genes of every cell of a store, or of anything that `sckit prepare` reads."""
    if (path / "manifest.json").is_file():
        store = open_store(path)
        return np.diff(store.rows(np.arange(store.n_cells))[0])
    with tempfile.TemporaryDirectory() as folder:
        store = prepare([path], Path(folder) / "cases.sckit", config=PrepareConfig(genes=genes))
        return np.diff(store.rows(np.arange(store.n_cells))[0])


def main() -> None:
    """Print the table of the cases, or measure a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="store, h5ad, 10x h5 or mtx folder to measure")
    parser.add_argument("--genes", default="all", help="all, or a number of variable genes")
    arguments = parser.parse_args()
    if arguments.data is not None:
        lengths = detected_genes(arguments.data, arguments.genes)
        print(f"{len(lengths)} cells, median {int(np.median(lengths))}, maximum {lengths.max()}; at {PERCENTS} %:")
        print(tuple(np.percentile(lengths, PERCENTS).astype(int).tolist()))
        return
    print(f"{'case':<18}{'heads':>6}{'width':>6}{'cells':>7}{'tokens':>8}{'median':>8}{'max':>6}  measured on")
    for case in CASES:
        facts = case.facts()
        print(
            f"{case.name:<18}{case.heads:>6}{case.head_dim:>6}{case.cells:>7}{facts['tokens']:>8}"
            f"{facts['median_tokens']:>8}{facts['max_tokens']:>6}  {facts['source']}"
            f" ({SHAPES[case.shape].measured_cells:,} cells)"
        )


if __name__ == "__main__":
    main()
