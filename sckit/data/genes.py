"""The vocabulary: one gene list for several inputs, and what each input lost on the way to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sckit.data.readers.source import GeneTable, mostly_ensembl
from sckit.errors import DataError

_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+")


@dataclass(frozen=True)
class Vocabulary:
    """The genes that all inputs share and where each input's genes go."""

    ids: np.ndarray
    """[G] str: Ensembl ids without version, or the file's own id, or ""."""
    symbols: np.ndarray
    """[G] str."""
    joined_on: str
    """"id" or "symbol"."""
    maps: tuple[np.ndarray, ...]
    """One [genes of the input] int32 per input: number in the vocabulary, or -1 where the gene was lost."""
    summed: tuple[int, ...]
    """Per input: genes that were added to another gene of the same name."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lost(self) -> tuple[int, ...]:
        """Per input: genes that are not in the vocabulary."""
        return tuple(int((to < 0).sum()) for to in self.maps)

    def take(self, chosen: np.ndarray) -> Vocabulary:
        """The vocabulary of the genes `chosen` [N] only, in that order."""
        new_number = np.full(len(self) + 1, -1, dtype=np.int32)  # the last one serves the lost genes, number -1
        new_number[chosen] = np.arange(len(chosen), dtype=np.int32)
        maps = tuple(new_number[to] for to in self.maps)
        return Vocabulary(self.ids[chosen], self.symbols[chosen], self.joined_on, maps, self.summed)


def bare_ids(ids: np.ndarray) -> np.ndarray:
    """Ensembl gene ids without their version, `ENSG00000141510.18` -> `ENSG00000141510`; other names stay as they are.

    A suffix behind the version stays (`_PAR_Y`), so that the copy on the other chromosome remains another gene.
    """
    return np.array([_VERSION.sub(r"\1", name) for name in ids], dtype=object)


def join_genes(
    tables: Sequence[GeneTable], names: Sequence[str], *, unused: Collection[int] = (), duplicates: str = "sum"
) -> Vocabulary:
    """Join the inputs on the genes that all of them have, in the order of the first input.

    The key is the Ensembl id without version when at least half of the ids of every input are Ensembl ids (genes
    without an id go by their symbol then), else the symbol. Genes of one input with the same key are summed, or
    refused with `duplicates="refuse"`. Inputs numbered in `unused` (none of their cells is kept) do not narrow the
    list and lose all their genes. Raises `DataError` when nothing is shared or duplicates are refused.
    """
    used = [number for number in range(len(tables)) if number not in unused]
    by_id = all(mostly_ensembl(tables[number].ids) for number in used)
    keys = [_keys(tables[number], by_id=by_id) for number in used]
    if duplicates == "refuse":
        for number, key in zip(used, keys, strict=True):
            _refuse_duplicates(names[number], key)
    shared = set(keys[0]).intersection(*keys[1:]) - {""}
    if not shared:
        kind = "Ensembl id" if by_id else "symbol"
        found = ", ".join(f"{names[number]} has {key[0]!r}" for number, key in zip(used, keys, strict=True))
        raise DataError(f"The inputs have no {kind} in common ({found}, ...); give inputs that name genes alike.")
    lead = pd.Index(keys[0])
    places = np.flatnonzero(lead.isin(shared) & ~lead.duplicated())  # [G] in the first input
    index = pd.Index(keys[0][places])
    maps = [np.full(len(table), -1, dtype=np.int32) for table in tables]
    for number, key in zip(used, keys, strict=True):
        maps[number] = index.get_indexer(pd.Index(key)).astype(np.int32)
    summed = tuple(max(int((to >= 0).sum()) - len(index), 0) for to in maps)
    ids, symbols = bare_ids(tables[used[0]].ids)[places], tables[used[0]].symbols[places]
    return Vocabulary(ids, symbols, "id" if by_id else "symbol", tuple(maps), summed)


def read_gene_list(path: Path, vocabulary: Vocabulary) -> tuple[np.ndarray, int]:
    """Find the genes that a text file names, one id or symbol a line: ([N] numbers in file order, lines not found).

    Empty lines and lines that begin with # are skipped. Raises `DataError` when the file is missing or names no gene.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The gene list {path} cannot be read ({error}); give a text file with one gene id or symbol a line."
        ) from error
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    by_symbol = {name: number for number, name in reversed(list(enumerate(vocabulary.symbols)))}
    by_id = {name: number for number, name in enumerate(vocabulary.ids) if name}
    found = [
        by_id.get(bare, by_symbol.get(name, -1))
        for name, bare in zip(wanted, bare_ids(np.array(wanted, object)), strict=True)
    ]
    numbers = list(dict.fromkeys(number for number in found if number >= 0))
    if not numbers:
        raise DataError(
            f"None of the {len(wanted)} genes of {path} is in the data, which has {vocabulary.symbols[0]}, ..."
        )
    return np.array(numbers, dtype=np.int64), found.count(-1)


def vocabulary_hash(ids: Iterable[str], symbols: Iterable[str]) -> str:
    """SHA-256 of the ordered gene list; two stores with the same hash number their genes alike."""
    lines = "\n".join(f"{gene_id}\t{symbol}" for gene_id, symbol in zip(ids, symbols, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _keys(table: GeneTable, *, by_id: bool) -> np.ndarray:
    if not by_id:
        return table.symbols
    ids = bare_ids(table.ids)
    return np.where(ids == "", table.symbols, ids)


def _refuse_duplicates(name: str, keys: np.ndarray) -> None:
    values, times = np.unique(keys[keys != ""], return_counts=True)
    repeated = values[times > 1]
    if len(repeated):
        shown = ", ".join(repeated[:3])
        raise DataError(
            f"{name} names {len(repeated)} genes more than once ({shown}); leave out --duplicates refuse to sum them."
        )
