"""Writing a training store, or opening one that is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sckit.config.prepare import PrepareConfig
from sckit.config.reading import ReadingConfig
from sckit.data.census import with_census
from sckit.data.manifest import MANIFEST
from sckit.data.parts import merge_parts, part_of, parts_folder, write_part
from sckit.data.preparation import Preparation
from sckit.data.shards import WORK, remove_records
from sckit.data.store import Store, open_store, size_bytes
from sckit.errors import ConfigError, DataError, PartsError, UnreachableError, WriteError
from sckit.locks import locked
from sckit.provenance import peak_rss_bytes

_TABLES = ("genes.parquet", "obs.parquet", MANIFEST)
_OF_A_STORE = {WORK, "shards", *_TABLES, *(f"{name}.new" for name in _TABLES)}

Listener = Callable[[str, dict[str, Any]], None]
"""What hears of events: their kind, and facts."""


def prepare(
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    merge: bool = False,
    on_event: Listener = lambda _kind, _facts: None,
) -> Store:
    """Write the counts of all inputs (without any: the PBMC sample inside scanpy) into a store at `out` and open it.

    Memory holds the obs tables and one shard. The work goes on in `out`.partial: after a kill the same call reuses the
    finished shards, and `out` appears only when it is whole. `Store.report` has the numbers of the run, and
    `Store.input_rows` the row of each cell in the input.
    merge: join the parts that `prepare_part` has written, instead of reading counts; the store is the same.
    on_event(kind, facts) hears "progress" events, which count cells.
    Raises `DataError` for bad data, `BusyError` when another process writes to `out`, `ConfigError` when `out` exists
    and `overwrite` is false.
    """
    started_s = time.perf_counter()
    out = Path(out)
    with _lock_of(out):
        remove_records(out)
        refuse_existing(out, overwrite=overwrite)
        work = Preparation(*with_census(inputs, config or PrepareConfig()), out, on_event)
        with _kept_when_worth_it(work):
            if merge:
                merge_parts(work)
            else:
                work.run()
            work.publish()
        if merge:
            shutil.rmtree(parts_folder(out))
    manifest = open_store(out).manifest
    report = {
        "command": "prepare",
        "store": str(out),
        **{name: manifest[name] for name in ("cells", "genes", "nonzeros", "dropped")},
        "bytes": size_bytes(manifest),
        "wall_s": time.perf_counter() - started_s,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    return Store(out, manifest, report, work.rows)


def prepare_part(
    inputs: Sequence[Path | str],
    out: Path | str,
    part: str,
    *,
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    on_event: Listener = lambda _kind, _facts: None,
) -> dict[str, Any]:
    """Write one part, such as "2/8", of the store at `out`, which `prepare(..., merge=True)` makes of all parts.

    Return its report. With a number of variable genes a part is called twice: `waits_for` in the report of the first
    call names the parts that have not been called yet, and is empty when the part is finished.
    """
    started_s = time.perf_counter()
    out, one = Path(out), part_of(part)
    refuse_existing(out, overwrite=overwrite)
    with _lock_of(one.folder(out)):
        work = Preparation(*with_census(inputs, config or PrepareConfig()), out, on_event)
        with _kept_when_worth_it(work):
            waits_for = write_part(work, one)
    report = {"command": "prepare", "store": str(out), "part": str(one), "folder": str(one.folder(out))}
    return report | {"waits_for": waits_for, "wall_s": time.perf_counter() - started_s}


@contextmanager
def _lock_of(out: Path) -> Iterator[None]:
    """Hold the lock of a store that is written. Raises WriteError where there is no room for it, or no such place."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(out))
        except OSError as error:
            raise WriteError(out, error) from error
        yield


@contextmanager
def _kept_when_worth_it(work: Preparation) -> Iterator[None]:
    """Keep what a preparation has written where the same call can go on from it: not after bad data."""
    try:
        yield
    except (PartsError, UnreachableError, WriteError):
        raise
    except (ConfigError, DataError):
        shutil.rmtree(work.folder, ignore_errors=True)
        raise
    except OSError as error:
        raise WriteError(work.out, error, "run the command again, which goes on from what is written") from error


def open_or_prepare(
    data: Sequence[Path | str],
    out: Path,
    reading: ReadingConfig,
    on_event: Callable[[str, dict[str, Any]], None],
    *,
    assay: str,
) -> Store:
    """Open a store as it is; from anything else that `prepare` reads, or with options of reading, write one at `out`.

    assay: what is kept where `reading` does not say. What is left out is told as "note" events.
    """
    if len(data) == 1 and reading == ReadingConfig() and (Path(data[0]) / MANIFEST).is_file():
        store = open_store(data[0])
        for note in store.manifest.get("notes", []):
            on_event("note", {"text": note})
        return store
    config = PrepareConfig(**asdict(replace(reading, assay=reading.assay or assay)))
    if (out / MANIFEST).is_file():  # of an earlier process, which was killed after it had written the store
        with _lock_of(out):
            remove_records(out)
        store = open_store(out)
    else:
        store = prepare(data, out, config=config, on_event=on_event)
    for reason, number in store.manifest["dropped"].items():
        on_event("note", {"text": f"left out: {number:,} {reason}"})
    for source in store.manifest["sources"]:
        if source["genes_summed"]:
            text = f"{source['name']}: {source['genes_summed']:,} genes have the name of another and were added to it"
            on_event("note", {"text": text})
    return store


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigError` where a store cannot be written at `out`: something is there, or in the way next to it."""
    for place in (out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.replaced")):
        # A kill while it is made or removed leaves any part of it.
        if place.exists() and not (place.is_dir() and {each.name for each in place.iterdir()} <= _OF_A_STORE):
            raise ConfigError(f"{place} is in the way and is no unfinished store; move it, or choose another --out.")
    if not out.exists():
        return
    if not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out or give --overwrite.")
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is not a store, so --overwrite will not replace it; choose another --out.")
