"""Cells are found by their counts in the genes that two stores share, and by nothing else."""

import anndata
import numpy as np
import pandas as pd
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.shared_cells import same_cells

CELLS, GENES = 40, 90


@pytest.fixture
def counts(rng):
    return rng.poisson(0.8, (CELLS, GENES))


@pytest.fixture
def store_of(tmp_path):
    made = []

    def build(counts, genes=None, cells="cell", ids=None):
        symbols = [f"GENE{g}" for g in (range(np.shape(counts)[1]) if genes is None else genes)]
        var = pd.DataFrame({} if ids is None else {"gene_ids": ids}, index=pd.Index(symbols))
        obs = pd.DataFrame(index=[f"{cells}{i}" for i in range(len(counts))])
        path = tmp_path / f"{len(made)}.h5ad"
        anndata.AnnData(np.asarray(counts, np.float32), obs=obs, var=var).write_h5ad(path)
        made.append(prepare([path], path.with_suffix(".sckit"), config=PrepareConfig(assay="any", cells_per_shard=16)))
        return made[-1]

    return build


def found(store, other):
    return same_cells(store, np.arange(store.n_cells), other, np.arange(other.n_cells)).found


def test_cells_of_other_names_in_another_order_are_found(store_of, counts, rng):
    order = rng.permutation(CELLS)[:25]
    one, other = store_of(counts), store_of(counts[order], cells="renamed")
    np.testing.assert_array_equal(np.flatnonzero(found(one, other)), np.sort(order))
    assert found(other, one).all()


def test_genes_that_one_store_lacks_do_not_matter(store_of, counts, rng):
    genes = rng.permutation(GENES)[:70]
    whole, cut = store_of(counts), store_of(counts[:, genes], genes=genes)
    assert found(whole, cut).all()
    assert found(cut, whole).all()
    more = np.hstack([counts[:, genes], rng.poisson(3.0, (CELLS, 30))])  # other totals, other numbers of genes
    other = store_of(more, genes=[*genes, *range(1000, 1030)])
    assert found(whole, other).all()
    assert found(other, whole).all()


def test_genes_are_matched_by_id_before_symbol(store_of, counts):
    ids = np.array([f"ENSG{g:011d}" for g in range(GENES)])
    turned = np.roll(np.arange(GENES), 1)  # symbols of other genes than the ids say
    one = store_of(counts, ids=ids)
    assert found(one, store_of(counts, genes=turned, ids=ids)).all()
    assert not found(one, store_of(counts, ids=ids[turned])).any()


def test_a_cell_that_differs_in_one_count_is_another(store_of, counts, rng):
    gene = rng.integers(GENES, size=CELLS)
    less, more, moved = counts.copy(), counts.copy(), counts.copy()
    less[np.arange(CELLS), [np.flatnonzero(row)[0] for row in counts]] -= 1
    more[np.arange(CELLS), gene] += 1
    for row in moved:  # the same total and number of genes
        a, b = np.flatnonzero(row)[0], np.flatnonzero(row == 0)[0]
        row[[a, b]] = row[[b, a]]
    one = store_of(counts)
    for other in (less, more, moved):
        assert not found(one, store_of(other)).any()


def test_only_the_cells_that_are_asked_for_are_compared(store_of, counts):
    one, other = store_of(counts), store_of(counts, cells="renamed")
    same = same_cells(one, np.arange(10, 30)[::-1], other, np.arange(20, 40))
    np.testing.assert_array_equal(same.found, np.arange(10, 30)[::-1] >= 20)
    assert same.compared.all()
    assert not same_cells(one, np.arange(10), other, np.arange(0)).found.any()
    assert same_cells(one, np.arange(0), other, np.arange(10)).found.shape == (0,)


def test_cells_of_few_genes_are_not_compared(store_of, counts):
    """Of the same 60 counts, cells that show 19 common genes match nothing, and cells that show 20 do."""
    small = np.zeros((4, GENES), int)
    small[:2, :19], small[2:, :20] = 1, 1
    store = store_of([*small, *counts])
    same = same_cells(store, np.arange(8), store_of([*small, *counts], cells="renamed"), np.arange(8))
    np.testing.assert_array_equal(same.compared, [False, False, *[True] * 6])
    np.testing.assert_array_equal(same.found, same.compared)
    cut = store_of(counts[:, :15], genes=range(15))
    assert not same_cells(store, np.arange(8), cut, np.arange(8)).compared.any()
    strangers = store_of(counts, genes=range(2000, 2000 + GENES))
    assert not same_cells(store, np.arange(8), strangers, np.arange(8)).compared.any()


def test_cells_that_share_a_hash_are_told_apart_by_their_counts(store_of, counts, monkeypatch):
    monkeypatch.setattr("sckit.data.shared_cells.mix", np.ones_like)  # the hash is then the total
    one, other = store_of(counts[:1]), store_of(np.roll(counts[:1], 1))
    assert not found(one, other).any()
    assert found(one, one).all()


def test_cells_of_two_published_files_of_one_study_are_found(shared_data, tmp_path):
    """Names, totals and numbers of genes differ between the files: 1,267 and 9,015 genes, 1,262 of them common."""
    stores = {}
    for name in ("kang_ifnb", "kang_ifnb_donors"):
        path = shared_data / name / f"{name}.h5ad"
        stores[name] = prepare([path], tmp_path / name, config=PrepareConfig(assay="any"))
    whole, donors = stores.values()
    same = same_cells(donors, np.arange(donors.n_cells), whole, np.arange(whole.n_cells))
    assert same.compared.all()
    assert same.found.sum() == 114
    assert donors.obs.loc[same.found, "condition"].value_counts().to_dict() == {"IFN-beta": 59, "control": 55}
    assert found(whole, donors).sum() == 114
