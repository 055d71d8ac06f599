"""The table of cells of a perturbation screen, and which effects do not repeat."""

from rich.console import Console

from sckit.report.perturbation_rows import Row, number, titled_table

_SHOWN_CELLS = 48
_PIVOT_CONTEXTS = 8
_NAMED = 12
_REPEATS = {None: "-", True: "yes", False: "no"}


def print_cells(rows: list[Row], console: Console) -> None:
    """Cells of each condition and context, controls first; `repeats` and `repeat_r` where they are known.

    Contexts become columns where there are a few of them; a long table is cut in the middle and says so.
    """
    contexts = list(dict.fromkeys(str(row["context"]) for row in rows))
    pivot = 1 < len(contexts) <= _PIVOT_CONTEXTS
    table = titled_table("cells of each condition and context")
    judged = [row for row in rows if row.get("repeats") is not None]
    more = ("effect repeats", "r of the halves") if judged else ()
    for name in ("condition", *(contexts if pivot else ("context", "cells", *more))):
        table.add_column(name, justify="left" if name in ("condition", "context") else "right", overflow="fold")
    lines = [_pivoted(rows, name, contexts) for name in dict.fromkeys(r["condition"] for r in rows)] if pivot else []
    for row in [] if pivot else rows:
        repeats = [_REPEATS[row.get("repeats")], number(row.get("repeat_r"))] if judged else []
        lines.append([row["condition"], row["context"], f"{row['cells']:,}", *repeats])
    kept = _SHOWN_CELLS // 2
    cut = lines[kept:-kept] if len(lines) > _SHOWN_CELLS else []
    for line in lines[:kept] if cut else lines:
        table.add_row(*map(str, line))
    if cut:
        table.add_row(f"... {len(cut)} more", *[""] * (len(cut[0]) - 1))
        for line in lines[-kept:]:
            table.add_row(*map(str, line))
    console.print(table)
    if judged:
        few = f"{sum(row['repeats'] for row in judged)} of {len(judged)}"
        star = ", marked *; beside the cells the correlation of the halves" if pivot else ""
        console.print(f"{few} have an effect that repeats between halves of their cells{star}.", highlight=False)
    console.print()


def _pivoted(rows: list[Row], condition: str, contexts: list[str]) -> list[str]:
    found = {str(row["context"]): row for row in rows if row["condition"] == condition}
    line = [condition]
    for context in contexts:
        row = found.get(context)
        r = "" if row is None or row.get("repeat_r") is None else f" {number(row['repeat_r'])}"
        star = "*" if row and row.get("repeats") else ""
        line.append("-" if row is None else f"{row['cells']:,}{r}{star}")
    return line


def dead_line(cells: list[Row]) -> list[str]:
    """The units without an effect that repeats, by name; a few of them."""
    several = len({row["context"] for row in cells}) > 1
    judged = [row for row in cells if row.get("repeats") is not None]
    names = [
        f"{r['condition']} in {r['context']}" if several else str(r["condition"]) for r in judged if not r["repeats"]
    ]
    few = ", ".join(names[:_NAMED]) + (", ... (all in finetune.json)" if len(names) > _NAMED else "")
    return (
        [f"no effect that repeats between halves of the cells in {len(names)} of {len(judged)}: {few}"] if names else []
    )
