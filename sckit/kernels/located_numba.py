"""Counts of cells where they lie: in a memory map, in chunks that were decoded, in arrays, each cell for itself."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from sckit.kernels.counts_reference import Csr

_options = {"nogil": True, "cache": True, "error_model": "numpy"}


class Located(NamedTuple):
    """Where in memory the entries of C cells lie. Nothing checks it: it holds for what `located` and a store give."""

    places: np.ndarray  # int64 [C, 5]: address of genes and of counts, bytes of a gene and of a count, entries
    held: Any  # what has to live while the places are used


def address(genes: np.ndarray, counts: np.ndarray) -> tuple[int, int, int, int]:
    """Return the first four numbers of `places` for arrays of integers that are not negative."""
    return (
        genes.__array_interface__["data"][0],
        counts.__array_interface__["data"][0],
        genes.dtype.itemsize,
        counts.dtype.itemsize,
    )


def located(csr: Csr) -> Located:
    """Return where the cells of CSR in any integer types lie."""
    indptr, genes, counts = csr[0], *map(np.ascontiguousarray, csr[1:])
    return Located(places_of(address(genes, counts), indptr[:-1], indptr[1:]), (genes, counts))


def places_of(entries: np.ndarray | tuple[int, ...], begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return `places` of cells that begin and end [C] within entries of an `address`: one for all, or [C, 4]."""
    addresses = np.broadcast_to(np.asarray(entries, np.int64), (len(begin), 4))
    places = np.empty((len(begin), 5), np.int64)
    places[:, :4] = addresses
    places[:, :2] += begin[:, None] * addresses[:, 2:]
    places[:, 4] = end - begin
    return places


def _to_pointer(_context: Any, number: Any) -> Any:
    """Make a pointer of a number."""

    def emit(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(number), emit


pointer: Any = intrinsic(_to_pointer)


@njit(**_options)
def fetch(at, size, out):
    """Copy not negative integers of `size` bytes from an address into an array."""
    if size == 1:
        copy_numbers(carray(pointer(at), len(out), np.uint8), out)
    elif size == 2:
        copy_numbers(carray(pointer(at), len(out), np.uint16), out)
    elif size == 4:
        copy_numbers(carray(pointer(at), len(out), np.uint32), out)
    else:
        copy_numbers(carray(pointer(at), len(out), np.int64), out)


@njit(**_options)
def copy_numbers(numbers, out):
    """Copy numbers into an array of another type."""
    for i in range(len(out)):  # compilers make vectors of this loop, and not of what numba makes of `out[:] = numbers`
        out[i] = numbers[i]


@njit(**_options)
def spans(shards, numbers, local, chunk_cells, out):
    """Find cells among the entries of their chunks in one pass.

    shards: int64 [shards, 2], address of the int64 bounds of the cells of each, and how many cells it has; numbers,
    local: int64 [C], shard of each cell and its row there; chunk_cells: how many cells a chunk has; out: int64 [3, C],
    where each cell begins and ends in its chunk, and the entries of that.
    """
    for c in range(len(numbers)):
        cells = shards[numbers[c], 1]
        bounds = carray(pointer(shards[numbers[c], 0]), cells + 1, np.int64)
        first = local[c] // chunk_cells * chunk_cells
        begin = bounds[first]
        out[0, c], out[1, c] = bounds[local[c]] - begin, bounds[local[c] + 1] - begin
        out[2, c] = bounds[min(first + chunk_cells, cells)] - begin


@njit(**_options)
def copy_cells(places, to, genes, counts):
    """Copy the entries of cells in one call, because each call waits for the lock of Python.

    places: as in `Located`; to: int64 [C], where the entries of a cell begin in genes and counts.
    """
    for c in range(len(places)):
        of_genes, of_counts, gene_bytes, count_bytes, number = places[c]
        fetch(of_genes, gene_bytes, genes[to[c] : to[c] + number])
        fetch(of_counts, count_bytes, counts[to[c] : to[c] + number])


def genes_of(source: Located, cell: int) -> np.ndarray:
    """Return the gene numbers of one cell, int64."""
    at, _, size, _, number = source.places[cell].tolist()
    fetch(at, size, genes := np.empty(number, np.int64))
    return genes


@njit(**_options)
def largest_gene(places):
    """Return the largest gene number of the cells, in 2 or 4 bytes, -1 where they have none."""
    largest = np.int64(-1)
    for c in range(len(places)):
        at, size, number = places[c, 0], places[c, 2], places[c, 4]
        if size == 2:
            for gene in carray(pointer(at), number, np.uint16):
                largest = max(largest, np.int64(gene))
        else:
            for gene in carray(pointer(at), number, np.uint32):
                largest = max(largest, np.int64(gene))
    return largest
