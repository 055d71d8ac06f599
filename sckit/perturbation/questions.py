"""Questions and scores: a predictor is a function of a fold and a question that returns deltas.

Linear baselines, arms and the ceiling have this one interface, and one loop scores them all.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from sckit.metrics import Truth, discrimination, score
from sckit.perturbation.examples import Panel, panels
from sckit.perturbation.fold import FoldData

CEILING = "other half"


@dataclass(frozen=True)
class Question:
    """The effects of m test units at G genes are asked for; `truth` is for the scores alone."""

    revealed: float | None  # share of the genes whose values are revealed, None in the response task
    panels: Sequence[Panel]
    units: np.ndarray  # int [m]
    visible: np.ndarray  # [m, G], profiles of the half of the treated cells that is not the target
    truth: Truth

    @functools.cached_property
    def hidden(self) -> np.ndarray:
        """Whether some panel predicts each gene, bool [G]."""
        return np.isin(np.arange(self.visible.shape[1]), np.concatenate([panel.scored for panel in self.panels]))


Predictor: TypeAlias = Callable[[FoldData, Question], np.ndarray]
"""Returns deltas [m, G] against the input controls; what it says of genes that no panel predicts does not count."""


@dataclass(frozen=True)
class Score:
    """One predictor on one unit: metric -> value."""

    predictor: str
    revealed: float | None
    train_share: float
    unit: int
    seed: int
    metrics: dict[str, float]
    group_size: int  # test units that it was centred with for the headline, itself included


def blind(predict: Callable[[FoldData], np.ndarray]) -> Predictor:
    """Return the predictor that answers every question of a fold with the same deltas [m, G], computed once.

    The deltas are NaN at genes that the question does not ask for.
    """
    answer = functools.cache(predict)
    return lambda fold, question: np.where(question.hidden, answer(fold), np.nan)


def other_half(fold: FoldData, question: Question) -> np.ndarray:
    """Return the deltas of the visible half of the treated cells at all genes: the ceiling."""
    return question.visible - fold.view.control[question.units]


def ask(fold: FoldData) -> list[Question]:
    """Return the questions of a fold; at each revealed share both halves of the treated cells take a turn as target."""
    n_genes, fixed, test = len(fold.screen.genes), fold.examples.panel, fold.view.test
    generator = np.random.default_rng((*fold.key, 12))
    for u in test:  # unused; without these draws the panels would differ from those of earlier versions
        generator.permutation(fold.screen.units[u].cells)
    state = generator.bit_generator.state
    shares: Sequence[float | None] = (None,)
    if fold.config.task == "partial":
        shares = fold.config.revealed if fixed is None else (len(fixed) / n_genes,)
    questions = []
    for share in shares:
        generator.bit_generator.state = state  # so that panels are nested
        asked = [Panel(np.zeros(0, np.int64), np.arange(n_genes))]
        if share is not None:
            asked = panels(n_genes, share, fixed, generator)
        for target in (0, 1):
            visible = fold.profiles.halves[1 - target][test]
            questions.append(Question(share, asked, test, visible, _truth(fold, target)))
    return questions


def _truth(fold: FoldData, half: int) -> Truth:
    """Return the truth of the test units, from one half of their treated cells and the reference half of controls."""
    profiles, test = fold.profiles, fold.view.test
    target, sizes = profiles.halves[half], profiles.sizes[half]
    error = np.sqrt(profiles.variances[half][test] / sizes[test][:, None] + profiles.reference_error[test])
    # The training mean is taken against the reference half too: with several covariate groups the input half would be
    # a part of the truth, and predictors know it.
    reference_mean = replace(fold.view, delta=profiles.treated - profiles.reference).mean
    control = target[test] - profiles.reference[test]
    mean = np.tile(fold.view.mean, (len(test), 1))
    groups = fold.screen.centring_groups(test)
    return Truth(control, control - reference_mean, mean, error, target - profiles.reference, test, groups)


def scores_of(name: str, predict: Predictor, fold: FoldData, questions: list[Question]) -> Iterator[Score]:
    """Score a predictor on each test unit at each revealed share: means over both targets."""
    tables: dict[float | None, list[dict[str, np.ndarray]]] = {}
    sizes = questions[0].truth.group_sizes
    for question in questions:
        tables.setdefault(question.revealed, []).append(_metrics(predict(fold, question), question, fold))
    for revealed, found in tables.items():
        metrics = {metric: np.mean([table[metric] for table in found], 0) for metric in found[0]}
        for i, u in enumerate(fold.view.test):
            of_unit = {metric: float(values[i]) for metric, values in metrics.items()}
            yield Score(name, revealed, fold.share, int(u), fold.seed, of_unit, int(sizes[i]))


def _metrics(delta: np.ndarray, question: Question, fold: FoldData) -> dict[str, np.ndarray]:
    """Return the value [m] of each metric."""
    hidden, truth, screen = question.hidden, question.truth, fold.screen
    delta = np.where(hidden, delta, 0.0)
    found = score(delta, truth, screen.scored(question.units) & hidden)
    # Units are told apart by the genes that no perturbation targets: a gene that only its own unit must do without
    # would favour that unit. Where most genes are targets, all count.
    shared = hidden & screen.scored(np.arange(len(screen.units))).all(0)
    shared = shared if 2 * shared.sum() >= hidden.sum() else hidden
    found["discrimination"] = discrimination(delta, truth.candidates, truth.own, shared)
    return found
