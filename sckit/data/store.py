"""An opened store: cells as CSR from memory maps, tables of cells and genes, verification."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.genes import vocabulary_hash
from sckit.data.manifest import (
    FORMAT,
    MANIFEST,
    NUMBERS,
    OWN_COLUMNS,
    SHARD_ARRAYS,
    VERSION,
    broken_files,
    gene_dtype,
    is_manifest,
    shard_file,
)
from sckit.data.views import Csr, indptr_of
from sckit.errors import DataError


class Store:
    """Counts of C cells in G genes on disk. Opening reads the manifest only; the rest is read when it is used."""

    def __init__(self, path: Path, manifest: dict[str, Any], report: dict[str, Any] | None = None) -> None:
        """Use `open_store`; `report` holds the numbers of the `prepare` that has just written the store."""
        self.path = path
        self.manifest = manifest
        self.report = report or {}
        self._starts = indptr_of([shard["cells"] for shard in manifest["shards"]])  # [shards + 1]
        self._maps: dict[int, Csr] = {}

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
        return self._table("genes.parquet", self.n_genes, ("id", "symbol"))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """C rows: cell, source, total_counts and n_genes over all genes of the source, then the inputs' own columns."""
        return self._table("obs.parquet", self.n_cells, OWN_COLUMNS)

    @cached_property
    def _total_counts(self) -> np.ndarray:
        return self.obs["total_counts"].to_numpy(np.int64)

    def totals(self, cells: np.ndarray) -> np.ndarray:
        """Return the total counts [C] int64 of the cells over all gene-expression features of their source."""
        return self._total_counts[cells]

    def rows(self, cells: np.ndarray) -> Csr:
        """Gather cells in the order given, repeats allowed, as CSR.

        genes: uint16, or int32 in a store of more than 65,535 genes, rising within a cell; counts: uint32, at least 1.
        Raises `IndexError` for a cell that the store does not have.
        """
        cells = np.asarray(cells, dtype=np.int64)
        if len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < self.n_cells:
            raise IndexError(f"cells must be in 0..{self.n_cells - 1}, not {cells.min()}..{cells.max()}")
        numbers = np.searchsorted(self._starts, cells, side="right") - 1  # [C]
        local = cells - self._starts[numbers]  # [C]
        lengths = []
        genes, counts = [np.empty(0, gene_dtype(self.n_genes))], [np.empty(0, np.uint32)]
        for number, cell in zip(numbers.tolist(), local.tolist(), strict=True):
            indptr, shard_genes, shard_counts = self._shard(number)
            low, high = int(indptr[cell]), int(indptr[cell + 1])
            lengths.append(high - low)
            genes.append(shard_genes[low:high])
            counts.append(shard_counts[low:high])
        return indptr_of(lengths), self._known(np.concatenate(genes)), np.concatenate(counts, dtype=np.uint32)

    def block(self, start: int, stop: int) -> Csr:
        """Read cells start..stop in store order.

        Inside one shard, genes and counts are views of the memory map, counts in the type they are stored in (uint8,
        uint16 or uint32); over several shards they are copies, counts as uint32.
        """
        if not 0 <= start <= stop <= self.n_cells:
            raise IndexError(f"cells {start}..{stop} are not within 0..{self.n_cells}")
        number = max(int(np.searchsorted(self._starts, start, side="right")) - 1, 0)
        if start == stop or stop > self._starts[number + 1]:
            return self.rows(np.arange(start, stop))
        indptr, genes, counts = self._shard(number)
        offset = self._starts[number]
        low, high = int(indptr[start - offset]), int(indptr[stop - offset])
        return indptr[start - offset : stop - offset + 1] - low, self._known(genes[low:high]), counts[low:high]

    def verify(self) -> None:
        """Read every file again; raise `DataError` with the name of the first whose checksum is not the one written."""
        for name, problem in broken_files(self.path, _files(self.manifest), content=True):
            raise DataError(f"{self.path / name} {problem}; the store is broken, prepare it again.")
        if vocabulary_hash(self.genes["id"], self.genes["symbol"]) != self.manifest["vocabulary_sha256"]:
            raise DataError(f"{self.path} has another gene list than its manifest says; prepare it again.")

    def _known(self, genes: np.ndarray) -> np.ndarray:
        """Return the gene numbers if all are of this store: kernels do not check them."""
        if len(genes) and not 0 <= int(genes.min()) <= int(genes.max()) < self.n_genes:
            raise DataError(
                f"{self.path} is corrupt: it holds a count of a gene that it does not have; prepare it again."
            )
        return genes

    def _shard(self, number: int) -> Csr:
        if number not in self._maps:
            shard = self.manifest["shards"][number]
            try:
                arrays = (np.load(self.path / shard_file(number, name), mmap_mode="r") for name in SHARD_ARRAYS)
                indptr, genes, counts = (np.asarray(array) for array in arrays)
            except Exception as error:  # of numpy, which has many kinds for a broken head
                raise DataError(f"{self.path} is corrupt: shard {number} ({error}); prepare it again.") from error
            whole = (
                (indptr.shape, indptr.dtype) == ((shard["cells"] + 1,), np.int64)
                and genes.shape == counts.shape == (shard["nonzeros"],)
                and genes.dtype == gene_dtype(self.n_genes)
                and counts.dtype.kind == "u"
                and indptr[0] == 0
                and indptr[-1] == len(genes)
                and bool((np.diff(indptr) >= 0).all())
            )
            if not whole:
                raise DataError(
                    f"{self.path} is corrupt: shard {number} is not what its manifest says; prepare it again."
                )
            self._maps[number] = indptr, genes, counts
        return self._maps[number]

    def _table(self, name: str, rows: int, columns: tuple[str, ...]) -> pd.DataFrame:
        try:
            table = pd.read_parquet(self.path / name)
        except Exception as error:  # of pandas and pyarrow, each with kinds of its own
            raise DataError(f"{self.path / name} cannot be read ({error}); prepare the store again.") from error
        kinds = {name: pd.api.types.infer_dtype(table[name], skipna=False) for name in columns if name in table}
        wanted = {name: ("integer",) if name in NUMBERS else ("string", "categorical") for name in columns}
        numbers = {table[name].dtype for name in columns if name in NUMBERS and name in table}
        if len(table) != rows or numbers - {np.dtype(np.int64)} or any(kinds.get(n) not in wanted[n] for n in columns):
            raise DataError(f"{self.path / name} is not the table of this store; prepare it again.")
        return table


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
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path} is a store of version {manifest.get('version')}, and this sckit reads {VERSION}; prepare it again."
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
    n_genes = np.concatenate([np.diff(store._shard(i)[0]) for i in range(len(manifest["shards"]))])
    rows = [
        ("store", str(store.path)),
        ("cells", f"{store.n_cells:,}"),
        ("genes", f"{store.n_genes:,}, joined on {manifest['joined_on']}"),
        ("nonzeros", f"{store.nonzeros:,}"),
        ("median genes per cell", f"{np.median(n_genes):,.0f}"),
        ("shards", f"{len(manifest['shards']):,}"),
        ("bytes", f"{size_bytes(manifest):,}"),
        ("vocabulary hash", manifest["vocabulary_sha256"][:16]),
    ]
    rows += [(f"source {source['name']}", _source_line(source)) for source in manifest["sources"]]
    rows += [(f"option {name}", str(value)) for name, value in manifest["config"].items() if value not in (None, False)]
    rows += [(f"lost: {reason}", f"{n:,}") for reason, n in manifest["dropped"].items()]
    rows += [("note", note) for note in manifest.get("notes", [])]
    return rows


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
