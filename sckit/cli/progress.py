"""Progress of the commands on stderr: a bar with rate and time left, and the lines that last."""

from typing import Any

import typer

from sckit.cli.options import result_console


class Bar:
    """A progress bar on stderr with rate and time left; lines that last are printed above it."""

    def __enter__(self) -> "Bar":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")]
        columns += [TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("starting", total=None, rate="")
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)  # type: ignore[arg-type]

    def on_event(self, kind: str, facts: dict[str, Any]) -> None:
        """Show an event of any long-running call; "cells" and "row" are results and go to stdout."""
        if kind == "note":
            self._note(facts["text"])
        elif kind == "validation":
            self._note(_validation_line(facts))
        elif kind == "step":
            rate = f"{facts['tokens_per_s']:,.0f} tokens/s, loss {facts['loss']:.4f}"
            self._move(min(facts["share"], 1.0), 1.0, f"step {facts['step']}", rate)
        elif kind == "progress":
            rate = f"{facts['done']:,} of {facts['of']:,}"
            self._move(facts["done"], facts["of"], facts.get("what", ""), rate)
        else:
            self._progress.stop()  # out of the way of stdout
            if kind == "cells":
                from sckit.report.perturbation import print_cells

                print_cells(facts["rows"], result_console())
            else:  # a row of a benchmark
                what = f"{facts['op']:<26} {facts['case']:<14} {facts.get('pass', ''):<8} {facts['engine']:<10}"
                typer.echo(f"{what} {facts['median_ms']:>10.2f} ms  [{facts['p20_ms']:.2f}-{facts['p80_ms']:.2f}]")
            self._progress.start()

    def _move(self, done: float, total: float, what: str, rate: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=what, rate=rate)

    def _note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)


def _validation_line(row: dict[str, Any]) -> str:
    """One line per epoch: the model and the linear baselines on the validation cells."""
    names = ("gene mean + depth", "detection ridge", "value offset ridge")
    baselines = ", ".join(f"{name} {row[f'r2 {name}']:.4f}" for name in names)
    where = f"epoch {row['epoch']:.2f} step {row['step']}: {100 * row['rate']:.4g}% hidden"
    model = f"model R² {row['r2_gene_mean']:.4f} (pooled r {row['pooled_r'] or float('nan'):.3f})"
    return f"{where}: {model}; gene mean 0, {baselines}{' *' if row['better'] else ''}"
