"""Stores that `prepare` wrote and run folders that `pretrain` wrote: mutated copies, read without sckit."""

from __future__ import annotations

import json
import shutil
import tomllib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata
import mutations
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from content import content
from files import damage_npy, edit_json, edit_npy, edit_parquet, edit_toml
from hdf5_formats import Cells, plan
from judge import Case, Found, Refused, dense, read_cells, texts, without_front
from mutations import pick
from tensors import damage_safetensors, safetensors

from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.store import describe, open_store
from sckit.errors import SckitError
from sckit.files import checksum
from sckit.training.checkpoint import load_checkpoint
from sckit.training.optimiser import make_optimiser
from sckit.training.run import open_run

_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "run"
_ARRAYS = ("indptr", "genes", "counts")


class Store(Cells):
    """A store: a manifest, two tables, shards of three arrays."""

    name = "store"

    def __init__(self, base: Path, seed: int) -> None:
        """Write some stores to be copied."""
        self._bases = [base / f"store-{seed}-{i}" for i in range(4)]
        base.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(self._bases):
            if not path.exists():
                inputs = [base / f"{seed}-{number}-{i}.h5ad" for i in range(1 + number % 2)]
                for i, file in enumerate(inputs):
                    made = content(np.random.default_rng([seed, number, i]))
                    obs = pd.DataFrame(made.obs, index=made.cells).astype({"cell_type": "category"})
                    var = pd.DataFrame(index=pd.Index([f"G{g}" for g in range(made.counts.shape[1])]))
                    anndata.AnnData(made.counts.astype("f4"), obs, var).write_h5ad(file)
                prepare(inputs, path, config=PrepareConfig(cells_per_shard=5))

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated copy."""
        case = Case(folder / "cells.sckit")
        shutil.copytree(pick(rng, self._bases), case.path)
        n_edits, damaged = plan(rng)
        for _ in range(n_edits):
            files = sorted(file for file in case.path.rglob("*") if file.is_file())
            file = pick(rng, [*files, *[f for f in files if f.suffix != ".npy"] * 2])
            edit = {".json": edit_json, ".parquet": edit_parquet}.get(file.suffix, edit_npy)
            if file.suffix == ".npy" and rng.random() < 0.3:
                edit = damage_npy
            case.edits.append(f"{file.name.split('.', 1)[-1]}: {edit(rng, file)}")
        if damaged:
            case.edits.append(mutations.damage_folder(rng, case.path))
        if case.edits and rng.random() < 0.8:
            _rewrite_sizes(case.path)
        return case

    def ours(self, case: Case) -> Found:
        """Read as an input and as a store, which have to agree."""
        store = open_store(case.path)
        for check in (store.verify, lambda: describe(store)):
            with suppress(SckitError):
                check()
        indptr, genes, counts = store.rows(np.arange(store.n_cells))
        direct = dense(counts, genes.astype(np.int64), indptr, (store.n_cells, store.n_genes))
        found = read_cells(case)
        assert np.array_equal(direct, found.counts), "the store reads other counts than the reader of stores"
        assert np.array_equal(store.totals(np.arange(store.n_cells)), found.totals), "other totals"
        return found

    def theirs(self, case: Case) -> dict[str, Any]:
        """Read with json, numpy and pyarrow."""
        manifest = json.loads((case.path / "manifest.json").read_text())
        tables = {name: pq.read_table(case.path / f"{name}.parquet").to_pandas() for name in ("genes", "obs")}
        rows = []
        for number, shard in enumerate(manifest["shards"]):
            indptr, genes, counts = (np.load(case.path / f"shards/{number:05d}.{name}.npy") for name in _ARRAYS)
            rows.append(dense(counts, genes, indptr, (shard["cells"], manifest["genes"])))
        return {"counts": np.concatenate(rows), **tables}

    def fault(self, ours: Found, theirs: Any, case: Case) -> str | None:
        """Compare counts, names, totals and the columns of obs."""
        genes, obs = theirs["genes"], theirs["obs"]
        if not np.array_equal(ours.counts, theirs["counts"]):
            return "counts are not those of the arrays"
        wanted = {
            "cells": (ours.cells, obs["cell"]),
            "ids": (ours.ids, genes["id"]),
            "symbols": (ours.symbols, genes["symbol"]),
        }
        for name, (mine, other) in wanted.items():
            if mine not in (texts(other), without_front(texts(other))):
                return f"{name} {mine[:3]} are not {texts(other)[:3]}"
        if ours.totals.tolist() != [int(v) for v in obs["total_counts"]]:
            return "totals are not those of the table"
        for name in ours.source.obs.columns:
            if texts(ours.source.obs[name].astype(object)) != texts(obs[name].astype(object)):
                return f"the column {name} of obs"
        return None


def _rewrite_sizes(path: Path) -> None:
    """Write the sizes and checksums of the files as they are now into the manifest, if it is one still."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for records in [manifest["tables"], *[shard["files"] for shard in manifest["shards"]]]:
            for name in records:
                if (path / name).resolve().is_relative_to(path.resolve()) and (path / name).is_file():
                    records[name] = {"bytes": (path / name).stat().st_size, "sha256": checksum(path / name)}
        (path / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, OSError, AttributeError, RecursionError):
        return


