"""Counts as files hold them, checked and renumbered, where nothing has to be sorted: the common case, in one pass."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numba.np.numpy_support import carray

from sckit.kernels.counts_reference import Csr
from sckit.kernels.located_numba import address, copy_numbers, fetch, pointer

_KINDS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")
_options = {"nogil": True, "cache": True, "error_model": "numpy"}


class Places(NamedTuple):
    """Where ids stand among those that are known: `table` [width] int32 from the id `first` on, -1 for no place."""

    first: int
    table: np.ndarray


def cleaned(csr: Csr, gene_of_feature: np.ndarray) -> tuple[Csr, np.ndarray] | None:
    """Return the counts of cells, CSR with genes int32 and counts uint32, and the sum of each cell, int64 [C].

    csr: features [nnz] and values [nnz] in any types of numbers; gene_of_feature: int32 [F], -1 for features that are
    left out. Values of 0 are left out too. None where numpy has to look at the entries: a feature is none of the F, a
    value is no whole number from 0 to 2^32 - 1, the genes of a cell do not rise, the bounds of cells are not those of
    the entries, or the types are of another machine.
    """
    indptr, features, values = csr[0], *map(np.ascontiguousarray, csr[1:])
    kind, lengths = values.dtype.str[1:], np.diff(indptr)
    # `fetch` takes negative features for large ones, which in 1 or 2 bytes may be features that there are.
    known = features.dtype.kind == "u" or features.dtype in (np.int32, np.int64)
    native = known and features.dtype.isnative and values.dtype.isnative
    whole = indptr[0] == 0 and indptr[-1] == len(features) == len(values) and bool((lengths >= 0).all())
    if not (native and whole and kind in _KINDS):
        return None
    found = np.zeros(len(indptr), np.int64), np.empty(len(features), np.int32), np.empty(len(features), np.uint32)
    sums = np.empty(len(indptr) - 1, np.int64)
    features_at, values_at, feature_bytes, value_bytes = address(features, values)
    inputs = indptr, features_at, values_at, feature_bytes, value_bytes, _KINDS.index(kind), gene_of_feature
    if not _clean(*inputs, *found, sums):
        return None
    number = int(found[0][-1])
    return (found[0], found[1][:number], found[2][:number]), sums


def taken(csr: Csr, kept: np.ndarray, gene_of_gene: np.ndarray) -> Csr | None:
    """Return CSR of all cells, empty for those that are not kept, with other gene numbers; -1 leaves a gene out.

    csr: genes int32 and counts uint32 above 0; kept: bool [C]; gene_of_gene: int32. None where genes do not rise.
    """
    indptr, genes, counts = csr
    if kept.all() and np.array_equal(gene_of_gene, np.arange(len(gene_of_gene))):
        return csr
    found = np.zeros(len(indptr), np.int64), np.empty(len(genes), np.int32), np.empty(len(genes), np.uint32)
    if not _take(indptr, genes, counts, kept, gene_of_gene, *found):
        return None
    number = int(found[0][-1])
    return found[0], found[1][:number], found[2][:number]


def grouped(
    cells: np.ndarray, genes: np.ndarray, values: np.ndarray, of_cell: Places, of_gene: Places, n_cells: int
) -> Csr | str:
    """Return entries in any order as CSR, those of a cell in the order in which they come; genes are int32.

    cells, genes: int64 [nnz], the ids of the cell and the gene of each entry; values: [nnz], numbers of this machine.
    Where an id has no place, return which it is: "cell" or "gene".
    """
    bits = values.view(f"u{values.dtype.itemsize}")
    indptr = np.zeros(n_cells + 1, np.int64)
    if not _count_cells(cells, *of_cell, indptr):
        return "cell"
    found = np.empty(len(genes), np.int32), np.empty_like(bits)
    if not _group(cells, genes, bits, *of_cell, *of_gene, indptr[:-1].copy(), *found):
        return "gene"
    return indptr, found[0], found[1].view(values.dtype)


@njit(**_options)
def count_genes(genes, of_gene):
    """Add the number of entries of each gene to of_gene, int64 [G]."""
    for gene in genes:
        of_gene[gene] += 1


@njit(**_options)
def _count_cells(cells, first, table, indptr):
    """Fill indptr; return False where a cell has no place."""
    for number in cells:
        at = number - first
        place = table[at] if 0 <= at < len(table) else -1
        if place < 0:
            return False
        indptr[place + 1] += 1
    for c in range(1, len(indptr)):
        indptr[c] += indptr[c - 1]
    return True


@njit(**_options)
def _group(cells, genes, bits, first_cell, cell_table, first_gene, gene_table, following, out_genes, out_bits):
    """Fill the outputs, the next entry of a cell at `following`; return False where a gene has no place."""
    for i in range(len(cells)):
        at = genes[i] - first_gene
        gene = gene_table[at] if 0 <= at < len(gene_table) else -1
        if gene < 0:
            return False
        cell = cell_table[cells[i] - first_cell]
        to = following[cell]
        out_genes[to], out_bits[to] = gene, bits[i]
        following[cell] = to + 1
    return True


@njit(**_options)
def _fetch_values(at, kind, out):
    """Copy numbers of a kind from an address into float64, which holds all whole numbers that are counts."""
    number = len(out)
    if kind == 0:
        copy_numbers(carray(pointer(at), number, np.uint8), out)
    elif kind == 1:
        copy_numbers(carray(pointer(at), number, np.uint16), out)
    elif kind == 2:
        copy_numbers(carray(pointer(at), number, np.uint32), out)
    elif kind == 3:
        copy_numbers(carray(pointer(at), number, np.uint64), out)
    elif kind == 4:
        copy_numbers(carray(pointer(at), number, np.int8), out)
    elif kind == 5:
        copy_numbers(carray(pointer(at), number, np.int16), out)
    elif kind == 6:
        copy_numbers(carray(pointer(at), number, np.int32), out)
    elif kind == 7:
        copy_numbers(carray(pointer(at), number, np.int64), out)
    elif kind == 8:
        copy_numbers(carray(pointer(at), number, np.float32), out)
    else:
        copy_numbers(carray(pointer(at), number, np.float64), out)


@njit(**_options)
def _rises(genes):
    falls = 0
    for i in range(1, len(genes)):
        falls += genes[i] <= genes[i - 1]
    return falls == 0


@njit(**_options)
def _clean(
    indptr,
    features_at,
    values_at,
    feature_bytes,
    value_bytes,
    kind,
    gene_of_feature,
    out_indptr,
    out_genes,
    out_counts,
    sums,
):
    """Fill the outputs; return False where numpy has to look at the entries."""
    longest = 0
    for c in range(len(sums)):
        longest = max(longest, indptr[c + 1] - indptr[c])
    of_feature, of_value = np.empty(longest, np.int64), np.empty(longest)
    at = 0
    for c in range(len(sums)):
        first, number = indptr[c], indptr[c + 1] - indptr[c]
        features, values = of_feature[:number], of_value[:number]
        fetch(features_at + first * feature_bytes, feature_bytes, features)
        _fetch_values(values_at + first * value_bytes, kind, values)
        wrong = 0
        for feature in features:
            wrong += np.uint64(feature) >= np.uint64(len(gene_of_feature))
        for value in values:
            wrong += not ((value >= 0) & (value < 2.0**32) & (np.floor(value) == value))
        if wrong:
            return False
        begin = at
        for i in range(number):
            gene = gene_of_feature[features[i]]
            out_genes[at], out_counts[at] = gene, np.int64(values[i])
            at += (gene >= 0) & (values[i] > 0)
        if not _rises(out_genes[begin:at]):
            return False
        total = np.int64(0)
        for count in out_counts[begin:at]:
            total += count
        out_indptr[c + 1], sums[c] = at, total
    return True


@njit(**_options)
def _take(indptr, genes, counts, kept, gene_of_gene, out_indptr, out_genes, out_counts):
    """Fill the outputs; return False where genes do not rise."""
    at = 0
    for c in range(len(kept)):
        begin = at
        if kept[c]:
            for i in range(indptr[c], indptr[c + 1]):
                gene = gene_of_gene[genes[i]]
                out_genes[at], out_counts[at] = gene, counts[i]
                at += gene >= 0
        if not _rises(out_genes[begin:at]):
            return False
        out_indptr[c + 1] = at
    return True
