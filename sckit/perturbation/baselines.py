"""Linear baselines of the response task: the effect of a perturbation that was not measured.

    no change               0
    mean                    mean over the training perturbations
    additive                effects of the parts of a combination added up, plus an effect of the covariate group
    ridge on components     linear in an embedding of the target genes and of the covariate group
    nearest neighbours      mean of the training units nearest in that embedding

Nothing here is random. Settings are chosen on training units alone, by leaving out what is new in the test units:
perturbations, or covariate groups where every test perturbation is also a training one.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from sckit.perturbation.fold import FoldView
from sckit.perturbation.questions import Predictor, blind
from sckit.perturbation.ridge import (
    PENALTIES,
    Ridge,
    first_best,
    group_weights,
    neighbour_means,
    rows_by_fold,
    squared_distances,
    truncated_svd,
)

NEIGHBOURS = (1, 3, 5, 10)
"""Numbers of neighbours tried, after all training units, which is the mean."""

_COMPONENTS = 10  # of the training effects, as in the source of the ridge
_MOST_FOLDS = 20
_TINY = 1e-6  # penalty that settles what the additive fit leaves open; it changes the rest by about a millionth


def response_baselines() -> dict[str, Predictor]:
    """Return the predictors of RESPONSE by name."""
    return {name: blind(lambda fold, predict=predict: predict(fold.view)) for name, predict in RESPONSE.items()}


def no_change(fold: FoldView) -> np.ndarray:
    """Return deltas [m, G] of zero."""
    return np.zeros((len(fold.test), fold.delta.shape[1]))


def mean_of_training(fold: FoldView) -> np.ndarray:
    """Return the mean delta of the training perturbations for each test unit [m, G]."""
    return np.tile(fold.mean, (len(fold.test), 1))


def additive(fold: FoldView) -> np.ndarray:
    """Predict deltas [m, G] as sums over the parts p of a unit, in group c, of mu + alpha[p] + beta[c].

    Fitted by least squares; what the data leave open is settled by the smallest alpha and beta. A part or group without
    a training unit has an effect of 0, so an unseen perturbation is predicted by mu + beta[c]. Where the training units
    are single perturbations in one group, a combination is the sum of its parts' deltas.
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
    # Few parts occur together, so that the factor is sparse in this order of elimination.
    factor = splu(gram, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return design[fold.test] @ factor.solve(seen.T @ fold.delta[fold.train])


def _best(fold: FoldView, predict: Callable[["_Embedding"], list[np.ndarray]]) -> np.ndarray:
    """Return the candidate prediction [m, G] whose setting has the least error on left-out training groups.

    The embedding is read off the training deltas, so it is fitted again without each group. With a single group no
    setting can be judged, and the mean is returned.
    """
    perturbation, covariates = fold.perturbation[fold.train], fold.covariates[fold.train]
    known = np.isin(fold.perturbation[fold.test], perturbation).all()
    group = covariates if known and len(np.unique(covariates)) > 1 else perturbation
    folds = rows_by_fold(group, _MOST_FOLDS)
    if len(folds) < 2:
        return mean_of_training(fold)
    candidates = predict(_Embedding(fold))
    errors, weight = np.zeros(len(candidates)), group_weights(perturbation)
    for left in folds:
        inner = replace(fold, train=np.delete(fold.train, left), test=fold.train[left])
        judged, truth = predict(_Embedding(inner)), fold.delta[inner.test]
        errors[len(judged) :] = np.inf  # there are fewer candidates when units are too few for the most neighbours
        for i, candidate in enumerate(judged):
            errors[i] += weight[left] @ ((truth - candidate) ** 2).sum(1)
    return candidates[first_best(errors)]


class _Embedding:
    """Features of units: gene loadings of their targets, added up over parts, and projections of their controls.

    Source: Ahlmann-Eltze, Huber, Anders (2025), the linear model; its gene embedding is the first block.
    """

    def __init__(self, fold: FoldView) -> None:
        self.fold, self.mean = fold, fold.mean
        self.weight = group_weights(fold.perturbation[fold.train])
        deviation = fold.delta[fold.train] - self.mean
        for row, unit in enumerate(fold.train):
            # A knocked-down gene is low in its own unit, which would distinguish the embeddings of training units.
            targets = fold.target_genes[list(fold.parts[unit])]
            deviation[row, targets[targets >= 0]] = 0.0
        weighted = np.sqrt(self.weight)[:, None] * deviation
        self.axes, _ = truncated_svd(weighted, min(_COMPONENTS, len(fold.train) - 1))  # [G, K]
        self.scores = deviation @ self.axes  # [n, K]
        count = np.array([[float(len(parts))] for parts in fold.parts])
        perturbed = [self._of_parts(self.axes), self._of_parts(fold.components), count - count[fold.train].mean()]
        first = fold.train[np.unique(fold.covariates[fold.train], return_index=True)[1]]  # unit of each group
        controls = (fold.control - fold.control[first].mean(0)) @ fold.components
        self.features = np.column_stack([self._scaled(block) for block in (*perturbed, controls)])  # [U, F]
        self.perturbed = sum(block.shape[1] for block in perturbed)
        self.known = np.array([(fold.target_genes[list(parts)] >= 0).any() for parts in fold.parts])  # [U]

    def _of_parts(self, loadings: np.ndarray) -> np.ndarray:
        fold, targets = self.fold, self.fold.target_genes
        seen = np.unique(np.concatenate([np.array(fold.parts[unit]) for unit in fold.train]))
        seen = seen[targets[seen] >= 0]
        centre = loadings[targets[seen]].mean(0) if len(seen) else np.zeros(loadings.shape[1])
        of_part = np.where(targets[:, None] >= 0, loadings[targets] - centre, 0.0)  # an unknown target is at the mean
        return np.array([of_part[list(parts)].sum(0) for parts in fold.parts])

    def _scaled(self, block: np.ndarray) -> np.ndarray:
        """Scale a block [U, f] to a total variance of one over the training units; zero if it does not vary there."""
        rows = block[self.fold.train]
        variance = rows.var(0).sum()
        return block / np.sqrt(variance) if variance > 1e-12 * (rows**2).sum() else np.zeros_like(block)

    def ridge(self) -> list[np.ndarray]:
        """Return predictions [m, G] at each of PENALTIES."""
        train, test = self.features[self.fold.train], self.features[self.fold.test]
        ridge = Ridge(train, self.scores, self.weight)
        return [self.mean + (test - ridge.centre) @ ridge.coefficients(p) @ self.axes.T for p in PENALTIES]

    def neighbours(self) -> list[np.ndarray]:
        """Return predictions [m, G] by all training units and by each number of NEIGHBOURS that is less than all.

        A unit with unknown targets is near to those with similar controls.
        """
        fold = self.fold
        train, test = self.features[fold.train], self.features[fold.test]
        distances = squared_distances(test[:, self.perturbed :], train[:, self.perturbed :])
        of_target = squared_distances(test[:, : self.perturbed], train[:, : self.perturbed])
        distances += np.where(self.known[fold.test, None], of_target, 0.0)
        counts = tuple(k for k in NEIGHBOURS if k < len(fold.train))
        return [mean_of_training(fold), *neighbour_means(distances, fold.delta[fold.train], self.weight, counts)]


RESPONSE: dict[str, Callable[[FoldView], np.ndarray]] = {
    "no change": no_change,
    "mean": mean_of_training,
    "additive": additive,
    "ridge on components": lambda fold: _best(fold, _Embedding.ridge),
    "nearest neighbours": lambda fold: _best(fold, _Embedding.neighbours),
}
