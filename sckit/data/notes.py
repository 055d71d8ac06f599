"""Sentences on counts that look odd: unfiltered barcodes, binary or normalised values, lone large counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sckit.data.readers.source import CELLS_PER_BLOCK, Source
from sckit.data.store import Store

_FEW = 10  # counts: most barcodes of an unfiltered matrix have fewer
_SPREAD = 0.01  # of totals around their median: normalised cells all have the same, measured ones never
_ENOUGH = 20  # cells
_LARGE = 10  # for a count of a gene that is one in all other cells
_LONE_GENES, _LONE_SHARE = 10, 0.005  # of the detected genes: pbmc3k has 122, 0.9 %; Kang has nine
_MOST_CELLS = 10_000  # that are looked at: in more cells fewer genes are one everywhere
_LIKE_TOTALS = re.compile(r"total|n_?counts?|n_?umis?", re.IGNORECASE)


def odd_inputs(
    sources: Sequence[Source], names: Sequence[str], kept: np.ndarray, lost: Sequence[dict[str, int]], n_shared: int
) -> Iterator[str]:
    """Say what is odd about several inputs together: one twice, one without kept cells, few shared genes.

    kept, lost: of each source the number of cells that are kept, and those that are not by reason.
    """
    resolved = [source.path.resolve() for source in sources]
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        if resolved[number] in resolved[:number]:
            yield f"{source.path} is given twice, so its cells may be in training and in test"
        if not kept[number]:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in lost[number].items())
            advice = "; keep them with --assay any" if "cells of assay" in reasons else ""
            yield f"no cell of {name} is kept: {reasons}{advice}"
    used = [(name, len(source.genes)) for source, name, n in zip(sources, names, kept, strict=True) if n]
    if len(used) > 1 and (2 * n_shared < min(n for _, n in used) or 5 * n_shared < max(n for _, n in used)):
        found = ", ".join(f"{name} has {n:,}" for name, n in used[:5])
        yield f"only {n_shared:,} genes are in every input ({found}); all others are left out"


def larger_totals(obs: pd.DataFrame, rows: np.ndarray, totals: np.ndarray, name: str) -> Iterator[str]:
    """Name a column of one source that may hold totals over more genes than the file has; rows: its cells [C]."""
    for column in obs.columns:
        if _LIKE_TOTALS.search(str(column)) and obs[column].dtype.kind in "iuf":
            values = obs[column].to_numpy(np.float64)[rows]
            if (values >= totals).all() and np.median(values) > 1.05 * np.median(totals):
                yield (
                    f"the column {column} of {name} is larger than the counts in the file: if it is the total over all "
                    f"genes that were measured, give --totals {column}"
                )


def odd_counts(totals: np.ndarray, n_genes: np.ndarray, name: str) -> Iterator[str]:
    """Say what looks odd about the cells of one source, from their totals [C] and numbers of detected genes [C]."""
    if len(totals) < _ENOUGH:
        return
    few, median = int((totals < _FEW).sum()), float(np.median(totals))
    if 2 * few > len(totals) or (median < 10 * _FEW and np.quantile(totals, 0.99) > 20 * median):
        yield (
            f"{few:,} of the {len(totals):,} cells of {name} have fewer than {_FEW} counts: this looks like a raw "
            "matrix with empty droplets; give the filtered one, or leave them out, for example with --min-genes 200"
        )
    if totals.sum() <= 1.02 * n_genes.sum():
        yield (
            f"the cells of {name} have hardly more counts than detected genes, as if values were 0 and 1 (binary) "
            "instead of counts"
        )
    elif median > 10 * _FEW and np.median(np.abs(totals - median)) <= _SPREAD * median:
        yield (
            f"the cells of {name} all have about {median:,.0f} counts: this looks like normalised and rounded values "
            "instead of counts"
        )


def lone_counts(store: Store, first: int, last: int, name: str) -> Iterator[str]:
    """Say if many genes of one source are one in all cells but a single one; its cells in the store: first..last."""
    detected, above_one, large = np.zeros((3, store.n_genes), np.int64)
    stop = min(last, first + _MOST_CELLS)
    for start in range(first, stop, CELLS_PER_BLOCK):
        _indptr, genes, counts = store.block(start, min(start + CELLS_PER_BLOCK, stop))
        for number, some in ((detected, genes), (above_one, genes[counts > 1]), (large, genes[counts >= _LARGE])):
            number += np.bincount(some, minlength=store.n_genes)
    lone, found = int(((detected > 1) & (above_one == 1) & (large == 1)).sum()), int((detected > 0).sum())
    if lone >= max(_LONE_GENES, _LONE_SHARE * found):
        cut = f" in its first {_MOST_CELLS:,} cells" if stop < last else ""
        yield (
            f"{lone:,} of the {found:,} detected genes of {name} have a count of one in all of their cells{cut} but "
            f"one, where it is {_LARGE} or more; other data have few such genes, so find out how the molecules were "
            "counted before you trust scores of single values"
        )
