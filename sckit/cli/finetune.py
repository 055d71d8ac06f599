"""The command that compares arms on perturbation data."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.cli.options import ConfigFile, RunArgument, Runs, command_of, goes_on, result_console, say
from sckit.cli.progress import Bar
from sckit.config import FinetuneConfig, ReadingConfig, read_configs, to_toml
from sckit.errors import ConfigError, SckitError

WORK = "work"
"""Folder of what is finished, in the folder of the results, until they are written."""

_FINISHED = f"{WORK}.done"


@command_of(FinetuneConfig, ReadingConfig)
def finetune(
    run: RunArgument = None,
    *,
    data: Annotated[
        str | None, typer.Option(help="Treated and control cells: a store, or anything that prepare reads.")
    ] = None,
    given: dict[str, Any],
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default RUN/finetune-TASK.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the comparison in this folder, from the arms that are finished.")
    ] = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
) -> dict[str, Any]:
    """Fine-tune a run and a model from scratch on perturbation data, and compare both with cheap baselines.

    For example:

        sckit finetune --data screen.h5ad --condition gene --control non-targeting

        sckit finetune --data screen.h5ad --config screen.toml --task partial

        sckit finetune --resume runs/latest/finetune-response
    """
    if resume and (given or run or data or config or out):
        raise ConfigError(
            f"--resume {resume} goes on with that comparison's own run, data and options; give no others."
        )
    from sckit.perturbation.finished import Plan, read_plan
    from sckit.training.folders import find_run

    if resume is None:
        if data is None:
            message = "--data is missing: it names the treated and control cells."
            raise ConfigError(message)
        settings, reading = read_configs(config, given, FinetuneConfig, ReadingConfig)
        path = find_run(run, runs)
        folder, plan = out or path / f"finetune-{settings.task}", Plan(str(path), data, settings, reading)
    else:
        folder, plan = resume, read_plan(resume / WORK)
        if plan is None:
            return _complete(folder)
    with goes_on(f"go on with --resume {folder}"):
        return _compared(folder, plan)


def _complete(folder: Path) -> dict[str, Any]:
    """Say that the comparison in a folder is complete, and return its document."""
    from sckit.locks import is_marked, locked

    try:
        document = json.loads((folder / "finetune.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no comparison to go on with; name the --out of the one to resume."
        ) from error
    if (folder / _FINISHED).exists() or is_marked(folder):  # a process was killed just before its end
        with locked(folder):
            _remove_finished(folder)
    say(f"the comparison in {folder} is complete")
    return document | {"command": "finetune", "out": str(folder)}


def _remove_finished(folder: Path) -> None:
    """Remove the finished parts of a comparison whose results are written."""
    if (folder / _FINISHED).exists():
        shutil.rmtree(folder / _FINISHED)


def _compared(folder: Path, plan: Any) -> dict[str, Any]:
    """Make the comparison of a plan, or what is left of it, and write its results into a folder."""
    from sckit.files import to_json, write_text
    from sckit.locks import locked
    from sckit.perturbation.finetune import finetune as compare_arms
    from sckit.report.perturbation import print_finetuned, save_finetuned

    work = folder / WORK
    try:  # before the work
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} is no folder to write in ({error.strerror}); name another.") from error
    with locked(folder):
        try:
            with Bar() as bar:
                given = plan.run, plan.data, plan.config
                result = compare_arms(*given, reading=plan.reading, work=work, on_event=bar.on_event)
        except SckitError:
            with suppress(OSError):  # where something is in it
                folder.rmdir()
            raise
        paths = save_finetuned(result, folder)
        write_text(folder / "config.toml", to_toml(plan.config) + to_toml(plan.reading))
        _remove_finished(folder)  # of an earlier comparison
        work.rename(folder / _FINISHED)  # at once, so that no half of it is resumed
        _remove_finished(folder)
    for path in [*paths, folder / "config.toml"]:
        say(f"wrote {path}")
    print_finetuned(result, result_console())
    return to_json({"command": "finetune", "out": str(folder), **result.document()})
