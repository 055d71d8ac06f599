"""Parts that are joined are the store of a single call, byte for byte; parts that do not fit together are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare, prepare_part
from sckit.data.shards import OpenShard
from sckit.errors import ConfigError, DataError, PartsError

from ..census import write_census

ROOT = Path(__file__).parents[2]
SMALL = {"cells_per_shard": 4}  # so that 32 cells are a segment


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, write_h5ad):
    """Two files with a third between them none of whose cells is kept, 230 cells in all."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(2)
    files = []
    for name, n_cells, assay in (("a", 90, "10x 3' v2"), ("b", 30, "Drop-seq"), ("c", 110, "10x 3' v3")):
        obs = pd.DataFrame({"assay": [assay] * n_cells, "nth": range(n_cells)})
        obs.loc[20:60, "assay"] = "MERFISH"  # whole segments of others
        files.append(write_h5ad(folder / f"{name}.h5ad", rng.poisson(0.7, (n_cells, 30)), obs=obs))
    return files


def joined(inputs, out, config, n_parts, order=None):
    for _ in range(2 if isinstance(config.genes, int) else 1):
        for number in order or range(1, n_parts + 1):
            prepare_part(inputs, out, f"{number}/{n_parts}", config=config)
    return prepare(inputs, out, config=config, merge=True)


@pytest.mark.parametrize(
    ("options", "n_parts"),
    [
        ({}, 1),
        ({"min_counts": 20, "max_counts": 24}, 4),  # most shards lose cells
        ({"genes": 9}, 3),
        ({"layout": "compact", "obs_filter": "nth > 30"}, 2),
    ],
    ids=lambda value: "-".join(value) or "all" if isinstance(value, dict) else str(value),
)
def test_parts_make_the_store_of_a_single_call(tmp_path, inputs, folder_bytes, options, n_parts):
    config = PrepareConfig(**SMALL, **options)
    (tmp_path / "single").mkdir()
    single = prepare(inputs, tmp_path / "single" / "s.sckit", config=config)
    store = joined(inputs, tmp_path / "s.sckit", config, n_parts, order=range(n_parts, 0, -1))
    assert folder_bytes(store.path) == folder_bytes(single.path)
    store.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.sckit", "single"]


def test_cells_of_soma_are_prepared_in_parts(tmp_path, folder_bytes):
    write_census(tmp_path / "x")
    config = PrepareConfig(**SMALL, obs_filter="is_primary_data", genes=20)
    store = joined([tmp_path / "x"], tmp_path / "s.sckit", config, 2)
    single = prepare([tmp_path / "x"], tmp_path / "single.sckit", config=config)
    assert folder_bytes(store.path) == folder_bytes(single.path)


def test_variable_genes_wait_for_the_counts_of_all_parts(tmp_path, inputs):
    config = PrepareConfig(**SMALL, genes=9)

    def part(number):
        return prepare_part(inputs, tmp_path / "s.sckit", f"{number}/3", config=config)["waits_for"]

    assert [part(2), part(1), part(2), part(3), part(3)] == [[1, 3], [3], [3], [], []]
    with pytest.raises(PartsError, match=r"Part 1/3 of .*s\.sckit is not finished; run its command with --part 1/3"):
        prepare(inputs, tmp_path / "s.sckit", config=config, merge=True)


def _interrupted(self, folder, number):
    raise KeyboardInterrupt


def test_a_killed_part_and_a_killed_merge_go_on(tmp_path, inputs, folder_bytes, monkeypatch):
    config, out = PrepareConfig(**SMALL), tmp_path / "s.sckit"
    prepare_part(inputs, out, "1/2", config=config)
    close, seen = OpenShard.close, []
    with monkeypatch.context() as patch:
        patch.setattr(OpenShard, "close", lambda *given: (_interrupted if given[2] == 3 else close)(*given))
        with pytest.raises(KeyboardInterrupt):
            prepare_part(inputs, out, "2/2", config=config)
    prepare_part(inputs, out, "2/2", config=config, on_event=lambda _, facts: seen.append(facts["done"]))
    assert min(seen) > 130, "finished shards were written again"
    with monkeypatch.context() as patch:
        patch.setattr("sckit.data.preparation.write_table", lambda *_: _interrupted(*_, 0))
        with pytest.raises(KeyboardInterrupt):
            prepare(inputs, out, config=config, merge=True)
    store = prepare(inputs, out, config=config, merge=True)
    assert folder_bytes(store.path) == folder_bytes(prepare(inputs, tmp_path / "t.sckit", config=config).path)


