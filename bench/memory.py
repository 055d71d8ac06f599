"""Time and memory of every command by number of cells: `python bench/memory.py --cells 10000 100000 --work FOLDER`.

Cells are simulated, prepared, streamed for one epoch, shown by `info`, and used by a short `pretrain`, by `embed` and
by `eval`. Each command runs in a process of its own; its anonymous memory, that is without mapped files, is read from
/proc every few milliseconds. A line for each (command, cells) is added to --out, and --figure draws all lines of it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sckit.bench.report import append_rows
from sckit.provenance import commit, environment

COMMANDS = ("simulate", "prepare", "stream", "info", "pretrain", "embed", "eval")
"""In the order in which they run."""

_STREAM = """
import sys
import numpy as np
from sckit.data.batch import Hiding, Packer
from sckit.data.loader import detected_in, epoch_batches, packed
from sckit.data.store import open_store

store = open_store(sys.argv[1])
cells, vocabulary = np.arange(store.n_cells), np.arange(store.n_genes, dtype=np.int32)
packer = Packer(store, vocabulary, Hiding("uniform"))
lengths = detected_in(store, vocabulary, cells)
parts = [part for _, part in epoch_batches(cells, store.chunks(cells), lengths, 32768, (0,))]
seen = sum(len(batch.cells) for batch in packed(packer, parts, 1))
assert seen == store.n_cells
"""
_FAST = ["--preset", "tiny", "--steps", "2"]


def main() -> None:
    """Measure, print and keep every line; then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--depth", type=float, default=400.0)
    parser.add_argument("--work", type=Path, required=True, help="Folder for the data, which are kept.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.jsonl")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    facts = {"genes": arguments.genes, "commit": commit(), "environment": environment()}
    for cells in arguments.cells:
        sizes = arguments.work, cells, arguments.genes, arguments.depth, min(arguments.cells)
        for command, words in commands(*sizes).items():
            if command in arguments.commands:
                line = {"command": command, "cells": cells} | measure(words) | facts
                print(
                    json.dumps({name: line[name] for name in ("command", "cells", "seconds", "anonymous_bytes")}),
                    flush=True,
                )
                append_rows({"rows": [line]}, arguments.out)
    if arguments.figure:
        draw([json.loads(line) for line in arguments.out.read_text().splitlines()], arguments.figure)


def commands(work: Path, cells: int, genes: int, depth: float, trained: int) -> dict[str, list[str]]:
    """Return the words of each command for this many cells; trained: those of the run that embeds."""
    sckit = [sys.executable, "-m", "sckit"]
    counts, store, runs, run = work / f"{cells}.h5ad", work / f"{cells}.sckit", work / "runs", f"of-{cells}"
    options = work / "pretrain.toml"
    options.write_text("correction_steps = 0\n")
    size = ["--cells", cells, "--genes", genes, "--depth", depth]
    words: dict[str, list[Any]] = {
        "simulate": [*sckit, "simulate", *size, "--out", counts, "--overwrite"],
        "prepare": [*sckit, "prepare", counts, "--assay", "any", "--out", store, "--overwrite"],
        "stream": [sys.executable, "-c", _STREAM, store],
        "info": [*sckit, "info", store],
        "pretrain": [
            *sckit,
            "pretrain",
            store,
            "--name",
            run,
            "--runs",
            runs,
            "--group",
            "library",
            "--config",
            options,
            *_FAST,
        ],
        "embed": [*sckit, "embed", runs / f"of-{trained}", store, "--out", work / "embedded.h5ad"],
        "eval": [*sckit, "eval", runs / run, "--mask", "0.15"],
    }
    return {name: list(map(str, command)) for name, command in words.items()}


def measure(words: list[str]) -> dict[str, Any]:
    """Run a command; return its seconds, its processor seconds and the most anonymous memory that it held."""
    start, peak = time.perf_counter(), 0
    processor_s = 0.0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak, processor_s = max(peak, _anonymous(process.pid)), max(processor_s, _processor_s(process.pid))
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    if process.returncode:
        assert process.stderr
        message = f"{' '.join(words)} failed: {process.stderr.read()[-500:]}"
        raise RuntimeError(message)
    return {"seconds": round(seconds, 2), "processor_s": round(processor_s, 2), "anonymous_bytes": peak}


def _anonymous(process: int) -> int:
    """Return the anonymous memory of a process in bytes, 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)


def _processor_s(process: int) -> float:
    """Return the processor time of a process so far, 0 once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100  # ticks


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw time for each cell, and anonymous memory, by number of cells."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for command in COMMANDS:
        last = {line["cells"]: line for line in lines if line["command"] == command}  # of several the last
        cells = sorted(last)
        if cells:
            left.plot(cells, [1e6 * last[c]["processor_s"] / c for c in cells], "o-", label=command)
            right.plot(cells, [last[c]["anonymous_bytes"] / 2**20 for c in cells], "o-", label=command)
    left.set(xscale="log", yscale="log", xlabel="cells", ylabel="processor time per cell, µs")
    right.set(xscale="log", xlabel="cells", ylabel="anonymous memory, MiB", ylim=(0, 2048))
    right.axhline(2000 * 1e6 / 2**20, color="0.6", linewidth=0.8, linestyle=":")
    right.legend(fontsize=7, ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
