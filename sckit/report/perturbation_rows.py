"""Which rows of a perturbation result a table or figure shows, in what order, and numbers as text."""

import math
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sckit.config.finetune import ARMS

if TYPE_CHECKING:
    from sckit.perturbation.summary import Finetuned

Row = dict[str, Any]

_NARROW = 76

LABELS = {
    "delta_r_perturbed": "Δ r perturbed",
    "delta_r": "Δ r",
    "weighted_r2": "weighted R²",
    "discrimination": "discrim.",
    "slope": "slope",
    "de_overlap": "DE overlap",
}
"""Short names of the metrics for column heads and axes."""


def find(rows: list[Row], **where: Any) -> Row | None:
    """The first row with these values; a key that a row does not have, or a revealed share of None, suits any value."""
    for row in rows:
        if all(row.get(k, v) == v or (k == "revealed" and row[k] is None) for k, v in where.items()):
            return row
    return None


def predictors(result: "Finetuned") -> list[str]:
    """Names of the predictors: closed forms in the result's order, then the arms in their own."""
    # The rows with all training data come first: with less of it only some of the closed forms may be there.
    rows = sorted(result.rows, key=lambda row: row["train_share"], reverse=True)
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    return [name for name in names if name not in ARMS] + [arm for arm in ARMS if arm in names]


def metrics(result: "Finetuned") -> list[str]:
    """Names of the metrics, the headline first."""
    return list(dict.fromkeys([result.headline, *(row["metric"] for row in result.rows)]))


def subsets(result: "Finetuned") -> list[str]:
    """Names of the subsets of the perturbations, "all" first."""
    names = dict.fromkeys(row["subset"] for row in result.rows)
    return sorted(names, key=lambda name: name != "all")


def shares(result: "Finetuned", axis: str) -> list[Any]:
    """The shares along "train_share" or "revealed", rising; a named panel of genes comes last."""
    found = {row[axis] for row in result.rows if row[axis] is not None}
    return sorted(found, key=lambda share: (isinstance(share, str), share))


def shown_share(result: "Finetuned") -> Any:
    """The revealed share of the full table: a half, else the middle one of those above 0; None where there is none."""
    revealed = shares(result, "revealed")
    if 0.5 in revealed or not revealed:
        return 0.5 if revealed else None
    positive = [share for share in revealed if share != 0] or revealed
    return positive[len(positive) // 2]


def resampled(result: "Finetuned") -> str:
    """What a mean is over: what is held out as a whole, perturbations or values of the columns of the context."""
    kind, _, columns = result.split.partition(" (")
    return f"values of {columns.rstrip(')')}" if kind == "unseen context" else "perturbations"


def full_share(result: "Finetuned") -> float:
    """The largest share of the training data."""
    return max(shares(result, "train_share"), default=1.0)


def titled_table(title: str) -> Table:
    """A table without a frame, wide enough for its title."""
    width = min(_NARROW, max(map(len, title.splitlines())))
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), show_edge=False, min_width=width)


def share_name(share: Any) -> str:
    """A share as a percentage; a name stays as it is."""
    return share if isinstance(share, str) else f"{share * 100:.3g} %"


def known(value: Any) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: float | None, *, signed: bool = False) -> str:
    """Three decimals, or a dash where there is no finite number."""
    if value is None or not known(value):
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def with_interval(value: float | None, interval: Any = None, *, signed: bool = False) -> str:
    """A number with its interval [low, high] where that is known."""
    text = number(value, signed=signed)
    if interval is None or not all(known(end) for end in interval):
        return text
    low, high = (number(end, signed=signed) for end in interval)
    return f"{text} [{low}, {high}]"