def test_parts_that_do_not_fit_together_are_refused(tmp_path, inputs):
    config, out, folder = PrepareConfig(**SMALL), tmp_path / "s.sckit", tmp_path / "s.sckit.parts"

    def merge(**changes):
        prepare(inputs, out, config=PrepareConfig(**SMALL, **changes), merge=True)

    with pytest.raises(PartsError, match=r"parts holds no part of .*; make the parts with --part 1/N to --part N/N"):
        merge()
    for number in (1, 3):
        prepare_part(inputs, out, f"{number}/4", config=config)
    with pytest.raises(PartsError, match=r"parts lacks the part 2/4, 4/4; make it with --part"):
        merge()
    prepare_part(inputs, out, "1/2", config=config)
    with pytest.raises(PartsError, match="holds some cells twice: there are parts of 2 and of 4; remove those"):
        merge()
    shutil.rmtree(folder / "part-0001-of-0002")
    prepare_part(inputs, out, "2/4", config=config)
    prepare_part(inputs, out, "4/4", config=PrepareConfig(**SMALL, min_genes=3))
    with pytest.raises(PartsError, match="part-0004-of-0004 belongs to another store: it was made with other options"):
        merge()
    prepare_part(inputs[::2], out, "4/4", config=config)
    with pytest.raises(PartsError, match="belongs to another store: it was made with other inputs; remove it"):
        merge()
    prepare_part(inputs, out, "4/4", config=config)
    shutil.copytree(folder / "part-0003-of-0004", folder / "x")
    shutil.rmtree(folder / "part-0002-of-0004")
    (folder / "x").rename(folder / "part-0002-of-0004")
    with pytest.raises(PartsError, match="part-0002-of-0004 belongs to another store: it was made with other part"):
        merge()
    prepare_part(inputs, out, "2/4", config=config)
    shard = next((folder / "part-0003-of-0004" / "shards").glob("*.counts.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    with pytest.raises(PartsError, match=r"part-0003-of-0004 is damaged; remove it and run .* with --part 3/4 again"):
        merge()
    shutil.rmtree(folder / "part-0003-of-0004")
    prepare_part(inputs, out, "3/4", config=config)
    merge()


def test_no_more_parts_than_there_are_pieces(tmp_path, inputs):
    with pytest.raises(PartsError, match="--part 1/2: at most 1 can be made of these cells"):
        prepare_part(inputs, tmp_path / "s.sckit", "1/2")
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ConfigError, match=f"--part {wrong} is no part; an example is 2/8"):
            prepare_part(inputs, tmp_path / "s.sckit", wrong)


def test_bad_counts_leave_no_part_behind(tmp_path, inputs, write_h5ad):
    bad = write_h5ad(tmp_path / "bad.h5ad", np.full((40, 30), 0.5))
    config = PrepareConfig(**SMALL)
    with pytest.raises(DataError, match="which is not whole"):
        prepare_part([bad], tmp_path / "s.sckit", "1/2", config=config)
    assert not list((tmp_path / "s.sckit.parts").iterdir())


def test_parts_on_the_command_line(tmp_path, inputs):
    config = tmp_path / "small.toml"
    config.write_text("cells_per_shard = 4\n")
    command = [sys.executable, "-m", "sckit", "prepare", *inputs, "--out", tmp_path / "s.sckit", "--config", config]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=ROOT)

    first = run("--genes", "8", "--part", "1/2")
    assert "part 1/2 has summed up its genes; parts 2 have not" in first.stderr
    assert run("--genes", "8", "--merge").returncode == 2
    assert run("--genes", "8", "--merge", "--part", "1/2").returncode == 2
