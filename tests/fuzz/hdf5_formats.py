"""Cell Ranger's .h5 of both layouts and AnnData as .h5ad and as zarr: writing, and reading with h5py or anndata."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import mutations
import numpy as np
import scipy.sparse as sp
import trees
import zarr
from anndata_parts import anndata_parts, anndata_table
from content import Content, anndata_tree, content, old_anndata_tree, tenx1_tree, tenx3_tree
from judge import Case, Found, Refused, Table, cells_fault, dense, read_cells, texts
from mutations import pick


def plan(rng: np.random.Generator) -> tuple[int, bool]:
    """Draw how many structured edits a file gets and whether bytes of it are damaged then; 5 % get neither."""
    return pick(rng, [(0, False)] + [(1, False)] * 10 + [(2, False)] * 3 + [(3, False)] + [(0, True)] * 4 + [(1, True)])


class Cells(ABC):
    """What the formats of cells have in common."""

    name = ""

    def ours(self, case: Case) -> Found:
        """Read with sckit."""
        return read_cells(case)

    @abstractmethod
    def theirs(self, case: Case) -> Any:
        """Read without sckit."""

    def fault(self, ours: Found, theirs: Table, case: Case) -> str | None:
        """Say what sckit has wrong."""
        return cells_fault(ours, theirs, case.options)


class Tenx3(Cells):
    """A .h5 of Cell Ranger 3 and later."""

    name = "tenx3"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated file."""
        made = content(rng)
        tree = tenx3_tree(made, rng)
        case = Case(folder / "filtered_feature_bc_matrix.h5", edits=made.odd)
        if len(set(made.genomes)) > 1 or rng.random() < 0.05:
            case.options = {"genome": "GRCh38"}
        return _write_h5(case, tree, rng)

    def theirs(self, case: Case) -> Table:
        """Read with h5py and scipy."""
        with h5py.File(case.path) as file:
            matrix: Any = file["matrix"]
            features = matrix["features"]
            columns = {name: texts(_column(features, name)) for name in ("id", "name") if name in features}
            types, genomes = (
                texts(_column(features, name)) if name in features else None for name in ("feature_type", "genome")
            )
            return _tenx_table(matrix, columns, types, genomes)


class Tenx1(Cells):
    """A .h5 of Cell Ranger 1 and 2, one group for each genome."""

    name = "tenx1"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated file."""
        made = content(rng)
        tree = tenx1_tree(made, rng)
        case = Case(folder / "filtered_gene_bc_matrices_h5.h5", edits=made.odd)
        if made.ids[0].startswith("GRCh38_") and "mm10" in made.genomes:
            case.edits.append("ids: two genomes in one group")
        if "mm10" in tree and rng.random() < 0.9:
            case.options = {"genome": pick(rng, ("GRCh38", "mm10"))}
        return _write_h5(case, tree, rng, ["genome: not chosen"] if "mm10" in tree and not case.options else [])

    def theirs(self, case: Case) -> Table:
        """Read with h5py and scipy."""
        with h5py.File(case.path) as file:
            genome = case.options.get("genome")
            genome = genome or next(name for name in file if isinstance(file[name], h5py.Group))
            matrix: Any = file[genome]
            columns = {name: texts(_column(matrix, name)) for name in ("genes", "gene_names") if name in matrix}
            return _tenx_table(matrix, columns, None, None)

    def fault(self, ours: Found, theirs: Table, case: Case) -> str | None:
        """Say what sckit has wrong; the genome is that of the group, not one in front of ids."""
        return cells_fault(ours, theirs, {})


def _tenx_table(
    matrix: Any, columns: dict[str, list[str]], types: list[str] | None, genomes: list[str] | None
) -> Table:
    cells = texts(_column(matrix, "barcodes"))
    n_features = {len(column) for column in [*columns.values(), types, genomes] if column is not None}
    if len(n_features) != 1:
        msg = "lists of features differ in length"
        raise Refused(msg)
    shape = (len(cells), n_features.pop())
    if "shape" in matrix and matrix["shape"][:].tolist() != [shape[1], shape[0]]:
        msg = "shape is not that of the lists"
        raise Refused(msg)
    counts = dense(matrix["data"][:], matrix["indices"][:], matrix["indptr"][:], shape)
    return Table(cells, counts, columns, types, genomes)


def _column(group: Any, name: str) -> np.ndarray:
    stored = group[name]
    if stored.ndim != 1 or stored.shape[0] > 2**20:
        msg = f"{name} is no list"
        raise Refused(msg)
    return stored[:]


def _write_h5(case: Case, tree: trees.Tree, rng: np.random.Generator, edits: Sequence[str] = ()) -> Case:
    n_edits, damaged = plan(rng)
    case.edits += [*edits] + [trees.edit(rng, tree) for _ in range(n_edits)]
    try:
        trees.write_h5(tree, case.path)
    except (TypeError, ValueError, OSError, RuntimeError, KeyError) as error:  # of what HDF5 cannot hold
        case.edits.append(f"unwritable: {type(error).__name__}")
    if damaged:
        case.edits.append(mutations.damage(rng, case.path))
    return case


class H5ad(Cells):
    """AnnData in one file, of today and of 2018."""

    name = "h5ad"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated file."""
        case, tree = _anndata_case(rng, Case(folder / "cells.h5ad"), old=rng.random() < 0.15)
        return _write_h5(case, tree, rng)

    def theirs(self, case: Case) -> Table:
        """Read with anndata."""
        return _anndata_table(anndata.read_h5ad, h5py.File, case)


