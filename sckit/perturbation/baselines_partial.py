"""Closed-form predictors of hidden genes of a perturbed profile from revealed ones: what a network has to beat.

Each models deviations from a prior, the mean of the training perturbations:

    no change                   0
    mean                        the prior
    additive                    handed in; sees no revealed gene
    ridge revealed to hidden    deviations at scored genes, linear in those at revealed genes
    low-rank                    factors of the training deviations, their values read off the revealed genes
    nearest neighbours          mean of the training rows with the nearest revealed deviations
    Gaussian conditional        what the covariance of untreated cells says of hidden given revealed genes

Nothing here is random. Penalties, ranks and numbers of neighbours are those with the least squared error when training
perturbations are left out; each perturbation counts the same however many rows it has.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from sckit.perturbation.ridge import (
    PENALTIES,
    Ridge,
    assign_folds,
    first_best,
    fold_rows,
    group_weights,
    neighbour_means,
    squared_distances,
    truncated_svd,
)

PARTIAL = (
    "no change",
    "mean",
    "additive",
    "ridge revealed to hidden",
    "low-rank",
    "nearest neighbours",
    "Gaussian conditional",
)

NEIGHBOURS = (1, 3, 5, 10, 30, 100)
RANKS = (1, 2, 3, 5, 10, 20, 40)
SHRINKAGES = (100.0, 10.0, 1.0, 0.3, 0.1, 0.01)
"""Added to the diagonal of the correlation matrix of the revealed genes; infinity, the mean, is tried as well."""

_MOST_FOLDS = 50
_SPAN = 64  # directions of the rows that the low-rank model may use; more than its highest rank


@dataclass(frozen=True)
class Revealed:
    """What the predictors of one block of genes may see: R revealed and S scored genes, n training and m test rows.

    A row is a unit or half of one; every value is a delta. A prior has the revealed genes first, then the scored.
    """

    seen_train: np.ndarray  # [n, R], visible deltas
    truth_train: np.ndarray  # [n, S], target deltas
    prior_train: np.ndarray  # [n, R + S], what the mean of the training perturbations says of the row
    seen_test: np.ndarray  # [m, R]
    prior_test: np.ndarray  # [m, R + S]
    group: np.ndarray  # int [n], what is left out together: the perturbation, or the covariate group if there is one
    cross: np.ndarray  # [S, R], covariance of scored and revealed genes in untreated cells (input half)
    own: np.ndarray  # [R, R], of the revealed genes
    additive: np.ndarray | None = None  # [m, S], predicted deltas


def partial_baselines(data: Revealed) -> dict[str, np.ndarray]:
    """Predicted deltas [m, S] of the test rows at the scored genes, by name of PARTIAL ("additive" if handed in).

    With no revealed gene, or a single group of training rows, so that no choice can be judged, all but the first and
    "additive" are the mean.
    """
    revealed = data.seen_train.shape[1]
    prior = data.prior_test[:, revealed:]
    predicted = {"no change": np.zeros_like(prior), "mean": prior.copy()}
    if data.additive is not None:
        predicted["additive"] = data.additive
    rows = _Rows(data)
    for name, predict in zip(PARTIAL[3:], (_ridge, _low_rank, _neighbours, _conditional), strict=True):
        blind = not revealed or len(rows.folds) < 2
        predicted[name] = prior if blind else prior + predict(rows, data)
    return predicted


class _Rows:
    """Deviations of training and test rows from their priors."""

    def __init__(self, data: Revealed) -> None:
        revealed = data.seen_train.shape[1]
        self.revealed, self.weight = revealed, group_weights(data.group)
        self.fold = assign_folds(data.group, _MOST_FOLDS)
        self.folds = fold_rows(self.fold)
        self.all = np.hstack([data.seen_train, data.truth_train]) - data.prior_train  # [n, R + S]
        self.seen, self.truth = self.all[:, :revealed], self.all[:, revealed:]
        self.test = data.seen_test - data.prior_test[:, :revealed]  # [m, R]
        self.judged = self._about_the_others() if len(self.folds) > 1 else self.all  # [n, R + S]
        self.unexplained = self.weight @ (self.judged[:, revealed:] ** 2).sum(1)
        """Weighted squared error of the mean."""

    def _about_the_others(self) -> np.ndarray:
        """Deviations [n, R + S] from the mean of the other folds.

        The prior of a training row was averaged over the row itself; judged about that, its own value would be known.
        """
        sums = np.array([self.weight[rows] @ self.all[rows] for rows in self.folds])
        weights = np.array([self.weight[rows].sum() for rows in self.folds])
        others = (sums.sum(0) - sums) / (weights.sum() - weights)[:, None]
        return self.all - others[self.fold]


def _ridge(rows: _Rows, _: Revealed) -> np.ndarray:
    """Slopes are fitted about the training rows' mean but applied to deviations from the prior, as all the others."""
    ridge = Ridge.fit(rows.seen, rows.truth, rows.weight)
    best = PENALTIES[first_best(ridge.left_out_errors(rows.fold))]
    return rows.test @ ridge.coefficients(best)  # [m, S]


