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

    census: Annotated[str | None, mark(panel="CELLxGENE Census")] = None
    """Read this version of the CELLxGENE Census, such as 2025-11-08: its primary cells of the assays of --assay."""
    organism: str = "homo_sapiens"
    """Organism to read of the Census."""
    genes: Annotated[int | str, mark(panel="Genes")] = "all"
    """Genes to keep: "all", a number of highly variable genes, or a file with one gene id or symbol per line."""
    duplicates: Annotated[str, one_of("sum", "refuse")] = "sum"
    """Add up the genes of one input that have the same name (sum), or stop with an error (refuse)."""
    cells_per_shard: Annotated[int, at_least(1), mark(panel="Writing")] = 32_768
    """Close a shard after the block in which it reaches this many cells (or 67 million entries)."""

    layout: Annotated[str, one_of("auto", "mapped", "compact"), mark(panel="Writing")] = "auto"
    """How counts lie on the disk: memory-mapped, which is faster to read, or compact, a third of the size; auto is
    compact from a million cells on."""

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
