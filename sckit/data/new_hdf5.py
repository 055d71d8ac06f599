"""Writing an HDF5 file so that a full disk is an error like any other, and a signal damages nothing."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import h5py


class _Writer(io.FileIO):
    """A file that remembers the first write that failed, and takes it and all that come after it into memory.

    HDF5 must not hear of it: where it cannot write all that closing a file takes, the process crashes at its end.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failed: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []  # where it belongs, and the bytes

    def write(self, data) -> int:  # type: ignore[override]
        at, view = self.tell(), memoryview(data).cast("B")
        rest = view
        try:
            while len(rest) and self.failed is None:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.failed = error
        if self.failed is not None:
            self._remember(at, view)
        return len(view)

    def readinto(self, buffer) -> int:  # type: ignore[override]
        at, view = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        if self.failed is None:
            return count
        view[count:] = bytes(len(view) - count)
        for start, data in self._unwritten:
            first, last = max(start, at), min(start + len(data), at + len(view))
            if first < last:
                view[first - at : last - at] = data[first - start : last - start]
        self.seek(at + len(view))
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self.failed is None:
                return super().truncate(size)
        except OSError as error:
            self.failed = error
        return size or 0

    def _remember(self, at: int, data: memoryview) -> None:
        self._unwritten.append((at, bytes(data)))
        self.seek(at + len(data))


_CODES = {method.__code__ for method in vars(_Writer).values() if callable(method)}


@contextmanager
def _signals_later() -> Iterator[None]:
    """Send signals again that come while HDF5 calls the writer.

    HDF5 drops what their handlers raise there, and with it what was to be written.
    """
    if threading.current_thread() is not threading.main_thread():  # which is the only one that handles signals
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: FrameType | None) -> None:
        handler, caller = before[signal.Signals(number)], frame
        while caller is not None and caller.f_code not in _CODES:
            caller = caller.f_back
        if caller is not None:
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        elif callable(handler):
            handler(number, frame)

    heard = [number for number, handler in before.items() if callable(handler)]
    for number in heard:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file for writing, and close it. Raises OSError where it could not be written."""
    with _signals_later(), _Writer(path) as writer:
        try:
            with h5py.File(writer, "w") as file:
                yield file
        finally:  # an error that came of the failed write stays as the context of this one
            if writer.failed is not None:
                raise OSError(writer.failed.errno, os.strerror(writer.failed.errno or 0), str(path)) from writer.failed
