"""TileDB-SOMA experiments: writing mutated ones and reading them with tiledbsoma alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma
from content import Content, content
from hdf5_formats import Cells, plan
from judge import Case, Refused, Table, texts
from mutations import pick


class Soma(Cells):
    """An experiment with one or more measurements.

    Its bytes hold times and random names, so a damaged byte may lie elsewhere when a case is made again; the folders of
    cases with a fault are therefore kept.
    """

    name = "soma"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated experiment."""
        made = content(rng)
        case = Case(folder / "cells.soma", edits=made.odd)
        parts = _parts(made, rng)
        if any(name.startswith("mm10_") for name in made.ids):
            case.options = {"genome": "GRCh38"}
        n_edits, damaged = plan(rng)
        case.edits += [_edit(rng, parts) for _ in range(n_edits)]
        try:
            _write(case.path, parts)
        except Exception as error:  # of what TileDB cannot hold
            case.edits.append(f"unwritable: {type(error).__name__}")
        if damaged:
            case.edits.append(mutations.damage_folder(rng, case.path) if case.path.is_dir() else "nothing")
        return case

    def is_unsteady(self, case: Case) -> bool:
        """Return whether TileDB reads other genes from the same damaged file when it is asked again."""
        read = set()
        for _ in range(20):
            with tiledbsoma.open(str(case.path)) as opened:
                experiment: Any = opened
                frames = [experiment.obs, *(one.var for one in experiment.ms.values())]
                read.add(str([frame.read().concat().to_pandas().to_dict() for frame in frames]))
        return len(read) > 1

    def theirs(self, case: Case) -> Table:
        """Read all three arrays whole with tiledbsoma."""
        with tiledbsoma.open(str(case.path)) as opened:
            experiment: Any = opened
            measurements = list(experiment.ms)
            measurement = experiment.ms["RNA" if "RNA" in measurements else measurements[0]]
            layers = list(measurement.X)
            layer = measurement.X[next((name for name in ("counts", "raw", "data") if name in layers), layers[0])]
            obs, var = (
                frame.read().concat().to_pandas().sort_values("soma_joinid")
                for frame in (experiment.obs, measurement.var)
            )
            if layer.soma_type == "SOMADenseNDArray":
                stored = layer.read().to_numpy()
                counts = stored[obs["soma_joinid"].to_numpy()][:, var["soma_joinid"].to_numpy()].astype(np.float64)
            else:
                entries = layer.read().tables().concat().to_pandas()
                counts = _placed(entries, obs["soma_joinid"], var["soma_joinid"])
        cell = next(n for n in ("obs_id", "cell_id", "barcode", "soma_joinid") if n in obs)
        return Table(texts(obs[cell]), counts, {str(name): texts(var[name].astype(object)) for name in var})


def _placed(entries: pd.DataFrame, cells: pd.Series, genes: pd.Series) -> np.ndarray:
    counts = np.zeros((len(cells), len(genes)))
    rows, columns = pd.Index(cells), pd.Index(genes)
    cell, gene = rows.get_indexer(entries["soma_dim_0"]), columns.get_indexer(entries["soma_dim_1"])
    if ((gene < 0) & (cell >= 0)).any():
        msg = "an entry of no gene"
        raise Refused(msg)
    kept = cell >= 0
    np.add.at(counts, (cell[kept], gene[kept]), entries["soma_data"].to_numpy()[kept].astype(np.float64))
    return counts


def _parts(made: Content, rng: np.random.Generator) -> dict[str, Any]:
    """Return what an experiment consists of, to be edited before it is written."""
    n_cells, n_genes = made.counts.shape
    step = pick(rng, (1, 1, 1, 2))
    obs = pd.DataFrame(
        {"soma_joinid": np.arange(n_cells) * step, pick(rng, ("obs_id", "barcode")): made.cells, **made.obs}
    )
    names = pick(rng, (("var_id", "gene_name"), ("feature_id", "feature_name"), ("var_id", "feature_name")))
    var = pd.DataFrame({"soma_joinid": np.arange(n_genes) * step, names[0]: made.ids, names[1]: made.symbols})
    rows, columns = np.nonzero(made.counts)
    entries = pd.DataFrame(
        {
            "soma_dim_0": rows.astype(np.int64) * step,
            "soma_dim_1": columns.astype(np.int64) * step,
            "soma_data": made.counts[rows, columns].astype(pick(rng, ("f4", "i4", "u2", "i8", "f8"))),
        }
    )
    layers = pick(rng, (["data"], ["data"], ["counts", "data"], ["raw", "normalized"], ["only"]))
    measurements = pick(rng, (["RNA"], ["RNA"], ["RNA", "ATAC"], ["spliced"]))
    if rng.random() < 0.3:
        obs["cell_type"] = obs["cell_type"].astype("category")
    dense = rng.random() < 0.2 and step == 1
    return {"obs": obs, "var": var, "entries": entries, "layers": layers, "measurements": measurements, "dense": dense}


