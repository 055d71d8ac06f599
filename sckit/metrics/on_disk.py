"""Rows of numbers in an unnamed temporary file, so that memory does not grow with what is scored."""

import tempfile
import weakref

import numpy as np

from sckit.errors import DataError


class RowsOnDisk:
    """Rows of float64 that are appended, and read through a memory map; the file goes when the process ends."""

    def __init__(self) -> None:
        # Without a buffer, which would be written again, and fail again, when the file is closed.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with this object)
        self._columns = 0
        weakref.finalize(self, self._file.close)

    def append(self, rows: np.ndarray) -> None:
        """Add rows [n, columns]. Raises `DataError` where the disk is full."""
        self._columns = rows.shape[1]
        try:
            self._file.seek(0, 2)
            rest = memoryview(np.ascontiguousarray(rows, np.float64).tobytes())
            while len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise DataError(
                f"sums of cells cannot be written to {tempfile.gettempdir()} ({error.strerror or error}); set TMPDIR "
                "to a larger disk and run the command again."
            ) from error

    def all(self) -> np.ndarray:
        """Return all rows [n, columns], mapped."""
        if not self._file.seek(0, 2):
            return np.zeros((0, self._columns))
        return np.asarray(np.memmap(self._file, np.float64, "r")).reshape(-1, self._columns)
