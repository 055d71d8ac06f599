"""Edits of bytes, numbers, labels and text lines; each takes a seeded generator and returns the name of what it did."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CODE = "__import__('os').system('touch CANARY')"
"""A label that would leave a file behind if it were run."""

LABELS = (
    *(
        "",
        " ",
        "nan",
        "NaN",
        "None",
        "0",
        "1",
        "-3",
        "1.5",
        "1e5",
        "a b",
        " lead",
        "trail ",
        "tab\there",
        "line\nbreak",
    ),
    *(
        "Zelle-Ä",
        "细胞",
        "\U0001f9ec",
        "e\u0301",
        "\u00e9",
        "a\x0bb",
        "a\x85b",
        "a\u2028b",
        '"quoted"',
        '"open',
        "it's",
    ),
    *("a,b", "a;b", "#hash", "ENSG00000141510", "ENSG00000141510.18", "GRCh38_ENSG00000141510", "GRCh38_TP53"),
    *("mm10___ENSMUSG00000000001", "True", "../../x", "/etc/passwd", "%s%n", "-", "N/A", "x" * 3000, CODE),
)
DTYPES = ("f2", "f4", "f8", ">f4", "i1", "i2", "i4", ">i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "S", "O")
BOMB = 2**28 + 2**26
"""Entries of an array that takes no room on disk and more than a gigabyte, as 4-byte numbers, in memory."""


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """Return one of the choices."""
    return choices[int(rng.integers(len(choices)))]


def damage(rng: np.random.Generator, path: Path) -> str:
    """Change bytes of a file as a bad disk, a cut transfer or an attacker would."""
    data = bytearray(path.read_bytes())
    size = len(data)
    kind = pick(rng, ("flip", "set", "flips", "zeros", "ones", "cut", "insert", "double", "swap", "append", "empty"))
    at = int(rng.integers(max(size, 1)))
    length = int(rng.integers(1, 65))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else length):
            if size:
                data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    elif kind == "set" and size:
        data[at] = int(rng.integers(256))
    elif kind in ("zeros", "ones"):
        part = data[at : at + length]
        data[at : at + length] = (b"\0" if kind == "zeros" else b"\xff") * len(part)
    elif kind == "cut":
        del data[at if rng.random() < 0.5 else max(size - length, 0) :]
    elif kind == "insert":
        data[at:at] = rng.bytes(length)
    elif kind == "double":
        data[at:at] = data[at : at + length]
    elif kind == "swap":
        other = int(rng.integers(max(size, 1)))
        low, high = data[at : at + 8], data[other : other + 8]
        data[at : at + 8], data[other : other + 8] = high, low
    elif kind == "append":
        data += rng.bytes(length)
    elif kind == "empty":
        data.clear()
    path.write_bytes(bytes(data))
    return f"bytes: {kind}"


def damage_folder(rng: np.random.Generator, folder: Path) -> str:
    """Damage, remove, rename, exchange or replace one file of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        return "nothing to damage"
    file = pick(rng, files)
    kind = pick(rng, ("bytes", "bytes", "bytes", "remove", "rename", "exchange", "folder"))
    if kind == "bytes":
        return damage(rng, file)
    if kind == "remove":
        file.unlink()
    elif kind == "rename":
        file.rename(file.with_name(file.name + pick(rng, ("x", ".bak", ".gz", "~"))))
    elif kind == "exchange":
        other = pick(rng, files)
        mine, theirs = file.read_bytes(), other.read_bytes()
        file.write_bytes(theirs)
        other.write_bytes(mine)
    else:
        file.unlink()
        file.mkdir()
    return f"file: {kind}"


def change_numbers(rng: np.random.Generator, values: np.ndarray) -> tuple[np.ndarray, str]:
    """Put unusual numbers into an array, in a type that holds them."""
    kind, new = pick(
        rng,
        (
            *(("negative", -1), ("fraction", 0.5), ("almost whole", 3.0000002), ("nan", np.nan), ("inf", np.inf)),
            *(("zero", 0), ("above int16", 70_000), ("largest", 2**32 - 1), ("too large", 2**32), ("2**53", 2.0**53)),
            *(("int64 limit", 2**63 - 1), ("uint64 limit", 2**64 - 1), ("1e300", 1e300), ("-inf", -np.inf)),
        ),
    )
    if not values.size or values.dtype.kind not in "iufb":
        return values, "numbers: none to change"
    dtype = np.result_type(values.dtype, np.array(new).dtype) if new <= 2**63 - 1 else np.dtype("u8")
    if isinstance(new, float) or new != new:
        dtype = np.dtype(pick(rng, ("f4", "f8")))
    changed = values.astype(dtype)
    at = rng.integers(changed.size, size=pick(rng, (1, 1, 2)))
    with np.errstate(all="ignore"):
        changed.flat[at] = new
    return changed, f"numbers: {kind}"


def change_type(rng: np.random.Generator, values: np.ndarray) -> tuple[np.ndarray, str]:
    """Store an array in another type."""
    to = pick(rng, DTYPES)
    with np.errstate(all="ignore"):
        try:
            if to == "O":
                return np.array([str(value) for value in values.ravel()], dtype=object).reshape(values.shape), "type: O"
            return values.astype(to), f"type: {to}"
        except (ValueError, TypeError, UnicodeEncodeError):
            return values, "type: as it was"