def _write(path: Path, parts: dict[str, Any]) -> None:
    uri = str(path)
    with tiledbsoma.Experiment.create(uri) as experiment:
        _write_frame(experiment, "obs", parts["obs"])
        if parts.get("ms") is False:
            return
        measurements: Any = experiment.add_new_collection("ms")
        for name in parts["measurements"]:
            measurement = measurements.add_new_collection(name, tiledbsoma.Measurement)
            _write_frame(measurement, "var", parts["var"])
            layers = measurement.add_new_collection("X")
            for number, layer in enumerate(parts["layers"]):
                entries = parts["entries"].copy()
                entries["soma_data"] = entries["soma_data"] + entries["soma_data"].dtype.type(number)
                shape = tuple(int(entries[d].max()) + 1 if len(entries) else 1 for d in ("soma_dim_0", "soma_dim_1"))
                own = tuple(int(parts[k]["soma_joinid"].max()) + 1 if len(parts[k]) else 1 for k in ("obs", "var"))
                shape = parts.get("shape") or tuple(map(max, shape, own))
                _write_layer(layers, layer, entries, shape, dense=parts["dense"])


def _write_layer(layers: Any, name: str, entries: pd.DataFrame, shape: tuple[int, ...], *, dense: bool) -> None:
    kind = pa.from_numpy_dtype(entries["soma_data"].dtype)
    if not dense:
        layers.add_new_sparse_ndarray(name, type=kind, shape=shape).write(
            pa.Table.from_pandas(entries, preserve_index=False)
        )
        return
    whole = np.zeros(shape, dtype=entries["soma_data"].to_numpy().dtype)
    whole[entries["soma_dim_0"], entries["soma_dim_1"]] = entries["soma_data"]
    layers.add_new_dense_ndarray(name, type=kind, shape=shape).write(
        (slice(None), slice(None)), pa.Tensor.from_numpy(whole)
    )


def _write_frame(parent: Any, name: str, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    top = int(frame["soma_joinid"].max()) if len(frame) and "soma_joinid" in frame else 0
    made = parent.add_new_dataframe(name, schema=table.schema, domain=((0, max(top, 0)),))
    if len(frame):
        kinds = {column: pa.array(frame[column].cat.categories) for column in frame.select_dtypes("category")}
        if kinds:
            made.extend_enumeration_values(kinds)
        made.write(table)


def _edit(rng: np.random.Generator, parts: dict[str, Any]) -> str:
    """Change one thing of an experiment."""
    kind = pick(
        rng,
        (
            *("labels", "labels", "labels", "numbers", "numbers", "numbers", "type", "drop column", "rename column"),
            *("drop row", "no rows", "gap", "other cell", "other gene", "no entries", "layers", "measurements"),
            *("no ms", "shape", "permuted", "dense", "more columns", "large join ids"),
        ),
    )
    table = pick(rng, ("obs", "var"))
    frame: pd.DataFrame = parts[table]
    entries: pd.DataFrame = parts["entries"]
    if "soma_joinid" not in frame:
        return f"{table}: no join ids already"
    texts_of = [name for name in frame.columns if frame[name].dtype == object]
    what = kind
    if kind == "labels" and texts_of:
        name = pick(rng, texts_of)
        labels, what = mutations.change_labels(rng, frame[name].to_numpy(object))
        parts[table] = frame.assign(**{name: [v.decode("latin-1") if isinstance(v, bytes) else v for v in labels]})
    elif kind in ("numbers", "type"):
        change = mutations.change_numbers if kind == "numbers" else mutations.change_type
        values, what = change(rng, entries["soma_data"].to_numpy())
        parts["entries"] = entries.assign(soma_data=values)
    elif kind in ("drop column", "rename column") and len(frame.columns):
        name = pick(rng, list(frame.columns))
        parts[table] = frame.drop(columns=name) if kind == "drop column" else frame.rename(columns={name: f"{name}2"})
    elif kind in ("drop row", "no rows"):
        parts[table] = frame.iloc[1:] if kind == "drop row" else frame.iloc[:0]
    elif kind == "gap":
        parts[table] = frame.assign(soma_joinid=frame["soma_joinid"] + (np.arange(len(frame)) > len(frame) // 2))
    elif kind in ("other cell", "other gene") and len(entries):
        name = "soma_dim_0" if kind == "other cell" else "soma_dim_1"
        moved = entries[name].to_numpy().copy()
        moved[int(rng.integers(len(moved)))] += pick(rng, (100, 2**20))
        parts["entries"] = entries.assign(**{name: moved})
    elif kind == "no entries":
        parts["entries"] = entries.iloc[:0]
    elif kind in ("layers", "measurements"):
        parts[kind] = pick(rng, ([], ["a", "b"], ["X"], ["raw"], ["RNA", "counts"], ["data", "logged"]))
    elif kind == "no ms":
        parts["ms"] = False
    elif kind == "shape":
        parts["shape"] = pick(rng, ((1, 1), (100, 100), (2**31, 2**31), (2**40, 50)))
    elif kind == "permuted":
        parts[table] = frame.iloc[rng.permutation(len(frame))]
    elif kind == "dense":
        parts["dense"] = True
    elif kind == "more columns":
        parts[table] = frame.assign(note=mutations.CODE, when=pd.Timestamp("2020-01-01"), gene="x")
    elif kind == "large join ids":
        parts[table] = frame.assign(soma_joinid=frame["soma_joinid"] + 2**40)
    return f"{table if 'entries' not in kind else 'X'}: {what}"
