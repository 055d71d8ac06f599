"""The options that say what is read of an input; every command that reads counts has them."""

from dataclasses import dataclass
from typing import Annotated

from sckit.config.options import at_least, check, mark, share
from sckit.errors import ConfigError


@dataclass(frozen=True)
class ReadingConfig:
    """Which counts of an input are read, and which of its cells are kept."""

    layer: Annotated[str | None, mark(panel="Reading inputs")] = None
    """Layer of the h5ad or SOMA that holds the counts, instead of X. FILE::layer=NAME sets it for one input."""
    raw: bool = False
    """Take the counts from .raw of the h5ad. FILE::raw sets it for one input."""
    measurement: str | None = None
    """Measurement of the SOMA that holds the counts, instead of RNA."""
    genome: str | None = None
    """Genome to take from a file that holds several."""
    totals: str | None = None
    """Column of obs with the total counts of each cell over all genes, for files that hold only some of the genes."""
    from_log1p: bool = False
    """Turn log1p of counts per 10,000 back into whole counts, with the totals of --totals where they are given; stop
    where the result is not whole."""
    region: str | None = None
    """AWS region of the s3:// inputs, where the AWS settings of this machine do not say it."""
    anonymous: bool = False
    """Read s3:// inputs without credentials, as public data are."""
    obs_columns: tuple[str, ...] = ()
    """Columns of obs to keep; by default all. Of SOMA inputs no others are read, but for those that filters need."""
    assay: Annotated[str | None, mark(panel="Cells")] = None
    """Assays to keep: "10x" (3', 5', multiome, and inputs without an assay column), "any", or labels with commas; by
    default 10x for training data and any for data to embed or fine-tune on."""
    obs_filter: str | None = None
    """Condition on the columns of obs that cells must meet, as a pandas query such as "tissue == 'blood'"."""
    min_genes: Annotated[int | None, at_least(0)] = None
    """Keep cells with at least this many detected genes, counted in the input, before genes are joined or chosen."""
    min_counts: Annotated[int | None, at_least(0)] = None
    """Keep cells with at least this many counts."""
    max_counts: Annotated[int | None, at_least(0)] = None
    """Keep cells with at most this many counts."""
    max_mito: Annotated[float | None, share("[0, 1]")] = None
    """Keep cells with at most this share of their counts in mitochondrial genes, from 0 to 1."""

    def __post_init__(self) -> None:
        check(self)
        if self.assay is not None and not self.assay.strip(" ,"):
            raise ConfigError(f"--assay {self.assay!r} must be 10x, any or labels separated by commas.")
        if self.layer is not None and self.raw:
            raise ConfigError(f"--layer {self.layer} and --raw name two matrices; give one of them.")
