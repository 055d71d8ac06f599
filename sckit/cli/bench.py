"""`sckit bench`: what kernels, `prepare`, the loader and training steps take, and static checks of the kernels."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from sckit.cli.options import command_of, result_console, say
from sckit.cli.progress import Bar
from sckit.config import PretrainConfig
from sckit.errors import ConfigError

bench = typer.Typer(no_args_is_help=True, help="Benchmarks, and static checks of the hand-written kernels.")

Rounds = Annotated[int, typer.Option(min=1, help="Rounds; every variant is timed once in each.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default as many as torch chooses.")]
Out = Annotated[Path | None, typer.Option(help="Append the rows to this file, one JSON line each.")]

_WIDTH = 160  # of tables where stdout is not a terminal


@bench.command()
@command_of((PretrainConfig, "device"))
def kernels(
    *,
    case: Annotated[list[str] | None, typer.Option(help="Case by name, by default all; may be repeated.")] = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    tune: Annotated[bool, typer.Option("--tune", help="On a GPU, try other launches first and use the best.")] = False,
    out: Out = None,
    chart: Annotated[Path | None, typer.Option(help="Write a bar chart, such as kernels.png.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Earlier rows, written with --out, to compare with.")] = None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Time the attention engine and other implementations, as a share of the machine's own matrix product.

    For example:

        sckit bench kernels --rounds 5 --chart kernels.png

        sckit bench kernels --case short --out now.jsonl --compare before.jsonl
    """
    from sckit.bench import report
    from sckit.bench.attention import bench_kernels
    from sckit.bench.cases import CASES, cases_for

    names = list(dict.fromkeys(known.name for known in CASES))
    unknown = [name for name in case or [] if name not in names]
    if unknown:
        raise ConfigError(f"--case {unknown[0]} is unknown; choose among {', '.join(names)}.")
    earlier = report.read_rows(compare) if compare else None
    kind = _prepared(threads, out, chart, **given)
    chosen = cases_for(kind, case or ())
    with Bar() as bar:

        def on_event(event: str, facts: dict[str, Any]) -> None:
            if event == "progress":  # the rows come as one table at the end
                bar.on_event(event, facts)

        document = bench_kernels(chosen, rounds=rounds, device=kind, tune=tune, on_event=on_event)
    report.print_kernels(document, result_console(_WIDTH))
    if earlier is not None:
        report.print_comparison(document["rows"], earlier, result_console(_WIDTH))
    if chart:
        report.draw_kernels(document, chart)
        say(f"wrote {chart}")
    return _kept(document, out)


@bench.command()
@command_of((PretrainConfig, "device"))
def ops(*, rounds: Rounds = 5, threads: Threads = None, given: dict[str, Any], out: Out = None) -> dict[str, Any]:
    """Time the token states and the masked head, forward and backward, compared with plain torch.

    For example:

        sckit bench ops --rounds 7 --threads 1
    """
    from sckit.bench.ops import bench_ops

    kind = _prepared(threads, out, **given)
    with Bar() as bar:
        return _kept(bench_ops(rounds, bar.on_event, device=kind), out)


@bench.command()
@command_of()
def counts(*, rounds: Rounds = 5, threads: Threads = None, out: Out = None) -> dict[str, Any]:
    """Time what is done to counts (normalise, hide and pack, halve, statistics), compared with numpy, scipy and torch.

    For example:

        sckit bench counts --rounds 7
    """
    from sckit.bench.counts import bench_counts

    _prepared(threads, out, device="cpu")
    with Bar() as bar:
        return _kept(bench_counts(rounds, bar.on_event), out)


