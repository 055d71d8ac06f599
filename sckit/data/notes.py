"""Sentences on counts that look odd: unfiltered barcodes, binary data, rounded normalised values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_FEW = 10  # counts: most barcodes of an unfiltered matrix have fewer
_SPREAD = 0.01  # of totals around their median: normalised cells all have the same, measured ones never
_ENOUGH = 20  # cells


def odd_counts(totals: np.ndarray, n_genes: np.ndarray, name: str) -> Iterator[str]:
    """Say what looks odd about the cells of one source, from their totals [C] and numbers of detected genes [C]."""
    if len(totals) < _ENOUGH:
        return
    few, median = int((totals < _FEW).sum()), float(np.median(totals))
    if 2 * few > len(totals) or (median < 10 * _FEW and np.quantile(totals, 0.99) > 20 * median):
        yield (
            f"{few:,} of the {len(totals):,} cells of {name} have fewer than {_FEW} counts: this looks like a raw "
            "matrix with empty droplets; give the filtered one, or leave them out with --min-genes"
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
