"""One seed's fold at one share of the training data: the lesson, the truth, and the scores of everybody."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from sckit.config.finetune import FinetuneConfig
from sckit.device import Compute
from sckit.kernels.counts_numba import split as split_counts
from sckit.kernels.counts_reference import mix
from sckit.metrics.effects import Truth, discrimination, score
from sckit.model.regression import principal_axes
from sckit.perturbation import baselines as closed
from sckit.perturbation.arms import Arms
from sckit.perturbation.baselines_partial import Revealed, partial_baselines
from sckit.perturbation.examples import Lesson, Panel, fixed_panel, panels
from sckit.perturbation.fit import fit, predict_cells, predict_profiles, predict_response
from sckit.perturbation.screen import Screen, log_values
from sckit.perturbation.splits import group_moments, halve, make_fold, profiles, training_share

_CONTROL_COMPONENTS = 10
_TRAINING_CELLS = 600  # rows of the closed forms at the level of cells

CEILING = "other half"


@dataclass(frozen=True)
class Score:
    """One predictor on one unit: metric -> value."""

    predictor: str
    revealed: float | None
    train_share: float
    unit: int
    seed: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Job:
    """A seed and a share of the training data."""

    seed: int
    share: float
    arms: tuple[str, ...]


@dataclass(frozen=True)
class _Question:
    """N rows to predict from what is revealed, and the truth; a row is a unit, or a cell at that level."""

    revealed: float | None  # share of the genes, None in the response task
    panels: Sequence[Panel]
    units: np.ndarray  # int [N], unit of each row
    visible: np.ndarray  # [N, G] profiles shown, or int [N] cells shown
    truth: Truth
    ceiling: np.ndarray  # [N, G], delta of what is shown, all genes: the other half as a predictor


class FoldRun:
    """Everything about one job. Nothing of the test units' target values reaches a predictor."""

    def __init__(self, screen: Screen, config: FinetuneConfig, split: str, arms: Arms, job: Job) -> None:
        self.screen, self.config, self.arms, self.job = screen, config, arms, job
        key = config.seed, job.seed
        self.key = key
        fold = make_fold(screen, split, config, job.seed)
        train, trainable = training_share(screen, fold, split, job.share, np.random.default_rng((*key, 10)))
        halving = halve(screen, np.random.default_rng((*key, 11)))
        if config.level == "cell":
            values, truth = count_halves(screen, config.seed + job.seed)
        else:
            values = truth = screen.values
        self.profiles = profiles(screen, values, truth, halving, trainable)
        rows = arms.table.perturbations
        self.fold = closed.Fold(
            train,
            fold.test,
            self.profiles.treated - self.profiles.inputs,
            self.profiles.inputs,
            tuple(unit.parts for unit in screen.units),
            np.array([unit.context for unit in screen.units]),
            np.where(rows < arms.table.n_genes, rows, -1),
            _components(values[np.flatnonzero(halving.inputs)]),
        )
        mean = closed.mean_of_training(self.fold)[0]
        panel = fixed_panel(screen, config)
        self.lesson = Lesson(screen, config, values, truth, halving, self.profiles, arms.table, trainable, mean, panel)
        self.trained: list[dict[str, Any]] = []  # of each arm: which step was best, errors on the validation units
        self.questions = list(self._ask(np.random.default_rng((*key, 12))))

    def scores(self, compute: Compute) -> Iterator[Score]:
        """Of the baselines, of the ceiling, and of each arm once it is trained."""
        for name, predicted in self.baselines().items():
            yield from self._score(name, predicted)
        yield from self._score(CEILING, [question.ceiling for question in self.questions])
        for name in self.job.arms:
            yield from self._score(name, self.arm(name, compute))

    def arm(self, name: str, compute: Compute) -> list[np.ndarray]:
        """Train an arm; its predicted deltas [N, G] for each question."""
        seed, noise = 1000 * self.key[0] + self.key[1], self.lesson.cell_rms**2
        start = self.arms.build(name, self.config, seed=seed, engine=compute.engine, noise=noise)
        fitted = fit(start, self.lesson, compute, frozen=name == "frozen", seed=self.key)
        about = {"arm": name, "seed": self.job.seed, "train_share": self.job.share, "best_step": fitted.best_step}
        self.trained.append(about | {"validation": fitted.validation})
        if self.config.task == "response":
            predicted = predict_response(fitted, self.lesson, list(self.fold.test), compute, self.key)
            return [predicted] * len(self.questions)
        predict = predict_cells if self.config.level == "cell" else predict_profiles
        return [predict(fitted, self.lesson, q.visible, q.units, q.panels, compute) for q in self.questions]

    def baselines(self) -> dict[str, list[np.ndarray]]:
        """Predicted deltas [N, G] for each question, by name."""
        response = closed.response_baselines(self.fold)
        if self.config.task == "response":
            return {name: [delta] * len(self.questions) for name, delta in response.items()}
        found: dict[str, list[np.ndarray]] = {}
        for question in self.questions:
            for name, delta in self._closed_forms(question, response["additive"]).items():
                found.setdefault(name, []).append(delta)
        return found

    def _ask(self, generator: np.random.Generator) -> Iterator[_Question]:
        """Both halves of the treated cells take their turn as target; of count halves the second is the target."""
        test, means = self.fold.test, self.profiles
        n_genes = self.arms.table.n_genes
        fixed = self.lesson.panel
        if self.config.task == "response":
            shares: Sequence[float | None] = (None,)
        else:
            shares = self.config.revealed if fixed is None else (len(fixed) / n_genes,)
        cells = [generator.permutation(self.screen.units[u].cells)[: self.config.control_cells] for u in test]
        state = generator.bit_generator.state
        for share in shares:
            generator.bit_generator.state = state  # so that panels are nested
            asked = (
                [Panel(np.zeros(0, np.int64), np.arange(n_genes))]
                if share is None
                else panels(n_genes, share, fixed, generator)
            )
            if self.config.level == "cell":
                owner = np.repeat(test, [len(c) for c in cells])
                shown = np.concatenate(cells)
                ceiling = self.lesson.values[shown].toarray() - means.inputs[owner]
                yield _Question(share, asked, owner, shown, self._truth(owner, 0, shown), ceiling)
                continue
            for target in (0, 1):
                visible = means.halves[1 - target][test]
                yield _Question(share, asked, test, visible, self._truth(test, target), visible - means.inputs[test])

    def _truth(self, units: np.ndarray, half: int, cells: np.ndarray | None = None) -> Truth:
        """The truth of rows of units [N]: of one half of their treated cells, or of single cells [N]."""
        means = self.profiles
        everyone = means.halves[half] - means.reference
        if cells is None:
            target, number = means.halves[half][units], means.sizes[half][units]
        else:
            target, number = self.lesson.truth[cells].toarray(), np.ones(len(cells))
        error = np.sqrt(means.variances[half][units] / number[:, None] + means.reference_error[units])
        mean = np.tile(self.lesson.mean, (len(units), 1))
        against_control = target - means.reference[units]
        # By the reference half on both sides: in several contexts the input half would be a part of it, and of what
        # predictors know.
        return Truth(against_control, against_control - self._reference_mean, mean, error, everyone, units)

    @cached_property
    def _reference_mean(self) -> np.ndarray:
        """Mean delta [G] of the training perturbations against the reference half: of the truth, not of predictors."""
        return closed.mean_of_training(replace(self.fold, delta=self.profiles.treated - self.profiles.reference))[0]

    def _closed_forms(self, question: _Question, additive: np.ndarray) -> dict[str, np.ndarray]:
        """The partial baselines of a question, panel by panel; NaN for genes that no panel predicts."""
        seen, truth, group = self._training_rows
        own, cross = self._covariance
        of_cells = self.config.level == "cell"
        shown = self.lesson.values[question.visible].toarray() if of_cells else question.visible
        shown = shown - self.profiles.inputs[question.units]
        of_unit = additive[np.searchsorted(self.fold.test, question.units)]
        found: dict[str, np.ndarray] = {}
        for panel in question.panels:
            r, s = panel.revealed, panel.scored
            prior = self.lesson.mean[np.concatenate([r, s])]
            data = Revealed(
                seen[:, r],
                truth[:, s],
                np.tile(prior, (len(seen), 1)),
                shown[:, r],
                np.tile(prior, (len(shown), 1)),
                group,
                cross[np.ix_(s, r)],
                own[np.ix_(r, r)],
                of_unit[:, s],
            )
            for name, delta in partial_baselines(data).items():
                found.setdefault(name, np.full(shown.shape, np.nan))[:, s] = delta
        return found

    @cached_property
    def _training_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visible and target deltas [n, G] of training rows, and their perturbation (context where there is one)."""
        generator = np.random.default_rng((*self.key, 13))
        units, lesson = self.screen.units, self.lesson
        group = np.unique([str(units[u].parts) for u in self.fold.train], return_inverse=True)[1]
        if group.max() == 0:
            group = np.array([units[u].context for u in self.fold.train])
        known = [generator.permutation(lesson.trainable[int(u)]) for u in self.fold.train]
        if self.config.level == "cell":
            most = max(2, _TRAINING_CELLS // len(known))
            cells = np.concatenate([c[:most] for c in known])
            rows = np.repeat(np.arange(len(known)), [len(c[:most]) for c in known])
            seen, truth = lesson.values[cells].toarray(), lesson.truth[cells].toarray()
        else:
            halves = [group_moments(lesson.values, [c[start::2] for c in known])[0] for start in (0, 1)]
            seen, truth = np.concatenate(halves), np.concatenate(halves[::-1])
            rows = np.tile(np.arange(len(known)), 2)
        inputs = self.profiles.inputs[self.fold.train][rows]
        return seen - inputs, truth - inputs, group[rows]

    @cached_property
    def _covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariance over input controls within strata [G, G]: of what is shown, and of the target with that."""
        cells = np.flatnonzero(self.lesson.halving.inputs)
        strata = self.screen.stratum[cells]
        shown = _centred(self.lesson.values[cells].toarray(), strata)
        freedom = max(1, len(cells) - len(np.unique(strata)))
        own = shown.T @ shown / freedom
        if self.config.level != "cell":
            return own, own
        return own, _centred(self.lesson.truth[cells].toarray(), strata).T @ shown / freedom

    def _score(self, name: str, predicted: list[np.ndarray]) -> Iterator[Score]:
        """Scores of each test unit at each revealed share: means over its rows and over both targets."""
        for revealed in dict.fromkeys(question.revealed for question in self.questions):
            tables = []
            for question, delta in zip(self.questions, predicted, strict=True):
                if question.revealed != revealed:
                    continue
                hidden = np.zeros(delta.shape[1], bool)
                hidden[np.concatenate([panel.scored for panel in question.panels])] = True
                scored = self.screen.scored(question.units) & hidden
                delta = np.where(hidden, delta, 0.0)
                found = score(delta, question.truth, scored)
                # Rivals are told apart by genes that nobody's perturbation hits, lest the own one be short of its mark;
                # where most genes are somebody's target, by all.
                shared = hidden & self.screen.scored(np.arange(len(self.screen.units))).all(0)
                shared = shared if 2 * shared.sum() >= hidden.sum() else hidden
                found["discrimination"] = discrimination(delta, question.truth.candidates, question.truth.own, shared)
                tables.append({k: _mean_by(question.units, v, self.fold.test) for k, v in found.items()})
            metrics = {k: np.mean([table[k] for table in tables], 0) for k in tables[0]}
            for i, u in enumerate(self.fold.test):
                of_unit = {k: float(v[i]) for k, v in metrics.items()}
                yield Score(name, revealed, self.job.share, int(u), self.job.seed, of_unit)


