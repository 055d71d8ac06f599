"""Time the fits of the linear baselines on a run's training cells: `python bench/baseline_cost.py RUN`.

Each fit runs in a process of its own, in interleaved rounds: the closed forms; the offset baselines with the same
number of components and factors and fixed penalties, without and with the count regression; and the offset baselines
with everything chosen by inner validation. Prints median seconds and the largest resident memory of the process.
"""

import argparse
import json
import multiprocessing
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sckit.data.views import CutView
from sckit.model.closed_forms import fit_closed_forms
from sckit.model.offset_fit import fit_offset_forms
from sckit.provenance import commit, environment, peak_rss_bytes
from sckit.training.baselines import training_cells
from sckit.training.run import open_run

RANK = {"components": 11, "factors": 8}
CASES = ("closed forms", "offset baselines, same rank", "offset baselines, all chosen")


def fit(path: Path, case: str) -> dict[str, Any]:
    """Fit once; return seconds, of which in the count regression, and the peak of resident memory in bytes."""
    run = open_run(path)
    training = training_cells(run, run.store)
    stages: list[tuple[str, float]] = []

    def log(line: str) -> None:
        stages.append((line.partition(": ")[2], time.perf_counter()))

    start = time.perf_counter()
    if case == CASES[0]:
        assert isinstance(training.view, CutView)
        fit_closed_forms(training.view, run.vocabulary, training.cells, seed=run.config.seed, **RANK)
    elif case == CASES[1]:
        fit_offset_forms(training, penalty=30.0, count_penalty=100.0, log=log, **RANK)
    else:
        fit_offset_forms(training, log=log)
    end = time.perf_counter()
    by_counts = sum(end - at for stage, at in stages if stage == "count regression")
    return {"case": case, "seconds": end - start, "count_regression": by_counts, "peak_rss_bytes": peak_rss_bytes()}


def main() -> None:
    """Run the rounds, print the medians and keep every measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for number in range(arguments.rounds + 1):  # the first round compiles the kernels and is dropped
        for case in CASES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(partial(fit, arguments.run, case))
            print(number, row, flush=True)
            rows += [row] if number else []
    of = {case: [row for row in rows if row["case"] == case] for case in CASES}
    before = median(row["seconds"] for row in of[CASES[0]])
    for case, measured in of.items():
        whole = median(row["seconds"] for row in measured)
        ridges = median(row["seconds"] - row["count_regression"] for row in measured)
        memory = max(row["peak_rss_bytes"] for row in measured) / 2**30
        print(
            f"{case:30}  {whole:6.1f} s  {whole / before:5.2f}    without the count regression {ridges:6.1f} s  "
            f"{ridges / before:5.2f}    {memory:.2f} GiB"
        )
    if arguments.out:
        facts = {"run": arguments.run.name, "rank": RANK, "environment": environment(), "rows": rows}
        arguments.out.write_text(json.dumps({"commit": commit()} | facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
