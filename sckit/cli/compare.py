"""The command that compares two evaluated runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.cli.options import Runs, command_of, result_console


@command_of()
def compare(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or name, or the folder of an evaluation.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another one on the same data.")],
    *,
    group: Annotated[
        str | None, typer.Option(help="Column of obs for the intervals; by default the run's own.")
    ] = None,
    bootstraps: Annotated[int, typer.Option(min=1, help="Bootstrap draws for each interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    runs: Runs = Path("runs"),
) -> dict[str, Any]:
    """Compare two evaluated runs on the values that both predicted; each needs eval --keep-predictions.

    For example:

        sckit compare runs/squared runs/count
    """
    from sckit.evaluation.kept import compare as paired
    from sckit.report.compare import print_comparison
    from sckit.training.folders import folder_of

    folders = [path if (path := Path(name)).is_dir() else folder_of(name, runs) for name in (run, other)]
    found = paired(folders[0], folders[1], group=group, bootstraps=bootstraps, seed=seed)
    print_comparison(found, (folders[0], folders[1]), result_console())
    return found.document()