def count_halves(screen: Screen, seed: int) -> tuple[sp.csr_array, sp.csr_array]:
    """Values of two halves of each cell's molecules, each normalised by its own total, float64 [C, G] each."""
    counts = screen.counts
    csr = counts.indptr.astype(np.int64), counts.indices.astype(np.int32), counts.data.astype(np.uint32)
    key, cells = int(mix(np.array(seed, np.uint64))), np.arange(len(screen.totals))
    halves = []
    for second in (False, True):
        (indptr, genes, kept), totals = split_counts(csr, cells, screen.totals, key, second=second)
        halves.append(log_values(sp.csr_array((kept, genes, indptr), counts.shape), totals))
    return halves[0], halves[1]


def _components(controls: sp.csr_array) -> np.ndarray:
    """Loadings [G, k] of the principal components of control cells' values."""
    mean = controls.mean(0)
    count = min(_CONTROL_COMPONENTS, len(controls.indptr) - 2, len(mean) - 1)
    return principal_axes(lambda: [controls], mean, count, np.random.default_rng(0))[0]


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    numbers = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((numbers.max() + 1, values.shape[1]))
    np.add.at(sums, numbers, values)
    return values - (sums / np.bincount(numbers)[:, None])[numbers]


def _mean_by(units: np.ndarray, values: np.ndarray, order: np.ndarray) -> np.ndarray:
    return np.array([values[units == u].mean() for u in order])
