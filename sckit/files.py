"""Files that are written whole or not at all, their checksums, and values as JSON has them."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out the path `path`.new to write to; when the block ends well it is flushed to disk and renamed to `path`.

    A reader sees the old file or the whole new one, also after a crash of the machine. After an error in the block the
    old file stays and what was written is removed; what a library says of the system is raised as an OSError.
    """
    unfinished = path.with_name(path.name + ".new")
    try:
        with system_errors(path):
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
    with system_errors(path):
        yield unfinished
    for written in (*unfinished.iterdir(), unfinished):
        flush(written)
    replaced = path.with_name(path.name + ".old")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    unfinished.rename(path)
    flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of `path` where a library reports one of the system as another error, or without its number."""
    try:
        yield
    except Exception as error:
        number = None if isinstance(error, OSError) and error.errno else _system_number(str(error))
        if number is None:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_number(text: str) -> int | None:
    """Find the number of an error of the system in a text: of Rust, HDF5 or Arrow, or a short write of numpy."""
    if found := re.search(r"(?:\(os error |\berrno = |\[errno )(\d+)", text):
        return int(found[1])
    return errno.ENOSPC if re.search(r"\d+ requested and \d+ written", text) else None


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
