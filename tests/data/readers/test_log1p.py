"""Counts and totals come back from log1p of counts per 10,000 exactly, or the input is refused."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.config import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.readers.open import open_sources
from sckit.errors import DataError

N_CELLS, N_GENES = 40, 120


@pytest.fixture(scope="module")
def counts():
    generator = np.random.default_rng(5)
    drawn = generator.poisson(generator.gamma(1.0, 1.0, (N_CELLS, N_GENES)))
    drawn[:, 7:9] = 1  # so that the smallest count of a cell is one and occurs twice
    return drawn


def write(path, counts, totals, dtype=np.float32, **obs):
    values = np.log1p(counts / totals[:, None] * 1e4).astype(dtype)
    frame = pd.DataFrame({"total": totals, **obs}, index=[f"cell{i}" for i in range(len(counts))])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(counts.shape[1])])
    anndata.AnnData(scipy.sparse.csr_matrix(values), obs=frame, var=var).write_h5ad(path)
    return path


@pytest.mark.parametrize("known", [True, False])
def test_counts_and_totals_come_back(tmp_path, counts, known, dense):
    totals = counts.sum(1) + 1000  # the file holds some of the genes only
    path = write(tmp_path / "x.h5ad", counts, totals)
    (source,) = open_sources(f"{path}::from-log1p,totals=total" if known else f"{path}::from-log1p")
    np.testing.assert_array_equal(dense(source), counts)
    block = next(source.blocks())
    np.testing.assert_array_equal(block.totals, totals)


def test_a_cell_that_does_not_tell_its_total_is_left_out_and_counted(tmp_path, counts):
    counts = counts.copy()
    counts[3] = 0
    counts[3, :10] = 1  # too few genes
    counts[5][counts[5] == 1] = 0
    counts[5, 0] = 1  # a lone smallest count
    path = write(tmp_path / "x.h5ad", counts, counts.sum(1))
    store = prepare([path], tmp_path / "x.sckit", config=PrepareConfig(from_log1p=True))
    assert store.n_cells == N_CELLS - 2
    assert [n for reason, n in store.manifest["dropped"].items() if "log1p" in reason] == [2]
    assert store.obs["total_counts"].tolist() == np.delete(counts.sum(1), [3, 5]).tolist()


def test_values_of_another_kind_are_refused(tmp_path, counts, dense):
    scaled = write(tmp_path / "scaled.h5ad", counts * 1.37, counts.sum(1))
    with pytest.raises(
        DataError, match=r"Cell 'cell0' .* is \d+\.\d+ counts at a total of .*: not log1p of whole counts"
    ):
        dense(*open_sources(f"{scaled}::from-log1p,totals=total"))
    other_sum = write(tmp_path / "other.h5ad", counts, counts.sum(1) * 4 + np.arange(N_CELLS))
    with pytest.raises(DataError, match="not log1p of whole counts"):
        dense(*open_sources(f"{write(tmp_path / 'plain.h5ad', counts + 0.3, counts.sum(1))}::from-log1p"))
    (source,) = open_sources(f"{other_sum}::from-log1p")
    assert (next(source.blocks()).totals == counts.sum(1) * 4 + np.arange(N_CELLS)).all()
    small = write(tmp_path / "small.h5ad", counts, np.maximum(counts.sum(1) // 2, 1))
    with pytest.raises(DataError, match=r"counts in the file and a total of \d+ over all genes, which cannot be less"):
        dense(*open_sources(f"{small}::from-log1p"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("nope", r"no obs column 'nope' for --totals; its columns are: total, half, text, few"),
        ("half", r"has '0\.5' in the column 'half' of --totals; a total is a whole number"),
        ("text", r"has 'many' in the column 'text'"),
        ("few", r"has \d+ counts in the file and a total of 1 over all genes"),
    ],
)
def test_totals_that_are_none_are_refused(tmp_path, counts, column, message):
    path = tmp_path / "x.h5ad"
    obs = pd.DataFrame(
        {"total": counts.sum(1), "half": 0.5, "text": "many", "few": 1}, index=[f"c{i}" for i in range(N_CELLS)]
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    anndata.AnnData(counts.astype(np.float32), obs=obs, var=var).write_h5ad(path)
    with pytest.raises(DataError, match=message):
        prepare([f"{path}::totals={column}"], tmp_path / "x.sckit")


def test_a_cell_that_is_left_out_needs_no_total(tmp_path, counts):
    totals = counts.sum(1).astype(float)
    totals[3] = np.nan
    obs = pd.DataFrame({"total": totals, "good": np.arange(N_CELLS) != 3}, index=[f"c{i}" for i in range(N_CELLS)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    anndata.AnnData(counts.astype(np.float32), obs=obs, var=var).write_h5ad(tmp_path / "x.h5ad")
    config = PrepareConfig(totals="total", obs_filter="good")
    store = prepare([tmp_path / "x.h5ad"], tmp_path / "x.sckit", config=config)
    assert store.obs["total_counts"].tolist() == np.delete(totals, 3).tolist()
    with pytest.raises(DataError, match=r"Cell 'c3' of .* has 'nan' in the column 'total' of --totals"):
        prepare([tmp_path / "x.h5ad"], tmp_path / "y.sckit", config=PrepareConfig(totals="total"))


def test_released_subset_with_its_totals(shared_data, tmp_path):
    path = shared_data / "norman19_k562_500genes" / "norman19_k562_500genes.h5ad"
    store = prepare([path], tmp_path / "x.sckit", config=PrepareConfig(totals="recovered_total"))
    np.testing.assert_array_equal(store.obs["total_counts"], anndata.read_h5ad(path).obs["recovered_total"].round())


def test_two_logarithms_of_one_gene_are_refused(tmp_path, counts, dense):
    path = write(tmp_path / "x.h5ad", counts, counts.sum(1))
    with h5py.File(path, "a") as file:
        file["X/indices"][1] = file["X/indices"][0]
    (source,) = open_sources(f"{path}::from-log1p,totals=total")
    with pytest.raises(DataError, match="two logarithms for one gene of one cell"):
        dense(source)


def test_another_target_sum_is_seen_where_all_genes_are_there_and_refused_where_not(tmp_path, counts, dense):
    whole = write(tmp_path / "median.h5ad", counts, counts.sum(1) * 1e4 / 500)  # each cell adds up to 500
    (source,) = open_sources(f"{whole}::from-log1p")
    np.testing.assert_array_equal(dense(source), counts)
    np.testing.assert_array_equal(next(source.blocks()).totals, counts.sum(1))
    totals = counts.sum(1) * 3
    path = write(tmp_path / "subset.h5ad", counts, totals / 2)  # log1p of counts per 20,000
    data = anndata.read_h5ad(path)
    data.obs["total"] = totals
    data.write_h5ad(path)
    with pytest.raises(DataError, match="has no count of one in most of its cells"):
        dense(*open_sources(f"{path}::from-log1p,totals=total"))


@pytest.mark.parametrize("cells_per_block", [1, 7, 4096])
def test_what_counts_add_up_to_does_not_hang_on_blocks(tmp_path, rng, cells_per_block):
    counts = rng.poisson(rng.gamma(0.5, 2.0, (40, 1)) * np.ones((1, 80)) + 0.3)
    totals = counts.sum(1, keepdims=True)
    targets = np.where(np.arange(40) < 20, 240.0, 2500.0)[:, None]  # two batches, each to its own median
    values = np.log1p(counts * targets / totals).astype(np.float32)
    var = pd.DataFrame(index=[f"gene{i}" for i in range(80)])
    anndata.AnnData(values, var=var).write_h5ad(tmp_path / "x.h5ad")
    (source,) = open_sources(f"{tmp_path / 'x.h5ad'}::from-log1p")
    blocks = list(source.blocks(cells_per_block=cells_per_block))
    known, found = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("recovered", "totals"))
    assert known.sum() > 20
    np.testing.assert_array_equal(found[known], totals[known, 0])
