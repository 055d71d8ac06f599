"""`sckit prepare`: a store, a part of one, or all its parts joined."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sckit.cli.options import ConfigFile, command_of, goes_on, print_pairs, say
from sckit.cli.progress import Bar
from sckit.config import PrepareConfig, read_toml
from sckit.errors import ConfigError


@command_of(PrepareConfig)
def prepare(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="10x .h5, mtx, .h5ad, .zarr, SOMA or store; by default a small sample."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the store to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    part: Annotated[str | None, typer.Option(metavar="I/N", help="Write only part I of N, next to the store.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the parts that --part has written.")] = False,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Let the workers of this Dask cluster prepare the parts.")
    ] = None,
    given: dict[str, Any],
    config: ConfigFile = None,
) -> dict[str, Any]:
    """Read counts into a training store, with checksums, written whole or not at all.

    For example:

        sckit prepare filtered_feature_bc_matrix.h5 --out pbmc.sckit

        sckit prepare library1/ library2.h5ad --out both.sckit --genes 4000 --min-genes 200

        sckit prepare atlas.h5ad --out atlas.sckit --part 1/2

        sckit prepare --census 2025-11-08 --obs-filter "tissue_general == 'blood'" --out blood.sckit
    """
    if sum(map(bool, (part, merge, dask))) > 1:
        raise ConfigError(f"{out}: --part writes one part, --merge joins all, --dask does both; give one of them.")
    settings = read_toml(PrepareConfig, config, **given)
    from sckit.data.prepare import prepare as write_store
    from sckit.data.prepare import prepare_part
    from sckit.data.store import describe

    with goes_on("the same command goes on from what is written"), Bar() as bar:
        common: dict[str, Any] = {"config": settings, "overwrite": overwrite, "on_event": bar.on_event}
        if part:
            report = prepare_part(inputs or [], out, part, **common)
            say(_part_line(report))
            return report
        if dask:
            from sckit.data.cluster import prepare_on_dask

            store = prepare_on_dask(inputs or [], out, dask, **common)
        else:
            store = write_store(inputs or [], out, merge=merge, **common)
    print_pairs(describe(store))
    return store.report


def _part_line(report: dict[str, Any]) -> str:
    """Return what to do after one part was written."""
    part, waiting = report["part"], report["waits_for"]
    if waiting:
        shown = ", ".join(map(str, waiting[:5])) + (", ..." if waiting[5:] else "")
        return (
            f"part {part} has summed up its genes; parts {shown} have not. When all have, give this command again for "
            "every part: --genes chooses from the counts of all of them"
        )
    return f"part {part} is in {report['folder']}; when all are there, give the same command with --merge"