class RunFolder:
    """The folder of a training run, with its store and a checkpoint."""

    name = "run"

    def __init__(self, base: Path, seed: int) -> None:
        """Need nothing: the copies are of the run under tests/golden."""

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated copy."""
        case = Case(folder / "run")
        shutil.copytree(_GOLDEN, case.path)
        n_edits, damaged = plan(rng)
        edits = {".json": edit_json, ".parquet": edit_parquet, ".npy": edit_npy, ".toml": edit_toml}
        for _ in range(n_edits):
            files = [f for f in sorted(case.path.rglob("*")) if f.is_file() and "data.sckit" not in f.parts]
            files = [f for f in files if f.suffix != ".jsonl"]
            file = pick(rng, [*files, case.path / "config.toml"])
            edit = edits.get(file.suffix, damage_safetensors)
            if file.suffix == ".npy" and rng.random() < 0.3:
                edit = damage_npy
            case.edits.append(f"{file.name}: {edit(rng, file)}")
        if damaged:
            case.edits.append(mutations.damage_folder(rng, case.path))
        return case

    def ours(self, case: Case) -> dict[str, Any]:
        """Open the run, its store, its model and its checkpoint."""
        run = open_run(case.path)
        store = run.store
        model = run.model()
        best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimiser = make_optimiser(model, run.config)
        state = load_checkpoint(case.path, [model], optimiser)
        return {
            "run": run,
            "store": store,
            "best": best,
            "state": state,
            "latest": model.state_dict(),
            "slots": optimiser.state_dict()["state"],
        }

    def theirs(self, case: Case) -> dict[str, Any]:
        """Read with json, tomllib, numpy, pyarrow and a few lines for safetensors."""
        path = case.path
        where = json.loads((path / "data.json").read_text())
        if not isinstance(where["store"], str) or not isinstance(where["inside"], bool):
            msg = "data.json"
            raise Refused(msg)
        store = path / where["store"] if where["inside"] else Path(where["store"])
        found: dict[str, Any] = {
            "config": tomllib.loads((path / "config.toml").read_text()),
            "split": np.load(path / "split.npy"),
            "vocabulary": np.load(path / "vocabulary.npy"),
            "genes": pq.read_table(path / "genes.parquet").to_pandas(),
            "forms": safetensors(path / "forms.safetensors"),
            "best": safetensors(path / "model.safetensors"),
            "cells": json.loads((store / "manifest.json").read_text())["cells"],
            "store_genes": json.loads((store / "manifest.json").read_text())["genes"],
        }
        steps = sorted(p for p in (path / "checkpoints").glob("step-*") if not p.suffix)
        if steps:
            found["state"] = json.loads((steps[-1] / "state.json").read_text())
            found["latest"] = safetensors(steps[-1] / "state.safetensors")
        split, vocabulary, genes = found["split"], found["vocabulary"], found["genes"]
        if split.shape != (found["cells"],) or split.dtype.kind not in "iu" or not np.isin(split, (0, 1, 2, 3)).all():
            msg = "split is not one of 0, 1, 2, 3 for each cell"
            raise Refused(msg)
        if not {"id", "symbol"} <= set(genes.columns):
            msg = "genes have no id or symbol"
            raise Refused(msg)
        known = vocabulary[vocabulary >= 0] if vocabulary.dtype.kind in "iu" else None
        if known is None or vocabulary.shape != (found["store_genes"],) or known.tolist() != list(range(len(genes))):
            msg = "vocabulary does not number the genes"
            raise Refused(msg)
        return found

    def fault(self, ours: Any, theirs: Any, case: Case) -> str | None:
        """Compare all arrays, tables and settings."""
        run, config = ours["run"], asdict(ours["run"].config)
        for name, value in theirs["config"].items():
            if name in config and list(np.ravel(config[name])) != list(np.ravel(value)):
                return f"config {name} is {config[name]!r}, not {value!r}"
        if not (np.array_equal(run.split, theirs["split"]) and np.array_equal(run.vocabulary, theirs["vocabulary"])):
            return "split or vocabulary"
        for name in ("id", "symbol"):
            if texts(run.genes[name]) != texts(theirs["genes"][name]):
                return f"genes {name}"
        for name, array in theirs["forms"].items():
            if not np.array_equal(vars(run.forms)[name], array, equal_nan=array.dtype.kind == "f"):
                return f"forms {name}"
        tensors = {f"best {name}": (ours["best"][name], array) for name, array in theirs["best"].items()}
        for name, array in theirs.get("latest", {}).items():
            kind, _, key = name.partition(".")
            if kind == "model":
                tensors[name] = (ours["latest"][key], array)
            elif kind == "optimiser":
                index, _, slot = key.partition(".")
                tensors[name] = (ours["slots"][int(index)][slot], array)
        for name, (tensor, array) in tensors.items():
            mine = torch.as_tensor(tensor).numpy()
            if mine.shape != array.shape or not np.array_equal(mine, array, equal_nan=array.dtype.kind == "f"):
                return f"tensor {name}"
        return None if ours["state"] == theirs.get("state") else "state of the checkpoint"
