"""Leave each group out in turn and evaluate the linear baselines: `python bench/left_out.py DATA --group dataset`.

For every value of the group column a run is made on the other groups, with no more than one training step, and its
baselines are scored on the group that was left out, with all values hidden and with 15 % hidden and the total known.
Prints the R² of each row by group, and the mean and range over groups; --out keeps them with their provenance.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from sckit.config import EvalConfig, PretrainConfig
from sckit.data.labels import group_values
from sckit.data.prepare import prepare
from sckit.evaluation.evaluate import evaluate
from sckit.provenance import commit, environment
from sckit.training.pretrain import pretrain

SETTINGS = {"all hidden": {"masks": (1.0,)}, "15 % hidden, total known": {"masks": (0.15,), "known_depth": True}}


def scores_of(store: Path, group: str, name: str, min_cells: int, runs: Path) -> list[dict[str, Any]]:
    """Return a record for each row and setting, with one group held out."""
    config = PretrainConfig(group=group, hold_out=(name,), steps=1, correction_steps=0, min_cells=min_cells)
    run = pretrain(store, config, name=name, runs=runs).run
    records = []
    for setting, options in SETTINGS.items():
        result = evaluate(run, EvalConfig(bootstraps=100, **options))
        for row in result.rows:
            kept = {key: row[key] for key in ("predictor", "r2_gene_mean", "explainable_share")}
            best = {"best_baseline": result.best_baseline, "cells": result.cells}
            records.append({"left_out": name, "setting": setting} | kept | best)
    return records


def main() -> None:
    """Evaluate every group, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="h5ad or store")
    parser.add_argument("--group", default="dataset")
    parser.add_argument("--min-cells", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = prepare([arguments.data], Path(folder) / "data.sckit")
        names = sorted({*group_values(store.obs, arguments.group)} - {""})
        records = []
        for name in names:
            records += scores_of(store.path, arguments.group, name, arguments.min_cells, Path(folder) / "runs")
            print(f"{name} done", flush=True)
    table = pd.DataFrame(records)
    wide = table.pivot_table(index=["setting", "predictor"], columns="left_out", values="r2_gene_mean", sort=False)
    wide = wide.assign(mean=wide.mean(axis=1), low=wide.min(axis=1), high=wide.max(axis=1))
    print(wide.round(4).to_string())
    if arguments.out:
        facts = {
            "commit": commit(),
            "command": f"python bench/left_out.py {arguments.data.name} --group {arguments.group}",
        }
        document = facts | {"environment": environment(), "rows": records}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
