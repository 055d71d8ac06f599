"""Reader of the .h5 files of Cell Ranger, of every version, and of programs that write the same layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from sckit.data.readers.chunks import MatrixLists
from sckit.data.readers.features import choose_features, choose_genome
from sckit.data.readers.hdf5 import array, dataset, entries_before, group, length, readable, strings
from sckit.data.readers.names import feature_table
from sckit.data.readers.source import Source
from sckit.data.readers.texts import text_series
from sckit.data.views import Csr
from sckit.errors import DataError

_IDS, _SYMBOLS = ("gene_id", "id", "genes"), ("gene_name", "name", "gene_names")


def genome_groups(file: h5py.File) -> list[str]:
    """List the genomes in a file of Cell Ranger 1 or 2, which keeps one matrix per genome, damaged ones among them."""
    parts: dict[str, set[str]] = {}
    for name in map(str, file):
        item = file.get(name)
        if isinstance(item, h5py.Group):
            parts[name] = {"barcodes", "indptr"} & set(item)
        elif item is None:  # it cannot be opened, and may have been a genome
            parts[name] = {"barcodes"}
    return [name for name, own in parts.items() if own] if any(len(own) == 2 for own in parts.values()) else []


class TenxH5(Source):
    """A Cell Ranger .h5 file: one group per genome (versions 1 and 2) or the group `matrix` (3 and later)."""

    def __init__(self, path: Path, *, genome: str | None = None) -> None:
        """Read features and barcodes; with several genomes in the file, `genome` has to name one."""
        with readable(path), h5py.File(path) as file:
            is_old = "matrix" not in file
            self._key = choose_genome(genome_groups(file), genome, path) if is_old else "matrix"
            matrix = group(file, self._key)
            features = matrix if is_old else group(matrix, "features")
            indptr = entries_before(matrix, length(matrix, "barcodes"), path)
            _check_lengths(matrix, features, path)
            ids, symbols = _column(features, *_IDS), _column(features, *_SYMBOLS)
            types, genomes = (
                (None, None) if is_old else (_column(features, "feature_type"), _column(features, "genome"))
            )
            of_probes = "filtered_probes" in features
            obs = pd.DataFrame(index=pd.Index(text_series(dataset(matrix, "barcodes"))))
        symbols = ids if symbols is None else symbols
        if symbols is None:
            raise DataError(f"{path} names no genes: it has neither gene ids nor gene names; export it with them.")
        ids = np.full(len(symbols), "", dtype=object) if ids is None else ids
        table = feature_table(ids, symbols, path)
        chosen = choose_features(types, genomes, table.named, None if is_old else genome, path)
        notes = list(chosen.notes)
        if of_probes:
            notes.append(
                f"{path} counts single probes (Flex), all of which are added up to genes; the file "
                "filtered_feature_bc_matrix.h5 of the same run has the counts of genes"
            )
        super().__init__(path, table, obs, lost=chosen.lost, notes=notes)
        self._indptr = self._entries_before = indptr

    @contextmanager
    def _opened(self) -> Iterator[MatrixLists]:
        with h5py.File(self.path) as file:
            yield MatrixLists(group(file, self._key))

    def _read(self, handle: MatrixLists, first: int, last: int) -> Csr:
        return handle.rows(self._indptr, first, last)


def _check_lengths(matrix: h5py.Group, features: h5py.Group, path: Path) -> None:
    """Raise `DataError` where the lists do not name as many features and barcodes as the matrix has."""
    named = {length(features, name) for name in (*_IDS, *_SYMBOLS, "feature_type", "genome") if name in features}
    sizes = [*named, length(matrix, "barcodes")]
    given = array(matrix, "shape", 0, 3).tolist() if "shape" in matrix else sizes
    if len(named) > 1 or (named and given != sizes):
        raise DataError(
            f"{path} is corrupt: it names {' or '.join(map(str, sorted(named)))} features and {sizes[-1]} barcodes, "
            f"and its matrix is {' x '.join(map(str, given))}; copy or export it again."
        )


def _column(features: h5py.Group, *names: str) -> np.ndarray | None:
    """Return the first of these columns that the file has, [F] str, or None."""
    return next((strings(array(features, name)) for name in names if name in features), None)
