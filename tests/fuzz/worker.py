"""One process that makes, reads and judges cases and tells its parent about each; it may die at any of them."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any

import numba.core.caching
import numpy as np

warnings.simplefilter("ignore")

MOST_MEMORY = 2**30
_SAYS = ("Read exceeds file size", "synchronously", "corrupt buffer, data seem", "Reading data past end")
"""What TileDB, HDF5 and numcodecs say where they made room for a damaged length of a short list they were asked for."""
_ADDRESS_SPACE = 12 * 2**30
"""Of the whole process: a request for more fails instead of filling the machine."""

_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"}
_HEARD = {*_WRITES, *_RUNS, "open"}


class Watch:
    """Notes, while it is on, what is written outside a folder and what is run."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or (event in _HEARD and _in_numba()):
            return
        if event in _RUNS:
            self.seen.append(f"{event} {str(args)[:200]}")
        elif event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str | bytes):
                self._check(path, event)
        elif event in _WRITES:
            for path in args[:2]:
                if isinstance(path, str | bytes):
                    self._check(path, event)

    def _check(self, path: str | bytes, event: str) -> None:
        real = os.path.realpath(os.fsdecode(path))
        caches = Path(real).name.startswith("torchinductor_")  # which torch makes once on a machine, when it likes
        if not real.startswith(str(self.folder)) and real != "/dev/null" and not caches:
            self.seen.append(f"{event} outside the folder: {real}")


def _in_numba() -> bool:
    """Return whether Numba is keeping or loading a compiled kernel, which it does where it keeps compiled code."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == numba.core.caching.__file__:
            return True
        frame = frame.f_back
    return False


def generator(seed: int, name: str, number: int) -> np.random.Generator:
    """Return the generator of one case, the same for the same (seed, format, number)."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def main() -> None:
    """Work on the cases that the arguments name; lines of JSON go to the file descriptor of the first argument."""
    descriptor, name, seed, first, last, folder, keep = sys.argv[1:8]
    tell = os.fdopen(int(descriptor), "w", buffering=1)
    measured = _coverage() if os.environ.get("FUZZ_COVERAGE") else None
    from formats import FORMATS

    root = Path(folder).resolve()
    watch = Watch()
    format_ = FORMATS[name](root / "base", int(seed))
    space = _ADDRESS_SPACE * (32 if name == "soma" else 1)  # TileDB reserves a gigabyte for each column
    faulthandler.register(signal.SIGUSR1, all_threads=False)  # says where a case hangs
    resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    _compile(format_, root / "unedited")
    for number in range(int(first), int(last)):
        place = _enter(root / f"{name}-{seed}-{number}")
        result = _one(format_, generator(int(seed), name, number), place, watch, tell, number)
        os.chdir(root)
        if not result.get("fault") and keep == "no":
            shutil.rmtree(place, ignore_errors=True)
        tell.write(json.dumps({"number": number, "phase": "done", **result}) + "\n")
    if measured is not None:
        measured.stop()
        measured.save()


def _enter(place: Path) -> Path:
    """Make an empty folder for a case and work in it."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "tmp").mkdir(parents=True)
    os.chdir(place)
    tempfile.tempdir = str(place / "tmp")
    return place


def _compile(format_: Any, place: Path) -> None:
    """Read a file without edits, if the format makes one, so that no case waits for kernels to be compiled."""
    for number in range(100):
        case = format_.make(generator(0, "unedited", number), _enter(place))
        if not case.edits and not case.options.get("names"):
            case.store = place / "tmp" / "out.sckit"
            format_.ours(case)
            return


def _one(format_: Any, rng: np.random.Generator, place: Path, watch: Watch, tell: Any, number: int) -> dict[str, Any]:
    """Make, read and judge one case."""
    case = format_.make(rng, place)
    if number % 8 == 0 and not case.options.get("names"):
        case.store = place / "tmp" / "out.sckit"
    before = _listing(place)
    tell.write(json.dumps({"number": number, "phase": "sckit", "edits": case.edits}) + "\n")
    result: dict[str, Any] = {"edits": case.edits}
    resident = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    watch.seen, watch.folder = [], place
    started = time.perf_counter()
    ours, faults = None, []
    try:
        ours = format_.ours(case)
        result["accepted"] = True
    except Exception as error:
        from sckit.errors import SckitError

        result["accepted"] = False
        result["said"] = f"{type(error).__name__}: {error}"[:300]
        if not isinstance(error, SckitError):
            faults.append(f"traceback {type(error).__name__}")
            result["traceback"] = traceback.format_exc()[-3000:]
    finally:
        watch.folder = None
    result["seconds"] = time.perf_counter() - started
    result["extra_bytes"] = max(0, _memory("VmHWM") - resident)
    faults += [f"watch: {what}" for what in watch.seen]
    damaged = not any("bomb" in edit for edit in case.edits) and any(says in result.get("said", "") for says in _SAYS)
    if result["extra_bytes"] > MOST_MEMORY and damaged:
        result["crashed"] = "memory"
    elif result["extra_bytes"] > MOST_MEMORY:
        faults.append("memory")
    if (place / "CANARY").exists():
        faults.append("executed content")
    if before != _listing(place):
        faults.append("changed its input")
    if not result["accepted"] and not case.edits:
        faults.append("refused a file without an edit")
    if result["accepted"] and not faults:
        tell.write(json.dumps({"number": number, "phase": "other"}) + "\n")
        try:
            theirs = format_.theirs(case)
        except Exception as error:
            result["other_refuses"] = f"{type(error).__name__}: {error}"[:300]
            if not case.edits:
                faults.append(f"the other reader refuses a file without an edit: {result['other_refuses']}")
        else:
            wrong = format_.fault(ours, theirs, case)
            if getattr(theirs, "instead", None):
                result["instead"] = theirs.instead
            if wrong and case.edits and hasattr(format_, "is_unsteady") and format_.is_unsteady(case):
                result["crashed"] = "reads other values each time"
            elif wrong:
                faults.append(f"wrong: {wrong}")
    if faults:
        result["fault"] = "; ".join(faults)
    return result


def _listing(place: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of change of the files of a case but its temporary ones."""
    files = (file for file in place.rglob("*") if file.is_file() and place / "tmp" not in file.parents)
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def _memory(field: str) -> int:
    """Return a number of bytes that the system keeps about this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _coverage() -> Any:
    import coverage

    data = os.environ["FUZZ_COVERAGE"]
    measured = coverage.Coverage(data, branch=True, include=["*/sckit/data/readers/*"], data_suffix=True)
    measured.start()
    return measured


if __name__ == "__main__":
    main()
