"""Masked pretraining: from data or from a run that was interrupted to a trained run."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sckit.config import PretrainConfig, ReadingConfig, read_toml
from sckit.device import choose_compute
from sckit.errors import ConfigError, WriteError, no_room
from sckit.locks import locked
from sckit.model.transformer import Model
from sckit.training.folders import create_run, find_run, new_folder
from sckit.training.ranks import ALONE, Ranks, joined
from sckit.training.run import open_run
from sckit.training.setting import keep_inputs, kept_inputs, open_data, prepare_run, removed_or_resumed
from sckit.training.standing import Pretrained
from sckit.training.trainer import OnEvent, Trainer


def _nothing(_kind: str, _facts: dict[str, Any]) -> None: ...


def pretrain(
    data: str | Path | Sequence[str | Path] | None = None,
    config: PretrainConfig | None = None,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    resume: str | Path | None = None,
    reading: ReadingConfig | None = None,
    on_event: OnEvent = _nothing,
) -> Pretrained:
    """Train the model to fill in hidden values, and return the run folder and its best validation row.

    data: a store, or anything `prepare` reads, as `reading` says; None for the PBMC sample inside scanpy. resume: a run
    to go on with, whose own configuration then holds. on_event(kind, facts) is called with "note", "step" and
    "validation" events. Raises DataError and ConfigError.
    """
    if resume is not None:
        path = find_run(resume, Path(runs))
        kept = read_toml(PretrainConfig, path / "config.toml")
        with joined(kept.device) as ranks, ExitStack() as held:
            ranks.first(lambda: _go_on(held, path, kept, on_event))
            return train(path, on_event, ranks)
    chosen = config or PretrainConfig()
    if chosen.folds:
        raise ConfigError(f"{chosen.folds} folds are several runs; call pretrain_folds for them.")
    device = choose_compute(chosen.device, chosen.engine).device.type  # refuse before the work
    with joined(device) as ranks, ExitStack() as held:
        path = ranks.first(lambda: str(begin(held, data, chosen, name, Path(runs), reading, on_event)))
        return train(Path(path), on_event, ranks)


def begin(
    held: ExitStack,
    data: str | Path | Sequence[str | Path] | None,
    config: PretrainConfig,
    name: str | None,
    runs: Path,
    reading: ReadingConfig | None = None,
    on_event: OnEvent = _nothing,
) -> Path:
    """Make the folder of a run with all that is fixed before its first step; arguments as in `pretrain`.

    held: gets the lock of the folder.
    """
    path = held.enter_context(new_folder(name, runs))
    with removed_or_resumed(path):
        keep_inputs(path, data, reading or ReadingConfig())
        create_run(config, path)
        prepare_run(path, open_data(path, data, reading or ReadingConfig(), on_event), config, on_event)
    return path


def _go_on(held: ExitStack, path: Path, config: PretrainConfig, on_event: OnEvent) -> None:
    """Lock a run, and fix what is fixed before its first step if it did not get as far."""
    held.enter_context(locked(path))
    if not (path / "data.json").is_file():
        data, reading = kept_inputs(path)
        with removed_or_resumed(path, remove=False):
            prepare_run(path, open_data(path, data, reading, on_event), config, on_event)


def load_model(run: str | Path | None = None, *, runs: str | Path = "runs", device: str = "cpu") -> Model:
    """Load the model of a run by path or name, by default of the latest one, in evaluation mode."""
    return open_run(find_run(run, Path(runs))).model(device)


def train(path: Path, on_event: OnEvent, ranks: Ranks = ALONE) -> Pretrained:
    """Train the run in a folder from where it stands, together with the other processes if there are any."""
    on_event = on_event if ranks.is_first else _nothing
    run = open_run(path)
    compute = choose_compute(run.config.device, run.config.engine)
    on_event("note", {"text": f"{compute}{f'; {ranks.count} processes' if ranks.count > 1 else ''}"})
    try:
        with ranks.told_of_a_death(f"--resume {path}"):
            return Trainer(run, compute, on_event, ranks).fit()
    except OSError as error:
        if not no_room(error):
            raise
        raise WriteError(path, error, f"go on with --resume {path}") from error
