"""Kill commands at random moments, resume them, and compare what they leave with an undisturbed run.

`python bench/kills.py --kills 100 --out bench/results/kills.jsonl` kills `prepare`, `pretrain` and `finetune` at least
100 times each, by SIGKILL, at moments that are spread evenly over the time of an undisturbed run. After each kill the
command is resumed, and may be killed again until it ends by itself. Then every file has to have the bytes that an
undisturbed run leaves, but for the times in `TIMES`. One line of JSON is printed, and kept, for each command.

Each command is a process of its own, forked from this one, which has the libraries and the compiled kernels already.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sckit.bench.report import append_rows
from sckit.cli.app import app
from sckit.config import PretrainConfig, SimulateConfig, read_toml
from sckit.data.simulate import write_simulation
from sckit.provenance import measured_on
from sckit.training.pretrain import pretrain

LIBRARIES = (
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "numba.typed"),
    *("pyarrow.dataset", "pyarrow.parquet", "rich.progress", "torch._dynamo", "sckit.data.compact"),
    *("sckit.perturbation.finetune", "sckit.report.perturbation"),
)
"""Imported before processes are forked, because most of the time would go by with imports."""

TIMES = {
    "metrics.jsonl": ("wall_s",),
    "state.json": ("elapsed_s", "correction_s"),
    "environment.json": ("time",),
    "finetune.json": ("facts.environment.time",),
}
"""What differs between two runs of the same command: fields of JSON documents, or of their lines, by file."""

FIGURES = (".svg", ".png")
"""Ends of the files that only have to be there, because drawing libraries write their own marks into them."""

TINY = """
mask = "uniform"
steps = 6
checkpoint_steps = 2
batch_tokens = 700
min_cells = 2
components = 2
factors = 1
correction_steps = 2
validate_cells = 20
"""
_PATIENCE_S = 600


@dataclass(frozen=True)
class Command:
    """A command in an empty folder: how it begins, and how it goes on after a kill."""

    name: str
    first: list[str]
    again: Callable[[Path], list[str]]


def commands(inputs: Path) -> list[Command]:
    """Return the commands on the small inputs that `make_inputs` wrote."""
    train, screen, config = (str(inputs / name) for name in ("train.h5ad", "screen.h5ad", "tiny.toml"))
    prepare = ["prepare", train, "--out", "s.sckit", "--genes", "50", "--cells-per-shard", "10"]
    compact = [*prepare, "--layout", "compact"]
    training = ["pretrain", train, "--name", "run", "--config", config]
    finetune = ["finetune", str(inputs / "runs" / "run"), "--data", screen, "--condition", "perturbation"]
    finetune += ["--control", "control", "--target-map", "same", "--train-shares", "0.5,1", "--seeds", "2"]
    finetune += ["--arms", "pretrained,scratch", "--steps", "3", "--batch-tokens", "512", "--control-cells", "2"]
    finetune += ["--bootstraps", "20", "--genes", "30", "--workers", "1", "--out", "out"]
    return [
        Command("prepare", prepare, lambda _: prepare),
        Command("prepare --layout compact", compact, lambda _: compact),
        Command("pretrain", training, _or(training, "runs/run", "config.toml")),
        Command("finetune", finetune, _or(finetune, "out", "work/plan.json", "finetune.json")),
    ]


def _or(first: list[str], place: str, *signs: str) -> Callable[[Path], list[str]]:
    """Resume what is in a place once one of the signs is there, and begin again before that."""
    resume = [first[0], "--resume", place]
    return lambda folder: resume if any((folder / place / sign).exists() for sign in signs) else first


def make_inputs(folder: Path) -> None:
    """Simulate cells to train on, and a screen; train the run that is fine-tuned."""
    torch.set_num_threads(1)
    write_simulation(SimulateConfig(cells=100, genes=60, depth=150, seed=1), folder / "train.h5ad")
    screen = SimulateConfig(cells=240, genes=120, perturbations=8, perturbation_cells=20, seed=2)
    write_simulation(screen, folder / "screen.h5ad")
    (folder / "tiny.toml").write_text(TINY)
    with contextlib.chdir(folder):  # in this process, so that those that are forked have the compiled kernels
        pretrain(["train.h5ad"], read_toml(PretrainConfig, Path("tiny.toml")), name="run")


def start(words: list[str], folder: Path, most_bytes: int | None = None) -> int:
    """Start a command in a folder as a process; what it says goes into a file next to the folder.

    most_bytes: the largest file that it can write.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
        log = os.open(log_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        torch.set_num_threads(1)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        app(words, prog_name="sckit")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def log_of(folder: Path) -> Path:
    """Return the file of what the last command in a folder said."""
    return folder.with_name(f"{folder.name}.said")


def wait(pid: int, seconds: float = _PATIENCE_S) -> int | None:
    """Wait for the end of a process and return its exit code; None where it is not over in time."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def end_well(pid: int, folder: Path) -> None:
    """Wait for the end of a process. Raises SystemExit with what it said where it did not end well."""
    code, said = wait(pid), log_of(folder).read_text()
    if code != 0 and "exists already" not in said:  # a store that was finished when `prepare` was killed
        raise SystemExit(f"exit code {code}:\n{said}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files under a folder by their path, without what is allowed to differ."""
    return {str(path.relative_to(folder)): _comparable(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _comparable(path: Path) -> bytes:
    if path.suffix in FIGURES:
        return b""
    if path.name not in TIMES:
        return path.read_bytes()
    text = path.read_text()
    documents = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    for document in documents:
        for field in TIMES[path.name]:
            *outer, last = field.split(".")
            inner: Any = document
            for name in outer:
                inner = inner[name]
            del inner[last]
    return json.dumps(documents).encode()


def trials(command: Command, scratch: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume a command until it was killed that often; return what happened."""
    draw, begun_s = random.Random(seed), time.monotonic()
    folder = scratch / "trial"
    wanted, first_s = undisturbed(command, folder)
    undisturbed_s = min(first_s, undisturbed(command, folder)[1])  # the first one may have waited for the disk
    counts = {"kills": 0, "while_writing": 0, "runs": 0}
    different: dict[str, int] = {}
    while counts["kills"] < kills:
        for killed, written in _attempts(command, folder, lambda: draw.uniform(0, undisturbed_s)):
            counts["kills"] += killed
            counts["while_writing"] += killed and written
        counts["runs"] += 1
        found = contents(folder)
        for name in found.keys() | wanted.keys():
            if found.get(name) != wanted.get(name):
                different[name] = different.get(name, 0) + 1
    times = {"undisturbed_s": round(undisturbed_s, 2), "wall_s": round(time.monotonic() - begun_s, 1)}
    counts |= times | {"files": len(wanted), "identical": not different, "different": different, "seed": seed}
    return {"command": command.name} | counts


def undisturbed(command: Command, folder: Path) -> tuple[dict[str, bytes], float]:
    """Return what a command leaves when nothing disturbs it, and the seconds that it takes."""
    empty(folder)
    begun_s = time.monotonic()
    end_well(start(command.first, folder), folder)
    return contents(folder), time.monotonic() - begun_s


def _attempts(command: Command, folder: Path, moment: Callable[[], float]) -> Iterator[tuple[bool, bool]]:
    """Run a command to its end; yield for each process whether it was killed, and whether anything was written by then.

    Kills after which nothing new is there do not count against the command: it is resumed as often as it takes.
    """
    empty(folder)
    words = command.first
    while True:
        pid = start(words, folder)
        code = wait(pid, moment())
        if code is None:
            os.kill(pid, signal.SIGKILL)
            code = wait(pid)
        killed = code == -signal.SIGKILL
        if not killed and code != 0 and "exists already" not in log_of(folder).read_text():
            raise SystemExit(f"{' '.join(words)} ended with exit code {code}:\n{log_of(folder).read_text()}")
        yield killed, any(folder.iterdir())
        if not killed:
            return
        words = command.again(folder)


def empty(folder: Path) -> None:
    """Make an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def load_libraries() -> None:
    """Import what most of the time of a command would go by with."""
    for name in LIBRARIES:
        importlib.import_module(name)


def main() -> None:
    """Print a line for each command; exit with 1 where something was not identical."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="Kills of each command, at least.")
    parser.add_argument("--only", action="append", help="A command to kill, by default all; may be repeated.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the moments.")
    parser.add_argument("--out", type=Path, help="Append the lines to this file.")
    arguments = parser.parse_args()
    all_identical = True
    load_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        for command in commands(inputs):
            if arguments.only and command.name not in arguments.only:
                continue
            row = measured_on("cpu", torch.float32) | trials(command, Path(scratch), arguments.kills, arguments.seed)
            all_identical &= row["identical"]
            print(json.dumps(row), flush=True)
            if arguments.out:
                append_rows({"rows": [row]}, arguments.out)
    if not all_identical:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
