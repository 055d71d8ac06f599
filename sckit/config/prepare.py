"""The settings of `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sckit.errors import ConfigError


@dataclass(frozen=True)
class PrepareConfig:
    """What goes into a store and how it is cut."""

    genes: str | int = "all"
    """All genes with "all", so many highly variable ones, or the path of a file with one gene id or symbol a line."""
    assay: str = "10x"
    """Labels kept: "10x" (3', 5' and multiome; inputs without an assay column stay), "any", or a list with commas."""
    obs_filter: str | None = None
    """Condition on obs columns as a pandas query, such as "tissue == 'blood'"."""
    min_genes: int | None = None
    min_counts: int | None = None
    max_counts: int | None = None
    max_mito: float | None = None
    """Largest share of mitochondrial counts in a cell, in [0, 1]."""
    layer: str | None = None
    raw: bool = False
    genome: str | None = None
    duplicates: str = "sum"
    """Genes of one input with the same name are added up ("sum") or refused ("refuse")."""
    cells_per_shard: int = 32_768
    """A shard is closed after the block in which it reaches so many cells (or 67 million entries)."""

    @property
    def gene_list(self) -> Path | None:
        """The file that names the genes, if `genes` is one."""
        return Path(self.genes) if isinstance(self.genes, str) and self.genes != "all" else None

    def __post_init__(self) -> None:
        if isinstance(self.genes, str) and self.genes.lstrip("-").isdigit():
            object.__setattr__(self, "genes", int(self.genes))
        if isinstance(self.genes, int) and self.genes < 1:
            raise ConfigError(f"--genes {self.genes} must be at least 1, or 'all', or a file.")
        if not self.assay.strip(" ,"):
            raise ConfigError(f"--assay {self.assay!r} must be 10x, any or labels separated by commas.")
        if self.max_mito is not None and not 0 <= self.max_mito <= 1:
            raise ConfigError(f"--max-mito {self.max_mito} is a share between 0 and 1.")
        for name in ("min_genes", "min_counts", "max_counts"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {value} must not be negative.")
        if self.duplicates not in ("sum", "refuse"):
            raise ConfigError(f"--duplicates {self.duplicates!r} must be sum or refuse.")
        if self.layer is not None and self.raw:
            raise ConfigError(f"--layer {self.layer} and --raw name two matrices; give one of them.")
        if self.cells_per_shard < 1:
            raise ConfigError(f"--cells-per-shard {self.cells_per_shard} must be at least 1.")
