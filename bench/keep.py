"""Keep the evaluation of a run with its provenance: `python bench/keep.py RUN NAME` writes bench/results/NAME.json."""

import argparse
import json
import subprocess
import tomllib
from pathlib import Path


def main() -> None:
    """Collect config, environment, validations and evaluation of the run, and the commit, into one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--eval", default="eval", help="Folder of the evaluation within the run.")
    arguments = parser.parse_args()
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
    validations = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((arguments.run / arguments.eval / "eval.json").read_text())
    document = {
        "commit": commit,
        "config": tomllib.loads((arguments.run / "config.toml").read_text()),
        "environment": json.loads((arguments.run / "environment.json").read_text()),
        "training": {key: validations[-1][key] for key in ("epoch", "step", "tokens", "wall_s")},
        "evaluation": evaluation | {"run": arguments.run.name},
    }
    path = Path(__file__).parent / "results" / f"{arguments.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
