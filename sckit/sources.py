"""The door to all inputs: `open_source` looks at what a path holds and picks the reader."""

from __future__ import annotations

from pathlib import Path

from sckit.sources_block import CountsBlock, GeneTable, Source
from sckit.sources_h5ad import H5ad, Sample, sample_path

__all__ = ["CountsBlock", "GeneTable", "Source", "open_sample", "open_source"]


def open_source(path: Path | str, *, layer: str | None = None, raw: bool = False, genome: str | None = None) -> Source:
    """Open."""
    return H5ad(Path(path), layer=layer, raw=raw)


def open_sample() -> Source:
    """Open the 700-cell PBMC sample that ships inside scanpy; nothing is downloaded."""
    return Sample(sample_path())
