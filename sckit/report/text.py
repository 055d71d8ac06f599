"""Numbers with intervals, shares and titled tables as text, for all reports."""

import math
from collections.abc import Collection
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

_NARROW = 76
_LARGE = 10  # numbers from here on lose two decimals, so that columns stay narrow


def is_number(value: Any) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: Any, *, digits: int = 3, signed: bool = False) -> str:
    """Write a number with some decimals, or a dash where there is no finite number."""
    if not is_number(value):
        return "-"
    digits = max(0, digits - 2 * (abs(value) >= _LARGE))
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text if float(text) else text.lstrip("+-")  # a zero has no sign


def with_interval(value: Any, low: Any = None, high: Any = None, *, digits: int = 3, signed: bool = False) -> str:
    """Write a number with its interval [low, high] where that is known."""
    value, low, high = (number(x, digits=digits, signed=signed) for x in (value, low, high))
    return value if "-" in (value, low, high) else f"{value} [{low}, {high}]"


def share_name(share: float) -> str:
    """Write a share as a percentage."""
    return f"{share * 100:.3g} %"


def revealed_text(share: float | None) -> str:
    """Write what is revealed as a part of a sentence, empty where that is no question."""
    return "" if share is None else f", {share_name(share)} of the genes revealed"


def at(table: Any, **values: Any) -> Any:
    """Return the rows of a table with these values in its columns; None stands for a missing value."""
    for name, value in values.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    return table


def texts(
    table: pd.DataFrame, *keys: str, value: str = "mean", ends: bool = True, signed: bool = False
) -> dict[tuple, str]:
    """Write the numbers of a table, with the ends of their intervals if wanted, by the values in the key columns."""
    rows = zip(table[value], table["low"], table["high"], strict=True)
    written = [with_interval(*(row if ends else row[:1]), signed=signed) for row in rows]
    return dict(zip(zip(*(table[key] for key in keys), strict=True), written, strict=True))


def titled_table(title: str, *columns: str, left: Collection[str] = ("predictor",), fold: bool = False) -> Table:
    """Make a table without a frame, wide enough for its title; `left` are the columns of words, not numbers."""
    width = min(_NARROW, max(map(len, title.splitlines())))
    style = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1), "collapse_padding": True}
    table = Table(title=title, title_justify="left", min_width=width, **style)
    for name in columns:  # where columns are too wide together, words go on in the next line and numbers are cut
        table.add_column(
            name,
            justify="left" if name in left else "right",
            no_wrap=not fold and name not in left,
            overflow="fold" if fold or name in left else "ellipsis",
        )
    return table
