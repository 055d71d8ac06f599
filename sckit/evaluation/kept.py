"""Predictions of an evaluation, kept as a table for each target and mask rate, and the comparison of two of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sckit.data.batch import Batch
from sckit.data.store import Store, open_store
from sckit.errors import DataError, said
from sckit.files import matches, replacing_folder, to_json, write_json
from sckit.metrics.values import Scores, resampling

PREDICTIONS = "predictions"
"""Name of the folder of tables in the folder of an evaluation."""

FACTS = "facts.json"
"""What the evaluation was of, in the folder of tables."""

_KEYS = {"fold": pa.int16(), "cell": pa.int32(), "gene": pa.int32(), "truth": pa.float32()}


class Keeper:
    """Writes the predictions of every scored entry into a folder, batch by batch: TARGET-RATE.parquet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add(
        self,
        batch: Batch,
        predicted: dict[str, np.ndarray],
        numbers: np.ndarray,
        *,
        target: str,
        rate: float,
        fold: int,
    ) -> None:
        """Add a batch: predictions [M] by row; numbers: [G], the gene of the store that each gene of the batch is."""
        size, name = len(batch.truth), f"{target}-{rate:.15g}"
        if name not in self._writers:
            schema = pa.schema(list((_KEYS | dict.fromkeys(predicted, pa.float32())).items()))
            self._writers[name] = pq.ParquetWriter(self._folder / f"{name}.parquet", schema)
        cell, gene = batch.cells[batch.target_cells], numbers[batch.genes[batch.targets]]
        columns = {"fold": np.full(size, fold), "cell": cell, "gene": gene, "truth": batch.truth} | predicted
        self._writers[name].write_table(pa.table(columns).cast(self._writers[name].schema, safe=False))

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


