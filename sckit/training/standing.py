"""How far the training of a run has come, in numbers and in words, and what it ended with."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sckit.config import PretrainConfig
from sckit.errors import DataError
from sckit.files import write_text
from sckit.training.folders import TRAINED
from sckit.training.run import Run

DEFAULT_EPOCHS = 5
METRICS = "metrics.jsonl"  # of a run: its validation rows


@dataclass
class Progress:
    """Where a training run stands; all of it is in a checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    tokens: int = 0
    cells: int = 0
    cut: int = 0
    elapsed_s: float = 0.0
    next_validation: float = 0.0  # share of the budget
    best: float = -math.inf
    worse: int = 0
    correction_s: float = 0.0  # of elapsed_s: training of the correction of the linear baseline; 0 before it

    @property
    def network_s(self) -> float:
        """Seconds without those that the correction took."""
        return max(self.elapsed_s - self.correction_s, 1e-9)


@dataclass(frozen=True)
class Pretrained:
    """Result of `pretrain`: the run folder, the speed, and the validation row of the best model."""

    run: Path
    tokens_per_s: float
    cells_per_s: float
    wall_s: float
    epochs: int
    best: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {**vars(self), "run": str(self.run)}


def resumed(run: Path, state: dict[str, Any]) -> Progress:
    """Return where the run of a checkpoint stands, and take the validation rows after it away: they are repeated.

    Raises DataError for a damaged run.
    """
    lines = run / METRICS
    try:
        at = Progress(**state)
        if any(type(value) is not type(getattr(Progress(), name)) for name, value in state.items()):
            message = "its state holds values of another kind"
            raise ValueError(message)
        whole = [line for line in lines.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= at.step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"the run {run} is damaged ({error}), so it cannot be resumed; train again."
        raise DataError(text) from error
    write_text(lines, "".join(f"{line}\n" for line in kept))
    return at


def standing(config: PretrainConfig, step: int, epoch: float, elapsed_s: float) -> str:
    """Say where training stands in its budget, as in "step 60 of 100"."""
    if config.steps is not None:
        return f"step {step:,} of {config.steps:,}"
    if config.minutes is not None:
        return f"step {step:,}, minute {elapsed_s / 60:.1f} of {config.minutes:g}"
    return f"step {step:,}, epoch {epoch:.2f} of {config.epochs or DEFAULT_EPOCHS:g}"


def end_sentences(
    config: PretrainConfig, place: str, kept: Mapping[str, Any], *, patience: bool, trained: bool
) -> list[str]:
    """Say why training ends at a place of its budget, and whether anything that was trained is kept.

    kept: the validation row of the best model; patience: whether it ends because validation stopped improving; trained:
    whether this process took a step.
    """
    found = [] if trained else [f"this run is complete ({place})"]
    if patience:
        found = [f"stopped after {place}: {config.patience} validations without an improvement"]
        if not trained:
            found[0] += "; it cannot go on, so start a new run with a larger --patience"
    if kept["step"] == 0:
        budget = "minutes" if config.minutes is not None else "steps" if config.steps is not None else "epochs"
        what = "the linear start: nothing that was trained is kept"
        if kept.get("corrected"):
            what = "the correction of that start alone: attention did not add to it"
        more = f"give more --{budget}{' or --patience' if patience else ''}"
        found.append(f"the kept model is that of step 0, {what}; {more}")
    return found


def unfinished(run: Run) -> str:
    """Say where the last checkpoint of a run is that has not been trained to its end; empty for one that has."""
    if (run.path / TRAINED).is_file():
        return ""
    steps = [int(path.name.removeprefix("step-")) for path in (run.path / "checkpoints").glob("step-*[0-9]")]
    return f"step {max(steps, default=0):,}" + (f" of {run.config.steps:,}" if run.config.steps else "")
