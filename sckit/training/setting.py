"""What is fixed before the first step of a run: its store, split, genes and linear baselines."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file as save_arrays

from sckit.config import PretrainConfig, ReadingConfig, from_dict
from sckit.data.manifest import MANIFEST
from sckit.data.prepare import open_or_prepare
from sckit.data.split import HELD_OUT, TRAIN, VALIDATION, run_vocabulary, split_cells
from sckit.data.store import Store
from sckit.errors import ConfigError, DataError, StoppedError, Terminated, WriteError, no_room
from sckit.files import checksum, flush, system_errors, to_json, write_json
from sckit.model.closed_forms import ClosedForms
from sckit.training.baselines import cross_fits, offset_forms
from sckit.training.folders import FOLDS, INPUTS
from sckit.training.run import CROSS_FITS, OFFSET_FORMS, SETTING, fit_baselines, home, open_run, training_view


def open_data(path: Path, data: Any, reading: ReadingConfig, on_event: Callable) -> Store:
    """Open a store as it is; from anything else that `prepare` reads, write one in the folder of the run."""
    inputs = [] if data is None else [data] if isinstance(data, str | Path) else list(data)
    if not inputs:
        text = "no data given: the PBMC sample that ships inside scanpy (700 cells, 765 genes; a demo, not a result)"
        on_event("note", {"text": text})
    return open_or_prepare(inputs, path / "data.sckit", reading, on_event, assay="10x")


def keep_inputs(path: Path, data: Any, reading: ReadingConfig) -> None:
    """Write down what a run, or the runs of several folds, are begun with, and where its files are named from."""
    inputs = None if data is None else [str(one) for one in ([data] if isinstance(data, str | Path) else data)]
    write_json(path / INPUTS, {"folder": str(Path.cwd()), "inputs": inputs, "reading": to_json(asdict(reading))})


def kept_inputs(path: Path) -> tuple[list[str] | None, ReadingConfig]:
    """Return what `keep_inputs` wrote down, for a run that did not get as far as training.

    Raises DataError where that is not known, and ConfigError in another working directory than the one it began in.
    """
    try:
        kept = json.loads((path / INPUTS).read_text(encoding="utf-8"))
        folder, inputs = kept["folder"], kept["inputs"]
        reading = from_dict(ReadingConfig, kept["reading"], str(path / INPUTS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the run {path} did not get as far as training; train again.") from error
    if folder != str(Path.cwd()):
        raise ConfigError(f"the run {path} names its data from {folder}, where it was begun; go on there.")
    return inputs, reading


@contextmanager
def removed_or_resumed(path: Path, *, remove: bool = True) -> Iterator[None]:
    """Remove the folder of a run where it cannot be begun; keep it where it can go on, and say with what.

    It can after SIGTERM and where there is no room. A half-made run that stays never becomes the latest.
    """
    how = f"go on with --resume {path}"
    try:
        try:
            yield
        except BaseException:
            if not any((path / name).is_file() for name in ("config.toml", FOLDS)):  # it is no run yet
                how = "run the command again"
            raise
    except (StoppedError, Terminated) as error:
        raise StoppedError(f"stopped before training began; {how}.") from error
    except WriteError as error:
        raise WriteError(path, error.error, how) from error
    except BaseException as error:
        if isinstance(error, OSError) and no_room(error):
            raise WriteError(path, error, how) from error
        if remove:  # nothing was trained
            shutil.rmtree(path)
        raise


def prepare_run(path: Path, store: Store, config: PretrainConfig, on_event: Callable) -> None:
    """Split the cells, choose the genes, fit the linear baselines, and write all that down."""
    split = split_cells(store, config, on_event)
    train = np.flatnonzero(split == TRAIN)
    vocabulary = run_vocabulary(store, train, config.min_cells)
    counts = {part: int((split == part).sum()) for part in (TRAIN, VALIDATION, HELD_OUT)}
    text = f"{counts[TRAIN]:,} training, {counts[VALIDATION]:,} validation and {counts[HELD_OUT]:,} held-out cells"
    few = f"{config.min_cells} training cell{'s' * (config.min_cells > 1)}"
    text += f"; {vocabulary.max() + 1:,} genes seen in at least {few}"
    on_event("note", {"text": text})
    view = training_view(store, config)

    def log(text: str) -> None:
        on_event("note", {"text": text})

    forms = fit_baselines(view, vocabulary, train, config, log=log)
    save_setting(path, config, store, split, vocabulary, forms)
    run = open_run(path)
    offset_forms(run, log=log)
    if config.model.start == "offset":
        cross_fits(run, log)


def save_setting(
    path: Path,
    config: PretrainConfig,
    store: Store,
    split: np.ndarray,
    vocabulary: np.ndarray,
    forms: ClosedForms,
) -> None:
    """Write what is fixed before the first step; arrays as in `Run`. The last file, `data.json`, says it is whole."""
    genes = store.genes.iloc[np.flatnonzero(vocabulary >= 0)]
    with system_errors(path):
        genes[["id", "symbol"]].reset_index(drop=True).to_parquet(path / "genes.parquet")
        np.save(path / "split.npy", split.astype(np.int8))
        np.save(path / "vocabulary.npy", vocabulary)
        save_arrays({k: np.ascontiguousarray(v) for k, v in vars(forms).items()}, path / "forms.safetensors")
    for written in SETTING:
        flush(path / written)
    where = store.path.resolve()
    inside = where.is_relative_to(home(path, config))
    named = os.path.relpath(where, path.resolve()) if inside else where
    facts = {"store": str(named), "inside": inside}
    write_json(path / "data.json", facts | {"manifest_sha256": checksum(store.path / MANIFEST)})


def copy_setting(path: Path, other: Path) -> None:
    """Take what is fixed before the first step from another run on the same part of the cells."""
    for name in (*SETTING, OFFSET_FORMS, CROSS_FITS, "data.json"):
        if not (other / name).exists():  # without a warm start nothing is fitted by folds
            continue
        shutil.copyfile(other / name, path / name)
        flush(path / name)
