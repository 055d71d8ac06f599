"""All formats by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from folder_formats import RunFolder, Store
from hdf5_formats import H5ad, Tenx1, Tenx3, Zarr
from list_formats import Panel, Targets
from soma_format import Soma
from text_formats import Mtx


def _without_base(kind: Callable[[], Any]) -> Callable[[Path, int], Any]:
    return lambda _base, _seed: kind()


FORMATS: dict[str, Callable[[Path, int], Any]] = {
    **{kind.name: _without_base(kind) for kind in (Tenx3, Tenx1, Mtx, H5ad, Zarr, Soma, Panel, Targets)},
    **{kind.name: kind for kind in (Store, RunFolder)},
}
"""A format is made from (folder for what is written once, seed) and has make, ours, theirs and fault."""
