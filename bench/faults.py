"""Start commands twice, end them by signals, and fill the disk under them.

`python bench/faults.py --out bench/results/faults.jsonl` prints, and keeps, a line of JSON for each command.

The second of two processes that write the same files has to be refused in one sentence. Where there is no room, under a
limit on the size of files and on a small disk (as root, who may mount one), a command has to end with one sentence, and
has to go on, once there is room, to the bytes of an undisturbed run.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kills
import torch

from sckit.bench.report import append_rows
from sckit.provenance import measured_on

LIMITS = (0.02, 0.3, 0.9)
"""Shares of the largest file, and of all files, that there is room for."""


def more_commands(inputs: Path) -> list[kills.Command]:
    """Return the commands that write and are not resumed, but begun again."""
    run, train = str(inputs / "runs" / "run"), str(inputs / "train.h5ad")
    evaluate = ["eval", run, "--bootstraps", "20", "--keep-predictions", "--out", "eval"]
    embed = ["embed", run, train, "--out", "embedded.h5ad"]
    simulate = ["simulate", "--cells", "3000", "--genes", "300", "--out"]
    words = {"eval": evaluate, "embed": embed, "simulate": [*simulate, "s.h5ad"]}
    words |= {"simulate 10x": [*simulate, "s.h5"], "simulate store": [*simulate, "s.sckit"]}
    return [kills.Command(name, one, lambda _, one=one: one) for name, one in words.items()]


def sentence(folder: Path) -> str:
    """Return the one sentence that the last command in a folder ended with. Raises SystemExit for anything else."""
    said = kills.log_of(folder).read_text()
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    if len(errors) != 1 or "Traceback" in said or "not foreseen" in said:
        raise SystemExit(f"not one sentence:\n{said}")
    return errors[0]


def holds_a_lock(pid: int) -> bool:
    """Whether a process holds the lock of a file; the file alone is there a moment before."""
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    return any(fields[1] == "FLOCK" and fields[4] == str(pid) for fields in held)


def second_is_refused(command: kills.Command, folder: Path, wanted: dict[str, bytes]) -> bool:
    """Start a command again, and resume it, while it runs; return whether only the first process wrote."""
    kills.empty(folder)
    first = kills.start(command.first, folder)
    while not holds_a_lock(first):
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)  # so that it does not end before the second one looks
    codes = []
    for words in (command.first, command.again(folder)):
        codes.append(kills.wait(kills.start(words, folder)))
        refused = "another process is writing" in sentence(folder)
        codes[-1] = codes[-1] if refused else None
    os.kill(first, signal.SIGCONT)
    ended = kills.wait(first)
    return codes == [1, 1] and ended == 0 and kills.contents(folder) == wanted


def begun(command: kills.Command, folder: Path, seconds: float) -> int | None:
    """Start a command and wait so long after its first file; return its process, None where it has ended by then."""
    kills.empty(folder)
    pid = kills.start(command.first, folder)
    while kills.wait(pid, 0) is None:
        if list(folder.iterdir()):
            return pid if kills.wait(pid, seconds) is None else None
        time.sleep(0.001)
    return None


def ends_on_signals(command: kills.Command, folder: Path, wanted: dict[str, bytes], seconds: float) -> bool:
    """End a command by SIGTERM and by Ctrl-C in the middle; return whether it said so in a line, and went on."""
    good = True
    for number, code, words in ((signal.SIGTERM, 143, "stopped"), (signal.SIGINT, 130, "Interrupted")):
        for share in (0.3, 0.1, *[0.0] * 10):  # again, and earlier, where it had ended before the signal
            pid = begun(command, folder, seconds * share)
            if pid is None:
                continue
            os.kill(pid, number)
            ended, said = kills.wait(pid), kills.log_of(folder).read_text()
            if ended or kills.contents(folder) != wanted:
                break
        else:
            return False
        good &= ended == code and words in said.splitlines()[-1] and "Traceback" not in said
        good &= goes_on(command, folder, wanted)
    return good


def goes_on(command: kills.Command, folder: Path, wanted: dict[str, bytes]) -> bool:
    """Return whether a command that had no room goes on to the files of an undisturbed run, once there is room."""
    kills.end_well(kills.start(command.again(folder), folder), folder)
    return kills.contents(folder) == wanted


def on_full_disks(command: kills.Command, folder: Path, wanted: dict[str, bytes]) -> dict[str, Any]:
    """Run a command where there is no room; return how often it ended with a sentence, and whether it went on.

    The folder holds what the command leaves where nothing disturbs it.
    """
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    counts = {"file_limits": 0, "small_disks": 0, "identical": True, "sentences": set()}
    for share in LIMITS:
        kills.empty(folder)
        if kills.wait(kills.start(command.first, folder, most_bytes=int(share * max(sizes)))) == 0:
            continue
        counts["file_limits"] += 1
        counts["sentences"].add(_cause(sentence(folder)))
        counts["identical"] &= goes_on(command, folder, wanted)
    for share in LIMITS:
        with small_disk(folder, int(share * sum(sizes))) as mounted:
            if not mounted or kills.wait(kills.start(command.first, folder)) == 0:
                continue
            counts["small_disks"] += 1
            counts["sentences"].add(_cause(sentence(folder)))
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            counts["identical"] &= goes_on(command, folder, wanted)
    return counts | {"sentences": sorted(counts["sentences"])}


def _cause(error: str) -> str:
    return error[error.find("(") + 1 : error.find(")")] if "cannot be written (" in error else error


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a disk of a few bytes in an empty folder; hand out whether that was allowed."""
    kills.empty(folder)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def main() -> None:
    """Print a line for each command; exit with 1 where a second process wrote or something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="A command, by default all; may be repeated.")
    parser.add_argument("--out", type=Path, help="Append the lines to this file.")
    arguments = parser.parse_args()
    kills.load_libraries()
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs"
        inputs.mkdir()
        kills.make_inputs(inputs)
        for command in [*kills.commands(inputs), *more_commands(inputs)]:
            if arguments.only and command.name not in arguments.only:
                continue
            folder = Path(scratch) / "trial"
            wanted, seconds = kills.undisturbed(command, folder)
            row = {"command": command.name, **on_full_disks(command, folder, wanted)}
            row["ends_on_signals"] = ends_on_signals(command, folder, wanted, seconds)
            if command.first[0] in ("prepare", "pretrain", "finetune", "eval", "embed"):
                row["second_refused"] = second_is_refused(command, folder, wanted)
            good &= row["identical"] and row["ends_on_signals"] and row.get("second_refused", True)
            row = measured_on("cpu", torch.float32) | row
            print(json.dumps(row), flush=True)
            if arguments.out:
                append_rows({"rows": [row]}, arguments.out)
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
