"""The names of genes: what is an id, which columns hold ids and symbols, names with a genome in front."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from sckit.data.readers.hdf5 import strings
from sckit.errors import DataError

ENSEMBL = re.compile(r"(ENS[A-Z]*GR?\d{6,})(\.\d+)?(_PAR_Y)?")
"""An Ensembl gene id of any species: id, version, mark of the copy on the other chromosome."""

_GENOME = r"([A-Za-z][\w.-]{0,39}?)_+"
_ID = rf"(?:{ENSEMBL.pattern}|FBgn\d{{7}}|WBGene\d{{8}})"  # of Ensembl, FlyBase or WormBase
_GENE_ID = re.compile(rf"(?:{_GENOME})?{_ID}")
_OF_GENOME = re.compile(rf"{_GENOME}{_ID}|(GRC[hm]\d+|hg\d+|mm\d+|GRCz\d+|BDGP\d+)_+.+")  # the second are symbols
MOST_GENOMES = 5
"""Of one file; where there are more different words, they are something else."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|")
_MISSING = {"nan", "na", "n/a", "<na>", "none", "null", "-", "."}
_ID_COLUMNS = ("feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl", "id", "var_id", "ensembl_gene_id")
_SYMBOL_COLUMNS = (
    *("feature_name", "gene_symbol", "gene_symbols", "gene_name", "gene_names", "symbol", "name"),
    *("features", "gene_short_name", "hgnc_symbol", "gene", "genes", "symbols", "names", "_index"),
)


@dataclass(frozen=True)
class GeneTable:
    """The genes of one source, in file order."""

    ids: np.ndarray
    """[G] str: gene ids as the file gives them (Ensembl, with or without version), "" where it gives none."""
    symbols: np.ndarray
    """[G] str: gene symbols; the id where the file gives no symbols."""

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def named(self) -> np.ndarray:
        """[G] str: the id of each gene, its symbol where it has no id."""
        return np.where(self.ids == "", self.symbols, self.ids)


def mostly_ids(names: np.ndarray) -> bool:
    """Return whether at least half of the names are gene ids, each as a whole, with or without a genome in front."""
    return 2 * _n_ids(names) >= max(len(names), 1)


def mostly_numbers(names: np.ndarray) -> bool:
    """Return whether at least half of the names are numbers or empty."""
    return 2 * _matching(_NUMBER, names) >= max(len(names), 1)


def are_names(names: np.ndarray) -> bool:
    """Return whether the names tell genes apart: most are no numbers, and those that are there mostly differ."""
    given = names[names != ""]
    return not mostly_numbers(names) and 2 * len(set(given)) > len(given)


def gene_table(var: pd.DataFrame, path: Path) -> GeneTable:
    """Find ids and symbols among the index and the columns of a `var` table.

    Ids come from the index or a usual column, whichever has the most gene ids, if half of its entries are; symbols from
    the first usual column that holds other names, else the index, else the ids. An index of numbers is no name: where
    there is nothing else, the only column of names is taken. Raises `DataError` where there is no such column.
    """
    usual = {str(name).casefold(): name for name in reversed(var.columns)}
    in_ids, in_symbols = (
        [strings(var[usual[k]]) for k in kind if k in usual] for kind in (_ID_COLUMNS, _SYMBOL_COLUMNS)
    )
    index = strings(var.index)
    nothing = np.full(len(index), "", dtype=object)
    n_ids, ids = max(((_n_ids(names), names) for names in [index, *in_ids]), key=itemgetter(0))
    ids = ids if 2 * n_ids >= max(len(ids), 1) else nothing
    in_symbols = map(_without_missing, in_symbols)
    symbols = next((names for names in in_symbols if are_names(names) and not mostly_ids(names)), nothing)
    if not mostly_numbers(index):
        default = index
    elif ids is nothing and symbols is nothing:
        default = _only_names(var, path)
        ids = default if mostly_ids(default) else nothing
    else:
        default = ids
    return GeneTable(ids, np.where(symbols == "", default, symbols))