@contextmanager
def keeping(folder: Path | None, facts: dict[str, Any]) -> Iterator[Keeper | None]:
    """Hand out what writes predictions into a folder, which appears whole or not at all; None without a folder.

    facts: what has to be the same in evaluations that are compared, and where they come from.
    """
    if folder is None:
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(folder) as unfinished:
        keeper = Keeper(unfinished)
        try:
            yield keeper
        finally:
            keeper.close()
        write_json(unfinished / FACTS, facts)


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`."""

    table: pd.DataFrame  # target, rate, row, entries, r2, r2_other, difference, low, high, untrained
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """Return the one JSON document that `sckit compare --json` prints."""
        return {"command": "compare", "rows": to_json(self.table.to_dict("records")), "notes": self.notes}


def compare(
    run: Path, other: Path, *, group: str | None = None, bootstraps: int = 1000, seed: int = 0
) -> Comparison:  # fmt: skip
    """Compare the kept predictions of two evaluated runs on the entries that both of them scored.

    R2 is about the gene means of the first run, and differences are first less second, with paired intervals.
    group: column of obs over whose values they are bootstrapped, by default the first run's group column.
    Raises DataError where predictions are missing or of other data, and ConfigError for a column that is not there.
    """
    facts, others = (_facts(each) for each in (run, other))
    for name, what in (("store", "data"), ("seed", "--seed"), ("known_depth", "--known-depth")):
        if facts[name] != others[name]:
            one, two = (_shown(name, each) for each in (facts, others))
            raise DataError(f"{run} and {other} were evaluated with other {what} ({one}, {two}); evaluate both alike.")
    tables = {path.stem: path for path in _folder(run).glob("*.parquet")}
    common = sorted(name for name in tables if (_folder(other) / f"{name}.parquet").is_file())
    if not common:
        raise DataError(
            f"{run} and {other} have no target and mask rate in common; evaluate both with the same --mask."
        )
    column = group or facts.get("group")
    groups = _store(facts, run).labels(column).codes if column else None
    untrained = [
        path for path, each in ((run, facts), (other, others)) if each.get("untrained") == each.get("networks", 0)
    ]
    rows, rule, alike, alone = [], None, set(), (set(), set())
    for name in common:
        target, _, rate = name.partition("-")
        one, two = _table(tables[name]), _table(_folder(other) / f"{name}.parquet")
        scores = _scores(one, two, seed, bootstraps)
        first, second = ({_row(column) for column in table.columns} for table in (one, two))
        alone[0].update(first - second)
        alone[1].update(second - first)
        of_cells = None if groups is None else groups[scores.cells]
        rule = resampling(of_cells, len(scores.cells))
        for row in dict.fromkeys(each.removeprefix("A ") for each in scores.predictors if each.startswith("A ")):
            difference = scores.difference(f"A {row}", f"B {row}", of_cells)
            low, high = difference["ci"]
            if scores.alike(f"A {row}", f"B {row}") and not row.startswith("model"):
                alike.add(row)
                continue
            rows.append(
                {"target": target, "rate": float(rate), "row": row, "entries": scores.entries}
                | {"r2": scores.r2(f"A {row}"), "r2_other": scores.r2(f"B {row}")}
                | {"difference": difference["r2_gene_mean"], "low": low, "high": high}
                | {"untrained": bool(untrained) and row.startswith("model")}
            )
    if rule is None or not rows:
        raise DataError(
            f"{run} and {other} have no row that differs; evaluate both with the same --context, so that both have the "
            "model."
        )
    notes = [f"the same in both, and left out: {', '.join(sorted(alike))}"] if alike else []
    notes += [
        f"only {path} has: {', '.join(sorted(own))}" for path, own in zip((run, other), alone, strict=True) if own
    ]
    said_of = "the model of {} is its linear start (step 0), so this says nothing about its network"
    notes += [said_of.format(path) for path in untrained]
    return Comparison(pd.DataFrame(rows), [*notes, rule.sentence("cells", "cells" if groups is None else "groups")])


def _shown(name: str, facts: dict[str, Any]) -> str:
    """Write a fact as a user knows it; a store by its path and its number of cells, where that is known."""
    if name != "store":
        return str(facts[name])
    cells = f" with {facts['cells']:,} cells" if matches(facts, {"cells": int}) else ""
    return facts["store_path"] + cells


def _folder(run: Path) -> Path:
    """Return the folder of tables of an evaluated run, or of the folder of an evaluation."""
    return next((each for each in (run / "eval" / PREDICTIONS, run / PREDICTIONS) if each.is_dir()), run / PREDICTIONS)


def _facts(run: Path) -> dict[str, Any]:
    try:
        facts = json.loads((_folder(run) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{run} has no kept predictions; make them with `sckit eval {run} --keep-predictions`."
        ) from error
    if not matches(facts, {"store": str, "seed": int, "known_depth": bool, "store_path": str}):
        raise DataError(f"{_folder(run) / FACTS} is damaged; evaluate {run} again with --keep-predictions.")
    return facts


def _store(facts: dict[str, Any], run: Path) -> Store:
    try:
        return open_store(Path(facts["store_path"]))
    except DataError as error:
        raise DataError(
            f"the labels of the cells of {run} are not where they were when it was evaluated ({said(error)}); evaluate "
            "it again with --keep-predictions."
        ) from error


def _table(path: Path) -> pd.DataFrame:
    """Read a table of predictions."""
    try:
        table = pd.read_parquet(path)
        if not {*_KEYS, "gene mean", "gene mean + depth"} <= {*table}:
            msg = "columns are missing"
            raise ValueError(msg)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({said(error)}); evaluate again with --keep-predictions.") from error
    return table


def _scores(one: pd.DataFrame, two: pd.DataFrame, seed: int, bootstraps: int) -> Scores:
    """Score the rows that both tables have, on the entries that both have, as "A row" and "B row"."""
    tables = {"A": one, "B": two}
    both = [t.rename(columns=lambda c, n=n: c if c in ("cell", "gene") else f"{n} {c}") for n, t in tables.items()]
    entries = both[0].merge(both[1], on=["cell", "gene"], validate="one_to_one")
    if entries.empty:
        message = "the two evaluations have no scored value in common; evaluate both with the same held-out cells."
        raise DataError(message)
    arrays = {name: entries[name].to_numpy() for name in entries.columns}
    if not np.array_equal(arrays["A truth"], arrays["B truth"]):
        message = "the two evaluations scored other values of the same entries; evaluate both with the same --halving."
        raise DataError(message)
    scores = Scores(int(entries["gene"].max()) + 1, seed=seed, bootstraps=bootstraps)
    common = {_row(name) for name in one.columns} & {_row(name) for name in two.columns} - {*_KEYS}
    rows = [name for name in entries.columns if _row(name[2:]) in common]
    for fold in np.unique(arrays["A fold"]):
        part = {name: array[arrays["A fold"] == fold] for name, array in arrays.items()}
        cells, cell = np.unique(part["cell"], return_inverse=True)
        predicted = {name: part[f"A {name}"].astype(np.float64) for name in ("gene mean", "gene mean + depth")}
        predicted |= {name: part[name].astype(np.float64) for name in rows}
        scores.add_entries(cells, cell, part["gene"], part["A truth"], predicted, fold=int(fold))
    for name in dict.fromkeys(map(_row, rows)):
        if name not in rows:
            scores.average(name, [each for each in rows if _row(each) == name])
    return scores


def _row(name: str) -> str:
    """Return the row that a column is a part of: that of one of several networks ends with the number of its seed."""
    return name.rpartition("/")[0] if name.count("/") == 2 else name
