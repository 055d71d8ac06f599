"""Kills, full disks and many cells: never a store that opens but is wrong, never more memory than a shard."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.config.prepare import PrepareConfig
from sckit.data.preparation import Preparation
from sckit.data.prepare import prepare
from sckit.data.shards import OpenShard
from sckit.data.store import open_store
from sckit.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def test_an_existing_store_is_replaced_only_when_told(tmp_path, sharded, known_counts, write_h5ad):
    smaller = write_h5ad(tmp_path / "y.h5ad", known_counts(3))
    with pytest.raises(ConfigError, match=r"s\.sckit exists already; .*--overwrite"):
        prepare([smaller], sharded.path)
    assert prepare([smaller], sharded.path, overwrite=True).n_cells == 3
    (tmp_path / "precious").mkdir()
    with pytest.raises(ConfigError, match="precious is not a store"):
        prepare([smaller], tmp_path / "precious", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "s.sckit", "x.h5ad", "y.h5ad"]


def _fails_at_shard(bad):
    close = OpenShard.close

    def fail(self, folder, number):
        if number == bad:
            raise OSError(28, os.strerror(28))
        return close(self, folder, number)

    return fail


def test_a_full_disk_leaves_no_store_and_the_next_call_continues(tmp_path, monkeypatch, write_h5ad, folder_bytes):
    source = write_h5ad(tmp_path / "x.h5ad")
    config = PrepareConfig(cells_per_shard=5)
    monkeypatch.setattr("sckit.data.shards.OpenShard.close", _fails_at_shard(2))
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room"):
        prepare([source], tmp_path / "s.sckit", config=config)
    assert not (tmp_path / "s.sckit").exists()
    monkeypatch.undo()
    seen = []
    prepare([source], tmp_path / "s.sckit", config=config, on_event=lambda _, facts: seen.append(facts))
    assert seen == [{"done": done, "of": 23, "what": "writing"} for done in (15, 20, 23)]
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(tmp_path / "s.sckit") == folder_bytes(tmp_path / "straight.sckit")


@pytest.mark.parametrize("change", ["input", "config"])
def test_work_on_other_inputs_or_settings_is_not_reused(
    tmp_path, monkeypatch, change, known_counts, write_h5ad, folder_bytes
):
    source = write_h5ad(tmp_path / "x.h5ad")
    monkeypatch.setattr("sckit.data.shards.OpenShard.close", _fails_at_shard(2))
    with pytest.raises(DataError, match="No space"):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=5))
    monkeypatch.undo()
    config = PrepareConfig(cells_per_shard=5, min_genes=2 if change == "config" else None)
    if change == "input":
        write_h5ad(source, known_counts()[::-1])
    prepare([source], tmp_path / "s.sckit", config=config)
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(tmp_path / "s.sckit") == folder_bytes(tmp_path / "straight.sckit")


PREPARE_SLOWLY = """
import sys, time
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
prepare([sys.argv[1]], sys.argv[2], config=PrepareConfig(genes=150, cells_per_shard=100),
        on_event=lambda *event: time.sleep(0.02))
