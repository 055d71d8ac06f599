"""The pieces that readers share, and paths that hold no counts."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from sckit.data.readers.names import gene_table
from sckit.data.readers.source import tidy
from sckit.data.readers.spool import CellSpool
from sckit.data.views import cell_of_entry
from sckit.errors import DataError


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 6), st.integers(0, 9)), max_size=40),
)
def test_tidy_equals_scipy(entries):
    cells, genes, counts = np.array(sorted(entries, key=lambda entry: entry[0]), dtype=np.int64).reshape(-1, 3).T
    indptr = np.concatenate(([0], np.cumsum(np.bincount(cells, minlength=6))))
    known = genes >= 0
    expected = scipy.sparse.coo_matrix((counts[known], (cells[known], genes[known])), shape=(6, 7)).tocsr()
    expected.sum_duplicates()
    expected.eliminate_zeros()
    got = tidy(indptr, genes.astype(np.int32), counts.astype(np.uint32))
    for ours, theirs in zip(got, (expected.indptr, expected.indices, expected.data), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.integers(1, 9)), max_size=60),
    per_chunk=st.integers(1, 20),
    per_bucket=st.integers(1, 12),
)
def test_spool_sorts_by_cell_and_keeps_the_order_within(entries, per_chunk, per_bucket):
    chunks = [entries[i : i + per_chunk] for i in range(0, len(entries), per_chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sckit.data.readers.spool._ENTRIES_PER_BUCKET", per_bucket)
        arrays = (tuple(np.array(chunk).T) for chunk in chunks)
        indptr, genes, values = CellSpool(arrays, 6, np.dtype(np.float32)).read(0, 6)
    got = list(zip(cell_of_entry(indptr).tolist(), genes.tolist(), values.tolist(), strict=True))
    assert got == sorted(entries, key=lambda entry: entry[0])


@pytest.mark.parametrize(
    ("columns", "ids", "symbols"),
    [
        pytest.param({}, "", "index", id="symbols-in-the-index"),
        pytest.param({"feature_id": "ENSG0000000001"}, "ENSG0000000001", "index", id="ids-in-a-column"),
        pytest.param({"feature_name": "TP53"}, "", "TP53", id="symbols-in-a-column"),
        pytest.param({"feature_id": "TP53"}, "", "index", id="a-column-of-ids-that-are-none"),
        pytest.param({"gene_symbol": None}, "", "index", id="missing-symbols"),
    ],
)
def test_ids_and_symbols_are_found(columns, ids, symbols):
    table = gene_table(pd.DataFrame(columns, index=["index"]), Path("x"))
    assert (table.ids[0], table.symbols[0]) == (ids, symbols)


def test_census_like_var_with_ids_in_the_index():
    table = gene_table(pd.DataFrame({"feature_name": ["TP53"]}, index=["ENSG00000141510"]), Path("x"))
    assert (table.ids[0], table.symbols[0]) == ("ENSG00000141510", "TP53")


def text_named_h5(path):
    (path / "x.h5").write_text("gene,cell,count\n")
    return path / "x.h5"


def other_h5(path):
    with h5py.File(path / "x.h5", "w") as file:
        file["weights"] = np.zeros(3)
    return path / "x.h5"


def empty_folder(path):
    (path / "empty").mkdir()
    return path / "empty"


BROKEN = {
    "text-named-h5": (text_named_h5, r"x\.h5 is not an HDF5 file \(it begins with b'gene,cell,count"),
    "h5-of-something-else": (other_h5, r"x\.h5 is an HDF5 file without counts \(it holds weights\)"),
    "missing": (lambda path: path / "nope.h5", r"nope\.h5 does not exist; give an \.h5ad"),
    "folder-without-matrix": (empty_folder, r"empty is a folder without a matrix\.mtx"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_path_without_counts_is_one_sentence(tmp_path, case, open_source):
    make, message = BROKEN[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(path).blocks())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_counts_of_one_gene_that_add_up_to_too_much_are_refused():
    counts = np.array([2**32 - 1, 1], dtype=np.uint32)
    with pytest.raises(DataError, match="has 4,294,967,296 counts of one gene, several entries added up"):
        tidy(np.array([0, 2]), np.array([3, 3], np.int32), counts)
