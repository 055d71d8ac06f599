"""Several runs on one data set: each part of the cells left out in turn, with several seeds."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sckit.config import PretrainConfig, ReadingConfig, to_toml
from sckit.data.store import Store
from sckit.device import choose_compute
from sckit.errors import ConfigError
from sckit.files import write_text
from sckit.locks import locked
from sckit.training.folders import FOLDS, create_run, find_folds, fold_folder, folds_config, new_folder, point_latest
from sckit.training.pretrain import train
from sckit.training.run import open_run
from sckit.training.setting import (
    copy_setting,
    keep_inputs,
    kept_inputs,
    open_data,
    prepare_run,
    removed_or_resumed,
)
from sckit.training.standing import Pretrained


@dataclass(frozen=True)
class PretrainedFolds:
    """Result of `pretrain_folds`: the folder that holds the runs, and the result of each."""

    run: Path
    networks: list[Pretrained]

    def document(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        seconds = sum(network.wall_s for network in self.networks)
        return {"run": str(self.run), "wall_s": seconds, "networks": [each.document() for each in self.networks]}


def pretrain_folds(
    data: str | Path | Sequence[str | Path] | None = None,
    config: PretrainConfig | None = None,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    resume: str | Path | None = None,
    reading: ReadingConfig | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> PretrainedFolds:
    """Train `seeds` networks on each of `folds` splits.

    Parameters as in `pretrain`. resume: such a folder; finished runs stay as they are. The linear baselines of a fold
    are fitted once, for all of its seeds. Raises DataError and ConfigError.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = "--folds trains one network after another, each in one process; start it without torchrun."
        raise ConfigError(message)
    with ExitStack() as held:
        if resume is not None:
            folder = find_folds(resume, Path(runs))
            if folder is None:
                raise ConfigError(f"{resume} does not hold runs of several folds; name a folder that --folds made.")
            config = folds_config(folder)
            held.enter_context(locked(folder))
            with removed_or_resumed(folder, remove=False):
                store = _store_of(folder, on_event)
            return _train_all(folder, store, config, on_event)
        config = config or PretrainConfig(folds=5)
        if config.folds is None:
            message = "the config does not say how many folds there are; set folds, or call pretrain."
            raise ConfigError(message)
        choose_compute(config.device, config.engine)  # refuse before the work
        folder = held.enter_context(new_folder(name, Path(runs)))
        with removed_or_resumed(folder):
            keep_inputs(folder, data, reading or ReadingConfig())
            write_text(folder / FOLDS, to_toml(config))
            store = open_data(folder, data, reading or ReadingConfig(), on_event)
            _start(folder, store, replace(config, fold=0), on_event)
        return _train_all(folder, store, config, on_event)


def _store_of(folder: Path, on_event: Callable) -> Store:
    """Return the store of the runs of several folds; it is written if they did not get as far."""
    if (fold_folder(folder, 0, 0) / "data.json").is_file():
        return open_run(fold_folder(folder, 0, 0)).store
    return open_data(folder, *kept_inputs(folder), on_event)


def _train_all(folder: Path, store: Store, config: PretrainConfig, on_event: Callable) -> PretrainedFolds:
    """Train the runs of all folds and seeds, or what is left of them."""
    assert config.folds is not None
    done, count = [], config.folds * config.seeds
    for number in range(count):
        own = replace(config, fold=number // config.seeds, replica=number % config.seeds)
        on_event("note", {"text": f"fold {own.fold}, seed {own.replica}: run {number + 1} of {count}"})
        with locked(fold_folder(folder, number // config.seeds, own.replica)):
            done.append(train(_start(folder, store, own, on_event), on_event))
    point_latest(folder)
    return PretrainedFolds(folder, done)


def _start(folder: Path, store: Store, config: PretrainConfig, on_event: Callable) -> Path:
    """Return the folder of one run, prepared if it is not yet; later seeds take over what the first one fitted."""
    assert config.fold is not None
    path = fold_folder(folder, config.fold, config.replica)
    if (path / "data.json").is_file():
        return path
    if path.exists():  # an earlier process ended while it prepared the run
        shutil.rmtree(path)
    create_run(config, path)
    if config.replica:
        copy_setting(path, fold_folder(folder, config.fold, 0))
    else:
        prepare_run(path, store, config, on_event)
    return path
