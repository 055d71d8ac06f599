"""Build the training examples and the prediction inputs of one fold."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from sckit.config import FinetuneConfig
from sckit.data import GeneIndex, read_gene_list
from sckit.errors import DataError
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.perturbation.responder import Example, TokenTable
from sckit.perturbation.ridge import balanced_mean
from sckit.perturbation.screen import Screen
from sckit.perturbation.splits import CellHalves, composition

_QUERIES = 96  # genes asked for in a training example
_MOST_REVEALED = 0.9  # share of the genes, in a training example


@dataclass(frozen=True)
class Panel:
    """Genes revealed, and the genes that are predicted from them."""

    revealed: np.ndarray  # int64 [R]
    scored: np.ndarray  # int64 [S]


@dataclass(frozen=True)
class FoldExamples:
    """What the arms of one fold learn from: C cells, U units, G genes."""

    screen: Screen
    config: FinetuneConfig
    values: sp.csr_array  # [C, G], log1p of counts per 10,000
    cell_halves: CellHalves
    table: TokenTable
    trainable: dict[int, np.ndarray]  # treated cells of each training unit
    delta: np.ndarray  # [U, G], as in `FoldView`
    control: np.ndarray  # [U, G], as in `FoldView`
    panel: np.ndarray | None  # int64, genes of the panel file

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean delta of the training perturbations [G]."""
        names = np.array([str(self.screen.units[u].parts) for u in self.trainable])
        return balanced_mean(self.delta[list(self.trainable)], names)

    @cached_property
    def detected_mean(self) -> np.ndarray:
        """Mean value of each gene where an input control detects it [G], 0 where none does."""
        controls = self.values[np.flatnonzero(self.cell_halves.inputs)]
        seen = np.bincount(controls.indices, minlength=controls.shape[1])
        return controls.sum(0) / np.maximum(seen, 1)

    @cached_property
    def expected(self) -> np.ndarray:
        """Expected value above that of a single count, of each row of the token table."""
        total = float(np.median(self.screen.totals[self.cell_halves.inputs]))
        floor = np.log1p(TARGET_SUM / max(total, 1.0))
        rows = np.zeros(len(self.table.run_genes))
        rows[: self.table.n_genes] = self.detected_mean - floor
        return rows

    @cached_property
    def cell_rms(self) -> float:
        """RMS of a single cell's values about the mean of the cells that detect the gene."""
        controls = self.values[np.flatnonzero(self.cell_halves.inputs)]
        return max(float(np.sqrt(np.mean((controls.data - self.detected_mean[controls.indices]) ** 2))), 1e-6)

    @cached_property
    def scale(self) -> float:
        """RMS over the training units of what there is to predict: the unit of the network's output."""
        units = sorted(self.trainable)
        return max(float(np.sqrt(np.mean((self.delta[units] - self.mean) ** 2))), 1e-6)

    @cached_property
    def strata(self) -> np.ndarray:
        """Share of each unit's cells in each stratum [U, S]."""
        return composition(self.screen)

    @cached_property
    def _by_perturbation(self) -> list[list[int]]:
        names = sorted({self.screen.units[u].parts for u in self.trainable})
        return [[u for u in self.trainable if self.screen.units[u].parts == name] for name in names]

    def only(self, units: list[int]) -> "FoldExamples":
        """Return the same for some of the training units; the others have no part in the mean and the scale either."""
        return replace(self, trainable={u: self.trainable[u] for u in units})

    def draw(self, generator: np.random.Generator) -> Example:
        """Return a random training example; all perturbations are equally likely."""
        group = self._by_perturbation[generator.integers(len(self._by_perturbation))]
        u = group[generator.integers(len(group))]
        return self.example(u, self.trainable[u], generator)

    def example(self, u: int, cells: np.ndarray, generator: np.random.Generator) -> Example:
        """Return a random example of unit u and its treated cells."""
        if self.config.task == "response":
            cell = int(self.control_cells(u, 1, generator)[0])
            queries = np.sort(generator.permutation(self.table.n_genes)[:_QUERIES])
            return self.control_cell(cell, u, queries, (self.delta[u] - self.mean) / self.scale)
        panel = self._random_panel(generator)
        mixed = generator.permutation(cells)
        visible, rest = (self.values[half].mean(0) for half in (mixed[::2], mixed[1::2]))
        target = (rest - self.control[u] - self.mean) / self.scale
        return self.shown_profile(visible, u, panel, target)

    def _random_panel(self, generator: np.random.Generator) -> Panel:
        mixed = generator.permutation(self.table.n_genes)
        if self.panel is None:
            count = int(generator.uniform(0, _MOST_REVEALED) * len(mixed))
            return Panel(np.sort(mixed[:count]), np.sort(mixed[count : count + _QUERIES]))
        rest = mixed[~np.isin(mixed, self.panel)]
        return Panel(self.panel, np.sort(rest[:_QUERIES]))

    def control_cells(self, u: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return random input controls [count], of each stratum in proportion to the unit's own cells there."""
        strata = generator.choice(self.strata.shape[1], count, p=self.strata[u])
        inputs = self.cell_halves.inputs
        return np.array([generator.choice(np.flatnonzero(inputs & (self.screen.stratum == s))) for s in strata])

    def control_cell(self, cell: int, u: int, queries: np.ndarray, target: np.ndarray | None = None) -> Example:
        """Return the example of a control cell and the perturbation of unit u; target: [G] or None."""
        unit = self.screen.units[u]
        span = slice(self.values.indptr[cell], self.values.indptr[cell + 1])
        genes, values = self.values.indices[span].astype(np.int64), self.values.data[span]
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
        """Return the example of some genes of a profile [G] of unit u; target: [G] or None.

        The perturbation is not named: the network would learn the training ones by heart instead of using the values.
        The deviations of a profile are small compared with those of a cell, and are scaled to the size of the latter.
        """
        genes = panel.revealed
        rest = (profile - self.control[u] - self.mean)[genes] / self.scale * self.cell_rms
        return Example(
            genes, profile[genes], rest, (), 0.0, panel.scored, None if target is None else target[panel.scored]
        )


def panels(n_genes: int, share: float, fixed: np.ndarray | None, generator: np.random.Generator) -> list[Panel]:
    """Return panels that together predict each gene once, each from revealed genes that it does not predict.

    The panels of a share are nested in those of larger shares for one generator state. A fixed panel (int64 [R]) is the
    only one, and its own genes are not predicted.
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
    """Return the numbers of the genes of the panel file, int64, or None without one. Raises ConfigError, DataError."""
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
