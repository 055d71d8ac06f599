"""One regression for each gene in Numba: sums over the entries of a block of cells, gene by gene on all threads.

A block is CSC: the entries indptr[g] up to indptr[g + 1] belong to gene g, `cells` are their rows. A symmetric matrix
[k, k] is packed as its lower triangle, row by row, [k (k + 1) / 2]. Sums are added to what the outputs hold.
"""

import math

import numpy as np
from numba import njit

from sckit.kernels.threads import run_ranges


@njit(cache=True, nogil=True)
def _add_normal_equations(first, last, indptr, cells, targets, features, own, packed, moments):
    p, q = features.shape[1], own.shape[1]
    for g in range(first, last):
        z = np.empty(p + q)
        for i in range(indptr[g], indptr[g + 1]):
            z[:p] = features[cells[i]]
            z[p:] = own[i]
            at = 0
            for a in range(p + q):
                za = z[a]
                for b in range(a + 1):
                    packed[g, at + b] += za * z[b]
                at += a + 1
                for t in range(targets.shape[1]):
                    moments[g, t, a] += targets[i, t] * za


def add_normal_equations(
    indptr: np.ndarray,
    cells: np.ndarray,
    targets: np.ndarray,
    features: np.ndarray,
    own: np.ndarray,
    packed: np.ndarray,
    moments: np.ndarray,
) -> None:
    """Add features' outer products [G, k (k + 1) / 2] and features times targets [G, t, k].

    targets: [nnz, t]; features: [c, p] of the cells; own: [nnz, q] of the entries, behind those of the cell; k = p + q.
    """
    run_ranges(
        lambda first, last: _add_normal_equations(first, last, indptr, cells, targets, features, own, packed, moments),
        len(indptr) - 1,
    )


@njit(cache=True, nogil=True)
def _add_newton_sums(
    first, last, indptr, cells, counts, log_size, features, own, coefficients, packed, gradient, likelihood
):
    p, q = features.shape[1], own.shape[1]
    for g in range(first, last):
        z = np.empty(p + q)
        for i in range(indptr[g], indptr[g + 1]):
            z[:p] = features[cells[i]]
            z[p:] = own[i]
            eta = log_size[cells[i]]
            for a in range(p + q):
                eta += coefficients[g, a] * z[a]
            eta = min(max(eta, -18.0), 14.0)
            rate = math.exp(eta)
            if rate < 1e-5:
                mean, variance = 1.0 + rate / 2, rate / 2
            else:
                mean = rate / -math.expm1(-rate)
                variance = max(mean * (1.0 + rate - mean), 0.0)
            likelihood[g] += counts[i] * eta - rate - math.log(-math.expm1(-rate))
            at = 0
            for a in range(p + q):
                gradient[g, a] += (counts[i] - mean) * z[a]
                weighted = variance * z[a]
                for b in range(a + 1):
                    packed[g, at + b] += weighted * z[b]
                at += a + 1


def add_newton_sums(
    indptr: np.ndarray,
    cells: np.ndarray,
    counts: np.ndarray,
    log_size: np.ndarray,
    features: np.ndarray,
    own: np.ndarray,
    coefficients: np.ndarray,
    packed: np.ndarray,
    gradient: np.ndarray,
    likelihood: np.ndarray,
) -> None:
    """Add what a Newton step of a zero-truncated Poisson regression needs: - Hessian, gradient, log likelihood.

    The log rate is log_size [c] of the cell + coefficients [G, k] times the features; likelihood [G] lacks log(count!).
    """
    run_ranges(
        lambda first, last: _add_newton_sums(
            first, last, indptr, cells, counts, log_size, features, own, coefficients, packed, gradient, likelihood
        ),
        len(indptr) - 1,
    )


