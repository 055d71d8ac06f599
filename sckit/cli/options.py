"""What all commands share: options, errors as one sentence, the JSON document at the end."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.errors import SckitError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line of stdout.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Engine = Annotated[str, typer.Option(help="Attention engine: auto, reference, numba or triton.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of options; the command line wins.")]
RunArgument = Annotated[str | None, typer.Argument(help="Run folder or name; by default the latest run.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """One sentence and an exit code instead of a traceback: 1 for bad data, 2 for bad usage."""
    try:
        yield
    except SckitError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None


def say(text: str) -> None:
    """Print to stderr: stdout belongs to the result."""
    typer.echo(text, err=True)


def finish(document: dict[str, Any], *, as_json: bool) -> None:
    """Print the document as the last line of stdout where --json asks for it."""
    if as_json:
        typer.echo(json.dumps(document, default=str, allow_nan=False))
