"""Write commands.md, next to this file, from the commands' own help; with --check, exit with 1 where it is stale."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sckit.cli.app import app
from sckit.config import EvalConfig, FinetuneConfig, PrepareConfig, PretrainConfig, SimulateConfig
from sckit.config.options import options, sentences

HEAD = """\
# The commands of sckit

This page is made from the commands' own help by `python docs/make_commands.py`; edit the help, not this page.

Every command prints its tables on stdout and its progress on stderr. With `--json` the last line of stdout is one JSON
document. An error is one sentence on stderr; the exit code is 1 for bad data and 2 for bad usage.

`--config FILE` reads the options of the tables with a heading from a TOML file, in which `--batch-tokens 4096` is
`batch_tokens = 4096`. Options of the command line win over those of the file. A list is given as `a,b,c` on the command
line and as `["a", "b", "c"]` in a file. An option that may be repeated takes one value each time, as in
`--mask 0.15 --mask 1.0`; where its values are labels, such as those of `--hold-out`, one list `a,b` does as well.
"""
CONFIGS = {
    "prepare": PrepareConfig,
    "simulate": SimulateConfig,
    "pretrain": PretrainConfig,
    "eval": EvalConfig,
    "finetune": FinetuneConfig,
}


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    return "\n".join([HEAD, *(line for name, one in group.commands.items() for line in lines(name, one, "##"))])


def lines(name: str, command: Any, mark: str) -> Iterator[str]:
    """The lines of a command, or of a group with its commands."""
    sentence, *paragraphs = [" ".join(part.split()) for part in command.help.split("\n\n")]
    yield from (f"{mark} sckit {name}", "", sentence, "")
    for key, one in getattr(command, "commands", {}).items():
        yield from lines(f"{name} {key}", one, f"{mark}#")
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    if hasattr(command, "commands"):
        return
    arguments = [one for one in shown if not one.opts[0].startswith("-")]
    needed = [one for one in shown if one.required and one not in arguments]
    words = [f"{one.metavar}{'...' if one.nargs == -1 else ''}" for one in arguments]
    words = [word if one.required else f"[{word}]" for one, word in zip(arguments, words, strict=True)]
    words += [f"{one.opts[0]} {one.name.upper()}" for one in needed]
    yield from ("```sh", " ".join(["sckit", name, *words, "[OPTIONS]"]), "```", "")
    if arguments:
        yield from (f"- `{one.metavar}`: {plain(one)[0]}" for one in arguments)
        yield ""
    yield from tables(name, [one for one in shown if one not in arguments and one.name != "help"])
    examples = [part for part in paragraphs if part.startswith("sckit ")]
    yield from ("For example:", "", "```sh", *examples, "```", "")


def tables(name: str, shown: list[Any]) -> Iterator[str]:
    """The options of a command by panel of the help, and those that only a file can set."""
    fields = options(CONFIGS[name]) if name in CONFIGS else {}
    for panel in dict.fromkeys([None, *(one.rich_help_panel for one in shown)]):
        yield from ([f"**{panel}**", ""] if panel else [])
        yield from ("| option | default | meaning |", "|---|---|---|")
        for one in shown:
            if one.rich_help_panel == panel:
                sentence, default = plain(one)
                flags = " ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts])
                other = one.name in fields and f"--{one.name.replace('_', '-')}" != one.opts[0]
                sentence += f" In a file: `{one.name}`." if other else ""
                yield f"| {flags} | {'required' if one.required else default} | {sentence} |"
        yield ""
    alone = [field for field in fields.values() if field.file_only]
    if alone:
        yield from ("**Only in a file**", "", "| option | default | meaning |", "|---|---|---|")
        yield from (
            f"| `{field.name}` | `{field.default}` | {sentences(CONFIGS[name])[field.name]} |" for field in alone
        )
        yield ""


def plain(parameter: Any) -> tuple[str, str]:
    """The sentence of a parameter and its default, from its help."""
    sentence, _, default = parameter.help.replace(r"\[", "[").partition(" [default: ")
    if not default and parameter.default not in (None, False, ...):
        default = f"{parameter.default}]"
    return sentence.replace("|", r"\|"), f"`{default[:-1]}`" if default else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 where commands.md is stale.")
    path = Path(__file__).with_name("commands.md")
    if not parser.parse_args().check:
        path.write_text(page(), encoding="utf-8")
    elif path.read_text(encoding="utf-8") != page():
        sys.exit(f"{path} is stale; run python {Path(__file__).name}.")
