"""What a network may learn from in one fold, as examples; and the examples that its predictions are made from."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from sckit.config.finetune import FinetuneConfig
from sckit.data.genes import GeneIndex, read_gene_list
from sckit.errors import DataError
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.perturbation.responder import Example, TokenTable
from sckit.perturbation.ridge import balanced_mean
from sckit.perturbation.screen import Screen
from sckit.perturbation.splits import Halving, Profiles, composition

_QUERIES = 96  # genes asked for in a training example
_MOST_REVEALED = 0.9
_SAMPLE = 512  # cells that a scale is estimated from


@dataclass(frozen=True)
class Panel:
    """Genes revealed, and the genes that are predicted from them."""

    revealed: np.ndarray  # int64 [R]
    scored: np.ndarray  # int64 [S]


@dataclass(frozen=True)
class Lesson:
    """One fold's material: `values` [C, G] may be shown, `truth` [C, G] is predicted (at level cell: count halves)."""

    screen: Screen
    config: FinetuneConfig
    values: sp.csr_array
    truth: sp.csr_array
    halving: Halving
    profiles: Profiles
    table: TokenTable
    trainable: dict[int, np.ndarray]  # treated cells of each training unit
    mean: np.ndarray  # [G], delta by the mean of the training perturbations
    panel: np.ndarray | None  # int64, the fixed panel

    @cached_property
    def detected_mean(self) -> np.ndarray:
        """Mean value of each gene where an input control detects it [G], 0 where none does."""
        controls = self.values[np.flatnonzero(self.halving.inputs)]
        seen = np.bincount(controls.indices, minlength=controls.shape[1])
        return controls.sum(0) / np.maximum(seen, 1)

    @cached_property
    def guess(self) -> np.ndarray:
        """Expected value above that of a single count, of each row of the token table."""
        total = float(np.median(self.screen.totals[self.halving.inputs]))
        if self.config.level == "cell":
            total /= 2  # values are of half the molecules
        floor = np.log1p(TARGET_SUM / max(total, 1.0))
        rows = np.zeros(len(self.table.run_genes))
        rows[: self.table.n_genes] = self.detected_mean - floor
        return rows

    @cached_property
    def cell_rms(self) -> float:
        """RMS of a single cell's values about the mean of the cells that detect the gene."""
        controls = self.values[np.flatnonzero(self.halving.inputs)]
        return max(float(np.sqrt(np.mean((controls.data - self.detected_mean[controls.indices]) ** 2))), 1e-6)

    @cached_property
    def scale(self) -> float:
        """RMS of what there is to predict over the training units: the unit of the network's output."""
        if self.config.level == "cell":
            cells = np.concatenate(list(self.trainable.values()))[:_SAMPLE]
            owner = np.concatenate([np.full(len(c), u) for u, c in self.trainable.items()])[:_SAMPLE]
            rest = self.truth[cells].toarray() - self.profiles.inputs[owner] - self.mean
        else:
            units = sorted(self.trainable)
            rest = self.profiles.treated[units] - self.profiles.inputs[units] - self.mean
        return max(float(np.sqrt(np.mean(rest**2))), 1e-6)

    @cached_property
    def strata(self) -> np.ndarray:
        """Share of each unit's cells in each stratum [U, S]."""
        return composition(self.screen)

    @cached_property
    def _by_perturbation(self) -> list[list[int]]:
        names = sorted({self.screen.units[u].parts for u in self.trainable})
        return [[u for u in self.trainable if self.screen.units[u].parts == name] for name in names]

    def only(self, units: list[int]) -> "Lesson":
        """The lesson of some of the training units: what is spared has no part in the mean or the scale either."""
        deltas = self.profiles.treated[units] - self.profiles.inputs[units]
        mean = balanced_mean(deltas, np.array([str(self.screen.units[u].parts) for u in units]))
        return replace(self, trainable={u: self.trainable[u] for u in units}, mean=mean)

    def draw(self, generator: np.random.Generator) -> Example:
        """A random training example; every perturbation is as likely as every other."""
        group = self._by_perturbation[generator.integers(len(self._by_perturbation))]
        u = group[generator.integers(len(group))]
        return self.example(u, self.trainable[u], generator)

    def example(self, u: int, cells: np.ndarray, generator: np.random.Generator) -> Example:
        """A random example of unit u and its treated cells."""
        if self.config.task == "response":
            return self._response(u, generator)
        panel = self._random_panel(generator)
        if self.config.level == "cell":
            cell = int(generator.choice(cells))
            target = (self.truth[[cell]].toarray()[0] - self.profiles.inputs[u] - self.mean) / self.scale
            return self.shown_cell(cell, panel, target)
        mixed = generator.permutation(cells)
        visible, rest = (self.values[half].mean(0) for half in (mixed[::2], mixed[1::2]))
        target = (rest - self.profiles.inputs[u] - self.mean) / self.scale
        return self.shown_profile(visible, u, panel, target)

    def _random_panel(self, generator: np.random.Generator) -> Panel:
        mixed = generator.permutation(self.table.n_genes)
        if self.panel is None:
            count = int(generator.uniform(0, _MOST_REVEALED) * len(mixed))
            return Panel(np.sort(mixed[:count]), np.sort(mixed[count : count + _QUERIES]))
        rest = mixed[~np.isin(mixed, self.panel)]
        return Panel(self.panel, np.sort(rest[:_QUERIES]))

    def _response(self, u: int, generator: np.random.Generator) -> Example:
        cell = int(self.control_cells(u, 1, generator)[0])
        queries = np.sort(generator.permutation(self.table.n_genes)[:_QUERIES])
        target = self.profiles.treated[u] - self.profiles.inputs[u] - self.mean
        return self.control_cell(cell, u, queries, target / self.scale)

    def control_cells(self, u: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """Input controls [count] of the unit's strata, as often as the unit's own cells are in them."""
        strata = generator.choice(self.strata.shape[1], count, p=self.strata[u])
        inputs = self.halving.inputs
        return np.array([generator.choice(np.flatnonzero(inputs & (self.screen.stratum == s))) for s in strata])

    def control_cell(self, cell: int, u: int, queries: np.ndarray, target: np.ndarray | None = None) -> Example:
        """A control cell and the perturbation of unit u; target: [G] or None."""
        unit = self.screen.units[u]
        genes, values = self._entries(cell)
        return Example(
            genes,
            values,
            values - self.detected_mean[genes],
            tuple(int(self.table.perturbations[p]) for p in unit.parts),
            float(np.log1p(unit.dose or 0.0)),
            queries,
            None if target is None else target[queries],
        )

    def shown_profile(self, profile: np.ndarray, u: int, panel: Panel, target: np.ndarray | None = None) -> Example:
        """Some genes of a pseudobulk profile [G] of unit u's context.

        The perturbation is not named: the network would learn the training ones by heart instead of using the values.
        A profile's deviations are small next to a cell's, and are given in the size that a cell's have.
        """
        genes = panel.revealed
        rest = (profile - self.profiles.inputs[u] - self.mean)[genes] / self.scale * self.cell_rms
        return Example(
            genes, profile[genes], rest, (), 0.0, panel.scored, None if target is None else target[panel.scored]
        )

    def shown_cell(self, cell: int, panel: Panel, target: np.ndarray | None = None) -> Example:
        """The detected ones among some genes of a cell."""
        genes, values = self._entries(cell)
        kept = np.isin(genes, panel.revealed)
        genes, values = genes[kept], values[kept]
        rest = values - self.detected_mean[genes]
        return Example(genes, values, rest, (), 0.0, panel.scored, None if target is None else target[panel.scored])

    def _entries(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.values.indptr[cell], self.values.indptr[cell + 1])
        return self.values.indices[span].astype(np.int64), self.values.data[span]


def panels(n_genes: int, share: float, fixed: np.ndarray | None, generator: np.random.Generator) -> list[Panel]:
    """Panels that together predict each gene once, from revealed genes that are not among the predicted.

    A random share is nested in larger ones for one generator state. A fixed panel leaves its own genes unpredicted.
    """
    if fixed is not None:
        return [Panel(fixed, np.setdiff1d(np.arange(n_genes), fixed))]
    order = generator.permutation(n_genes)
    found = []
    for block in np.array_split(order, min(10, n_genes)):
        rest = generator.permutation(order[~np.isin(order, block)])
        found.append(Panel(np.sort(rest[: round(share * n_genes)]), np.sort(block)))
    return found


def fixed_panel(screen: Screen, config: FinetuneConfig) -> np.ndarray | None:
    """Numbers of the genes of the panel file, int64; None without one. Raises ConfigError, DataError."""
    if config.panel is None or config.task != "partial":
        return None
    wanted = read_gene_list(config.panel, "--panel")
    found = GeneIndex(screen.genes["id"], screen.genes["symbol"]).find(wanted)
    panel = np.unique(found[found >= 0])
    if not 0 < len(panel) <= len(screen.genes) - 3:
        raise DataError(
            f"{len(panel)} of the {len(wanted)} genes in --panel {config.panel} are among the {len(screen.genes)} "
            "predicted; at least one must be, and three must be left to predict (--genes takes more)."
        )
    return panel
