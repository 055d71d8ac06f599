"""Progress of the commands on stderr: a bar with rate and time left, and the lines that last."""

from collections.abc import Callable
from typing import Any


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

    def cells(self, _kind: str, facts: dict[str, Any]) -> None:
        """Progress of `prepare`."""
        done, total, rate = facts["done"], facts["of"], f"{facts['done']:,} cells"
        self._progress.update(self._task, completed=done, total=total, description=facts["what"], rate=rate)

    def training(self, kind: str, facts: dict[str, Any]) -> None:
        """Events of `pretrain`."""
        if kind == "note":
            self._note(facts["text"])
        elif kind == "step":
            rate = f"{facts['tokens_per_s']:,.0f} tokens/s, loss {facts['loss']:.4f}"
            share = min(facts["share"], 1.0)
            self._progress.update(
                self._task, completed=share, total=1.0, description=f"step {facts['step']}", rate=rate
            )
        else:
            self._note(_validation_line(facts))

    def evaluation(self, kind: str, facts: dict[str, Any]) -> None:
        """Events of `eval` and `embed`."""
        if kind == "note":
            self._note(facts["text"])
        else:
            label = " ".join(f"{k} {facts[k]}" for k in ("target", "rate") if k in facts)
            self._progress.update(self._task, completed=facts["done"], total=facts["of"], description=label, rate="")

    def finetuning(self, table: Callable[[list[dict[str, Any]]], None]) -> Callable[[str, dict[str, Any]], None]:
        """A listener to `finetune`; `table` prints the rows of cells on stdout while the bar is out of the way."""

        def on_event(kind: str, facts: dict[str, Any]) -> None:
            if kind == "note":
                self._note(facts["text"])
            elif kind == "cells":
                self._progress.stop()
                table(facts["rows"])
                self._progress.start()
            else:
                done, total = facts["done"], facts["of"]
                rate = f"{done} of {total}"
                self._progress.update(self._task, completed=done, total=total, description=facts["what"], rate=rate)

        return on_event

    def timing(self, what: str, done: int, total: int) -> None:
        """Progress of `bench`."""
        self._progress.update(self._task, completed=done, total=total, description=what, rate="")

    def _note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)


def _validation_line(row: dict[str, Any]) -> str:
    """One line per epoch: the model beside gene mean, depth and ridge, on the validation cells."""
    names = ("gene mean + depth", "detection ridge", "value ridge")
    beside = ", ".join(f"{name} {row[f'r2 {name}']:.4f}" for name in names)
    where = f"epoch {row['epoch']:.2f} step {row['step']}: {row['rate']:.0%} hidden"
    model = f"model R² {row['r2_gene_mean']:.4f} (pooled r {row['pooled_r'] or float('nan'):.3f})"
    return f"{where}: {model}; gene mean 0, {beside}{' *' if row['better'] else ''}"
