"""Keep a result with its provenance: `python bench/keep.py FOLDER NAME` writes bench/results/NAME.json.

FOLDER is a run, or the runs of several folds, whose evaluation is kept, or what `sckit finetune --out` wrote.
"""

import argparse
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from sckit.metrics import FORMER_HEADLINE, HEADLINE
from sckit.training.folders import FOLDS
from sckit.training.standing import METRICS


def main() -> None:
    """Collect the commit and the result, with config and environment, into one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--eval", default="eval", help="Folder of the evaluation within the run.")
    arguments = parser.parse_args()
    changed = _git("status", "--porcelain", "--", "../sckit")  # results kept at the same time are no change
    commit = _git("describe", "--always", "--abbrev=12") + ("-dirty" if changed else "")
    finetuned = arguments.folder / "finetune.json"
    what = _finetuned(finetuned) if finetuned.exists() else _evaluated(arguments.folder, arguments.eval)
    path = Path(__file__).parent / "results" / f"{arguments.name}.json"
    # One line per row of a table, so that people can read how a result changed.
    text = json.dumps({"commit": commit} | what, indent=1)
    path.write_text(
        re.sub(r"\{\n\s+([^{}]*?)\n\s+\}", lambda m: "{" + re.sub(r"\s*\n\s*", " ", m[1]) + "}", text) + "\n"
    )
    print(path)


def _git(*words: str) -> str:
    command = ["git", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()


def _evaluated(run: Path, folder: str) -> dict[str, Any]:
    folds = run / FOLDS
    networks = sorted(run.glob("fold-*")) if folds.exists() else [run]
    trained = [_trained(network) for network in networks]
    evaluation = json.loads((run / folder / "eval.json").read_text())
    return {
        "config": tomllib.loads((folds if folds.exists() else run / "config.toml").read_text()),
        "environment": json.loads((networks[0] / "environment.json").read_text()),
        "training": trained if folds.exists() else trained[0],
        "training_s": round(sum(each["wall_s"] for each in trained), 1),
        "evaluation": evaluation | {"run": run.name},
    }


def _trained(run: Path) -> dict[str, Any]:
    """Return where training ended, and the step of the network that was kept."""
    last = json.loads((run / METRICS).read_text().splitlines()[-1])
    kept = json.loads((run / "model.json").read_text())["score"]
    return {key: last[key] for key in ("epoch", "step", "tokens", "wall_s")} | {"kept_step": kept["step"]}


def _finetuned(path: Path) -> dict[str, Any]:
    """Return the result without the paths of the machine that it ran on."""
    result = json.loads(path.read_text())
    facts = result["facts"]
    names = {key: Path(facts[key]).name for key in ("run", "data")}
    result["facts"] = facts | names
    result["notes"] = [note.replace(facts["run"], names["run"]) for note in result["notes"]]
    for key in ("target_map", "panel"):
        facts["config"][key] = facts["config"][key] and Path(facts["config"][key]).name
    # The CSV that the command writes has everything; here only the scores and the headlines' differences are kept.
    for part in (result, result["repeating"]):
        part["paired"] = [row for row in part["paired"] if row["metric"] in (HEADLINE, FORMER_HEADLINE)]
        part.pop("gap")
    result.pop("out", None)
    return json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.5g}"))


if __name__ == "__main__":
    main()
