"""A few hundred damaged files of every format, read as the long runs of `run.py` read thousands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run.py")
FILES = 300
FORMATS = ("tenx3", "tenx1", "mtx", "h5ad", "zarr", "soma", "store", "run", "panel", "targets")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_right_or_refused(tmp_path, name):
    report = tmp_path / "report.json"
    command = [sys.executable, str(SCRIPT), "--files", str(FILES), "--seed", "1", "--format", name]
    subprocess.run([*command, "--folder", str(tmp_path), "--out", str(report)], check=False, stdout=subprocess.DEVNULL)
    counts = json.loads(report.read_text())["formats"][name]
    assert counts["faults"] == []
    assert counts["files"] == FILES
    assert min(counts["accepted"], counts["refused"]) > 0.15 * FILES
