"""What the linear baselines share: ridge at every penalty at once, nearest neighbours, and groups to leave out."""

import numpy as np
import scipy.sparse as sp
from scipy.linalg import eigh

PENALTIES = (np.inf, *np.logspace(1, -4, 6))
"""In units of the largest squared singular value of the features; the first, infinity, is the mean."""

_ROUNDING = 1e-12  # of the largest squared singular value; smaller ones are rounding errors
_TIE = 1e-9  # of the largest distance to a neighbour


def group_weights(group: np.ndarray) -> np.ndarray:
    """Return weights [n] of rows that add up to one in every group; group: [n]."""
    _, number, counts = np.unique(group, return_inverse=True, return_counts=True)
    return 1 / counts[number]


def balanced_mean(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the mean [F] of rows [n, F] in which every group counts the same, however many rows it has; group: [n]."""
    weight = group_weights(group)
    return weight @ rows / weight.sum()


def rows_by_fold(group: np.ndarray, most: int) -> list[np.ndarray]:
    """Return the rows of each fold: one group [n] per fold, or groups in turn if there are more than `most`."""
    fold = np.unique(group, return_inverse=True)[1] % most
    return [np.flatnonzero(fold == number) for number in range(fold.max(initial=-1) + 1)]


def first_best(errors: np.ndarray) -> int:
    """Return the position of the first error [N] that is the least, up to rounding; the mean comes first."""
    return int(np.argmax(errors <= (1 + 1e-9) * errors.min()))


def truncated_svd(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading right singular vectors [F, r] of rows [n, F] and the squared singular values [r], r <= count.

    Directions in which the rows do not vary beyond rounding are left out. The mean is not subtracted.
    """
    wide = rows.shape[0] <= rows.shape[1]
    gram = rows @ rows.T if wide else rows.T @ rows
    first = len(gram) - min(count, len(gram))
    if first == len(gram):
        return np.zeros((rows.shape[1], 0)), np.zeros(0)
    power, vectors = eigh(gram, subset_by_index=[first, len(gram) - 1])
    power, vectors = power[::-1], vectors[:, ::-1]
    kept = power > _ROUNDING * power[0]
    power, vectors = power[kept], vectors[:, kept]
    return (rows.T @ vectors / np.sqrt(power) if wide else vectors), power


class Ridge:
    """Weighted ridge of S targets on F features with a free intercept; one decomposition serves every penalty."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> None:
        """Decompose features [n, F], targets [n, S] and positive weights [n]."""
        share, self.root = weight / weight.sum(), np.sqrt(weight)
        self.centre = share @ features  # [F]
        rows = self.root[:, None] * (features - self.centre)
        self.axes, self.power = truncated_svd(rows, min(rows.shape))  # [F, r], squared singular values [r]
        self.left = rows @ self.axes / np.sqrt(self.power)  # left singular vectors [n, r]
        self.targets = self.root[:, None] * (targets - share @ targets)  # [n, S]
        self.projection = self.left.T @ self.targets  # [r, S]

    def coefficients(self, penalty: float) -> np.ndarray:
        """Return slopes [F, S] at a penalty in the units of PENALTIES."""
        gain = np.sqrt(self.power) / (self.power + penalty * self.power[:1])
        return self.axes @ (gain[:, None] * self.projection)

    def left_out_errors(self, folds: list[np.ndarray]) -> np.ndarray:
        """Return the weighted squared error of each of PENALTIES [P] when each fold is predicted from the others.

        folds: rows of each, at least two folds. The errors are those of refits, intercept included: residuals of a
        left-out block are (I - H_bb)^-1 times its residuals, with the hat matrix H (Cook and Weisberg 1982, Residuals
        and Influence in Regression).
        """
        constant = self.root / np.linalg.norm(self.root)
        shrink = self.power / (self.power + np.array(PENALTIES)[:, None] * self.power[:1])  # [P, r]
        fitted = shrink[:, :, None] * self.projection  # [P, r, S]
        errors = np.zeros(len(PENALTIES))
        for rows in folds:
            own = self.left[rows]
            left_over = np.eye(len(rows)) - np.outer(constant[rows], constant[rows])
            for i in range(len(PENALTIES)):
                residual = self.targets[rows] - own @ fitted[i]
                errors[i] += (np.linalg.solve(left_over - (own * shrink[i]) @ own.T, residual) ** 2).sum()
        return errors


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances [m, n] between the rows of a [m, F] and b [n, F]."""
    distances = a @ b.T
    distances *= -2
    distances += (a**2).sum(1)[:, None]
    distances += (b**2).sum(1)
    return np.maximum(distances, 0.0, out=distances)


def neighbour_means(
    distances: np.ndarray, values: np.ndarray, weight: np.ndarray, counts: tuple[int, ...]
) -> list[np.ndarray]:
    """Return weighted means [m, S] of the values [n, S] of the k nearest rows, for each k of counts.

    distances: [m, n], infinite where a row must not be used; every k is at most the number of usable rows. All rows as
    near as the k-th are taken, so that the order of rows does not matter. weight: [n].
    """
    if not counts:
        return []
    ordered = np.partition(distances, [k - 1 for k in counts], axis=1)
    bound = ordered[:, [k - 1 for k in counts]]
    bound += _TIE * bound.max(initial=0.0)
    nearest = [sp.csr_array(distances <= bound[:, i, None]) for i in range(len(counts))]
    weighted = weight[:, None] * values
    return [chosen @ weighted / (chosen @ weight)[:, None] for chosen in nearest]
