"""What `sckit bench kernels` shows: a table, a bar chart, and what changed since an earlier result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sckit.bench.harness import Row
from sckit.errors import ConfigError, DataError

OURS = ("numba", "triton")
KEY = ("op", "case", "tokens", "heads", "head_dim", "pass", "engine")
"""What makes two rows of different results the same measurement."""

_SHOWN = ("device", "threads", "dtype", "torch", "commit", "gflops", "share_of_peak", "median_ms")
_FIGURES = (("gflops", 1), ("share_of_peak", 2))  # with the decimals shown


def print_kernels(document: dict[str, Any], console: Console) -> None:
    """Print a table with every case and engine, and what hiding half of the tokens saves."""
    rows = document["rows"]
    table = Table(title=f"attention, {_where(rows[0])}; matrix product {document['peak_gflops']:.0f} GFLOP/s")
    for column in ("case", "heads", "cells, median, max", "engine"):
        table.add_column(column)
    for column in ("fwd GFLOP/s", "of peak", "fwd+bwd GFLOP/s", "of peak", "ms [20-80 %]", "x best other"):
        table.add_column(column, justify="right", no_wrap=True)
    for of_case in _by_case(rows):
        best_ms = min((both["median_ms"] for _, both in of_case if both["engine"] not in OURS), default=None)
        first = of_case[0][1]
        sizes = f"{first['cells']}, {first['median_tokens']}, {first['max_tokens']}"
        case = first["case"], f"{first['heads']} x {first['head_dim']}", sizes
        for forward, both in of_case:
            own = both["engine"] in OURS
            speed = [f"{row[key]:.{places}f}" for row in (forward, both) for key, places in _FIGURES]
            spread = f"{both['median_ms']:.1f} [{both['p20_ms']:.1f}-{both['p80_ms']:.1f}]"
            ratio = f"{best_ms / both['median_ms']:.2f}" if best_ms and own else ""
            head = case if both is first else ("", "", "")
            table.add_row(*head, both["engine"], *speed, spread, ratio, style="bold" if own else None)
        table.add_section()
    console.print(table)
    for name, reason in document.get("left_out", {}).items():
        console.print(f"{name} left out: {reason}", style="dim", highlight=False)
    for text in _savings(rows):
        console.print(text, highlight=False)


def _where(row: Row) -> str:
    return (
        f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] != 1)}, {row['dtype']}, torch {row['torch']}"
    )


def _by_case(rows: Sequence[Row]) -> list[list[tuple[Row, Row]]]:
    """Group the rows by case, each engine with its (forward, forward and backward) rows."""
    cases: dict[tuple, dict[str, dict[str, Row]]] = {}
    for row in rows:
        engines = cases.setdefault((row["case"], row["heads"], row["head_dim"]), {})
        engines.setdefault(row["engine"], {})[row["pass"]] = row
    return [[(found["fwd"], found["fwd+bwd"]) for found in engines.values()] for engines in cases.values()]


def _savings(rows: Sequence[Row]) -> list[str]:
    """Say how long our engine takes with half of the tokens hidden, as a share of the time with all of them keys."""
    ours = {tuple(row[key] for key in KEY): row["median_ms"] for row in rows if row["engine"] in OURS}
    lines = []
    for (op, case, *rest), half_ms in ours.items():
        full_ms = ours.get((op, case.removesuffix("-half-hidden"), *rest))
        if case.endswith("-half-hidden") and full_ms:
            _, heads, width, passes, engine = rest
            what = f"{case} {heads} x {width} {passes}, {engine}"
            lines.append(f"{what}: {half_ms / full_ms:.2f} of the time with every token a key")
    return lines


def draw_kernels(document: dict[str, Any], path: Path) -> None:
    """Write a bar chart, forward with backward, of every case and engine as a share of the matrix product."""
    from matplotlib.figure import Figure

    cases = _by_case(document["rows"])
    engines = list(dict.fromkeys(both["engine"] for of_case in cases for _, both in of_case))
    figure = Figure(figsize=(11, 0.35 * sum(len(of_case) + 1 for of_case in cases) + 1.2), layout="constrained")
    axes = figure.subplots()
    top, ticks, labels = 0.0, [], []
    for of_case in cases:
        ticks.append(top + (len(of_case) - 1) / 2)
        labels.append("{case}\n{heads} heads of {head_dim}".format(**of_case[0][1]))
        for _, both in of_case:
            place = engines.index(both["engine"])
            color = "C0" if both["engine"] in OURS else str(0.35 + 0.1 * (place % 5))
            bar = axes.barh(top, both["share_of_peak"], color=color, height=0.85)
            axes.bar_label(bar, [f"{both['engine']}  {both['gflops']:.0f} GFLOP/s"], padding=4, fontsize=8)
            top += 1
        top += 1
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(row["share_of_peak"] for row in document["rows"]))
    axes.set_xlabel("share of the machine's own matrix product in the same rounds, forward and backward")
    axes.set_title(_where(document["rows"][0]), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def check_writable(out: Path | None, chart: Path | None = None) -> None:
    """Raise ConfigError, before anything is timed, for a file that could not be written afterwards."""
    for path in (out, chart):
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(f"the folder of {path} does not exist; make it first.")
    if chart is not None and chart.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--chart {chart} has an unknown format; choose a name that ends in .png, .pdf or .svg.")


def append_rows(document: dict[str, Any], path: Path) -> None:
    """Append every row as one JSON line."""
    with path.open("a") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in document["rows"])


def read_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier result; of several rows of one measurement the last.

    Raises ConfigError when there is no such file, DataError when it holds anything else.
    """
    if not path.is_file():
        raise ConfigError(f"there is no result {path}; write one with --out.")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        last = {tuple(row[key] for key in (*KEY, *_SHOWN))[: len(KEY)]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold rows of `sckit bench kernels --out`: {error}.") from error
    if not last:
        raise DataError(f"{path} is empty.")
    return list(last.values())


def print_comparison(rows: Sequence[Row], earlier: Sequence[Row], console: Console) -> None:
    """Print the speed of every measurement that both results have, now over then, and the same of its share of peak.

    Between machines, or where other work ran, only the shares can be compared.
    """
    before = {tuple(row[key] for key in KEY): row for row in earlier}
    table = Table(title=f"now over {_where(earlier[0])}, commit {earlier[0]['commit']}")
    for column in ("case", "heads x width", "pass", "engine"):
        table.add_column(column)
    for column in ("GFLOP/s then", "now", "ratio", "share then", "now", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        old = before.get(tuple(row[key] for key in KEY))
        if old is None:
            continue
        cells = []
        for key, places in _FIGURES:
            cells += [f"{old[key]:.{places}f}", f"{row[key]:.{places}f}", f"{row[key] / old[key]:.2f}"]
        shape = f"{row['heads']} x {row['head_dim']}"
        table.add_row(row["case"], shape, row["pass"], row["engine"], *cells)
    console.print(table)
    if earlier[0]["device"] != rows[0]["device"]:
        console.print("other machines: compare the shares only", highlight=False)
