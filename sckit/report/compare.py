"""A comparison of two runs as a table and sentences. Nothing is computed here."""

from pathlib import Path

from rich.console import Console

from sckit.evaluation.kept import Comparison
from sckit.metrics.intervals import verdict
from sckit.report.evaluation import MARGIN
from sckit.report.text import at, number, titled_table, with_interval

_WORDS = {"helps": "the first is better", "hurts": "the second is better", "no difference": "the same"}


def print_comparison(found: Comparison, names: tuple[Path, Path], console: Console) -> None:
    """Print one table for each target and rate, with a verdict for each row that differs."""
    for target, rate in dict.fromkeys(found.table[["target", "rate"]].itertuples(index=False, name=None)):
        rows = at(found.table, target=target, rate=rate)
        title = f"{100 * rate:.4g}% of the values hidden, {target} depth, {rows['entries'].iloc[0]:,} entries in both"
        table = titled_table(title, "row", f"R² {names[0].name}", f"R² {names[1].name}", "difference [95 %]", "verdict")
        for row in rows.itertuples():
            said = "none (linear start)" if row.untrained else verdict([row.low, row.high], MARGIN)
            difference = with_interval(row.difference, row.low, row.high, digits=4, signed=True)
            table.add_row(row.row, number(row.r2), number(row.r2_other), difference, _WORDS.get(said, said))
        console.print(table)
        console.print()
    console.print(
        f"R²: share of the squared error of the first run's gene means that is removed. Differences within {MARGIN:g} "
        "are called the same.",
        style="dim",
        highlight=False,
    )
    for line in found.notes:
        console.print(line, highlight=False, soft_wrap=True)
