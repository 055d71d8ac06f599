"""Preparing the parts of a store on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sckit.config.prepare import PrepareConfig
from sckit.data.census import with_census
from sckit.data.parts import parts_at
from sckit.data.preparation import Preparation
from sckit.data.prepare import prepare, prepare_part, refuse_existing
from sckit.data.readers.open import absolute
from sckit.data.store import Store
from sckit.errors import ConfigError, DataError

_WAIT_S = 30


def prepare_on_dask(
    inputs: Sequence[Path | str],
    out: Path | str,
    address: str,
    *,
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Store:
    """Prepare as many parts as the cluster at `address` has workers, and join them; the store is that of `prepare`.

    All workers have to see the inputs and `out` under the same absolute paths. Parts that an earlier call has left are
    used. Raises `ConfigError` where no cluster answers, and what `prepare` raises.
    """
    out, config = Path(out), config or PrepareConfig()
    refuse_existing(out, overwrite=overwrite)
    given = [absolute(one) for one in inputs]
    listed = config.gene_list
    own = replace(config, genes=str(listed.absolute())) if listed else config
    with _client(address) as client:
        n_workers = len(client.ncores())
        if not n_workers:
            raise ConfigError(f"--dask {address}: the cluster has no workers; start some with `dask worker`.")
        n_parts = _number_of_parts(inputs, out, config, n_workers)
        for _round in range(2 if isinstance(config.genes, int) else 1):  # the sums of all parts, then their counts
            _prepare_all(client, given, out.absolute(), n_parts, own, overwrite=overwrite, on_event=on_event)
    return prepare(inputs, out, config=config, overwrite=overwrite, merge=True, on_event=on_event)


def _client(address: str) -> Any:
    try:
        from distributed import Client  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"--dask {address} needs Dask, which `pip install 'sckit[dask]'` brings.") from error
    try:
        return Client(address, timeout=_WAIT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--dask {address}: no Dask scheduler answers there; give the address that `dask scheduler` prints, "
            "such as tcp://127.0.0.1:8786."
        ) from error


def _number_of_parts(inputs: Sequence[Path | str], out: Path, config: PrepareConfig, n_workers: int) -> int:
    """Return how many parts there are already, or else one for each worker, if there are cells enough."""
    begun = parts_at(out)
    if begun:
        return begun[0].of
    sources, resolved = with_census(inputs, config)
    return min(n_workers, len(Preparation(sources, resolved, out, lambda _kind, _facts: None).segments))


def _prepare_all(
    client: Any,
    inputs: Sequence[str],
    out: Path,
    n_parts: int,
    config: PrepareConfig,
    *,
    overwrite: bool,
    on_event: Callable[[str, dict[str, Any]], None],
) -> None:
    from distributed import KilledWorker, as_completed  # pyright: ignore[reportMissingImports]

    parts = [f"{number}/{n_parts}" for number in range(1, n_parts + 1)]
    tasks = [
        client.submit(prepare_part, inputs, out, part, config=config, overwrite=overwrite, pure=False) for part in parts
    ]
    try:
        for done, task in enumerate(as_completed(tasks, loop=client.loop), 1):
            task.result()
            on_event("progress", {"done": done, "of": n_parts, "what": "parts"})
    except KilledWorker as error:
        raise DataError(
            f"Several workers of the Dask cluster ended while they prepared one of {n_parts} parts; give them more "
            "memory, and run the command again: it goes on from what is written."
        ) from error
    finally:
        client.cancel(tasks)
