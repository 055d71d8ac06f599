"""The rows of an evaluation: what each of them knows, which baseline is best, and the law that each stands for."""

from collections.abc import Mapping, Sequence

import numpy as np

from sckit.data.batch import Batch
from sckit.evaluation.association import ASSOCIATION_ROWS, GROUP_OFFSETS, NEIGHBOURS
from sckit.kernels.count_law import counts_of
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.metrics.laws import Laws
from sckit.model.calibration import POISSON, Calibration, by_decile, calibrate, fit_dispersion, log_rates
from sckit.model.closed_forms import PREDICTORS
from sckit.model.offset_forms import OFFSET_PREDICTORS, OffsetForms

BASELINES = (
    *PREDICTORS[:2], "label + depth", *PREDICTORS[2:], "visible offset ridge", *OFFSET_PREDICTORS, *ASSOCIATION_ROWS,
)  # fmt: skip
"""Every linear row, from the least to the most that it knows."""

Errors = Mapping[str, np.ndarray]
"""Squared error of each row in each validation cell, [cells]."""

_NORMAL = 1.96  # standard errors in half of a 95 % interval
_RIDGE = "value offset ridge"
_USUAL = (
    *(_RIDGE + added for added in (GROUP_OFFSETS + NEIGHBOURS, GROUP_OFFSETS, NEIGHBOURS, "")), "visible offset ridge",
)  # fmt: skip
"""The best baseline unless another one is clearly better: the first of these that is there."""
_OF_VISIBLE = ("gene mean", "visible offset ridge")
_WITH_LABELS = ("label + depth",)


def information(row: str) -> frozenset[str]:
    """Return what a row knows beyond the visible values of the cell.

    A row without a context, such as the replicate, is judged as one in the context "detected".
    """
    name, *context = row.split("/")
    known = {
        "detected": name not in _OF_VISIBLE if name in BASELINES else context[:1] != ["visible"],
        "labels": name in _WITH_LABELS,
        "groups": GROUP_OFFSETS in name,
        "neighbours": NEIGHBOURS in name,
    }
    return frozenset(what for what, is_known in known.items() if is_known)


def best_baseline(errors: Errors, known: frozenset[str]) -> str:
    """Return the best baseline among those that know no more.

    That is the offset ridge that knows most, unless another row has less squared error on validation cells, with the
    whole 95 % interval of the difference on one side, as in every verdict of sckit. Where several rows predict the
    same, as with all values hidden, it is the one that knows least.
    """
    rows = {name: np.atleast_1d(errors[name]) for name in BASELINES if name in errors and information(name) <= known}
    best = min(rows, key=lambda name: rows[name].sum())
    usual = next((name for name in _USUAL if name in rows), best)
    gain = rows[usual] - rows[best]
    if gain.sum() <= _NORMAL * np.sqrt(len(gain)) * gain.std():
        best = usual
    return next(name for name in rows if np.array_equal(rows[name], rows[best]))


def best_baselines(errors: Errors) -> dict[str, str]:
    """Return the best baseline among those that know as much as a row in each context.

    A baseline that knows labels or other cells is never the best of a row without them.
    """
    return {context: best_baseline(errors, information(f"/{context}")) for context in ("detected", "visible")}


def best_of(row: str, errors: Errors, more: frozenset[str] = frozenset()) -> str:
    """Return the baseline that a row is compared with: the best of those that know no more than it does.

    more: what it knows that its name does not say, as in `information`.

    Linear rows that know less than the detection set are compared as if they knew it.
    """
    return best_baseline(errors, information(row) | more | ({"detected"} if "/" not in row else set()))


def errors_of_cells(cells: Sequence[np.ndarray], errors: Sequence[Errors]) -> Errors:
    """Add up squared errors of parts, such as batches or folds, by cell; cells: of each part, rows of one store.

    The errors of a cell go together, so a validation cell of several folds counts once.
    """
    number = np.unique(np.concatenate(cells), return_inverse=True)[1]
    return {name: np.bincount(number, np.concatenate([part[name] for part in errors])) for name in errors[0]}


class Floors:
    """Calibrated laws of all rows at one mask rate, fitted on the cells that are added."""

    def __init__(self, offsets: OffsetForms) -> None:
        self._offsets = offsets
        self._log_rates: dict[str, list[np.ndarray]] = {}
        self._counts: list[np.ndarray] = []
        self._genes: list[np.ndarray] = []
        self._calibrations: dict[str, Calibration] = {}
        self._noise = POISSON
        self._cells: list[np.ndarray] = []
        self._errors: list[Errors] = []
        self.deciles: dict[str, list[dict[str, float]]] = {}  # of each row, see `by_decile`
        self.entries = 0

    @property
    def cells(self) -> np.ndarray:
        """The cells that were added, rows of the store, ascending."""
        return np.unique(np.concatenate(self._cells))

    @property
    def errors(self) -> Errors:
        """Squared error of each row in each of the cells."""
        return errors_of_cells(self._cells, self._errors)

    def add(self, batch: Batch, predicted: dict[str, np.ndarray], totals: np.ndarray) -> None:
        """Add a batch of validation cells with predictions [M] by row; totals: [C]."""
        truth = batch.truth.astype(np.float64)
        self._counts.append(counts_of(truth, totals[batch.target_cells]))
        self._genes.append(batch.genes[batch.targets])
        self._cells.append(batch.cells)
        self.entries += len(truth)
        cells = self._offsets.of_cells(batch)
        errors = {name: (values - truth) ** 2 for name, values in predicted.items()}
        count = len(batch.cells)
        self._errors.append({name: np.bincount(batch.target_cells, of, count) for name, of in errors.items()})
        for name, values in predicted.items():
            self._log_rates.setdefault(name, []).append(log_rates(batch, cells, values))

    def fit(self, *, negative_binomial: bool) -> None:
        """Calibrate every row; the dispersion of negative-binomial noise is that of the row of the least error."""
        counts, genes = np.concatenate(self._counts), np.concatenate(self._genes)
        for name, parts in self._log_rates.items():
            log_rate = np.concatenate(parts)
            self._calibrations[name] = calibrate(log_rate, counts)
            self.deciles[name] = by_decile(self._calibrations[name](log_rate), counts)
        if negative_binomial:
            best = best_baselines(self.errors)["detected"]
            rates = self._calibrations[best](np.concatenate(self._log_rates[best]))
            self._noise = fit_dispersion(rates, counts, self._offsets.mean_count[genes])
        self._log_rates.clear()

    def laws(self, batch: Batch, predicted: dict[str, np.ndarray], totals: np.ndarray) -> Laws:
        """Return the laws of a batch's targets; that of the gene mean is the gene's own rate, times the total."""
        genes, cell = batch.genes[batch.targets], batch.target_cells
        of_gene = np.exp(self._offsets.log_rate[genes]) * (totals / TARGET_SUM)[cell]
        cells, mean_counts = self._offsets.of_cells(batch), self._offsets.mean_count[genes]
        rates = {name: self._calibrations[name](log_rates(batch, cells, p)) for name, p in predicted.items()}
        rates["gene mean"] = of_gene
        laws = {name: self._noise.law(rate, mean_counts) for name, rate in rates.items()}
        return Laws(rates, laws, totals[cell].astype(np.float64))
