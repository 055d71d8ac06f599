"""What a reader found in cells and genes, and whether sckit's numbers and names are those of another reader."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sckit.config.prepare import PrepareConfig
from sckit.config.reading import ReadingConfig
from sckit.data.prepare import prepare
from sckit.data.readers.open import open_sources

ENSEMBL = re.compile(r"ENS[A-Z]*GR?\d{6,}(\.\d+)?(_PAR_Y)?")
ID_COLUMNS = ("0", "1", "id", "name", "genes", "gene_names", "index", "gene_ids", "feature_id", "var_id")
"""Where ids are looked for: the two columns of a 10x file in either order, the usual columns of var, its index."""
EXPRESSION = ("gene expression", "gex", "rna", "mrna", "gene", "expression")


@dataclass
class Case:
    """A mutated input: what to open and how, and what was edited."""

    path: Path
    options: dict[str, Any] = field(default_factory=dict)
    edits: list[str] = field(default_factory=list)
    store: Path | None = None
    """Where to write a store of it too, or None."""


@dataclass
class Found:
    """What sckit read: C cells and G genes."""

    cells: list[str]
    counts: np.ndarray  # int64 [C, G]
    ids: list[str]
    symbols: list[str]
    dropped: int
    totals: np.ndarray  # int64 [C]
    known: np.ndarray  # bool [C]
    source: Any = None


@dataclass
class Table:
    """What the other reader found: C cells and F features."""

    cells: list[str]
    counts: np.ndarray  # float64 [C, F]
    names: dict[str, list[str]]  # the columns that may hold ids or symbols, [F] each
    types: list[str] | None = None
    genomes: list[str] | None = None
    log1p: bool = False
    totals: list[float] | None = None
    instead: str | None = None  # why a second, simpler reader was asked, where the first refuses the file


class Refused(Exception):
    """The other reader does not take the file."""


def read_cells(case: Case) -> Found:
    """Read an input of cells with sckit."""
    (source,) = open_sources(case.path, ReadingConfig(**case.options))
    source.need_totals(np.ones(source.n_cells, dtype=bool))
    blocks = list(source.blocks(cells_per_block=5))
    n_genes = len(source.genes)
    parts = [
        sp.csr_array((b.counts.astype(np.int64), b.genes, b.indptr), (len(b.obs), n_genes)).toarray() for b in blocks
    ]
    names = [str(value) for b in blocks for value in texts(b.obs.index)]
    joined = np.concatenate(parts)
    ids, symbols = source.genes.ids.tolist(), source.genes.symbols.tolist()
    if case.store is not None:
        _prepare(case, joined)
    totals, known = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("totals", "recovered"))
    return Found(names, joined, ids, symbols, sum(source.dropped.values()), totals, known, source)


def _prepare(case: Case, counts: np.ndarray) -> None:
    """Write a store, whose cells have to have the sums of the cells that have any counts."""
    assert case.store is not None
    store = prepare([case.path], case.store, config=PrepareConfig(**case.options, assay="any"))
    indptr, _, stored = store.rows(np.arange(store.n_cells))
    sums = sp.csr_array((stored.astype(np.int64), np.zeros(len(stored), np.int64), indptr), (store.n_cells, 1))
    lost = any(
        reason.startswith(("genes that", "genes without", "cells whose")) for reason in store.manifest["dropped"]
    )
    wanted = counts.sum(1)
    assert lost or sums.toarray()[:, 0].tolist() == wanted[wanted > 0].tolist(), "the store has other sums"


def texts(values: Iterable[Any]) -> list[str]:
    """Return names as text: bytes as UTF-8, missing ones as ""."""
    return [_text(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]  # pyright: ignore


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    missing = value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)
    return "" if missing else str(value)


def dense(data: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return a compressed matrix as float64, checked in full by scipy; repeated entries are summed."""
    if not (np.ndim(data) == np.ndim(indices) == np.ndim(indptr) == 1):
        msg = "not one-dimensional"
        raise Refused(msg)
    if np.asarray(indptr).dtype.kind not in "iu" or np.asarray(indices).dtype.kind not in "iu":
        msg = "pointers are no whole numbers"
        raise Refused(msg)
    if len(indptr) != shape[0] + 1 or len(data) != len(indices) or int(indptr[-1]) != len(data):
        msg = "lengths"
        raise Refused(msg)
    matrix = sp.csr_array((np.asarray(data, np.float64), np.asarray(indices, np.int64), np.asarray(indptr)), shape)
    matrix.check_format(full_check=True)
    return matrix.toarray()


