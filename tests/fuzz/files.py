"""Edits of the kinds of files that stores and runs consist of: JSON, TOML, npy, Parquet."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pandas as pd
import pyarrow as pa
from mutations import pick
from trees import PICKLE

_VALUES = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        1.5,
        1e300,
        2**31,
        2**53,
        2**62,
        2**64,
        10**40,
        "",
        "0",
        "x",
        "../../etc",
        "/etc/passwd",
    ),
    *(
        [],
        {},
        [1],
        {"a": 1},
        "\ud800",
        "\0",
        "shards/00001.genes.npy",
        "shards/../manifest.json",
        "a" * 5000,
        float("nan"),
    ),
    *(float("inf"), [[[[]]]], mutations.CODE, "data.sckit", ".", "..", "/"),
)


def edit_json(rng: np.random.Generator, path: Path) -> str:
    """Remove, rename, add or replace one entry, or write the document in an unusual way."""
    try:
        document = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return "no JSON"
    places: list[tuple[Any, Any]] = []
    _collect(document, places)
    kind = pick(rng, ("replace", "replace", "replace", "drop", "rename", "number", "number", "add", "text"))
    name = "the document"
    if kind == "text":
        text = path.read_text()
        kind = pick(rng, ("bom", "deep", "cut", "twice", "latin-1", "list", "key twice"))
        texts = {"deep": "[" * 100_000, "cut": text[: len(text) // 2], "twice": text * 2, "list": f"[{text}]"}
        texts["key twice"] = text.replace("{", '{"cells": 1, "store": "x", ', 1)
        data = {"bom": b"\xef\xbb\xbf" + text.encode(), "latin-1": text.encode() + b"\xe9"}
        path.write_bytes(data.get(kind) or texts.get(kind, text).encode())
        return kind
    if not places:
        return "nothing to edit"
    parent, key = pick(rng, places)
    name = key if isinstance(key, str) else "an item"
    if kind == "drop":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[pick(rng, (key + "_", "../" + key, key.upper()))] = parent.pop(key)
    elif kind == "add" and isinstance(parent, dict):
        parent["note"] = pick(rng, _VALUES)
    elif kind == "number" and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = pick(
            rng, (parent[key] + 1, parent[key] - 1, -parent[key], float(parent[key]), parent[key] * 2, 2**61)
        )
    else:
        parent[key] = pick(rng, _VALUES)
    path.write_text(json.dumps(document), encoding="utf-8", errors="replace")
    return f"{kind} {name[:40]}"


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        places.append((value, key))
        _collect(item, places)


def edit_toml(rng: np.random.Generator, path: Path) -> str:
    """Remove, repeat or replace one line of a TOML file, or cut it."""
    lines = path.read_text().splitlines()
    if not lines:
        return "an empty file"
    at = int(rng.integers(len(lines)))
    key = lines[at].split(" ")[0]
    kind = pick(
        rng, ("drop", "repeat", "value", "value", "value", "value", "unknown key", "cut", "table", "rename", "comment")
    )
    values = (
        '""',
        '"x"',
        "0",
        "-1",
        "1",
        "3",
        "0.5",
        "1e400",
        "nan",
        "inf",
        "true",
        "[]",
        '["a"]',
        "{a = 1}",
        "2020-01-01",
        "9" * 400,
    )
    edits = {
        "drop": [],
        "repeat": [lines[at]] * 2,
        "value": [f"{key} = {pick(rng, values)}"],
        "unknown key": [lines[at], f"unknown = {pick(rng, values)}"],
        "cut": [lines[at][: len(lines[at]) // 2]],
        "table": ["[table]", lines[at]],
        "rename": [lines[at].upper()],
        "comment": [lines[at] + "  # a remark"],
    }
    lines[at : at + 1] = edits[kind]
    path.write_text("\n".join(lines if kind != "cut" else lines[: at + 1]) + "\n")
    return f"{kind} {key}"


def edit_npy(rng: np.random.Generator, path: Path) -> str:
    """Write an array back with other numbers, of another type or shape."""
    try:
        values = np.load(path)
    except Exception:  # of numpy, after an edit of the head
        return "no array"
    kind = pick(rng, ("number", "number", "numbers", "type", "shape", "fortran", "pickle", "records"))
    what = kind
    if kind == "number" and values.size:
        values = values.copy()
        values.flat[int(rng.integers(values.size))] = pick(rng, (0, 1, 2, 3, 100))
    elif kind in ("numbers", "type", "shape"):
        change = {"numbers": mutations.change_numbers, "type": mutations.change_type, "shape": mutations.change_shape}
        values, what = change[kind](rng, values)
    elif kind == "fortran":
        values = np.asfortranarray(np.stack([values, values]))
    elif kind == "records":
        values = values.astype([("a", "i4")])
    if kind == "pickle":
        header = str({"descr": "|O", "fortran_order": False, "shape": values.shape}).encode().ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + PICKLE)
        return what
    np.save(path, values.astype(str) if values.dtype == object else values)
    return what


def damage_npy(rng: np.random.Generator, path: Path) -> str:
    """Change the header of an array: a huge or negative shape, an odd type, text that is no literal."""
    data = path.read_bytes()
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return "no array"
    (length,) = struct.unpack("<H", data[8:10])
    header, body = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    kind, old, new = pick(
        rng,
        (
            *(
                ("huge shape", "'shape': (", "'shape': (99999999999999, "),
                ("bomb", "'shape': (", f"'shape': ({2**28}, "),
            ),
            *(
                ("negative", "'shape': (", "'shape': (-"),
                ("code", "{", "{__import__('os').system('touch CANARY'): 1, "),
            ),
            *(("dtype", "<", ">"), ("dtype S", "'<", "'S"), ("bool shape", "'shape': (", "'shape': (True, ")),
            *(("deep", "{", "{" * 5000), ("missing", "'shape'", "'sh'"), ("extra", "{", "{'more': 1, ")),
            *(("fortran", "False", "True"), ("void", "<", "|V"), ("overflow", "'shape': (", f"'shape': ({2**63}, ")),
        ),
    )
    changed = header.replace(old, new, 1).rstrip()
    changed = (changed + " " * (-(len(changed) + 11) % 64) + "\n").encode("latin-1")
    path.write_bytes(data[:8] + struct.pack("<H", len(changed) & 0xFFFF) + changed + body)
    return f"header: {kind}"


def edit_parquet(rng: np.random.Generator, path: Path) -> str:
    """Write a table back with a column missing, renamed, of another type, with other labels or rows."""
    try:
        frame = pd.read_parquet(path)
    except Exception:  # of pyarrow
        return "no table"
    name = pick(rng, list(frame.columns)) if len(frame.columns) else None
    kind = pick(
        rng,
        ("drop", "rename", "labels", "labels", "numbers", "nulls", "type", "rows", "order", "permute", "more", "index"),
    )
    if name is None or not len(frame):
        return "an empty table"
    what = kind
    column = frame[name]
    if kind in ("drop", "rename"):
        frame = frame.drop(columns=name) if kind == "drop" else frame.rename(columns={name: f"{name}_"})
    elif kind == "labels":
        labels, what = mutations.change_labels(rng, column.astype(str).to_numpy(object))
        frame[name] = [v.decode("latin-1") if isinstance(v, bytes) else v for v in labels]
    elif kind == "numbers" and column.dtype.kind in "iuf":
        frame[name], what = mutations.change_numbers(rng, column.to_numpy())
    elif kind == "nulls":
        frame[name] = column.astype(object).where(np.arange(len(frame)) > 0, None)
    elif kind == "type":
        to = pick(rng, ("string", "category", "float64", "int32", "bool", "datetime64[ns]"))
        what = f"type {to}"
        try:
            frame[name] = column.astype(to)
        except (ValueError, TypeError, OverflowError, pd.errors.ParserError):
            frame[name] = [[1], *[[]] * (len(frame) - 1)]
    elif kind in ("rows", "permute"):
        frame = frame.iloc[:-1] if kind == "rows" else frame.iloc[rng.permutation(len(frame))]
    elif kind == "order":
        frame = frame[list(frame.columns[::-1])]
    elif kind == "more":
        frame["note"] = mutations.CODE
    elif kind == "index":
        frame.index = pd.Index([f"row{i}" for i in range(len(frame))])
    try:
        frame.to_parquet(path, index=kind == "index", compression=pick(rng, ("snappy", "gzip", "zstd")))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return "unwritable"
    return f"{what} {name}"
