"""Reading and damaging safetensors files, without the library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from mutations import pick


def safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file with json and numpy."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    types = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "F16": "<f2", "U8": "u1", "I8": "i1", "BOOL": "?"}
    return {
        name: np.frombuffer(data[8 + length :][slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def damage_safetensors(rng: np.random.Generator, path: Path) -> str:
    """Change the header of a safetensors file, or its numbers."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (struct.error, ValueError):
        return "no tensors"
    body = data[8 + length :]
    name = pick(rng, [key for key in header if key != "__metadata__"] or ["none"])
    entry = header.get(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    kind = pick(
        rng,
        (
            "drop",
            "rename",
            "dtype",
            "shape",
            "shape 2",
            "offsets",
            "huge",
            "value",
            "value",
            "value",
            "length",
            "more",
            "nan",
            "transposed",
        ),
    )
    if kind == "drop":
        header.pop(name, None)
    elif kind == "rename":
        header[name + "_"] = header.pop(name, entry)
    elif kind == "dtype":
        entry["dtype"] = pick(rng, ("F64", "I32", "F16", "BF16", "U8", "BOOL", "X9"))
    elif kind in ("shape", "shape 2"):
        entry["shape"] = pick(rng, ([2**40, 2**40], [-1], [0], [1, *entry["shape"]], entry["shape"] * 2, "x"))
    elif kind in ("offsets", "huge"):
        entry["data_offsets"] = pick(rng, ([0, 2**62], [4, 0], [0, 8], [2**63, 2**63 + 4], [-4, 0]))
    elif kind == "transposed":
        entry["shape"] = entry["shape"][::-1]
    elif kind in ("value", "nan") and len(body) >= 4:
        at = 4 * int(rng.integers(len(body) // 4))
        body = body[:at] + struct.pack("<f", 0.25 if kind == "value" else np.nan) + body[at + 4 :]
    elif kind == "more":
        header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
        body += bytes(4)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = len(text) if kind != "length" else pick(rng, (2**63, 0, len(text) + 8, 2**32))
    path.write_bytes(struct.pack("<Q", size) + text + body)
    return f"{kind}"
