"""Scores of predicted values, kept as sums per cell and per gene, so that one pass serves every column and interval.

y is the true value of a scored entry, p the predicted one, m the gene's training mean, d the gene mean + depth row.
"""

import functools
from typing import Any

import numpy as np

from sckit.data.batch import Batch
from sckit.kernels.counts_reference import TARGET_SUM

CLOSED_FORMS = (
    "gene mean", "gene mean + depth", "label + depth", "detection ridge", "detection + total ridge", "value ridge",
)  # fmt: skip

_FEW_GROUPS = 5  # below this, resampling whole groups gives no interval; cells are resampled within each group
_MIN_ENTRIES = 20  # for a gene's own correlation

# Columns of the per-cell sums.
_SUMS = ("n", "y", "yy", "p", "pp", "yp", "c", "cc", "q", "qq", "cq", "sse", "sse_mean", "sse_depth", "dev", "dev_mean")
_COLUMN = {name: i for i, name in enumerate(_SUMS)}


class Scores:
    """Accumulates predictions batch by batch; rows and intervals on demand."""

    def __init__(self, n_genes: int, *, seed: int = 0, bootstraps: int = 1000) -> None:
        self._n_genes, self._seed, self._bootstraps = n_genes, seed, bootstraps
        self._cells: list[np.ndarray] = []
        self._parts: dict[str, list[np.ndarray]] = {}
        self._genes: dict[str, np.ndarray] = {}
        self._drawn: tuple = (None, None, {})

    def add(self, batch: Batch, predicted: dict[str, np.ndarray], totals: np.ndarray | None = None) -> None:
        """Add a batch: predictions [M] by name, with "gene mean" and "gene mean + depth" among them.

        totals [C]: total counts of the cells; with them the count deviance is kept too.
        """
        cell, gene = batch.target_cells, batch.genes[batch.targets]
        y, mean, depth = batch.truth.astype(np.float64), predicted["gene mean"], predicted["gene mean + depth"]
        self._cells.append(batch.cells)
        dev_mean, *deviances = _deviances(y, np.stack([mean, *predicted.values()]), totals, cell)
        for (name, p), deviance in zip(predicted.items(), deviances, strict=True):
            c, q = y - mean, p - mean
            columns = [np.ones(len(y)), y, y * y, p, p * p, y * p, c, c * c, q, q * q, c * q, (y - p) ** 2, c * c]
            columns += [(y - depth) ** 2, deviance, dev_mean]
            sums = np.stack([np.bincount(cell, x, minlength=len(batch.cells)) for x in columns], 1)
            self._parts.setdefault(name, []).append(sums)
            r, s = y - depth, p - depth
            per_gene = [columns[0], y, y * y, p, p * p, y * p, r, r * r, s, s * s, r * s, (y - p) ** 2, c * c]
            table = np.stack([np.bincount(gene, x, minlength=self._n_genes) for x in per_gene], 1)
            self._genes[name] = self._genes.get(name, 0) + table

    @property
    def predictors(self) -> list[str]:
        """Names seen so far."""
        return list(self._parts)

    @functools.cached_property
    def cells(self) -> np.ndarray:
        """Rows of the store scored, int64 [cells], in the order of the sums."""
        return np.concatenate(self._cells)

    def sums(self, name: str) -> np.ndarray:
        """Per-cell sums of a predictor, [cells, columns]."""
        return np.concatenate(self._parts[name])

    def r2(self, name: str) -> float:
        """Share of the squared error of the gene mean that the predictor removes."""
        return float(_r2(self.sums(name).sum(0)[None])[0])

    def row(
        self, name: str, *, rate: float, context: str | None, known_depth: bool, target: str = "full"
    ) -> dict[str, Any]:
        """The point scores of a predictor as the columns of one row of the evaluation table."""
        total = self.sums(name).sum(0)[None]
        centred = None if name == "gene mean" else _finite(_correlation(total, "c", "cc", "q", "qq", "cq")[0])
        return {
            "predictor": name,
            "context": context,
            "rate": rate,
            "target": target,
            "pooled_r": _finite(_pooled(total)[0]),
            "centred_r": centred,
            "r2_gene_mean": _finite(_r2(total)[0]),
            "r2_depth": _finite(1 - total[0, _COLUMN["sse"]] / total[0, _COLUMN["sse_depth"]]),
            "per_gene_r": None if name == "gene mean" else self._per_gene(name, 1),
            "per_cell_r": self._per_cell(name),
            "known_depth": known_depth,
        }

    def full_row(self, name: str, groups: np.ndarray | None, **where: Any) -> dict[str, Any]:
        """`row` with intervals and the paired differences to the detection ridge and to the best closed form."""
        best = max((other for other in self.predictors if other in CLOSED_FORMS), key=self.r2)
        return self.row(name, **where) | {
            "ci": self.intervals(name, groups),
            "minus_ridge": self.difference(name, "detection ridge", groups),
            "minus_best": {"predictor": best} | self.difference(name, best, groups),
        }

    def extras(self, name: str) -> dict[str, float | None]:
        """Columns that only the table and the CSV show."""
        total, genes = self.sums(name).sum(0), self._genes[name]
        enough = genes[:, 0] >= _MIN_ENTRIES
        return {
            "per_gene_r_beyond_depth": None if name.startswith("gene mean") else self._per_gene(name, 6),
            "deviance_explained": _finite(1 - total[_COLUMN["dev"]] / total[_COLUMN["dev_mean"]]),
            "genes_worse_than_mean": _finite(float((genes[enough, 11] > genes[enough, 12]).mean()))
            if enough.any()
            else None,
        }

    def intervals(self, name: str, groups: np.ndarray | None) -> dict[str, list[float]]:
        """95 % bootstrap intervals of pooled r and of R2 against the gene mean. groups: labels [cells] or None."""
        drawn = self._resample(name, groups)
        return {"pooled_r": _interval(_pooled(drawn)), "r2_gene_mean": _interval(_r2(drawn))}

    def difference(self, name: str, other: str, groups: np.ndarray | None) -> dict[str, Any]:
        """R2 against the gene mean of one predictor less that of another, with the paired 95 % interval."""
        difference = _r2(self._resample(name, groups)) - _r2(self._resample(other, groups))
        return {"r2_gene_mean": self.r2(name) - self.r2(other), "ci": _interval(difference)}

    def _resample(self, name: str, groups: np.ndarray | None) -> np.ndarray:
        """Sums of a predictor over bootstrap draws, [bootstraps, columns]; all share the draws, so that they pair."""
        if groups is not self._drawn[0] or self._drawn[1] is None:
            self._drawn = groups, self._draws(groups), {}
        _, draws, done = self._drawn
        if name not in done:
            done[name] = draws @ self.sums(name)
        return done[name]

    def _draws(self, groups: np.ndarray | None) -> np.ndarray:
        """How often each cell is drawn, [bootstraps, cells]."""
        generator = np.random.default_rng(self._seed)
        n = len(self.cells)
        labels = np.zeros(n, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
        count = int(labels.max()) + 1
        if count >= _FEW_GROUPS:
            return generator.multinomial(count, np.full(count, 1 / count), self._bootstraps)[:, labels].astype(float)
        weights = np.zeros((self._bootstraps, n))
        for label in range(count):
            members = np.flatnonzero(labels == label)
            weights[:, members] = generator.multinomial(
                len(members), np.full(len(members), 1 / len(members)), self._bootstraps
            )
        return weights

    def _per_gene(self, name: str, first: int) -> float | None:
        """Median over genes of the correlation across cells; first: column of the first of the five sums."""
        table = self._genes[name]
        table = table[table[:, 0] >= _MIN_ENTRIES]
        n, (a, aa, b, bb, ab) = table[:, 0], table[:, first : first + 5].T
        r = _pearson(n, a, aa, b, bb, ab)
        r = r[np.isfinite(r)]
        return float(np.median(r)) if len(r) else None

    def _per_cell(self, name: str) -> float | None:
        sums = self.sums(name)
        r = _pooled(sums[sums[:, 0] >= 3])
        r = r[np.isfinite(r)]
        return float(r.mean()) if len(r) else None


def resampling_unit(groups: np.ndarray | None) -> str:
    """What the intervals resample, in words."""
    if groups is None:
        return "cells"
    count = len(np.unique(groups))
    return (
        f"{count} groups"
        if count >= _FEW_GROUPS
        else f"cells within each of {count} groups (too few groups to resample)"
    )


def _pooled(sums: np.ndarray) -> np.ndarray:
    return _correlation(sums, "y", "yy", "p", "pp", "yp")


def _correlation(sums: np.ndarray, *names: str) -> np.ndarray:
    """Pearson correlation of each row of sums, from the columns of a, aa, b, bb, ab; NaN without variance."""
    n = sums[:, _COLUMN["n"]]
    a, aa, b, bb, ab = (sums[:, _COLUMN[name]] for name in names)
    return _pearson(n, a, aa, b, bb, ab)


def _pearson(n: np.ndarray, a: np.ndarray, aa: np.ndarray, b: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> np.ndarray:
    """Correlation from sums; NaN where one side does not vary beyond rounding."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_a, variance_b = aa - a * a / n, bb - b * b / n
        r = (ab - a * b / n) / np.sqrt(variance_a * variance_b)
    return np.where((variance_a > 1e-9 * aa) & (variance_b > 1e-9 * bb), r, np.nan)


def _r2(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - sums[:, _COLUMN["sse"]] / sums[:, _COLUMN["sse_mean"]]


def _interval(draws: np.ndarray) -> list[float]:
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return [float(low), float(high)]


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _deviances(y: np.ndarray, values: np.ndarray, totals: np.ndarray | None, cell: np.ndarray) -> np.ndarray:
    """Zero-truncated Poisson deviance of each count under rows of predicted values [P, M], given its cell's total."""
    if totals is None:
        return np.zeros_like(values)
    size = totals[cell] / TARGET_SUM
    count = np.maximum(np.rint(np.expm1(y) * size), 1)
    return truncated_poisson_deviance(count, np.expm1(np.clip(values, 0, 12)) * size)


def truncated_poisson_deviance(count: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Deviance of counts [N] >= 1 under zero-truncated Poisson laws of the means [..., N], clipped to above 1."""
    return 2 * (_log_likelihood(count, _rate_of_mean(count)) - _log_likelihood(count, _rate_of_mean(mean)))


def _log_likelihood(count: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Log of the zero-truncated Poisson probability, less log(count!)."""
    return count * np.log(rate) - rate - np.log(-np.expm1(-rate))


def _rate_of_mean(mean: np.ndarray) -> np.ndarray:
    """The Poisson rate whose zero-truncated mean is given: rate / (1 - exp(-rate)) = mean, by Newton's method."""
    mean = np.maximum(mean, 1 + 1e-3)
    rate = np.where(mean < 1.5, 2 * (mean - 1), mean)
    for _ in range(8):
        tail = np.exp(-rate)
        value = rate / (1 - tail)
        slope = (1 - tail - rate * tail) / (1 - tail) ** 2
        rate = np.maximum(rate - (value - mean) / slope, 1e-6)
    return rate