@njit(cache=True, nogil=True)
def _ridge_paths(first, last, packed, moment, left_packed, left_moment, penalties, sizes, errors):
    k = moment.shape[1]
    for g in range(first, last):
        low, half, beta = np.zeros((k, k)), np.empty(k), np.empty(k)
        for n in range(len(penalties)):
            at = 0
            for a in range(k):
                for b in range(a + 1):
                    x = packed[g, at + b]
                    if a == b:
                        x += penalties[n] if a else 1e-9
                    for c in range(b):
                        x -= low[a, c] * low[b, c]
                    low[a, b] = math.sqrt(max(x, 1e-12)) if a == b else x / low[b, b]
                at += a + 1
            for a in range(k):
                x = moment[g, a]
                for c in range(a):
                    x -= low[a, c] * half[c]
                half[a] = x / low[a, a]
            for m in range(len(sizes)):
                size = sizes[m]
                for a in range(size - 1, -1, -1):
                    x = half[a]
                    for c in range(a + 1, size):
                        x -= low[c, a] * beta[c]
                    beta[a] = x / low[a, a]
                error, at = 0.0, 0
                for a in range(size):
                    error -= 2.0 * beta[a] * left_moment[g, a]
                    for b in range(a):
                        error += 2.0 * beta[a] * beta[b] * left_packed[g, at + b]
                    error += beta[a] * beta[a] * left_packed[g, at + a]
                    at += a + 1
                errors[g, n, m] += error


def ridge_paths(
    packed: np.ndarray,
    moment: np.ndarray,
    left_packed: np.ndarray,
    left_moment: np.ndarray,
    penalties: np.ndarray,
    sizes: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Add for each gene the squared error on what was left out, less its constant part: errors [G, penalties, sizes].

    packed, moment: sums [G, ...] over what is fitted on; left_*: over what is left out. A ridge is fitted for every
    penalty and on the first `size` features for every size; the first feature is not penalised. One Cholesky
    factor serves all sizes, because that of the first features is its upper left part.
    """
    run_ranges(
        lambda first, last: _ridge_paths(
            first, last, packed, moment, left_packed, left_moment, penalties, sizes, errors
        ),
        len(moment),
    )


def unpack(packed: np.ndarray, size: int) -> np.ndarray:
    """Return the leading symmetric matrices [G, size, size] of packed lower triangles."""
    rows, columns = np.tril_indices(size)
    full = np.empty((len(packed), size, size))
    full[:, rows, columns] = packed[:, : len(rows)]
    full[:, columns, rows] = packed[:, : len(rows)]
    return full


@njit(cache=True, nogil=True)
def _factor_means(first, last, indptr, genes, residuals, loadings, noise, means, left_out):
    size = loadings.shape[1]
    for c in range(first, last):
        precision, moment = np.eye(size), np.zeros(size)
        for i in range(indptr[c], indptr[c + 1]):
            g = genes[i]
            for a in range(size):
                weighted = loadings[g, a] / noise[g]
                moment[a] += weighted * residuals[i]
                for b in range(size):
                    precision[a, b] += weighted * loadings[g, b]
        inverse = np.linalg.inv(precision)
        means[c] = inverse @ moment
        if len(left_out):
            for i in range(indptr[c], indptr[c + 1]):
                g = genes[i]
                fitted, leverage = 0.0, 0.0
                for a in range(size):
                    shift = 0.0
                    for b in range(size):
                        shift += inverse[a, b] * loadings[g, b]
                    left_out[i, a] = shift
                    fitted += loadings[g, a] * means[c, a]
                    leverage += loadings[g, a] * shift
                factor = (fitted - residuals[i]) / (noise[g] - leverage)
                for a in range(size):
                    left_out[i, a] = means[c, a] + left_out[i, a] * factor


def factor_means(
    indptr: np.ndarray,
    genes: np.ndarray,
    residuals: np.ndarray,
    loadings: np.ndarray,
    noise: np.ndarray,
    means: np.ndarray,
    left_out: np.ndarray,
) -> None:
    """Write the posterior means [C, J] of standard normal factors, and those without each entry itself [nnz, J].

    The ridge of a cell, (I + L'L/s)^-1 L'r/s over its entries: residuals r, loadings L [G, J], noise variances s [G].
    left_out has no rows where it is not wanted.
    """
    run_ranges(
        lambda first, last: _factor_means(first, last, indptr, genes, residuals, loadings, noise, means, left_out),
        len(indptr) - 1,
    )
