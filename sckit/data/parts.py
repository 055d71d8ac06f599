"""Preparing a store in parts, on as many machines as there are, and joining the parts into one store.

A part is a range of segments (`CellStream.segments`), before each of which a shard ends. So the shards of all parts,
one after another, are those of a single preparation, byte for byte, and joining them copies nothing but names.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sckit.data.genes import Vocabulary
from sckit.data.manifest import shard_files
from sckit.data.preparation import Preparation
from sckit.data.shards import WORK, FinishedShard, finished_shards, read_json, reuse_or_begin, save_record
from sckit.errors import ConfigError, PartsError
from sckit.files import flush, replacing, write_json

_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")
_MOMENTS, _DONE = f"{WORK}/moments.npz", f"{WORK}/done.json"


class Part(NamedTuple):
    """One of several parts, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def folder(self, out: Path) -> Path:
        """Return where the part lies, next to the store that it belongs to."""
        return parts_folder(out) / f"part-{self.number:04d}-of-{self.of:04d}"

    def stretch(self, n_segments: int) -> slice:
        """Return the segments of the part; parts differ by one segment at most."""
        return slice((self.number - 1) * n_segments // self.of, self.number * n_segments // self.of)


def part_of(text: str) -> Part:
    """Read "2/8"; raises `ConfigError` for what is no part."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--part {text} is no part; an example is 2/8, the second of eight.")
    return Part(int(found[1]), int(found[2]))


def parts_folder(out: Path) -> Path:
    """Return the folder of all parts of a store."""
    return out.with_name(out.name + ".parts")


def write_part(work: Preparation, part: Part) -> list[int]:
    """Write one part of a store, going on where a killed call for the same part ended.

    A number of variable genes needs the counts of all parts. So a first call for a part only sums them up, and returns
    the parts whose sums are still missing; when none is, it goes on and writes its counts, and returns nothing.
    """
    _limit(work, part)
    reuse_or_begin(work.folder, work.plan() | {"part": list(part)})
    if read_json(work.folder / _DONE) is not None:
        return []
    if isinstance(work.config.genes, int):
        missing = _sum_up(work, part)
        if missing:
            return missing
    *shards, tail = work.write_shards(_vocabulary(work, part.of))
    if not tail.manifest_entry["cells"]:
        save_record(work.folder, len(shards), tail)  # what became of its cells
    write_json(work.folder / _DONE, {"records": len(shards) + 1})
    return []


def merge_parts(work: Preparation) -> None:
    """Join the parts of a store in its unfinished folder.

    Raises `PartsError` where a part is missing, there twice, damaged, or of other inputs or options.
    """
    plan, parts = work.plan(), _all_parts(work.out)
    for part in parts:
        _refuse_foreign(work.out, part, plan)
        if read_json(part.folder(work.out) / _DONE) is None:
            raise PartsError(f"Part {part} of {work.out} is not finished; run its command with --part {part} again.")
    reuse_or_begin(work.folder, plan | {"parts": len(parts)})
    shards: list[FinishedShard] = []
    for part in parts:
        shards += _moved(part, work, sum(bool(one.manifest_entry["cells"]) for one in shards))
    work.finish(_vocabulary(work, len(parts)), shards)


def _limit(work: Preparation, part: Part) -> None:
    """Make a preparation that of one part."""
    if part.of > len(work.segments):
        raise PartsError(
            f"--part {part}: at most {len(work.segments)} can be made of these cells, because a part has eight "
            "shards or more; ask for no more parts, or for smaller shards with --cells-per-shard."
        )
    work.stretch = part.stretch(len(work.segments))
    work.folder = part.folder(work.out)


def parts_at(out: Path) -> list[Part]:
    """Return the parts of a store that have been begun, in order."""
    names = [_FOLDER.fullmatch(one.name) for one in sorted(parts_folder(out).glob("part-*"))]
    return [Part(int(name[1]), int(name[2])) for name in names if name]


def _all_parts(out: Path) -> list[Part]:
    """Return all parts of a store in order; raises `PartsError` unless each of them is there once."""
    folder, parts = parts_folder(out), parts_at(out)
    if not parts:
        raise PartsError(f"{folder} holds no part of {out}; make the parts with --part 1/N to --part N/N first.")
    totals = sorted({part.of for part in parts})
    if len(totals) > 1:
        raise PartsError(
            f"{folder} holds some cells twice: there are parts of {' and of '.join(map(str, totals))}; "
            "remove those that are not wanted."
        )
    missing = sorted(set(range(1, totals[0] + 1)) - {part.number for part in parts})
    if missing:
        listed = ", ".join(f"{number}/{totals[0]}" for number in missing[:5]) + (", ..." if missing[5:] else "")
        raise PartsError(f"{folder} lacks the part {listed}; make it with --part.")
    return parts


def _refuse_foreign(out: Path, part: Part, plan: dict[str, Any]) -> None:
    own = read_json(part.folder(out) / WORK / "plan.json")
    if own != plan | {"part": list(part)}:
        other = next((name for name in plan if not own or own.get(name) != plan[name]), "part")
        what = {"sckit": "version of sckit", "config": "options", "gene_list": "list of genes"}.get(other, other)
        raise PartsError(
            f"{part.folder(out)} belongs to another store: it was made with other {what}; remove it, and give "
            "every part and --merge the same inputs and options."
        )


def _sum_up(work: Preparation, part: Part) -> list[int]:
    """Write the moments of the genes in one part; return the numbers of the parts that have none yet."""
    path = work.folder / _MOMENTS
    if not path.is_file():
        n_cells, sums = work.moments()
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, n_cells=n_cells, sums=sums)
    others = [Part(number, part.of) for number in range(1, part.of + 1)]
    missing = [other.number for other in others if not (other.folder(work.out) / _MOMENTS).is_file()]
    for other in () if missing else others:
        _refuse_foreign(work.out, other, work.plan())
    return missing


def _vocabulary(work: Preparation, n_parts: int) -> Vocabulary:
    """Return the genes of the store; a number of variable genes is chosen from the moments of all parts."""
    path = work.folder / WORK / "genes.json"
    if isinstance(work.config.genes, int) and read_json(path) is None:
        found = [np.load(Part(number, n_parts).folder(work.out) / _MOMENTS) for number in range(1, n_parts + 1)]
        n_cells, sums = (np.concatenate([one[name] for one in found]) for name in ("n_cells", "sums"))
        write_json(path, work.most_variable(n_cells, sums).tolist())
    return work.choose_genes()


def _moved(part: Part, work: Preparation, before: int) -> list[FinishedShard]:
    """Link the shards of a part into the folder of the store, which has `before` of them already."""
    own = part.folder(work.out)
    shards = finished_shards(own)
    if len(shards) != read_json(own / _DONE)["records"]:
        raise PartsError(f"{own} is damaged; remove it and run the command with --part {part} again.")
    moved = []
    for shard in shards:
        entry = shard.manifest_entry
        if entry["cells"]:
            names = dict(zip(entry["files"], shard_files(before, work.layout), strict=True))
            for old, new in names.items():
                _link(own / old, work.folder / new)
            entry = entry | {"files": {new: entry["files"][old] for old, new in names.items()}}
            before += 1
        moved.append(replace(shard, manifest_entry=entry))
    flush(work.folder / "shards")
    return moved


def _link(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where the disk has none or is another one."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        flush(new)
