"""An opened store: cells as CSR from memory maps, tables of cells and genes, verification."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sckit.data.cell_table import CellTable
from sckit.data.genes import vocabulary_hash
from sckit.data.labels import Labels
from sckit.data.layouts import VERSIONS
from sckit.data.manifest import (
    FORMAT,
    MANIFEST,
    broken_files,
    gene_dtype,
    is_manifest,
    layout_of,
)
from sckit.data.stored_shards import stored_shards
from sckit.data.views import Csr, indptr_of
from sckit.errors import DataError

if TYPE_CHECKING:
    from sckit.kernels.located_numba import Located


class Store:
    """Counts of C cells in G genes on disk. Opening reads the manifest only; the rest is read when it is used."""

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        report: dict[str, Any] | None = None,
        input_rows: np.ndarray | None = None,
    ) -> None:
        """Use `open_store`; the `prepare` that has just written the store gives its numbers, and rows of the inputs."""
        self.path = path
        self.manifest = manifest
        self.report = report or {}
        self.input_rows = input_rows
        """[C] int64: row of each cell among those of the inputs, rising; None where the store was opened."""
        self.shards = stored_shards(path, manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path alone, so that a worker process opens the files itself."""
        return open_store, (self.path,)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.manifest["cells"]

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary."""
        return self.manifest["genes"]

    @property
    def nonzeros(self) -> int:
        """Number of detected entries (cell, gene)."""
        return self.manifest["nonzeros"]

    @cached_property
    def genes(self) -> pd.DataFrame:
        """G rows: id ("" where unknown), symbol, n_cells (cells of the store in which it is detected)."""
        try:
            table = pd.read_parquet(self.path / "genes.parquet")
        except Exception as error:  # of pandas and pyarrow, each with kinds of its own
            raise DataError(
                f"{self.path / 'genes.parquet'} cannot be read ({error}); prepare the store again."
            ) from error
        kinds = [pd.api.types.infer_dtype(table[name], skipna=False) for name in ("id", "symbol") if name in table]
        if len(table) != self.n_genes or kinds != ["string", "string"]:
            raise DataError(f"{self.path / 'genes.parquet'} is not the table of this store; prepare it again.")
        return table

    @cached_property
    def cells(self) -> CellTable:
        """The table of cells, of which single columns can be read."""
        return CellTable(self.path / "obs.parquet", self.n_cells)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """C rows: cell, source, total_counts and n_genes over all genes of the source, then the inputs' own columns.

        All of it lies in memory then; `labels` reads a single column in 4 bytes for each cell.
        """
        return self.cells.frame()

    def labels(self, column: str) -> Labels:
        """Return a column of obs as labels of the cells. Raises `ConfigError` where it is not there."""
        return self.cells.labels(column)

    @cached_property
    def _total_counts(self) -> np.ndarray:
        return self.cells.numbers("total_counts")

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Return the total counts [C] int64 of the cells over all gene-expression features of their source."""
        return self._total_counts[cells].astype(np.int64)

    def rows(self, cells: np.ndarray) -> Csr:
        """Gather cells in the order given, repeats allowed, as CSR.

        genes: uint16, or int32 in a store of more than 65,535 genes, rising within a cell; counts: uint32, at least 1.
        Raises `IndexError` for a cell that the store does not have.
        """
        from sckit.kernels.located_numba import copy_cells  # slow to load

        indptr = indptr_of(self.shards.lengths(cells))
        genes, counts = np.empty(indptr[-1], gene_dtype(self.n_genes)), np.empty(indptr[-1], np.uint32)
        for places, found in self.shards.located(cells):
            copy_cells(found.places, indptr[places], genes, counts)
        return indptr, genes, counts

    def located(self, cells: np.ndarray) -> Located:
        """Return where the entries of cells lie, in the order given, for kernels that need no copy of them.

        Memory holds the chunks of all of them. Raises as `rows`.
        """
        from sckit.kernels.located_numba import Located  # slow to load

        places, held = np.empty((len(cells), 5), np.int64), []
        for positions, found in self.shards.located(cells):
            places[positions] = found.places
            held.append(found.held)
        return Located(places, held)

    def block(self, start: int, stop: int) -> Csr:
        """Read cells start..stop in store order.

        Inside one shard, counts are in the type they are stored in (uint8, uint16 or uint32), and in the mapped layout
        genes and counts are views of the memory map; over several shards they are copies, counts as uint32.
        """
        if not 0 <= start <= stop <= self.n_cells:
            raise IndexError(f"cells {start}..{stop} are not within 0..{self.n_cells}")
        if start == stop:
            return self.rows(np.arange(0))
        (number, last_number), (first, last) = (x.tolist() for x in self.shards.find(np.array([start, stop - 1])))
        if number != last_number:
            return self.rows(np.arange(start, stop))
        with self.shards.opened(number) as shard:
            genes, counts = shard.entries(first, last + 1)
        indptr = shard.indptr[first : last + 2]
        return indptr - indptr[0], genes, counts

    def chunks(self, cells: np.ndarray) -> np.ndarray:
        """Return the number of the chunk that each cell lies in, int32 [C]: up to 64 neighbours, of one shard."""
        return self.shards.chunks(cells)

    def verify(self) -> None:
        """Read every file again; raise `DataError` with the name of the first whose checksum is not the one written."""
        for name, problem in broken_files(self.path, _files(self.manifest), content=True):
            raise DataError(f"{self.path / name} {problem}; the store is broken, prepare it again.")
        if vocabulary_hash(self.genes["id"], self.genes["symbol"]) != self.manifest["vocabulary_sha256"]:
            raise DataError(f"{self.path} has another gene list than its manifest says; prepare it again.")


