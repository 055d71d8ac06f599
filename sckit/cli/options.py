"""What all commands share: options made from a config, errors as one sentence, the JSON document at the end."""

import functools
import inspect
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sckit.config.options import Option, options, sentences
from sckit.errors import LostProcessError, SckitError, StoppedError, Terminated, WriteError, no_room, said

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[..., dict[str, Any]]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of options; the command line wins.")]
RunArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Run folder or name; by default the latest run.")
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line of stdout.")]


def command_of(*configs: type | tuple[Any, ...]) -> Callable[[Command], Callable[..., None]]:
    """Make a command of a function that returns its JSON document.

    The options of the configs, all of a type or those named behind it in a tuple, take the place of the parameter
    `given`, which receives what the user set, by field name or by a former name where that was typed. `--json` prints
    the document. An error is one sentence with an exit code, 1 for bad data and 2 for bad usage; a document that is not
    "ok" ends with 1 too. With `--debug` the traceback of an error is shown.
    """
    made: list[inspect.Parameter] = []
    for one in configs:
        config, *names = one if isinstance(one, tuple) else (one,)
        told = sentences(config)
        chosen = [option for option in options(config).values() if option.name in (names or told)]
        made += [each for option in chosen for each in _parameters(option, told[option.name], panel=not names)]

    def decorate(command: Command) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*, as_json: bool, debug: bool, **values: Any) -> None:
            if made:
                typed = {parameter.name: values.pop(parameter.name) for parameter in made}
                values["given"] = {name: value for name, value in typed.items() if value is not None and value != []}
            try:
                with _ended_by_signals():
                    document = command(**values)
            except KeyboardInterrupt as error:
                typer.echo(f"Interrupted{error}.", err=True)
                raise typer.Exit(130) from None
            except Terminated:
                raise _failed(StoppedError("stopped by SIGTERM."), debug=debug) from None
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except Exception as error:
                raise _failed(error, debug=debug) from None
            if as_json and _speaks():
                typer.echo(json.dumps(document, default=str, allow_nan=False))
            if not document.get("ok", True):
                raise typer.Exit(1)

        own = inspect.signature(command)
        last = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for name, kind in (("as_json", _Json), ("debug", _Debug))
        ]
        parameters = [each for one in own.parameters.values() for each in (made if one.name == "given" else [one])]
        run.__dict__["__signature__"] = inspect.Signature([*parameters, *last])
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*parameters, *last]}
        return run

    return decorate


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end a command, SIGTERM with a sentence; of several processes of a training, the first one.

    The others wait for it inside of libraries, which would not let them hear the signal.
    """
    if threading.current_thread() is not threading.main_thread() or not _speaks():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    def dropped(unraisable: Any) -> None:
        """Send a signal again: Python drops what its handler raises in a callback, such as those of h5py."""
        numbers = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
        if (number := numbers.get(unraisable.exc_type)) is None:
            report(unraisable)
        else:
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # here it would be dropped too

    before, report = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = report


@contextmanager
def goes_on(how: str) -> Iterator[None]:
    """Say how a command that is ended by SIGTERM or Ctrl-C goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {how}") from None
    except (StoppedError, Terminated):
        raise StoppedError(f"stopped by SIGTERM; {how}.") from None


def _failed(error: Exception, *, debug: bool) -> typer.Exit:
    """Say what went wrong in one sentence, with how to report what was not foreseen; return the end of the command."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and no_room(error):
        error = WriteError(error.filename or "a file", error)
    if isinstance(error, SckitError):
        if _speaks() or isinstance(error, LostProcessError):
            typer.echo(f"Error: {error}", err=True)
        return typer.Exit(error.exit_code)
    if isinstance(error, OSError) and error.strerror:
        typer.echo(f"Error: {error.filename or 'a file'} cannot be used: {error.strerror}.", err=True)
    else:
        typer.echo(f"Error: this was not foreseen: {type(error).__name__}: {said(error)}.", err=True)
        typer.echo("To report it, run the same command with --debug and send all of its output.", err=True)
    return typer.Exit(1)


def _parameters(option: Option, sentence: str, *, panel: bool) -> Iterator[inspect.Parameter]:
    """The parameters of one option; former names are hidden and come first, so that today's name wins."""
    first, *others = option.kinds
    kind: Any = list[str] if option.repeated else str if option.many or others else first

    def parameter(name: str, flag: str, **settings: Any) -> inspect.Parameter:
        default = typer.Option(None, flag, **settings)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind | None)

    for key, flag in ({option.name: option.flag} if option.gone else option.former).items():
        yield parameter(key, flag, hidden=True)
    if not (option.gone or option.file_only):
        if option.default not in (None, "", ()) and option.default is not False:
            shown = ",".join(map(str, option.default)) if option.many else option.default
            sentence += f" [default: {option.flag[2:] if shown is True else shown}]"
        yield parameter(
            option.name,
            f"{option.flag}/--no-{option.flag[2:]}" if option.default is True else option.flag,
            help=sentence.replace("[", r"\["),  # brackets are markup
            metavar="A,B,..." if kind is str and option.many else "LABEL" if option.labels else None,
            rich_help_panel=option.panel if panel and option.panel else None,
        )


def say(text: str) -> None:
    """Print to stderr: stdout belongs to the result. Of the processes that torchrun starts, the first one prints."""
    if _speaks():
        typer.echo(text, err=True)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def result_console(width: int = 120) -> "Console":
    """Return a console for tables on stdout, of a fixed width where stdout is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, markup=False)


def print_pairs(pairs: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}")
