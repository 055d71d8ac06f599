"""What a comparison has finished, kept in a folder, so that one that was killed goes on where it stood."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sckit.config import FinetuneConfig, ReadingConfig, from_dict
from sckit.data import fingerprint, parse_input
from sckit.errors import ConfigError, DataError, said
from sckit.files import checksum, matches, to_json, write_json
from sckit.perturbation.questions import Score
from sckit.provenance import package_version
from sckit.training import Run

BASELINES = "baselines"
"""The part of a job that scores everything that is not trained."""

_PLAN = "plan.json"
_SCORE = {"predictor": str, "train_share": float, "unit": int, "seed": int, "metrics": dict, "group_size": int}
_PART = {"scores": [_SCORE], "trained": [{"arm": str, "seed": int, "train_share": float}]}


@dataclass(frozen=True)
class Part:
    """Scores of one arm, or of all baselines, in one job; and how the training went, a row for an arm."""

    scores: list[Score]
    trained: list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What a comparison is of; another one does not go on with its parts."""

    run: str
    data: str
    config: FinetuneConfig
    reading: ReadingConfig

    def document(self, run: Run) -> dict[str, Any]:
        """Return the plan as JSON has it, with what tells whether the run and the files are still the same."""
        path = parse_input(self.data, self.reading)[0]
        lists = [Path(name) for name in (self.config.target_map, self.config.panel) if name and name != "same"]
        weights = run.path / "model.safetensors"
        return {
            **{"sckit": package_version("sckit"), "folder": str(Path.cwd())},
            **{"run": str(run.path), "data": self.data},
            **{"config": to_json(asdict(self.config)), "reading": to_json(asdict(self.reading))},
            "weights": checksum(weights) if weights.is_file() else None,
            "files": fingerprint([path, *lists]),
        }


def read_plan(folder: Path) -> Plan | None:
    """Read the plan of a comparison that was begun in a folder; None where there is none.

    Raises DataError where it is damaged, and ConfigError where it was begun in another working directory, from which
    its files are named.
    """
    document = _read(folder / _PLAN)
    if document is None:
        return None
    if not matches(document, {"folder": str, "run": str, "data": str, "config": dict, "reading": dict}):
        raise DataError(f"{folder / _PLAN} is damaged; remove {folder} and begin the comparison again.")
    if document["folder"] != str(Path.cwd()):
        raise ConfigError(
            f"the comparison in {folder} names its files from {document['folder']}, where it was begun; go on there."
        )
    config = from_dict(FinetuneConfig, document["config"], str(folder / _PLAN))
    reading = from_dict(ReadingConfig, document["reading"], str(folder / _PLAN))
    return Plan(document["run"], document["data"], config, reading)


class Finished:
    """The finished parts of a comparison: a JSON file for each, which appears whole. Without a folder none is kept."""

    def __init__(self, folder: Path | None) -> None:
        """Use `begin`."""
        self._folder = folder

    @property
    def number(self) -> int:
        """How many parts are finished."""
        return 0 if self._folder is None else len(list(self._folder.glob("part-*.json")))

    def take(self, name: str, *, share: float, seed: int) -> Part | None:
        """Return a part that an earlier process finished, None where there is no whole one."""
        document: Any = None if self._folder is None else _read(self._path(name, share, seed))
        if not matches(document, _PART):
            return None
        nan = float("nan")  # JSON does not have it
        known = [
            score | {"metrics": {metric: nan if value is None else value for metric, value in score["metrics"].items()}}
            for score in document["scores"]
        ]
        return Part([Score(**score) for score in known], document["trained"])

    def keep(self, part: Part, name: str, *, share: float, seed: int) -> Part:
        """Write a part that is finished, whole or not at all, and return it."""
        if self._folder is not None:
            document = {"scores": [vars(score) for score in part.scores], "trained": part.trained}
            write_json(self._path(name, share, seed), to_json(document))
        return part

    def forget_plan(self) -> None:
        """Remove the folder unless a part is finished, so that other options can be given for the same results."""
        if self._folder is not None and not self.number:
            shutil.rmtree(self._folder)

    def _path(self, name: str, share: float, seed: int) -> Path:
        assert self._folder is not None
        return self._folder / f"part-{name}-share-{share:.15g}-seed-{seed}.json"


NOTHING_FINISHED = Finished(None)


def begin(folder: Path | None, plan: Plan, run: Run) -> Finished:
    """Make the folder of a comparison, or go on with the parts in it.

    Raises ConfigError where its parts are of another run, other data or other options, or where it cannot be written.
    """
    if folder is None:
        return NOTHING_FINISHED
    finished, document, before = Finished(folder), plan.document(run), _read(folder / _PLAN)
    if isinstance(before, dict) and before != document and finished.number:
        raise ConfigError(
            f"{folder} holds what is finished of a comparison with {_difference(before, document)}; go on with "
            f"`sckit finetune --resume {folder.parent}` and what it was begun with, or remove {folder} to begin again."
        )
    if before != document:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _PLAN, document)
        except OSError as error:
            raise ConfigError(f"{folder} is no folder to write in ({said(error)}); name another --out.") from error
    return finished


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what differs first, as in "--steps 3"."""
    for group in ("config", "reading"):
        then: Any = before.get(group)
        for name, value in now[group].items() if isinstance(then, dict) else ():
            if then.get(name) != value:
                return f"another --{name.replace('_', '-')} ({then.get(name)} and not {value})"
    names = {"run": "another run", "weights": "another model in the run", "data": "other data", "files": "other files"}
    names |= {"sckit": "another version of sckit", "folder": "another working directory"}
    what = next(name for name in names if before.get(name) != now[name])
    shown = f" ({before.get(what)} and not {now[what]})" if what in ("run", "data", "sckit", "folder") else ""
    return names[what] + (shown or (" of the same name" if what == "files" else ""))


def _read(path: Path) -> Any:
    """Return the document of a file, None where there is no whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
