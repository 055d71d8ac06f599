"""One writer at a time: a lock next to what a command writes, which the system lifts when the process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sckit.errors import BusyError, ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder while the block runs: an empty file `path`.lock next to it.

    However the process ends, it holds nothing afterwards; a file that a kill leaves behind locks nothing. Where a file
    system has no locks, as some network file systems, no process is refused. Raises BusyError, at once, where another
    process holds the lock, ConfigError where another file has this name, and OSError where the file cannot be made.
    """
    path, place = path.resolve(), _place(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(place)
    if descriptor is None:
        raise BusyError(f"another process is writing {path}; wait until it ends, or choose another place.")
    if os.fstat(descriptor).st_size:
        os.close(descriptor)
        raise ConfigError(f"{place} is no lock of sckit, but stands in its place; move it, or choose another name.")
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(descriptor)


def is_marked(path: Path) -> bool:
    """Whether there is a lock, held or left behind by a kill."""
    return _place(path).exists()


def _place(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f"{path.name}.lock")


def _locked(place: Path) -> int | None:
    """Open and lock a file, which is made if needed; None where another process has the lock."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # no locks here
            return descriptor
        # Its holder may have removed the file between these two calls; then the lock is of a file without a name.
        if place.exists() and os.path.samestat(os.fstat(descriptor), place.stat()):
            return descriptor
        os.close(descriptor)
