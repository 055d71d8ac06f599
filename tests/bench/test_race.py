"""`sckit bench prepare | loader | train`: rows of engines that give the right counts, and sentences on the others."""

import numpy as np
import pytest
from typer.testing import CliRunner

from sckit.bench.inputs import TRAINING_GENES, made_up, write_inputs, write_training
from sckit.bench.peers import FINGERPRINTS, fingerprints
from sckit.bench.race import ENGINES, race
from sckit.cli.app import app
from sckit.errors import SckitError

KEYS = {"op", "case", "engine", "role", "nnz_per_s", "cells_per_s", "tokens_per_s", "share_of_peak", "peak_rss_bytes"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    facts = write_inputs(folder, None, 300)
    assert facts["cells"] == 300
    assert write_inputs(folder, None, 300) == facts  # what is there is taken
    return facts | {"folder": str(folder), "batch": 64}


def test_made_up_cells_have_as_many_genes_as_is_said():
    (indptr, genes, counts), *_ = made_up(256)
    assert 1_000 < np.median(np.diff(indptr)) < 1_400
    assert genes.max() < 20_000
    assert counts.min() == 1


def test_a_fingerprint_tells_genes_and_counts_apart():
    indptr = np.array([0, 2, 2, 3])
    found = fingerprints(indptr, np.array([3, 5, 3]), np.array([1, 2, 1]))
    assert found[1] == 0
    assert len({*found.tolist()}) == 3
    assert fingerprints(indptr[:2], np.array([3, 5]), np.array([2, 1]))[0] != found[0]


def test_prepare_is_timed_from_every_format(facts):
    names = ["sckit", "h5py read", "annbatch"]
    found = race("prepare", facts, names=names, pythons={"annbatch": "/nowhere/python"}, rounds=1)
    assert {(row["engine"], row["case"]) for row in found["rows"]} >= {
        (name, case) for name in names[:2] for case in ("10x h5", "h5ad")
    }
    for row in found["rows"]:
        assert row.keys() == KEYS | {"median_s"}
        assert row["nnz_per_s"] == pytest.approx(facts["nonzeros"] / row["median_s"])
        assert row["peak_rss_bytes"] > 2**25
    assert found["left_out"] == {"annbatch": "could not be started by /nowhere/python (No such file or directory)"}


def test_every_loader_gives_each_cell_once(facts):
    names = ["sckit compact", "sckit mapped", "memory map", "AnnData backed"]
    found = race("loader", facts, names=names, pythons={}, rounds=1)
    assert [row["engine"] for row in found["rows"]] == ["sckit compact", "sckit mapped", "AnnData backed", "memory map"]
    assert found["left_out"] == {}
    assert all(2 < order["donor_bits"] <= 4 for order in found["orders"].values())


def test_no_speed_is_reported_of_wrong_counts(facts, tmp_path):
    fingerprinted = np.load(f"{facts['folder']}/{FINGERPRINTS}")
    for name in ("mapped.sckit", "counts.h5ad"):
        (tmp_path / name).symlink_to(f"{facts['folder']}/{name}")
    fingerprinted[7] += 1
    np.save(tmp_path / FINGERPRINTS, fingerprinted)
    wrong = facts | {"folder": str(tmp_path)}
    with pytest.raises(SckitError, match=r"sckit mapped .* gives other counts than the data has; no speed is reported"):
        race("loader", wrong, names=["sckit mapped"], pythons={}, rounds=1)
    found = race("loader", wrong, names=["AnnData backed"], pythons={}, rounds=1)
    assert found["left_out"] == {"AnnData backed": "gives other counts than the data has"}


@pytest.mark.slow
def test_training_is_timed(tmp_path):
    write_training(tmp_path, cells_per_batch=32)
    facts = {"folder": str(tmp_path), "genes": TRAINING_GENES, "steps": 1, "threads": 2}
    found = race("train", facts, pythons={}, rounds=1)
    assert len(found["rows"]) == 2 * len(ENGINES["train"])
    assert all(0 < row["share_of_peak"] < 1 and row["tokens_per_s"] > 0 for row in found["rows"])


def test_a_wrong_python_is_refused_before_the_data_are_written(tmp_path):
    for wrong in ("nobody=/bin/sh", "annbatch=nowhere"):
        words = ["bench", "loader", "--folder", str(tmp_path), "--peer-python", wrong]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert f"--peer-python {wrong}: give NAME=PATH" in result.stderr
    assert list(tmp_path.iterdir()) == []
