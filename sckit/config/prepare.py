"""The options of `prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sckit.config.options import at_least, mark, one_of
from sckit.config.reading import ReadingConfig
from sckit.errors import ConfigError


@dataclass(frozen=True)
class PrepareConfig(ReadingConfig):
    """What goes into a store and how it is cut."""

    genes: Annotated[int | str, mark(panel="Genes")] = "all"
    """Genes to keep: "all", a number of highly variable genes, or a file with one gene id or symbol per line."""
    duplicates: Annotated[str, one_of("sum", "refuse")] = "sum"
    """Add up the genes of one input that have the same name (sum), or stop with an error (refuse)."""
    cells_per_shard: Annotated[int, at_least(1), mark(panel="Writing")] = 32_768
    """Close a shard after the block in which it reaches this many cells (or 67 million entries)."""

    @property
    def gene_list(self) -> Path | None:
        """The file that names the genes, if `genes` is one."""
        return Path(self.genes) if isinstance(self.genes, str) and self.genes != "all" else None

    def __post_init__(self) -> None:
        if isinstance(self.genes, str) and self.genes.lstrip("-").isdigit():
            object.__setattr__(self, "genes", int(self.genes))
        super().__post_init__()
        if isinstance(self.genes, int) and self.genes < 1:
            raise ConfigError(f"--genes {self.genes} must be at least 1, or 'all', or a file.")
