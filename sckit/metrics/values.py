"""Scores of predicted values, kept as sums per cell and per gene, so that one pass gives every column and interval.

y is the true value of a scored entry, p the predicted one, m the gene's training mean, d the gene mean + depth row.
"""

from collections import defaultdict, namedtuple
from typing import Any

import numpy as np

from sckit.data.batch import Batch
from sckit.kernels.count_law import value_moments
from sckit.metrics.correlation import correlation_of_sums
from sckit.metrics.intervals import Resampling, heavier
from sckit.metrics.laws import Laws
from sckit.metrics.on_disk import RowsOnDisk

_IN_JSON = (
    "predictor", "context", "rate", "target", "pooled_r", "centred_r", "r2_gene_mean", "r2_depth", "per_gene_r",
    "per_cell_r", "known_depth", "explainable_share",
)  # fmt: skip
_MIN_ENTRIES = 20  # for a gene's own correlation
_CELL_COLUMNS = "n y yy p pp yp c cc q qq cq error error_of_mean error_of_depth deviance deviance_of_mean"
_CELL_COLUMNS += " noise spread"
_GeneSums = namedtuple("_GeneSums", "n y yy p pp yp r rr s ss rs error error_of_mean")
"""Sums over the entries of genes, one array per column; r = y - d, s = p - d, errors are squared."""


class _CellSums(namedtuple("_CellSums", _CELL_COLUMNS)):
    """Sums over the entries of cells, one array per column; c = y - m, q = p - m, errors are squared.

    noise: variance of the value under the law that the prediction stands for; spread: (mean of that law - m)^2.
    """

    def pooled(self) -> np.ndarray:
        """Correlation of prediction and truth."""
        return correlation_of_sums(self.n, self.y, self.yy, self.p, self.pp, self.yp)

    def r2(self) -> np.ndarray:
        """Share of the squared error of the gene mean that the prediction removes."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - self.error / self.error_of_mean

    def attainable(self) -> np.ndarray:
        """R2 of the prediction if it were the truth: what sampling noise leaves of the gene mean's squared error."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - self.noise / self.error_of_mean


