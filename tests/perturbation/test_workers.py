"""Worker processes: they change no number, their errors arrive, and none outlives a comparison that was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sckit.errors import DataError
from sckit.perturbation.finetune import finetune

from .planted import planted_config, write_planted

ROOT = Path(__file__).resolve().parents[2]
FEW = {"steps": 2, "batch_tokens": 512, "control_cells": 2, "arms": ("pretrained",)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_planted(folder, 1, loading=1.0)
    return folder


def compare(folder, **changes):
    return finetune(folder / "runs" / "run", folder / "screen.h5ad", planted_config(folder, **FEW | changes))


def test_numbers_do_not_depend_on_the_number_of_workers(world):
    one, two = compare(world), compare(world, workers=2)
    for name in ("rows", "paired", "ceilings", "gap", "repeating"):
        assert one.document()[name] == two.document()[name]
    assert one.facts["trained"] == two.facts["trained"]


def test_an_error_in_a_worker_arrives_as_it_is(world):
    with pytest.raises(DataError, match=r"the gradient is .* lower --lr"):
        compare(world, workers=2, lr=1e30, validation_share=0.0, steps=20)


def group(number):
    """Command lines of the processes of a group that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == number and state != "Z":
                found.append((folder / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_no_worker_outlives_a_comparison_that_was_killed(world, how):
    code = f"""
import signal
from pathlib import Path
from tests.perturbation.test_workers import compare
signal.signal(signal.SIGINT, signal.default_int_handler)
compare(Path({str(world)!r}), workers=2, steps=10**6)
"""
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: sum("LokyProcess" in line for line in group(run.pid)) == 2, 120)
        time.sleep(5)  # so that they train
        os.kill(run.pid, how)
        run.wait(20)
        assert wait_for(lambda: not group(run.pid), 20), group(run.pid)
    finally:
        if group(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
