"""Columns of the table of cells that are read alone say what the whole table says."""

import numpy as np
import pandas as pd
import pytest

from sckit.data import cell_table, manifest
from sckit.data.cell_table import CellTable
from sckit.data.labels import Labels, group_values
from sckit.errors import ConfigError, DataError

N = 2000
COLUMNS = {
    "texts": [f"t{i % 7}" if i % 5 else "" for i in range(N)],
    "categories": pd.Categorical([f"donor {i % 11}" if i % 13 else None for i in range(N)]),
    "numbers of categories": pd.Categorical([i % 3 if i % 13 else None for i in range(N)]),
    "unused categories": pd.Categorical.from_codes(np.arange(N) % 2, ["b", "a", "never"]),
    "late": pd.Categorical(["a"] * (N - 1) + ["b"]),
    "whole": np.arange(N) % 4,
    "whole with gaps": [i % 4 if i % 5 else None for i in range(N)],
    "fractions": [i % 4 / 2 if i % 5 else None for i in range(N)],
    "flags": np.arange(N) % 3 == 0,
    "flags with gaps": pd.array([bool(i % 2) if i % 5 else None for i in range(N)], "boolean"),
    "nothing": pd.Categorical([None] * N, ["x"]),
    "days": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(N) % 3, "D"),
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table in several groups of rows, read in blocks that cut across them."""
    monkeypatch.setattr(manifest, "_ROWS", 300)
    monkeypatch.setattr(cell_table, "_ROWS", 450)
    own = {"cell": [f"cell{i}" for i in range(N)], "source": pd.Categorical(["one"] * N)}
    frame = pd.DataFrame({**own, "total_counts": np.arange(N) * 1000, "n_genes": np.arange(N), **COLUMNS})
    manifest.write_table(tmp_path / "obs.parquet", frame)
    return CellTable(tmp_path / "obs.parquet", N), frame


@pytest.mark.parametrize("name", [*COLUMNS, "cell", "source", "n_genes"])
def test_labels_are_those_of_the_whole_table(table, name):
    cells, frame = table
    labels, whole = cells.labels(name), group_values(frame, name)
    assert labels.codes.dtype == np.int32
    assert np.append(labels.names, "")[labels.codes].tolist() == whole.tolist()
    assert labels.names.tolist() == sorted({*whole} - {""})


def test_numbers_take_no_more_room_than_they_need(table):
    cells, frame = table
    for name, dtype in (("total_counts", np.uint32), ("n_genes", np.uint16)):
        assert cells.numbers(name).dtype == dtype
        np.testing.assert_array_equal(cells.numbers(name), frame[name])


def test_the_whole_table_comes_back(table):
    found, expected = table[0].frame(), pd.read_parquet(table[0].path)
    pd.testing.assert_frame_equal(found.astype({"cell": object, "texts": object}), expected)


def test_columns_that_are_not_there_are_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'late'"):
        table[0].labels("Late")
    with pytest.raises(DataError, match="is not the table of this store"):
        CellTable(tmp_path / "obs.parquet", N + 1).labels("late")
    table[1].assign(total_counts=-1).to_parquet(tmp_path / "obs.parquet")
    with pytest.raises(DataError, match="is not the table of this store"):
        table[0].numbers("total_counts")
    (tmp_path / "obs.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"obs\.parquet cannot be read"):
        table[0].labels("late")


def test_labels_of_some_cells_are_numbered_anew():
    labels = Labels.of(np.array(["c", "a", "", "b", "c"]))
    assert (labels.codes.tolist(), labels.names.tolist()) == ([2, 0, -1, 1, 2], ["a", "b", "c"])
    some = labels.among(np.array([0, 2, 3]))
    assert (some.codes.tolist(), some.names.tolist()) == ([1, -1, -1, 0, 1], ["b", "c"])
    assert labels.are(["c", "unknown"]).tolist() == [True, False, False, False, True]