def contradictions(var: pd.DataFrame, table: GeneTable, path: Path) -> list[str]:
    """Say which columns hold other gene ids than those that `gene_table` took."""
    notes = []
    columns = {f"the column {name}": var[name] for name in var.columns if str(name).casefold() in _ID_COLUMNS}
    for name, values in {"the index of var": var.index, **columns}.items():
        pairs = zip(table.ids, strings(values), strict=True)
        ids = ((ENSEMBL.fullmatch(own), ENSEMBL.fullmatch(other)) for own, other in pairs if own != other)
        n_other = sum(own is not None and other is not None and own[1] != other[1] for own, other in ids)
        if n_other:
            notes.append(f"{path}: {name} holds other gene ids than those that are used, for {n_other:,} genes")
    return notes


def _only_names(var: pd.DataFrame, path: Path) -> np.ndarray:
    """Return the only column of names, in which nine in ten differ and few are numbers."""
    columns = {str(name): strings(var[name]) for name in var.columns}
    found = [k for k, names in columns.items() if len(set(names)) > 0.9 * len(names) and not mostly_numbers(names)]
    if len(found) != 1:
        which = f"several columns of var hold names ({', '.join(found)})" if found else "no column of var holds names"
        raise DataError(
            f"{path} names its genes {', '.join(strings(var.index[:3]))}, ..., which are numbers, and {which}; write "
            "the names into var_names, or into a column gene_name of var."
        )
    return columns[found[0]]


def feature_table(ids: np.ndarray, symbols: np.ndarray, path: Path) -> GeneTable:
    """Make the table of the two columns of a 10x file, in whichever order they came; numbers are no names.

    Raises `DataError` when both columns hold numbers.
    """
    if mostly_ids(symbols) and not mostly_ids(ids):
        ids, symbols = symbols, ids
    symbols = _without_missing(symbols)
    if not are_names(symbols) and not (mostly_ids(ids) and are_names(symbols[~pd.Series(ids).duplicated()])):
        symbols = ids
    if mostly_numbers(symbols):
        raise DataError(f"{path} names its genes {', '.join(symbols[:3])}, ..., which are numbers; give their names.")
    if mostly_numbers(ids) and not mostly_ids(ids):
        ids = np.full(len(symbols), "", dtype=object)
    return GeneTable(ids, np.where(symbols == "", ids, symbols))


def genomes_of(names: np.ndarray) -> np.ndarray:
    """Return the genome in front of each name, "GRCh38" of GRCh38_ENSG00000141510 or GRCh38_TP53, or "": [G] str.

    More than five different beginnings are no genomes, but gene symbols or the like.
    """
    matches = (_OF_GENOME.fullmatch(name) if "_" in name else None for name in names)
    found = np.array([match[1] or match[5] if match else "" for match in matches], dtype=object)
    return found if len(set(found)) <= MOST_GENOMES + 1 else np.full(len(found), "", dtype=object)


def without_genome(table: GeneTable) -> GeneTable:
    """Return the table without the genome in front of its ids and symbols, if at least half of them have the same."""
    genomes = genomes_of(table.named)
    found = set(genomes) - {""}
    if len(found) != 1 or 2 * np.count_nonzero(genomes) < len(genomes):
        return table
    front = re.compile(rf"{re.escape(found.pop())}_+(?=.)")

    def cut(names: np.ndarray) -> np.ndarray:
        return np.array([front.sub("", name, 1) if front.match(name) else name for name in names], dtype=object)

    return GeneTable(cut(table.ids), cut(table.symbols))


def _without_missing(symbols: np.ndarray) -> np.ndarray:
    """Return symbols with "" for a word that means a missing one, such as NA, where it comes more than once."""
    found = {word: sum(symbols == word) for word in set(symbols) if word.casefold() in _MISSING}
    return np.where(np.isin(symbols, [word for word, times in found.items() if times > 1]), "", symbols)


def _n_ids(names: np.ndarray) -> int:
    """Count the gene ids, with or without a genome in front; more than five different beginnings are no genomes."""
    matches = [match for name in names if (match := _GENE_ID.fullmatch(name))]
    in_front = {match[1] for match in matches if match[1]}
    return len(matches) if len(in_front) <= MOST_GENOMES else sum(match[1] is None for match in matches)


def _matching(pattern: re.Pattern[str], names: np.ndarray) -> int:
    return sum(pattern.fullmatch(name) is not None for name in names)
