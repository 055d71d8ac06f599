"""The rows of an evaluation that know other cells: offsets of a cell's group, and its neighbours.

The cells of one pass are predicted together. A target is hidden in its own cell, so that its own value takes no part in
what other cells say of it.

Group offsets come from the visible values of the cells of the pass alone. Training cells take no part: the offsets say
what cells that are predicted together tell of each other, in a new group as in one that was trained on, and they vanish
where everything is hidden. Neighbours come from the training cells, all of whose values are seen, and from the pass.
"""

from collections.abc import Callable, Iterator

import numpy as np

from sckit.data.batch import Batch
from sckit.data.labels import Labels
from sckit.data.views import with_data
from sckit.errors import ConfigError
from sckit.evaluation.other_cells import (
    GroupOffsets,
    Neighbours,
    Shown,
    Weights,
    fit_group_offsets,
    fit_weights,
    shown,
)
from sckit.metrics.values import Scores
from sckit.model.neighbours import MOST_IN_POOL, components_of
from sckit.model.offset_forms import OffsetForms

Rows = dict[str, np.ndarray]
Batches = Callable[[], Iterator[Batch]]

BASE = "value offset ridge"
GROUP_OFFSETS, NEIGHBOURS, OTHER_GROUPS = " + group offsets", " + neighbours", " of other groups"
ASSOCIATION_ROWS = (
    f"detection + total offset ridge{GROUP_OFFSETS}", BASE + GROUP_OFFSETS, f"count regression{GROUP_OFFSETS}",
    BASE + NEIGHBOURS + OTHER_GROUPS, BASE + NEIGHBOURS, BASE + GROUP_OFFSETS + NEIGHBOURS,
)  # fmt: skip
"""The linear rows among them."""

_WITH_OFFSETS = ("detection + total offset ridge", BASE, "count regression")
_MODELS = "model/detected"  # and, where there are several seeds, their numbers behind it
_WORDS = {
    GROUP_OFFSETS: "group offsets",
    NEIGHBOURS + OTHER_GROUPS: "neighbours of other groups",
    NEIGHBOURS: "neighbours",
    GROUP_OFFSETS + NEIGHBOURS: "neighbours in addition to group offsets",
}
_MOST_GROUPS = 500


def group_codes(labels: Labels, offset_group: str | None) -> np.ndarray:
    """Return the numbers of the groups of all cells, int32 [cells]; -1 where a cell has none.

    offset_group: the column, where every group gets offsets. Raises ConfigError where it has too many values for that.
    """
    names = labels.names
    if offset_group is not None and len(names) > _MOST_GROUPS:
        raise ConfigError(
            f"--offset-group {offset_group} has {len(names):,} values; every gene gets an offset in each of at most "
            f"{_MOST_GROUPS} groups; name another column."
        )
    return labels.codes


def most_neighbours(training: int, of_pass: int) -> int:
    """Return how many neighbours a cell can have, from the numbers of training cells and of cells of its pass."""
    return min(training, MOST_IN_POOL) + min(of_pass, MOST_IN_POOL) - 1


