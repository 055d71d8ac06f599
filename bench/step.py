"""Show where the time of a training step goes: `python bench/step.py [DATA] [--preset small] [--steps 5]`.

Prints the shares of attention, of matrix products and of the largest other operations in the processor time of training
steps, by torch's profiler, after two steps of warm-up. Without DATA it trains on the sample inside scanpy.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sckit.config import PretrainConfig
from sckit.provenance import measured_on
from sckit.training.pretrain import pretrain

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
ATTENTION = ("sckit::attention_forward", "sckit::attention_backward", "GeneratedBackwardFor_sckit_attention_forward")
WARM_UP = 2


class _EnoughError(Exception):
    """The steps to profile are done."""


def shares(events: Iterable[Any]) -> tuple[float, dict[str, float]]:
    """Return the processor time in seconds and its shares: attention, matrix products, and every other operation."""
    times: dict[str, float] = {}
    for event in events:
        name = "matrix products" if event.key in PRODUCTS else event.key
        name = "attention" if event.key.startswith(ATTENTION) else name
        times[name] = times.get(name, 0.0) + event.self_cpu_time_total / 1e6
    total = sum(times.values())
    return total, {name: spent / total for name, spent in sorted(times.items(), key=lambda item: -item[1])}


def main() -> None:
    """Train a few steps under the profiler and print, and keep where asked, where the time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="store, h5ad, 10x h5 or mtx folder")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the result to this file as one JSON line")
    arguments = parser.parse_args()
    profiler = torch.profiler.profile()

    def on_event(kind: str, facts: dict[str, Any]) -> None:
        if kind == "step" and facts["step"] == WARM_UP:
            profiler.start()
        elif kind == "step" and facts["step"] == WARM_UP + arguments.steps:
            profiler.stop()
            raise _EnoughError

    steps = 20 * (WARM_UP + arguments.steps)  # a tenth of the budget lies between validations
    config = PretrainConfig(mask="uniform", preset=arguments.preset, steps=steps)
    with tempfile.TemporaryDirectory() as runs, suppress(_EnoughError):
        pretrain(arguments.data, config, runs=runs, on_event=on_event)
    seconds, parts = shares(profiler.key_averages())
    rest = 1 - parts["attention"] - parts["matrix products"]
    where = measured_on("cpu", torch.float32)
    print(f"{arguments.preset}, {where['device']}, {where['threads']} threads, {arguments.steps} steps")
    for name, share in list(parts.items())[:16]:
        print(f"{share:7.1%}  {name}")
    print(f"{rest:7.1%}  outside attention and matrix products, of {seconds / arguments.steps * 1e3:.0f} ms a step")
    if arguments.out:
        facts = {"op": "training step", "preset": arguments.preset, "data": Path(arguments.data or "sample").stem}
        row = facts | {"outside": rest, "s_per_step": seconds / arguments.steps}
        row |= {"shares": {name: round(share, 5) for name, share in parts.items() if share > 0.001}} | where
        with arguments.out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
