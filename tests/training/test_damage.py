"""A run folder that is damaged in any of its files is refused in one sentence, and nothing in it leads outside."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sckit import config as configs
from sckit.errors import DataError
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(configs.PRESETS, "tiny", {"width": 8, "layers": 1, "heads": 1})
    return shutil.copytree(GOLDEN, tmp_path / "run")


def edit_json(name, **changes):
    def edit(run):
        document = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({k: v for k, v in (document | changes).items() if v is not None}))

    return edit


def edit_model(**changes):
    def edit(run):
        document = json.loads((run / "model.json").read_text())
        document["model"] |= changes
        (run / "model.json").write_text(json.dumps(document))

    return edit


def edit_arrays(name, change):
    def edit(run):
        arrays = load_file(run / name)
        change(arrays)
        save_file(arrays, run / name)

    return edit


def write(name, content):
    return lambda run: (run / name).write_bytes(content)


def cut(name):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-9])


def remove(name):
    return lambda run: (run / name).unlink()


STATE = "checkpoints/step-00000004/state"
DAMAGE = {
    "no-forms": (remove("forms.safetensors"), "lacks forms.safetensors"),
    "cut-forms": (cut("forms.safetensors"), "the run .* is damaged"),
    "other-forms": (edit_arrays("forms.safetensors", lambda a: a.pop("axes")), "the run .* is damaged"),
    "forms-of-other-genes": (
        edit_arrays("forms.safetensors", lambda a: a.update(noise=a["noise"][:5])),
        "forms.safetensors does not fit genes.parquet",
    ),
    "forms-without-numbers": (
        edit_arrays("forms.safetensors", lambda a: a.update(noise=a["noise"] * np.nan)),
        "values that are no numbers",
    ),
    "empty-split": (write("split.npy", b""), "the run .* is damaged"),
    "other-split": (lambda run: np.save(run / "split.npy", np.arange(48, dtype=np.int8)), "split.npy is no split"),
    "short-split": (lambda run: np.save(run / "split.npy", np.zeros(4, np.int8)), "is not the one .* was trained on"),
    "pickled-split": (
        lambda run: np.save(run / "split.npy", np.array([object()], object), allow_pickle=True),
        "the run .* is damaged",
    ),
    "other-vocabulary": (
        lambda run: np.save(run / "vocabulary.npy", np.zeros(30, np.int32)),
        "vocabulary.npy does not number the genes",
    ),
    "deep-head": (
        write("split.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 15 + b"\n"),
        "the run .* is damaged",
    ),
    "huge-head": (
        write(
            "split.npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '|i1', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(117)
            + b"\n",
        ),
        "the run .* is damaged",
    ),
    "deep-data": (write("data.json", b"[" * 100_000), "data.json is damaged"),
    "empty-genes": (write("genes.parquet", b""), "the run .* is damaged"),
    "empty-config": (write("config.toml", b""), "config.toml does not hold the options"),
    "cut-config": (write("config.toml", b'mask = 0.1\ncontext = "det'), "the run .* is damaged"),
    "unknown-option": (write("config.toml", b"mask = 0.1\nnope = 3\n"), "the run .* is damaged"),
    "no-model": (remove("model.json"), "has no whole model"),
    "empty-model": (write("model.json", b"{}"), "has no whole model"),
    "huge-model": (edit_model(width=2**30, heads=2**20), "model.json and model.safetensors are of different models"),
    "huge-knots": (edit_model(knots=2**40), "model.json and model.safetensors are of different models"),
    "many-layers": (edit_model(layers=2**30), "model.json and model.safetensors are of different models"),
    "cut-model": (cut("model.safetensors"), "has no whole model"),
    "weights-missing": (edit_arrays("model.safetensors", lambda a: a.pop("norm.bias")), "has no whole model"),
    "weights-of-another-type": (
        edit_arrays("model.safetensors", lambda a: a.update({"norm.bias": a["norm.bias"].view(np.int32)})),
        "weights are numbers of another type",
    ),
    "store-without-a-name": (edit_json("data.json", store="\ud800"), "data.json is damaged"),
    "no-data": (write("data.json", b"[]"), "does not say where the store is"),
    "store-elsewhere": (edit_json("data.json", store="../../etc"), "names a store outside of the run"),
    "no-metrics": (remove("metrics.jsonl"), "cannot be resumed"),
    "torn-metrics": (write("metrics.jsonl", b'{"a": 1}\n'), "cannot be resumed"),
    "cut-checkpoint": (cut(f"{STATE}.safetensors"), "the checkpoint .* is damaged"),
    "cut-state": (cut(f"{STATE}.json"), "the checkpoint .* is damaged"),
    "list-state": (write(f"{STATE}.json", b"[]"), "the checkpoint .* is damaged"),
    "unknown-state": (edit_json(f"{STATE}.json", nope=1), "cannot be resumed"),
    "text-state": (edit_json(f"{STATE}.json", step="4"), "cannot be resumed"),
    "moments-of-another-shape": (
        edit_arrays(
            f"{STATE}.safetensors",
            lambda a: a.update({"optimiser.0.exp_avg": np.zeros((2, 2), np.float32)}),
        ),
        "the moments of parameter 0 have another shape",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_one_sentence(run, case):
    damage, message = DAMAGE[case]
    damage(run)

    def use():
        open_run(run).model()
        assert open_run(run).store.n_cells
        pretrain(resume=run)

    with pytest.raises(DataError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)
