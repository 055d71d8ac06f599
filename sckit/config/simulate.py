"""The options of `simulate`."""

from dataclasses import dataclass
from typing import Annotated

from sckit.config.options import at_least, between, check, mark, one_of
from sckit.errors import ConfigError


@dataclass(frozen=True)
class SimulateConfig:
    """One simulated data set whose expected counts are known."""

    cells: Annotated[int, between(1, 10_000_000), mark(panel="Cells and genes")] = 2000
    """Number of cells, up to 10,000,000."""
    genes: Annotated[int, between(20, 50_000)] = 10_000
    """Number of genes, up to 50,000."""
    depth: Annotated[float, between(1, 1_000_000)] = 2300.0
    """Median of the total counts per cell."""
    types: Annotated[int, between(1, 100)] = 6
    """Number of cell types; each has a tenth of the genes at a level of its own."""
    libraries: Annotated[int, between(1, 100)] = 4
    """Number of libraries; each has a depth of its own and an offset for every gene."""
    programmes: Annotated[int, between(2, 100)] = 16
    """Number of gene programmes whose activity varies from cell to cell."""
    dispersion: Annotated[float, between(0, 10)] = 0.0
    """Draw negative binomial counts, whose variance is mean + DISPERSION * mean^2; 0 draws Poisson counts."""
    interactions: Annotated[float, between(0, 2), mark(panel="Known structure")] = 0.0
    """Size of a non-linear effect: a tenth of the genes follow the product of the activities of two programmes; 0 for
    none."""
    network: bool = False
    """Let a twentieth of the genes regulate others, through a known graph."""
    perturbations: Annotated[int, between(0, 10_000)] = 0
    """Number of genes that are knocked down, each in cells of its own; all other cells are controls."""
    perturbation_cells: Annotated[int, at_least(1)] = 100
    """Cells of each perturbation."""
    structure: Annotated[str, one_of("shared", "unrelated")] = "shared"
    """Which genes answer a perturbation together: those of one programme, as in control cells (shared), or others
    (unrelated)."""
    seed: Annotated[int, at_least(0), mark(panel="Running")] = 0
    """Seed of everything that is random."""

    def __post_init__(self) -> None:
        check(self)
        needed = (self.perturbations + 1) * self.perturbation_cells
        if self.perturbations and needed > self.cells:
            raise ConfigError(
                f"--perturbations {self.perturbations} of {self.perturbation_cells} cells, and as many controls as one "
                f"of them, need {needed} cells; give --cells {needed} or lower --perturbation-cells."
            )
        if self.network and self.structure == "unrelated":
            raise ConfigError(
                f"--structure {self.structure} has no meaning with --network, which carries perturbations on."
            )
        # Targets are taken from the expressed half of the genes: the regulators, or members of programmes.
        most = max(4, self.genes // 20) if self.network else self.genes // 10
        if self.perturbations > most:
            kind = "regulators" if self.network else "genes that can be targets"
            raise ConfigError(
                f"--perturbations {self.perturbations} is more than the {most} {kind} among {self.genes} genes; "
                "give more --genes or fewer --perturbations."
            )
