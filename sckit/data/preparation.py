"""One preparation: open the inputs, choose the genes, write shard after shard, survive a kill."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.config.prepare import PrepareConfig
from sckit.data.cell_stream import NOT_RECOVERED, CellStream, StreamPosition
from sckit.data.filters import KEPT, GeneMoments, QualityRules, drop_counts, highly_variable
from sckit.data.genes import GeneIndex, Vocabulary, join_genes, read_gene_list, vocabulary_hash
from sckit.data.labels import in_quotes
from sckit.data.manifest import FORMAT, MANIFEST, VERSION, write_table
from sckit.data.notes import larger_totals, lone_counts, odd_counts, odd_inputs
from sckit.data.obs import judge_obs, mixed_columns, source_names, unite_obs
from sckit.data.readers.open import open_sample, open_sources
from sckit.data.readers.source import CELLS_PER_BLOCK
from sckit.data.shards import (
    WORK,
    FinishedShard,
    OpenShard,
    fingerprint,
    finished_shards,
    read_json,
    reuse_or_begin,
)
from sckit.data.store import Store
from sckit.errors import DataError
from sckit.files import flush, to_json, write_json
from sckit.provenance import package_version

_ENTRIES_PER_SHARD = 2**26


class Preparation:
    """One call of `prepare`. Everything is written into `folder`; `publish` gives it its name.

    In `folder`/work lie the plan (inputs, sizes, times, config) and one record per finished shard, so that the same
    call continues where it was killed, and any other call starts from the beginning.
    """

    def __init__(self, inputs: Sequence[Path | str], out: Path, config: PrepareConfig, on_event: Callable) -> None:
        """Open the inputs and judge their cells by label; nothing is written yet."""
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self._config = config
        self._on_event = on_event
        opened = [(str(given), source) for given in inputs for source in open_sources(given, config)]
        self._inputs, self._sources = zip(*opened or [("", open_sample())], strict=True)
        self._is_sample = not inputs
        self._notes = [
            f"the obs column {name} holds numbers in some inputs and text in others, and is text in the store"
            for name in mixed_columns(self._sources)
        ]
        self._names = source_names([source.path for source in self._sources])
        self._obs, self._repeated_ids = unite_obs(self._sources, self._names)
        judged, reasons = judge_obs(
            self._sources, self._names, self._obs, assay=config.assay or "10x", obs_filter=config.obs_filter
        )
        bounds = np.cumsum([0, *(source.n_cells for source in self._sources)])
        for source, (first, last) in zip(self._sources, pairwise(bounds), strict=True):
            source.need_totals(judged[first:last] == KEPT)
        rules = QualityRules(config.min_genes, config.min_counts, config.max_counts, config.max_mito)
        self._stream = CellStream(self._sources, judged, reasons, rules)
        self._used = [number for number in range(len(self._sources)) if number not in self._stream.unused]
        if not self._used:
            self._refuse_empty(drop_counts(np.bincount(judged, minlength=len(reasons) + 1), reasons))
        tables = [source.genes for source in self._sources]
        self._shared = join_genes(tables, self._names, unused=self._stream.unused, duplicates=config.duplicates)
        self._cells_per_block = min(CELLS_PER_BLOCK, config.cells_per_shard)
        self._lines_not_found = 0

    def run(self) -> None:
        """Write shards, tables and at last the manifest, reusing what an earlier, killed call has finished."""
        gene_list = self._config.gene_list
        plan = {
            "sckit": package_version("sckit"),
            "version": VERSION,
            "inputs": [
                [given, *fingerprint(one.files)] for given, one in zip(self._inputs, self._sources, strict=True)
            ],
            "config": to_json(asdict(self._config)),
            "gene_list": fingerprint([gene_list]) if gene_list else None,
        }
        reuse_or_begin(self.folder, plan)
        vocabulary = self._choose_genes()
        self._finish(vocabulary, self._write_shards(vocabulary))

    def publish(self) -> None:
        """Give the finished folder its name; a store that is replaced disappears only then."""
        shutil.rmtree(self.folder / WORK)
        flush(self.folder)
        replaced = self.out.with_name(self.out.name + ".replaced")
        if self.out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            self.out.replace(replaced)
        self.folder.replace(self.out)
        flush(self.out.parent)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _choose_genes(self) -> Vocabulary:
        if self._config.gene_list:
            return self._shared.take(self._listed(self._config.gene_list))
        if isinstance(self._config.genes, int):
            path = self.folder / WORK / "genes.json"
            chosen = read_json(path)
            if chosen is None:
                chosen = self._most_variable(self._config.genes).tolist()
                write_json(path, chosen)
            return self._shared.take(np.array(chosen, dtype=np.int64))
        return self._shared

    def _listed(self, path: Path) -> np.ndarray:
        """Find the genes that a file names: [N] numbers in file order."""
        names = read_gene_list(path, "--genes")
        found = GeneIndex(self._shared.ids, self._shared.symbols).find(names)
        symbols, times = np.unique(self._shared.symbols[self._shared.symbols != ""], return_counts=True)
        several = sorted({*symbols[times > 1]} & {*names})
        if several:
            self._notes.append(f"several genes have the symbol {in_quotes(several)} of --genes; the first is taken")
        self._lines_not_found = int((found < 0).sum())
        if self._lines_not_found == len(names):
            first = self._shared.symbols[0]
            raise DataError(f"None of the {len(names)} genes of {path} is in the data, which has {first}, ...")
        return np.array(list(dict.fromkeys(found[found >= 0].tolist())))

    def _most_variable(self, n_top: int) -> np.ndarray:
        moments = GeneMoments(len(self._shared))
        for kept in self._stream.read(self._shared, cells_per_block=self._cells_per_block):
            moments.add(kept.indptr, kept.genes, kept.counts, kept.totals)
            self._say(kept.following, "choosing genes")
        if moments.n_cells == 0:
            self._refuse_empty({"cells outside the filters": self._stream.n_cells})
        return highly_variable(*moments.mean_and_variance(), n_top)

    def _write_shards(self, vocabulary: Vocabulary) -> list[FinishedShard]:
        """Write the shards that are missing; the last entry is the tail of the stream and may have no cells."""
        fates_shape = (len(self._sources), len(self._stream.reasons) + 1)
        shards = finished_shards(self.folder)
        start = shards[-1].following if shards else StreamPosition()
        shard = OpenShard(len(vocabulary), fates_shape)
        for kept in self._stream.read(vocabulary, start=start, cells_per_block=self._cells_per_block):
            shard.add(kept)
            if shard.n_cells >= self._config.cells_per_shard or shard.nonzeros >= _ENTRIES_PER_SHARD:
                shards.append(shard.close(self.folder, len(shards)))
                shard = OpenShard(len(vocabulary), fates_shape)
            self._say(kept.following, "writing")
        return [*shards, shard.close(self.folder, len(shards))]

    def _finish(self, vocabulary: Vocabulary, shards: list[FinishedShard]) -> None:
        """Write the tables of cells and genes and the manifest."""
        fates = np.sum([shard.fates for shard in shards], axis=0)  # [sources, reasons + 1]
        kept = fates[:, KEPT]
        lost_cells = [drop_counts(row, self._stream.reasons) for row in fates]
        dropped = _added_up([*self._lost_features(vocabulary), *lost_cells])
        if not kept.sum():
            self._refuse_empty(_added_up(lost_cells))
        rows, totals, n_genes = (
            np.concatenate([getattr(shard, name) for shard in shards]) for name in ("rows", "totals", "n_genes")
        )
        obs = self._obs.iloc[rows].reset_index(drop=True)
        self._notes += [note for source in self._sources for note in source.notes]
        self._notes += odd_inputs(self._sources, self._names, kept, lost_cells, len(self._shared))
        entries = [shard.manifest_entry for shard in shards if shard.manifest_entry["cells"]]
        written = Store(self.folder, {"cells": len(rows), "genes": len(vocabulary), "shards": entries})
        for number, (first, last) in enumerate(pairwise(np.cumsum([0, *kept]).tolist())):
            self._notes += lone_counts(written, first, last, self._names[number])
            if self._sources[number].totals is not None and self._config.max_mito is not None:
                self._notes.append(f"the mitochondrial share of {self._names[number]} is that of the genes in the file")
            if self._sources[number].totals is None:
                self._notes += odd_counts(totals[first:last], n_genes[first:last], self._names[number])
                own = self._sources[number].obs.iloc[rows[first:last] - self._stream.starts[number]]
                self._notes += larger_totals(own, totals[first:last], self._names[number])
        for note in self._notes:
            self._on_event("note", {"text": note})
        obs.insert(2, "total_counts", totals)
        obs.insert(3, "n_genes", n_genes)
        gene_cells = np.sum([shard.gene_cells for shard in shards], axis=0)
        genes = pd.DataFrame({"id": vocabulary.ids, "symbol": vocabulary.symbols, "n_cells": gene_cells})
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "sckit": package_version("sckit"),
            "cells": int(kept.sum()),
            "genes": len(vocabulary),
            "nonzeros": sum(entry["nonzeros"] for entry in entries),
            "vocabulary_sha256": vocabulary_hash(vocabulary.ids, vocabulary.symbols),
            "joined_on": "Ensembl id without version" if vocabulary.joined_on == "id" else "symbol",
            "genes_kept": "those that all inputs have" if len(self._sources) > 1 else "those of the input",
            "is_sample": self._is_sample,
            "config": to_json(asdict(self._config)),
            "sources": [self._source_entry(i, vocabulary, int(kept[i]), lost) for i, lost in enumerate(lost_cells)],
            "dropped": dropped,
            "notes": self._notes,
            "tables": {
                "genes.parquet": write_table(self.folder / "genes.parquet", genes),
                "obs.parquet": write_table(self.folder / "obs.parquet", obs),
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
        self, number: int, vocabulary: Vocabulary, kept: int, lost_cells: dict[str, int]
    ) -> dict[str, Any]:
        source = self._sources[number]
        return {
            "name": self._names[number],
            "path": str(source.path),
            "reader": type(source).__name__,
            "matrix": source.unit,
            "cells": source.n_cells,
            "kept": kept,
            "genes": len(source.genes),
            "genes_lost": vocabulary.lost[number],
            "genes_summed": vocabulary.summed[number],
            "repeated_cell_ids": self._repeated_ids[number],
            "has_assay": "assay" in source.obs,
            "dropped": {**source.dropped, **lost_cells},
        }

    def _refuse_empty(self, lost: dict[str, int]) -> None:
        reasons = ", ".join(f"{n} {reason}" for reason, n in lost.items())
        advice = "give others"
        if "cells of assay" in reasons:
            advice = "keep them with --assay any"
        elif NOT_RECOVERED in reasons:
            advice = "give the totals with --totals"
        elif any(word in reasons for word in ("fewer", "more", "outside")):
            advice = "loosen the filters"
        raise DataError(f"No cell is left of {self._stream.n_cells}: {reasons}; {advice}.")

    def _say(self, position: StreamPosition, what: str) -> None:
        done = self._stream.cells_before(position)
        self._on_event("progress", {"done": done, "of": self._stream.n_cells, "what": what})


def _added_up(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {reason: n for reason, n in total.items() if n}
