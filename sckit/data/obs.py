"""Obs tables and labels: the cells of several inputs in one table, which of them are kept, columns as strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.filters import KEPT
from sckit.data.labels import as_text, holds_numbers
from sckit.data.manifest import OWN_COLUMNS
from sckit.data.readers.hdf5 import strings
from sckit.data.readers.source import Source
from sckit.data.readers.texts import unique_names
from sckit.data.shards import FinishedShard
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


def unite_obs(sources: Sequence[Source], names: Sequence[str]) -> tuple[pd.DataFrame, list[int]]:
    """Join the obs tables of all sources: (one row per cell, in order; per source, how many cell ids it repeats).

    Columns: cell (the id; with several sources "source:id"; "#2" behind the second cell of that name and so on),
    source, then the union of the sources' columns, missing where a source does not have one.
    """
    ids, repeats = [], []
    for source, name in zip(sources, names, strict=True):
        own, repeated = unique_names(source.obs.index)
        ids.append(own if len(sources) == 1 else name + ":" + own)
        repeats.append(repeated)
    columns = list(dict.fromkeys(column for source in sources for column in source.obs.columns))
    taken = {*OWN_COLUMNS, *map(str, columns)}
    renamed = [name if name not in OWN_COLUMNS else _free(f"input_{name}", taken) for name in map(str, columns)]
    of_cell = np.repeat(np.arange(len(sources), dtype=np.int32), [source.n_cells for source in sources])
    cell = ids[0] if len(ids) == 1 else pd.concat(ids, ignore_index=True)
    united: dict[str, Any] = {"cell": cell.array, "source": pd.Categorical.from_codes(of_cell, list(names))}
    # concat would let columns without any value decide the types of the others
    given = _alike([_with_values(source.obs) for source in sources])
    for name, column in zip(renamed, columns, strict=True):
        parts = [table[[column] if column in table else []] for table in given]
        joined = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
        united[name] = _categories(joined[column]) if column in joined else np.full(len(joined), np.nan)
    return pd.DataFrame(united, copy=False), repeats


def _with_values(obs: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that have any value; the table itself where all have, because a copy takes memory."""
    empty = [name for name, column in obs.items() if column.isna().all()]
    return obs.drop(columns=empty) if empty else obs


def _categories(column: Any) -> Any:
    """Return texts as categories, and flags some of which are missing as flags; other columns as they are."""
    if column.dtype == object and all(isinstance(value, bool) for value in column.dropna()):
        return column.astype("boolean").array
    if column.dtype == object:
        column = column.where(column.isna(), strings(column)).astype("category")
    return (column.astype("category") if isinstance(column.dtype, pd.StringDtype) else column).array


def mixed_columns(sources: Sequence[Source]) -> list[str]:
    """Name the columns that hold numbers in some sources and text in others; they become text."""
    given = [_with_values(source.obs) for source in sources]
    kinds: dict[str, set[bool]] = {}
    for name, column in (item for table in given for item in table.items()):
        kinds.setdefault(str(name), set()).add(holds_numbers(column))
    return [name for name, found in kinds.items() if len(found) > 1]


