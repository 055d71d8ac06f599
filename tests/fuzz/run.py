"""Read thousands of damaged files of every format with sckit and with another reader, and say where sckit is wrong.

    python tests/fuzz/run.py --files 1000 [--format h5ad ...] [--seed 0] [--out report.json]
    python tests/fuzz/run.py --format h5ad --seed 0 --only 17 --folder somewhere

A file is written from a seeded generator with some edits, and read in a process of its own that may crash. A fault is
an error without a sentence, more than ten seconds or a gigabyte, a write outside the folder, content that is run, or
values that another reader does not find. Where the other reader refuses the file, a few lines read the part that sckit
reads, and the values have to be the same; where they refuse it too, that sckit accepts it is a fault. The second form
makes one file again and leaves it in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("tenx3", "tenx1", "mtx", "h5ad", "zarr", "soma", "store", "run", "panel", "targets")
LIBRARIES = ("anndata", "h5py", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "tiledbsoma", "torch", "zarr")
LONGEST_S = 10.0
_STARTING_S = 120.0  # importing the libraries, writing what is written once


_IN_LIBRARY = re.compile(
    r"first\):\s+File .*(_factory.py.* in _open_soma_object|/tiledbsoma/.*|h5py/_hl/(attrs|group|dataset).py.* in \w+"
    r"|h5py/_hl/files.py.* in make_fid|threading.py.* in wait\n(  File .*\n){2}  File .*zarr/core/sync.py.* in sync)\n"
)
"""Where TileDB, HDF5 and zarr may hang although they were asked for nothing large: opening, a part, an attribute."""


class Child:
    """The process that reads; it is started again after the case it died at."""

    def __init__(self, name: str, seed: int, first: int, last: int, folder: Path, *, keep: bool) -> None:
        reading, writing = os.pipe()
        arguments = [str(writing), name, str(seed), str(first), str(last), str(folder), "yes" if keep else "no"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        command = [sys.executable, "-X", "faulthandler", str(HERE / "worker.py"), *arguments]
        self.process = subprocess.Popen(
            command, pass_fds=[writing], env=environment, stdout=subprocess.DEVNULL, stderr=self.errors
        )
        os.close(writing)
        self._reading, self._buffer = reading, b""

    def hear(self, timeout_s: float) -> dict[str, Any] | None:
        """Return what the child says next, None when it has ended. Raises TimeoutError."""
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = os.read(self._reading, 2**16)
            if not piece:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self) -> str:
        """Stop the child and return how it ended, with the last lines it wrote."""
        if self.process.poll() is None:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self._reading)
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        return f"exit {self.process.returncode}: {text[:1000]} ... {text[-500:]}"


def fuzz(name: str, seed: int, numbers: range, folder: Path, *, keep: bool) -> list[dict[str, Any]]:
    """Return one record for each case of a format, in order."""
    records: list[dict[str, Any]] = []
    following = numbers.start
    while following < numbers.stop:
        child = Child(name, seed, following, numbers.stop, folder, keep=keep)
        phase, edits, timeout_s = "starting", [], _STARTING_S
        while True:
            try:
                said = child.hear(timeout_s)
            except TimeoutError:
                child.process.send_signal(signal.SIGUSR1)
                time.sleep(0.5)
                child.process.kill()
                said = {"phase": "hung"}
            if said is None or said["phase"] == "hung":
                break
            phase, edits = said["phase"], said.get("edits", edits)
            timeout_s = {"sckit": LONGEST_S, "done": _STARTING_S}.get(phase, 60.0)
            if phase == "done":
                records.append(said)
                following = int(said["number"]) + 1
        ended = child.end()
        if phase == "starting":
            raise RuntimeError(ended)
        if following >= numbers.stop:
            break
        hung = said is not None
        record = {"number": following, "edits": edits, "accepted": False, "while": phase, "ended": ended}
        if phase not in ("sckit", "other") or ended.startswith("exit 1:"):
            record["fault"] = f"the script itself stopped: {ended}"
        elif hung and phase == "sckit" and _IN_LIBRARY.search(ended) and not any("bomb" in e for e in edits):
            record["crashed"] = "hung"
        elif hung:
            record |= {"fault": "hang"} if phase == "sckit" else {"accepted": True, "other_refuses": "hang"}
        else:
            record |= {"crashed": phase, "accepted": phase == "other"}
        records.append(record)
        following += 1
    return records


def summary(records: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return the counts of one format."""
    accepted = [r for r in records if r["accepted"]]
    instead = [r for r in accepted if "instead" in r]
    faults = [r for r in records if "fault" in r or "other_refuses" in r]
    return {
        "files": len(records),
        "accepted": len(accepted),
        "refused": sum(not r["accepted"] and "crashed" not in r for r in records),
        "crashed in a library": [_short(r, "ended") for r in records if "crashed" in r],
        "faults": [_short(r, "fault", "other_refuses", "traceback", "said") for r in faults],
        "faults by kind": dict(Counter(_kind(r) for r in faults).most_common()),
        "read right where the other reader refuses": dict(Counter(r["instead"] for r in instead).most_common()),
        "the same by edit": dict(Counter(edit for r in instead for edit in _plain(r["edits"])).most_common(60)),
        "seconds": round(seconds, 1),
        "slowest_s": max((r.get("seconds", 0.0) for r in records), default=0.0),
        "peak_extra_bytes": max((r.get("extra_bytes", 0) for r in records), default=0),
    }


