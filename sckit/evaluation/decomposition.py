"""What a prediction is made of: R2 and deviance as a sum of steps, from the normaliser to sampling noise.

Every step adds something to what the step before it knows, and its part is the squared error (or the deviance) that it
removes. All regressions are of the value less that of a single count, on leading blocks of one list of features, so
that one pass over the training cells serves them all:

    normaliser        the value of a single count, and the gene's mean above it
    depth             ridge on (1, log detected, log total)
    label             and the cell's label
    detection         and the detection components
    visible values    and the value factors
    group offsets     and what the cell's group adds to each gene, with `--offset-group`
    network           the model's own prediction, with group offsets where there are any

The rest is what no step explains: the part that is explainable, given the noise floor of the best linear baseline, and
sampling noise. All parts add up to 1. A part depends on the order, because what two steps both know goes to the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sckit.data.batch import Batch, Packer
from sckit.data.labels import Labels
from sckit.data.views import cell_of_entry
from sckit.evaluation.association import GROUP_OFFSETS
from sckit.evaluation.gains import GeneGains
from sckit.evaluation.predictors import Fitted, Pass, Rows, Setting
from sckit.files import to_json
from sckit.kernels.count_law import draw_counts, value_moments
from sckit.kernels.counts_numba import entry_dot
from sckit.kernels.regression_numba import add_normal_equations, unpack
from sckit.metrics.intervals import Resampling
from sckit.metrics.laws import Laws, truncated_poisson_deviance
from sckit.model.calibration import STRATA, stratum_of
from sckit.model.closed_forms import label_codes
from sckit.model.offset_forms import OfCells, OffsetForms, value_of_one
from sckit.model.regression import TrainingCells, by_gene, solve_ridge
from sckit.training.baselines import training_cells

STEP = "step/"
"""Names of the rows that only the decomposition looks at begin with this."""

ROW_STEPS = (
    ("group offsets", (f"value offset ridge{GROUP_OFFSETS}",)),
    ("network", (f"model{GROUP_OFFSETS}/detected", "model/detected")),
)
"""Steps behind the visible values, in their order, each with the rows that may predict it, the first one there is."""

REST = ("explainable but unexplained", "sampling noise")

_GENES_AT_A_TIME = 256
_THIRDS = ("fewest genes detected", "middle", "most genes detected")
_MEASURES = ("r2", "deviance")


@dataclass(frozen=True)
class Steps:
    """The nested regressions; G genes, L labels, K components."""

    offsets: OffsetForms
    codes: np.ndarray | None  # int [cells of the store], number of the label or -1
    labels: int
    above: np.ndarray  # [G], mean above a single count
    ridges: dict[str, np.ndarray]  # [G, k] by step, on the first k features
    detected: np.ndarray  # [G], share of the training cells in which the gene is detected

    def features(self, cells: OfCells, rows: np.ndarray) -> np.ndarray:
        """Return (1, depth, total, labels, components) [C, 3 + L + K] of cells with these rows of the store."""
        one_hot = np.zeros((len(rows), 0)) if self.codes is None else self.codes[rows, None] == np.arange(self.labels)
        return np.column_stack([cells.x[:, :2], cells.t, one_hot, cells.x[:, 2:]])

    def predict(self, batch: Batch) -> dict[str, np.ndarray]:
        """Predict the values of the batch's targets with every step, float64 [M] each."""
        cells = self.offsets.of_cells(batch)
        features, one = self.features(cells, batch.cells), cells.one
        genes, cell = batch.genes[batch.targets], batch.target_cells
        above = {"normaliser": self.above[genes]}
        for name, ridge in self.ridges.items():
            above[name] = entry_dot(ridge, genes, np.ascontiguousarray(features[:, : ridge.shape[1]]), cell)
        seen = np.flatnonzero(~batch.hidden)
        of_seen = batch.cell_of_token[seen]
        expected = entry_dot(self.ridges["detection"], batch.genes[seen], features, of_seen) + one[of_seen]
        factors = self.offsets.factors(batch, batch.values[seen] - expected)
        above["visible values"] = above["detection"] + entry_dot(self.offsets.loadings, genes, factors, cell)
        return {STEP + name: one[cell] + np.maximum(x, 0) for name, x in above.items()}


