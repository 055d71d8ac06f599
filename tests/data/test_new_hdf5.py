"""A full disk under an HDF5 file is an OSError, and the process goes on; a signal waits for the end of a write."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from sckit.data import new_hdf5 as module
from sckit.data.new_hdf5 import new_hdf5

ROOT = Path(__file__).parents[2]
WRITE = """
import resource, sys
from pathlib import Path
import numpy as np
from sckit.data.new_hdf5 import new_hdf5
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    with new_hdf5(Path(sys.argv[1])) as file:
        for number in range(50):
            file.create_dataset(f"group/{number}", data=np.arange(3000), compression="gzip", maxshape=(None,))
            file[f"group/{number}"].resize((4000,))
            file[f"group/{number}"][3000:] = number
except OSError as error:
    print(error.strerror, error.filename)
"""


@pytest.mark.parametrize("limit", [1000, 20_000, 150_000])
def test_a_full_disk_is_an_error_and_no_crash(tmp_path, limit):
    command = [sys.executable, "-c", WRITE, tmp_path / "x.h5", str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"File too large {tmp_path / 'x.h5'}\n"
    assert done.stderr == ""


def test_what_is_written_can_be_read_and_other_errors_stay_as_they_are(tmp_path):
    with new_hdf5(tmp_path / "x.h5") as file:
        file["a/b"] = np.arange(5)
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.asarray(file["a/b"]).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError), new_hdf5(tmp_path / "y.h5"):
        raise KeyError


def test_a_signal_in_a_write_is_heard_after_it(tmp_path, monkeypatch):
    """HDF5 would drop the exception together with what was to be written."""
    signals = [signal.SIGINT]

    def interrupted(data):
        if signals:
            signal.raise_signal(signals.pop())
        return memoryview(data)

    reached = []

    def write():
        with new_hdf5(tmp_path / "x.h5") as file:
            file["x"] = np.arange(100_000)
            monkeypatch.setattr(module, "memoryview", interrupted, raising=False)
            file.flush()
            reached.append("the end of the write")
            time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["x"], np.arange(100_000))
