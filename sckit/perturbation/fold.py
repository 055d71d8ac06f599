"""What the fold of one seed holds at one share of the training data, and what of that predictors may see."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from sckit.config import FinetuneConfig
from sckit.errors import DataError
from sckit.model import principal_axes
from sckit.perturbation.examples import FoldExamples, fixed_panel
from sckit.perturbation.responder import TokenTable
from sckit.perturbation.ridge import balanced_mean
from sckit.perturbation.screen import Screen
from sckit.perturbation.splits import group_moments, halve, make_fold, profiles, training_share

_CONTROL_COMPONENTS = 10


@dataclass(frozen=True)
class FoldView:
    """What linear baselines may see of U units and G genes; profiles are means of log1p of counts per 10,000."""

    train: np.ndarray  # int [n], units
    test: np.ndarray  # int [m]
    delta: np.ndarray  # [U, G], treated less input controls; rows of units that are not trained on are NaN
    control: np.ndarray  # [U, G], profile of the input controls of each unit's strata
    parts: tuple[tuple[int, ...], ...]  # [U], numbers of the perturbations combined in each unit
    covariates: np.ndarray  # int [U], covariate group
    target_genes: np.ndarray  # int [P], column of each perturbation's target gene, -1 where unknown
    components: np.ndarray  # [G, k], loadings of the principal components of the input controls

    def __post_init__(self) -> None:
        if not len(self.train):
            message = "a fold has no training unit, so nothing can be predicted; ask for fewer folds or a larger share."
            raise DataError(message)

    @property
    def perturbation(self) -> np.ndarray:
        """Return the number of each unit's perturbation, int [U]: the same for equal sets of parts."""
        number: dict[tuple[int, ...], int] = {}
        return np.array([number.setdefault(tuple(sorted(parts)), len(number)) for parts in self.parts])

    @property
    def mean(self) -> np.ndarray:
        """Return the mean delta [G] of the training perturbations, each counted once, however many units it has."""
        return balanced_mean(self.delta[self.train], self.perturbation[self.train])


class FoldData:
    """One fold at one share of the training data: m test units, G genes.

    Predictors use `view`, `examples`, `training_rows` and `control_covariance`, which rest on training units and on the
    input half of the controls. `profiles` holds the truth as well; only questions are made from it.
    """

    def __init__(
        self, screen: Screen, config: FinetuneConfig, split: str, table: TokenTable, *, seed: int, share: float
    ) -> None:
        """seed: number of the fold; share: of the training data that may be used; table: as in `Responder`."""
        self.screen, self.config, self.seed, self.share = screen, config, seed, share
        self.key = config.seed, seed
        fold = make_fold(screen, split, config, seed)
        train, trainable = training_share(screen, fold, split, share, np.random.default_rng((*self.key, 10)))
        cell_halves = halve(screen, np.random.default_rng((*self.key, 11)))
        values, rows = screen.values, table.perturbations
        self.profiles = profiles(screen, values, cell_halves, trainable)
        self.view = FoldView(
            train,
            fold.test,
            delta=self.profiles.treated - self.profiles.inputs,
            control=self.profiles.inputs,
            parts=tuple(unit.parts for unit in screen.units),
            covariates=np.array([unit.covariates for unit in screen.units]),
            target_genes=np.where(rows < table.n_genes, rows, -1),
            components=_components(values[np.flatnonzero(cell_halves.inputs)]),
        )
        self.examples = FoldExamples(
            screen,
            config,
            values,
            cell_halves,
            table,
            trainable,
            delta=self.view.delta,
            control=self.view.control,
            panel=fixed_panel(screen, config),
        )

    @cached_property
    def training_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visible and target deltas [n, G] of both halves of the training units, and the group [n] of each row.

        A group is a perturbation or, if there is only one, a covariate group.
        """
        generator = np.random.default_rng((*self.key, 13))
        train, values, trainable = self.view.train, self.examples.values, self.examples.trainable
        group = np.unique([str(self.view.parts[u]) for u in train], return_inverse=True)[1]
        if group.max() == 0:
            group = self.view.covariates[train]
        cells = [generator.permutation(trainable[int(u)]) for u in train]
        halves = [group_moments(values, [c[start::2] for c in cells])[0] for start in (0, 1)]
        inputs = np.tile(self.view.control[train], (2, 1))
        return np.concatenate(halves) - inputs, np.concatenate(halves[::-1]) - inputs, np.tile(group, 2)

    @cached_property
    def control_covariance(self) -> np.ndarray:
        """Covariance [G, G] of genes over input controls, within strata."""
        cells = np.flatnonzero(self.examples.cell_halves.inputs)
        values = self.examples.values[cells].toarray()
        strata = np.unique(self.screen.stratum[cells], return_inverse=True)[1]
        sums = np.zeros((strata.max() + 1, values.shape[1]))
        np.add.at(sums, strata, values)
        centred = values - (sums / np.bincount(strata)[:, None])[strata]
        return centred.T @ centred / max(1, len(cells) - len(sums))


def _components(controls: sp.csr_array) -> np.ndarray:
    """Return loadings [G, k] of the principal components of control cells' values."""
    mean = controls.mean(0)
    count = min(_CONTROL_COMPONENTS, len(controls.indptr) - 2, len(mean) - 1)
    return principal_axes(lambda: [controls], mean, count, np.random.default_rng(0))[0]
