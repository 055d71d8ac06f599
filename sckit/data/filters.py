"""Which cells and genes are kept: assay, obs filter, quality rules, variable genes; every lost cell has a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sckit.data.readers.hdf5 import strings
from sckit.data.readers.source import CountsBlock, Source
from sckit.errors import ConfigError, DataError

KEPT = 0
"""Code of a cell that is kept; other codes number the reasons."""

OWN_COLUMNS = ("cell", "source", "total_counts", "n_genes")
"""Obs columns that the store writes itself; an input's column of such a name becomes input_NAME."""

TENX_LABEL = re.compile(r"10x (3'|5'|multiome)", re.IGNORECASE)
"""CELLxGENE assay labels that count as 10x: 3' and 5' of every version ("10x 3' v3", "10x 5' transcription profiling")
and multiome. Left out on purpose: "10x gene expression flex" (probes, not transcripts), feature barcode, ATAC, TCR."""

_PRIMES = str.maketrans("\u2019\u2032", "''")
_COUNTS_PER_CELL = 1e4
_BINS = 20


@dataclass(frozen=True)
class QualityRules:
    """Bounds on a cell, over all gene-expression features of its source; None means no bound."""

    min_genes: int | None = None
    min_counts: int | None = None
    max_counts: int | None = None
    max_mito: float | None = None
    """Largest share of the cell's counts in mitochondrial genes (symbols that begin with MT- or mt-)."""

    def reasons(self) -> list[str]:
        """Say what is wrong with a cell that breaks each rule, in the order in which the rules are applied."""
        return [
            "cells without counts",
            f"cells with fewer than {self.min_genes} genes",
            f"cells with fewer than {self.min_counts} counts",
            f"cells with more than {self.max_counts} counts",
            f"cells with more than {self.max_mito} of their counts mitochondrial",
        ]

    def broken(self, block: CountsBlock, totals: np.ndarray, mito: np.ndarray | None) -> np.ndarray:
        """Find the first rule that each cell breaks: [C] int16 from 1, 0 for none; `mito` [G] bool."""
        n_genes = np.diff(block.indptr)  # [C]
        masks = [
            n_genes == 0,
            n_genes < (self.min_genes or 0),
            totals < (self.min_counts or 0),
            totals > (np.inf if self.max_counts is None else self.max_counts),
        ]
        if self.max_mito is not None and mito is not None:
            masks.append(block.weighted(mito.astype(np.float64)) > self.max_mito * totals)
        rules = np.arange(1, len(masks) + 1, dtype=np.int16)
        return np.select(masks, list(rules), default=np.int16(KEPT)).astype(np.int16)


def mito_genes(source: Source) -> np.ndarray:
    """Mark the mitochondrial genes of a source: [G] bool. Raises `DataError` when there are none."""
    mito = np.array([symbol.upper().startswith("MT-") for symbol in source.genes.symbols])
    if not mito.any():
        msg = (
            f"{source.path} has no gene whose symbol begins with MT-, so the mitochondrial share of its cells "
            "is unknown; leave out --max-mito."
        )
        raise DataError(msg)
    return mito


def assay_codes(obs: pd.DataFrame, assay: str, name: str) -> tuple[np.ndarray, list[str]]:
    """Judge the cells of one source by their assay: (codes [C] int16, reasons), code i + 1 meaning reasons[i].

    `assay` is "10x" (see `TENX_LABEL`), "any", or labels separated by commas. A source without the column is kept
    under "10x", because 10x files carry no labels; a list of labels needs the column and raises `DataError`.
    """
    codes = np.zeros(len(obs), dtype=np.int16)
    if assay == "any":
        return codes, []
    if "assay" not in obs:
        if assay == "10x":
            return codes, []
        raise DataError(f"{name} has no obs column 'assay', so --assay {assay!r} cannot be applied; use --assay any.")
    labels = pd.Series(obs["assay"].to_numpy(object)).fillna("not given").astype(str)
    wanted = {_plain(label) for label in assay.split(",")}
    reasons = []
    for label in sorted(labels.unique()):
        keep = bool(TENX_LABEL.match(_plain(label))) if assay == "10x" else _plain(label) in wanted
        if not keep:
            reasons.append(f"cells of assay {label!r}")
            codes[(labels == label).to_numpy()] = len(reasons)
    return codes, reasons


def obs_matches(obs: pd.DataFrame, query: str) -> np.ndarray:
    """Rows of `obs` for which a pandas query holds: [C] bool.

    Raises `DataError` for a column that does not exist, `ConfigError` when the query is not one.
    """
    unsure = obs.select_dtypes("boolean").columns  # as categories, a missing flag is neither True nor False
    obs = obs.astype(dict.fromkeys(unsure, "category"))
    try:
        result = obs.eval(query, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        columns = ", ".join(map(str, obs.columns)) or "none"
        raise DataError(f"--obs-filter {query!r}: {error}; the obs columns are: {columns}.") from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--obs-filter {query!r} is not a condition on obs columns ({reason}); an example is: tissue == 'blood'."
        ) from error
    if not (isinstance(result, pd.Series) and result.dtype.kind == "b"):
        raise ConfigError(
            f"--obs-filter {query!r} is not true or false for every cell; an example is: tissue == 'blood'."
        )
    return result.fillna(value=False).to_numpy(bool)


