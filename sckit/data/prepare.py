"""The training store: `prepare` writes one from counts, shard by shard; `open_store` reads it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from sckit.config.prepare import PrepareConfig
from sckit.data.manifest import MANIFEST
from sckit.data.preparation import Preparation, Progress
from sckit.data.store import Store, describe, open_store, size_bytes
from sckit.errors import ConfigError, DataError, SckitError
from sckit.provenance import peak_rss_bytes

__all__ = [
    "PrepareConfig",
    "Progress",
    "Store",
    "describe",
    "open_or_prepare",
    "open_store",
    "prepare",
]


def prepare(
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    config: PrepareConfig | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Store:
    """Write the counts of all inputs (without any: the PBMC sample inside scanpy) into a store at `out` and open it.

    Memory holds the obs tables and one shard. The work goes on in `out`.partial: after a kill the same call reuses the
    finished shards, and `out` appears only when it is whole. `Store.report` has the numbers of the run.
    Raises `DataError` for bad data, `ConfigError` when `out` exists and `overwrite` is false.
    """
    started_s = time.perf_counter()
    config = config or PrepareConfig()
    out = Path(out)
    _refuse_existing(out, overwrite=overwrite)
    work = Preparation(inputs, out, config, progress)
    try:
        work.run()
    except SckitError:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}); make room, or choose another --out, and run the "
            f"command again, which continues from {work.folder}."
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


def open_or_prepare(data: Path | str, out: Path | str, *, assay: str = "10x") -> Store:
    """Open `data` where it is a store; else prepare a store at `out` from it, whatever `prepare` reads."""
    if (Path(data) / MANIFEST).is_file():
        return open_store(data)
    return prepare([data], out, config=PrepareConfig(assay=assay))


def _refuse_existing(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out or give --overwrite.")
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is not a store, so --overwrite will not replace it; choose another --out.")
