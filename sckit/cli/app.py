"""Commands: parse, call one function, print, exit code. Heavy imports wait until a command runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sckit.cli.bench import bench
from sckit.cli.finetune import finetune
from sckit.cli.options import ConfigFile, Device, Engine, Json, RunArgument, Runs, Seed, finish, say, user_errors
from sckit.cli.progress import Bar
from sckit.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="What masked pretraining on single-cell counts really gives, beside cheap baselines and a replicate ceiling.",
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


@app.command()
def prepare(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="10x .h5, mtx folder, .h5ad, SOMA; none: the sample.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the store to write.")],
    genes: Annotated[
        str, typer.Option(help="all, N highly variable ones, or a FILE with one id or symbol a line.")
    ] = "all",
    assay: Annotated[str, typer.Option(help="10x, any, or labels separated by commas.")] = "10x",
    obs_filter: Annotated[str | None, typer.Option(help="Query on obs columns, like \"tissue == 'blood'\".")] = None,
    min_genes: Annotated[int | None, typer.Option(help="Fewest detected genes of a cell.")] = None,
    min_counts: Annotated[int | None, typer.Option(help="Fewest counts of a cell.")] = None,
    max_counts: Annotated[int | None, typer.Option(help="Most counts of a cell.")] = None,
    max_mito: Annotated[float | None, typer.Option(help="Largest mitochondrial share of a cell's counts.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the h5ad or SOMA that holds the counts.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take .raw of the h5ad.")] = False,
    genome: Annotated[str | None, typer.Option(help="Genome to take from a file with several.")] = None,
    duplicates: Annotated[str, typer.Option(help="Genes of one name: sum or refuse.")] = "sum",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    as_json: Json = False,
) -> None:
    """Read counts into a training store: memory-mapped, checksummed, written whole or not at all.

    For example:

        sckit prepare filtered_feature_bc_matrix.h5 --out pbmc.sckit

        sckit prepare run1/ run2.h5ad --out both.sckit --genes 4000 --min-genes 200 --max-mito 0.2
    """
    with user_errors():
        from sckit.config.prepare import PrepareConfig
        from sckit.data.prepare import prepare as write_store
        from sckit.data.store import describe

        config = PrepareConfig(
            genes=genes,
            assay=assay,
            obs_filter=obs_filter,
            min_genes=min_genes,
            min_counts=min_counts,
            max_counts=max_counts,
            max_mito=max_mito,
            layer=layer,
            raw=raw,
            genome=genome,
            duplicates=duplicates,
        )
        with Bar() as bar:
            store = write_store(inputs or [], out, config=config, overwrite=overwrite, on_event=bar.cells)
        _print_pairs(describe(store))
        finish(store.report, as_json=as_json)


@app.command()
def info(
    store: Annotated[Path, typer.Argument(help="Folder of a store.")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a store, where it came from and what was lost on the way.

    Example: sckit info pbmc.sckit --verify
    """
    with user_errors():
        from sckit.data.store import describe, open_store

        opened = open_store(store)
        _print_pairs(describe(opened))
        if verify:
            opened.verify()
            say("all files agree with their checksums")
        finish({"command": "info", "store": str(store), "verified": verify, **opened.manifest}, as_json=as_json)


