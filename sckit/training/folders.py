"""Where runs lie: the folders of runs and of several folds, made and found by path or name."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sckit.config import PretrainConfig, read_toml, to_toml
from sckit.errors import ConfigError, DataError
from sckit.files import write_json, write_text
from sckit.locks import locked
from sckit.provenance import environment

FOLDS = "folds.toml"
"""The options of several runs, in the folder that holds them."""
TRAINED = "trained.json"
"""What is in the folder of a run when its training has come to its end."""
INPUTS = "inputs.json"
"""What a run was begun with, to go on before its store is written."""

_UNFINISHED = (f"{name}.new" for name in (INPUTS, "environment.json", "config.toml", FOLDS))
_BEFORE_A_RUN = {INPUTS, "environment.json", *_UNFINISHED}


def create_run(config: PretrainConfig, path: Path) -> None:
    """Write what a folder needs to be a run; the last file, `config.toml`, makes it one."""
    path.mkdir(exist_ok=True)
    write_json(path / "environment.json", environment())
    write_text(path / "config.toml", to_toml(config))


@contextmanager
def new_folder(name: str | None, root: Path) -> Iterator[Path]:
    """Make a folder with a name, by default that of the date, and hold its lock while the block runs.

    Raises ConfigError when the name is taken. A folder that a kill left before it held a run is not.
    """
    if name is not None and (name in ("latest", "..") or Path(name).name != name):
        raise ConfigError(f"--name {name} must be a plain name, and not latest; say where with --runs.")
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--runs {root} is a file; name a folder.")
    path = root / (name or f"pretrain-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
            path.mkdir(exist_ok=True)
        except FileExistsError:  # a file
            pass
        except OSError as error:
            raise ConfigError(f"--runs {root} is no folder to write in ({error.strerror}); name another.") from error
        if not path.is_dir() or {each.name for each in path.iterdir()} - _BEFORE_A_RUN:
            raise ConfigError(f"the run {path} exists; choose another --name, or go on with --resume {path}.")
        yield path


def point_latest(path: Path) -> None:
    """Point the link `latest`, which lies next to the run, at it."""
    link = path.parent / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)  # of an earlier process with this number, which was killed
    link.symlink_to(path.name)
    link.replace(path.parent / "latest")


def find_run(path: Path | str | None, root: Path) -> Path:
    """Find the folder of a run by path or name, by default the latest one. Raises ConfigError when there is none."""
    if path is None:
        chosen = root / "latest"
        if not chosen.exists():
            raise ConfigError(f"there is no run in {root} yet; make one with `sckit pretrain`, or name its folder.")
        path = chosen.resolve()
    found = _with_file("config.toml", path, root)
    if found is None and find_folds(path, root) is not None:
        raise ConfigError(f"{path} holds a run for each fold; name one of them, such as {path}/fold-0-seed-0.")
    if found is None:
        raise ConfigError(f"{path} is not a run: no config.toml in it; {_runs_in(root)}")
    return found


def find_folds(path: Path | str | None, root: Path) -> Path | None:
    """Find the folder that holds the runs of several folds, as `find_run` finds a run; None where it is none."""
    return _with_file(FOLDS, root / "latest" if path is None else path, root)


def find_runs(path: Path | str | None, root: Path) -> list[list[Path]]:
    """Find a run, or all runs that `--folds` made, by path or name: for each fold those of its seeds.

    Raises ConfigError where there is none, and DataError where a fold is not trained to its end.
    """
    folder = find_folds(path, root)
    if folder is None:
        return [[find_run(path, root)]]
    config = folds_config(folder)
    runs = [[fold_folder(folder, fold, seed) for seed in range(config.seeds)] for fold in range(config.folds or 0)]
    lacking = next((run for fold in runs for run in fold if not (run / TRAINED).is_file()), None)
    if lacking is not None:
        raise DataError(f"{lacking} is not trained to its end; go on with `sckit pretrain --resume {folder}`.")
    return runs


def folds_config(folder: Path) -> PretrainConfig:
    """Read the options of the runs in a folder. Raises DataError where they do not say how many folds there are."""
    config = read_toml(PretrainConfig, folder / FOLDS)
    if config.folds is None:
        raise DataError(f"{folder / FOLDS} is damaged: it does not say how many folds there are; train again.")
    return config


def folder_of(path: Path | str | None, root: Path) -> Path:
    """Find the folder of a run, or the one that holds the runs of several folds, by path or name."""
    return find_folds(path, root) or find_run(path, root)


def fold_folder(folder: Path, fold: int, seed: int) -> Path:
    """Return the folder of one of the runs that `--folds` makes."""
    return folder / f"fold-{fold}-seed-{seed}"


def _runs_in(root: Path) -> str:
    """Say which runs there are, as the end of a sentence."""
    names = sorted(each.parent.name for name in ("config.toml", FOLDS) for each in root.glob(f"*/{name}"))
    names = [name for name in names if name != "latest"]
    if not names:
        return "name a folder that `sckit pretrain` made."
    latest = root / "latest"
    last = f" (latest: {latest.resolve().name})" if latest.exists() else ""
    return f"{root} has {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}{last}."


def _with_file(name: str, path: Path | str, root: Path) -> Path | None:
    """Return the folder that a path, or a name below the root, means; None unless it holds a file of that name."""
    return next((each.resolve() for each in (Path(path), root / path) if (each / name).is_file()), None)
