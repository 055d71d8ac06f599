"""Opening an input: `open_sources` looks at what a path holds, not at its suffix, and picks the reader."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import h5py

from sckit.config.reading import ReadingConfig
from sckit.data.manifest import MANIFEST
from sckit.data.readers.h5ad import H5ad, sample_path
from sckit.data.readers.hdf5 import readable
from sckit.data.readers.log1p import total_counts
from sckit.data.readers.mtx import open_mtx
from sckit.data.readers.prepared import Prepared
from sckit.data.readers.remote import Address, located
from sckit.data.readers.soma import Soma
from sckit.data.readers.source import Source
from sckit.data.readers.tenx import TenxH5, genome_groups
from sckit.errors import ConfigError, DataError

_ACCEPTED = "an .h5ad or .zarr, a Cell Ranger .h5, a folder with matrix.mtx, a TileDB-SOMA experiment or a store"
_READ_BY = {
    "h5ad": ("layer", "raw", "genome"),
    "tenx h5": ("genome",),
    "mtx": ("genome",),
    "soma": ("layer", "measurement", "genome"),
    "store": (),
}
_KINDS = {
    "h5ad": "AnnData",
    "tenx h5": "a Cell Ranger output",
    "mtx": "a folder of text files",
    "soma": "a SOMA experiment",
    "store": "a prepared store",
}
_REFUSED = {
    ".loom": "a loom file; write it as .h5ad with anndata.io.read_loom(...).write_h5ad(...), which needs loompy",
    ".csv": "a text table; read it with anndata.io.read_csv, transpose it if cells are columns, and write it as .h5ad",
    ".tsv": "a text table; read it with anndata.io.read_csv(..., delimiter='\\t') and write it as .h5ad",
    ".txt": "a text table; read it with anndata.io.read_text and write it as .h5ad",
    ".h5mu": "a MuData file; write its RNA part with mudata.read(...)['rna'].write_h5ad(...)",
    ".rds": "an R object; write it from R with zellkonverter::writeH5AD or sceasy::convertFormat",
    ".rdata": "a file of R objects; write them from R with zellkonverter::writeH5AD",
    ".zip": "a zip archive; unpack it and give what is in it",
    ".tar": "a tar archive; unpack it and give what is in it",
    ".tgz": "a tar archive; unpack it and give what is in it",
}
_INSIDE = ("", "outs", "count", "outs/count", "Solo.out/Gene", "Gene", "Solo.out/GeneFull", "GeneFull")
_MATRICES = (
    *("X_feature_bc_matrix.h5", "X_feature_bc_matrix", "sample_X_feature_bc_matrix.h5", "sample_X_feature_bc_matrix"),
    *("X_gene_bc_matrices_h5.h5", "X_gene_bc_matrices", "X"),
)
"""Where below a folder Cell Ranger and STARsolo put their counts, X being filtered or raw."""


def open_sources(given: Path | str, options: ReadingConfig | None = None) -> list[Source]:
    """Open one input: an .h5ad or .zarr, a Cell Ranger .h5, an mtx folder, a SOMA experiment or a store.

    FILE::raw or FILE::layer=counts,genome=G sets options of this input alone. A folder with several matrices gives one
    source each; one with raw and filtered counts gives the filtered ones. Genes and obs are read at once, counts by
    `Source.blocks`. Raises `DataError` when the path holds none of these or is broken, `ConfigError` for an option
    that its reader does not have.
    """
    path, options = parse_input(given, options or ReadingConfig())
    path, notes = (path, []) if isinstance(path, Address) else _inside(path)
    kind = _kind(path)
    set_here = {name: getattr(options, name) for name in ("layer", "raw", "genome", "measurement")}
    strange = [name for name, value in set_here.items() if value and name not in _READ_BY[kind]]
    if strange:
        without = f"{path}::{strange[0]}={'false' if strange[0] == 'raw' else ''}"
        raise ConfigError(
            f"{path} is {_KINDS[kind]}, which does not have --{strange[0]}; leave it out, or, if other inputs need it, "
            f"give this one as {without}."
        )
    chosen = {name: set_here[name] for name in _READ_BY[kind]}
    if kind == "mtx":
        sources: list[Source] = [*open_mtx(path, **chosen)]
    elif kind == "soma":
        sources = [Soma(path, options)]
    else:
        reader = {"h5ad": H5ad, "tenx h5": TenxH5, "store": Prepared}[kind]
        sources = [reader(path, **chosen)]
    if not sources:
        below = _readable_below(path)
        advice = f"name those in it that are wanted ({', '.join(below)})" if below else f"give {_ACCEPTED}"
        raise DataError(f"{path} is a folder without a matrix.mtx; {advice}.")
    for source in sources:
        source.notes = [*notes, *source.notes]
        if options.totals is not None:
            source.totals = total_counts(source.obs, options.totals, path)
            source.totals_column = options.totals
        source.from_log1p = options.from_log1p
    return sources


def open_sample() -> Source:
    """Open the 700-cell PBMC sample that ships inside scanpy; nothing is downloaded.

    The file keeps log1p of counts per 10,000 in 765 genes, and each cell's total over all genes of the original data.
    """
    return open_sources(sample_path(), ReadingConfig(raw=True, totals="n_counts", from_log1p=True))[0]


def parse_input(given: Path | str, options: ReadingConfig) -> tuple[Path, ReadingConfig]:
    """Split "FILE::layer=counts,genome=G" into the path and the options with these put in; "raw" alone means true."""
    ends = [at for at in range(len(str(given))) if str(given).startswith("::", at)]
    if not ends or Path(given).exists():
        return located(given), options
    end = next((at for at in reversed(ends) if located(str(given)[:at]).exists()), ends[0])  # a path may hold :: too
    text, settings = str(given)[:end], str(given)[end + 2 :]
    own: dict[str, object] = {}
    for setting in settings.split(","):
        name, equals, value = setting.partition("=")
        if name in ("raw", "from-log1p") and value in ("", "true", "false"):
            own[name.replace("-", "_")] = value != "false"
        elif name in ("layer", "genome", "measurement", "totals") and equals:
            own[name] = value or None
        else:
            raise ConfigError(
                f"{given} sets {setting!r}; behind :: stand raw or raw=false, from-log1p, layer=NAME, genome=NAME, "
                "measurement=NAME or totals=COLUMN, with commas between them."
            )
    if {"raw", "layer"} & own.keys():
        own = {"raw": False, "layer": None} | own
    return located(text), replace(options, **own)


def absolute(given: Path | str) -> str:
    """Return an input so that it means the same in another working directory, with the options behind it."""
    head, mark, settings = str(given).rpartition("::")
    if not mark or Path(given).exists():
        head, mark, settings = str(given), "", ""
    path = located(head)
    return str(path if isinstance(path, Address) else path.absolute()) + mark + settings


def _inside(path: Path) -> tuple[Path, list[str]]:
    """Go from the folder of a run of Cell Ranger or STARsolo to its counts, if possible filtered ones, and say so."""
    if path.is_dir() and _kind_of_folder(path) == "mtx" and not any(path.glob("*.mtx*")):
        places = [path / inside / name for inside in _INSIDE for name in _MATRICES]
        filtered, raw = (
            [found for found in (place.with_name(place.name.replace("X", kind)) for place in places) if found.exists()]
            for kind in ("filtered", "raw")
        )
        if filtered or raw:
            found = (filtered or raw)[0]
            instead = f", not {raw[0].relative_to(path)}" if filtered and raw else ""
            return found, [f"{path}: reading {found.relative_to(path)}{instead}"]
    return path, []


def _readable_below(folder: Path) -> list[str]:
    """Name what in a folder looks like an input, the first five."""
    found = (
        one.name
        for one in sorted(folder.iterdir())
        if one.suffix in (".h5ad", ".h5", ".zarr", ".sckit")
        or (one.is_dir() and (_inside(one)[1] or any(one.glob("*.mtx*")) or _kind_of_folder(one) != "mtx"))
    )
    return list(islice(found, 5))


def _kind_of_folder(path: Path) -> str:
    if (path / "__group").is_dir() or (path / "__tiledb_group.tdb").is_file():
        return "soma"
    if any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zattrs")):
        return "h5ad"
    return "store" if (path / MANIFEST).is_file() else "mtx"


def _kind(path: Path) -> str:
    """Find out which reader a path needs."""
    if isinstance(path, Address):
        return "soma"
    if not path.exists():
        close = get_close_matches(path.name, [one.name for one in path.absolute().parent.glob("*")], 1)
        hint = f"did you mean {path.with_name(close[0])}?" if close else f"give {_ACCEPTED}."
        raise DataError(f"{path} does not exist; {hint}")
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device, in which a reader cannot go back; write it to a file first.")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".mtx"):
        return "mtx"
    suffix = next((suffix for suffix in _REFUSED if name.endswith(suffix)), None)
    if suffix:
        raise DataError(f"{path} is {_REFUSED[suffix]}.")
    with readable(path):
        if not h5py.is_hdf5(path):
            with path.open("rb") as file:
                head = file.read(16)
            if head.startswith(b"\x1f\x8b"):
                raise DataError(f"{path} is gzipped; unpack it with gunzip and give what is in it.")
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
        raise DataError(f"{path} is {_REFUSED['.h5mu']}.")
    if "row_attrs" in file and "col_attrs" in file:
        raise DataError(f"{path} is {_REFUSED['.loom']}.")
    raise DataError(
        f"{path} is an HDF5 file without counts (it holds {', '.join(file) or 'nothing'}); give {_ACCEPTED}."
    )


def is_anndata(path: Path) -> bool:
    """Return whether a path is an .h5ad or .zarr."""
    try:
        return _kind(path) == "h5ad"
    except DataError:
        return False


def read_anndata(path: Path) -> Any:
    """Read an .h5ad or .zarr with all that it holds, as AnnData; None for an input of another kind."""
    import anndata

    if not is_anndata(path):
        return None
    with readable(path):
        return anndata.read_h5ad(path) if path.is_file() else anndata.read_zarr(path)
