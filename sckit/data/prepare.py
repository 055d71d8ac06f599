"""Writing a training store, or opening one that is there."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sckit.config.prepare import PrepareConfig
from sckit.config.reading import ReadingConfig
from sckit.data.manifest import MANIFEST
from sckit.data.preparation import Preparation
from sckit.data.shards import WORK
from sckit.data.store import Store, open_store, size_bytes
from sckit.errors import ConfigError, DataError, SckitError
from sckit.provenance import peak_rss_bytes


def prepare(
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Store:
    """Write the counts of all inputs (without any: the PBMC sample inside scanpy) into a store at `out` and open it.

    Memory holds the obs tables and one shard. The work goes on in `out`.partial: after a kill the same call reuses the
    finished shards, and `out` appears only when it is whole. `Store.report` has the numbers of the run.
    on_event(kind, facts) hears "progress" events, which count cells.
    Raises `DataError` for bad data, `ConfigError` when `out` exists and `overwrite` is false.
    """
    started_s = time.perf_counter()
    config = config or PrepareConfig()
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    work = Preparation(inputs, out, config, on_event)
    try:
        work.run()
    except SckitError:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise
    except OSError as error:
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}); {remedy}, and run the command again: "
            "`sckit prepare` goes on from what is written."
        ) from error
    work.publish()
    manifest = open_store(out).manifest
    report = {
        "command": "prepare",
        "store": str(out),
        **{name: manifest[name] for name in ("cells", "genes", "nonzeros", "dropped")},
        "bytes": size_bytes(manifest),
        "wall_s": time.perf_counter() - started_s,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    return Store(out, manifest, report)


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
    for place, own in ((f"{out.name}.partial", f"{WORK}/plan.json"), (f"{out.name}.replaced", MANIFEST)):
        place = out.with_name(place)
        if place.exists() and not (place / own).is_file() and not (place.is_dir() and not any(place.iterdir())):
            raise ConfigError(f"{place} is in the way and is no unfinished store; move it, or choose another --out.")
    if not out.exists():
        return
    if not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out or give --overwrite.")
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is not a store, so --overwrite will not replace it; choose another --out.")
