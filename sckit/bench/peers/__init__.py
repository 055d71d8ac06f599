"""What `sckit bench prepare`, `loader` and `train` time: one engine, once, in a process of its own.

A peer may live in an environment without sckit. So this package imports nothing of sckit, except where an engine is
sckit itself, and it is started by the path of this file (see `sckit.bench.race`). The process gets a job as JSON: op,
engine, case, folder, and what else the op needs. It answers with one line of JSON after MARK.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MARK = "sckit-bench "
FINGERPRINTS = "fingerprints.npy"
_WEIGHTS = 2**20

Job = dict[str, Any]
Answer = dict[str, Any]


def main(job: str) -> None:
    """Run a job and print the answer: what the op's `run` returns, or {"missing": ...} where a module is."""
    facts: Job = json.loads(job)
    try:
        answer = importlib.import_module(f"{__name__}.{facts['op']}").run(facts)
    except ImportError as error:
        answer = {"missing": str(error)}
    print(MARK + json.dumps(answer | {"peak_rss_bytes": peak_rss_bytes()}), flush=True)
    os._exit(0)  # loaders with threads may hang at exit


def peak_rss_bytes() -> int:
    """Return the largest memory of this process so far, mapped pages included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process held when it started this one
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def fingerprints(indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return an exact number for each cell by which it is known again: its counts times random weights of genes.

    CSR with any number of columns; int64 [cells].
    """
    weights = np.random.default_rng(9).integers(1, _WEIGHTS, 2**17)
    sums = np.concatenate([[0], np.cumsum(np.asarray(counts).astype(np.int64) * weights[genes])])
    return sums[indptr[1:]] - sums[indptr[:-1]]


def known(folder: Path, found: np.ndarray) -> bool:
    """Return whether these are the fingerprints of all cells of the data in a folder, each once."""
    return bool(np.array_equal(np.sort(found), np.sort(np.load(folder / FINGERPRINTS))))