class GeneMoments:
    """Running sums of counts per 10,000, for the mean and variance of every gene over all cells seen."""

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self._sum = np.zeros(n_genes)
        self._squares = np.zeros(n_genes)

    def add(self, indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> None:
        """Take in C cells: CSR counts and the totals [C] they are divided by."""
        scale = _COUNTS_PER_CELL / np.maximum(totals, 1)
        matrix = sp.csr_array((counts.astype(np.float64), genes, indptr), (len(totals), len(self._sum)))
        self.n_cells += len(totals)
        self._sum += matrix.T @ scale
        matrix.data *= matrix.data
        self._squares += matrix.T @ scale**2

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and unbiased variance [G] of counts per 10,000."""
        mean = self._sum / self.n_cells
        return mean, np.maximum(self._squares - self.n_cells * mean**2, 0) / max(self.n_cells - 1, 1)


def highly_variable(mean: np.ndarray, variance: np.ndarray, n_top: int) -> np.ndarray:
    """Choose the `n_top` genes of largest normalised dispersion: [<= n_top] gene numbers, rising.

    The 'seurat' flavour (Satija et al. 2015, Nat Biotechnol 33:495; as in scanpy): log dispersion of counts per
    10,000, standardised within 20 bins of log mean; a gene alone in its bin gets 1; genes without counts are left out.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    log_dispersion = pd.Series(np.log(np.where(dispersion == 0, np.nan, dispersion)))
    by_bin = log_dispersion.groupby(pd.cut(np.log1p(mean), bins=_BINS), observed=True)
    average, deviation = by_bin.transform("mean"), by_bin.transform("std")
    alone = deviation.isna()
    normalised = np.where(alone, 1.0, (log_dispersion - average) / deviation.where(~alone, 1.0))
    normalised = np.where(log_dispersion.isna(), -np.inf, normalised)
    best = np.argsort(-normalised, kind="stable")[:n_top]
    return np.sort(best[np.isfinite(normalised[best])])


def drop_counts(by_code: np.ndarray, reasons: Sequence[str]) -> dict[str, int]:
    """Name the lost cells: `by_code` [reasons + 1] holds the cells of each code, code i + 1 meaning reasons[i]."""
    return {reason: int(n) for reason, n in zip(reasons, by_code[1:], strict=True) if n}


def unite_obs(sources: Sequence[Source], names: Sequence[str]) -> tuple[pd.DataFrame, list[int]]:
    """One obs table for all cells of all sources, in order, and per source how many cell ids it repeats.

    Columns: cell (the id; with several sources "source:id"; "#2" behind the second cell of that name and so on),
    source, then the union of the sources' columns, missing where a source does not have one.
    """
    ids, repeats = [], []
    for source, name in zip(sources, names, strict=True):
        own = pd.Series(strings(source.obs.index))
        nth = own.groupby(own).cumcount()
        own = own.where(nth == 0, own + "#" + (nth + 1).astype(str))
        ids.append(own if len(sources) == 1 else name + ":" + own)
        repeats.append(int((nth > 0).sum()))
    columns = list(dict.fromkeys(column for source in sources for column in source.obs.columns))
    # concat would let columns without any value decide the types of the others
    given = [source.obs.dropna(axis="columns", how="all") for source in sources]
    united = pd.concat(given, ignore_index=True).reindex(columns=columns)
    united.columns = [f"input_{name}" if name in OWN_COLUMNS else str(name) for name in united.columns]
    for name in united.select_dtypes(object).columns:
        if all(isinstance(value, bool) for value in united[name].dropna()):
            united[name] = united[name].astype("boolean")
        else:
            united[name] = united[name].where(united[name].isna(), strings(united[name])).astype("category")
    of_cell = np.repeat(np.arange(len(sources)), [source.n_cells for source in sources])
    united.insert(0, "cell", np.concatenate(ids))
    united.insert(1, "source", pd.Categorical.from_codes(of_cell, list(names)))
    return united, repeats


def judge_obs(
    sources: Sequence[Source], names: Sequence[str], obs: pd.DataFrame, *, assay: str, obs_filter: str | None
) -> tuple[np.ndarray, list[str]]:
    """Judge all cells by their labels: (codes [C] int16, reasons); code i + 1 means reasons[i], 0 that it is kept.

    `obs` is the united table, so that a filter may name a column that only some of the inputs have.
    """
    reasons: list[str] = []
    codes = []
    for source, name in zip(sources, names, strict=True):
        own, own_reasons = assay_codes(source.obs, assay, name)
        reasons += [reason for reason in own_reasons if reason not in reasons]
        renumber = np.array([KEPT] + [reasons.index(reason) + 1 for reason in own_reasons], dtype=np.int16)
        codes.append(renumber[own])
    judged = np.concatenate(codes)
    if obs_filter is not None:
        reasons.append(f"cells outside --obs-filter {obs_filter}")
        judged[(judged == KEPT) & ~obs_matches(obs, obs_filter)] = len(reasons)
    return judged, reasons


def _plain(label: str) -> str:
    return label.strip().translate(_PRIMES).casefold()