"""


def test_a_killed_prepare_continues_byte_for_byte(tmp_path, rng, write_h5ad, folder_bytes):
    counts = rng.poisson(0.2, (4000, 200))
    source = write_h5ad(tmp_path / "x.h5ad", counts)
    config = PrepareConfig(genes=150, cells_per_shard=100)
    out, records = tmp_path / "s.sckit", tmp_path / "s.sckit.partial" / "work"
    process = subprocess.Popen([sys.executable, "-c", PREPARE_SLOWLY, source, out], cwd=ROOT)
    kill_at = int(rng.integers(1, 30))
    deadline_s = time.monotonic() + 60
    while len(list(records.glob("*.npz"))) < kill_at:
        assert process.poll() is None, "prepare ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with pytest.raises(DataError, match="is not a store"):
        open_store(tmp_path / "s.sckit.partial")
    seen = []
    prepare([source], out, config=config, on_event=lambda _, facts: seen.append(facts))
    assert seen[0]["done"] >= kill_at * 100, "finished shards were written again"
    assert {facts["what"] for facts in seen} == {"writing"}, "the genes were chosen again"
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(out) == folder_bytes(tmp_path / "straight.sckit")
    assert not (tmp_path / "s.sckit.partial").exists()


MEASURE = """
import sys
from sckit.config.prepare import PrepareConfig
from sckit.data.preparation import Preparation
from sckit.data.prepare import prepare
report = prepare([sys.argv[1]], sys.argv[2], config=PrepareConfig(cells_per_shard=8192)).report
print(report["peak_rss_bytes"], report["cells"])
"""


def _write_big(path, n_cells, storage):
    """150 counts in each cell over 2,000 genes, without ever building the table in anndata."""
    starts = np.arange(n_cells)[:, None] * 37
    genes = np.sort((starts + np.arange(150) * 13) % 2000, axis=1).ravel().astype(np.int32)
    values = (genes % 5 + 1).astype(np.float32)
    matrix = scipy.sparse.csr_matrix((values, genes, np.arange(0, n_cells * 150 + 1, 150)), shape=(n_cells, 2000))
    obs = pd.DataFrame(index=pd.Index(np.arange(n_cells).astype(str)))
    var = pd.DataFrame(index=[f"gene{i}" for i in range(2000)])
    anndata.AnnData(matrix.asformat(storage), obs=obs, var=var).write_h5ad(path)


@pytest.mark.parametrize("storage", ["csr", "csc"])
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path, storage):
    peaks = {}
    for n_cells in (80_000, 240_000):  # both hold more than the blocks that are read ahead
        path = tmp_path / f"{n_cells}.h5ad"
        _write_big(path, n_cells, storage)
        command = [sys.executable, "-c", MEASURE, path, tmp_path / f"{n_cells}.sckit"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        peaks[n_cells], cells = map(int, result.stdout.split())
        assert cells == n_cells
    added_bytes = 160_000 * 150 * 8  # as the file holds them
    assert peaks[240_000] - peaks[80_000] < added_bytes / 2


class Killed(BaseException):
    """Stands for the end of a process."""


def _kill_before(monkeypatch, name):
    """End the process when a function is called for the first time."""

    def end(*arguments, **options):
        monkeypatch.undo()
        raise Killed

    monkeypatch.setattr(name, end)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("sckit.data.shards.write_json", id="before the plan"),
        pytest.param("sckit.data.preparation.write_table", id="before the tables"),
        pytest.param("sckit.data.preparation.Preparation.publish", id="before it has its name"),
    ],
)
def test_a_kill_at_an_odd_moment_is_gone_on_from(tmp_path, monkeypatch, moment, write_h5ad, folder_bytes):
    source, config = write_h5ad(tmp_path / "x.h5ad"), PrepareConfig(cells_per_shard=5)
    _kill_before(monkeypatch, moment)
    with pytest.raises(Killed):
        prepare([source], tmp_path / "s.sckit", config=config)
    assert (tmp_path / "s.sckit.partial").exists()
    prepare([source], tmp_path / "s.sckit", config=config)
    prepare([source], tmp_path / "straight.sckit", config=config)
    assert folder_bytes(tmp_path / "s.sckit") == folder_bytes(tmp_path / "straight.sckit")


def test_an_interrupt_while_a_shard_is_written_ends_the_reading(tmp_path, monkeypatch, write_h5ad):
    source, real, read = write_h5ad(tmp_path / "x.h5ad"), Preparation._read, []

    def slow(self, vocabulary, start):
        first = next(iter(real(self, vocabulary, start)))
        yield first
        nothing = {name: getattr(first, name)[:0] for name in ("codes", "rows", "genes", "counts", "totals", "n_genes")}
        for _ in range(300):
            time.sleep(0.01)
            read.append(replace(first, indptr=first.indptr[:1], **nothing))
            yield read[-1]

    def interrupted(*_):
        while not read:  # the next shard is being filled
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(Preparation, "_read", slow)
    monkeypatch.setattr("sckit.data.preparation.OpenShard.close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=4))
    assert 1 <= len(read) < 100


def test_a_kill_right_after_a_store_got_its_name_leaves_nothing_to_clear_up(
    tmp_path, monkeypatch, write_h5ad, folder_bytes
):
    source = write_h5ad(tmp_path / "x.h5ad")
    _kill_before(monkeypatch, "sckit.data.preparation.remove_records")
    with pytest.raises(Killed):
        prepare([source], tmp_path / "s.sckit")
    assert open_store(tmp_path / "s.sckit").n_cells == 23
    with pytest.raises(ConfigError, match="exists already"):
        prepare([source], tmp_path / "s.sckit")
    prepare([source], tmp_path / "straight.sckit")
    assert folder_bytes(tmp_path / "s.sckit") == folder_bytes(tmp_path / "straight.sckit")


def test_a_kill_while_a_store_is_replaced_leaves_both_whole(tmp_path, monkeypatch, sharded, known_counts, write_h5ad):
    smaller = write_h5ad(tmp_path / "y.h5ad", known_counts(3))
    _kill_before(monkeypatch, "sckit.data.preparation.flush")
    with pytest.raises(Killed):
        prepare([smaller], sharded.path, overwrite=True)
    assert open_store(sharded.path).n_cells == 3
    assert open_store(tmp_path / "s.sckit.replaced").n_cells == sharded.n_cells
