"""Files that are written whole or not at all, their checksums, and values as JSON has them."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out the path `path`.new to write to; when the block ends well it is flushed to disk and renamed to `path`.

    A reader sees the old file or the whole new one, also after a crash of the machine. After an error in the block the
    old file stays and what was written is removed.
    """
    unfinished = path.with_name(path.name + ".new")
    try:
        yield unfinished
        flush(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Hand out the folder `path`.new to write to; when the block ends well it is flushed to disk and renamed to `path`.

    What a crash or an error leaves under the name `path`.new is not a whole folder and is removed by the next call.
    """
    unfinished = path.with_name(path.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    for written in (*unfinished.iterdir(), unfinished):
        flush(written)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file, whole or not at all. Raises ValueError for numbers that JSON does not have (see `to_json`)."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def flush(path: Path) -> None:
    """Force the content of a file, or the entries of a folder, onto the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> Any:
    """Return nested values in the types that JSON has.

    Numbers of numpy and pandas become Python's, tuples become lists, and what is not a finite number becomes None.
    """
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def matches(value: Any, schema: Any) -> bool:
    """Return whether a JSON value is as the schema says.

    A schema is a type (int: not negative and below 2**62), a list of one schema for all items, a dict of one schema for
    all values under the key `str`, or a dict of schemas by name; other names may be there too.
    """
    if isinstance(schema, type):
        return type(value) is schema and (schema is not int or 0 <= value < 2**62)
    if isinstance(schema, list):
        return isinstance(value, list) and all(matches(item, schema[0]) for item in value)
    if not isinstance(value, dict):
        return False
    if str in schema:
        return all(matches(item, schema[str]) for item in value.values())
    return all(name in value and matches(value[name], part) for name, part in schema.items())