class Scores:
    """Accumulates predictions batch by batch; rows and intervals on demand."""

    def __init__(self, n_genes: int, *, seed: int = 0, bootstraps: int = 1000) -> None:
        self._n_genes, self._seed, self._bootstraps = n_genes, seed, bootstraps
        self._cells, self._folds = list[np.ndarray](), list[np.ndarray]()
        self._of_seeds: dict[str, np.ndarray] = {}  # squared error [S, cells] of rows of several seeds
        self._parts: defaultdict[str, RowsOnDisk] = defaultdict(RowsOnDisk)  # sums [cells, columns]
        self._of_genes: dict[str, np.ndarray] = {}
        self._drawn: tuple[np.ndarray | None, Resampling, dict[str, np.ndarray]] | None = None
        self._with_law: set[str] = set()

    def add(
        self,
        batch: Batch,
        predicted: dict[str, np.ndarray],
        laws: Laws | None = None,
        *,
        numbers: np.ndarray | None = None,
        fold: int = 0,
    ) -> None:
        """Add a batch: predictions [M] by name, with "gene mean" and "gene mean + depth" among them.

        laws: the law of the count that each prediction stands for; with them deviance and noise are kept too. numbers:
        the gene that each of the batch's gene numbers stands for, where models with other genes are pooled. fold: which
        of the models predicted.
        """
        gene = batch.genes[batch.targets]
        gene = gene if numbers is None else numbers[gene]
        self.add_entries(batch.cells, batch.target_cells, gene, batch.truth, predicted, laws, fold=fold)

    def add_entries(
        self,
        cells: np.ndarray,
        cell: np.ndarray,
        gene: np.ndarray,
        truth: np.ndarray,
        predicted: dict[str, np.ndarray],
        laws: Laws | None = None,
        *,
        fold: int = 0,
    ) -> None:
        """Add M entries of C cells. cells: [C], rows of the store; cell: [M], position in it; the rest as in `add`."""
        self._folds.append(np.full(len(cells), fold))
        y, mean, depth = truth.astype(np.float64), predicted["gene mean"], predicted["gene mean + depth"]
        self._cells.append(cells)
        self._drawn = None
        one, c, r, nothing = np.ones(len(y)), y - mean, y - depth, np.zeros(len(y))
        deviance_of_mean = nothing if laws is None else laws.deviance(y, laws.rates["gene mean"])
        for name, p in predicted.items():
            q, s = p - mean, p - depth
            plain, error = (one, y, y * y, p, p * p, y * p), (y - p) ** 2
            deviance = noise = spread = nothing
            if laws is not None and name in laws.rates:
                self._with_law.add(name)
                deviance = laws.deviance(y, laws.rates[name])
                expected, noise = value_moments(laws.noise[name][0], laws.totals, laws.noise[name][1])
                spread = (expected - mean) ** 2
            law = deviance, deviance_of_mean, noise, spread
            of_cells = _CellSums(*plain, c, c * c, q, q * q, c * q, error, c * c, r * r, *law)
            of_genes = _GeneSums(*plain, r, r * r, s, s * s, r * s, error, c * c)
            self._parts[name].append(_summed(cell, of_cells, len(cells)))
            self._of_genes[name] = self._of_genes.get(name, 0) + _summed(gene, of_genes, self._n_genes)

    def average(self, name: str, seeds: list[str]) -> None:
        """Put one row in place of those of several seeds, each of another network: the mean of their sums.

        The intervals of its R2 also cover how networks of other seeds would differ: to the resamples of cells are added
        normal draws of the variance between seeds within each fold, widened for their number.
        """
        parts = [self._parts.pop(seed).all() for seed in seeds]
        genes = [self._of_genes.pop(seed) for seed in seeds]
        self._parts[name].append(np.mean(parts, 0))
        self._of_genes[name] = np.mean(genes, 0)
        if self._with_law.issuperset(seeds):
            self._with_law.add(name)
        self._of_seeds[name] = np.stack([_CellSums(*part.T).error for part in parts])

    def alike(self, name: str, other: str) -> bool:
        """Say whether two rows have the same error in every cell."""
        one, two = (_CellSums(*self._parts[each].all().T).error for each in (name, other))
        return np.array_equal(one, two)

    def by_seed(self, name: str, other: str) -> np.ndarray:
        """Return the R2 of each seed [S] of a row less that of another row; empty for rows of one seed."""
        if name not in self._of_seeds:
            return np.zeros(0)
        return (self._total(other).error - self._of_seeds[name].sum(1)) / self._total(name).error_of_mean

    def _spread(self, name: str) -> float:
        """Return the standard error of R2 that training adds: of seeds within folds, widened as Student's interval."""
        if name not in self._of_seeds:
            return 0.0
        errors, folds = self._of_seeds[name], np.unique(np.concatenate(self._folds), return_inverse=True)[1]
        of_folds = np.stack([np.bincount(folds, each) for each in errors]) / self._total(name).error_of_mean
        seeds, count = of_folds.shape
        return float(np.sqrt((of_folds.var(0, ddof=1) / seeds).sum()) * heavier(count * (seeds - 1)))

    @property
    def predictors(self) -> list[str]:
        """Names seen so far."""
        return list(self._parts)

    @property
    def cells(self) -> np.ndarray:
        """Rows of the store scored, int64 [cells], in the order of the sums."""
        return np.concatenate(self._cells)

    @property
    def entries(self) -> int:
        """Number of entries scored."""
        return int(self._total("gene mean").n[0]) if self._parts else 0

    def r2(self, name: str) -> float:
        """Share of the squared error of the gene mean that the predictor removes."""
        return float(self._total(name).r2()[0])

    def row(
        self, name: str, *, rate: float, context: str | None, known_depth: bool, target: str = "full"
    ) -> dict[str, Any]:
        """Return the point scores of a predictor as the columns of one row of the evaluation table."""
        total, genes, is_mean = self._total(name), _GeneSums(*self._of_genes[name].T), name == "gene mean"
        centred = correlation_of_sums(total.n, total.c, total.cc, total.q, total.qq, total.cq)[0]
        worse = (genes.error > genes.error_of_mean)[genes.n >= _MIN_ENTRIES]
        with np.errstate(invalid="ignore", divide="ignore"):  # without totals both are 0
            deviance = 1 - total.deviance[0] / total.deviance_of_mean[0] if name in self._with_law else np.nan
            simulated = total.spread[0] / (total.spread[0] + total.noise[0])
        attainable = _finite(total.attainable()[0]) if name in self._with_law and not is_mean else None
        beyond_depth = None if name.startswith("gene mean") else self._per_gene(name, beyond_depth=True)
        return {
            "predictor": name,
            "context": context,
            "rate": rate,
            "target": target,
            "pooled_r": _finite(total.pooled()[0]),
            "centred_r": None if is_mean else _finite(centred),
            "r2_gene_mean": _finite(total.r2()[0]),
            "r2_depth": _finite(1 - total.error[0] / total.error_of_depth[0]),
            "per_gene_r": None if is_mean else self._per_gene(name),
            "per_cell_r": self._per_cell(name),
            "known_depth": known_depth,
            "per_gene_r_beyond_depth": beyond_depth,
            "deviance_explained": _finite(deviance),
            "genes_worse_than_mean": float(worse.mean()) if len(worse) else None,
            "floor_r2_gene_mean": attainable,
            "floor_simulated": None if attainable is None else _finite(simulated),
            "explainable_share": _finite(total.r2()[0] / attainable) if attainable and attainable > 0 else None,
        }

    def full_row(self, name: str, best: str, groups: np.ndarray | None, **where: Any) -> dict[str, Any]:
        """Return `row` with intervals, and with paired differences in R2 to the detection ridge and the best baseline.

        best: the name of that baseline, which was chosen on other cells.
        """
        parts: dict[str, dict[str, Any]] = {column: {"ci": ci} for column, ci in self.intervals(name, groups).items()}
        parts["minus_ridge"] = self.difference(name, "detection ridge", groups)
        parts["minus_best"] = {"predictor": best} | self.difference(name, best, groups)
        row = self.row(name, **where)
        for column, part in parts.items():
            low, high = part.pop("ci")
            row |= {f"{column}_{key}": value for key, value in part.items()}
            row |= {f"{column}_low": low, f"{column}_high": high}
        return row

    def intervals(self, name: str, groups: np.ndarray | None) -> dict[str, list[float | None]]:
        """95 % bootstrap intervals of pooled r and of R2 against the gene mean. groups: labels [cells] or None."""
        total, (rule, drawn) = self._total(name), self._resample(name, groups)
        return {
            "pooled_r": rule.interval(total.pooled()[0], drawn.pooled()),
            "r2_gene_mean": rule.interval(total.r2()[0], drawn.r2() + self._training(name)),
        } | ({"floor": rule.interval(total.attainable()[0], drawn.attainable())} if name in self._with_law else {})

    def difference(self, name: str, other: str, groups: np.ndarray | None) -> dict[str, Any]:
        """R2 against the gene mean of one predictor less that of another, with the paired 95 % interval."""
        (rule, one), (_, two) = self._resample(name, groups), self._resample(other, groups)
        difference = self.r2(name) - self.r2(other)
        drawn = one.r2() - two.r2() + self._training(name) - self._training(other)
        return {"r2_gene_mean": difference, "ci": rule.interval(difference, drawn)}

    def _training(self, name: str) -> np.ndarray:
        """Draw what other seeds would add to the R2 of a row [bootstraps]; zero for a row of one seed."""
        generator = np.random.default_rng((self._seed, 1, self.predictors.index(name)))
        return self._spread(name) * generator.standard_normal(self._bootstraps)

    def _resample(self, name: str, groups: np.ndarray | None) -> tuple[Resampling, _CellSums]:
        """Sums of a predictor over bootstrap draws, [bootstraps] each; all share the draws, so that they pair."""
        if self._drawn is None or groups is not self._drawn[0] or name not in self._drawn[2]:
            rule = resampling(groups, len(self.cells))
            parts = {name: part.all() for name, part in self._parts.items()}
            self._drawn = groups, rule, rule.resample(parts, np.random.default_rng(self._seed), self._bootstraps)
        _, rule, drawn = self._drawn
        return rule, _CellSums(*drawn[name].T)

    def _total(self, name: str) -> _CellSums:
        return _CellSums(*self._parts[name].all().sum(0)[:, None])

    def _per_gene(self, name: str, *, beyond_depth: bool = False) -> float | None:
        """Median over genes of the correlation across cells, of the values or of what is left beyond depth.

        Rows are compared on the same genes: those with a correlation in every row that has any.
        """
        every = [self._gene_correlations(other, beyond_depth=beyond_depth) for other in self.predictors]
        r, defined = self._gene_correlations(name, beyond_depth=beyond_depth), [np.isfinite(r) for r in every]
        common = np.all([some for some in defined if some.any()], 0)
        return float(np.median(r[common])) if np.isfinite(r).any() and common.any() else None

    def _gene_correlations(self, name: str, *, beyond_depth: bool) -> np.ndarray:
        """Return the correlation of each gene across cells [G], NaN with few entries or a constant prediction."""
        g = _GeneSums(*self._of_genes[name].T)
        r = correlation_of_sums(g.n, *((g.r, g.rr, g.s, g.ss, g.rs) if beyond_depth else (g.y, g.yy, g.p, g.pp, g.yp)))
        return np.where(g.n >= _MIN_ENTRIES, r, np.nan)

    def _per_cell(self, name: str) -> float | None:
        """Mean over cells with three entries or more of the correlation across genes."""
        sums = _CellSums(*self._parts[name].all().T)
        r = sums.pooled()
        r = r[np.isfinite(r) & (sums.n >= 3)]
        return float(r.mean()) if len(r) else None


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a full row as JSON has it: intervals as lists, differences as objects, without the extra columns."""

    def ends(column: str) -> list[float | None]:
        return [row[f"{column}_low"], row[f"{column}_high"]]

    def difference(column: str) -> dict[str, Any]:
        return {"r2_gene_mean": row[f"{column}_r2_gene_mean"], "ci": ends(column)}

    return {name: row[name] for name in _IN_JSON} | {
        "ci": {column: ends(column) for column in ("pooled_r", "r2_gene_mean")},
        "minus_ridge": difference("minus_ridge"),
        "minus_best": {"predictor": row["minus_best_predictor"]} | difference("minus_best"),
        "floor": None
        if row["floor_r2_gene_mean"] is None
        else {"r2_gene_mean": row["floor_r2_gene_mean"], "ci": ends("floor")},
    }


def resampling(groups: np.ndarray | None, cells: int) -> Resampling:
    """Return the rule of the intervals for cells with these labels [cells]; without labels each is its own group."""
    return Resampling(np.arange(cells) if groups is None else groups)


def _summed(index: np.ndarray, entries: tuple[np.ndarray, ...], count: int) -> np.ndarray:
    """Sums of each column of the entries by index, float64 [count, columns]."""
    return np.stack([np.bincount(index, x, minlength=count) for x in entries], 1)


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
