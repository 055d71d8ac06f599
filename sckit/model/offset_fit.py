"""Fit the linear baselines in count space: sums by training group, which serve every choice of rank and penalty."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import fields, replace

import numpy as np

from sckit.data.batch import Hiding, Packer
from sckit.data.views import cell_of_entry, in_blocks
from sckit.kernels.regression_numba import add_normal_equations, ridge_paths, unpack
from sckit.model.closed_forms import CellFeatures, fit_components
from sckit.model.count_fit import choose_count_penalty, choose_factors, fit_counts, fit_factors, gene_facts
from sckit.model.offset_forms import OffsetForms, VisibleForm, value_of_one
from sckit.model.regression import BLOCK_CELLS, TrainingCells, by_gene, solve_ridge

COMPONENTS = (5, 11, 20, 40)
PENALTIES = (10.0, 30.0, 100.0, 300.0)
"""What inner validation chooses from."""

_TOTAL_PENALTY = 10.0
_UNUSED = np.zeros(0)

Log = Callable[[str], None]


def fit_offset_forms(
    training: TrainingCells,
    *,
    components: int | None = None,
    penalty: float | None = None,
    count_penalty: float | None = None,
    factors: int | None = None,
    log: Log = lambda _: None,
) -> OffsetForms:
    """Fit all rows on the training cells by streaming over them in blocks; None is chosen by inner validation.

    penalty: ridge penalty in units of cells, on features of variance 1; the intercept is free.
    Memory: G x (components + 3)^2 / 2 doubles for every fold, and one block of cells.
    """
    largest = min(len(training.pool()), training.n_genes) - 1
    sizes = sorted({max(0, min(k, largest)) for k in (COMPONENTS if components is None else (components,))})
    penalties = np.array(PENALTIES if penalty is None else (penalty,))
    log("offset baselines: detection components")
    features, between = _fit_features(training, sizes[-1])
    log("offset baselines: regressions")
    one_fold = len(sizes) == len(penalties) == 1
    fold = np.zeros(len(training.cells), np.int64) if one_fold else training.folds()
    packed, sums = _sums(training, features, fold)
    if not one_fold:
        size, best = _choose(packed, sums, np.array(sizes), penalties)
        sizes, penalties = [size], np.array([best])
    forms = _solve(features, between, _added(packed), _added(sums), sizes[0], float(penalties[0]))
    forms = replace(forms, **gene_facts(training))
    del packed, sums
    log("offset baselines: value factors")
    forms = fit_factors(training, forms, choose_factors(training, forms, largest) if factors is None else factors)
    log("offset baselines: count regression")
    if count_penalty is None:
        count_penalty = choose_count_penalty(training, forms)
    (forms,) = fit_counts(training, forms, training.cells, [count_penalty])
    return replace(forms, chosen=np.array([sizes[0], forms.loadings.shape[1], float(penalties[0]), count_penalty]))


def cross_fitted(
    training: TrainingCells, like: OffsetForms, *, whole_groups: bool = False
) -> tuple[np.ndarray, list[OffsetForms]]:
    """Fit the ridges and factors without each of some folds of the training cells, as chosen by `like`.

    Random folds suit a network that sees one cell at a time: without a whole group, what is left of its cells holds all
    that is peculiar to the group, and the network would learn the peculiarities of the groups it sees by heart. One
    that sees other cells of the group as well can read them there, and needs folds of whole groups to learn that.
    Returns the fold of each cell [cells], and the fits; their count regressions are those of `like`, and their factors
    are turned towards those of `like`, which changes no prediction. The components are those of `like`: they know no
    value.
    """
    components, factors, penalty, _ = like.chosen
    fold = (training if whole_groups else replace(training, groups=None)).folds()
    features = CellFeatures(**{each.name: getattr(like, each.name) for each in fields(CellFeatures)})
    between = _between(training, features)
    packed, sums = _sums(training, features, fold)
    fits = []
    for left in range(len(packed)):
        rest = [n for n in range(len(packed)) if n != left]
        kept = replace(training, cells=training.cells[fold != left], groups=None)
        parts = _added([packed[n] for n in rest]), _added([sums[n] for n in rest])
        forms = _solve(features, between, *parts, int(components), float(penalty))
        forms = fit_factors(kept, replace(forms, **gene_facts(kept)), int(factors))
        weights = 1 / like.noise[:, None]
        u, _, v = np.linalg.svd((forms.loadings * weights).T @ like.loadings)
        forms = replace(forms, loadings=np.ascontiguousarray(forms.loadings @ (u @ v)))
        same = {name: getattr(like, name) for name in ("log_rate", "counts", "excess", "chosen")}
        fits.append(replace(forms, **same, cells=forms.cells * (len(fold) / len(kept.cells))))
    return fold, fits


def _fit_features(training: TrainingCells, components: int) -> tuple[CellFeatures, np.ndarray]:
    """Return the components of the detection matrix, and the products [F + 1, F + 1] of the cells' features."""
    features, _ = fit_components(training, components)
    between = _between(training, features)
    return replace(features, total_of_x=_total_of_x(between, components)), between


def _between(training: TrainingCells, features: CellFeatures) -> np.ndarray:
    """Return the products [F + 1, F + 1] of the cells' features."""
    parts = (features.block_features(block) for block in training.blocks(training.pool()))
    return _added(part.T @ part for part in parts)


def _total_of_x(between: np.ndarray, components: int) -> np.ndarray:
    """Return what x with some components says of t, [2 + components], from products of features over all cells."""
    size = 2 + components
    return solve_ridge(between[None, :size, :size], between[None, :size, -1], _TOTAL_PENALTY)[0]


