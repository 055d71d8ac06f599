"""Which units a seed tests, which it trains on, and how cells are split so that nobody is scored on shared noise.

Controls are split into an input half (for predictors and training) and a reference half (for the truth alone): with the
same controls on both sides their sampling noise is a common part of every delta, and predictions look good for having
it. The treated cells of a unit are split into halves that take turns as visible values and as target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sckit.config.finetune import FinetuneConfig
from sckit.errors import DataError
from sckit.perturbation.screen import Screen

_ENOUGH = 5  # perturbations for a split over them


@dataclass(frozen=True)
class Fold:
    """Units by number."""

    train: np.ndarray  # int64 [n]
    test: np.ndarray  # int64 [m]


@dataclass(frozen=True)
class Halving:
    """Rows of the screen on either side."""

    inputs: np.ndarray  # bool [C], control cells that predictors see
    reference: np.ndarray  # bool [C], control cells of the truth
    first: tuple[np.ndarray, ...]  # [U] treated cells of each unit
    second: tuple[np.ndarray, ...]  # [U]


@dataclass(frozen=True)
class Profiles:
    """Means of log1p(CP10k) over cells, zeros included, float64 [U, G] each."""

    inputs: np.ndarray  # controls of the unit's own strata, input half
    reference: np.ndarray  # the same, reference half
    treated: np.ndarray  # all treated cells that may be trained on
    halves: tuple[np.ndarray, np.ndarray]  # the two halves of the treated cells
    variances: tuple[np.ndarray, np.ndarray]  # of single cells in each half
    sizes: tuple[np.ndarray, np.ndarray]  # cells in each half [U]
    reference_error: np.ndarray  # variance of the mean of the reference controls


def split_name(screen: Screen, config: FinetuneConfig) -> str:
    """The split that "auto" takes, and a check that the one asked for is possible: DataError where not."""
    n_groups = {name: len(set(_groups(screen, name)) - {""}) for name in ("perturbation", "context", "combination")}
    chosen = "context" if config.split == "covariate" else config.split
    if chosen == "auto":
        chosen = "perturbation" if n_groups["perturbation"] >= _ENOUGH or n_groups["context"] < 2 else "context"
    if n_groups[chosen] < 2:
        has = ", ".join(f"{count} {name}s" for name, count in n_groups.items())
        asked = "covariate" if chosen == "context" else chosen
        hint = "name a column with --covariates" if chosen == "context" else "choose another --split"
        raise DataError(f"--split {asked} needs two {chosen}s to hold one out; the data have {has}; {hint}.")
    return chosen


def make_fold(screen: Screen, split: str, config: FinetuneConfig, seed: int) -> Fold:
    """The fold of seed number `seed`: fold seed mod K of partition seed // K of the groups, K folds at most."""
    groups = np.array(_groups(screen, split))
    names = sorted(set(groups) - {""})
    count = min(config.folds, len(names))
    order = np.random.default_rng((config.seed, 1, seed // count)).permutation(len(names))
    held_out = {names[i] for i in order[seed % count :: count]}
    if split == "perturbation":  # a combination with a held-out part is not seen either
        parts = [{screen.perturbations[p] for p in unit.parts} for unit in screen.units]
        test = np.array([bool(p & held_out) for p in parts])
    else:
        test = np.isin(groups, list(held_out))
    train, tested = np.flatnonzero(~test), np.flatnonzero(test)
    if split == "combination":
        tested = np.array([u for u in tested if _parts_seen(screen, int(u), train)], np.int64)
    if not len(train) or not len(tested):
        raise DataError(f"the {split} split leaves {len(train)} units to train on and {len(tested)} to test.")
    return Fold(train, tested)


def _groups(screen: Screen, split: str) -> list[str]:
    """The label of each unit that is held out as a whole; empty where a unit is never held out."""
    units = screen.units
    if split == "perturbation":
        # Of a combination only the parts count; its own label would be one more perturbation.
        single = {screen.perturbations[unit.parts[0]] for unit in units if len(unit.parts) == 1}
        return [
            screen.perturbations[u.parts[0]] if len(u.parts) == 1 or screen.perturbations[u.parts[0]] not in single
            else "" for u in units
        ]  # fmt: skip
    if split == "context":
        return [screen.unseen_of_context[unit.context] for unit in units]
    combined = any(len(unit.parts) > 1 for unit in units)
    labels = [str(unit.parts) if combined else f"{unit.parts} {unit.context}" for unit in units]
    of_part: dict[int, set[str]] = {}
    of_context: dict[int, set[str]] = {}
    for unit, label in zip(units, labels, strict=True):
        of_context.setdefault(unit.context, set()).add(label)
        for part in unit.parts:
            of_part.setdefault(part, set()).add(label)
    # What has a part, or a context, that is in no other group could never be tested.
    return [
        label if (len(unit.parts) > 1 or not combined) and len(of_context[unit.context]) > 1
        and all(len(of_part[part]) > 1 for part in unit.parts) else ""
        for unit, label in zip(units, labels, strict=True)
    ]  # fmt: skip


def _parts_seen(screen: Screen, u: int, train: np.ndarray) -> bool:
    """Whether each part of the unit, and its context, is in some training unit."""
    parts = {p for v in train for p in screen.units[v].parts}
    contexts = {screen.units[v].context for v in train}
    return set(screen.units[u].parts) <= parts and screen.units[u].context in contexts


def training_share(
    screen: Screen, fold: Fold, split: str, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The training units at a share of the training data, and the treated cells of each that may be used.

    Shares are nested for one generator state. Where perturbations are held out a share of the training ones is taken,
    two at least; else every unit keeps a share of its cells, two at least, so that what is unseen stays the same.
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


def halve(screen: Screen, generator: np.random.Generator) -> Halving:
    """Split controls within each stratum and treated cells within each unit and stratum."""
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
    return Halving(inputs, screen.control & ~inputs, tuple(first), tuple(second))


def profiles(
    screen: Screen,
    values: sp.csr_array,
    truth: sp.csr_array,
    halving: Halving,
    trainable: dict[int, np.ndarray],
) -> Profiles:
    """Profiles of all units, from values [C, G] on the predictors' side and values [C, G] on the side of the truth.

    The two are one unless each cell's counts were split. trainable: treated cells by training unit; the row of any
    other unit is NaN in `treated`, so that a leak shows.
    """
    strata = composition(screen)  # [U, S]
    inputs, _, _ = group_moments(values, _by_stratum(screen, halving.inputs, strata.shape[1]))
    reference, variance, number = group_moments(truth, _by_stratum(screen, halving.reference, strata.shape[1]))
    treated = np.full((len(screen.units), len(screen.genes)), np.nan)
    known = sorted(trainable)
    treated[known] = group_moments(values, [trainable[u] for u in known])[0]
    first, second = group_moments(truth, halving.first), group_moments(truth, halving.second)
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
    """Share of each unit's cells in each stratum, float64 [U, S]."""
    count = int(screen.stratum.max()) + 1
    rows = [np.bincount(screen.stratum[unit.cells], minlength=count) / len(unit.cells) for unit in screen.units]
    return np.array(rows)


def group_moments(values: sp.csr_array, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance (n - 1) of the rows of each group [N, G], and the number of its rows [N]."""
    sizes = np.array([len(group) for group in groups])
    rows = np.concatenate([*groups, np.zeros(0, np.int64)]).astype(np.int64)
    owner = sp.csr_array(
        (np.ones(len(rows)), rows, np.concatenate([[0], np.cumsum(sizes)])), (len(groups), len(values.indptr) - 1)
    )
    count = np.maximum(sizes, 1)[:, None]
    mean = sp.csr_array(owner @ values).toarray() / count
    squares = sp.csr_array(owner @ values.power(2)).toarray() / count
    return mean, np.maximum(squares - mean**2, 0.0) * count / np.maximum(count - 1, 1), sizes


def _by_stratum(screen: Screen, chosen: np.ndarray, count: int) -> list[np.ndarray]:
    return [np.flatnonzero(chosen & (screen.stratum == s)) for s in range(count)]
