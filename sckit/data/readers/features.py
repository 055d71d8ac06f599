"""Which features of a file are genes of the chosen genome, and what is left out or was taken on trust."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sckit.data.readers.names import MOST_GENOMES, genomes_of
from sckit.errors import DataError

NOT_EXPRESSION = "features that are not gene expression"
OTHER_GENOME = "genes of another genome"

TYPE_COLUMNS = ("feature_types", "feature_type", "modality")
"""Names of the column of types in a table of features."""

_EXPRESSION = {"gene expression", "gex", "rna", "mrna", "gene", "expression"}
_OTHER = {
    *("antibody capture", "crispr guide capture", "custom", "multiplexing capture", "antigen capture", "peaks"),
    *("adt", "hto", "atac", "protein", "chromatin accessibility", "vdj", "antibody-oligos"),
    *("protein expression", "antibody", "surface protein", "hashtag", "sgrna", "guide", "sample tag"),
}


class Chosen(NamedTuple):
    """The features that are left out, by reason [F] bool, and sentences on what looks odd."""

    lost: dict[str, np.ndarray]
    notes: list[str]


def choose_features(
    types: np.ndarray | None, genomes: np.ndarray | None, names: np.ndarray, genome: str | None, path: Path
) -> Chosen:
    """Choose the genes among F features by their type and genome, [F] str each, None where the file has none.

    Without a column of genomes those in front of the names count. Types that name nothing known, such as NA or a
    chromosome, are no types: all features are kept then. Raises `DataError` when no feature is gene expression, when
    there are several genomes and none is chosen, or when the chosen one is not there.
    """
    kept, lost, notes = np.ones(len(names), dtype=bool), {}, []
    if types is not None and len(types):
        kept, notes = _expression(types, path)
        lost[NOT_EXPRESSION] = ~kept
    if genomes is None or len(set(genomes)) > MOST_GENOMES:  # more are chromosomes or the like
        genomes = genomes_of(names)
    known = sorted(set(genomes[kept]) - {""})
    if len(known) > 1 or (genome is not None and known):
        chosen = choose_genome(known, genome, path)
        lost[OTHER_GENOME] = kept & (genomes != chosen) & (genomes != "")
    elif genome is not None:
        raise DataError(f"{path} does not say which genome its genes are of; leave out --genome.")
    return Chosen(lost, notes)


def are_types(values: np.ndarray) -> bool:
    """Return whether at least half of the values are known types of features."""
    known = [value.strip().casefold() in _EXPRESSION | _OTHER for value in values]
    return 2 * sum(known) >= max(len(known), 1)


def choose_genome(genomes: list[str], genome: str | None, path: Path) -> str:
    """Return the genome that was asked for, or the only one. Raises `DataError` where there is no such choice."""
    known = ", ".join(genomes)
    if genome is None and len(genomes) > 1:
        raise DataError(f"{path} holds {len(genomes)} genomes ({known}); say which with --genome {genomes[0]}.")
    if genome is not None and genome not in genomes:
        raise DataError(f"{path} has no genome {genome!r}; it holds: {known}.")
    return genome or genomes[0]


def _expression(types: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Mark the features that are gene expression, [F] bool, with a sentence where the types do not say."""
    plain = np.array([kind.strip().casefold() for kind in types], dtype=object)
    expression = np.isin(plain, list(_EXPRESSION))
    if "protein_coding" in plain:  # kinds of genes
        return np.ones(len(types), dtype=bool), []
    if expression.any():
        return expression, []
    common = Counter(types).most_common(5)
    shown = ", ".join(f"{number:,} {kind!r}" for kind, number in common)
    if set(plain) & _OTHER:
        raise DataError(
            f"{path} has no features of the type 'Gene Expression': it has {shown}; give the file with gene counts."
        )
    return np.ones(len(types), dtype=bool), [
        f"{path} names no type 'Gene Expression' ({shown}), so all of its {len(types):,} features count as genes"
    ]
