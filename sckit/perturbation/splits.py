"""Folds: which units a seed tests and which it trains on; and halves of cells, so that no score rests on shared noise.

Controls are divided into an input half (for predictors and training) and a reference half (for the truth alone). With
the same controls on both sides, their sampling noise would be a common part of every delta, and predictions would look
good for containing it. The treated cells of a unit are divided into halves that take turns as visible values and as
target.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sckit.config import FinetuneConfig
from sckit.data import as_matrix, indptr_of
from sckit.errors import DataError
from sckit.perturbation.screen import Screen

_ENOUGH = 5  # perturbations from which on they are what is held out


@dataclass(frozen=True)
class Fold:
    """The units that are trained on and those that are tested, by number."""

    train: np.ndarray  # int64 [n]
    test: np.ndarray  # int64 [m]


@dataclass(frozen=True)
class CellHalves:
    """Rows of the screen in either half."""

    inputs: np.ndarray  # bool [C], control cells that predictors see
    reference: np.ndarray  # bool [C], control cells of the truth
    first: tuple[np.ndarray, ...]  # [U], first half of the treated cells of each unit
    second: tuple[np.ndarray, ...]  # [U]


@dataclass(frozen=True)
class Profiles:
    """Means of log1p of counts per 10,000 over cells, zeros included, float64 [U, G] each."""

    inputs: np.ndarray  # controls of the unit's own strata, input half
    reference: np.ndarray  # the same, reference half
    treated: np.ndarray  # all treated cells that may be trained on
    halves: tuple[np.ndarray, np.ndarray]  # the two halves of the treated cells
    variances: tuple[np.ndarray, np.ndarray]  # of single cells in each half
    sizes: tuple[np.ndarray, np.ndarray]  # cells in each half [U]
    reference_error: np.ndarray  # variance of the mean of the reference controls


def split_name(screen: Screen, config: FinetuneConfig) -> str:
    """Return the split asked for, or the one that "auto" takes; DataError when it is not possible."""
    n_groups = {name: len(set(_groups(screen, name)) - {""}) for name in ("perturbation", "covariate", "combination")}
    chosen = config.split
    if chosen == "auto":
        chosen = "perturbation" if n_groups["perturbation"] >= _ENOUGH or n_groups["covariate"] < 2 else "covariate"
    if n_groups[chosen] < 2:
        has = ", ".join(f"{count} {name}s" for name, count in n_groups.items())
        columns = chosen == "covariate" or config.split == "auto"  # without --covariates there is one covariate group
        hint = "name columns with --covariates" if columns else "choose another --split"
        raise DataError(f"--split {chosen} needs at least two {chosen}s, to hold one out; the data have {has}; {hint}.")
    return chosen


def make_fold(screen: Screen, split: str, config: FinetuneConfig, seed: int) -> Fold:
    """Return the fold of seed number `seed`: fold (seed mod K) of partition (seed // K), with K folds at most.

    Scores of a fold are about what tells its units apart. It holds out at least two perturbations, or covariate values
    of a single perturbation, where there are three or more; one of an odd number may be in two folds.
    """
    groups = np.array(_groups(screen, split))
    names = sorted(set(groups) - {""})
    in_pairs = split == "perturbation" or (split == "covariate" and screen.single)
    count = min(config.folds, max(2, (len(names) + 1) // 2) if in_pairs else len(names))
    order = np.random.default_rng((config.seed, 1, seed // count)).permutation(len(names))
    mine = order[seed % count :: count]
    held_out = {names[i] for i in ([*mine, order[0]] if in_pairs and len(mine) == 1 and len(names) > 2 else mine)}
    if split == "perturbation":  # a combination with a held-out part is not seen either
        test = np.array([any(screen.perturbations[p] in held_out for p in unit.parts) for unit in screen.units])
    else:
        test = np.isin(groups, list(held_out))
    train, tested = np.flatnonzero(~test), np.flatnonzero(test)
    if split == "combination":  # each part and covariate group has to be seen
        units, seen = screen.units, {p for u in train for p in screen.units[u].parts}
        covariates = {units[u].covariates for u in train}
        tested = [u for u in tested if seen.issuperset(units[u].parts) and units[u].covariates in covariates]
    if not len(train) or not len(tested):
        raise DataError(f"the {split} split leaves {len(train)} units to train on and {len(tested)} to test.")
    return Fold(train, np.array(tested, np.int64))


def _groups(screen: Screen, split: str) -> list[str]:
    """Return the label of each unit; units of one label are held out together, those of an empty label never."""
    units = screen.units
    if split == "perturbation":
        # Of a combination only the parts count; its own label would be one more perturbation.
        single = {unit.parts for unit in units if len(unit.parts) == 1}
        return ["" if u.parts[1:] and u.parts[:1] in single else screen.perturbations[u.parts[0]] for u in units]
    if split == "covariate":
        return [screen.unseen_of_covariates[unit.covariates] for unit in units]
    combined = any(len(unit.parts) > 1 for unit in units)
    labels = [str(unit.parts) if combined else f"{unit.parts} {unit.covariates}" for unit in units]
    labelled = list(zip(units, labels, strict=True))
    # How many labels a part or covariate group has: a unit with one that no other label has could never be tested.
    of_part = Counter(part for part, _ in {(part, label) for unit, label in labelled for part in unit.parts})
    of_group = Counter(group for group, _ in {(unit.covariates, label) for unit, label in labelled})
    return [
        label if (len(unit.parts) > 1 or not combined) and of_group[unit.covariates] > 1
        and all(of_part[part] > 1 for part in unit.parts) else ""
        for unit, label in labelled
    ]  # fmt: skip


def training_share(
    screen: Screen, fold: Fold, split: str, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return the training units at a share of the training data, and the treated cells of each that may be used.

    Shares are nested for one generator state. When perturbations are held out, a share of the training perturbations is
    taken, at least two; otherwise every unit keeps a share of its cells, at least two, so that what is unseen stays the
    same.
    """
    names = sorted({screen.units[u].parts for u in fold.train})
    order = generator.permutation(len(names))
    if split == "perturbation":
        kept = {names[i] for i in order[: max(2, round(share * len(names)))]}
        units = np.array([u for u in fold.train if screen.units[u].parts in kept])
        return units, {int(u): screen.units[u].cells for u in units}
    cells = {}
    for u in fold.train:
        mine = generator.permutation(screen.units[u].cells)
        cells[int(u)] = np.sort(mine[: max(2, round(share * len(mine)))])
    return fold.train, cells


def halve(screen: Screen, generator: np.random.Generator) -> CellHalves:
    """Halve the controls of each stratum, and the treated cells of each unit within each stratum."""
    inputs = np.zeros(len(screen.control), bool)
    for s in np.unique(screen.stratum[screen.control]):
        mine = generator.permutation(np.flatnonzero(screen.control & (screen.stratum == s)))
        inputs[mine[: len(mine) // 2]] = True
    first, second = [], []
    for unit in screen.units:
        mixed = generator.permutation(unit.cells)
        mixed = mixed[np.argsort(screen.stratum[mixed], kind="stable")]  # alternating within a stratum halves each
        first.append(np.sort(mixed[::2]))
        second.append(np.sort(mixed[1::2]))
    return CellHalves(inputs, screen.control & ~inputs, tuple(first), tuple(second))


def profiles(
    screen: Screen, values: sp.csr_array, cell_halves: CellHalves, trainable: dict[int, np.ndarray]
) -> Profiles:
    """Return the profiles of all units, from values [C, G].

    trainable: treated cells by training unit; the row of any other unit is NaN in `treated`, so that a leak shows.
    """
    strata = composition(screen)  # [U, S]
    inputs, _, _ = stratum_moments(screen, values, cell_halves.inputs)
    reference, variance, number = stratum_moments(screen, values, cell_halves.reference)
    treated = np.full((len(screen.units), len(screen.genes)), np.nan)
    known = sorted(trainable)
    treated[known] = group_moments(values, [trainable[u] for u in known])[0]
    first, second = group_moments(values, cell_halves.first), group_moments(values, cell_halves.second)
    return Profiles(
        inputs=strata @ inputs,
        reference=strata @ reference,
        treated=treated,
        halves=(first[0], second[0]),
        variances=(first[1], second[1]),
        sizes=(first[2], second[2]),
        reference_error=strata**2 @ (variance / np.maximum(number, 1)[:, None]),
    )


def composition(screen: Screen) -> np.ndarray:
    """Return the share of each unit's cells in each stratum, float64 [U, S]."""
    count = int(screen.stratum.max()) + 1
    return np.array([np.bincount(screen.stratum[u.cells], minlength=count) / len(u.cells) for u in screen.units])


def group_moments(values: sp.csr_array, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean and variance (n - 1) of the rows of each group [N, G], and the number of its rows [N]."""
    sizes = np.array([len(group) for group in groups])
    rows = np.concatenate([*groups, np.zeros(0, np.int64)]).astype(np.int64)
    owner = as_matrix((indptr_of(sizes), rows, np.ones(len(rows))), len(values.indptr) - 1)
    count = np.maximum(sizes, 1)[:, None]
    mean = sp.csr_array(owner @ values).toarray() / count
    squares = sp.csr_array(owner @ values.power(2)).toarray() / count
    return mean, np.maximum(squares - mean**2, 0.0) * count / np.maximum(count - 1, 1), sizes


def stratum_moments(
    screen: Screen, values: sp.csr_array, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `group_moments` of the chosen cells, bool [C], of each stratum [S]."""
    count = int(screen.stratum.max()) + 1
    return group_moments(values, [np.flatnonzero(chosen & (screen.stratum == s)) for s in range(count)])