def _neighbours(rows: _Rows, _: Revealed) -> np.ndarray:
    distances = squared_distances(rows.seen, rows.seen)
    for own in rows.folds:
        distances[np.ix_(own, own)] = np.inf
    usable = len(rows.fold) - max(map(len, rows.folds))
    counts = tuple(k for k in NEIGHBOURS if k < usable)
    equal = np.ones(len(rows.fold))
    errors = [rows.unexplained]
    for mean in neighbour_means(distances, rows.truth, equal, counts):
        errors.append(rows.weight @ ((rows.truth - mean) ** 2).sum(1))
    best = first_best(np.array(errors))
    if not best:
        return np.zeros((len(rows.test), rows.truth.shape[1]))
    return neighbour_means(squared_distances(rows.test, rows.seen), rows.truth, equal, counts[best - 1 : best])[0]


def _conditional(rows: _Rows, data: Revealed) -> np.ndarray:
    """Revealed deviations times (own + shrinkage diag(own))^-1 cross', over the genes that vary in untreated cells.

    The largest shrinkages are tried first; those that leave the matrix without a Cholesky factor are passed over.
    """
    variance = data.own.diagonal()
    varies = variance > 1e-9 * max(variance.max(), 0.0)
    if not varies.any():
        return np.zeros((len(rows.test), rows.truth.shape[1]))
    scale = 1 / np.sqrt(variance[varies])
    correlation = data.own[np.ix_(varies, varies)] * scale * scale[:, None]
    cross = data.cross[:, varies] * scale
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


def _low_rank(rows: _Rows, _: Revealed) -> np.ndarray:
    """Factors of the deviations at all genes, held back by a penalty over their variance: at full rank, the ridge.

    This is the posterior mean of the factors of a probabilistic principal component analysis (Tipping and Bishop 1999)
    given the revealed genes alone. Left-out groups are predicted by factors fitted without them.
    """
    model = _Factors(rows)
    rank, penalty = model.choose(rows)
    loadings = model.axes * np.sqrt(model.power)
    seen, scored = loadings[: rows.revealed, :rank], loadings[rows.revealed :, :rank]
    if not rank:
        return np.zeros((len(rows.test), len(scored)))
    return rows.test @ seen @ np.linalg.solve(seen.T @ seen + penalty * np.eye(rank), scored.T)


class _Factors:
    """Principal axes of the rows' weighted deviations, and the same for every left-out fold within their span."""

    def __init__(self, rows: _Rows) -> None:
        self.root = np.sqrt(rows.weight)[:, None]
        self.centred = self.root * (rows.all - rows.weight @ rows.all / rows.weight.sum())
        self.axes, self.power = truncated_svd(self.centred, _SPAN)  # [R + S, q], [q]
        self.top = float(self.power[0]) if len(self.power) else 0.0

    def choose(self, rows: _Rows) -> tuple[int, float]:
        """The rank and the absolute penalty with the least left-out error; rank 0 is the mean."""
        penalties = self.top * np.array(PENALTIES[1:])
        ranks = [rank for rank in RANKS if rank <= len(self.power)]
        errors = self.left_out_errors(rows, ranks, penalties)
        best = first_best(np.append(rows.unexplained, errors))
        if not best:
            return 0, np.inf
        rank, penalty = np.unravel_index(best - 1, errors.shape)
        return ranks[rank], float(penalties[penalty])

    def left_out_errors(self, rows: _Rows, ranks: list[int], penalties: np.ndarray) -> np.ndarray:
        """Weighted squared errors [ranks, penalties] of folds predicted by factors of the other folds.

        All of it happens in the q coordinates of the span, which is every direction there is for up to 64 rows.
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
