import json
import shlex

import pytest

from sckit.data.simulate import read_truth
from sckit.data.store import open_store

from .test_cli import FAST, invoke, one_sentence

SMALL = ["--cells", "200", "--genes", "60", "--depth", "150", "--libraries", "3"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("known.h5ad", ["--interactions", "0.5", "--network"], "--group library"),
        ("known.h5", ["--libraries", "1"], "known.h5"),
        ("known.sckit", ["--perturbations", "4", "--perturbation-cells", "20"], "--obs-filter"),
    ],
)
def test_what_is_written_is_said_and_the_next_command_works(tmp_path, name, options, words):
    out = tmp_path / name
    result = invoke("simulate", *SMALL, *options, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    assert document["path"] == str(out)
    assert (document["cells"], document["genes"]) == (200, 60)
    assert document["median_counts"] == pytest.approx(150, rel=0.2)
    assert read_truth(document["truth"]).config.cells == 200
    assert f"wrote {out}: 200 cells of 6 cell types in" in result.stderr
    assert "detected entries are a count of one" in result.stderr
    assert ("no column for labels of cells" in result.stderr) == (name == "known.h5")
    last = result.stderr.splitlines()[-1]
    assert words in last
    _, command, *rest = shlex.split(last.removeprefix("next: "))
    trained = invoke(command, *rest, "--steps", "2", "--runs", tmp_path / "runs", *FAST)
    assert trained.exit_code == 0, trained.stderr


def test_cells_without_counts_that_a_store_leaves_out_are_counted(tmp_path):
    out = tmp_path / "shallow.sckit"
    result = invoke("simulate", "--cells", "60", "--genes", "20", "--depth", "1", "--out", out, "--json")
    document, store = json.loads(result.stdout.splitlines()[-1]), open_store(out)
    assert 0 < document["without_counts"] == 60 - store.n_cells
    assert f"wrote {out}: {store.n_cells} cells" in result.stderr
    assert f"{document['without_counts']} of 60 cells have no counts" in result.stderr
    assert set(store.obs["cell"]) < {f"CELL{i}" for i in range(60)}


def test_a_file_of_options_is_read(tmp_path):
    (tmp_path / "small.toml").write_text('cells = 40\ngenes = 30\ndepth = 50\nstructure = "unrelated"\n')
    out = tmp_path / "known.h5ad"
    assert invoke("simulate", "--config", tmp_path / "small.toml", "--cells", "50", "--out", out).exit_code == 0
    config = read_truth(tmp_path / "known.truth.h5").config
    assert (config.cells, config.genes, config.structure) == (50, 30, "unrelated")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cells", "20000000", "--out", "a.h5ad"], "--cells must be between 1 and 10000000, not 20000000"),
        (["--out", "a.loom"], "must end in .h5ad"),
        (["--out", "nowhere/a.h5ad"], "nowhere is not a folder"),
        (["--perturbations", "100", "--out", "a.h5ad"], "need 10100 cells"),
    ],
)
def test_wrong_options_are_one_sentence(options, words):
    result = invoke("simulate", *options)
    assert result.exit_code == 2
    assert words in one_sentence(result)
