"""Closed-form predictors of the effect of a perturbation that was not measured: what a network has to beat.

    no change               0
    mean                    mean over the training perturbations
    additive                effects of the parts of a combination added up, plus an effect of the covariate group
    ridge on components     linear in an embedding of the target genes and of the covariate group
    nearest neighbours      mean of the training units nearest in that embedding

Nothing here is random. Whatever has to be chosen is chosen on training units alone, by leaving out what is new in the
test units: perturbations, or covariate groups where every test perturbation is also a training one.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from sckit.errors import DataError
from sckit.perturbation.ridge import (
    PENALTIES,
    Ridge,
    assign_folds,
    balanced_mean,
    first_best,
    fold_rows,
    group_weights,
    neighbour_means,
    squared_distances,
    truncated_svd,
)

RESPONSE = ("no change", "mean", "additive", "ridge on components", "nearest neighbours")

NEIGHBOURS = (1, 3, 5, 10)
"""Numbers of neighbours tried; the fifth choice is all, which is the mean."""

_COMPONENTS = 10  # of the training effects, as in the source of the ridge
_MOST_FOLDS = 20
_TINY = 1e-6  # in units: fixes what the additive fit leaves open, and changes the rest by a millionth


@dataclass(frozen=True)
class FoldView:
    """What every predictor of a fold may see of U units and G genes; profiles are means of log1p(CP10k)."""

    train: np.ndarray  # int [n], units
    test: np.ndarray  # int [m]
    delta: np.ndarray  # [U, G], rows of test units are NaN (a leak would show)
    control: np.ndarray  # [U, G], profile of the input controls of each unit's strata
    parts: tuple[tuple[int, ...], ...]  # [U], numbers of the perturbations combined in each unit
    covariates: np.ndarray  # int [U], covariate group
    target_genes: np.ndarray  # int [P], column of each perturbation's target gene, -1 unknown
    components: np.ndarray  # [G, k], loadings of the principal components of the control cells (input half)

    def __post_init__(self) -> None:
        if not len(self.train):
            message = "a fold has no training unit, so nothing can be predicted; ask for fewer folds or a larger share."
            raise DataError(message)

    @property
    def perturbation(self) -> np.ndarray:
        """Number of each unit's perturbation, int [U]: the same for equal sets of parts."""
        number: dict[tuple[int, ...], int] = {}
        return np.array([number.setdefault(tuple(sorted(parts)), len(number)) for parts in self.parts])


def response_baselines(fold: FoldView) -> dict[str, np.ndarray]:
    """Predicted deltas [m, G] of the test units, by every name of RESPONSE."""
    mean = mean_of_training(fold)
    ridge, neighbours = _from_features(fold)
    return dict(zip(RESPONSE, (np.zeros_like(mean), mean, additive(fold), ridge, neighbours), strict=True))


def mean_of_training(fold: FoldView) -> np.ndarray:
    """Mean delta [m, G] of the training perturbations, each counted once, however many units it has."""
    return np.tile(_mean(fold), (len(fold.test), 1))


def _mean(fold: FoldView) -> np.ndarray:
    return balanced_mean(fold.delta[fold.train], fold.perturbation[fold.train])


