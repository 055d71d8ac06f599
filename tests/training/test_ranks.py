"""Several processes train as one does: the same batches, the same gradients, and an end that is told when one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sckit.data.batch import Hiding, Packer
from sckit.data.loader import Parts
from sckit.training.feed import Feed
from sckit.training.ranks import Ranks

ROOT = Path(__file__).parents[2]
OPTIONS = ["--mask", "uniform", "--min-cells", "5", "--batch-tokens", "700"]
TOML = "correction_steps = 5\ncomponents = 3\nfactors = 2\nvalidate_cells = 40\n"
TRAIN = """
import os, sys, torch
import sckit.training.trainer as trainer
from sckit.config import PretrainConfig
from sckit.training.pretrain import pretrain
from sckit.training.sharding import whole

data, runs, name, optimisers, accumulate, out, shard = sys.argv[1:]
kept = {}

class Watched(trainer.Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        if optimiser == "sgd":
            self.optimiser = torch.optim.SGD(self.network.parameters(), lr=0.05)

    def fit(self):
        done = super().fit()
        kept["weights"] = {n: whole(p.detach()) for n, p in self.network.named_parameters()}
        return done

def take_step(model, optimiser, losses, **options):
    def once():
        for loss in losses:
            yield loss
        named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
        kept.setdefault("gradients", {n: whole(gradient).clone() for n, gradient in named})
    total = real(model, optimiser, once(), **options)
    kept["losses"].append(float(total))
    return total

real, trainer.take_step = trainer.take_step, take_step
import sckit.training.pretrain as module
module.Trainer = Watched
config = PretrainConfig(
    mask="uniform", steps=20, batch_tokens=700, accumulate=int(accumulate), min_cells=5, components=3, factors=2,
    correction_steps=0, validate_cells=40, patience=10**6, clip=1e9, visible_share=0.25, shard=shard == "shard",
)
rank = os.environ.get("RANK", "0")
for optimiser in optimisers.split(","):
    kept = {"losses": []}
    pretrain(data, config, runs=runs, name=f"{name}-{optimiser}")
    torch.save(kept, f"{out}-{optimiser}-{rank}.pt")
"""


def torchrun(*words, processes=2, **options):
    """The command that starts several processes, each with one thread."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*start, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        **options,
    )


def feed_of(simulated, rank, count, accumulate=1):
    """The feed of one process over 100 cells in 13 batches."""
    cells = np.random.default_rng(0).permutation(100)
    vocabulary = np.arange(simulated.n_genes, dtype=np.int32)

    def batches_of(epoch: int) -> Parts:
        mixed = np.random.default_rng(epoch).permutation(cells)
        return [(None, part) for part in np.array_split(mixed, 13)]

    def packer_of(epoch, context):
        return Packer(simulated, vocabulary, Hiding("uniform", 0, epoch), context)

    return Feed(batches_of, packer_of, accumulate, 0.25, Ranks(rank, count), torch.device("cpu"))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_over_an_epoch_no_cell_comes_twice_and_none_is_missing(simulated, count, accumulate):
    feeds = [feed_of(simulated, rank, count, accumulate).steps(0, 0) for rank in range(count)]
    seen, place = [], (0, 0)
    while place[0] == 0:
        steps = [next(feed) for feed in feeds]
        assert len({(step.epoch, step.next_batch, len(step.batches)) for step in steps}) == 1
        seen += [share.batch.cells for step in steps for share in step.batches if share.is_own]
        place = steps[0].epoch, steps[0].next_batch
    assert place == (1, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(100))


def test_steps_come_in_order_from_several_threads(simulated, monkeypatch):
    """As they are made for a GPU."""
    monkeypatch.setattr("sckit.training.feed._threads", lambda device: 3)
    many = feed_of(simulated, 0, 1).steps(0, 4)
    monkeypatch.setattr("sckit.training.feed._threads", lambda device: 1)
    for step, alone in zip(islice(many, 30), feed_of(simulated, 0, 1).steps(0, 4), strict=False):
        assert (step.epoch, step.next_batch) == (alone.epoch, alone.next_batch)
        for one, other in zip(step.batches, alone.batches, strict=True):
            assert one.batch.context == other.batch.context
            np.testing.assert_array_equal(one.batch.cells, other.batch.cells)
            np.testing.assert_array_equal(one.batch.hidden, other.batch.hidden)
            assert torch.equal(one.tokens.values, other.tokens.values)


def test_training_goes_on_with_another_number_of_processes_where_it_was(simulated):
    three = [feed_of(simulated, rank, 3).steps(0, 0) for rank in range(3)]
    steps = [next(feed) for feed in three for _ in range(2)]
    seen = [share.batch.cells for step in steps for share in step.batches]
    assert {step.next_batch for step in steps} == {3, 6}
    two = [feed_of(simulated, rank, 2).steps(0, 6) for rank in range(2)]
    while True:
        steps = [next(feed) for feed in two]
        seen += [share.batch.cells for step in steps for share in step.batches if share.is_own]
        if steps[0].epoch == 1:
            break
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(100))


