"""Inputs are joined, filtered and cut to the chosen genes; nothing is lost in silence, nothing is left behind."""

import numpy as np
import pandas as pd
import pytest

from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.store import describe
from sckit.errors import ConfigError, DataError

N_CELLS, N_GENES = 23, 11


def test_inputs_are_joined_and_every_loss_is_counted(tmp_path, known_counts, write_h5ad, dense):
    counts = known_counts(6, 4)
    obs = pd.DataFrame({"assay": ["10x 3' v2"] * 4 + ["Drop-seq"] * 2})
    (tmp_path / "a").mkdir()
    with pytest.warns(UserWarning, match="not unique"):
        first = write_h5ad(tmp_path / "a" / "run.h5ad", counts, symbols=["A", "B", "A", "C"], obs=obs)
    second = write_h5ad(tmp_path / "run.h5ad", counts, symbols=["C", "X", "A", "Y"])
    third = write_h5ad(
        tmp_path / "merfish.h5ad", counts[:2], symbols=list("WXYZ"), obs=pd.DataFrame({"assay": ["MERFISH"] * 2})
    )
    store = prepare([first, second, third], tmp_path / "s.sckit", config=PrepareConfig(min_counts=9))
    totals = counts.sum(axis=1)
    keep_first, keep_second = (totals >= 9) & (np.arange(6) < 4), totals >= 9
    expected = np.concatenate(
        [np.stack([counts[:, 0] + counts[:, 2], counts[:, 3]], axis=1)[keep_first], counts[:, [2, 0]][keep_second]]
    )
    has_count = expected.any(axis=1)
    assert store.genes["symbol"].tolist() == ["A", "C"]
    np.testing.assert_array_equal(dense(store), expected[has_count])
    np.testing.assert_array_equal(
        store.obs["total_counts"], np.concatenate([totals[keep_first], totals[keep_second]])[has_count]
    )
    assert set(store.obs["source"]) <= {"run", "run-2"}
    lost_late = int((~has_count).sum())
    dropped = store.manifest["dropped"]
    assert totals.min() < 9 < totals.max()
    assert dropped == {
        "genes that not every input has": 3,
        "cells of assay 'Drop-seq'": 2,
        "cells of assay 'MERFISH'": 2,
        "cells with fewer than 9 counts": int((totals[:4] < 9).sum() + (totals < 9).sum()),
        **({"cells without a count in the kept genes": lost_late} if lost_late else {}),
    }
    sources = store.manifest["sources"]
    assert [source["kept"] for source in sources] == [
        int((store.obs["source"] == name).sum()) for name in ("run", "run-2", "merfish")
    ]
    lines = dict(describe(store))
    assert "1 genes have the name of another and were added to it" in lines["source run"]
    assert "no assay column, so cells of every assay were kept" in lines["source run-2"]
    assert lines["lost: cells of assay 'MERFISH'"] == "2"
    assert [source["genes_summed"] for source in sources] == [1, 0, 0]
    assert [source["has_assay"] for source in sources] == [True, False, True]
    assert sum(n for reason, n in dropped.items() if reason.startswith("cells")) + store.n_cells == 14


def test_chosen_genes_keep_the_total_over_all_genes(tmp_path, known_counts, write_h5ad, dense):
    source = write_h5ad(tmp_path / "x.h5ad")
    store = prepare([source], tmp_path / "hvg.sckit", config=PrepareConfig(genes=4, cells_per_shard=6))
    numbers = [int(name.removeprefix("gene")) for name in store.genes["symbol"]]
    assert store.n_genes == 4
    assert store.manifest["dropped"]["genes not chosen"] == N_GENES - 4
    kept = known_counts()[:, numbers].any(axis=1)
    np.testing.assert_array_equal(dense(store), known_counts()[kept][:, numbers])
    np.testing.assert_array_equal(store.obs["total_counts"], known_counts().sum(axis=1)[kept])


def test_gene_list_sets_genes_and_their_order(tmp_path, write_h5ad):
    (tmp_path / "genes.txt").write_text("gene7\nnope\ngene2\n")
    config = PrepareConfig(genes=str(tmp_path / "genes.txt"))
    store = prepare([write_h5ad(tmp_path / "x.h5ad")], tmp_path / "s.sckit", config=config)
    assert store.genes["symbol"].tolist() == ["gene7", "gene2"]
    assert store.manifest["dropped"]["lines of the gene list that match no gene"] == 1


def test_obs_columns_of_every_kind_survive(tmp_path, write_h5ad):
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(["a", None] * 11 + ["b"]),
            "text": [f"t{i}" for i in range(N_CELLS)],
            "number": np.arange(N_CELLS) / 2,
            "flag": [True, False] * 11 + [True],
        }
    )
    store = prepare([write_h5ad(tmp_path / "x.h5ad", obs=obs)], tmp_path / "s.sckit")
    pd.testing.assert_frame_equal(store.obs[list(obs)], obs.astype({"text": "category"}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"min_genes": 99}, "No cell is left of 23: 23 cells with fewer than 99 genes", id="nothing-left"),
        pytest.param({"obs_filter": "assay == 'x'"}, r"No cell is left of 23: 23 cells outside", id="no-label-matches"),
        pytest.param({"genes": 3, "min_genes": 99}, "No cell is left of 23", id="nothing-left-to-choose-genes-from"),
        pytest.param({"max_mito": 0.1}, "no gene whose symbol begins with MT-", id="no-mito-genes"),
        pytest.param({"genes": "list.txt"}, r"None of the 2 genes of .*list\.txt is in the data", id="no-gene-listed"),
        pytest.param({"layer": "nope"}, "no layer 'nope'", id="unknown-layer"),
        pytest.param({"obs_filter": "colour == 1"}, "'colour' is not defined", id="unknown-column"),
    ],
)
def test_bad_data_leaves_nothing_behind(tmp_path, monkeypatch, config, message, write_h5ad):
    source = write_h5ad(tmp_path / "x.h5ad", obs=pd.DataFrame({"assay": ["10x 3' v2"] * N_CELLS}))
    (tmp_path / "list.txt").write_text("nope\n# a comment\nMT-CO1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(**config))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "x.h5ad"]


def test_a_gene_list_that_cannot_be_read_leaves_nothing_behind(tmp_path, write_h5ad):
    source = write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ConfigError, match=r"--genes nope\.txt cannot be read"):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(genes="nope.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


def test_fractions_in_a_late_cell_leave_nothing_behind(tmp_path, known_counts, write_h5ad):
    counts = known_counts().astype(np.float32)
    counts[20, 3] = 0.5
    source = write_h5ad(tmp_path / "x.h5ad", counts)
    with pytest.raises(DataError, match=r"Cell 'cell20' of .* holds 0\.5 in X"):
        prepare([source], tmp_path / "s.sckit", config=PrepareConfig(cells_per_shard=4))
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


@pytest.mark.parametrize(
    "options",
    [
        {"genes": 0}, {"genes": "-3"}, {"assay": " "}, {"max_mito": 1.2}, {"min_genes": -1}, {"duplicates": "drop"},
        {"layer": "counts", "raw": True}, {"cells_per_shard": 0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="--"):
        PrepareConfig(**options)


@pytest.mark.parametrize("name", ["x.sckit.partial", "x.sckit.replaced"])
def test_folders_of_others_are_left_alone(tmp_path, write_h5ad, name):
    write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} is in the way and is no unfinished store"):
        prepare([tmp_path / "x.h5ad"], tmp_path / "x.sckit")
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"
