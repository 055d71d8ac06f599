"""Simulating a data set into a file or a store, with the truth next to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sckit.config import PrepareConfig, SimulateConfig
from sckit.data.prepare import prepare, refuse_existing
from sckit.data.simulate.files import write_h5ad, write_tenx
from sckit.data.simulate.truth import Truth, draw_truth, truth_path
from sckit.data.views import Csr
from sckit.errors import ConfigError, WriteError
from sckit.files import replacing

Listener = Callable[[str, dict[str, Any]], None]
_WRITERS = {".h5ad": write_h5ad, ".h5": write_tenx}


@dataclass(frozen=True)
class Simulated:
    """What a simulation wrote, and the numbers of the counts that were drawn."""

    path: Path
    truth: Path
    cells: int
    genes: int
    median_counts: float
    """Median of the total counts per cell."""
    median_genes: float
    """Median number of detected genes per cell."""
    share_of_ones: float
    """Share of the detected entries whose count is one."""
    without_counts: int
    """Cells in which nothing was drawn; a store leaves them out."""


def simulate(
    config: SimulateConfig,
    out: Path | str,
    *,
    overwrite: bool = False,
    on_event: Listener = lambda _kind, _facts: None,
) -> Path:
    """Simulate counts into `out`, an .h5ad, a 10x .h5 or a store (.sckit), and the truth into NAME.truth.h5 next to it.

    Return `out`. The same config gives the same counts. on_event(kind, facts) hears "progress" events.
    Raises `ConfigError` for another suffix, or where a file exists and `overwrite` is false.
    """
    return write_simulation(config, out, overwrite=overwrite, on_event=on_event).path


def write_simulation(
    config: SimulateConfig,
    out: Path | str,
    *,
    overwrite: bool = False,
    on_event: Listener = lambda _kind, _facts: None,
) -> Simulated:
    """Do what `simulate` does, and return the numbers of what was drawn too."""
    out = Path(out)
    _refuse(out, overwrite=overwrite)
    truth, drawn = draw_truth(config), _Drawn()
    blocks = drawn.follow(truth, on_event)
    try:
        with replacing(truth_path(out)) as unfinished:
            truth.save(unfinished)
            if out.suffix == ".sckit":
                _write_store(out, truth, blocks, overwrite=overwrite, on_event=on_event)
            else:
                with replacing(out) as counts:
                    _WRITERS[out.suffix](counts, truth, blocks)
    except OSError as error:
        raise WriteError(out, error) from error
    return drawn.numbers(truth, out)


@dataclass
class _Drawn:
    """Numbers of the counts that went by."""

    totals: list[np.ndarray] = field(default_factory=list)  # of blocks of cells
    lengths: list[np.ndarray] = field(default_factory=list)
    cells: int = 0
    ones: int = 0

    def follow(self, truth: Truth, on_event: Listener) -> Iterator[Csr]:
        for indptr, genes, counts in truth.blocks():
            sums = np.concatenate([[0], np.cumsum(counts)])
            self.totals.append(np.diff(sums[indptr]))
            self.lengths.append(np.diff(indptr).astype(np.int32))
            self.cells += len(indptr) - 1
            self.ones += int((counts == 1).sum())
            on_event("progress", {"done": self.cells, "of": truth.config.cells, "what": "simulating"})
            yield indptr, genes, counts

    def numbers(self, truth: Truth, out: Path) -> Simulated:
        size = truth.config.cells, truth.config.genes
        totals, lengths = np.concatenate(self.totals), np.concatenate(self.lengths)
        medians = float(np.median(totals)), float(np.median(lengths))
        ones = self.ones / max(int(lengths.sum(dtype=np.int64)), 1)
        return Simulated(out, truth_path(out), *size, *medians, ones, int((lengths == 0).sum()))


def _write_store(out: Path, truth: Truth, blocks: Iterator[Csr], *, overwrite: bool, on_event: Listener) -> None:
    """Write an h5ad into a folder next to `out`, and prepare it like any other input."""
    folder = out.with_name(f"{out.name}.simulated")  # always the same, because the store keeps the name
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier process that was killed
    folder.mkdir()
    try:
        counts = folder / f"{out.stem}.h5ad"
        write_h5ad(counts, truth, blocks)
        prepare([counts], out, config=PrepareConfig(assay="any"), overwrite=overwrite, on_event=on_event)
    finally:
        shutil.rmtree(folder)


def _refuse(out: Path, *, overwrite: bool) -> None:
    if out.suffix not in (*_WRITERS, ".sckit"):
        raise ConfigError(f"--out {out} must end in .h5ad, .h5 (as Cell Ranger writes it) or .sckit (a store).")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a folder; make it, or choose another --out.")
    if out.suffix == ".sckit":
        refuse_existing(out, overwrite=overwrite)
    others = [other for suffix in (*_WRITERS, ".sckit") if (other := out.with_suffix(suffix)) != out and other.exists()]
    if overwrite and others and truth_path(out).exists():
        raise ConfigError(f"{truth_path(out)} is the truth of {others[0]} too; remove that, or choose another --out.")
    for path in (*([out] if out.suffix in _WRITERS else []), truth_path(out)):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, and a file is to be written there; choose another --out.")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists already; choose another --out or give --overwrite.")
