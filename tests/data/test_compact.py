"""The compact layout holds what the mapped one holds, in less space, and gives no other counts when it is damaged."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data.compact import CompactShard
from sckit.data.prepare import prepare
from sckit.data.store import describe, open_store
from sckit.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden"
CELLS, GENES = 150, 700


@pytest.fixture(scope="module")
def counts():
    generator = np.random.default_rng(3)
    counts = generator.poisson(0.2, (CELLS, GENES)) * generator.integers(1, 30, (CELLS, GENES))
    counts[:, 300:620] *= generator.random((CELLS, 320)) < 0.002  # gaps of more than 255 genes
    counts[77, 5], counts[149, 699] = 70_000, 300
    counts[64] = 0
    counts[64, 1] = 1
    return counts


@pytest.fixture(scope="module")
def both(tmp_path_factory, counts, write_h5ad):
    """The same counts in both layouts, in shards of 100 and 50 cells."""
    folder = tmp_path_factory.mktemp("layouts")
    source = write_h5ad(folder / "x.h5ad", counts)
    stores = [
        prepare([source], folder / f"{layout}.sckit", config=PrepareConfig(layout=layout, cells_per_shard=100))
        for layout in ("mapped", "compact")
    ]
    assert [len(store.manifest["shards"]) for store in stores] == [2, 2]
    return stores


@pytest.fixture
def compact(both, tmp_path):
    return open_store(shutil.copytree(both[1].path, tmp_path / "compact.sckit"))


@pytest.mark.parametrize(
    "cells", [[], [0], [149, 0, 63, 64, 65, 64], range(150), range(99, 101), range(60, 130)], ids=str
)
def test_both_layouts_give_the_same_cells(both, cells):
    for of_mapped, of_compact in zip(*(store.rows(np.array(cells, np.int64)) for store in both), strict=True):
        np.testing.assert_array_equal(of_compact, of_mapped)
        assert of_compact.dtype == of_mapped.dtype


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 64), (10, 70), (63, 100), (90, 120), (0, 150), (150, 150)])
def test_both_layouts_give_the_same_blocks(both, start, stop):
    for of_mapped, of_compact in zip(*(store.block(start, stop) for store in both), strict=True):
        np.testing.assert_array_equal(of_compact, of_mapped)


def test_a_chunk_lies_in_one_shard(both):
    for store in both:
        assert store.chunks(np.array([0, 63, 64, 99, 100, 149])).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("room", [4_500, 8_000, 2**25], ids=["one-chunk", "two-chunks", "all"])
def test_threads_share_what_is_decoded(both, compact, room, monkeypatch):
    store, decoded = open_store(compact.path), []
    store.shards.decoded.room = room  # chunks have 2,000 to 4,500 entries
    whole = CompactShard.decode
    monkeypatch.setattr(CompactShard, "decode", lambda self, chunk: decoded.append(chunk) or whole(self, chunk))
    generator = np.random.default_rng(1)
    asked = [generator.integers(0, CELLS, 40) for _ in range(30)]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(store.rows, asked))
    for cells, csr in zip(asked, found, strict=True):
        for of_mapped, of_compact in zip(both[0].rows(cells), csr, strict=True):
            np.testing.assert_array_equal(of_compact, of_mapped)
    decoded.clear()
    for cells in asked:
        store.rows(cells)
    assert not decoded if room > 8_000 else len(decoded) > 3  # there are three chunks


def test_a_call_that_was_interrupted_leaves_the_next_one_its_chunks(both, compact, monkeypatch):
    with monkeypatch.context() as interrupted:
        interrupted.setattr(CompactShard, "decode", lambda _self, _chunk: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compact.rows(np.arange(150))
    np.testing.assert_array_equal(compact.rows(np.arange(150))[2], both[0].rows(np.arange(150))[2])


def test_a_call_for_many_cells_is_cut(both, compact, monkeypatch):
    monkeypatch.setattr("sckit.data.stored_shards._TOGETHER", 3_000)  # chunks have 2,000 to 4,500 entries
    cells = np.random.default_rng(0).permutation(150)
    for of_mapped, of_compact in zip(both[0].rows(cells), compact.rows(cells), strict=True):
        np.testing.assert_array_equal(of_compact, of_mapped)


@pytest.mark.parametrize("bit", range(40))
def test_no_flipped_bit_of_the_largest_count_gives_other_counts(compact, bit):
    path = compact.path / "shards" / "00000.chunks.npy"
    truth, table = compact.rows(np.arange(100)), np.load(path)
    for chunk in range(len(table)):
        damaged = table.copy()
        damaged[chunk, 3] ^= 1 << bit
        np.save(path, damaged)
        try:
            found = open_store(compact.path).rows(np.arange(100))
        except DataError as error:
            assert "is corrupt: shard 0" in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(found[2], truth[2])


def test_a_store_is_converted_there_and_back(both, tmp_path, folder_bytes):
    mapped, compact = both
    again = prepare([mapped.path], tmp_path / "a.sckit", config=PrepareConfig(layout="compact", cells_per_shard=100))
    back = prepare([again.path], tmp_path / "b.sckit", config=PrepareConfig(layout="mapped", cells_per_shard=100))
    for one, other in ((compact, again), (mapped, back)):
        shards = {name: data for name, data in folder_bytes(one.path).items() if name.startswith("shards")}
        assert shards == {name: data for name, data in folder_bytes(other.path).items() if name.startswith("shards")}


def test_a_small_store_is_mapped_and_a_large_one_compact(write_h5ad, tmp_path, monkeypatch):
    source = write_h5ad(tmp_path / "x.h5ad")
    assert dict(describe(prepare([source], tmp_path / "small.sckit")))["shards"] == "1, mapped"
    monkeypatch.setattr("sckit.data.preparation._CELLS_TO_COMPRESS", 23)
    assert dict(describe(prepare([source], tmp_path / "large.sckit")))["shards"] == "1, compact"


@pytest.mark.parametrize("place", ["chunks.npy", "entries.bin", "indptr.npy"])
def test_no_flipped_bit_gives_other_counts(compact, place):
    """Every flipped bit is told by verify, and reading gives the true counts or says which shard is corrupt."""
    path = compact.path / "shards" / f"00001.{place}"
    whole, truth = path.read_bytes(), compact.rows(np.arange(100, 150))
    generator, refused = np.random.default_rng(0), 0
    for bit in generator.choice(8 * len(whole), 300, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        store = open_store(compact.path)
        try:
            found = store.rows(np.arange(100, 150))
        except DataError as error:
            refused += 1
            assert "is corrupt: shard 1" in str(error)  # noqa: PT017
        else:
            assert all(np.array_equal(one, other) for one, other in zip(found, truth, strict=True)), bit
        with pytest.raises(DataError, match=f"{place} does not have the checksum"):
            store.verify()
    assert refused > (10 if place == "indptr.npy" else 150)


def test_the_golden_compact_store_holds_what_the_mapped_one_does():
    mapped, compact = (open_store(GOLDEN / name) for name in ("run/data.sckit", "compact.sckit"))
    compact.verify()
    cells = np.arange(mapped.n_cells)
    for one, other in zip(mapped.rows(cells), compact.rows(cells), strict=True):
        np.testing.assert_array_equal(one, other)


def test_real_counts_take_less_than_one_byte_and_a_third_each(shared_data, tmp_path):
    source = shared_data / "kang_ifnb" / "kang_ifnb.h5ad"
    compact = prepare([source], tmp_path / "c.sckit", config=PrepareConfig(layout="compact"))
    mapped = prepare([source], tmp_path / "m.sckit")
    for one, other in zip(mapped.block(0, mapped.n_cells), compact.block(0, compact.n_cells), strict=True):
        np.testing.assert_array_equal(one, other)
    on_disk = sum(path.stat().st_size for path in (compact.path / "shards").iterdir())
    assert on_disk / compact.nonzeros < 1.3
