"""A store and a run that version 0.1.0 wrote: they open, evaluate and go on as they did there."""

import json
import shutil
from pathlib import Path

import pytest

from sckit import config as configs
from sckit.config import EvalConfig
from sckit.data.store import open_store
from sckit.evaluation.evaluate import evaluate
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
# Processors with other vector widths add in another order, and so does another version of torch.
ROUNDING = 1e-5


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(GOLDEN / "run", tmp_path / "run")


def test_the_store_opens_and_its_files_are_whole(run):
    store = open_store(run / "data.sckit")
    store.verify()
    assert (store.n_cells, store.n_genes) == (48, 30)
    assert list(store.obs.columns[:2]) == ["cell", "source"]


def test_the_run_evaluates_to_the_same_scores(run):
    settings = EvalConfig(
        masks=(0.15, 1.0),
        contexts=("detected", "visible"),
        label="cell_type",
        replicate_halves=True,
        bootstraps=50,
    )
    rows = evaluate(run, settings).rows
    assert len(rows) == len(EXPECTED["eval_rows"])
    for row, expected in zip(rows, EXPECTED["eval_rows"], strict=True):
        for name, value in expected.items():
            if isinstance(value, dict):
                assert row[name]["r2_gene_mean"] == pytest.approx(value["r2_gene_mean"], abs=ROUNDING)
            else:
                assert row[name] == (pytest.approx(value, abs=ROUNDING) if isinstance(value, float) else value), name


def test_the_killed_run_goes_on_to_the_same_end(run, monkeypatch):
    monkeypatch.setitem(configs.PRESETS, "tiny", {"width": 8, "layers": 1, "heads": 1})
    assert open_run(run).config.steps == 8
    pretrain(resume=run)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for name, value in EXPECTED["last_validation"].items():
        assert last[name] == (pytest.approx(value, abs=ROUNDING) if isinstance(value, float) else value), name