def _kind(record: dict[str, Any]) -> str:
    text = record.get("fault") or f"accepted, but the other reader refuses: {record.get('other_refuses')}"
    return text[:90]


def _plain(edits: list[str]) -> list[str]:
    return sorted(edit.split(": ", 1)[-1] for edit in edits)


def _short(record: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {"number": record["number"], "edits": record["edits"]} | {f: record[f] for f in fields if f in record}


def main() -> int:
    """Run all formats that are asked for, one after the other, and report; 1 when there are faults."""
    parser = argparse.ArgumentParser(description="Read damaged files of every format and compare with other readers.")
    parser.add_argument("--files", type=int, default=300, help="files for each format")
    parser.add_argument("--format", choices=NAMES, nargs="+", default=list(NAMES), help="formats, by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="make and read this one file, and leave it in the folder")
    parser.add_argument("--folder", type=Path, help="where files are written; those with a fault stay there")
    parser.add_argument("--out", type=Path, help="file for the report, as JSON")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    one = arguments.only
    numbers = range(arguments.files) if one is None else range(one, one + 1)
    report: dict[str, Any] = {"seed": arguments.seed, "versions": {name: version(name) for name in LIBRARIES}}
    report["formats"] = {}
    n_faults = 0
    for name in arguments.format:
        started = time.perf_counter()
        records = fuzz(name, arguments.seed, numbers, folder, keep=one is not None)
        counts = summary(records, time.perf_counter() - started)
        report["formats"][name] = counts
        n_faults += len(counts["faults"])
        print(_line(name, counts), flush=True)
        if one is not None:
            print(json.dumps(records, indent=1))
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1))
    print(f"{n_faults} faults; what they are of is in {folder}" if n_faults or one is not None else "no faults")
    if arguments.folder is None and not n_faults and one is None:
        shutil.rmtree(folder)
    return int(n_faults > 0)


def _line(name: str, counts: dict[str, Any]) -> str:
    crashed, faults = len(counts["crashed in a library"]), len(counts["faults"])
    refuses = sum(counts["read right where the other reader refuses"].values())
    return (
        f"{name:8} {counts['files']:6,} files {counts['accepted']:6,} accepted {counts['refused']:6,} refused "
        f"{crashed:3} crashed in a library {faults:4} faults {refuses:4} refused by the other reader only "
        f"{counts['seconds']:7.1f} s, slowest {counts['slowest_s']:.2f} s, {counts['peak_extra_bytes'] / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
