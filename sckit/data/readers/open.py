"""Opening an input: `open_source` looks at what a path holds, not at its suffix, and picks the reader."""

from __future__ import annotations

from pathlib import Path

import h5py

from sckit.data.readers.h5ad import H5ad, Sample, sample_path
from sckit.data.readers.hdf5 import readable
from sckit.data.readers.soma import Soma
from sckit.data.readers.source import Source
from sckit.data.readers.tenx import TenxH5, TenxMtx, genome_groups
from sckit.errors import ConfigError, DataError

_ACCEPTED = "an .h5ad, a Cell Ranger .h5, a folder with matrix.mtx or a TileDB-SOMA experiment"


def open_source(path: Path | str, *, layer: str | None = None, raw: bool = False, genome: str | None = None) -> Source:
    """Open one input: an .h5ad, a Cell Ranger .h5 (any version), an mtx folder or a local TileDB-SOMA experiment.

    `layer` names the matrix to read (h5ad, SOMA), `raw` takes the raw matrix of an h5ad, `genome` chooses among the
    genomes of a Cell Ranger output. Genes and obs are read at once, counts by `Source.blocks`. Raises `DataError`
    when the path holds none of these or is broken, `ConfigError` for an option its reader does not have.
    """
    path = Path(path)
    kind = _kind(path)
    if kind in ("tenx h5", "mtx") and (layer is not None or raw):
        raise ConfigError(f"{path} is a Cell Ranger output with one matrix; leave out --layer and --raw.")
    if kind in ("h5ad", "soma") and genome is not None:
        raise ConfigError(f"{path} is not a Cell Ranger output; leave out --genome.")
    if kind == "soma" and raw:
        raise ConfigError(f"{path} is a SOMA experiment; name its X layer with --layer instead of --raw.")
    if kind == "tenx h5":
        return TenxH5(path, genome=genome)
    if kind == "mtx":
        return TenxMtx(path.parent if path.is_file() else path, genome=genome)
    if kind == "soma":
        return Soma(path, layer=layer)
    return H5ad(path, layer=layer, raw=raw)


def open_sample() -> Source:
    """Open the 700-cell PBMC sample that ships inside scanpy; nothing is downloaded.

    Its `totals` are over all genes of the original data, of which the file keeps 765.
    """
    return Sample(sample_path())


def _kind(path: Path) -> str:
    """Find out which reader a path needs: "h5ad", "tenx h5", "mtx" or "soma"."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give {_ACCEPTED}.")
    if path.is_dir():
        if (path / "__group").is_dir() or (path / "__tiledb_group.tdb").is_file():
            return "soma"
        if any((path / name).exists() for name in (".zgroup", "zarr.json")):
            raise DataError(f"{path} is a zarr store, which is not read; write it as .h5ad.")
        if (path / "manifest.json").is_file():
            raise DataError(f"{path} is a prepared store already; give {_ACCEPTED}.")
        return "mtx"
    if path.name.endswith(("matrix.mtx", "matrix.mtx.gz")):
        return "mtx"
    with readable(path):
        if not h5py.is_hdf5(path):
            with path.open("rb") as file:
                head = file.read(16)
            raise DataError(f"{path} is not an HDF5 file (it begins with {head!r}); give {_ACCEPTED}.")
        with h5py.File(path) as file:
            return _kind_of_h5(file, path)


def _kind_of_h5(file: h5py.File, path: Path) -> str:
    if "obs" in file and "var" in file:
        return "h5ad"
    matrix = file.get("matrix")
    if genome_groups(file) or (isinstance(matrix, h5py.Group) and "barcodes" in matrix):
        return "tenx h5"
    if "mod" in file:
        raise DataError(f"{path} is a MuData file; write its RNA part as .h5ad.")
    raise DataError(
        f"{path} is an HDF5 file without counts (it holds {', '.join(file) or 'nothing'}); give {_ACCEPTED}."
    )