class Zarr(Cells):
    """AnnData as a folder of zarr, of formats 2 and 3."""

    name = "zarr"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated folder."""
        case, tree = _anndata_case(rng, Case(folder / "cells.zarr"), old=False)
        n_edits, damaged = plan(rng)
        case.edits += [trees.edit(rng, tree) for _ in range(n_edits)]
        if rng.random() < 0.08:
            case.edits.append(_plant_codec(rng, tree))
        trees.write_zarr(tree, case.path, rng)
        if damaged:
            case.edits.append(mutations.damage_folder(rng, case.path))
        return case

    def theirs(self, case: Case) -> Table:
        """Read with anndata."""
        return _anndata_table(anndata.read_zarr, _open_zarr, case)


@contextmanager
def _open_zarr(path: Path, mode: str) -> Iterator[Any]:
    yield zarr.open_group(path, mode=mode)  # pyright: ignore[reportArgumentType]


def _plant_codec(rng: np.random.Generator, tree: trees.Tree) -> str:
    """Declare another codec or shape for one array: one that unpickles, an unknown one, a huge one."""
    name = pick(rng, [name for name, node in tree.items() if node.data is not None])
    kind, meta = pick(
        rng,
        (
            ("pickle", {"filters": [{"id": "pickle", "protocol": 5}], "codecs": [{"name": "numcodecs.pickle"}]}),
            ("unknown codec", {"compressor": {"id": "nothing"}, "codecs": [{"name": "nothing"}]}),
            ("json2", {"filters": [{"id": "json2"}], "compressor": None}),
            ("huge shape", {"shape": [2**40], "chunks": [2**40]}),
            ("negative shape", {"shape": [-1], "chunks": [-1]}),
            (
                "huge chunk",
                {"chunks": [2**31], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**31]}}},
            ),
            ("version", {"zarr_format": 9}),
            ("dtype", {"dtype": "<M8[ns]", "data_type": "complex64"}),
            ("records", {"dtype": [["a", "<i4"], ["b", "<f8"]]}),
            ("fill", {"fill_value": "NaN"}),
            ("order", {"order": "F"}),
        ),
    )
    node = tree[name]
    node.storage = {"meta": meta}
    if kind == "pickle" and node.data is not None:
        node.data = np.frombuffer(trees.PICKLE, dtype="u1")
    return f"zarr codec: {kind}"


def _anndata_case(rng: np.random.Generator, case: Case, *, old: bool) -> tuple[Case, trees.Tree]:
    made = content(rng)
    values = _logarithms(rng, made, case) if rng.random() < 0.12 else made.counts
    if "from_log1p" not in case.options:
        own = [{"totals": "n_counts"}] * 2 + [{"raw": True}, {} if old else {"layer": "counts"}]
        case.options = dict(pick(rng, [{}] * 12 + own))
    tree = (old_anndata_tree if old else anndata_tree)(made, rng, values, case.options)
    tables = ("raw/var", "raw.var") if case.options.get("raw") else ("var",)
    data = [node.data for key, node in tree.items() if key.startswith(tables) and node.data is not None]
    lists = [column for one in data for column in ([one[n] for n in one.dtype.names] if one.dtype.names else [one])]
    names = [name for column in lists for name in texts(column)]
    has_genomes = any(name == "mm10" or name.startswith("mm10_") for name in names)
    case.edits = made.odd
    if has_genomes:
        case.options["genome"] = "GRCh38"
    return case, tree


def _logarithms(rng: np.random.Generator, made: Content, case: Case) -> np.ndarray:
    """Return log1p of counts per 10,000, with totals in obs or with enough genes to do without."""
    if rng.random() < 0.5:
        case.options = {"from_log1p": True, "totals": "n_counts"}
        totals = made.obs["n_counts"]
    else:
        case.options = {"from_log1p": True}
        n_cells = len(made.cells)
        made.counts = rng.poisson(1.0, (n_cells, 40)) + (np.arange(40) < 25)
        numbers = np.arange(40).astype(str)
        made.ids, made.symbols = ("ENSG" + np.char.zfill(numbers, 11)).astype(object), ("G" + numbers).astype(object)
        made.types, made.genomes = np.full((2, 40), "Gene Expression", dtype=object)
        totals = made.counts.sum(1)
    return np.log1p(made.counts * (1e4 / np.maximum(totals, 1))[:, None])


def _anndata_table(read: Any, opened: Any, case: Case) -> Table:
    """Read with anndata; where it refuses the file, read what sckit needs with a few lines and say so."""
    try:
        if any("bomb" in edit for edit in case.edits):  # anndata would read it also where sckit does not need it
            msg = "huge"
            raise Refused(msg)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = read(case.path)
        return _of_anndata(data, case.options)
    except Exception as error:
        with opened(case.path, mode="r") as file:
            table = anndata_parts(file, case.options)
        table.instead = f"anndata refuses the file ({type(error).__name__}); a few lines read the same"
        return table


def _of_anndata(data: Any, options: dict[str, Any]) -> Table:
    if options.get("raw"):
        matrix, var = data.raw.X, data.raw.var
    else:
        matrix, var = data.layers[options["layer"]] if "layer" in options else data.X, data.var
    if matrix is None:
        msg = "no matrix"
        raise Refused(msg)
    if sp.issparse(matrix):
        rows: Any = matrix if matrix.format == "csr" else matrix.T
        counts = dense(rows.data, rows.indices, rows.indptr, rows.shape)
        counts = counts if matrix.format == "csr" else counts.T
    else:
        counts = np.asarray(matrix, dtype=np.float64)
    columns = {"index": texts(var.index)} | {str(name): texts(var[name].astype(object)) for name in var.columns}
    totals = [float(v) for v in data.obs[options["totals"]]] if "totals" in options else None
    return anndata_table(texts(data.obs_names), counts, columns, totals, options)
