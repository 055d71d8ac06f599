"""Whether attention over the values of neighbours pays: `python bench/neighbours.py DATA --group COLUMN --steps 700`.

Networks without and with neighbours are trained on the same data, each of them with every value of the group column
held out in turn. Attention over k neighbours takes k + 1 times as many tokens for a cell, so networks with fewer
neighbours take more steps, in proportion. The rows are compared on the held-out cells with the group offsets and the
linear neighbours of the same cells, with 15 % hidden and the total known.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from sckit.config import EvalConfig, PrepareConfig, PretrainConfig
from sckit.data.prepare import prepare
from sckit.evaluation.evaluate import evaluate
from sckit.provenance import commit, environment
from sckit.training.folds import pretrain_folds


def scores(store: Path, config: PretrainConfig, k: int, folder: Path) -> list[dict[str, Any]]:
    """Train on every fold and return the R² of all rows, and of the model less that of each, with intervals."""
    run = pretrain_folds(store, config, name=f"neighbours-{config.neighbours}", runs=folder).run
    scored = EvalConfig(masks=(0.15,), known_depth=True, neighbours=k, offset_group=config.group, bootstraps=500)
    evaluation = evaluate(run, scored)
    less = {row["other"]: [row["r2_gene_mean"], *row["ci"]] for row in evaluation.differences}
    return [
        {"row": row["predictor"], "r2": row["r2_gene_mean"], "ci": row["ci"]["r2_gene_mean"]}
        | {"model_less": less.get(row["predictor"])}
        for row in evaluation.rows
    ]


def main() -> None:
    """Train with each number of neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", required=True)
    parser.add_argument("--folds", type=int, required=True)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--linear", type=int, default=30, help="Neighbours of the linear row.")
    parser.add_argument("--genes", type=int, help="Keep this many variable genes.")
    parser.add_argument("--steps", type=int, default=700, help="Steps with the most neighbours.")
    parser.add_argument("--correction-steps", type=int, default=PretrainConfig().correction_steps)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    facts = {"data": arguments.data.stem, "commit": commit(), "environment": environment()}
    given = {name: getattr(arguments, name) for name in ("genes", "correction_steps", "folds")}
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(
            [arguments.data], Path(folder) / "data.sckit", config=PrepareConfig(genes=arguments.genes or "all")
        ).path
        for k in arguments.neighbours:
            steps = arguments.steps * (1 + max(arguments.neighbours)) // (1 + k)
            config = PretrainConfig(
                mask="uniform", group=arguments.group, folds=arguments.folds, neighbours=k, patience=10**6,
                steps=steps, correction_steps=arguments.correction_steps,
            )  # fmt: skip
            for record in scores(store, config, arguments.linear, Path(folder)):
                record = {"neighbours": k, "steps": steps} | record
                print(json.dumps(record), flush=True)
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(record | given | facts) + "\n")


if __name__ == "__main__":
    main()
