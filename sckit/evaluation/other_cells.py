"""What other cells say of a value: offsets of a cell's group, and the cells that are most like it.

Each visible value leaves something of the value offset ridge without that value (`Shown`). Averaged over other cells,
it says what the ridge lacks for a gene.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from sckit.data.batch import Batch
from sckit.data.views import cell_of_entry, with_data
from sckit.model.calibration import STRATA, stratum_of
from sckit.model.neighbours import components_of, nearest
from sckit.model.offset_forms import OffsetForms
from sckit.model.regression import ones_like

_KAPPAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_LEAST_ENTRIES = 100  # of a stratum of genes, for a weight


@dataclass(frozen=True)
class Shown:
    """What the visible values of C cells leave of the value offset ridge."""

    cells: np.ndarray  # int64 [C], rows of the store
    components: np.ndarray  # float32 [C, K], of the detection set
    left: sp.csr_array  # float32 [C, G]

    def less(self, offsets: "GroupOffsets") -> np.ndarray:
        """Return what is left without the offsets of each cell's group, float32 [nnz]."""
        cell = self.cells[cell_of_entry(self.left.indptr)]
        return self.left.data - offsets.of(cell, self.left.indices).astype(np.float32)

    def subset(self, most: int, seed: int) -> "Shown":
        """Return at most `most` of the cells, drawn by seed."""
        if len(self.cells) <= most:
            return self
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self.cells))[:most])
        return Shown(self.cells[drawn], self.components[drawn], sp.csr_array(self.left[drawn]))

    def and_also(self, other: "Shown") -> "Shown":
        """Return these cells and others."""
        left = sp.csr_array(sp.vstack([self.left, other.left], "csr"))
        components = np.concatenate([self.components, other.components])
        return Shown(np.concatenate([self.cells, other.cells]), components, left)


def shown(forms: OffsetForms, batches: Iterable[Batch]) -> Shown:
    """Collect what the visible values of the batches leave."""
    cells, components, left = [], [], []
    for batch in batches:
        of_cells = forms.of_cells(batch)
        cells.append(batch.cells)
        components.append(components_of(forms, of_cells.x))
        found = forms.left_of_visible(batch, of_cells)
        left.append(with_data(found, found.data.astype(np.float32)))
    return Shown(np.concatenate(cells), np.concatenate(components), sp.csr_array(sp.vstack(left, "csr")))


def _product(one: Any, other: Any) -> np.ndarray:
    """Return the product of two sparse matrices, dense."""
    return (one @ other).toarray()


@dataclass(frozen=True)
class GroupOffsets:
    """An offset for every gene in every group."""

    codes: np.ndarray  # int64 [cells of the store], -1 without a group, whose offsets are zero
    table: np.ndarray  # float64 [groups, G]
    kappa: np.ndarray  # [strata of genes], infinite where groups do not differ

    def of(self, cells: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return the offsets [N] of genes [N] in cells [N], rows of the store."""
        codes = self.codes[cells]
        return np.where(codes >= 0, self.table[codes, genes], 0.0)


def fit_group_offsets(cells: Shown, codes: np.ndarray, mean_count: np.ndarray) -> GroupOffsets:
    """Estimate the offsets: for each group and gene the sum of what is left, divided by the number of values + kappa.

    codes: [cells of the store]; mean_count: [G]. kappa is the variance of what is left within groups over the variance
    of the offsets, which genes with like mean counts share. Products of what is left in two cells of a group have the
    variance of the offsets as their mean (method of moments): offsets that are nothing but noise are shrunk to nothing.
    """
    of = codes[cells.cells]
    member = np.flatnonzero(of >= 0)
    shape = (max(int(codes.max()) + 1, 1), len(of))
    groups = sp.csr_array((np.ones(len(member)), (of[member], member)), shape)
    squared = with_data(cells.left, cells.left.data.astype(np.float64) ** 2)
    sums, counts, squares = (_product(groups, part) for part in (cells.left, ones_like(cells.left), squared))
    stratum, kappa = stratum_of(mean_count), np.full(len(STRATA) - 1, np.inf)
    for s in range(len(kappa)):
        total, n, square = (part[:, stratum == s] for part in (sums, counts, squares))
        between = (total**2 - square).sum() / max((n * (n - 1)).sum(), 1)
        if between > 0:
            kappa[s] = max(square.sum() / n.sum() - between, 0) / between
    return GroupOffsets(codes, sums / np.maximum(counts + kappa[stratum], 1), kappa)


class Neighbours:
    """Finds the nearest cells of a pool, and adds up what their visible values leave."""

    def __init__(
        self, pool: Shown, k: int, left: dict[str, sp.csr_array] | None = None, groups: np.ndarray | None = None
    ) -> None:
        """Search among a pool.

        left: what is added up for each row, by default what the pool leaves, of the same entries; groups: [cells of the
        store], with which neighbours come from other groups.
        """
        self._pool, self._k, self._groups = pool, k, groups
        self._left = {"": pool.left} if left is None else left
        self._ones = with_data(pool.left, np.ones(len(pool.left.data), np.float32))

    def find(self, cells: np.ndarray, components: np.ndarray) -> sp.csr_array:
        """Return which cells of the pool are neighbours of cells [c], rows of the store, as ones [c, pool]."""
        barred = cells[:, None] == self._pool.cells
        if self._groups is not None:
            barred |= self._groups[cells][:, None] == self._groups[self._pool.cells]
        chosen, found = nearest(components, self._pool.components, barred, self._k)
        indptr = np.concatenate([[0], np.cumsum(found.sum(1))])
        return sp.csr_array((np.ones(indptr[-1]), chosen[found], indptr), barred.shape)

    def __call__(self, batch: Batch, components: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return for each row what neighbours leave of a batch's targets, in sum, and how many show them; [M] each."""
        found = self.find(batch.cells, components)
        at = batch.target_cells, batch.genes[batch.targets]
        counts = _product(found, self._ones)[at]
        return {name: (_product(found, left)[at], counts) for name, left in self._left.items()}


@dataclass(frozen=True)
class Weights:
    """How a sum over neighbours enters a prediction: times weight / (number + kappa), for strata of genes."""

    weight: np.ndarray  # [strata]
    kappa: np.ndarray  # [strata]

    def __call__(self, sums: np.ndarray, counts: np.ndarray, mean_count: np.ndarray) -> np.ndarray:
        """Return what is added to predictions [M]; mean_count: [M], of the genes."""
        stratum = stratum_of(mean_count)
        return self.weight[stratum] * sums / (counts + self.kappa[stratum])


def fit_weights(left: np.ndarray, sums: np.ndarray, counts: np.ndarray, mean_count: np.ndarray) -> Weights:
    """Fit by least squares what predictions leave [M] on sums over neighbours [M]; a stratum has one weight and kappa.

    A stratum with few entries, or whose weight would be negative, gets none.
    """
    stratum = stratum_of(mean_count)
    weight, kappa = np.zeros(len(STRATA) - 1), np.full(len(STRATA) - 1, _KAPPAS[0])
    for s in range(len(weight)):
        y, x, n = (part[stratum == s] for part in (left, sums, counts))
        if len(y) < _LEAST_ENTRIES:
            continue
        features = x / (n + np.array(_KAPPAS)[:, None])
        products, squares = features @ y, np.maximum((features**2).sum(1), 1e-12)
        best = int((np.maximum(products, 0) ** 2 / squares).argmax())
        weight[s], kappa[s] = max(products[best], 0) / squares[best], _KAPPAS[best]
    return Weights(weight, kappa)
