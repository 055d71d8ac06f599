"""`sckit bench static`: compile every shipped kernel for GPUs that are not here and judge the machine code.

It shows that known failures are absent, and says nothing of speed: spilled registers, older matrix instructions,
tensors that silently became float32, loads that wait, and figures that are worse than the recorded ones.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from sckit.bench.machine_code import measure
from sckit.bench.shipped import TARGETS, Shipped, all_shipped
from sckit.errors import ConfigError, SckitError

BASELINES = Path(__file__).parents[1] / "kernels" / "static"
SLACK = 0.05
SHARED_BYTES = {"gfx942": 64 * 1024}  # otherwise 99 KiB, so that the smaller chips of a family run it too
PER_SCORE = ("instructions_per_score", "exps_per_score")
LARGER_IS_WORSE = ("shared_bytes", *PER_SCORE, "loop_instructions")
RECORDED = ("registers", "shared_bytes", "resident_warps", "loop_instructions", *PER_SCORE)


def bench_static(
    kernels: Iterable[Shipped] | None = None,
    *,
    targets: Iterable[str] = TARGETS,
    processes: int = 2,
    record: bool = False,
    folder: Path = BASELINES,
) -> dict[str, Any]:
    """Compile the kernels (by default all that ship) for the targets, judge them, and return the document.

    rows hold the figures of `measure`; failures hold kernel, target, case, rule, got and wanted. A baseline is read
    from, or with `record` written to, `folder`/triton-MAJOR.MINOR.json; without one for the installed Triton only the
    absolute rules count, and "baseline" is None.
    Raises SckitError without Triton, under its interpreter, or for a target that is not one of TARGETS.
    """
    version = _triton_version()
    targets = list(targets)
    if unknown := [target for target in targets if target not in TARGETS]:
        raise ConfigError(f"--target {unknown[0]} is unknown; choose among {', '.join(TARGETS)}.")
    if record and set(targets) != set(TARGETS):
        message = "--record writes the whole baseline, so it takes all targets; leave --target out."
        raise ConfigError(message)
    chosen = [one for one in (all_shipped() if kernels is None else kernels) if one.target in targets]
    path = folder / f"triton-{'.'.join(version.split('.')[:2])}.json"
    baseline = json.loads(path.read_text()) if path.is_file() and not record else None
    recorded = baseline["rows"] if baseline else {}
    rows, failures = [], []
    for one, figures in zip(chosen, _measured(chosen, processes if kernels is None else 1), strict=True):
        names = {"kernel": one.name, "target": one.target, "case": one.case}
        rows.append(names | figures)
        broken = [*broken_rules(one, figures), *worse_than(figures, recorded.get(one.key, {}))]
        failures += [names | {"rule": rule, "got": got, "wanted": wanted} for rule, got, wanted in broken]
    if record:
        _write(path, version, {one.key: row for one, row in zip(chosen, rows, strict=True)})
    return {
        "command": "bench static",
        "triton": version,
        "baseline": f"Triton {baseline['triton']}" if baseline else None,
        "recorded": str(path) if record else None,
        "ok": not failures,
        "rows": rows,
        "failures": failures,
    }


def broken_rules(one: Shipped, figures: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield rule, got and wanted for every absolute rule that the figures break."""
    for name in ("stack", "scratch", "spills"):
        if figures[name]:
            yield name, figures[name], 0
    wanted = [one.matrix] if one.matrix else []
    if figures["matrix"] != wanted:
        yield "matrix instructions", " and ".join(figures["matrix"]) or "none", one.matrix or "none"
    if one.target.startswith("sm") and one.options.get("num_stages", 1) > 1 and not figures["async_copies"]:
        yield "asynchronous copies in the loop", 0, "at least 1"
    limit = SHARED_BYTES.get(one.target, 99 * 1024)
    if figures["shared_bytes"] > limit:
        yield "shared_bytes", figures["shared_bytes"], f"at most {limit}"
    if one.scores and figures["exps_per_score"] > one.exps_per_score:
        yield "exps_per_score", figures["exps_per_score"], f"at most {one.exps_per_score:g}"
    if figures["resident_warps"] < one.least_warps:
        yield "resident_warps", figures["resident_warps"], f"at least {one.least_warps}"


def worse_than(figures: dict[str, Any], recorded: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield rule, got and wanted for every figure that is worse than the recorded one by more than SLACK."""
    for name in LARGER_IS_WORSE:
        got, before = figures[name], recorded.get(name)
        if got is not None and before is not None and got > before * (1 + SLACK):
            yield f"{name}, recorded {before}", got, f"at most {before * (1 + SLACK):.4g}"
    got, before = figures["resident_warps"], recorded.get("resident_warps", 0)
    if got < before * (1 - SLACK):
        yield f"resident_warps, recorded {before}", got, f"at least {before * (1 - SLACK):g}"


def print_static(document: dict[str, Any], console: Any) -> None:
    """Print the figures as a table for people, then the failures, one a line."""
    from rich.table import Table

    table = Table(title=f"Machine code, Triton {document['triton']}; nothing was run on a GPU")
    for name in ("kernel", "target", "case"):
        table.add_column(name)
    for name in ("regs", "spills", "shared KiB", "warps", "matrix", "async", "instr/score", "exp/score"):
        table.add_column(name, justify="right")
    for row in document["rows"]:
        numbers = (row["registers"], row["spills"], round(row["shared_bytes"] / 1024), row["resident_warps"])
        loop = ("+".join(row["matrix"]) or "none", row["async_copies"])
        shares = (row["instructions_per_score"], row["exps_per_score"])
        table.add_row(row["kernel"], row["target"], row["case"], *map(str, (*numbers, *loop, *shares)))
    console.print(table)
    for failure in document["failures"]:
        text = "{kernel}, {target}, {case}: {rule}: got {got}, wanted {wanted}".format(**failure)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    against = document["baseline"] or "no baseline for this Triton: absolute rules only"
    console.print(f"{len(document['rows'])} kernels, {len(document['failures'])} failures; compared with: {against}")


def _measured(chosen: list[Shipped], processes: int) -> list[dict[str, Any]]:
    """Return the figures of each kernel, in order. None can be sent to a process, which finds its own by its key."""
    if processes < 2 or len(chosen) < 2:
        return [measure(one) for one in chosen]
    parallel: Any = Parallel(processes)
    return parallel(delayed(_measure_by_key)(one.key) for one in chosen)


def _measure_by_key(key: str) -> dict[str, Any]:
    return measure(next(one for one in all_shipped() if one.key == key))


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        message = "bench static needs Triton, which is not installed here (it has packages for Linux only)."
        raise SckitError(message) from None
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("", "0", "false", "off", "no", "n"):
        message = "bench static compiles kernels, but TRITON_INTERPRET is set, so they would be interpreted; unset it."
        raise SckitError(message)
    return triton.__version__


def _write(path: Path, version: str, rows: dict[str, dict[str, Any]]) -> None:
    """Write a baseline: one line a kernel, so that a change of figures reads well in a diff."""
    kept = {key: json.dumps({name: row[name] for name in RECORDED}) for key, row in sorted(rows.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(f"{json.dumps(key)}: {figures}" for key, figures in kept.items())
    path.write_text(f'{{\n"triton": {json.dumps(version)},\n"rows": {{\n{text}\n}}\n}}\n')
