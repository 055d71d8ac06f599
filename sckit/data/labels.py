"""Labels of cells as text, whatever the type of their column, and the labels that an option names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.manifest import OWN_COLUMNS
from sckit.errors import ConfigError


def group_values(obs: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of obs as strings [C], empty where missing; raises `ConfigError` when it is not there."""
    refuse_unknown(column, list(map(str, obs.columns)))
    values = as_text(obs[column]) if holds_numbers(obs[column]) else obs[column]
    return np.where(values.isna(), "", values.astype(str)).astype(str)


@dataclass(frozen=True)
class Labels:
    """The labels of C cells, as numbers: a label takes 4 bytes for a cell, however long it is."""

    codes: np.ndarray
    """[C] int32: number of the label, -1 where it is missing."""
    names: np.ndarray
    """[K] str: the labels that cells have, in alphabetical order."""

    @classmethod
    def of(cls, texts: np.ndarray, codes: np.ndarray | None = None) -> Labels:
        """Number the labels `texts` [C], or those that `codes` [C], -1 for none, number; an empty one is missing."""
        codes = np.arange(len(texts)) if codes is None else codes
        used = np.zeros(len(texts) + 1, bool)
        used[codes] = True
        names = np.unique(texts[used[:-1] & (texts != "")])
        number = np.where(texts == "", -1, np.searchsorted(names, texts)).astype(np.int32)
        return cls(np.append(number, np.int32(-1))[codes], names)

    def are(self, chosen: Iterable[str]) -> np.ndarray:
        """Mark the cells that have one of the labels chosen: [C] bool."""
        return np.append(np.isin(self.names, list(chosen)), False)[self.codes]

    def among(self, cells: np.ndarray) -> Labels:
        """Return the same with those labels alone that some of the cells have; others are missing."""
        found = np.bincount(self.codes[cells] + 1, minlength=len(self.names) + 1)[1:] > 0
        number = np.append(np.where(found, np.cumsum(found) - 1, -1), -1).astype(np.int32)
        return Labels(number[self.codes], self.names[found])


def refuse_unknown(column: str, known: Sequence[str]) -> None:
    """Raise `ConfigError` for a column that is not among those of obs."""
    if column not in known:
        close = _closest(column, known)
        hint = f"; did you mean {close!r}?" if close else "."
        raise ConfigError(f"there is no column {column!r} in obs; it has {', '.join(map(repr, known))}{hint}")


def cells_by_assay(obs: pd.DataFrame, kept: np.ndarray, before: dict[str, int]) -> dict[str, dict[str, int]]:
    """Count the cells of each assay, and those that are kept; nothing without a column of assays.

    kept: rows of obs. before: all cells by assay where obs no longer has all of them.
    """
    if "assay" not in obs:
        return {}
    labels = obs["assay"].astype(object).fillna("not given").astype(str)
    cells, left = before or labels.value_counts().to_dict(), labels.iloc[kept].value_counts().to_dict()
    return {name: {"cells": int(cells[name]), "kept": int(left.get(name, 0))} for name in sorted(cells)}


def _closest(column: str, known: Sequence[str]) -> str:
    """Return the column that a name may mean, one of the input before the store's own; empty where none is close."""

    def plain(name: str) -> str:
        return name.replace("_", "").lower()

    for names in ([name for name in known if name not in OWN_COLUMNS], known):
        by_plain = {plain(name): name for name in names}
        close = [name for name in by_plain if plain(column) in name] or get_close_matches(plain(column), by_plain, 1)
        if close and column:
            return by_plain[close[0]]
    return ""


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
                f"{f' For labels with commas, repeat {option} for each.' if ',' in value else ''}"
            )
        if whole is None:
            notes.append(f"no cell has the label {value!r}, so {option} means the labels {', '.join(map(repr, parts))}")
        chosen += parts if whole is None else [whole]
    return list(dict.fromkeys(chosen)), notes


def in_quotes(labels: Sequence[str]) -> str:
    """Return labels for a message, the first twenty."""
    return ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")


def as_text(column: Any) -> pd.Series:
    """Return a column of numbers as text, whole numbers without a point if all are whole, missing ones as they are."""
    values = column.astype(object)
    if all(float(value).is_integer() for value in values.dropna().unique()):  # with gaps they come as floats
        return values.map(lambda value: str(int(value)), na_action="ignore")
    return column.astype(str).where(column.notna())


def holds_numbers(column: Any) -> bool:
    """Return whether a column of obs, or its categories, are numbers."""
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return values.dtype.kind in "iuf"
