"""What a network adds by the number of training cells: `python bench/learning_curves.py DATA --group COLUMN`.

A fifth of the groups is held out. Of all other cells a share is kept, the smaller ones inside the larger ones. On each
share, baselines are fitted and networks of several seeds are trained, and both are scored on the same held-out cells.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from sckit.config import EvalConfig, PretrainConfig
from sckit.data.labels import group_values
from sckit.data.prepare import prepare
from sckit.data.split import HELD_OUT, split_cells
from sckit.evaluation.evaluate import evaluate
from sckit.provenance import commit, environment
from sckit.training.pretrain import pretrain

SETTINGS = {"all hidden": {"masks": (1.0,)}, "15 % hidden, total known": {"masks": (0.15,), "known_depth": True}}


def scores(store: Path, config: PretrainConfig, folder: Path) -> list[dict[str, Any]]:
    """Train one network; return a record for each setting and row."""
    run = pretrain(store, config, runs=folder, name="run").run
    kept = json.loads((run / "model.json").read_text(encoding="utf-8"))["score"]
    records = []
    for setting, options in SETTINGS.items():
        for row in evaluate(run, EvalConfig(bootstraps=500, **options)).rows:
            if row["predictor"] in ("model", "value offset ridge", "value offset ridge + correction"):
                best = row["minus_best"]
                found = {"row": row["predictor"], "r2": row["r2_gene_mean"], "best_baseline": best["predictor"]}
                less = {"minus_best": best["r2_gene_mean"], "ci": best["ci"], "kept_step": kept["step"]}
                records.append({"setting": setting} | found | less)
    return records


def main() -> None:
    """Train and score every share and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="h5ad")
    parser.add_argument("--group", required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--min-cells", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    counts = anndata.read_h5ad(arguments.data)
    facts = {"data": arguments.data.stem, "group": arguments.group, "commit": commit(), "environment": environment()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = prepare([arguments.data], folder / "all.sckit")
        held_out = split_cells(store, PretrainConfig(group=arguments.group)) == HELD_OUT
        groups = group_values(store.obs, arguments.group)
        order = np.random.default_rng(0).permutation(np.flatnonzero(~held_out))
        for share in arguments.shares:
            kept = np.sort(np.concatenate([np.flatnonzero(held_out), order[: round(share * len(order))]]))
            counts[kept].copy().write_h5ad(folder / "part.h5ad")
            part = prepare([folder / "part.h5ad"], folder / f"{share}.sckit").path
            for seed in range(arguments.seeds):
                config = PretrainConfig(
                    mask="uniform", group=arguments.group, hold_out=tuple(sorted({*groups[held_out]})), replica=seed,
                    steps=arguments.steps, min_cells=arguments.min_cells, patience=10**6,
                )  # fmt: skip
                work = folder / f"{share}-{seed}"
                work.mkdir()
                for record in scores(part, config, work):
                    record = {"share": share, "cells": len(kept) - int(held_out.sum()), "seed": seed} | record
                    print(json.dumps(record), flush=True)
                    if arguments.out:
                        with arguments.out.open("a", encoding="utf-8") as lines:
                            lines.write(json.dumps(record | facts | {"steps": arguments.steps}) + "\n")


if __name__ == "__main__":
    main()
