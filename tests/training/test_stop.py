"""SIGTERM ends training with a checkpoint, from which it goes on to the same end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sckit.config import PretrainConfig, to_toml
from sckit.training.stop import Stop

ROOT = Path(__file__).parents[2]
CONFIG = PretrainConfig(
    mask="uniform", steps=60, batch_tokens=700, min_cells=5, components=3, factors=2, correction_steps=5,
    validate_cells=40, patience=10**6, checkpoint_steps=10**6,
)  # fmt: skip


def last_weights(run):
    (folder,) = (run / "checkpoints").iterdir()
    assert folder.name == "step-00000060"
    return load_file(folder / "state.safetensors")


def test_a_run_that_is_told_to_end_goes_on_to_the_end_of_an_undisturbed_one(simulated, tmp_path):
    (tmp_path / "c.toml").write_text(to_toml(CONFIG))
    # Every command runs in a process of its own with as many threads: with more, sums are rounded differently.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    how: Any = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-m", "sckit", "pretrain"]
    new = [*command, str(simulated.path), "--config", "c.toml", "--name"]
    with subprocess.Popen([*new, "run"], **how) as running:
        lines, until = tmp_path / "runs" / "run" / "metrics.jsonl", time.monotonic() + 200
        while time.monotonic() < until and (not lines.exists() or len(lines.read_text().splitlines()) < 4):
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=100)[1]
    assert running.returncode == 143, said
    assert "stopped after step" in said
    assert "go on with --resume" in said
    run, undisturbed = tmp_path / "runs" / "run", tmp_path / "runs" / "undisturbed"
    assert not (run / "trained.json").exists()
    for words in ([*command, "--resume", str(run)], [*new, "undisturbed"]):
        ended = subprocess.run(words, timeout=200, check=False, **how)
        assert ended.returncode == 0, ended.stderr
    ours, theirs = last_weights(run), last_weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_signal_is_remembered_only_while_training():
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before
