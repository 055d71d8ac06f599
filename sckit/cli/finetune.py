"""`sckit finetune`: what pretraining gives on perturbation data, beside from scratch and cheap baselines."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.cli.options import ConfigFile, Json, RunArgument, Runs, finish, say, user_errors
from sckit.cli.progress import Bar
from sckit.config.finetune import FinetuneConfig
from sckit.errors import ConfigError

_DATA, _TASK, _ARMS, _TRAINING, _RUNNING = "Data", "Task and split", "Arms and intervals", "Training", "Running"
_DEFAULTS = {field.name: field.default for field in fields(FinetuneConfig)}


def _option(name: str, text: str, panel: str, flag: str = "") -> Any:
    """The option of a field of FinetuneConfig, with that field's default in its help."""
    default = _DEFAULTS[name]
    if default not in ("", None, False, ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text += rf" \[default: {shown}]"  # the backslash: brackets are markup in a help text
    return typer.Option(flag or f"--{name.replace('_', '-')}", help=text, rich_help_panel=panel)


def finetune(
    run: RunArgument = None,
    *,
    data: Annotated[
        str, typer.Option(help="Counts of treated and control cells: .h5ad or a store.", rich_help_panel=_DATA)
    ],
    condition: Annotated[
        str | None, _option("condition", "Column of obs with each cell's perturbation.", _DATA)
    ] = None,
    control: Annotated[str | None, _option("control", "Label of the untreated cells in that column.", _DATA)] = None,
    exclude: Annotated[str | None, _option("exclude", "Labels of that column to leave out, a,b.", _DATA)] = None,
    context: Annotated[
        str | None,
        _option("context", "Columns that make the context, like cell_type,donor.", _DATA, "--context-column"),
    ] = None,
    replicate: Annotated[str | None, _option("replicate", "Column of replicates, for their ceiling.", _DATA)] = None,
    dose: Annotated[str | None, _option("dose", "Column of doses.", _DATA)] = None,
    target_map: Annotated[
        str | None, _option("target_map", "same (conditions are genes), or a FILE of condition and gene.", _DATA)
    ] = None,
    genes: Annotated[int | None, _option("genes", "Genes predicted, those of highest variance.", _DATA)] = None,
    min_cells: Annotated[
        int | None, _option("min_cells", "Fewest cells of a perturbation in a context.", _DATA)
    ] = None,
    task: Annotated[str | None, _option("task", "response or partial.", _TASK)] = None,
    level: Annotated[str | None, _option("level", "Of partial: pseudobulk or cell.", _TASK)] = None,
    split: Annotated[
        str | None, _option("split", "What the test has not seen: perturbation, context or combination.", _TASK)
    ] = None,
    unseen: Annotated[
        str | None, _option("unseen", "The context column that a context split holds out.", _TASK)
    ] = None,
    folds: Annotated[int | None, _option("folds", "Parts of the perturbations; each seed tests one.", _TASK)] = None,
    train_shares: Annotated[
        str | None, _option("train_shares", "Shares of the training perturbations to learn from.", _TASK)
    ] = None,
    revealed: Annotated[str | None, _option("revealed", "Of partial: shares of the genes revealed.", _TASK)] = None,
    panel: Annotated[
        str | None, _option("panel", "Of partial: FILE of the genes revealed instead, one a line.", _TASK)
    ] = None,
    arms: Annotated[
        str | None, _option("arms", "Some of pretrained, scratch, frozen, shuffled and start.", _ARMS)
    ] = None,
    seeds: Annotated[int | None, _option("seeds", "Repeats with other folds and halves.", _ARMS)] = None,
    margin: Annotated[float | None, _option("margin", "Smaller differences count as none.", _ARMS)] = None,
    bootstraps: Annotated[int | None, _option("bootstraps", "Bootstrap draws of an interval.", _ARMS)] = None,
    permute: Annotated[
        bool | None, _option("permute", "Control: exchange the labels of the treated cells.", _ARMS)
    ] = None,
    allow_seen: Annotated[
        bool | None, _option("allow_seen", "Go on although the run was pretrained on treated cells.", _ARMS)
    ] = None,
    steps: Annotated[int | None, _option("steps", "Training steps of every arm.", _TRAINING)] = None,
    lr: Annotated[float | None, _option("lr", "Peak learning rate.", _TRAINING)] = None,
    spare: Annotated[
        float | None, _option("spare", "Share of the training perturbations that picks the moment to stop.", _TRAINING)
    ] = None,
    batch_tokens: Annotated[int | None, _option("batch_tokens", "Tokens of a batch.", _TRAINING)] = None,
    context_cells: Annotated[
        int | None, _option("context_cells", "Cells of a unit that are averaged over or scored.", _TRAINING)
    ] = None,
    config: ConfigFile = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for tables and figure; else RUN/finetune-TASK.", rich_help_panel=_RUNNING),
    ] = None,
    runs: Runs = Path("runs"),
    workers: Annotated[int | None, _option("workers", "Processes that train; 0: one a core.", _RUNNING)] = None,
    engine: Annotated[str | None, _option("engine", "auto, reference, numba or triton.", _RUNNING)] = None,
    device: Annotated[str | None, _option("device", "auto, cpu or cuda.", _RUNNING)] = None,
    seed: Annotated[int | None, _option("seed", "Seed of everything random.", _RUNNING)] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a run on perturbation data, pretrained against from scratch, beside cheap baselines and a ceiling.

    For example:

        sckit finetune --data screen.h5ad --condition perturbation --control non-targeting --target-map same

        sckit finetune --data kang.h5ad --condition label --control ctrl --context-column cell_type --task partial
    """
    given = {
        "condition": condition,
        "control": control,
        "exclude": _names(exclude),
        "context": _names(context),
        "replicate": replicate,
        "dose": dose,
        "target_map": target_map,
        "genes": genes,
        "min_cells": min_cells,
        "task": task,
        "level": level,
        "split": split,
        "unseen": unseen,
        "folds": folds,
        "panel": panel,
        "arms": _names(arms),
        "seeds": seeds,
        "margin": margin,
        "bootstraps": bootstraps,
        "permute": permute,
        "allow_seen": allow_seen,
        "steps": steps,
        "lr": lr,
        "spare": spare,
        "batch_tokens": batch_tokens,
        "context_cells": context_cells,
        "workers": workers,
        "engine": engine,
        "device": device,
        "seed": seed,
    }
    with user_errors():
        from rich.console import Console

        given |= {"train_shares": _shares("--train-shares", train_shares), "revealed": _shares("--revealed", revealed)}
        settings = _settings({key: value for key, value in given.items() if value is not None}, config)

        from sckit.config import to_toml
        from sckit.files import to_json
        from sckit.perturbation.finetune import finetune as compare_arms
        from sckit.report.perturbation import print_cells, print_finetuned, save_finetuned
        from sckit.training.run import find_run

        cell = "-cell" if settings.level == "cell" else ""
        folder = out or find_run(run, runs) / f"finetune-{settings.task}{cell}"
        try:  # before the work
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.toml").write_text(to_toml(settings))
        except OSError as error:
            raise ConfigError(f"--out {folder} is no folder to write in ({error.strerror}); name another.") from error
        console = Console(width=None if sys.stdout.isatty() else 120)
        try:
            with Bar() as bar:
                on_event = bar.finetuning(lambda rows: print_cells(rows, console))
                result = compare_arms(run, data, settings, runs=runs, on_event=on_event)
        except BaseException:
            if [path.name for path in folder.iterdir()] == ["config.toml"]:  # nothing of an earlier comparison
                (folder / "config.toml").unlink()
                folder.rmdir()
            raise
        paths = save_finetuned(result, folder)
        for path in [*paths, folder / "config.toml"]:
            say(f"wrote {path}")
        print_finetuned(result, console)
        finish(to_json({"command": "finetune", "out": str(folder), **result.document()}), as_json=as_json)


def _settings(given: dict[str, Any], config: Path | None) -> FinetuneConfig:
    from sckit.config import from_dict, read_toml

    if config is not None:
        return read_toml(FinetuneConfig, config, **given)
    return from_dict(FinetuneConfig, given, "sckit")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _shares(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text} is not a list of shares such as 0.1,0.5,1.0.") from error