def test_the_context_and_what_is_hidden_do_not_depend_on_the_processes(simulated):
    alone = [next_share for step in take(feed_of(simulated, 0, 1).steps(0, 0), 6) for next_share in step.batches]
    pairs = zip(*(take(feed_of(simulated, rank, 2).steps(0, 0), 3) for rank in range(2)), strict=True)
    together = [share for steps in pairs for step in steps for share in step.batches]
    for one, other in zip(alone, together, strict=True):
        assert one.batch.context == other.batch.context
        np.testing.assert_array_equal(one.batch.hidden, other.batch.hidden)
    assert {share.batch.context for share in alone} == {"detected", "visible"}


def take(items, count):
    return [next(items) for _ in range(count)]


@pytest.fixture(scope="module")
def alone(simulated, tmp_path_factory):
    """Folder with what one process kept that accumulates over two batches."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "train.py").write_text(TRAIN)
    words = [folder / "train.py", simulated.path, folder / "runs", "one", "sgd,adamw", "2", folder / "one", "whole"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("shard", ["whole", "shard"])
def test_two_processes_take_the_steps_of_one_that_accumulates(simulated, tmp_path, alone, shard):
    words = [simulated.path, tmp_path / "runs", "two", "sgd,adamw", 1, tmp_path / "two", shard]
    two = torchrun(alone / "train.py", *words)
    output = two.communicate(timeout=280)[0]
    assert two.returncode == 0, output
    for optimiser in ("sgd", "adamw"):
        one = torch.load(alone / f"one-{optimiser}-0.pt")
        first, second = (torch.load(tmp_path / f"two-{optimiser}-{rank}.pt") for rank in (0, 1))
        for name, gradient in one["gradients"].items():
            largest = gradient.abs().max()
            assert (first["gradients"][name] - gradient).abs().max() <= 1e-6 * largest + 1e-12, name
        for name, weight in one["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name]), name
            if optimiser == "sgd":
                assert (first["weights"][name] - weight).abs().max() <= 1e-6 * max(weight.abs().max(), 1e-3), name
        both = np.mean([first["losses"], second["losses"]], axis=0)  # each has its share of the loss, times two
        np.testing.assert_allclose(both, one["losses"], rtol=1e-4)


def test_a_process_that_dies_ends_the_training_with_a_sentence_and_it_can_go_on(simulated, tmp_path):
    (tmp_path / "c.toml").write_text(TOML)
    words = ["-m", "sckit", "pretrain"]
    begin = [
        simulated.path,
        "--name",
        "run",
        "--shard",
        "--config",
        "c.toml",
        "--steps",
        4000,
        "--checkpoint-steps",
        5,
        *OPTIONS,
    ]
    running = torchrun(*words, *begin, cwd=tmp_path)
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    until = time.monotonic() + 200
    while not list(checkpoints.glob("step-*[05]")) and time.monotonic() < until and running.poll() is None:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True)
    workers = sorted(map(int, children.stdout.split()))
    os.kill(workers[-1], signal.SIGKILL)
    output = running.communicate(timeout=120)[0]
    assert running.returncode != 0
    assert "another process of this training has ended; go on with the same torchrun and --resume" in output, output
    config = tmp_path / "runs" / "run" / "config.toml"
    reached = max(int(path.name[5:]) for path in checkpoints.glob("step-*[0-9]"))
    text = config.read_text()
    assert "shard = true" in text
    # What a split network leaves is whole: it goes on in another number of processes, without being split.
    config.write_text(text.replace("steps = 4000", f"steps = {reached + 7}").replace("shard = true", "shard = false"))
    again = torchrun(*words, "--resume", "run", "--json", processes=3, cwd=tmp_path)
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 0, output
    assert output.count(f"resuming {tmp_path}/runs/run after step {reached}") == 1
    document = json.loads(next(line for line in output.splitlines() if line.startswith('{"command"')))
    assert document["best"]["step"] <= reached + 7
    assert load_file(tmp_path / "runs" / "run" / "model.safetensors")


def test_an_error_of_one_process_is_told_once(tmp_path):
    wrong = torchrun("-m", "sckit", "pretrain", "nowhere.h5ad", cwd=tmp_path)
    output = wrong.communicate(timeout=120)[0]
    assert output.count("Error: nowhere.h5ad does not exist") == 1, output
    assert not list((tmp_path / "runs").glob("pretrain*"))
    folds = torchrun("-m", "sckit", "pretrain", "--folds", 3, cwd=tmp_path)
    output = folds.communicate(timeout=120)[0]
    assert output.count("start it without torchrun") == 1, output
