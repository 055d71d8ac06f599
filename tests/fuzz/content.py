"""Small seeded counts with names and labels, and the trees that Cell Ranger and AnnData make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from mutations import pick
from trees import Node, Tree


@dataclass
class Content:
    """C cells and F features."""

    counts: np.ndarray  # int64 [C, F]
    cells: np.ndarray  # str [C]
    ids: np.ndarray  # str [F]
    symbols: np.ndarray  # str [F]
    types: np.ndarray  # str [F]
    genomes: np.ndarray  # str [F]
    obs: dict[str, np.ndarray]  # [C] each
    odd: list[str]  # what may make a reader refuse it as it is


def content(rng: np.random.Generator) -> Content:
    """Draw counts of 1 to 12 cells in 2 to 14 features, mostly genes, sometimes of two genomes or of other types."""
    n_cells, n_features = int(rng.integers(1, 13)), int(rng.integers(2, 15))
    counts = rng.poisson(rng.gamma(0.5, 2.0, n_features), (n_cells, n_features))
    counts[0, 0] += 1
    odd: list[str] = []
    numbers = rng.permutation(n_features)
    ids = np.array([f"ENSG{i + 100:011d}" + pick(rng, ("", "", ".7")) for i in numbers], dtype=object)
    symbols = np.array([pick(rng, ("GENE", "AC00")) + str(i) for i in numbers], dtype=object)
    types = np.full(n_features, "Gene Expression", dtype=object)
    genomes = np.full(n_features, "GRCh38", dtype=object)
    if rng.random() < 0.3:
        types[1:][rng.random(n_features - 1) < 0.3] = pick(rng, ("Antibody Capture", "Peaks", "Custom", "NA"))
    if rng.random() < 0.2:
        types[:] = pick(rng, ("gene expression", "GEX", "NA", "chr1"))
    if rng.random() < 0.15:
        genomes[1:][rng.random(n_features - 1) < 0.4] = "mm10"
    if rng.random() < 0.15:
        ids = np.array([f"{g}_{i}" for g, i in zip(genomes, ids, strict=True)], dtype=object)
        symbols = np.array([f"{g}_{s}" for g, s in zip(genomes, symbols, strict=True)], dtype=object)
    if rng.random() < 0.08:
        ids, symbols = symbols, ids
    if rng.random() < 0.06:
        ids = symbols.copy()
    if rng.random() < 0.06:
        symbols[-1] = symbols[0]
    if rng.random() < 0.04:
        symbols = np.array([str(i) for i in numbers], dtype=object)
        odd.append("symbols: numbers")
    cells = np.array(["".join(rng.choice(list("ACGT"), 6)) + f"-{i + 1}" for i in range(n_cells)], dtype=object)
    obs = {
        "cell_type": rng.choice(["B", "T cell", "NK"], n_cells).astype(object),
        "n_counts": counts.sum(1) + rng.integers(0, 3),
        "score": rng.normal(size=n_cells),
        "batch": rng.integers(0, 4, n_cells),
        "doublet": rng.random(n_cells) < 0.2,
    }
    return Content(counts, cells, ids, symbols, types, genomes, obs, odd)


def compressed(matrix: np.ndarray, rng: np.random.Generator) -> dict[str, Node]:
    """Return data, indices and indptr of the rows of a matrix, in one of the usual types."""
    csr = sp.csr_array(matrix)
    dtype = pick(rng, ("i4", "i8", "f4", "f4", "f8", "u2", "u4"))
    whole = matrix.dtype.kind in "iu"
    return {
        "data": Node(csr.data.astype(dtype if whole else "f4")),
        "indices": Node(csr.indices.astype(pick(rng, ("i4", "i8")))),
        "indptr": Node(csr.indptr.astype(pick(rng, ("i4", "i8")))),
    }


def tenx3_tree(made: Content, rng: np.random.Generator) -> Tree:
    """Return the file of Cell Ranger 3 and later."""
    tree: Tree = {"": Node(attrs={"filetype": "matrix", "chemistry_description": "v3"}), "matrix": Node()}
    tree["matrix/barcodes"] = Node(made.cells.astype("S") if rng.random() < 0.7 else made.cells)
    tree |= {f"matrix/{name}": node for name, node in compressed(made.counts, rng).items()}
    tree["matrix/shape"] = Node(np.array(made.counts.T.shape, dtype=np.int32))
    tree["matrix/features"] = Node()
    columns = {"id": made.ids, "name": made.symbols, "feature_type": made.types, "genome": made.genomes}
    for name, values in columns.items():
        tree[f"matrix/features/{name}"] = Node(values.astype("S"))
    tree["matrix/features/_all_tag_keys"] = Node(np.array(["genome"]).astype("S"))
    return tree


def tenx1_tree(made: Content, rng: np.random.Generator) -> Tree:
    """Return the file of Cell Ranger 1 or 2, with a group for each genome."""
    tree: Tree = {"": Node(attrs={"chemistry_description": "v2"})}
    two = rng.random() < 0.3
    for genome in ("GRCh38", "mm10") if two else ("hg19",):
        counts = made.counts if genome != "mm10" else np.roll(made.counts, 1, axis=1)
        tree[genome] = Node()
        parts = {"barcodes": made.cells, "genes": made.ids, "gene_names": made.symbols}
        tree |= {f"{genome}/{name}": Node(values.astype("S")) for name, values in parts.items()}
        tree |= {f"{genome}/{name}": node for name, node in compressed(counts, rng).items()}
        tree[f"{genome}/shape"] = Node(np.array(counts.T.shape, dtype=np.int32))
    return tree


def anndata_tree(made: Content, rng: np.random.Generator, values: np.ndarray, options: dict[str, Any]) -> Tree:
    """Return AnnData as of today: X, layers, raw, tables with columns of several kinds; with what the options name."""
    tree: Tree = {"": Node(attrs={"encoding-type": "anndata", "encoding-version": "0.1.0"})}
    tree |= _matrix("X", values, rng)
    columns = {"gene_ids": made.ids, "feature_types": made.types, "genome": made.genomes}
    kept = {name: column for name, column in columns.items() if rng.random() < 0.7}
    index = made.ids if rng.random() < 0.15 else made.symbols
    tree |= _frame("obs", made.cells, made.obs, rng) | _frame("var", index, kept, rng)
    tree["layers"] = _dict()
    if "layer" in options or rng.random() < 0.3:
        name = options.get("layer") or pick(rng, ("counts", "spliced", "raw"))
        tree |= _matrix(f"layers/{name}", made.counts + 1, rng)
    if options.get("raw") or rng.random() < 0.2:
        tree["raw"] = Node(attrs={"encoding-type": "raw", "encoding-version": "0.1.0"})
        more = np.concatenate([made.counts, made.counts[:, :1]], axis=1)
        tree |= _matrix("raw/X", more, rng)
        tree |= _frame("raw/var", np.append(index, "EXTRA"), {}, rng)
        tree["raw/varm"] = _dict()
    return tree | {name: _dict() for name in ("uns", "obsm", "varm", "obsp", "varp")}


def old_anndata_tree(made: Content, rng: np.random.Generator, values: np.ndarray, options: dict[str, Any]) -> Tree:
    """Return AnnData as of 2018: tables of records, categories under uns, a sparse format in h5sparse."""
    tree: Tree = {"": Node()}
    if rng.random() < 0.5:
        tree["X"] = Node(values.astype("f4"))
    else:
        attrs: dict[str, Any] = {"h5sparse_format": "csr", "h5sparse_shape": np.array(values.shape)}
        tree["X"] = Node(attrs=attrs)
        tree |= {f"X/{name}": node for name, node in compressed(values, rng).items()}
    kinds, codes = np.unique(made.obs["cell_type"].astype(str), return_inverse=True)
    obs = {"index": made.cells.astype("S"), "cell_type": codes.astype("i1"), "n_counts": made.obs["n_counts"]}
    tree["obs"] = Node(_records(obs))
    tree["var"] = Node(_records({"index": made.symbols.astype("S"), "gene_ids": made.ids.astype("S")}))
    tree["uns"] = Node()
    tree["uns/cell_type_categories"] = Node(kinds.astype("S"))
    if options.get("raw") or rng.random() < 0.3:
        tree["raw.X"] = Node(made.counts.astype("f4"))
        tree["raw.var"] = Node(_records({"index": made.symbols.astype("S"), "gene_ids": made.ids.astype("S")}))
    return tree


def _records(columns: dict[str, np.ndarray]) -> np.ndarray:
    records = np.empty(len(columns["index"]), dtype=[(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        records[name] = values
    return records


def _dict() -> Node:
    return Node(attrs={"encoding-type": "dict", "encoding-version": "0.1.0"})


def _matrix(name: str, values: np.ndarray, rng: np.random.Generator) -> Tree:
    kind = pick(rng, ("csr", "csr", "csc", "dense"))
    if kind == "dense":
        attrs = {"encoding-type": "array", "encoding-version": "0.2.0"}
        return {
            name: Node(
                values.astype(pick(rng, ("f4", "i4", "i8", "f8", "f2")) if values.dtype.kind == "i" else "f4"), attrs
            )
        }
    shape = np.array(values.shape)
    tree: Tree = {name: Node(attrs={"encoding-type": f"{kind}_matrix", "encoding-version": "0.1.0", "shape": shape})}
    return tree | {f"{name}/{k}": node for k, node in compressed(values.T if kind == "csc" else values, rng).items()}


def _frame(name: str, index: np.ndarray, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Tree:
    attrs = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    order = np.array(list(columns), dtype=object) if columns else np.zeros(0, dtype="f8")
    text = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
    plain = {"encoding-type": "array", "encoding-version": "0.2.0"}
    tree: Tree = {name: Node(attrs={**attrs, "column-order": order}), f"{name}/_index": Node(index, dict(text))}
    for key, values in columns.items():
        place = f"{name}/{key}"
        if values.dtype.kind != "O":
            nullable = {"b": "nullable-boolean", "i": "nullable-integer"}.get(values.dtype.kind)
            if nullable and key != "n_counts" and rng.random() < 0.3:
                tree[place] = Node(attrs={"encoding-type": nullable, "encoding-version": "0.1.0"})
                tree[f"{place}/values"] = Node(values, dict(plain))
                tree[f"{place}/mask"] = Node(rng.random(len(values)) < 0.2, dict(plain))
            else:
                tree[place] = Node(values, dict(plain))
        elif rng.random() < 0.5:
            kinds, codes = np.unique(values.astype(str), return_inverse=True)
            tree[place] = Node(attrs={"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            tree[f"{place}/codes"] = Node(codes.astype("i1"), dict(plain))
            tree[f"{place}/categories"] = Node(kinds.astype(object), dict(text))
        else:
            tree[place] = Node(values, dict(text))
    return tree
