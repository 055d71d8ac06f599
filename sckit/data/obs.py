"""Obs tables and labels: the cells of several inputs in one table, which of them are kept, columns as strings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.filters import KEPT
from sckit.data.manifest import OWN_COLUMNS
from sckit.data.readers.hdf5 import strings
from sckit.data.readers.source import Source
from sckit.errors import ConfigError, DataError

TENX_LABEL = re.compile(r"10x( (3'|5'|multiome|transcription profiling).*| genomics)?", re.IGNORECASE)
"""CELLxGENE assay labels that count as 10x: 3' and 5' of every version ("10x 3' v3", "10x 5' transcription profiling"),
multiome, "10x transcription profiling", and just "10x". Left out on purpose: "10x gene expression flex" (probes, not
transcripts), feature barcode, ATAC, TCR."""

_PRIMES = str.maketrans("\u2019\u2032", "''")
_SUFFIX = re.compile(r"(\.(h5ad|h5|zarr|mtx|sckit|soma|gz))+$", re.IGNORECASE)
_GENERIC_END = re.compile(
    r"(^|[_.\- ]+)((sample_)?((raw|filtered)_)?(feature|gene)_bc_matri(x|ces)(_h5)?|matrix|counts|solo\.out)$",
    re.IGNORECASE,
)
_GENERIC = re.compile(
    r"|outs|count|multi|per_sample_outs|adata|raw|filtered|gene|genefull\w*|velocyto|cells_x_genes|counts_\w+",
    re.IGNORECASE,
)


def source_names(paths: Sequence[Path]) -> list[str]:
    """Name every input after its file, or after a folder above it where all samples have files of that name.

    No two names are the same: the second input of a name gets "-2" behind it, and so on.
    """
    names: list[str] = []
    for path in paths:
        own, *above = [_GENERIC_END.sub("", _SUFFIX.sub("", place.name)) for place in (path, *path.resolve().parents)]
        if path.resolve().parent.name.endswith("gene_bc_matrices"):
            own = ""  # of a genome, as Cell Ranger 1 and 2 put it under its samples
        name = next((stem for stem in (own, *above) if not _GENERIC.fullmatch(stem)), "input")
        unique = (name if nth == 1 else f"{name}-{nth}" for nth in count(1))
        names.append(next(candidate for candidate in unique if candidate not in names))
    return names


def unique_names(names: Iterable[Any]) -> pd.Series:
    """Return the names of cells as str, with "#2" behind the second of a name and so on."""
    own = pd.Series(strings(list(names)), dtype=object)
    nth = own.groupby(own).cumcount()
    taken = set(own)
    for at in np.flatnonzero(nth):
        number = int(nth[at]) + 1
        while f"{own[at]}#{number}" in taken:
            number += 1
        taken.add(f"{own[at]}#{number}")
        own[at] = f"{own[at]}#{number}"
    return own


def unite_obs(sources: Sequence[Source], names: Sequence[str]) -> tuple[pd.DataFrame, list[int]]:
    """Join the obs tables of all sources: (one row per cell, in order; per source, how many cell ids it repeats).

    Columns: cell (the id; with several sources "source:id"; "#2" behind the second cell of that name and so on),
    source, then the union of the sources' columns, missing where a source does not have one.
    """
    ids, repeats = [], []
    for source, name in zip(sources, names, strict=True):
        own = unique_names(source.obs.index)
        ids.append(own if len(sources) == 1 else name + ":" + own)
        repeats.append(int(source.obs.index.duplicated().sum()))
    columns = list(dict.fromkeys(column for source in sources for column in source.obs.columns))
    # concat would let columns without any value decide the types of the others
    given = [source.obs.dropna(axis="columns", how="all") for source in sources]
    united = pd.concat(given, ignore_index=True).reindex(columns=columns)
    taken = {*OWN_COLUMNS, *map(str, united.columns)}
    united.columns = [name if name not in OWN_COLUMNS else _free(f"input_{name}", taken) for name in map(str, columns)]
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
    known = {str(label) for source in sources if "assay" in source.obs for label in source.obs["assay"].dropna()}
    for label in [] if assay in ("10x", "any") else assay.split(","):
        if known and _plain(label) not in map(_plain, known):
            raise ConfigError(
                f"--assay {label.strip()!r} is no assay of the inputs: {', '.join(map(repr, sorted(known)))}."
            )
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
        keep = bool(TENX_LABEL.fullmatch(_plain(label))) if assay == "10x" else _plain(label) in wanted
        if not keep:
            reasons.append(f"cells of assay {label!r}")
            codes[(labels == label).to_numpy()] = len(reasons)
    return codes, reasons


def obs_matches(obs: pd.DataFrame, query: str) -> np.ndarray:
    """Find the rows of `obs` for which a pandas query holds: [C] bool.

    Raises `DataError` for a column that does not exist, `ConfigError` when the query is not one.
    """
    flags = obs.select_dtypes("boolean").columns  # as categories, a missing flag is neither True nor False
    unsure = flags[obs[flags].isna().any()]
    obs = obs.astype({name: "category" if name in unsure else bool for name in flags})
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


def group_values(obs: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of obs as strings [C], empty where missing; raises `ConfigError` when it is not there."""
    if column not in obs.columns:
        known = list(map(str, obs.columns))
        close = get_close_matches(column, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"there is no column {column!r} in obs; it has {', '.join(map(repr, known))}{hint}")
    values = obs[column]
    if values.dtype.kind == "f" and not np.any(values.dropna().to_numpy() % 1):  # whole numbers with gaps
        values = values.astype("Int64")
    return np.where(values.isna(), "", values.astype(str)).astype(str)


def choose_labels(
    given: Iterable[str], present: Collection[str], option: str, column: str
) -> tuple[list[str], list[str]]:
    """Return the labels that the values of an option name, and sentences on how they were read.

    A value is first tried whole. Only where no cell has that label is it split at commas. Raises `ConfigError` for what
    is then still no label of the column.
    """
    chosen, notes, present = [], [], {str(label) for label in present}
    for value in given:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        whole = next((one for one in (value, value.strip()) if one in present), None)
        missing = [] if whole is not None else [part for part in parts if part not in present]
        if missing or (whole is None and not parts):
            label = missing[0] if 0 < len(missing) < len(parts) else value
            known = sorted(present - {""})
            close = get_close_matches(label, known, 1)
            raise ConfigError(
                f"{option} {label!r} is not in {column}, which has {in_quotes(known)}"
                f"{f'; did you mean {close[0]!r}?' if close else '.'}"
            )
        if whole is None:
            notes.append(f"no cell has the label {value!r}, so {option} means the labels {', '.join(map(repr, parts))}")
        chosen += parts if whole is None else [whole]
    return list(dict.fromkeys(chosen)), notes


def in_quotes(labels: Sequence[str]) -> str:
    """Return labels for a message, the first twenty."""
    return ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")


def cell_names(obs: pd.DataFrame) -> np.ndarray:
    """Return the names of cells as their source has them, str [C]; `unite_obs` put "source:" in front."""
    names = zip(obs["cell"].astype(str), obs["source"].astype(str), strict=True)
    return np.array([cell.removeprefix(f"{source}:") for cell, source in names])


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with a number behind it where it is taken, and take it."""
    names = (name if nth == 1 else f"{name}_{nth}" for nth in count(1))
    free = next(one for one in names if one not in taken)
    taken.add(free)
    return free


def _plain(label: str) -> str:
    return label.strip().translate(_PRIMES).casefold()
