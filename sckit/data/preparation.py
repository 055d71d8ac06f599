"""One preparation: open the inputs, choose the genes, write shard after shard, survive a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.config.prepare import PrepareConfig
from sckit.data.ahead import ahead
from sckit.data.cell_stream import CellStream, KeptCells, StreamPosition, remedy
from sckit.data.filters import KEPT, GeneMoments, QualityRules, added_up, drop_counts, highly_variable
from sckit.data.genes import Vocabulary, join_genes, listed_genes, vocabulary_hash
from sckit.data.labels import cells_by_assay
from sckit.data.layouts import COMPACT, MAPPED, VERSIONS
from sckit.data.manifest import FORMAT, MANIFEST, write_rows, write_table
from sckit.data.notes import larger_totals, lone_counts, odd_counts, odd_inputs
from sckit.data.obs import judge_obs, kept_rows, mixed_columns, source_names, unite_obs
from sckit.data.readers.open import absolute, open_sample, open_sources
from sckit.data.readers.source import CELLS_PER_BLOCK
from sckit.data.shards import (
    WORK,
    FinishedShard,
    OpenShard,
    fingerprint,
    finished_shards,
    read_json,
    remove_records,
    reuse_or_begin,
)
from sckit.data.store import Store
from sckit.errors import DataError
from sckit.files import flush, to_json, write_json
from sckit.provenance import package_version

_ENTRIES_PER_SHARD = 2**26
_SHARDS_PER_SEGMENT = 8
_CELLS_TO_COMPRESS = 1_000_000


class Preparation:
    """One call of `prepare`. Everything is written into `folder`; `publish` gives it its name.

    In `folder`/work lie the plan (inputs, sizes, times, config) and one record per finished shard, so that the same
    call continues where it was killed, and any other call starts from the beginning.
    """

    def __init__(self, inputs: Sequence[Path | str], config: PrepareConfig, out: Path, on_event: Callable) -> None:
        """Open the inputs and judge their cells by label; nothing is written yet."""
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.config = config
        self._on_event = on_event
        reading = replace(config, assay=config.assay or "10x")
        opened = [(str(given), source) for given in inputs for source in open_sources(given, reading)]
        self._inputs, self._sources = zip(*opened or [("", open_sample())], strict=True)
        self._is_sample = not inputs
        self._notes = [
            f"the obs column {name} holds numbers in some inputs and text in others, and is text in the store"
            for name in mixed_columns(self._sources)
        ]
        self._names = source_names([source.path for source in self._sources])
        self._obs, self._repeated_ids = unite_obs(self._sources, self._names)
        unknown = set(config.obs_columns).difference(self._obs)
        self._notes += [f"no input has the obs column {name} of --obs-columns" for name in sorted(unknown)]
        judged, reasons = judge_obs(
            self._sources, self._names, self._obs, assay=reading.assay or "10x", obs_filter=config.obs_filter
        )
        bounds = np.cumsum([0, *(source.n_cells for source in self._sources)])
        for source, (first, last) in zip(self._sources, pairwise(bounds), strict=True):
            source.need_totals(judged[first:last] == KEPT)
        rules = QualityRules(config.min_genes, config.min_counts, config.max_counts, config.max_mito)
        self._stream = CellStream(self._sources, judged, reasons, rules)
        self._used = [number for number in range(len(self._sources)) if number not in self._stream.unused]
        if not self._used:
            labels = drop_counts(np.bincount(judged, minlength=len(reasons) + 1), reasons)
            self._refuse_empty(added_up([*(source.left_out for source in self._sources), labels]))
        tables = [source.genes for source in self._sources]
        self._shared = join_genes(tables, self._names, unused=self._stream.unused, duplicates=config.duplicates)
        self._cells_per_block = min(CELLS_PER_BLOCK, config.cells_per_shard)
        self.segments = self._stream.segments(_SHARDS_PER_SEGMENT * config.cells_per_shard, self._cells_per_block)
        """Where the stretches of cells begin that can be prepared apart: a shard ends before each of them."""
        self.stretch = slice(0, len(self.segments))
        """The segments that this preparation reads; by default all."""
        self.rows = np.zeros(0, np.int64)
        """[C] int64: row of each cell of the finished store among the cells of all inputs."""
        self._lines_not_found, self._is_ended = 0, False
        small = self._stream.n_cells < _CELLS_TO_COMPRESS
        self.layout = config.layout if config.layout != "auto" else MAPPED if small else COMPACT

    def run(self) -> None:
        """Write shards, tables and at last the manifest, reusing what an earlier, killed call has finished."""
        reuse_or_begin(self.folder, self.plan())
        self.finish(vocabulary := self.choose_genes(), self.write_shards(vocabulary))

    def plan(self) -> dict[str, Any]:
        """Return what decides about the bytes of the store; where relative paths begin does not."""
        gene_list = self.config.gene_list
        inputs = zip(self._inputs, self._sources, strict=True)
        return {
            "sckit": package_version("sckit"),
            "inputs": [[absolute(given), *fingerprint(one.files), one.identity] for given, one in inputs],
            "config": to_json(asdict(self.config)) | ({"genes": "a list"} if gene_list else {}),
            "gene_list": fingerprint([gene_list]) if gene_list else None,
        }

    def publish(self) -> None:
        """Give the finished folder its name; a store that is replaced disappears only then.

        The records go last: without them, a kill before the folder has its name would lose all work.
        """
        replaced = self.out.with_name(self.out.name + ".replaced")
        if self.out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            self.out.replace(replaced)
        self.folder.replace(self.out)
        flush(self.out.parent)
        remove_records(self.out)
        if replaced.exists():
            shutil.rmtree(replaced)

    def choose_genes(self) -> Vocabulary:
        """Return the genes that --genes names, or those that vary most in the cells of all segments."""
        if self.config.gene_list:
            listed = listed_genes(self.config.gene_list, self._shared)
            self._notes += listed.notes
            self._lines_not_found = listed.lines_not_found
            return self._shared.take(listed.numbers)
        if isinstance(self.config.genes, int):
            path = self.folder / WORK / "genes.json"
            chosen = read_json(path)
            if chosen is None:
                chosen = self.most_variable(*self.moments()).tolist()
                write_json(path, chosen)
            return self._shared.take(np.array(chosen, dtype=np.int64))
        return self._shared

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the counts of every segment once: kept cells [S], and sums for the moments of the genes [S, 2, G]."""
        n_cells, sums, moments = [], [], GeneMoments(len(self._shared))
        for kept in self._read(self._shared, self.segments[self.stretch.start]):
            moments.add(kept.indptr, kept.genes, kept.counts, kept.totals)
            self._say(kept.following, "choosing genes")
            if kept.following in self.segments:
                n_cells.append(moments.n_cells)
                sums.append(moments.sums())
                moments = GeneMoments(len(self._shared))
        if len(sums) < len(self.segments[self.stretch]):  # nothing follows the last one
            n_cells.append(moments.n_cells)
            sums.append(moments.sums())
        return np.array(n_cells), np.stack(sums)

    def most_variable(self, n_cells: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Choose the genes from the moments of all segments: numbers in the genes that all inputs have, rising."""
        assert isinstance(self.config.genes, int)
        if not n_cells.sum():
            self._refuse_empty({"cells outside the filters": self._stream.n_cells})
        return highly_variable(*GeneMoments.of_segments(n_cells, sums).mean_and_variance(), self.config.genes)

    def _read(self, vocabulary: Vocabulary, start: StreamPosition) -> Iterator[KeptCells]:
        """Yield the kept cells from `start` to the end of the stretch."""
        stop = self.segments[self.stretch.stop] if self.stretch.stop < len(self.segments) else None
        return self._stream.read(vocabulary, start=start, stop=stop, cells_per_block=self._cells_per_block)

    def write_shards(self, vocabulary: Vocabulary) -> list[FinishedShard]:
        """Write the shards that are missing; the last entry is the tail of the stream and may have no cells."""
        shards = finished_shards(self.folder)
        start = shards[-1].following if shards else self.segments[self.stretch.start]
        with closing(ahead(self._filled(vocabulary, start))) as filled:
            try:
                for shard in filled:
                    shards.append(shard.close(self.folder, len(shards)))
            finally:  # what fills shards on another thread ends with the block that it reads
                self._is_ended = True
        return shards

    def _filled(self, vocabulary: Vocabulary, start: StreamPosition) -> Generator[OpenShard]:
        """Yield shards with the cells from `start` on, and the tail of the stream."""
        new = partial(OpenShard, len(vocabulary), (len(self._sources), len(self._stream.reasons) + 1), self.layout)
        shard = new()
        for kept in self._read(vocabulary, start):
            if self._is_ended:
                return
            shard.add(kept)
            is_full = shard.n_cells >= self.config.cells_per_shard or shard.nonzeros >= _ENTRIES_PER_SHARD
            if is_full or (shard.n_cells and kept.following in self.segments):
                yield shard
                shard = new()
            self._say(kept.following, "writing")
        yield shard

    def finish(self, vocabulary: Vocabulary, shards: list[FinishedShard]) -> None:
        """Write the tables of cells and genes and the manifest."""
        fates = np.sum([shard.fates for shard in shards], axis=0)  # [sources, reasons + 1]
        kept = fates[:, KEPT]
        lost_cells = [
            added_up([source.left_out, drop_counts(row, self._stream.reasons)])
            for source, row in zip(self._sources, fates, strict=True)
        ]
        dropped = added_up([*self._lost_features(vocabulary), *lost_cells])
        if not kept.sum():
            self._refuse_empty(added_up(lost_cells))
        rows, totals, n_genes = (
            np.concatenate([getattr(shard, name) for shard in shards]) for name in ("rows", "totals", "n_genes")
        )
        self.rows = rows.astype(np.int64)
        self._notes += [note for source in self._sources for note in source.notes]
        self._notes += odd_inputs(self._sources, self._names, kept, lost_cells, len(self._shared))
        entries = [shard.manifest_entry for shard in shards if shard.manifest_entry["cells"]]
        facts = {"version": VERSIONS[self.layout], "genes": len(vocabulary), "shards": entries}
        written = Store(self.folder, facts | {"cells": len(rows)})
        for number, (first, last) in enumerate(pairwise(np.cumsum([0, *kept]).tolist())):
            self._notes += lone_counts(written, first, last, self._names[number])
            if self._sources[number].totals is not None and self.config.max_mito is not None:
                self._notes.append(f"the mitochondrial share of {self._names[number]} is that of the genes in the file")
            if self._sources[number].totals is None:
                self._notes += odd_counts(totals[first:last], n_genes[first:last], self._names[number])
                own = rows[first:last] - self._stream.starts[number]
                self._notes += larger_totals(self._sources[number].obs, own, totals[first:last], self._names[number])
        for note in self._notes:
            self._on_event("note", {"text": note})
        obs = kept_rows(self._obs, shards, self.config.obs_columns)
        gene_cells = np.sum([shard.gene_cells for shard in shards], axis=0)
        genes = pd.DataFrame({"id": vocabulary.ids, "symbol": vocabulary.symbols, "n_cells": gene_cells})
        manifest = {
            "format": FORMAT,
            "version": VERSIONS[self.layout],
            "sckit": package_version("sckit"),
            "cells": int(kept.sum()),
            "genes": len(vocabulary),
            "nonzeros": sum(entry["nonzeros"] for entry in entries),
            "vocabulary_sha256": vocabulary_hash(vocabulary.ids, vocabulary.symbols),
            "joined_on": "Ensembl id without version" if vocabulary.joined_on == "id" else "symbol",
            "genes_kept": "those that all inputs have" if len(self._sources) > 1 else "those of the input",
            "is_sample": self._is_sample,
            "config": to_json(asdict(self.config)),
            "sources": [
                self._source_entry(i, vocabulary, of_source - self._stream.starts[i], lost_cells[i])
                for i, of_source in enumerate(np.split(rows, np.cumsum(kept)[:-1]))
            ],
            "dropped": dropped,
            "notes": self._notes,
            "tables": {
                "genes.parquet": write_table(self.folder / "genes.parquet", genes),
                "obs.parquet": write_rows(self.folder / "obs.parquet", obs),
            },
            "shards": entries,
        }
        write_json(self.folder / MANIFEST, manifest)

    def _lost_features(self, vocabulary: Vocabulary) -> Iterator[dict[str, int]]:
        """Yield what the inputs lost on the way to the vocabulary, one dict per source and one for the join."""
        for source in self._sources:
            yield source.dropped
        yield {
            "genes that not every input has" if len(self._used) > 1 else "genes without a name": sum(
                self._shared.lost[i] for i in self._used
            ),
            "genes not chosen": len(self._shared) - len(vocabulary),
            "lines of the gene list that match no gene": self._lines_not_found,
        }

    def _source_entry(
        self, number: int, vocabulary: Vocabulary, kept: np.ndarray, lost_cells: dict[str, int]
    ) -> dict[str, Any]:
        source = self._sources[number]
        return {
            "name": self._names[number],
            "path": str(source.path),
            "reader": type(source).__name__,
            "matrix": source.unit,
            "cells": source.n_cells + sum(source.left_out.values()),
            "kept": len(kept),
            "assays": cells_by_assay(source.obs, kept, source.assays),
            "genes": len(source.genes),
            "genes_lost": vocabulary.lost[number],
            "genes_summed": vocabulary.summed[number],
            "repeated_cell_ids": self._repeated_ids[number],
            "has_assay": "assay" in source.obs,
            "dropped": {**source.dropped, **lost_cells},
        }

    def _refuse_empty(self, lost: dict[str, int]) -> None:
        reasons = ", ".join(f"{n} {reason}" for reason, n in lost.items())
        n_cells = self._stream.n_cells + sum(sum(source.left_out.values()) for source in self._sources)
        raise DataError(f"No cell is left of {n_cells}: {reasons}; {remedy(reasons)}.")

    def _say(self, position: StreamPosition, what: str) -> None:
        done = self._stream.cells_before(position)
        self._on_event("progress", {"done": done, "of": self._stream.n_cells, "what": what})
