"""What `sckit simulate` says of what it wrote."""

import shlex
from collections.abc import Iterator

from sckit.config import SimulateConfig
from sckit.data.simulate import Simulated


def simulated_lines(done: Simulated, config: SimulateConfig) -> Iterator[str]:
    """Yield the files, the numbers of the counts, and a command to go on with."""
    labels = ["library", "cell_type", *(["perturbation"] if config.perturbations else [])]
    types, libraries = (
        _number(config.types, "cell type", "cell types"),
        _number(config.libraries, "library", "libraries"),
    )
    lost = done.without_counts if done.path.suffix == ".sckit" else 0
    of_types = f"{done.cells - lost:,} cells of {types} in {libraries}, {done.genes:,} genes"
    yield f"wrote {done.path}: {of_types}"
    yield f"wrote {done.truth}: the expected count of every entry and what it is made of"
    if lost:
        yield f"note: {lost:,} of {done.cells:,} cells have no counts and are in the truth only"
    if done.path.suffix == ".h5":
        yield f"note: a 10x .h5 has no column for labels of cells; {', '.join(labels)} are in {done.truth} only"
    yield (
        f"per cell, median: {done.median_counts:,.0f} counts in {done.median_genes:,.0f} detected genes; "
        f"{done.share_of_ones:.0%} of the detected entries are a count of one"
    )
    words = ["sckit", "pretrain", str(done.path)]
    if config.perturbations and done.path.suffix != ".h5":
        words += ["--obs-filter", 'perturbation == "control"']
    elif config.libraries > 1 and done.path.suffix != ".h5":
        words += ["--group", "library"]
    yield f"next: {shlex.join(words)}"


def _number(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
