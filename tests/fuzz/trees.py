"""Arrays and attributes by path, as HDF5 and zarr have them: writing both, and edits of one part."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import mutations
import numpy as np
from mutations import BOMB, pick


@dataclass
class Node:
    """An array, or a group where `data` is None."""

    data: np.ndarray | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    """How it is stored: h5py's options, "link" for a link to another path, "bomb" for a huge array without data."""


Tree = dict[str, Node]
"""Parts by path; the path of the root is ""."""


def write_h5(tree: Tree, path: Path) -> None:
    """Write an HDF5 file."""
    with h5py.File(path, "w") as file:
        for name, node in tree.items():
            if "link" in node.storage:
                file[name] = h5py.SoftLink(node.storage["link"])
                continue
            if node.data is None:
                made = file.require_group(name) if name else file
            elif "bomb" in node.storage:
                kind = node.data.dtype if node.data.dtype.kind in "iuf" else np.dtype("i4")
                shape = (node.storage["bomb"], *node.data.shape[1:])
                made = file.create_dataset(name, shape, dtype=kind, chunks=(2**16, *node.data.shape[1:]))
            else:
                data = node.data
                dtype = h5py.string_dtype() if data.dtype.kind in "OU" else None
                storage = node.storage if data.ndim and data.size else {}
                made = file.create_dataset(name, data=_no_nul(data), dtype=dtype, **storage)
            for key, value in node.attrs.items():
                made.attrs[key] = value


def write_zarr(tree: Tree, path: Path, rng: np.random.Generator) -> None:
    """Write a zarr folder of format 2 or 3, without the library, so that it may hold what the library refuses."""
    version = int(rng.integers(2, 4))
    zipped = rng.random() < 0.5
    for name, node in {"": Node(), **tree}.items():
        folder = path / name
        folder.mkdir(parents=True, exist_ok=True)
        attrs = {key: _plain(value) for key, value in node.attrs.items()}
        extra = node.storage.get("meta", {})
        if node.data is None:
            head = {"zarr_format": version} | ({"node_type": "group", "attributes": attrs} if version == 3 else {})
            (folder / ("zarr.json" if version == 3 else ".zgroup")).write_text(json.dumps(head))
        else:
            data = np.ascontiguousarray(node.data) if node.data.ndim else node.data
            text = data.dtype.kind in "OUS"
            chunk = _vlen(data) if text else data.astype(data.dtype.newbyteorder("<")).tobytes()
            shape = [node.storage.get("bomb", n) if i == 0 else n for i, n in enumerate(data.shape)]
            if zipped:
                chunk = zlib.compress(chunk, 1)
            head = (_array3 if version == 3 else _array2)(data, shape, text=text, zipped=zipped)
            head = head | ({"attributes": attrs} if version == 3 else {}) | extra
            (folder / ("zarr.json" if version == 3 else ".zarray")).write_text(json.dumps(head))
            zeros = ["0"] * data.ndim
            file = folder / ("/".join(["c", *zeros]) if version == 3 else ".".join(zeros) or "0")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(chunk)
        if version == 2:
            (folder / ".zattrs").write_text(json.dumps(attrs))


def _array2(data: np.ndarray, shape: list[int], *, text: bool, zipped: bool) -> dict[str, Any]:
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": [max(n, 1) for n in data.shape],
        "dtype": "|O" if text else data.dtype.newbyteorder("<").str,
        "compressor": {"id": "zlib", "level": 1} if zipped else None,
        "fill_value": None if text else 0,
        "order": "C",
        "filters": [{"id": "vlen-utf8"}] if text else None,
    }


def _array3(data: np.ndarray, shape: list[int], *, text: bool, zipped: bool) -> dict[str, Any]:
    codecs: list[dict[str, Any]] = [
        {"name": "vlen-utf8"} if text else {"name": "bytes", "configuration": {"endian": "little"}}
    ]
    if zipped:
        codecs.append({"name": "numcodecs.zlib", "configuration": {"level": 1}})
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "string" if text else data.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in data.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
        "fill_value": "" if text else False if data.dtype.kind == "b" else 0,
    }


def _vlen(data: np.ndarray) -> bytes:
    """Return strings as the codec vlen-utf8 has them."""
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in data.ravel().tolist()]
    return b"".join([len(texts).to_bytes(4, "little"), *(len(t).to_bytes(4, "little") + t for t in texts)])


