"""Locks: held by one process at a time, and gone with it however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sckit.config import PrepareConfig
from sckit.data.prepare import prepare
from sckit.errors import BusyError, ConfigError
from sckit.locks import locked

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from sckit.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `place`."""
    code = [sys.executable, "-c", HOLD, tmp_path / "place"]
    with subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, holder):
    with (
        pytest.raises(BusyError, match=r"another process is writing .*place; wait until it ends"),
        locked(tmp_path / "place"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "place.lock").exists()
    with locked(tmp_path / "place"):
        assert (tmp_path / "place.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_two_spellings_of_a_place_are_one(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BusyError), locked(tmp_path / "link" / "place"):
        pass
    with locked(tmp_path / "other"):
        pass


def test_an_error_lifts_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "place"):
        raise KeyError
    with locked(tmp_path / "place"):
        pass


def test_a_store_that_is_written_is_not_written_by_another(tmp_path):
    with locked(tmp_path / "s.sckit"), pytest.raises(BusyError):
        prepare([], tmp_path / "s.sckit", config=PrepareConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_stands_in_place_of_the_lock_stays(tmp_path):
    (tmp_path / "place.lock").write_text("notes")
    with pytest.raises(ConfigError, match=r"place\.lock is no lock of sckit"), locked(tmp_path / "place"):
        pass
    assert (tmp_path / "place.lock").read_text() == "notes"
