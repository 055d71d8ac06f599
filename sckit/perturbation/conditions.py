"""The condition of every cell from its label: controls, missing and excluded labels, combinations of perturbations."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from sckit.config import FinetuneConfig
from sckit.data import choose_labels, group_values, in_quotes
from sckit.errors import ConfigError, DataError

_MISSING = {"", "nan", "none", "na", "n/a", "<na>", "null"}
_LIKE_CONTROL = re.compile(
    r"(ctrl|controls?|nt|ntc|non[-_ ]?target(ing)?|neg(ative)?([-_ ]?(ctrl|control))?|scrambled?|"
    r"safe[-_ ]?target(ing)?|dmso|vehicle|untreated|unperturbed|mock|pbs)([-_ ]*\d+)?",
    re.IGNORECASE,
)
_SEPARATORS = "_,;&|/:"


class Conditions(NamedTuple):
    """Labels of C cells without spaces around them, and what they mean."""

    labels: np.ndarray  # str [C], "" where missing
    control: np.ndarray  # bool [C]
    left_out: np.ndarray  # bool [C], missing or excluded
    parts: dict[str, tuple[str, ...]]  # treated label -> the perturbations that it combines, without controls
    notes: list[str]


def read_conditions(obs: pd.DataFrame, config: FinetuneConfig) -> Conditions:
    """Read the labels of the column that the config names.

    Raises ConfigError for labels of the config that no cell has, DataError where controls or treated cells are missing.
    """
    given = group_values(obs, config.condition)
    labels = np.char.strip(given)
    notes = []
    if stripped := int((labels != given).sum()):
        notes.append(f"spaces around the labels of {config.condition} were removed in {stripped:,} cells")
    present = sorted({str(label) for label in labels})
    alone = {part for label in present for part in _parts(label, config.separator)}
    control, told = choose_labels(config.control, {*present, *alone}, "--control", config.condition)
    excluded, more = choose_labels(config.exclude, present, "--exclude", config.condition)
    if both := sorted({*control} & {*excluded}):
        raise ConfigError(f"{both[0]!r} is named by --control and by --exclude; it can be one of them.")
    control = list(dict.fromkeys(part for label in control for part in (label, *_parts(label, config.separator))))
    missing = {label for label in present if label.casefold() in _MISSING} - {*control, *excluded}
    if words := missing - {""}:
        count, shown = int(np.isin(labels, list(words)).sum()), ", ".join(map(repr, sorted(words)))
        notes.append(f"{count:,} cells with the label {shown} count as cells without a condition")
    labels = np.where(np.isin(labels, list(missing)), "", labels)
    combined = {label: _parts(label, config.separator) for label in present if label not in missing}
    controls = [label for label, parts in combined.items() if label in control or set(parts) <= {*control}]
    parts = {
        label: tuple(sorted(set(parts) - {*control, "ctrl"})) or (label,)
        for label, parts in combined.items()
        if label not in {*controls, *excluded}
    }
    if not parts:
        raise DataError(
            f"{config.condition} has no condition but {in_quotes(sorted(combined))}; there is nothing to compare."
        )
    is_control = np.isin(labels, controls)
    if not is_control.any():
        raise DataError(f"no cell of {config.condition} has only {in_quotes(control)}, so there are no control cells.")
    left_out = np.isin(labels, ["", *excluded])
    return Conditions(labels, is_control, left_out, parts, [*notes, *told, *more, *_hints(parts, controls, config)])


def _parts(label: str, separator: str) -> list[str]:
    """Return the perturbations that a label combines; a label such as CD4+ or (+)-JQ1 is one perturbation."""
    parts = [part.strip() for part in label.split(separator)]
    return parts if all(any(c.isalnum() for c in part) for part in parts) else [label]


def _hints(parts: dict[str, tuple[str, ...]], controls: list[str], config: FinetuneConfig) -> list[str]:
    """Name treated labels that look like more controls, or like combinations with another separator."""
    stems = {re.sub(r"[-_ ]*\d+$", "", label) for label in controls}
    alike = [one for one in parts if _LIKE_CONTROL.fullmatch(one) or re.sub(r"[-_ ]*\d+$", "", one) in stems - {""}]
    hints = []
    if alike:
        hints.append(
            f"{in_quotes(alike)} in {config.condition} may be controls too, but count as perturbations; if they are "
            f"controls, give --control {alike[0]!r} as well"
        )
    known = {*parts, *controls}
    found = Counter(
        separator
        for label in parts
        for separator in _SEPARATORS
        if separator not in config.separator and separator in label and set(_parts(label, separator)) <= known
    )
    for separator, count in found.most_common(1):
        example = next(one for one in parts if separator in one and set(_parts(one, separator)) <= known)
        hints.append(
            f"{count} labels such as {example!r} may combine perturbations that are labels too; if they do, give "
            f"--separator {separator!r}"
        )
    return hints
