"""Try settings of the network on inner folds: `python bench/network_search.py DATA --set lr=0.001 --set lr=0.003`.

The held-out cells of the first of five outer folds (with --group: of its groups) are taken away. On the other cells
every setting is trained and scored by folds of its own, and its gain in R² over the best linear baseline and over trees
is printed with everything hidden, and with 15 % hidden and the total known. One line per setting is added to --out.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from sckit.config import EvalConfig, PretrainConfig
from sckit.data.prepare import prepare
from sckit.data.split import HELD_OUT, split_cells
from sckit.evaluation.evaluate import evaluate
from sckit.provenance import commit, environment
from sckit.training.folds import pretrain_folds

SETTINGS = {"all hidden": {"masks": (1.0,)}, "15 % hidden, total known": {"masks": (0.15,), "known_depth": True}}
OUTER = 5


def inner_cells(data: Path, group: str | None, folder: Path) -> Path:
    """Write the cells that the first outer fold trains on, as h5ad."""
    store = prepare([data], folder / "all.sckit")
    kept = split_cells(store, PretrainConfig(folds=OUTER, fold=0, group=group)) != HELD_OUT
    anndata.read_h5ad(data)[kept].copy().write_h5ad(folder / "inner.h5ad")
    return folder / "inner.h5ad"


def score(store: Path, config: PretrainConfig, folder: Path, *, trees: bool) -> dict[str, Any]:
    """Train and score one setting; return gains over the best baseline with their intervals."""
    start = time.perf_counter()
    run = pretrain_folds(store, config, runs=folder).run
    trained = time.perf_counter() - start
    record: dict[str, Any] = {"train_s": round(trained, 1)}
    for name, options in SETTINGS.items():
        rows = evaluate(run, EvalConfig(bootstraps=500, trees=trees, **options)).rows
        for row in rows:
            if row["predictor"] == "model" or " + " in row["predictor"]:
                best = row["minus_best"]
                record[f"{row['predictor']}, {name}"] = [round(best["r2_gene_mean"], 5), *np.round(best["ci"], 5)]
    return record


def main() -> None:
    """Go through the settings one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="h5ad")
    parser.add_argument("--group")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--min-cells", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE,NAME=VALUE: one setting to try.")
    parser.add_argument("--trees", action="store_true", help="Score trees next to the first setting.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    base = PretrainConfig(
        folds=arguments.folds, group=arguments.group, steps=arguments.steps, min_cells=arguments.min_cells,
        mask="uniform", patience=10**6,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        inner = inner_cells(arguments.data, arguments.group, Path(folder))
        store = prepare([inner], Path(folder) / "inner.sckit").path
        for number, given in enumerate(["", *arguments.set]):
            values = {
                name: json.loads(value) for name, _, value in (one.partition("=") for one in given.split(",") if one)
            }
            found = score(
                store, replace(base, **values), Path(folder) / f"runs-{number}", trees=arguments.trees and not number
            )
            record = {"data": arguments.data.stem, "setting": values, "steps": arguments.steps} | found
            print(json.dumps(record), flush=True)
            if arguments.out:
                facts = {
                    "commit": commit(),
                    "folds": arguments.folds,
                    "group": arguments.group,
                    "environment": environment(),
                }
                with arguments.out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(record | facts) + "\n")


if __name__ == "__main__":
    main()