def open_store(path: Path | str) -> Store:
    """Open a store; files that are missing or cut short are noticed here, other damage by `Store.verify`.

    Raises `DataError` when `path` is not a whole store of a version this program reads.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path} is not a store (it has no {MANIFEST}); make one with `sckit prepare INPUT --out NAME.sckit`."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path / MANIFEST} cannot be read ({error}); prepare the store again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path / MANIFEST} is not the manifest of a store; make one with `sckit prepare`.")
    if layout_of(manifest) is None:
        read = " and ".join(map(str, VERSIONS.values()))
        raise DataError(
            f"{path} is a store of version {manifest.get('version')}, and this sckit reads {read}; prepare it again."
        )
    if not is_manifest(manifest):
        raise DataError(
            f"{path / MANIFEST} is damaged: entries are missing or of another kind; prepare the store again."
        )
    for name, problem in broken_files(path, _files(manifest), content=False):
        raise DataError(f"{path / name} {problem}; the store is broken, prepare it again.")
    return Store(path, manifest)


def describe(store: Store) -> list[tuple[str, str]]:
    """Return the rows (what, value) that `sckit info` prints."""
    manifest = store.manifest
    rows = [
        ("store", str(store.path)),
        ("cells", f"{store.n_cells:,}"),
        ("genes", f"{store.n_genes:,}, joined on {manifest['joined_on']}"),
        ("nonzeros", f"{store.nonzeros:,}"),
        ("median genes per cell", f"{_median_genes(store):,.0f}"),
        ("shards", f"{len(manifest['shards']):,}, {layout_of(manifest)}"),
        ("bytes", f"{size_bytes(manifest):,}"),
        ("vocabulary hash", manifest["vocabulary_sha256"][:16]),
    ]
    rows += [(f"source {source['name']}", _source_line(source)) for source in manifest["sources"]]
    options = {name: value for name, value in manifest["config"].items() if value not in (None, False, [])}
    rows += [(f"option {name}", str(value)) for name, value in options.items()]
    rows += [
        (f"assay {label}", f"{of_label['kept']:,} of {of_label['cells']:,} cells of {source['name']}")
        for source in manifest["sources"]
        for label, of_label in source.get("assays", {}).items()
    ]
    rows += [(f"lost: {reason}", f"{n:,}") for reason, n in manifest["dropped"].items()]
    rows += [("note", note) for note in manifest.get("notes", [])]
    return rows


def _median_genes(store: Store) -> float:
    """Return the median number of detected genes of the cells, from how many cells have each number."""
    cells = np.zeros(store.n_genes + 1, np.int64)
    for number in range(len(store.manifest["shards"])):
        with store.shards.opened(number) as shard:
            detected = np.bincount(np.diff(shard.indptr), minlength=len(cells))
        if len(detected) > len(cells):
            raise DataError(f"{store.path} is corrupt: a cell has more genes than there are; prepare it again.")
        cells += detected
    middle = np.array([(store.n_cells - 1) // 2, store.n_cells // 2])
    return float(np.searchsorted(cells.cumsum(), middle, side="right").mean())


def size_bytes(manifest: dict[str, Any]) -> int:
    """Return the bytes of all files of a store but its manifest."""
    return sum(record["bytes"] for record in _files(manifest).values())


def _source_line(source: dict[str, Any]) -> str:
    notes = [f"{source['kept']:,} of {source['cells']:,} cells"]
    if not source["has_assay"]:
        notes.append("no assay column, so cells of every assay were kept")
    if source["genes_summed"]:
        notes.append(f"{source['genes_summed']:,} genes have the name of another and were added to it")
    if source.get("matrix", "X") not in ("X", "the matrix"):
        notes.append(f"from {source['matrix']}")
    return f"{', '.join(notes)}: {source['path']}"


def _files(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    files = dict(manifest["tables"])
    for shard in manifest["shards"]:
        files.update(shard["files"])
    return files
