"""Genes by name: the vocabulary of several inputs, an index of ids and symbols, files that list genes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sckit.data.labels import in_quotes
from sckit.data.readers.names import ENSEMBL, GeneTable, mostly_ids
from sckit.errors import ConfigError, DataError


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
        """Return the vocabulary of the genes `chosen` [N] only, in that order."""
        new_number = np.full(len(self) + 1, -1, dtype=np.int32)  # the last entry is for lost genes, number -1
        new_number[chosen] = np.arange(len(chosen), dtype=np.int32)
        maps = tuple(new_number[to] for to in self.maps)
        return Vocabulary(self.ids[chosen], self.symbols[chosen], self.joined_on, maps, self.summed)


def bare_ids(names: Iterable[str | None]) -> np.ndarray:
    """Return names [N] without the version of Ensembl gene ids: `ENSG00000141510.18` -> `ENSG00000141510`.

    Other names stay as they are, and None becomes "". A suffix behind the version stays (`_PAR_Y`), so that the copy
    on the other chromosome remains another gene.
    """
    found = ((name or "", ENSEMBL.fullmatch(name or "")) for name in names)
    return np.array([match[1] + (match[3] or "") if match else name for name, match in found], dtype=object)


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
    by_id = all(mostly_ids(tables[number].ids) for number in used)
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


class GeneIndex:
    """Numbers of genes by name: Ensembl id, whatever its version, else symbol; the first gene of a name counts."""

    def __init__(self, ids: Iterable[str], symbols: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}
        for names in (ids, symbols):  # a name that is an id and a symbol is the gene of that id
            for number, name in enumerate(bare_ids(names)):
                if name:
                    self._numbers.setdefault(name, number)

    def find(self, names: Iterable[str | None], *others: Iterable[str | None]) -> np.ndarray:
        """Return the number of each named gene, int64 [N], -1 where unknown.

        others: more names of the same genes, tried in turn where the ones before are unknown.
        """
        rows = zip(*map(bare_ids, (names, *others)), strict=True)
        return np.array([next((self._numbers[n] for n in row if n in self._numbers), -1) for row in rows], np.int64)

    def match(self, ids: Iterable[str], symbols: Iterable[str]) -> np.ndarray:
        """Return the number of each of N genes, int64 [N], -1 where unknown; no number comes twice.

        Ids go first. A symbol counts for genes and numbers that no id has matched.
        """
        found = self.find(ids)
        found[pd.Series(found).duplicated()] = -1
        by_symbol = np.where(found < 0, self.find(symbols), -1)
        by_symbol[np.isin(by_symbol, found) | pd.Series(by_symbol).duplicated()] = -1
        return np.where(found < 0, by_symbol, found)


class ListedGenes(NamedTuple):
    """The genes of a vocabulary that a file names."""

    numbers: np.ndarray
    """[N] in the order of the file."""
    lines_not_found: int
    notes: list[str]


def listed_genes(path: Path, vocabulary: Vocabulary) -> ListedGenes:
    """Find the genes that a file names; raises `DataError` when there is none of them."""
    names = read_gene_list(path, "--genes")
    found = GeneIndex(vocabulary.ids, vocabulary.symbols).find(names)
    symbols, times = np.unique(vocabulary.symbols[vocabulary.symbols != ""], return_counts=True)
    several = sorted({*symbols[times > 1]} & {*names})
    notes = [f"several genes have the symbol {in_quotes(several)} of --genes; the first is taken"] if several else []
    if (found < 0).all():
        first = vocabulary.symbols[0]
        raise DataError(f"None of the {len(names)} genes of {path} is in the data, which has {first}, ...")
    return ListedGenes(np.array(list(dict.fromkeys(found[found >= 0].tolist()))), int((found < 0).sum()), notes)


def read_gene_list(path: Path | str, option: str) -> list[str]:
    """Read the names of genes from a text file with one id or symbol per line; `option` as in `read_lines`."""
    return [line.strip() for line in read_lines(path, option, "one gene id or symbol per line")]


def read_lines(path: Path | str, option: str, wanted: str) -> list[str]:
    """Read the lines of a text file that an option names, without spaces around them, empty lines and # comments.

    Raises `ConfigError` when the file is missing or is not UTF-8 text, with or without a byte order mark; its sentence
    names the option, as in "--genes", and what is `wanted` in the file.
    """
    try:
        lines = (
            Path(path).read_text(encoding="utf-8-sig").split("\n")
        )  # not `splitlines`: it splits names at U+0085 too
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path} cannot be read ({error}); give {wanted}, as UTF-8 text.") from error
    return [line.strip(" ") for line in lines if line.strip() and not line.lstrip().startswith("#")]


def vocabulary_hash(ids: Iterable[str], symbols: Iterable[str]) -> str:
    """Return the SHA-256 of the ordered gene list; two stores with the same hash number their genes alike."""
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