def cells_fault(found: Found, table: Table, options: dict[str, Any]) -> str | None:
    """Say how sckit's cells and genes differ from the other reader's beyond what sckit said, or None."""
    kept = _kept(table, options.get("genome"), len(found.ids))
    if len(kept) != len(found.ids) or table.counts.shape[1] - len(kept) != found.dropped:
        return f"{len(found.ids)} genes with {found.dropped} dropped, not {len(kept)} of {table.counts.shape[1]}"
    if found.cells != table.cells:
        return f"cells {_first_difference(found.cells, table.cells)}"
    if table.log1p:
        return _log1p_fault(found, table, kept)
    wanted = table.counts[:, kept]
    if not np.array_equal(found.counts, wanted):
        if found.counts.shape != wanted.shape:
            return f"counts are {found.counts.shape}, not {wanted.shape}"
        cell, gene = np.argwhere(found.counts != wanted)[0]
        return f"count of cell {cell}, gene {gene} is {found.counts[cell, gene]}, not {wanted[cell, gene]!r}"
    if table.totals is None and not np.array_equal(found.totals, wanted.sum(1)):
        return "totals are not the sums of the counts"
    if table.totals is not None and found.totals.tolist() != [round(total) for total in table.totals]:
        return "totals are not those of the column"
    of_ids = [name for name, column in table.names.items() if name in ID_COLUMNS and _holds_ids(column)]
    return _names_fault(found, {name: [column[i] for i in kept] for name, column in table.names.items()}, of_ids)


def _kept(table: Table, genome: str | None, n_found: int) -> list[int]:
    """Return the features that are genes of the chosen genome, by the rules that sckit's documents give."""
    every = list(range(table.counts.shape[1]))
    kept = every
    if table.types is not None:
        kept = [i for i in every if table.types[i].strip().casefold() in EXPRESSION] or every
    if genome is None:
        return kept
    if table.genomes and len(set(table.genomes)) <= 5:
        return [i for i in kept if table.genomes[i] in (genome, "")]
    columns = sorted(table.names.values(), key=lambda column: not _holds_ids(column))  # ids before symbols
    chosen = [[i for i in kept if _front(column[i]) in (genome, "")] for column in columns]
    return next((some for some in chosen if len(some) == n_found), chosen[0])


_MISSING = ("", "nan", "na", "n/a", "<na>", "none", "null", "-", ".")
_OF_GENOME = re.compile(rf"([A-Za-z][\w.-]{{0,39}}?)_+{ENSEMBL.pattern}")


def _front(name: str) -> str:
    """Return the genome in front of an id or a symbol, or ""."""
    found = re.fullmatch(rf"{_OF_GENOME.pattern}|(hg19|GRCh38|mm10)_+.+", name)
    return found[1] or found[found.lastindex or 1] if found else ""


def _one_front(column: list[str]) -> set[str]:
    """Return the genome in front of the names of a column, if there is just one."""
    fronts = {_front(name) for name in column} - {""}
    return fronts if len(fronts) == 1 else set()


def _cut(column: list[str], front: str) -> list[str]:
    cut = re.compile(rf"{re.escape(front)}_+(?=.)", re.DOTALL)
    return [cut.sub("", name, 1) if cut.match(name) else name for name in column]


def without_front(column: list[str]) -> list[str]:
    """Return the names of a column without the genome in front of them, if there is just one."""
    return next((_cut(column, front) for front in _one_front(column)), column)


def _holds_ids(column: list[str]) -> bool:
    """Return whether at least half of the names are ids, with or without a genome in front."""
    return 2 * sum(bool(ENSEMBL.fullmatch(name) or _OF_GENOME.fullmatch(name)) for name in column) >= len(column)


def _names_fault(found: Found, columns: dict[str, list[str]], of_ids: list[str]) -> str | None:
    """Say which name is not the file's: ids are one column, symbols one column with gaps filled from the others."""
    choices = dict(columns)
    for column in columns.values():
        for front in _one_front(column):
            choices |= {f"{key} cut {front}": _cut(c, front) for key, c in columns.items()}
    if any(found.ids) and found.ids not in choices.values():
        return f"ids {found.ids[:4]} are no column of the file"
    if of_ids and found.ids not in [column for name, column in choices.items() if name.split(" cut ")[0] in of_ids]:
        return f"ids {found.ids[:4]} are not the column of ids"
    for main in choices.values():
        if all(
            s == m or (m.casefold() in _MISSING and s in {c[i] for c in choices.values()})
            for i, (s, m) in enumerate(zip(found.symbols, main, strict=True))
        ):
            return None
    return f"symbols {found.symbols[:4]} are no column of the file"


def _log1p_fault(found: Found, table: Table, kept: list[int]) -> str | None:
    scaled = np.expm1(table.counts[:, kept])
    for cell, row in enumerate(scaled):
        if table.totals is not None:
            total = round(table.totals[cell])
        elif found.known[cell]:
            total = round(1e4 / row[row > 0].min())
        else:
            total = 0
        wanted = np.rint(row * total / 1e4)
        if not np.array_equal(found.counts[cell], wanted):
            return f"counts of cell {cell} do not come from its logarithms"
    return None


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} instead of {len(theirs)}"
    return next(f"{a[:80]!r} instead of {b[:80]!r}" for a, b in zip(ours, theirs, strict=True) if a != b)
