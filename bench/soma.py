"""How long `sckit prepare` takes compared with tiledbsoma, which only reads: `python bench/soma.py --out FILE`.

Both read the same cells of an experiment on this disk that looks like the Census, in rounds that take turns, each in a
process of its own. tiledbsoma's time is that of its own query of obs and X, whose tables are thrown away.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sckit.provenance import commit, package_version, peak_rss_bytes

GENES, DETECTED = 20_000, 1_500
ASSAY, PRIMARY = "10x 3' v3", "is_primary_data == True"


def write(path: Path, n_cells: int) -> None:
    """Write an experiment of cells that detect some 1,500 of 20,000 genes, block by block."""
    import pyarrow as pa
    import tiledbsoma

    rng = np.random.default_rng(0)
    obs = pa.table(
        {
            "soma_joinid": np.arange(n_cells),
            "assay": pa.array(rng.choice(["10x 3' v3", "10x 5' v1", "Smart-seq2"], n_cells), pa.large_string()),
            "is_primary_data": rng.random(n_cells) < 0.6,
        }
    )
    var = pa.table(
        {
            "soma_joinid": np.arange(GENES),
            "feature_id": pa.array([f"ENSG{i:011d}" for i in range(GENES)], pa.large_string()),
        }
    )
    popularity = rng.gamma(0.4, size=GENES)
    popularity *= DETECTED / popularity.sum()
    with tiledbsoma.Experiment.create(str(path)) as experiment:
        experiment.add_new_dataframe("obs", schema=obs.schema, domain=[[0, n_cells - 1]]).write(obs)
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        rna.add_new_dataframe("var", schema=var.schema, domain=[[0, GENES - 1]]).write(var)
        layer = rna.add_new_collection("X").add_new_sparse_ndarray("raw", type=pa.float32(), shape=(n_cells, GENES))
        for first in range(0, n_cells, 2000):
            counts = rng.poisson(popularity * rng.lognormal(0, 0.4, (min(2000, n_cells - first), 1)))
            cells, genes = np.nonzero(counts)
            entries = {"soma_dim_0": cells + first, "soma_dim_1": genes}
            layer.write(pa.table(entries | {"soma_data": counts[cells, genes].astype(np.float32)}))


def read_by_tiledbsoma(path: Path) -> int:
    """Run the query that the store is made of, and count the entries."""
    import tiledbsoma

    query = tiledbsoma.AxisQuery(value_filter=f"{PRIMARY} and assay == {ASSAY!r}")
    with tiledbsoma.open(str(path)) as experiment, experiment.axis_query("RNA", obs_query=query) as found:
        found.obs().concat()
        return sum(len(table) for table in found.X("raw").tables())


def read_by_sckit(path: Path) -> int:
    """Read the same cells as `prepare` does, without writing them."""
    from sckit.config.reading import ReadingConfig
    from sckit.data.ahead import ahead
    from sckit.data.readers.open import open_sources

    (source,) = open_sources(path, ReadingConfig(assay=ASSAY, obs_filter=PRIMARY))
    return sum(len(block.genes) for block in ahead(source.blocks()))


def prepare(path: Path) -> int:
    """Write the store."""
    from sckit.config.prepare import PrepareConfig
    from sckit.data.prepare import prepare as write_store

    config = PrepareConfig(assay=ASSAY, obs_filter=PRIMARY)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        return write_store([path], Path(scratch) / "s.sckit", config=config).nonzeros


WAYS = {"tiledbsoma": read_by_tiledbsoma, "sckit reads": read_by_sckit, "sckit prepare": prepare}


def main() -> None:
    """Measure, or be one measurement (`--way`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "sckit-bench-soma")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way")
    arguments = parser.parse_args()
    path = arguments.data / f"cells-{arguments.cells}"
    if arguments.way:
        started_s, used_s = time.perf_counter(), time.process_time()
        entries = WAYS[arguments.way](path)
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - used_s
        print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "entries": entries, "peak_rss_bytes": peak_rss_bytes()}))
        return
    if not path.exists():
        arguments.data.mkdir(parents=True, exist_ok=True)
        write(path, arguments.cells)
    rows: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds + 1):  # the first warms the page cache
        for way, found in rows.items():
            command = [
                sys.executable,
                __file__,
                "--cells",
                str(arguments.cells),
                "--data",
                arguments.data,
                "--way",
                way,
            ]
            found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    facts = {"commit": commit(), "load": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
    facts |= {package: package_version(package) for package in ("sckit", "tiledbsoma", "numpy")}
    lines = []
    for way, found in rows.items():
        kept = found[1:]
        middle = {name: statistics.median(one[name] for one in kept) for name in kept[0]}
        ratios = [one["wall_s"] / base["wall_s"] for one, base in zip(kept, rows["tiledbsoma"][1:], strict=True)]
        lines.append(
            {"way": way, "cells": arguments.cells, "rounds": len(kept), **middle, "entries": kept[0]["entries"]}
        )
        lines[-1] |= {"wall_ratio": statistics.median(ratios), "wall_ratio_range": [min(ratios), max(ratios)]} | facts
        print(
            f"{way:<14} {middle['wall_s']:6.2f} s, {middle['cpu_s']:6.2f} s CPU, {statistics.median(ratios):.2f} times"
        )
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
