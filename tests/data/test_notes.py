"""Counts that look odd are told apart from counts of shallow, deep and few genes."""

from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data import notes
from sckit.data.notes import larger_totals, lone_counts, odd_counts, odd_inputs
from sckit.data.prepare import prepare


@pytest.fixture
def cells(rng):
    """Totals and detected genes of 500 cells of ordinary depth."""
    totals = np.exp(rng.normal(7, 0.5, 500)).astype(int)
    return totals, totals // 3


def said(totals, n_genes):
    return " ".join(odd_counts(np.asarray(totals), np.asarray(n_genes), "x"))


def test_ordinary_cells_are_not_odd(cells, rng):
    totals, n_genes = cells
    assert said(totals, n_genes) == ""
    assert said(totals // 20 + 20, n_genes // 20 + 8) == ""  # a panel of few genes
    assert said(totals[:5], totals[:5]) == ""  # too few cells to say


def test_a_raw_matrix_is_named_with_its_number_of_empty_droplets(cells, rng):
    totals, n_genes = cells
    empty = rng.poisson(1.5, 5000) + 1
    assert "5,000 of the 5,500 cells of x have fewer than 10 counts" in said([*totals, *empty], [*n_genes, *empty])
    ambient = rng.poisson(40, 5000) + 10
    assert "raw matrix with empty droplets" in said([*20 * totals, *ambient], [*n_genes, *ambient // 2])


def test_binary_and_normalised_values_are_named(cells, rng):
    _totals, n_genes = cells
    assert "0 and 1 (binary)" in said(n_genes, n_genes)
    assert "looks like normalised and rounded" in said(10_000 + rng.integers(-50, 50, 500), n_genes)


def source(path, n_genes=100):
    return SimpleNamespace(path=Path(path), genes=range(n_genes))


def test_inputs_that_go_together_badly_are_named():
    assert not list(odd_inputs([source("a"), source("b", 150)], ["a", "b"], np.array([5, 5]), [{}, {}], 90))
    (twice,) = odd_inputs([source("a"), source("./a")], ["a", "a-2"], np.array([5, 5]), [{}, {}], 100)
    assert twice == "a is given twice, so its cells may be in training and in test"
    (empty,) = odd_inputs(
        [source("a"), source("b")], ["a", "b"], np.array([5, 0]), [{}, {"cells of assay 'CEL-seq'": 9}], 100
    )
    assert empty == "no cell of b is kept: 9 cells of assay 'CEL-seq'; keep them with --assay any"
    for sizes, shared in (((100, 120), 40), ((100, 900), 100)):
        (few,) = odd_inputs(
            [source("a", sizes[0]), source("b", sizes[1])], ["a", "b"], np.array([5, 5]), [{}, {}], shared
        )
        assert few == f"only {shared} genes are in every input (a has 100, b has {sizes[1]}); all others are left out"


def test_a_column_that_may_be_the_total_over_more_genes_is_named():
    totals = np.arange(50, 80)
    obs = pd.DataFrame({"recovered_total": totals * 3, "n_counts": totals, "age": totals * 9, "total_text": "x"})
    (note,) = larger_totals(obs, np.arange(30), totals, "norman")
    assert note.endswith("genes that were measured, give --totals recovered_total")
    assert not list(larger_totals(obs.assign(recovered_total=totals * 3 - 101), np.arange(30), totals, "norman"))


# ---- genes that are one in all cells but one


def with_lone_counts(rng, n_lone, *, count=10):
    """Counts of 60 cells and 1,000 genes: the first `n_lone` are one in ten cells and large in another."""
    counts = rng.poisson(rng.gamma(0.5, size=1000), (60, 1000))
    for gene in range(n_lone):
        cells = rng.permutation(60)
        counts[:, gene] = 0
        counts[cells[:10], gene], counts[cells[10], gene] = 1, count
    return counts


def store_of(place, *files, **options):
    paths = []
    for number, counts in enumerate(files):
        index = [f"cell{i}" for i in range(len(counts))]
        paths.append(place / f"file{number}.h5ad")
        adata = anndata.AnnData(np.asarray(counts, np.float32), obs=pd.DataFrame(index=index))
        adata.var_names = [f"GENE{g}" for g in range(np.shape(counts)[1])]
        adata.write_h5ad(paths[-1])
    return prepare(paths, place / "counts.sckit", config=PrepareConfig(assay="any", **options), overwrite=True)


def lone_notes(store):
    return [note for note in store.manifest["notes"] if "have a count of one in all of their cells" in note]


def test_many_lone_large_counts_are_named_with_their_source(tmp_path, rng):
    odd, plain = with_lone_counts(rng, 12, count=40), with_lone_counts(rng, 0)
    found = int((odd > 0).any(0).sum())
    for options in ({}, {"cells_per_shard": 16}):  # in one shard, and in several
        (note,) = lone_notes(store_of(tmp_path, plain, odd, **options))
        assert note.startswith(
            f"12 of the {found} detected genes of file1 have a count of one in all of their cells but one, where it is "
            "10 or more; other data have few such genes"
        )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda counts: counts[:, 3:], id="few genes"),
        pytest.param(lambda counts: np.hstack([counts, *[counts[:, 12:]] * 2]), id="a small share of the genes"),
        pytest.param(lambda counts: np.where(counts == 10, 9, counts), id="counts that are not large"),
        pytest.param(lambda counts: np.vstack([counts, 2 * (np.arange(1000) < 12)]), id="another count above one"),
        pytest.param(lambda counts: np.vstack([counts, 12 * (np.arange(1000) < 12)]), id="a second large count"),
        pytest.param(lambda counts: np.where(counts == 1, 0, counts), id="genes of a single cell"),
    ],
)
def test_few_or_other_lone_counts_are_not_odd(tmp_path, rng, change):
    counts = with_lone_counts(rng, 12)
    counts[:, 12:] = np.minimum(counts[:, 12:], 8)
    assert lone_notes(store_of(tmp_path, counts))
    assert not lone_notes(store_of(tmp_path, change(counts)))


def test_of_many_cells_the_first_are_looked_at_and_the_note_says_so(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(notes, "_MOST_CELLS", 60)
    counts = with_lone_counts(rng, 12)
    store = store_of(tmp_path, np.vstack([counts, np.full((5, 1000), 2)]))
    (note,) = lone_notes(store)
    assert "of file0 have a count of one in all of their cells in its first 60 cells but one" in note
    assert not list(lone_counts(store, 30, 65, "file0"))


def test_of_the_real_libraries_one_has_lone_large_counts(shared_data, tmp_path):
    files = {name: shared_data / name / f"{name}.h5ad" for name in ("pbmc3k", "pbmc_facs", "kang_ifnb")}
    found = {name: prepare([path], tmp_path / name).manifest["notes"] for name, path in files.items()}
    assert any(note.startswith("122 of the 13,714 detected genes of pbmc3k have") for note in found["pbmc3k"])
    assert not [note for name in ("pbmc_facs", "kang_ifnb") for note in found[name] if "have a count of one" in note]
