"""The commands read inputs alike, say alike what they leave out, and end in one line whatever happens."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sckit.cli.app import app

FAST = ["--config", Path(__file__).with_name("fast.toml"), "--steps", "1"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def data(tmp_path, rng):
    counts = rng.poisson(2.0, (60, 30)).astype(np.float32)
    obs = pd.DataFrame(
        {"assay": ["10x 3' v3"] * 40 + ["10x gene expression flex"] * 20}, index=[f"c{i}" for i in range(60)]
    )
    adata = anndata.AnnData(np.log1p(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    adata.layers["counts"] = counts
    adata.write_h5ad(tmp_path / "log.h5ad")
    return tmp_path / "log.h5ad"


def test_the_advice_of_a_message_works_as_it_stands(data, tmp_path):
    result = invoke("pretrain", data, *FAST, "--runs", tmp_path / "runs")
    assert result.exit_code == 1
    assert f"try to give it as {data}::layer=counts" in result.stderr
    for advice in ([f"{data}::layer=counts"], [data, "--layer", "counts"]):
        result = invoke("pretrain", *advice, *FAST, "--runs", tmp_path / "runs", "--name", f"run{len(advice)}")
        assert result.exit_code == 0, result.stderr
        assert "left out: 20 cells of assay '10x gene expression flex'" in result.stderr
    run = tmp_path / "runs" / "run1"
    result = invoke("embed", run, f"{data}::layer=counts", "--out", tmp_path / "e.h5ad", "--engine", "reference")
    assert result.exit_code == 0, result.stderr
    assert len(anndata.read_h5ad(tmp_path / "e.h5ad")) == 60


def test_no_cell_of_the_assay_is_left_and_the_remedy_works(data, tmp_path):
    only = anndata.read_h5ad(data)[40:].copy()
    only.X = only.layers["counts"]
    only.write_h5ad(data)
    result = invoke("pretrain", data, *FAST, "--runs", tmp_path)
    assert "20 cells of assay '10x gene expression flex'; keep them with --assay any" in result.stderr
    assert invoke("pretrain", data, "--assay", "any", *FAST, "--runs", tmp_path).exit_code == 0


def test_reading_options_of_a_file_reach_the_reader(data, tmp_path):
    (tmp_path / "a.toml").write_text(
        "layer = 'counts'\nassay = 'any'\nsteps = 1\ncomponents = 3\nengine = 'reference'\n"
    )
    result = invoke("pretrain", data, "--config", tmp_path / "a.toml", "--runs", tmp_path / "runs")
    assert result.exit_code == 0, result.stderr
    assert "flex" not in result.stderr
    (tmp_path / "a.toml").write_text("lair = 'counts'\n")
    assert "sets lair, which is no option" in invoke("pretrain", data, "--config", tmp_path / "a.toml").stderr
    (tmp_path / "a.toml").write_text("lr = -1\n")
    assert (
        f"Error: {tmp_path}/a.toml: --lr must be above 0" in invoke("pretrain", "--config", tmp_path / "a.toml").stderr
    )


def test_labels_with_commas_are_held_out(data, tmp_path):
    adata = anndata.read_h5ad(data)
    adata.X = adata.layers["counts"]
    adata.obs["type"] = ["CD4-positive, alpha-beta T cell"] * 20 + ["B cell"] * 20 + ["NK"] * 20
    adata.write_h5ad(data)
    common = [data, "--assay", "any", "--group", "type", *FAST, "--runs", tmp_path]
    result = invoke("pretrain", *common, "--hold-out", "CD4-positive, alpha-beta T cell")
    assert "20 held-out cells" in result.stderr
    result = invoke("pretrain", *common, "--name", "two", "--hold-out", "B cell,NK")
    assert "40 held-out cells" in result.stderr
    assert "no cell has the label 'B cell,NK', so --hold-out means the labels 'B cell', 'NK'" in result.stderr


def test_what_is_not_foreseen_is_one_line_with_the_way_to_report_it(data, tmp_path, monkeypatch):
    def fail(*_, **__):
        msg = "by zero"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr("sckit.data.prepare.Preparation", fail)
    result = invoke("prepare", data, "--out", tmp_path / "x.sckit")
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if line.strip()] == [
        "Error: this was not foreseen: ZeroDivisionError: by zero.",
        "To report it, run the same command with --debug and send all of its output.",
    ]
    assert "Traceback" in invoke("prepare", data, "--out", tmp_path / "x.sckit", "--debug").stderr


@pytest.mark.parametrize("command", ["prepare", "pretrain"])
def test_a_place_that_cannot_be_written_is_named(command, data, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "x"
    options = ["--out", place] if command == "prepare" else ["--runs", place, *FAST]
    result = invoke(command, f"{data}::layer=counts", *options)
    assert result.exit_code in (1, 2)
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "not foreseen" not in result.stderr
    assert str(place) in result.stderr


def test_genes_that_are_added_up_and_symbols_of_several_genes_are_said(data, tmp_path):
    adata = anndata.read_h5ad(data)
    adata.X = adata.layers["counts"]
    adata.var["gene_ids"] = [f"ENSG{i // 2 * 2 if i < 4 else i:011d}" for i in range(30)]
    adata.var_names = ["A", "A", *(f"G{i}" for i in range(2, 28)), "B", "B"]
    adata.write_h5ad(data)
    result = invoke("pretrain", data, "--assay", "any", *FAST, "--runs", tmp_path)
    assert "log: 2 genes have the name of another and were added to it" in result.stderr
    (tmp_path / "genes.txt").write_text("A\nB\nG7\n")
    common = ["prepare", data, "--assay", "any", "--genes", tmp_path / "genes.txt"]
    result = invoke(*common, "--out", tmp_path / "x.sckit")
    assert result.exit_code == 0, result.stderr
    assert "several genes have the symbol 'B' of --genes; the first is taken" in " ".join(result.stderr.split())


def test_mixed_columns_and_shares_of_some_genes_are_notes_of_the_store(data, tmp_path):
    adata = anndata.read_h5ad(data)
    adata.X = adata.layers["counts"]
    adata.var_names = ["MT-CO1", *adata.var_names[1:]]
    adata.obs["total"] = adata.X.sum(1).astype(int) * 2
    for name, donor in (("a", 1), ("b", "1")):
        adata.obs["donor"] = donor
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    both = [tmp_path / "a.h5ad", f"{tmp_path / 'b.h5ad'}::totals=total"]
    result = invoke("prepare", *both, "--max-mito", "0.9", "--assay", "any", "--out", tmp_path / "x.sckit")
    assert result.exit_code == 0, result.stderr
    shown = " ".join(invoke("info", tmp_path / "x.sckit").stdout.split())
    assert "the obs column donor holds numbers in some inputs and text in others, and is text in the store" in shown
    assert "the mitochondrial share of b is that of the genes in the file" in shown
