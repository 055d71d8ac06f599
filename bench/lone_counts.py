"""Score the linear baselines of a run with and without outlying counts: `python bench/lone_counts.py RUN...`.

A lone gene is one in all of its cells but one, where its count is at least 10. An outlying count is at least 10 and at
least ten times the mean count of its gene in the training cells that have it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from sckit.data.batch import Hiding, Packer
from sckit.data.split import HELD_OUT
from sckit.data.store import Store
from sckit.data.views import in_blocks
from sckit.kernels.count_law import counts_of
from sckit.training.baselines import offset_forms
from sckit.training.run import open_run

SETTINGS = {"all hidden": (1.0, False), "15 % hidden, total known": (0.15, True)}


def lone_genes(store: Store) -> int:
    """Return how many genes are one in all of their cells but one, where their count is at least 10."""
    detected, above_one, large = (np.zeros(store.n_genes, np.int64) for _ in range(3))
    for cells in in_blocks(np.arange(store.n_cells), 4096):
        _, genes, counts = store.rows(cells)
        for found, kept in ((detected, counts > 0), (above_one, counts > 1), (large, counts >= 10)):
            found += np.bincount(genes[kept], minlength=store.n_genes)
    return int(((detected > 1) & (above_one == 1) & (large == 1)).sum())


def scores_of(path: Path) -> list[dict[str, Any]]:
    """Return the R² of each row with all scored entries and without the outlying ones, and what the latter weigh."""
    run = open_run(path)
    forms, store, cells = offset_forms(run), run.store, run.cells(HELD_OUT)
    records, lone = [], lone_genes(store)
    for setting, (rate, known) in SETTINGS.items():
        packer = Packer(store, run.vocabulary, Hiding(rate), known_depth=known, scored=True)
        batch = packer(cells)
        genes, truth = batch.genes[batch.targets], batch.truth.astype(np.float64)
        counts = counts_of(truth, store.totals(cells)[batch.target_cells].astype(np.float64))
        outlying = (counts >= 10) & (counts >= 10 * forms.mean_count[genes])
        about_mean = (forms.gene_mean[genes] - truth) ** 2
        facts = {
            "run": path.name,
            "setting": setting,
            "lone_genes": lone,
            "entries": len(truth),
            "outlying": float(outlying.mean()),
        }
        facts["of_squared_error"] = float(about_mean[outlying].sum() / about_mean.sum())
        for row, values in forms.predict(batch).items():
            error = (values - truth) ** 2
            r2 = [1 - error[kept].sum() / about_mean[kept].sum() for kept in (slice(None), ~outlying)]
            records.append(facts | {"row": row, "r2": float(r2[0]), "r2_without": float(r2[1])})
    return records


def main() -> None:
    """Print one JSON line for each run, setting and row, and keep them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [json.dumps(record) for path in arguments.runs for record in scores_of(path)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