def _ordered(full: np.ndarray) -> np.ndarray:
    """Put t behind depth: (1, depth, t, components), so that the first features serve every number of components."""
    return np.ascontiguousarray(full[:, [0, 1, full.shape[1] - 1, *range(2, full.shape[1] - 1)]])


def _sums(
    training: TrainingCells, features: CellFeatures, fold: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return packed products [G, k (k + 1) / 2] and moments [G, 2, k] of each fold.

    Targets: the value above a single count, and above one in a cell whose total is guessed from x.
    """
    size = features.axes.shape[1] + 3
    packed, sums = [], []
    for number in range(int(fold.max()) + 1):
        packed.append(np.zeros((training.n_genes, size * (size + 1) // 2)))
        sums.append(np.zeros((training.n_genes, 2, size)))
        for block in training.blocks(training.cells[fold == number]):
            full, cell = features.block_features(block), cell_of_entry(block.values.indptr)
            guess = full[:, :-1] @ features.total_of_x * features.scales[3] + features.scales[2]
            ones = np.column_stack([value_of_one(np.log(block.totals)), value_of_one(guess)])
            order, indptr = by_gene(block.values.indices, training.n_genes)
            targets = block.values.data[order, None] - ones[cell[order]]
            nothing = np.zeros((len(order), 0))
            add_normal_equations(indptr, cell[order], targets, _ordered(full), nothing, packed[-1], sums[-1])
    return packed, sums


def _added(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum of arrays of one shape, without changing the first."""
    return functools.reduce(np.add, parts)


def _without_total(packed: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the third feature, t, out of packed products [G, ...] and moments [G, k]."""
    rows, columns = np.tril_indices(moment.shape[1])
    kept = (rows != 2) & (columns != 2)
    return np.ascontiguousarray(packed[:, kept]), np.delete(moment, 2, 1)


def _choose(
    packed: list[np.ndarray], sums: list[np.ndarray], sizes: np.ndarray, penalties: np.ndarray
) -> tuple[int, float]:
    """Return the number of components and the penalty whose two ridges together are best on folds left out."""
    whole, moments_of_all = _added(packed), _added(sums)
    errors = np.zeros((len(whole), len(penalties), len(sizes)))
    for left, left_sums in zip(packed, sums, strict=True):
        rest, rest_sums = whole - left, moments_of_all - left_sums
        ridge_paths(
            rest, np.ascontiguousarray(rest_sums[:, 0]), left, np.ascontiguousarray(left_sums[:, 0]),
            penalties, sizes + 3, errors,
        )  # fmt: skip
        ridge_paths(
            *_without_total(rest, rest_sums[:, 1]), *_without_total(left, left_sums[:, 1]),
            penalties, sizes + 2, errors,
        )  # fmt: skip
    best, size = np.unravel_index(errors.sum(0).argmin(), errors.shape[1:])
    return int(sizes[size]), float(penalties[best])


def _solve(
    features: CellFeatures, between: np.ndarray, packed: np.ndarray, sums: np.ndarray, components: int, penalty: float
) -> OffsetForms:
    """Return the two ridges on all training cells."""
    size = components + 3
    gram = unpack(packed, size)
    by_total = solve_ridge(gram, sums[:, 0, :size], penalty)
    kept = np.delete(np.arange(size), 2)
    by_x = solve_ridge(gram[:, kept[:, None], kept], sums[:, 1, :size][:, kept], penalty)
    cut = {"axes": features.axes[:, :components], "origin": features.origin[:components]}
    cut = {name: np.ascontiguousarray(array) for name, array in cut.items()}
    names = (
        "cells",
        "gene_mean",
        "mean_above",
        "deviation",
        "log_rate",
        "mean_count",
        "loadings",
        "noise",
        "counts",
        "excess",
        "chosen",
    )
    return OffsetForms(
        **cut, total_of_x=_total_of_x(between, components), scales=features.scales,
        ridge=by_x, total=by_total[:, [0, 1, *range(3, size), 2]], **dict.fromkeys(names, _UNUSED),
    )  # fmt: skip


def fit_visible(training: TrainingCells, forms: OffsetForms, rate: float, max_genes: int) -> VisibleForm:
    """Fit the row "visible offset ridge" for a mask rate below 1.

    A seeded draw hides values of the training cells. Every entry is predicted from the visible tokens of its cell other
    than itself. Where these do not give the total away, it is guessed from them.
    """
    packer = Packer(
        training.view, training.vocabulary, Hiding(rate, training.seed, epoch=1), known_depth=True, max_genes=max_genes
    )
    size = forms.axes.shape[1] + 3
    packed, sums = np.zeros((len(forms.axes), size * (size + 1) // 2)), np.zeros((len(forms.axes), 1, size))
    unfitted = VisibleForm(forms, rate, _UNUSED)
    full = (unfitted.of_tokens(packer(part))[0].full for part in in_blocks(training.pool(), BLOCK_CELLS))
    total_of_x = _total_of_x(_added(part.T @ part for part in full), size - 3)
    unfitted = replace(unfitted, forms=replace(forms, total_of_x=total_of_x))
    for part in in_blocks(training.cells, BLOCK_CELLS):
        batch = packer(part)
        cells, own = unfitted.of_tokens(batch)
        values = batch.values.astype(np.float64)
        values[batch.targets] = batch.truth
        order, indptr = by_gene(batch.genes, len(forms.axes))
        cell = batch.cell_of_token[order]
        known = np.ascontiguousarray(cells.full[:, [0, 1, -1]])
        components = cells.x[cell, 2:] - own[order]
        targets = (values - cells.one[batch.cell_of_token])[order, None]
        add_normal_equations(indptr, cell, targets, known, components, packed, sums)
    solved = solve_ridge(unpack(packed, size), sums[:, 0], float(forms.chosen[2]))
    return replace(unfitted, coefficients=solved[:, [0, 1, *range(3, size), 2]])