def fit_steps(training: TrainingCells, offsets: OffsetForms, labels: Labels | None, *, guess: bool) -> Steps:
    """Fit all steps in one pass over the training cells, with the penalty and components of the offset baselines.

    labels: of every cell of the store, or None. guess: the total is unknown where the steps are used, so that they are
    fitted with the guess too. Memory: G x (L + K + 3)^2 / 2 doubles.
    """
    codes, names = (None, []) if labels is None else label_codes(labels, training.cells)
    n_genes, size = training.n_genes, 3 + len(names) + offsets.axes.shape[1]
    steps = Steps(offsets, codes, len(names), np.zeros(0), {}, np.zeros(0))
    packed, sums = np.zeros((n_genes, size * (size + 1) // 2)), np.zeros((n_genes, 1, size))
    for block in training.blocks():
        full, log_total = offsets.block_features(block), np.log(block.totals)
        unknown = np.full(len(block.cells), np.nan)
        cells = offsets.guessed(full[:, :-1], *((unknown, unknown) if guess else (full[:, -1], log_total)))
        order, indptr = by_gene(block.values.indices, n_genes)
        cell = cell_of_entry(block.values.indptr)[order]
        targets = (block.values.data[order] - value_of_one(cells.log_total)[cell])[:, None]
        features, nothing = steps.features(cells, block.cells), np.zeros((len(order), 0))
        add_normal_equations(indptr, cell, targets, features, nothing, packed, sums)
    sizes = {"depth": 3} | ({} if labels is None else {"label": 3 + len(names)}) | {"detection": size}
    ridges = {name: np.zeros((n_genes, k)) for name, k in sizes.items()}
    for start in range(0, n_genes, _GENES_AT_A_TIME):
        some = slice(start, start + _GENES_AT_A_TIME)
        for name, k in sizes.items():
            ridges[name][some] = solve_ridge(unpack(packed[some], k), sums[some, 0, :k], float(offsets.chosen[2]))
    above = sums[:, 0, 0] / np.maximum(packed[:, 0], 1)
    return Steps(offsets, codes, len(names), above, ridges, packed[:, 0] / len(training.cells))


@dataclass(frozen=True)
class Decomposed:
    """The parts of R2 and deviance in all entries and by strata, and what each gene gains from visible values."""

    rate: float
    total: str  # "known", "read off the visible values" or "guessed from the detected genes"
    label: str | None
    floor_of: str  # row whose noise floor is used
    table: pd.DataFrame  # kind ("all", "mean count", "depth"), part, entries, step, and both measures with ends
    genes: pd.DataFrame  # see `GeneGains.table`
    gains: dict[str, float]  # see `GeneGains.summary`

    def document(self) -> dict[str, object]:
        """Return what the JSON document of the evaluation holds."""
        names = ("rate", "total", "label", "floor_of")
        facts = {name: getattr(self, name) for name in names}
        rows = [_row(row) for row in to_json(self.table.to_dict("records"))]
        genes = to_json(self.genes.head(20).to_dict("records"))
        return facts | {"parts": rows, "gains_from_values": self.gains, "genes": genes}


def _row(row: dict[str, object]) -> dict[str, object]:
    """Return a row of the table as JSON has it, with intervals as lists."""
    plain = {name: row[name] for name in ("kind", "part", "entries", "step")}
    ends = {f"{name}_ci": [row[f"{name}_low"], row[f"{name}_high"]] for name in _MEASURES}
    return plain | {name: row[name] for name in _MEASURES} | ends


class Decomposition:
    """Collects squared errors and deviances of the steps by cell and stratum of genes."""

    def __init__(self, setting: Setting, fitted: Fitted, rate: float) -> None:
        label = setting.config.label
        labels = None if label is None else setting.store.labels(label)
        setting.log("decomposition: regressions of the steps")
        guess = rate == 1.0 and not setting.known_depth
        self._steps = fit_steps(training_cells(setting.run, fitted.view), fitted.offsets, labels, guess=guess)
        self._setting, self._rate, self._label, self._guess = setting, rate, label, guess
        self._offsets, self._parts, self._best, self._names = fitted.offsets, [], "", []
        self._generator = np.random.default_rng(setting.config.seed)
        self._gains = GeneGains(setting.run.genes["symbol"].to_numpy(), fitted.offsets, self._steps.detected)

    def with_steps(self, predictor: Pass) -> Pass:
        """Return what predicts the steps too."""

        def over(packer: Packer, cells: np.ndarray) -> Rows:
            rows = predictor(packer, cells)
            return lambda batch: rows(batch) | self._steps.predict(batch)

        return over

    def watch(self, best: str) -> "Decomposition":
        """Name the row whose noise floor is taken."""
        self._best = best
        return self

    def add(self, batch: Batch, predicted: Mapping[str, np.ndarray], laws: Laws) -> None:
        """Add a batch of held-out cells."""
        steps = {name.removeprefix(STEP): name for name in predicted if name.startswith(STEP)}
        there = {name: [row for row in rows if row in predicted] for name, rows in ROW_STEPS}
        steps |= {name: rows[0] for name, rows in there.items() if rows}
        self._names, y = list(steps), batch.truth.astype(np.float64)
        rates, phi = laws.noise[self._best]
        drawn = truncated_poisson_deviance(draw_counts(rates, self._generator, phi), laws.rates[self._best])
        columns = [np.ones(len(y))]
        rows = ["gene mean", *steps.values()]
        columns += [(y - predicted[name]) ** 2 for name in rows] + [value_moments(rates, laws.totals, phi)[1]]
        columns += [laws.deviance(y, laws.rates[name]) for name in rows] + [drawn]
        genes, strata = batch.genes[batch.targets], len(STRATA) - 1
        place = batch.target_cells * strata + stratum_of(self._offsets.mean_count[genes])
        sums = [np.bincount(place, x, minlength=len(batch.cells) * strata) for x in columns]
        self._parts.append((batch.cells, batch.n_detected, np.stack(sums, 1).reshape(len(batch.cells), strata, -1)))
        if self._rate < 1:
            self._gains.add(batch, *(predicted[f"{row} offset ridge"] for row in ("detection + total", "value")))

    def result(self) -> Decomposed:
        """Return the parts in all entries, by strata of genes and by thirds of the cells."""
        cells, detected, sums = map(np.concatenate, zip(*self._parts, strict=True))
        third = np.argsort(np.argsort(detected, kind="stable"), kind="stable") * len(_THIRDS) // len(cells)
        spans = [("all", "all", np.ones(len(cells), bool), slice(None))]
        for s, low in enumerate(STRATA[:-1]):
            high = STRATA[s + 1]
            name = f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} or more"
            spans.append(("mean count", name, np.ones(len(cells), bool), slice(s, s + 1)))
        spans += [("depth", name, third == i, slice(None)) for i, name in enumerate(_THIRDS)]
        rows = []
        for kind, part, chosen, strata in spans:
            some = sums[chosen, strata].sum(1)
            if some[:, 0].any():
                share = {"entries": float(some[:, 0].sum() / sums[..., 0].sum())}
                rows += [{"kind": kind, "part": part} | share | row for row in self._rows(some, cells[chosen])]
        total = "known" if self._setting.known_depth else "read off the visible values"
        if self._guess:
            total = "guessed from the detected genes"
        genes = self._gains.table(self._rate)
        gains = self._gains.summary(genes)
        return Decomposed(self._rate, total, self._label, self._best, pd.DataFrame(rows), genes, gains)

    def _rows(self, sums: np.ndarray, cells: np.ndarray) -> list[dict[str, object]]:
        """Return a row for each step from the sums of cells [C, columns]."""
        config, groups = self._setting.config, self._setting.groups
        rule = Resampling(np.arange(len(cells)) if groups is None else groups[cells])
        drawn = rule.resample({"": sums}, np.random.default_rng(config.seed), config.bootstraps)[""]
        rows: list[dict[str, object]] = [{"step": name} for name in (*self._names, *REST)]
        width = len(self._names) + 2
        for m, measure in enumerate(_MEASURES):
            own = slice(1 + m * width, 1 + (m + 1) * width)
            points, resampled = parts(sums.sum(0)[own]), parts(drawn[:, own])
            for i, row in enumerate(rows):
                low, high = rule.interval(float(points[i]), resampled[:, i])
                row |= {measure: float(points[i]), f"{measure}_low": low, f"{measure}_high": high}
        return rows


def parts(errors: np.ndarray) -> np.ndarray:
    """Return the parts [..., n] of the first of n errors: what each error leaves of the one before it, and the last.

    errors: [..., n], of the gene mean, of every step, and of sampling noise alone. The parts add up to 1.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([-np.diff(errors, axis=-1), errors[..., -1:]], -1) / errors[..., :1]
