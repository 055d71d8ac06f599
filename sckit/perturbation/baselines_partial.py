"""Linear baselines of the partial task: hidden genes of a perturbed profile from revealed ones.

Each models deviations from a prior, the mean of the training perturbations:

    no change                   0
    mean                        the prior
    additive                    as in the response task; sees no revealed gene
    ridge revealed to hidden    deviations at scored genes, linear in those at revealed genes
    low-rank                    factors of the training deviations, estimated from the revealed genes
    nearest neighbours          mean of the training rows with the nearest revealed deviations
    Gaussian conditional        what the covariance of untreated cells says of hidden given revealed genes

Nothing here is random. Penalties, ranks and numbers of neighbours are those with the least squared error when training
perturbations are left out; each perturbation counts the same, however many rows it has.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from sckit.perturbation.baselines import response_baselines
from sckit.perturbation.fold import FoldData
from sckit.perturbation.questions import Predictor, Question
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

NEIGHBOURS = (1, 3, 5, 10, 30, 100)
RANKS = (1, 2, 3, 5, 10, 20, 40)
SHRINKAGES = (100.0, 10.0, 1.0, 0.3, 0.1, 0.01)
"""Added to the diagonal of the correlation matrix of the revealed genes; infinity, the mean, is tried as well."""

_MOST_FOLDS = 50
_SPAN = 64  # directions of the rows that the low-rank model may use; more than its highest rank


@dataclass
class Revealed:
    """What the predictors of one panel may see: R revealed and S scored genes, n training rows and m test units.

    A training row is half of a unit; every value is a delta.
    """

    seen_train: np.ndarray  # [n, R], visible deltas
    truth_train: np.ndarray  # [n, S], target deltas
    seen_test: np.ndarray  # [m, R]
    prior: np.ndarray  # [R + S], mean of the training perturbations: of the revealed genes, then of the scored
    group: np.ndarray  # int [n], rows of one number are left out together
    cross: np.ndarray  # [S, R], covariance of scored and revealed genes in untreated cells (input half)
    own: np.ndarray  # [R, R], of the revealed genes

    def __post_init__(self) -> None:
        self.revealed = revealed = self.seen_train.shape[1]
        self.weight, self.folds = group_weights(self.group), rows_by_fold(self.group, _MOST_FOLDS)
        # Deviations from the prior.
        self.all = np.hstack([self.seen_train, self.truth_train]) - self.prior  # [n, R + S]
        self.seen, self.truth = self.all[:, :revealed], self.all[:, revealed:]
        self.test = self.seen_test - self.prior[:revealed]  # [m, R]
        self.judged = self._about_the_others() if len(self.folds) > 1 else self.all  # [n, R + S]
        self.unexplained = self.weight @ (self.judged[:, revealed:] ** 2).sum(1)
        """Weighted squared error of the mean."""

    def _about_the_others(self) -> np.ndarray:
        """Return deviations [n, R + S] from the mean of the other folds.

        The prior of a training row is an average that contains the row, so a deviation from it tells the row's value.
        """
        sums = np.array([self.weight[rows] @ self.all[rows] for rows in self.folds])
        weights = np.array([self.weight[rows].sum() for rows in self.folds])
        others = (sums.sum(0) - sums) / (weights.sum() - weights)[:, None]
        judged = self.all.copy()
        for rows, mean in zip(self.folds, others, strict=True):
            judged[rows] -= mean
        return judged


def partial_baselines() -> dict[str, Predictor]:
    """Return the predictors of PARTIAL by name."""
    blind = {name: predict for name, predict in response_baselines().items() if name in PARTIAL[:3]}
    return blind | {name: functools.partial(_by_panel, name) for name in FITTED}


def _by_panel(name: str, fold: FoldData, question: Question) -> np.ndarray:
    """Predict deltas [m, G] by one of FITTED; NaN for genes that no panel predicts."""
    visible = question.visible - fold.view.control[question.units]
    seen, target, group = fold.training_rows
    found = np.full(visible.shape, np.nan)
    for panel in question.panels:
        r, s = panel.revealed, panel.scored
        prior, covariance = fold.view.mean[np.concatenate([r, s])], fold.control_covariance
        cross, own = covariance[np.ix_(s, r)], covariance[np.ix_(r, r)]
        data = Revealed(seen.take(r, 1), target.take(s, 1), visible.take(r, 1), prior, group, cross, own)
        found[:, s] = predict_scored(name, data)
    return found


def predict_scored(name: str, data: Revealed) -> np.ndarray:
    """Predict deltas [m, S] of the test units at the scored genes by one of FITTED.

    With no revealed gene, or a single group of training rows, no setting can be judged, and the mean is returned.
    """
    prior = np.tile(data.prior[data.revealed :], (len(data.test), 1))
    return prior + FITTED[name](data) if data.revealed and len(data.folds) > 1 else prior


def _ridge(rows: Revealed) -> np.ndarray:
    """Fit slopes about the mean of the training rows, but apply them to deviations from the prior like the others."""
    ridge = Ridge(rows.seen, rows.truth, rows.weight)
    best = PENALTIES[first_best(ridge.left_out_errors(rows.folds))]
    return rows.test @ ridge.coefficients(best)  # [m, S]


def _neighbours(rows: Revealed) -> np.ndarray:
    distances = squared_distances(rows.seen, rows.seen)
    for own in rows.folds:
        distances[np.ix_(own, own)] = np.inf
    equal = np.ones(len(distances))
    counts = tuple(k for k in NEIGHBOURS if k < len(distances) - max(map(len, rows.folds)))
    errors = [rows.unexplained]
    for mean in neighbour_means(distances, rows.truth, equal, counts):
        errors.append(rows.weight @ ((rows.truth - mean) ** 2).sum(1))
    best = first_best(np.array(errors))
    if not best:
        return np.zeros((len(rows.test), rows.truth.shape[1]))
    return neighbour_means(squared_distances(rows.test, rows.seen), rows.truth, equal, counts[best - 1 : best])[0]


def _conditional(rows: Revealed) -> np.ndarray:
    """Return revealed deviations times (own + shrinkage diag(own))^-1 cross', over genes that vary in untreated cells.

    The largest shrinkages are tried first; those that leave the matrix without a Cholesky factor are passed over.
    """
    variance = rows.own.diagonal()
    varies = variance > 1e-9 * max(variance.max(), 0.0)
    if not varies.any():
        return np.zeros((len(rows.test), rows.truth.shape[1]))
    scale = 1 / np.sqrt(variance[varies])
    correlation = rows.own[np.ix_(varies, varies)] * scale * scale[:, None]
    cross = rows.cross[:, varies] * scale
    seen, truth = rows.judged[:, : rows.revealed][:, varies] * scale, rows.judged[:, rows.revealed :]
    errors, slopes = [rows.unexplained], [np.zeros_like(cross.T)]
    for shrinkage in SHRINKAGES:
        try:
            factor = cho_factor(correlation + shrinkage * np.eye(len(correlation)), lower=True)
        except LinAlgError:
            break
        slopes.append(cho_solve(factor, cross.T))  # [R, S]
        errors.append(rows.weight @ ((truth - seen @ slopes[-1]) ** 2).sum(1))
    return rows.test[:, varies] * scale @ slopes[first_best(np.array(errors))]


def _low_rank(rows: Revealed) -> np.ndarray:
    """Predict from factors of the deviations, shrunk by a penalty over their variance; at full rank this is the ridge.

    This is the posterior mean of the factors of a probabilistic principal component analysis (Tipping and Bishop 1999)
    given the revealed genes alone. Left-out groups are predicted by factors fitted without them.
    """
    model = _Factors(rows)
    rank, penalty = model.choose(rows)
    loadings = model.axes * np.sqrt(model.power)
    seen, scored = loadings[: rows.revealed, :rank], loadings[rows.revealed :, :rank]
    return rows.test @ seen @ np.linalg.solve(seen.T @ seen + penalty * np.eye(rank), scored.T)


FITTED: dict[str, Callable[[Revealed], np.ndarray]] = {
    "ridge revealed to hidden": _ridge,
    "low-rank": _low_rank,
    "nearest neighbours": _neighbours,
    "Gaussian conditional": _conditional,
}
"""Deviations [m, S] of the test units at the scored genes."""

PARTIAL = ("no change", "mean", "additive", *FITTED)


class _Factors:
    """Principal axes of the weighted deviations of the rows, and those without each fold, within the same span."""

    def __init__(self, rows: Revealed) -> None:
        self.root = np.sqrt(rows.weight)[:, None]
        self.centred = self.root * (rows.all - rows.weight @ rows.all / rows.weight.sum())
        self.axes, self.power = truncated_svd(self.centred, _SPAN)  # [R + S, q], [q]
        self.top = float(self.power[0]) if len(self.power) else 0.0

    def choose(self, rows: Revealed) -> tuple[int, float]:
        """Return the rank and the absolute penalty with the least left-out error; rank 0 is the mean."""
        penalties = self.top * np.array(PENALTIES[1:])
        ranks = [rank for rank in RANKS if rank <= len(self.power)]
        errors = self.left_out_errors(rows, ranks, penalties)
        best = first_best(np.append(rows.unexplained, errors))
        if not best:
            return 0, np.inf
        rank, penalty = np.unravel_index(best - 1, errors.shape)
        return ranks[rank], float(penalties[penalty])

    def left_out_errors(self, rows: Revealed, ranks: list[int], penalties: np.ndarray) -> np.ndarray:
        """Return weighted squared errors [ranks, penalties] of folds predicted by factors of the other folds.

        All is computed in the q coordinates of the span, which loses nothing for up to 64 rows.
        """
        split = self.axes[: rows.revealed], self.axes[rows.revealed :]
        judged = self.root * rows.judged
        seen, scored = judged[:, : rows.revealed] @ split[0], judged[:, rows.revealed :] @ split[1]  # [n, q] each
        within = split[0].T @ split[0], split[1].T @ split[1]
        coordinates, weight = self.centred @ self.axes, rows.weight  # [n, q], [n]
        outer = coordinates.T @ coordinates
        errors = np.full((len(ranks), len(penalties)), rows.unexplained)
        for own in rows.folds:
            # The centred rows add up to zero, so the others add up to minus the left out.
            shift = self.root[own, 0] @ coordinates[own]
            spread = outer - coordinates[own].T @ coordinates[own]
            spread -= np.outer(shift, shift) / (weight.sum() - weight[own].sum())
            power, turn = np.linalg.eigh(spread)
            loadings = (turn * np.sqrt(np.maximum(power, 0)))[:, ::-1]  # [q, q]
            gram_seen, gram_scored = (loadings.T @ part @ loadings for part in within)
            read, wanted = seen[own] @ loadings, scored[own] @ loadings  # [own, q]
            for i, rank in enumerate(ranks):
                system = gram_seen[:rank, :rank] + penalties[:, None, None] * np.eye(rank)
                values = np.linalg.solve(system, read[:, :rank].T)  # [penalties, rank, own]
                fitted = gram_scored[:rank, :rank] @ values
                errors[i] += (values * (fitted - 2 * wanted[:, :rank].T)).sum((1, 2))
        return errors
