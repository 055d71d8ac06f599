"""Commands are killed a few times, ended by signals, started twice and left without room; nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a dozen processes, one after the other

ROOT = Path(__file__).parents[2]
DISTURB = """
import json, sys
from pathlib import Path
sys.path.insert(0, "bench")
import faults, kills
scratch = Path(sys.argv[1])
kills.load_libraries()
(scratch / "inputs").mkdir()
kills.make_inputs(scratch / "inputs")
for command in kills.commands(scratch / "inputs"):
    if "compact" not in command.name:
        row = kills.trials(command, scratch, kills=1, seed=1)
        wanted = kills.contents(scratch / "trial")
        row["second_refused"] = faults.second_is_refused(command, scratch / "trial", wanted)
        print(json.dumps(row), flush=True)
prepare = kills.commands(scratch / "inputs")[0]
wanted, seconds = kills.undisturbed(prepare, scratch / "trial")
row = faults.on_full_disks(prepare, scratch / "trial", wanted) | {"command": "full"}
print(json.dumps(row | {"signals": faults.ends_on_signals(prepare, scratch / "trial", wanted, seconds)}))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    command = [sys.executable, "-c", DISTURB, tmp_path_factory.mktemp("scratch")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return {row["command"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune"])
def test_a_killed_command_goes_on_to_the_bytes_of_an_undisturbed_one(rows, command):
    assert rows[command]["kills"] >= 1
    assert rows[command]["different"] == {}
    assert rows[command]["files"] > 4


@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune"])
def test_a_second_process_is_refused(rows, command):
    assert rows[command]["second_refused"]


def test_a_full_disk_leaves_the_command_to_be_given_again(rows):
    assert rows["full"]["file_limits"] >= 2
    assert rows["full"]["identical"]


def test_a_signal_is_one_sentence_and_the_command_goes_on(rows):
    assert rows["full"]["signals"]
