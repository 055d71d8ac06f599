"""The options of `eval`."""

from dataclasses import dataclass
from typing import Annotated

from sckit.config.options import LARGEST_SEED, at_least, between, check, mark, one_of, share, was
from sckit.errors import ConfigError

SWEEP = (0.15, 0.3, 0.5, 0.75, 0.9, 1.0)
"""Shares of the values to hide that show the whole range."""
_CONTEXT = one_of("detected", "visible")
_SHUFFLED = (
    "--context shuffled is gone: the detection set of another cell is wrong information, so that a model scores below "
    'what depth alone explains; leave it out and compare with the row "gene mean + depth".'
)


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation of a run on its held-out cells."""

    masks: Annotated[tuple[float, ...], share("(0, 1]"), mark(flag="--mask", repeated=True, panel="What is scored")] = (
        1.0,
    )
    """Share of the values to hide; may be repeated."""
    contexts: Annotated[tuple[str, ...], _CONTEXT, mark(flag="--context", repeated=True)] = ("detected",)
    """What hidden tokens show: their gene (detected) or nothing (visible); may be repeated."""
    known_depth: bool = False
    """Give every predictor the exact total counts of each cell."""
    max_cells: Annotated[int | None, at_least(2), was(cells="--cells")] = None
    """Score a random subset of this many held-out cells."""
    components: Annotated[int | None, between(0, 200), mark(panel="Rows and intervals")] = None
    """Detection components of the offset baselines; by default chosen by inner validation on training cells."""
    penalty: Annotated[float | None, between(0, 1_000_000_000)] = None
    """Ridge penalty of the offset baselines in units of cells; by default chosen by inner validation."""
    noise: Annotated[str, one_of("poisson", "nb")] = "poisson"
    """Law of the noise floor: "poisson", or "nb" (negative binomial) with a dispersion for strata of genes."""
    label: str | None = None
    """Column of obs, such as a cell type, for the row "label + depth"."""
    decompose: bool = False
    """Say what R² and deviance are made of, step by step; 15 % are hidden then, unless --mask says otherwise."""
    offset_group: str | None = None
    """Column of obs, such as a library or donor: add offsets of the cell's group, from visible values of its cells."""
    neighbours: Annotated[int, at_least(0)] = 0
    """Add linear rows that see the visible values of this many cells with the nearest detection sets; 0 for none, or as
    many as the run was trained with."""
    trees: bool = False
    """Add the row "value offset ridge + trees": a gradient-boosted correction of that baseline."""
    truth: str | None = None
    """NAME.truth.h5 of simulated data: add the row "truth", the values to expect where all is known but the counts."""
    replicate_halves: Annotated[bool, was(replicate_split="--replicate-split")] = False
    """Halve the molecules of each held-out cell, and predict one half, also by the other half (the replicate)."""
    halving: Annotated[str, one_of("binomial", "nb"), was(split="--split")] = "binomial"
    """How molecules are halved: "binomial", or "nb" (negative binomial) where genes vary more than Poisson."""
    group: str | None = None
    """Column of obs over whose values the intervals are bootstrapped; by default the run's own group column."""
    bootstraps: Annotated[int, at_least(1)] = 1000
    """Bootstrap draws for each interval."""
    batch_tokens: Annotated[int, at_least(1), mark(panel="Running")] = 32768
    """Tokens per batch."""
    seed: Annotated[int, between(0, LARGEST_SEED)] = 0
    """Seed of the scored values, the halves and the bootstrap."""
    engine: Annotated[str, one_of("auto", "reference", "numba", "triton")] = "auto"
    """Attention engine: auto, reference, numba or triton."""
    device: str = "auto"
    """Device to compute on: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if "shuffled" in self.contexts:
            raise ConfigError(_SHUFFLED)
        check(self)
        if self.halving != "binomial" and not self.replicate_halves:
            raise ConfigError(f"--halving {self.halving} says how --replicate-halves works; give that too.")
