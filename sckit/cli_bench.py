"""`sckit bench`: microbenchmarks and static checks of the hand-written kernels."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sckit.cli_options import Device, Json, finish, say, user_errors
from sckit.errors import ConfigError
from sckit.progress import Bar

bench = typer.Typer(no_args_is_help=True, help="Microbenchmarks of the hand-written kernels.")


@bench.command()
def kernels(
    *,
    case: Annotated[list[str] | None, typer.Option(help="Case by name; several allowed. [default: all]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every variant is timed once in each.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: torch's]")] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Append the rows to this file, a JSON line each.")] = None,
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
        import torch
        from rich.console import Console

        from sckit.bench import bench_kernels
        from sckit.bench_cases import CASES, cases_for
        from sckit.bench_report import append_rows, draw_kernels, print_comparison, print_kernels, read_rows
        from sckit.device import choose_compute

        names = list(dict.fromkeys(known.name for known in CASES))
        unknown = [name for name in case or [] if name not in names]
        if unknown:
            raise ConfigError(f"--case {unknown[0]} is unknown; choose among {', '.join(names)}.")
        earlier = read_rows(compare) if compare else None
        if threads is not None:
            torch.set_num_threads(threads)
        kind = choose_compute(device).device.type
        with Bar() as bar:
            document = bench_kernels(cases_for(kind, case or ()), rounds=rounds, device=kind, tell=bar.timing)
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
def static(
    *,
    target: Annotated[list[str] | None, typer.Option(help="Such as sm_90; several allowed. [default: all]")] = None,
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

        from sckit.bench_static import bench_static, print_static
        from sckit.kernels.shipped import TARGETS

        document = bench_static(targets=target or TARGETS, processes=processes, record=record)
        print_static(document, Console(width=None if sys.stdout.isatty() else 160))
        finish(document, as_json=as_json)
        if not document["ok"]:
            raise typer.Exit(1)
