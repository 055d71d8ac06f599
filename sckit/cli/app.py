"""Commands: parse, call one function, print. Heavy imports wait until a command runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.cli.bench import bench
from sckit.cli.compare import compare
from sckit.cli.finetune import finetune
from sckit.cli.options import ConfigFile, RunArgument, Runs, command_of, print_pairs, result_console, say
from sckit.cli.prepare import prepare
from sckit.cli.progress import Bar
from sckit.config import (
    EvalConfig,
    PretrainConfig,
    ReadingConfig,
    SimulateConfig,
    read_configs,
    read_toml,
)
from sckit.config.evaluate import SWEEP
from sckit.config.options import options
from sckit.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="What masked pretraining on single-cell counts really gives, compared with cheap baselines and replicates.",
)
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def main(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False
) -> None:
    """Say the version; everything else is a command."""
    if version:
        from sckit import __version__

        typer.echo(__version__)
        raise typer.Exit


app.command()(prepare)


@app.command()
@command_of(SimulateConfig)
def simulate(
    *,
    out: Annotated[Path, typer.Option(help="What to write: NAME.h5ad, a 10x NAME.h5 or a store NAME.sckit.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier simulation wrote.")] = False,
    given: dict[str, Any],
    config: ConfigFile = None,
) -> dict[str, Any]:
    """Simulate counts, and write the expected value of every count, the truth, to a second file.

    For example:

        sckit simulate --cells 5000 --out known.h5ad

        sckit simulate --interactions 0.5 --network --dispersion 0.1 --out known.sckit

        sckit simulate --cells 4000 --perturbations 30 --perturbation-cells 60 --out screen.h5ad
    """
    settings = read_toml(SimulateConfig, config, **given)
    from sckit.data.simulate import write_simulation
    from sckit.report.simulate import simulated_lines

    with Bar() as bar:
        done = write_simulation(settings, out, overwrite=overwrite, on_event=bar.on_event)
    for line in simulated_lines(done, settings):
        say(line)
    return {"command": "simulate", **vars(done), "path": str(done.path), "truth": str(done.truth)}


@app.command()
@command_of()
def info(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a store.")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its checksum.")] = False,
) -> dict[str, Any]:
    """Show what is in a store, where it came from and what was left out.

    For example:

        sckit info pbmc.sckit --verify
    """
    from sckit.data.store import describe, open_store

    opened = open_store(store)
    print_pairs(describe(opened))
    if verify:
        opened.verify()
        say("all files agree with their checksums")
    return {"command": "info", "store": str(store), "verified": verify, **opened.manifest}


@app.command()
@command_of(PretrainConfig, ReadingConfig)
def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="A store, or anything that prepare reads; by default a small sample."),
    ] = None,
    *,
    given: dict[str, Any],
    name: Annotated[str | None, typer.Option(help="Name of the run; by default its date.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run that began to train; bit for bit on a CPU.")
    ] = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
) -> dict[str, Any]:
    """Hide a share of the detected values and train the model to predict them.

    For example:

        sckit pretrain

        sckit pretrain pbmc.sckit --mask uniform --group donor --minutes 20

        sckit pretrain pbmc.sckit --name donors --group donor --folds 5 --seeds 3

        sckit pretrain --resume runs/latest

        torchrun --nproc-per-node 4 -m sckit pretrain atlas.sckit
    """
    if resume and (given or data or config or name):
        raise ConfigError(f"--resume {resume} goes on with that run's own data and options; give no others.")
    if given.keys() & {"epochs", "steps", "minutes"}:  # a budget given here replaces the file's
        given = {"epochs": None, "steps": None, "minutes": None} | given
    settings, reading = read_configs(config, given, PretrainConfig, ReadingConfig)
    from sckit.training.folders import find_folds
    from sckit.training.folds import pretrain_folds
    from sckit.training.pretrain import pretrain as run_pretraining

    several = find_folds(resume, runs) is not None if resume else settings.folds is not None
    start, where = pretrain_folds if several else run_pretraining, {"name": name, "runs": runs, "resume": resume}
    with Bar() as bar:
        done = start(data or None, settings, **where, reading=reading, on_event=bar.on_event)
    for one in getattr(done, "networks", [done]):
        say(f"run {one.run}: {one.tokens_per_s:,.0f} tokens/s, {one.cells_per_s:,.1f} cells/s, {one.wall_s:.1f} s")
    say(f"next: sckit eval {done.run} --mask 1.0")
    return {"command": "pretrain", **done.document()}


@app.command("eval")
@command_of(EvalConfig)
def evaluate(
    run: RunArgument = None,
    *,
    sweep: Annotated[bool, typer.Option("--sweep", help="Hide 15, 30, 50, 75, 90 and 100 % of the values.")] = False,
    given: dict[str, Any],
    out: Annotated[Path | None, typer.Option(help="Folder for table and figure; by default RUN/eval.")] = None,
    keep_predictions: Annotated[
        bool, typer.Option("--keep-predictions", help="Keep the prediction of every scored value, for sckit compare.")
    ] = False,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
) -> dict[str, Any]:
    """Score a run on its held-out cells, next to the linear baselines and a replicate.

    For example:

        sckit eval --mask 1.0

        sckit eval --decompose --label cell_type

        sckit eval --sweep --context detected --context visible --replicate-halves
    """
    if sweep and "masks" in given:
        raise ConfigError(f"--sweep names its own shares; leave out --mask {' '.join(given['masks'])}.")
    if sweep:
        given["masks"] = SWEEP
    elif given.get("decompose") and config is None:
        given = {"masks": SWEEP[:1]} | given
    settings = read_toml(EvalConfig, config, **given)
    from sckit.evaluation import evaluate as evaluation
    from sckit.evaluation.kept import PREDICTIONS
    from sckit.locks import locked
    from sckit.report.evaluation import print_evaluation, save_evaluation
    from sckit.training.folders import folder_of

    folder = out or folder_of(run, runs) / "eval"
    with locked(folder):
        with Bar() as bar:
            keep = folder / PREDICTIONS if keep_predictions else None
            result = evaluation.evaluate(run, settings, runs=runs, keep=keep, on_event=bar.on_event)
        print_evaluation(result, result_console())
        for path in save_evaluation(result, folder):
            say(f"wrote {path}")
    return result.document()


app.command()(compare)


@app.command()
@command_of(ReadingConfig, (EvalConfig, "batch_tokens", "engine", "device"))
def embed(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or name.")],
    data: Annotated[str, typer.Argument(metavar="INPUT", help="A store, or anything that prepare reads.")],
    *,
    out: Annotated[Path, typer.Option(help="The h5ad to write.")],
    given: dict[str, Any],
    runs: Runs = Path("runs"),
) -> dict[str, Any]:
    """Write an h5ad with cell embeddings in obsm["X_sckit"] for scanpy.

    For example:

        sckit embed runs/latest pbmc.h5ad --out embedded.h5ad
    """
    from sckit.evaluation.embedded import write_embedding

    of_reading = {name: given.pop(name) for name in options(ReadingConfig) if name in given}
    (reading,) = read_configs(None, of_reading, ReadingConfig)
    with Bar() as bar:
        shape = list(write_embedding(run, data, out, runs=runs, reading=reading, on_event=bar.on_event, **given))
    say(f"wrote {out}: obsm['X_sckit'] {shape}, for scanpy.pp.neighbors(adata, use_rep='X_sckit')")
    return {"command": "embed", "run": run, "out": str(out), "shape": shape}


app.command()(finetune)