def _alike(tables: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Turn numbers into text, 1.0 like 1, in columns that others have as text, and where joining would round them."""
    columns: dict[Any, list[pd.Series]] = {}
    for name, column in (item for table in tables for item in table.items()):
        columns.setdefault(name, []).append(column)
    mixed = []
    for name, found in columns.items():
        whole = [column for column in found if column.dtype.kind in "iu"]
        large = any(abs(int(limit)) > 2**53 for column in whole for limit in (column.min(), column.max()))
        rounds = large and (len(found) < len(tables) or len({column.dtype for column in found}) > 1)
        if rounds or len({column.dtype.kind in "iuf" for column in found}) > 1:
            mixed.append(name)
    if not mixed:
        return tables
    return [
        table.assign(**{name: as_text(table[name]) for name in mixed if name in table and holds_numbers(table[name])})
        for table in tables
    ]


def judge_obs(
    sources: Sequence[Source], names: Sequence[str], obs: pd.DataFrame, *, assay: str, obs_filter: str | None
) -> tuple[np.ndarray, list[str]]:
    """Judge all cells by their labels: (codes [C] int16, reasons); code i + 1 means reasons[i], 0 that it is kept.

    `obs` is the united table, so that a filter may name a column that only some of the inputs have.
    """
    reasons: list[str] = []
    codes = []
    assays = [source.obs["assay"].unique() for source in sources if "assay" in source.obs]
    known = {str(label) for labels in assays for label in labels if not pd.isna(label)}
    for label in [] if assay in ("10x", "any") else _assays(assay, known):
        if known and _plain(label) not in map(_plain, known):
            raise ConfigError(
                f"--assay {label.strip()!r} is no assay of the inputs, which have only "
                f"{', '.join(map(repr, sorted(known)))}."
            )
    for source, name in zip(sources, names, strict=True):
        own, own_reasons = assay_codes(source.obs, assay, name)
        reasons += [reason for reason in own_reasons if reason not in reasons]
        renumber = np.array([KEPT] + [reasons.index(reason) + 1 for reason in own_reasons], dtype=np.int16)
        codes.append(renumber[own])
    judged = np.concatenate(codes)
    if obs_filter is not None and len(obs):
        reasons.append(outside_filter(obs_filter))
        judged[(judged == KEPT) & ~obs_matches(obs, obs_filter)] = len(reasons)
    return judged, reasons


def outside_filter(obs_filter: str) -> str:
    """Return the reason why cells are left out for which a filter does not hold."""
    return f"cells outside --obs-filter {obs_filter}"


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
    column = pd.Categorical(obs["assay"])
    texts = np.array([*map(str, column.categories), "not given"], object)
    present = sorted({*texts[np.unique(column.codes)]})  # the code of a missing one is -1, the last
    wanted = {_plain(label) for label in _assays(assay, present)}
    reasons, code_of = [], np.zeros(len(texts), np.int16)
    for label in present:
        keep = bool(TENX_LABEL.fullmatch(_plain(label))) if assay == "10x" else _plain(label) in wanted
        if not keep:
            reasons.append(f"cells of assay {label!r}")
            code_of[texts == label] = len(reasons)
    return code_of[column.codes], reasons


def _assays(given: str, known: Collection[str]) -> list[str]:
    """Return the labels that --assay names: the whole text if that is one, else what stands between its commas."""
    return [given] if _plain(given) in map(_plain, known) else given.split(",")


def obs_matches(obs: pd.DataFrame, query: str) -> np.ndarray:
    """Find the rows of `obs` for which a pandas query holds: [C] bool.

    Raises `DataError` for a column that does not exist, `ConfigError` when the query is not one.
    """
    flags = obs.select_dtypes("boolean").columns  # as categories, a missing flag is neither True nor False
    unsure = flags[obs[flags].isna().any()]
    obs = obs.astype({name: "category" if name in unsure else bool for name in flags})
    obs = obs.set_axis(obs["cell"].astype(str)) if "cell" in obs else obs  # `index` in a query means the cells
    _refuse_other_kinds(obs, query)
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
            f"--obs-filter {query!r} is not true or false for every cell; an example, with two equals signs, is: "
            "tissue == 'blood'."
        )
    return result.fillna(value=False).to_numpy(bool)


def _refuse_other_kinds(obs: pd.DataFrame, query: str) -> None:
    """Raise `ConfigError` where a query compares text with a number, which is true or false for all cells alike."""
    try:
        comparisons = [node for node in ast.walk(ast.parse(query)) if isinstance(node, ast.Compare)]
    except SyntaxError:
        return  # `eval` says more about it
    for node in comparisons:
        sides = [node.left, *node.comparators]
        names = [side.id for side in sides if isinstance(side, ast.Name) and side.id in obs.columns]
        values = [side.value for side in sides if isinstance(side, ast.Constant)]
        for name, value in product(names, values):
            is_text = isinstance(obs[name].dtype, pd.CategoricalDtype | pd.StringDtype) and not holds_numbers(obs[name])
            is_number = obs[name].dtype.kind in "iuf"
            if (is_text and type(value) in (int, float)) or (is_number and type(value) is str):
                known = ", ".join(map(repr, obs[name].dropna().unique()[:3].tolist()))
                raise ConfigError(
                    f"--obs-filter {query!r} compares {name} with {value!r}, but its values are of another kind: "
                    f"{known}, ...; text stands in quotes, and numbers do not."
                )


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with a number behind it where it is taken, and take it."""
    names = (name if nth == 1 else f"{name}_{nth}" for nth in count(1))
    free = next(one for one in names if one not in taken)
    taken.add(free)
    return free


def _plain(label: str) -> str:
    return label.strip().translate(_PRIMES).casefold()


def kept_rows(obs: pd.DataFrame, shards: Sequence[FinishedShard], columns: Collection[str]) -> Iterator[pd.DataFrame]:
    """Yield the table of the kept cells, shard by shard; `columns` of the inputs, all where there are none."""
    chosen = [name for i, name in enumerate(obs) if i < 2 or not columns or name in columns]
    for shard in shards:
        if len(shard.rows):
            first, last = int(shard.rows[0]), int(shard.rows[-1])
            own = obs[chosen].iloc[first : last + 1].iloc[shard.rows - first]  # first a view: texts lie in blocks
            own.insert(2, "total_counts", shard.totals.astype(np.int64))
            own.insert(3, "n_genes", shard.n_genes.astype(np.int64))
            yield own