class Association:
    """What other cells add to the rows of one target and mask rate."""

    def __init__(
        self,
        forms: OffsetForms,
        *,
        codes: np.ndarray | None,
        with_offsets: bool,
        neighbours: int,
        training: Shown | None = None,
        seed: int = 0,
    ) -> None:
        """Say what is wanted.

        codes: groups of all cells [cells of the store], or None; training: cells that may be neighbours, if any are.
        """
        self._forms, self._codes, self._neighbours, self._seed = forms, codes, neighbours, seed
        self._with_offsets, self._training = with_offsets, training
        self._weights: dict[str, Weights] = {}
        self._last: GroupOffsets | None = None

    def fit(self, batches: Batches) -> None:
        """Fit the weights of neighbours on the targets of validation cells."""
        parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
        offsets, searches = self._of_pass(batches) if self._neighbours else (None, [])
        for batch in batches() if searches else ():
            left, shift = batch.truth - self._forms.predict(batch)[BASE], self._shift(batch, offsets)
            for name, features in self._features(batch, searches).items():
                more = shift if GROUP_OFFSETS in name else 0.0
                parts.setdefault(name, []).append((left - more, *features))
        for name, part in parts.items():
            self._weights[name] = fit_weights(*map(np.concatenate, zip(*part, strict=True)))

    def over(self, batches: Batches) -> Callable[[Batch, Rows], Rows]:
        """Look at what the cells of a pass show, and return what adds rows to those of a batch of the same pass."""
        offsets, searches = self._of_pass(batches)
        self._last = offsets

        def added(batch: Batch, rows: Rows) -> Rows:
            one, shift = self._forms.of_cells(batch).one[batch.target_cells], self._shift(batch, offsets)
            found: Rows = {}
            if offsets is not None:
                for name in (name for name in rows if name in _WITH_OFFSETS or name.startswith(_MODELS)):
                    row, _, context = name.partition("/")
                    found[row + GROUP_OFFSETS + (f"/{context}" if context else "")] = _above(rows[name], shift, one)
            for name, features in self._features(batch, searches).items():
                more = shift if GROUP_OFFSETS in name else 0.0
                found[name] = _above(rows[BASE], more + self._weights[name](*features), one)
            return found

        return added

    def sentences(self, scores: Scores, groups: np.ndarray | None) -> list[str]:
        """Say what the offsets of the last pass are, and how much of R2 comes from which other cells.

        groups: labels of the scored cells for the intervals, or None.
        """
        said, gains = [], {}
        for name in ASSOCIATION_ROWS:
            if name in scores.predictors and name.startswith(BASE):
                base = BASE + GROUP_OFFSETS if name == BASE + GROUP_OFFSETS + NEIGHBOURS else BASE
                found = scores.difference(name, base, groups)
                gains[name.removeprefix(BASE)] = found["r2_gene_mean"], *found["ci"]
        if self._last is not None:
            groups_seen = np.unique(self._last.codes[scores.cells])
            kappa = ", ".join(f"{k:.0f}" if np.isfinite(k) else "-" for k in self._last.kappa)
            count = (groups_seen >= 0).sum()
            of = "one group" if count == 1 else f"{count} groups"
            text = f"group offsets of {of}: kappa {kappa} for genes of rising mean counts"
            none = "nothing that is visible tells groups apart, so that group offsets are zero"
            said.append(f"{text} (-: no offset)" if np.isfinite(self._last.kappa).any() else none)
            if count == 1 and said != [none]:
                said.append(
                    "only one group is scored: its offsets also hold what any new group has, and nothing here tells "
                    "groups apart"
                )
        if gains:
            found = (f"{_signed(gain)} with {_WORDS[name]}" for name, gain in gains.items())
            said.append(f"the R² of the {BASE} differs by {', '.join(found)}")
        verdict = _verdict(gains)
        return [*said, verdict] if verdict else said

    def _of_pass(self, batches: Batches) -> tuple[GroupOffsets | None, list[Neighbours]]:
        """Return the group offsets of a pass, and what finds neighbours."""
        of_pass = shown(self._forms, batches())
        offsets = self._group_offsets(of_pass)
        if self._training is None:
            return offsets, []
        training, of_pass = self._training, of_pass.subset(MOST_IN_POOL, self._seed)
        pool, of_training = training.and_also(of_pass), self._group_offsets(training)
        left = {BASE + NEIGHBOURS: pool.left}
        if offsets is not None and of_training is not None:
            beyond = np.concatenate([training.less(of_training), of_pass.less(offsets)])
            left[BASE + GROUP_OFFSETS + NEIGHBOURS] = with_data(pool.left, beyond)
        searches = [Neighbours(pool, self._neighbours, left)]
        if self._codes is not None:
            name = BASE + NEIGHBOURS + OTHER_GROUPS
            searches.append(Neighbours(pool, self._neighbours, {name: pool.left}, self._codes))
        return offsets, searches

    def _group_offsets(self, cells: Shown) -> GroupOffsets | None:
        """Estimate the group offsets from cells, where they are wanted."""
        if self._codes is None or not self._with_offsets:
            return None
        return fit_group_offsets(cells, self._codes, self._forms.mean_count)

    def _features(self, batch: Batch, searches: list[Neighbours]) -> dict[str, tuple[np.ndarray, ...]]:
        """Return the sums over neighbours, their numbers, and the mean count of the gene, of each target [M]."""
        components = components_of(self._forms, self._forms.of_cells(batch).x)
        mean_count = self._forms.mean_count[batch.genes[batch.targets]]
        found = {name: sums for search in searches for name, sums in search(batch, components).items()}
        return {name: (*sums, mean_count) for name, sums in found.items()}

    def _shift(self, batch: Batch, offsets: GroupOffsets | None) -> np.ndarray:
        """Return the group offsets of a batch's targets, [M]."""
        if offsets is None:
            return np.zeros(len(batch.targets))
        return offsets.of(batch.cells[batch.target_cells], batch.genes[batch.targets])


def _above(row: np.ndarray, shift: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Shift predictions [M], never below the value of a single count, nor further down if they lie there."""
    return np.maximum(row + shift, np.minimum(row, one))


def _signed(gain: tuple[float, float | None, float | None]) -> str:
    """Write a difference with its interval."""
    point, low, high = gain
    return f"{point:+.4f}" + ("" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]")


def _verdict(gains: dict[str, tuple[float, float | None, float | None]]) -> str:
    """Say which of offsets and neighbours carries the gain, and whether neighbours of other groups keep theirs."""
    if any(low is None for _, low, _ in gains.values()):
        return ""
    real = {name: point for name, (point, low, _) in gains.items() if low and low > 0}
    of_all, of_others = real.get(NEIGHBOURS), real.get(NEIGHBOURS + OTHER_GROUPS)
    parts = []
    if {GROUP_OFFSETS, NEIGHBOURS} <= set(gains):
        first, second = sorted((GROUP_OFFSETS, NEIGHBOURS), key=lambda name: -real.get(name, 0))
        if first in real:
            parts.append(f"the{first[2:]} carry more of the gain than the{second[2:]}")
        else:
            parts.append("neither group offsets nor neighbours add anything")
    if of_all is not None and NEIGHBOURS + OTHER_GROUPS in gains:
        if of_others is None:
            parts.append("the gain of neighbours does not survive when they must come from other groups")
        else:
            parts.append(
                f"{of_others / of_all:.0%} of the gain of neighbours survives when they must come from other groups"
            )
    return "; ".join(parts)