@bench.command()
@command_of()
def static(
    *,
    target: Annotated[
        list[str] | None, typer.Option(help="GPU such as sm_90, by default all; may be repeated.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=2, help="Kernels that are compiled at the same time.")] = 2,
    record: Annotated[bool, typer.Option("--record", help="Write a new baseline for this Triton version.")] = False,
) -> dict[str, Any]:
    """Compile every shipped GPU kernel, without a GPU, and check the machine code; exit with 1 if a rule is broken.

    For example:

        sckit bench static --target sm_90
    """
    from sckit.bench.shipped import TARGETS
    from sckit.bench.static import bench_static, print_static

    document = bench_static(targets=target or TARGETS, processes=processes, record=record)
    print_static(document, result_console(_WIDTH))
    return document


Data = Annotated[Path | None, typer.Option(help="What `sckit prepare` reads; by default counts are made up.")]
Cells = Annotated[int, typer.Option(min=256, help="Cells to make up.")]
Folder = Annotated[Path | None, typer.Option(help="Keep the files in this folder for the next time, and take them.")]
Engines = Annotated[list[str] | None, typer.Option("--engine", help="Engine by name, by default all; may be repeated.")]
PeerPython = Annotated[
    list[str] | None,
    typer.Option(help="NAME=PATH: the Python of an engine with an environment of its own; may be repeated."),
]


@bench.command()
@command_of()
def prepare(
    *,
    data: Data = None,
    cells: Cells = 20_000,
    folder: Folder = None,
    engine: Engines = None,
    peer_python: PeerPython = None,
    rounds: Rounds = 3,
    out: Out = None,
) -> dict[str, Any]:
    """Time `sckit prepare` from a 10x h5 file, h5ad and SOMA, compared with other tools and with reading alone.

    Every timing is a process of its own, with the input in the page cache, after a few cells alone.

    For example:

        sckit bench prepare --cells 200000 --peer-python annbatch=envs/annbatch/bin/python
    """
    from sckit.bench.inputs import write_inputs

    with _folder("prepare", folder, out, engine, peer_python) as place:
        facts = write_inputs(place, data, cells) | {"folder": str(place)}
        return _raced("prepare", facts, engine, peer_python, rounds, out)


@bench.command()
@command_of()
def loader(
    *,
    data: Data = None,
    cells: Cells = 20_000,
    folder: Folder = None,
    batch: Annotated[int, typer.Option(min=1, help="Cells in a batch.")] = 256,
    engine: Engines = None,
    peer_python: PeerPython = None,
    rounds: Rounds = 3,
    out: Out = None,
) -> dict[str, Any]:
    """Time an epoch of shuffled batches from the disk: finished ones of sckit, raw rows of other loaders.

    For example:

        sckit bench loader --cells 200000 --peer-python annbatch=envs/annbatch/bin/python
    """
    from sckit.bench.inputs import write_inputs

    with _folder("loader", folder, out, engine, peer_python) as place:
        facts = write_inputs(place, data, cells) | {"folder": str(place), "batch": batch}
        return _raced("loader", facts, engine, peer_python, rounds, out)


@bench.command()
@command_of()
def train(
    *,
    folder: Folder = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each engine in a round.")] = 5,
    engine: Engines = None,
    peer_python: PeerPython = None,
    threads: Threads = None,
    rounds: Rounds = 3,
    out: Out = None,
) -> dict[str, Any]:
    """Time training steps on the CPU, 128 wide with 4 layers and 32 cells, compared with networks of plain torch.

    For example:

        sckit bench train --threads 2
    """
    import torch

    from sckit.bench.inputs import TRAINING_GENES, write_training

    with _folder("train", folder, out, engine, peer_python) as place:
        write_training(place, cells_per_batch=32)
        facts = {"folder": str(place), "genes": TRAINING_GENES, "steps": steps}
        facts |= {"threads": threads or torch.get_num_threads()}
        return _raced("train", facts, engine, peer_python, rounds, out)


@contextmanager
def _folder(
    op: str, folder: Path | None, out: Path | None, engines: list[str] | None, pythons: list[str] | None
) -> Iterator[Path]:
    """Refuse unknown engines and files that cannot be written; yield a folder, which is removed unless it was given."""
    from sckit.bench.race import ENGINES
    from sckit.bench.report import check_writable

    check_writable(out, None)
    known = [engine.name for engine in ENGINES[op]]
    if unknown := [name for name in engines or [] if name not in known]:
        raise ConfigError(f"--engine {unknown[0]} is unknown; choose among {', '.join(known)}.")
    for name, path in _by_engine(pythons).items():
        if name not in known or not Path(path).is_file():
            raise ConfigError(f"--peer-python {name}={path}: give NAME=PATH, NAME one of {', '.join(known)}.")
    with nullcontext(folder) if folder else TemporaryDirectory(prefix="sckit-bench-") as place:
        yield Path(place).resolve()


def _by_engine(pythons: list[str] | None) -> dict[str, str]:
    return dict((text.partition("=")[0], text.partition("=")[2]) for text in pythons or [])


def _raced(
    op: str, facts: dict[str, Any], engines: list[str] | None, pythons: list[str] | None, rounds: int, out: Path | None
) -> dict[str, Any]:
    import torch

    from sckit.bench.race import print_race, race
    from sckit.provenance import measured_on

    with Bar() as bar:
        found = race(op, facts, names=engines or (), pythons=_by_engine(pythons), rounds=rounds, on_event=bar.on_event)
    document = {"command": f"bench {op}"} | found
    document |= {"data": {k: v for k, v in facts.items() if k != "folder"}, "where": measured_on("cpu", torch.float32)}
    print_race(document, result_console(_WIDTH))
    if out:
        from sckit.bench.report import append_rows

        append_rows({"rows": [row | document["data"] | document["where"] for row in found["rows"]]}, out)
        say(f"wrote {out}")
    return document


def _prepared(threads: int | None, out: Path | None, chart: Path | None = None, *, device: str = "auto") -> str:
    """Refuse files that cannot be written, set the number of threads, and return "cpu" or "cuda"."""
    import torch

    from sckit.bench.report import check_writable
    from sckit.device import choose_compute

    check_writable(out, chart)
    if threads is not None:
        torch.set_num_threads(threads)
    kind = choose_compute(device).device.type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: sckit has kernels for cpu and cuda only.")
    return kind


def _kept(document: dict[str, Any], out: Path | None) -> dict[str, Any]:
    from sckit.bench.report import append_rows

    if out:
        append_rows(document, out)
        say(f"wrote {out}")
    return document
