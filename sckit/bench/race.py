"""`sckit bench prepare`, `loader` and `train`: sckit, peers and floors in interleaved rounds.

Every timing is a process of its own, under the Python that has the peer. A first process of each engine checks that it
gives the right counts; an engine that is not installed, or gives others, is left out with a sentence.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from sckit.bench import peers
from sckit.bench.harness import OnEvent, Row
from sckit.bench.peers.prepare import FILES
from sckit.errors import SckitError

_START = """\
import importlib.util, sys
spec = importlib.util.spec_from_file_location("peers", sys.argv[1])
sys.modules["peers"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.main(sys.argv[2])
"""
_LIMIT_S = 1800


class Engine(NamedTuple):
    """What is timed."""

    name: str  # in the module of the op in `peers`
    role: (
        str  # "sckit", "peer": what a user would pick instead, or "floor": what the format's library or the disk can do
    )
    cases: tuple[str, ...]


ENGINES = {
    "prepare": (
        Engine("sckit", "sckit", ("10x h5", "h5ad", "SOMA")),
        Engine("scanpy", "peer", ("10x h5", "h5ad")),
        Engine("annbatch", "peer", ("h5ad",)),
        Engine("bionemo-scdl", "peer", ("h5ad",)),
        Engine("tiledbsoma to_anndata", "peer", ("SOMA",)),
        Engine("h5py read", "floor", ("10x h5", "h5ad")),
        Engine("tiledbsoma read", "floor", ("SOMA",)),
    ),
    "loader": tuple(
        Engine(name, role, ("an epoch",))
        for name, role in (
            ("sckit compact", "sckit"),
            ("sckit mapped", "sckit"),
            ("annbatch", "peer"),
            ("scdataset", "peer"),
            ("bionemo-scdl", "peer"),
            ("tiledbsoma-ml", "peer"),
            ("AnnData backed", "peer"),
            ("memory map", "floor"),
        )
    ),
    "train": tuple(
        Engine(name, role, ("median 700 genes", "median 250 genes"))
        for name, role in (
            ("sckit", "sckit"),
            ("sckit, batches in memory", "floor"),
            ("packed SDPA", "peer"),
            ("nn.TransformerEncoder", "peer"),
            ("scGPT layout", "peer"),
        )
    ),
}


def race(
    op: str,
    facts: dict[str, Any],
    *,
    names: Sequence[str] = (),
    pythons: dict[str, str],
    rounds: int,
    on_event: OnEvent = lambda _kind, _facts: None,
) -> dict[str, Any]:
    """Time the engines of an op, all by turns in each round; return {"rows", "left_out", "orders"}.

    facts: of the jobs, see `peers`; names: of the engines, by default all; pythons: the Python of an engine, by name.
    Raises SckitError where sckit itself fails or gives wrong counts.
    """
    there = (lambda case: Path(facts["folder"], FILES[case]).exists()) if op == "prepare" else lambda case: True
    chosen = [
        (case, each)
        for each in ENGINES[op]
        for case in each.cases
        if there(case) and each.name in (names or [each.name])
    ]
    left_out, orders, answers = {}, {}, {}
    done, of = 0, len(chosen) * (rounds + 1)
    for number in range(-1, rounds):  # the first is the check
        for case, engine in chosen:
            on_event("progress", {"done": done, "of": of, "what": f"{case}, {engine.name}"})
            done += 1
            if engine.name in left_out:
                continue
            job = facts | {"op": op, "case": case, "engine": engine.name, "check": number < 0}
            answer = _answer(pythons.get(engine.name, sys.executable), job)
            if problem := _problem(engine.name, answer):
                if engine.role == "sckit":
                    raise SckitError(f"{engine.name} ({op}, {case}) {problem}; no speed is reported.")
                left_out[engine.name] = problem
            elif number < 0:
                orders |= (
                    {engine.name: {key: answer[key] for key in ("donor_bits", "near")}} if "near" in answer else {}
                )
            else:
                answers.setdefault((case, engine), []).append(answer)
    rows = [_row(op, case, each, found) for (case, each), found in answers.items() if each.name not in left_out]
    return {"rows": rows, "left_out": left_out, "orders": orders}


def _answer(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; where it ends without an answer, return {"failed": why}."""
    command = [python, "-c", _START, str(peers.__file__), json.dumps(job)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end within {_LIMIT_S} seconds"}
    except OSError as error:
        return {"failed": f"could not be started by {python} ({error.strerror})"}
    for line in reversed(result.stdout.splitlines()):
        if line.startswith(peers.MARK):
            return json.loads(line.removeprefix(peers.MARK))
    said = [line for line in result.stderr.splitlines() if line.strip()]
    return {"failed": f"ended with exit code {result.returncode} ({said[-1].strip() if said else 'it said nothing'})"}


def _problem(name: str, answer: dict[str, Any]) -> str:
    if "missing" in answer:
        return f"is not installed ({answer['missing']}); give its Python with --peer-python {name}=PATH"
    if "failed" in answer:
        return answer["failed"]
    return "" if answer.get("right", True) else "gives other counts than the data has"


def _row(op: str, case: str, engine: Engine, answers: list[dict[str, Any]]) -> Row:
    seconds = median(answer["seconds"] for answer in answers)
    speeds = {
        f"{short}_per_s": median(answer[name] / answer["seconds"] for answer in answers) if name in answers[0] else None
        for short, name in (("nnz", "nonzeros"), ("cells", "cells"), ("tokens", "tokens"))
    }
    shares = [answer["share_of_peak"] for answer in answers if "share_of_peak" in answer]
    row = {"op": op, "case": case, "engine": engine.name, "role": engine.role} | speeds
    row |= {"share_of_peak": median(shares) if shares else None}
    return row | {"peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in answers), "median_s": seconds}


def print_race(document: dict[str, Any], console: Console) -> None:
    """Print the rows, what was left out, and how random the orders were."""
    table = Table(title=document["command"])
    for column in ("case", "engine", "role"):
        table.add_column(column)
    for column in ("million nonzeros/s", "cells/s", "of peak", "MB", "s", "speed / sckit's"):
        table.add_column(column, justify="right")
    rows, own = document["rows"], {}
    for row in rows:
        if row["role"] == "sckit":
            own.setdefault(row["case"], row["nnz_per_s"])
    for row in sorted(rows, key=lambda row: (row["case"], row["median_s"])):
        share = f"{row['share_of_peak']:.0%}" if row["share_of_peak"] is not None else ""
        ratio = f"{row['nnz_per_s'] / own[row['case']]:.2f}" if row["case"] in own else ""
        figures = f"{row['nnz_per_s'] / 1e6:,.3g}", f"{row['cells_per_s']:,.0f}", share
        memory = f"{row['peak_rss_bytes'] / 1e6:,.0f}", f"{row['median_s']:.3g}", ratio
        style = "bold" if row["role"] == "sckit" else None
        table.add_row(row["case"], row["engine"], row["role"], *figures, *memory, style=style)
    console.print(table)
    for name, reason in document["left_out"].items():
        console.print(f"{name} {reason}.", highlight=False)
    for name, facts in document["orders"].items():
        console.print(
            f"{name}: {facts['donor_bits']:.2f} of 4 bits, {facts['near']:.0%} of neighbours near", highlight=False
        )
