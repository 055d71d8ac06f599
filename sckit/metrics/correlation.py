"""Pearson correlation, from sums and of rows; each form has the guard that its rounding needs."""

from typing import TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray | float

_ROUNDING_OF_SUMS = 1e-9  # of the sum of squares: the variance is a difference of two numbers of that size
_ROUNDING_OF_ROWS = 1e-12  # of the sum of squares: variation under a millionth of the size is the arithmetic's own


def correlation_of_sums(
    n: Numbers, a: Numbers, aa: np.ndarray, b: Numbers, bb: np.ndarray, ab: np.ndarray
) -> np.ndarray:
    """Return the correlation from sums over n pairs; NaN where one side does not vary beyond rounding."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_a, variance_b = aa - a * a / n, bb - b * b / n
        r = (ab - a * b / n) / np.sqrt(variance_a * variance_b)
    return np.where((variance_a > _ROUNDING_OF_SUMS * aa) & (variance_b > _ROUNDING_OF_SUMS * bb), r, np.nan)


def correlation_of_rows(a: np.ndarray, b: np.ndarray, genes: np.ndarray, removed: Numbers = 0.0) -> np.ndarray:
    """Return the correlation [m] of rows of a and b [m, G] over genes, bool [1 or m, G]; 0 where one is constant.

    removed: sum of squares [m] of what was subtracted to get a and b; their rounding is of that size too.
    """
    sizes = [np.where(genes, x**2, 0.0).sum(1) + removed for x in (a, b)]
    a, b = centred(a, genes), centred(b, genes)
    squares = [(x**2).sum(1) for x in (a, b)]
    varies = (squares[0] > _ROUNDING_OF_ROWS * sizes[0]) & (squares[1] > _ROUNDING_OF_ROWS * sizes[1])
    product = np.sqrt(squares[0]) * np.sqrt(squares[1])
    return np.clip(np.divide((a * b).sum(1), product, out=np.zeros(len(a)), where=varies & (product > 0)), -1, 1)


def centred(x: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Subtract from each row [m, G] its mean over the genes, bool [1 or m, G]; the other genes become 0."""
    mean = np.where(genes, x, 0.0).sum(1, keepdims=True) / np.maximum(genes.sum(1, keepdims=True), 1)
    return np.where(genes, x - mean, 0.0)
