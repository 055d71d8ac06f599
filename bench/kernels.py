"""Measure the kernels and append one JSON line a row to bench/results: `python bench/kernels.py NAME [--rounds 7]`."""

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import torch

from sckit.bench import bench_kernels
from sckit.kernels.simd import host_width


def provenance(device: str) -> dict[str, Any]:
    """Return what a number means nothing without."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def _processor() -> str:
    """Return the processor's name, vector width and number of cores."""
    return f"{platform.processor() or platform.machine()}, {host_width()} float32 lanes, {os.cpu_count()} cores"


def main() -> None:
    """Run every case and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="results go to bench/results/NAME.jsonl")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = provenance(arguments.device)
    results = Path(__file__).parent / "results" / f"{arguments.name}.jsonl"
    with results.open("a", buffering=1) as lines:  # a killed run leaves its rows

        def keep(row: dict[str, Any]) -> None:
            lines.write(json.dumps(row | facts) + "\n")
            print(
                f"{row['case']:17} H{row['heads']} D{row['head_dim']} {row['pass']:8} {row['engine']:14}"
                f"{row['gflops']:8.1f} GFLOP/s {row['share_of_peak']:6.2f} of peak {row['median_ms']:9.1f} ms",
                flush=True,
            )

        bench_kernels(rounds=arguments.rounds, device=arguments.device, tell=keep)


if __name__ == "__main__":
    main()