@app.command()
def pretrain(
    data: Annotated[
        list[str] | None, typer.Argument(metavar="[STORE | INPUT...]", help="A store or counts; none: the sample.")
    ] = None,
    *,
    mask: Annotated[
        str | None, typer.Option(help=r"Share of the values hidden, in (0, 1], or uniform. \[default: 0.15]")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Hidden tokens show their gene (detected) or nothing (visible).")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=r"tiny, small, medium, base or large. \[default: tiny]")] = None,
    warm_start: Annotated[
        bool | None, typer.Option(help=r"Start from the closed forms. \[default: warm-start]")
    ] = None,
    known_depth: Annotated[
        bool | None, typer.Option("--known-depth", help="Give the exact total of every cell.")
    ] = None,
    shuffle_values: Annotated[
        bool | None, typer.Option("--shuffle-values", help="Control: exchange each cell's counts among its genes.")
    ] = None,
    components: Annotated[int | None, typer.Option(help=r"Components of the detection matrix. \[default: 11]")] = None,
    min_cells: Annotated[int | None, typer.Option(help="Keep genes seen in at least so many training cells.")] = None,
    max_genes: Annotated[
        int | None, typer.Option(help="Cut cells with more detected genes to a random so many.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Column of obs that is never on both sides of the split.")] = None,
    hold_out: Annotated[
        str | None, typer.Option(help="Values of the group column held out, separated by commas.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help=r"Budget in epochs. \[default: 5]")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes of the training loop.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of a batch.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches a step.")] = None,
    patience: Annotated[int | None, typer.Option(help="Validations without a better one before stopping.")] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    name: Annotated[str | None, typer.Option(help=r"Name of the run. \[default: by date]")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run; bit for bit on a CPU with --epochs or --steps.")
    ] = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
    engine: Annotated[str | None, typer.Option(help=r"auto, reference, numba or triton. \[default: auto]")] = None,
    device: Annotated[str | None, typer.Option(help=r"auto, cpu or cuda. \[default: auto]")] = None,
    seed: Annotated[int | None, typer.Option(help=r"Seed of everything random. \[default: 0]")] = None,
    as_json: Json = False,
) -> None:
    """Hide a share of the detected values and train the lean model to fill them in.

    For example:

        sckit pretrain                                    (the 700-cell sample, about a minute)

        sckit pretrain panel.sckit --mask uniform --group dataset --hold-out a,b --min-cells 20 --minutes 20

        sckit pretrain --resume runs/latest
    """
    with user_errors():
        from sckit.config import PretrainConfig, from_dict, read_toml
        from sckit.training.pretrain import pretrain as run_pretraining

        given = {
            "mask": _share(mask),
            "context": context,
            "preset": preset,
            "warm_start": warm_start,
            "known_depth": known_depth or None,
            "shuffle_values": shuffle_values or None,
            "components": components,
            "min_cells": min_cells,
            "max_genes": max_genes,
            "group": group,
            "hold_out": tuple(hold_out.split(",")) if hold_out else None,
            "epochs": epochs,
            "steps": steps,
            "minutes": minutes,
            "lr": lr,
            "batch_tokens": batch_tokens,
            "accumulate": accumulate,
            "patience": patience,
            "checkpoint_steps": checkpoint_steps,
            "engine": engine,
            "device": device,
            "seed": seed,
        }
        given = {key: value for key, value in given.items() if value is not None}
        if resume and (given or data or config or name):
            raise ConfigError(f"--resume {resume} goes on with that run's own data and options; give no others.")
        if given.keys() & {"epochs", "steps", "minutes"}:  # a budget given here replaces the file's
            given = {"epochs": None, "steps": None, "minutes": None} | given
        settings = read_toml(PretrainConfig, config, **given) if config else from_dict(PretrainConfig, given, "sckit")
        with Bar() as bar:
            done = run_pretraining(data or None, settings, name=name, runs=runs, resume=resume, on_event=bar.training)
        say(f"run {done.run}: {done.tokens_per_s:,.0f} tokens/s, {done.cells_per_s:,.1f} cells/s, {done.wall_s:.1f} s")
        say(f"next: sckit eval {done.run} --mask 1.0")
        document = {"command": "pretrain", "run": str(done.run), "tokens_per_s": done.tokens_per_s}
        document |= {"cells_per_s": done.cells_per_s, "wall_s": done.wall_s, "epochs": done.epochs, "best": done.best}
        finish(document, as_json=as_json)


@app.command("eval")
def evaluate(
    run: RunArgument = None,
    *,
    mask: Annotated[
        list[str] | None, typer.Option(help=r"Share of the values hidden; may be repeated. \[default: 1.0]")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="15, 30, 50, 75, 90 and 100 % hidden.")] = False,
    context: Annotated[
        list[str] | None, typer.Option(help=r"detected, visible or shuffled; may be repeated. \[default: detected]")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of obs for the row label + depth.")] = None,
    replicate_split: Annotated[
        bool, typer.Option("--replicate-split", help="Add the half-depth target and replicate.")
    ] = False,
    split: Annotated[str, typer.Option(help="How molecules are split into halves: binomial or nb.")] = "binomial",
    known_depth: Annotated[bool, typer.Option("--known-depth", help="Give everybody each cell's exact total.")] = False,
    group: Annotated[str | None, typer.Option(help="Bootstrap over the values of this column of obs.")] = None,
    cells: Annotated[int | None, typer.Option(help="Score a random so many of the held-out cells.")] = None,
    bootstraps: Annotated[int, typer.Option(help="Bootstrap draws of an interval.")] = 1000,
    out: Annotated[Path | None, typer.Option(help=r"Folder for table and figure. \[default: RUN/eval]")] = None,
    runs: Runs = Path("runs"),
    engine: Engine = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score a run on its held-out cells beside the closed forms and the replicate.

    For example:

        sckit eval --mask 1.0                             (the latest run, every value hidden)

        sckit eval --sweep --context detected --context visible --replicate-split
    """
    with user_errors():
        from rich.console import Console

        from sckit.config import EvalConfig
        from sckit.evaluation import evaluate as evaluation
        from sckit.report.evaluation import print_evaluation, save_evaluation

        if sweep and mask:
            raise ConfigError(f"--sweep names its own shares; leave out --mask {' '.join(mask)}.")
        masks = evaluation.SWEEP if sweep else tuple(_number(m) for m in mask or ["1.0"])
        settings = EvalConfig(
            masks=masks,
            contexts=tuple(dict.fromkeys(context or ["detected"])),
            label=label,
            replicate_split=replicate_split,
            split=split,
            known_depth=known_depth,
            group=group,
            max_cells=cells,
            bootstraps=bootstraps,
            seed=seed,
            engine=engine,
            device=device,
        )
        with Bar() as bar:
            result = evaluation.evaluate(run, settings, runs=runs, on_event=bar.evaluation)
        print_evaluation(result, Console(width=None if sys.stdout.isatty() else 120))
        for path in save_evaluation(result, out or result.run / "eval"):
            say(f"wrote {path}")
        finish(result.document(), as_json=as_json)


@app.command()
def embed(
    run: Annotated[str, typer.Argument(help="Run folder or name.")],
    data: Annotated[str, typer.Argument(metavar="INPUT", help="Counts: anything that prepare reads.")],
    *,
    out: Annotated[Path, typer.Option(help="The h5ad to write.")],
    runs: Runs = Path("runs"),
    engine: Engine = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write an h5ad with cell embeddings in obsm["X_sckit"] for scanpy.

    Example: sckit embed runs/latest pbmc.h5ad --out embedded.h5ad
    """
    with user_errors():
        from sckit.evaluation.embed import embed as run_embedding

        with Bar() as bar:
            adata = run_embedding(run, data, out=out, runs=runs, engine=engine, device=device, on_event=bar.evaluation)
        shape = list(adata.obsm["X_sckit"].shape)
        say(f"wrote {out}: obsm['X_sckit'] {shape}, for scanpy.pp.neighbors(adata, use_rep='X_sckit')")
        finish({"command": "embed", "run": run, "out": str(out), "shape": shape}, as_json=as_json)


app.command()(finetune)


def _share(text: str | None) -> float | str | None:
    return text if text is None or text == "uniform" else _number(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--mask {text} is not a share above 0 and up to 1.") from error


def _print_pairs(pairs: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    app()
