"""`sckit bench`: microbenchmarks and static checks of the hand-written kernels."""

from typing import Annotated, Any

import typer

from sckit.cli_options import Device, Json, finish, user_errors

bench = typer.Typer(no_args_is_help=True, help="Microbenchmarks of the hand-written kernels.")


@bench.command()
def kernels(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every variant is timed once in each.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: torch's]")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the attention engine beside what torch offers, as a share of the machine's own matrix product.

    For example:

        sckit bench kernels --rounds 5
    """
    with user_errors():
        import torch

        from sckit.bench import bench_kernels
        from sckit.device import choose_compute

        if threads is not None:
            torch.set_num_threads(threads)

        def tell(row: dict[str, Any]) -> None:
            case = f"{row['case']:<17} H{row['heads']} D{row['head_dim']:<4} {row['pass']:<8} {row['engine']:<14}"
            speed = f"{row['gflops']:>8.1f} GFLOP/s {row['share_of_peak']:>6.2f} of peak {row['median_ms']:>9.1f} ms"
            typer.echo(case + speed)

        document = bench_kernels(rounds=rounds, device=choose_compute(device).device.type, tell=tell)
        finish(document, as_json=as_json)
