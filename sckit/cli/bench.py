"""`sckit bench`: microbenchmarks and static checks of the hand-written kernels."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.cli.options import Device, Json, finish, say, user_errors
from sckit.cli.progress import Bar
from sckit.errors import ConfigError

bench = typer.Typer(no_args_is_help=True, help="Microbenchmarks and static checks of the hand-written kernels.")

Rounds = Annotated[int, typer.Option(min=1, help="Rounds; every variant is timed once in each.")]
Threads = Annotated[int | None, typer.Option(min=1, help=r"CPU threads. \[default: torch's]")]
Out = Annotated[Path | None, typer.Option(help="Append the rows to this file, a JSON line each.")]


@bench.command()
def kernels(
    *,
    case: Annotated[list[str] | None, typer.Option(help=r"Case by name; several allowed. \[default: all]")] = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: Device = "auto",
    tune: Annotated[bool, typer.Option("--tune", help="On a GPU, try other launches first and use the best.")] = False,
    out: Out = None,
    chart: Annotated[Path | None, typer.Option(help="Write a bar chart, such as kernels.png.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Earlier rows (of --out) to compare with.")] = None,
    as_json: Json = False,
) -> None:
    """Time the attention engine beside what else there is, as a share of the machine's own matrix product.

    For example:

        sckit bench kernels --rounds 5 --chart kernels.png

        sckit bench kernels --case short --out now.jsonl --compare before.jsonl
    """
    with user_errors():
        from rich.console import Console

        from sckit.bench.attention import bench_kernels
        from sckit.bench.cases import CASES, cases_for
        from sckit.bench.report import (
            append_rows,
            check_writable,
            draw_kernels,
            print_comparison,
            print_kernels,
            read_rows,
        )

        names = list(dict.fromkeys(known.name for known in CASES))
        unknown = [name for name in case or [] if name not in names]
        if unknown:
            raise ConfigError(f"--case {unknown[0]} is unknown; choose among {', '.join(names)}.")
        earlier = read_rows(compare) if compare else None
        check_writable(out, chart)
        _set_threads(threads)
        kind = _kind(device)
        with Bar() as bar:

            def on_event(event: str, facts: dict[str, Any]) -> None:
                if event == "progress":
                    bar.timing(facts["what"], facts["done"], facts["of"])

            chosen = cases_for(kind, case or ())
            document = bench_kernels(chosen, rounds=rounds, device=kind, tune=tune, on_event=on_event)
        console = Console(width=None if sys.stdout.isatty() else 160)
        print_kernels(document, console)
        if earlier is not None:
            print_comparison(document["rows"], earlier, console)
        if out:
            append_rows(document, out)
            say(f"wrote {out}")
        if chart:
            draw_kernels(document, chart)
            say(f"wrote {chart}")
        finish(document, as_json=as_json)


@bench.command()
def ops(
    *,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: Device = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time the token states and the masked head, forward and backward, beside plain torch.

    For example:

        sckit bench ops --rounds 7 --threads 1
    """
    with user_errors():
        from sckit.bench.ops import bench_ops
        from sckit.bench.report import check_writable

        check_writable(out)
        _set_threads(threads)
        kind = _kind(device)
        _end(bench_ops(rounds, _show_time, device=kind), out, as_json=as_json)


@bench.command()
def counts(*, rounds: Rounds = 5, threads: Threads = None, out: Out = None, as_json: Json = False) -> None:
    """Time what is done to counts (normalise, hide and pack, split, statistics) beside numpy, scipy and torch.

    For example:

        sckit bench counts --rounds 7
    """
    with user_errors():
        from sckit.bench.counts import bench_counts
        from sckit.bench.report import check_writable

        check_writable(out)
        _set_threads(threads)
        _end(bench_counts(rounds, _show_time), out, as_json=as_json)


@bench.command()
def static(
    *,
    target: Annotated[list[str] | None, typer.Option(help=r"Such as sm_90; several allowed. \[default: all]")] = None,
    processes: Annotated[int, typer.Option(min=1, max=2, help="Compilers at work at once.")] = 2,
    record: Annotated[bool, typer.Option("--record", help="Write this Triton's baseline anew.")] = False,
    as_json: Json = False,
) -> None:
    """Compile every shipped GPU kernel, with no GPU, and judge the machine code; exit with 1 where a rule is broken.

    For example:

        sckit bench static --target sm_90
    """
    with user_errors():
        from rich.console import Console

        from sckit.bench.shipped import TARGETS
        from sckit.bench.static import bench_static, print_static

        document = bench_static(targets=target or TARGETS, processes=processes, record=record)
        print_static(document, Console(width=None if sys.stdout.isatty() else 160))
        finish(document, as_json=as_json)
        if not document["ok"]:
            raise typer.Exit(1)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _kind(device: str) -> str:
    from sckit.device import choose_compute

    kind = choose_compute(device).device.type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: sckit has kernels for cpu and cuda only.")
    return kind


def _show_time(kind: str, row: dict[str, Any]) -> None:
    if kind != "row":
        return
    spread = f"[{row['p20_ms']:.2f}-{row['p80_ms']:.2f}]"
    what = f"{row['op']:<26} {row['case']:<14} {row.get('pass', ''):<8} {row['engine']:<10}"
    typer.echo(f"{what} {row['median_ms']:>10.2f} ms  {spread}")


def _end(document: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Keep the rows where asked, and print the document."""
    from sckit.bench.report import append_rows

    if out:
        append_rows(document, out)
        say(f"wrote {out}")
    finish(document, as_json=as_json)