def additive(fold: FoldView) -> np.ndarray:
    """Deltas [m, G] as sums over the parts p of a unit, in group c, of mu + alpha[p] + beta[c], by least squares.

    A part or group without a training unit has an effect of 0, so an unseen perturbation is predicted by mu +
    beta[c]. What the data leave open is decided by the smallest alpha and beta. Where the training units are single
    perturbations in one group, a combination is the sum of its parts' deltas.
    """
    parts, groups = max(max(parts) for parts in fold.parts) + 1, int(fold.covariates.max()) + 1
    rows = np.repeat(np.arange(len(fold.parts)), [len(p) for p in fold.parts])
    columns = np.concatenate([np.array(p) for p in fold.parts])
    ones = np.ones(len(rows))
    alpha = sp.csr_array((ones, (rows, columns)), (len(fold.parts), parts))
    beta = sp.csr_array((ones, (rows, fold.covariates[rows])), (len(fold.parts), groups))
    mu = sp.csr_array(np.bincount(rows)[:, None].astype(float))
    design = sp.csr_array(sp.hstack([mu, alpha, beta]))
    seen = design[fold.train]
    penalty = np.array([0.0] + [_TINY] * (parts + groups))
    gram = sp.csc_array(seen.T @ seen + sp.diags_array(penalty))
    # The many parts hardly touch each other; this order of elimination keeps it so.
    factor = splu(gram, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return design[fold.test] @ factor.solve(seen.T @ fold.delta[fold.train])


def _from_features(fold: FoldView) -> tuple[np.ndarray, np.ndarray]:
    """Ridge on components and nearest neighbours [m, G] each, their settings chosen on the training units.

    Every candidate is judged on left-out groups with the embedding itself fitted anew without them, because the
    embedding is read off the training deltas. With one group nothing can be judged and both are the mean.
    """
    perturbation, covariates = fold.perturbation[fold.train], fold.covariates[fold.train]
    known = np.isin(fold.perturbation[fold.test], perturbation).all()
    group = covariates if known and len(np.unique(covariates)) > 1 else perturbation
    folds = fold_rows(assign_folds(group, _MOST_FOLDS))
    if len(folds) < 2:
        return mean_of_training(fold), mean_of_training(fold)
    by_ridge, by_count = np.zeros(len(PENALTIES)), np.zeros(len(NEIGHBOURS) + 1)
    weight = group_weights(perturbation)
    for left in folds:
        inner = replace(fold, train=np.delete(fold.train, left), test=fold.train[left])
        embedding = _Embedding(inner)
        truth = fold.delta[inner.test]
        for errors, candidates in ((by_ridge, embedding.ridge()), (by_count, embedding.neighbours())):
            # Too many neighbours for the units there are: as good as none of the candidates.
            errors[len(candidates) :] = np.inf
            for i, candidate in enumerate(candidates):
                errors[i] += weight[left] @ ((truth - candidate) ** 2).sum(1)
    embedding = _Embedding(fold)
    return embedding.ridge()[first_best(by_ridge)], embedding.neighbours()[first_best(by_count)]


class _Embedding:
    """Features of units: rows of gene loadings at their target genes, added up over parts, and of their controls.

    Source: Ahlmann-Eltze, Huber, Anders (2025), the linear model; its gene embedding is the first block.
    """

    def __init__(self, fold: FoldView) -> None:
        self.fold, self.mean = fold, _mean(fold)
        self.weight = group_weights(fold.perturbation[fold.train])
        deviation = fold.delta[fold.train] - self.mean
        for row, unit in enumerate(fold.train):
            # A knocked-down gene is low in its own unit; kept, it would mark the embeddings of training units only.
            targets = fold.target_genes[list(fold.parts[unit])]
            deviation[row, targets[targets >= 0]] = 0.0
        weighted = np.sqrt(self.weight)[:, None] * deviation
        self.axes, _ = truncated_svd(weighted, min(_COMPONENTS, len(fold.train) - 1))  # [G, K]
        self.scores = deviation @ self.axes  # [n, K]
        perturbed = [self._of_parts(self.axes), self._of_parts(fold.components), self._number_of_parts()]
        self.features = np.column_stack([*perturbed, self._of_controls()])  # [U, F]
        self.perturbed = sum(block.shape[1] for block in perturbed)
        self.known = np.array([(fold.target_genes[list(parts)] >= 0).any() for parts in fold.parts])  # [U]

    def _of_parts(self, loadings: np.ndarray) -> np.ndarray:
        fold = self.fold
        targets = fold.target_genes
        seen = np.unique(np.concatenate([np.array(fold.parts[unit]) for unit in fold.train]))
        seen = seen[targets[seen] >= 0]
        centre = loadings[targets[seen]].mean(0) if len(seen) else np.zeros(loadings.shape[1])
        of_part = np.where(targets[:, None] >= 0, loadings[targets] - centre, 0.0)  # an unknown target is at the mean
        return self._scaled(np.array([of_part[list(parts)].sum(0) for parts in fold.parts]))

    def _number_of_parts(self) -> np.ndarray:
        count = np.array([[float(len(parts))] for parts in self.fold.parts])
        return self._scaled(count - count[self.fold.train].mean())

    def _of_controls(self) -> np.ndarray:
        fold = self.fold
        first = fold.train[np.unique(fold.covariates[fold.train], return_index=True)[1]]
        return self._scaled((fold.control - fold.control[first].mean(0)) @ fold.components)

    def _scaled(self, block: np.ndarray) -> np.ndarray:
        """A block [U, f] with a total variance of one over the training units; zero if it does not vary there."""
        rows = block[self.fold.train]
        variance = rows.var(0).sum()
        return block / np.sqrt(variance) if variance > 1e-12 * (rows**2).sum() else np.zeros_like(block)

    def ridge(self) -> list[np.ndarray]:
        """Predictions [m, G] at each of PENALTIES."""
        train, test = self.features[self.fold.train], self.features[self.fold.test]
        ridge = Ridge.fit(train, self.scores, self.weight)
        return [self.mean + (test - ridge.centre[0]) @ ridge.coefficients(p) @ self.axes.T for p in PENALTIES]

    def neighbours(self) -> list[np.ndarray]:
        """Predictions [m, G] by all training units and by each of NEIGHBOURS of which there are enough.

        A unit with unknown targets is near to those with similar controls.
        """
        fold = self.fold
        train, test = self.features[fold.train], self.features[fold.test]
        distances = squared_distances(test[:, self.perturbed :], train[:, self.perturbed :])
        of_target = squared_distances(test[:, : self.perturbed], train[:, : self.perturbed])
        distances += np.where(self.known[fold.test, None], of_target, 0.0)
        counts = tuple(k for k in NEIGHBOURS if k < len(fold.train))
        return [mean_of_training(fold), *neighbour_means(distances, fold.delta[fold.train], self.weight, counts)]
