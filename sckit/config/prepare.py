"""The options of `prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sckit.config.options import at_least, check, mark, one_of, share
from sckit.errors import ConfigError


@dataclass(frozen=True)
class PrepareConfig:
    """What goes into a store and how it is cut."""

    genes: Annotated[int | str, mark(panel="Genes")] = "all"
    """Genes to keep: "all", a number of highly variable genes, or a file with one gene id or symbol per line."""
    duplicates: Annotated[str, one_of("sum", "refuse")] = "sum"
    """Add up the genes of one input that have the same name (sum), or stop with an error (refuse)."""
    genome: str | None = None
    """Genome to take from a file that holds several."""
    assay: Annotated[str, mark(panel="Cells")] = "10x"
    """Assays to keep: "10x" (3', 5', multiome, and inputs without an assay column), "any", or labels with commas."""
    obs_filter: str | None = None
    """Condition on the columns of obs that cells must meet, as a pandas query such as "tissue == 'blood'"."""
    min_genes: Annotated[int | None, at_least(0)] = None
    """Keep cells with at least this many detected genes."""
    min_counts: Annotated[int | None, at_least(0)] = None
    """Keep cells with at least this many counts."""
    max_counts: Annotated[int | None, at_least(0)] = None
    """Keep cells with at most this many counts."""
    max_mito: Annotated[float | None, share("[0, 1]")] = None
    """Keep cells with at most this share of their counts in mitochondrial genes, from 0 to 1."""
    layer: Annotated[str | None, mark(panel="Reading and writing")] = None
    """Layer of the h5ad or SOMA that holds the counts, instead of X."""
    raw: bool = False
    """Take the counts from .raw of the h5ad."""
    cells_per_shard: Annotated[int, at_least(1)] = 32_768
    """Close a shard after the block in which it reaches this many cells (or 67 million entries)."""

    @property
    def gene_list(self) -> Path | None:
        """The file that names the genes, if `genes` is one."""
        return Path(self.genes) if isinstance(self.genes, str) and self.genes != "all" else None

    def __post_init__(self) -> None:
        if isinstance(self.genes, str) and self.genes.lstrip("-").isdigit():
            object.__setattr__(self, "genes", int(self.genes))
        check(self)
        if isinstance(self.genes, int) and self.genes < 1:
            raise ConfigError(f"--genes {self.genes} must be at least 1, or 'all', or a file.")
        if not self.assay.strip(" ,"):
            raise ConfigError(f"--assay {self.assay!r} must be 10x, any or labels separated by commas.")
        if self.layer is not None and self.raw:
            raise ConfigError(f"--layer {self.layer} and --raw name two matrices; give one of them.")