def _no_nul(data: np.ndarray) -> np.ndarray:
    """Return strings without the zero bytes that HDF5 cannot hold, and numpy's str as objects."""
    if data.dtype.kind == "U":
        data = data.astype(object)
    if data.dtype.kind != "O":
        return data
    clean = np.empty(data.shape, dtype=object)
    clean.flat[:] = [v.replace("\0", "") if isinstance(v, str) else v for v in data.ravel().tolist()]
    return clean


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def edit(rng: np.random.Generator, tree: Tree) -> str:
    """Change one part of a tree: its values, type, shape, name, attributes, storage, or that it is there at all."""
    arrays = [name for name, node in tree.items() if node.data is not None]
    if not arrays:
        return "nothing to edit"
    name = pick(rng, arrays)
    node = tree[name]
    last = name.rsplit("/", 1)[-1]
    assert node.data is not None
    is_text = node.data.dtype.kind in "OUS"
    kinds = ["values"] * 8 + ["type", "type", "shape", "shape", "storage", "storage", "storage", "drop", "rename"]
    kind = pick(rng, [*kinds, "group", "attribute", "attribute", "link", "bomb", "extra", "extra", "order", "copy"])
    what = kind
    if kind == "values":
        if last in ("indptr", "indices"):
            node.data, what = _change_pointers(rng, node.data, last)
        else:
            node.data, what = (mutations.change_labels if is_text else mutations.change_numbers)(rng, node.data)
    elif kind in ("type", "shape"):
        node.data, what = (mutations.change_type if kind == "type" else mutations.change_shape)(rng, node.data)
    elif kind == "storage":
        options = [{"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}, {"shuffle": True}]
        node.storage = {"chunks": True, **pick(rng, options)}
    elif kind == "drop":
        drop(tree, pick(rng, [name, name, name.rsplit("/", 1)[0]]))
    elif kind == "rename":
        tree[name + pick(rng, ("_", "s", "2"))] = tree.pop(name)
    elif kind == "group":
        tree[name] = Node(attrs=node.attrs)
    elif kind == "attribute":
        what = _change_attribute(rng, tree)
    elif kind == "link":
        tree[name] = Node(storage={"link": pick(rng, ["/" + name, "/nowhere", "/" + pick(rng, arrays)])})
    elif kind == "bomb" and node.data.ndim:
        node.storage = {"bomb": BOMB}
    elif kind == "order":
        items = list(tree.items())
        tree.clear()
        tree.update(items[i] for i in rng.permutation(len(items)))
    elif kind == "copy":
        tree[pick(rng, ("more", name + "_copy", name.rsplit("/", 1)[0] + "/more"))] = Node(node.data, dict(node.attrs))
    elif kind == "extra":
        node.attrs["note"] = np.void(PICKLE) if rng.random() < 0.5 else mutations.CODE
    return f"{last}: {what}" if kind != "attribute" else what


def drop(tree: Tree, name: str) -> None:
    """Remove a part with all below it."""
    for other in [other for other in tree if other == name or (name and other.startswith(name + "/"))]:
        del tree[other]


def _change_pointers(rng: np.random.Generator, values: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Break the structure of a compressed matrix."""
    if values.ndim == 0 or len(values) < 2 or values.dtype.kind not in "iuf":
        return values, "pointers: too few"
    new = values.astype(np.int64)
    at = int(rng.integers(1, len(new)))
    kind = pick(rng, ("down", "first", "last", "huge", "negative", "repeat", "swap", "float", "wraps"))
    if kind == "down":
        new[at] = new[at - 1] - 1
    elif kind == "first":
        new[0] = pick(rng, (1, -1, 2**40))
    elif kind == "last":
        new[-1] += pick(rng, (1, -1, 1000))
    elif kind in ("huge", "negative"):
        new[at] = pick(rng, (2**31, 2**32 + int(new[at]), 2**62)) if kind == "huge" else -1 - int(rng.integers(3))
    elif kind == "repeat":
        new[at] = new[at - 1]
    elif kind == "swap":
        new[[at - 1, at]] = new[[at, at - 1]]
    elif kind == "float":
        return new + pick(rng, (0.0, 0.5)), f"{name}: float"
    else:
        return new.astype(np.uint64) + np.uint64(2**63), "pointers: wraps"
    return new.astype(pick(rng, (values.dtype, np.int64))), f"pointers: {kind}"


def _change_attribute(rng: np.random.Generator, tree: Tree) -> str:
    """Remove, change or replace one attribute."""
    named = [(name, key) for name, node in tree.items() for key in node.attrs]
    if not named:
        return "no attribute"
    name, key = pick(rng, named)
    attrs = tree[name].attrs
    kind = pick(rng, ("drop", "text", "number", "list", "bytes", "rename", "shape"))
    if kind == "drop":
        del attrs[key]
    elif kind == "rename":
        attrs[key + "_"] = attrs.pop(key)
    else:
        values = {"text": pick(rng, ("csr_matrix", "csc_matrix", "array", "null", "string-array", mutations.CODE))}
        values |= {"number": pick(rng, (0, -1, 2**40, 1.5)), "list": [1, 2, 3], "bytes": np.void(PICKLE)}
        values["shape"] = [int(rng.integers(0, 9)), pick(rng, (int(rng.integers(0, 9)), 2**40))]
        attrs[key] = values[kind]
    return f"attribute {key}: {kind}"


class _Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch CANARY",)


def _pickled() -> bytes:
    import pickle

    return pickle.dumps(_Planted())


PICKLE = _pickled()
"""A pickle that leaves a file CANARY in the working folder when it is read."""