def change_shape(rng: np.random.Generator, values: np.ndarray) -> tuple[np.ndarray, str]:
    """Make an array longer, shorter, empty, of another number of dimensions."""
    kind = pick(rng, ("longer", "shorter", "empty", "column", "row", "scalar", "twice", "permuted"))
    if kind == "longer":
        return np.concatenate([values, values[-1:]]) if values.ndim else values, "shape: longer"
    if not values.ndim or not len(values):
        return values, "shape: nothing to change"
    shapes: dict[str, Callable[[], np.ndarray]] = {
        "shorter": lambda: values[:-1],
        "empty": lambda: values[:0],
        "column": lambda: values[:, None],
        "row": lambda: values[None],
        "scalar": lambda: np.array(values.flat[0], dtype=values.dtype) if values.size else values,
        "twice": lambda: np.concatenate([values, values]),
        "permuted": lambda: values[rng.permutation(len(values))],
    }
    return shapes[kind](), f"shape: {kind}"


def change_labels(rng: np.random.Generator, labels: np.ndarray) -> tuple[np.ndarray, str]:
    """Put unusual labels into an array of str."""
    if not labels.size:
        return labels, "labels: none to change"
    changed = labels.astype(object).copy()
    kind = pick(rng, ("one", "one", "one", "two", "all", "repeated", "numbers", "latin-1", "empty"))
    at = int(rng.integers(changed.size))
    if kind in ("one", "two"):
        changed.flat[at] = pick(rng, LABELS)
        if kind == "two":
            changed.flat[int(rng.integers(changed.size))] = pick(rng, LABELS)
    elif kind == "all":
        label = pick(rng, LABELS)
        changed.flat[:] = [f"{label}{i}" for i in range(changed.size)]
    elif kind == "repeated":
        changed.flat[at] = changed.flat[0]
    elif kind == "numbers":
        changed.flat[:] = [str(i) for i in range(changed.size)]
    elif kind == "latin-1":
        changed.flat[at] = b"caf\xe9"
    else:
        changed.flat[:] = [""] * changed.size
    return changed, f"labels: {kind}"


def change_lines(rng: np.random.Generator, lines: list[bytes]) -> tuple[list[bytes], str]:
    """Edit text by lines and fields: missing, extra, ragged, repeated lines, other ends, quotes, bytes."""
    kind = pick(
        rng,
        (
            *("drop", "repeat", "swap", "empty line", "extra field", "fewer fields", "field", "spaces", "heading"),
            *("crlf", "cr", "bom", "quote field", "quote line", "open quote", "latin-1", "no last newline", "nul"),
            *("trailing tab", "trailing spaces", "comment", "long line", "permute", "commas", "bom inside", "leading"),
        ),
    )
    new, at = list(lines), int(rng.integers(max(len(lines), 1)))
    body = [line.rstrip(b"\n") for line in new] or [b""]
    at = min(at, len(body) - 1)
    fields = body[at].split(b"\t")
    label = pick(rng, LABELS).encode()
    field = int(rng.integers(len(fields)))
    if kind in ("field", "quote field"):
        fields[field] = label if kind == "field" else b'"' + fields[field] + b'"'
        body[at] = b"\t".join(fields)
    elif kind in ("extra field", "fewer fields"):
        body[at] = b"\t".join([*fields, b"more"] if kind == "extra field" else fields[:-1])
    elif kind in ("bom", "heading", "leading"):
        front = {"bom": b"\xef\xbb\xbf", "heading": b"id\tname\n", "leading": pick(rng, (b" ", b"\n", b"\t", b"# "))}
        body[0] = front[kind] + body[0]
    elif kind in ("drop", "repeat", "swap", "permute"):
        other = int(rng.integers(len(body)))
        body[at], body[other] = (body[other], body[at]) if kind == "swap" else (body[at], body[other])
        body = [body[i] for i in rng.permutation(len(body))] if kind == "permute" else body
        body[at : at + 1] = {"drop": [], "repeat": [body[at]] * 2}.get(kind, [body[at]])
    elif kind == "spaces":
        body[at] = body[at].replace(b"\t", b" ")
    elif kind == "commas":
        body = [line.replace(b"\t", b",") for line in body]
    elif kind not in ("crlf", "cr", "no last newline"):
        body[at] = {
            "empty line": body[at] + b"\n",
            "quote line": b'"' + body[at] + b'"',
            "open quote": b'"' + body[at],
            "latin-1": body[at] + b"\xe9",
            "nul": body[at] + b"\0x",
            "trailing tab": body[at] + b"\t",
            "trailing spaces": body[at] + b"  ",
            "comment": b"# a remark\n" + body[at],
            "long line": body[at] * (2000 if len(body[at]) < 1000 else 2),
            "bom inside": b"\xef\xbb\xbf" + body[at],
        }[kind]
    end = {"crlf": b"\r\n", "cr": b"\r"}.get(kind, b"\n")
    text = end.join(body) + (b"" if kind == "no last newline" else end)
    return text.splitlines(keepends=True) if end != b"\r" else [text], f"lines: {kind}"


def maybe_gzip(rng: np.random.Generator, path: Path) -> str:
    """Compress a file, under a name that says so or not, or lie in the name only."""
    kind = pick(rng, ("gz", "gz", "gz without a name", "gz in the name only", "gz twice"))
    data = path.read_bytes()
    if kind != "gz in the name only":
        data = gzip.compress(data, 1)
    if kind == "gz twice":
        data = gzip.compress(data, 1)
    path.unlink()
    to = path if kind == "gz without a name" else path.with_name(path.name + ".gz")
    to.write_bytes(data)
    return f"gzip: {kind}"
