"""Lists of genes and of target genes: writing, and reading with a few lines."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import mutations
import numpy as np
from content import content
from hdf5_formats import plan
from judge import Case, Refused
from mutations import pick

from sckit.data.genes import read_gene_list, read_lines
from sckit.perturbation.screen import _targets  # pyright: ignore[reportPrivateUsage]


class Panel:
    """A list of genes, one name per line."""

    name = "panel"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated list."""
        made = content(rng)
        names = made.ids if rng.random() < 0.5 else made.symbols
        lines = [name.encode() + b"\n" for name in names]
        return _edited(rng, Case(folder / "panel.txt"), lines)

    def ours(self, case: Case) -> list[str]:
        """Read with sckit."""
        found = read_gene_list(case.path, "--genes")
        assert [name.strip() for name in read_lines(case.path, "--genes", "names")] == found
        return found

    def theirs(self, case: Case) -> list[str]:
        """Read with a few lines."""
        return [line.strip() for line in _plain_lines(case.path)]

    def fault(self, ours: list[str], theirs: list[str], case: Case) -> str | None:
        """Say what sckit has wrong."""
        return None if ours == theirs else f"{_short(ours)} instead of {_short(theirs)}"


class Targets:
    """A list of conditions with the gene that each acts on."""

    name = "targets"

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write one mutated list."""
        made = content(rng)
        separator = pick(rng, ("\t", "\t", ","))
        rows = [(f"sg{s}", s) for s in made.symbols]
        case = Case(folder / "targets.tsv", {"names": [row[0] for row in rows] + ["unlisted", *mutations.LABELS[:30]]})
        return _edited(rng, case, [(separator.join(row) + "\n").encode() for row in rows])

    def ours(self, case: Case) -> list[str | None]:
        """Read with sckit."""
        return list(_targets(case.options["names"], str(case.path)))

    def theirs(self, case: Case) -> list[str | None]:
        """Read with a few lines."""
        lines = [line.strip(" ") for line in _plain_lines(case.path)]
        separator = "\t" if any("\t" in line for line in lines) else ","
        rows = [next(csv.reader([line], delimiter=separator, strict=True)) for line in lines]
        rows = [[part.strip() for part in row] for row in rows]
        if not rows or any(len(row) < 2 for row in rows):
            msg = "a line without two fields"
            raise Refused(msg)
        known: dict[str, str] = {}
        for name, gene, *_ in rows:
            if known.setdefault(name, gene) != gene:
                msg = f"two genes for {name}"
                raise Refused(msg)
        return [known.get(name) or None for name in case.options["names"]]

    def fault(self, ours: list[str | None], theirs: list[str | None], case: Case) -> str | None:
        """Say what sckit has wrong."""
        return None if ours == theirs else f"{_short(ours)} instead of {_short(theirs)}"


def _short(values: object) -> str:
    return str(values)[:300]


def _plain_lines(path: Path) -> list[str]:
    lines = re.split("\r\n|\n|\r", path.read_bytes().decode("utf-8-sig"))
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _edited(rng: np.random.Generator, case: Case, lines: list[bytes]) -> Case:
    n_edits, damaged = plan(rng)
    for _ in range(n_edits + int(rng.integers(2))):
        lines, edit = mutations.change_lines(rng, lines)
        case.edits.append(edit)
    case.path.write_bytes(b"".join(lines))
    if rng.random() < 0.1:
        kind = pick(rng, ("gzip", "utf-16", "folder", "missing", "zeros", "cp1252"))
        data = case.path.read_bytes()
        case.path.unlink()
        if kind == "folder":
            case.path.mkdir()
        elif kind != "missing":
            text = data.decode("utf-8", errors="replace")
            changed = {"gzip": gzip.compress(data), "utf-16": text.encode("utf-16"), "zeros": bytes(len(data))}
            case.path.write_bytes(changed.get(kind, (text + "é").encode("cp1252", errors="replace")))
        case.edits.append(f"file: {kind}")
    elif damaged:
        case.edits.append(mutations.damage(rng, case.path))
    return case
