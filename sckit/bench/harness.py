"""The harness of `sckit bench`: check every variant of an operation, then time all of them in interleaved rounds.

Each round times each variant once, so that other load on the machine slows all of them alike. No speed is reported
where a variant disagrees with the reference.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sckit.errors import SckitError

Row = dict[str, Any]
Run = Callable[[], Any]
OnEvent = Callable[[str, dict[str, Any]], None]

_REPEATS = {"cpu": 1, "cuda": 10}  # most runs of one timing: on a GPU a single one is mostly its launch
_LONG_ENOUGH_S = 0.02  # after this much time to launch, a timing takes no further run


class Variant(NamedTuple):
    """One way to run an operation."""

    passes: dict[str, Run]  # what is timed, by name; the name is empty where there is only one pass
    result: Run | None  # returns the arrays to check; None for random draws, which follow the reference in law only


@dataclass
class Contest:
    """One operation on one input, with the variants to time against each other; sckit's own comes first."""

    facts: Row  # what each of its rows starts with, such as op and case
    variants: dict[str, Variant]
    reference: Run  # returns the arrays that the results of the variants have to agree with
    tolerance: float  # largest difference from the reference, as a share of the largest entry of each array
    figures: Callable[[Row, float], Row] = lambda row, yardstick_s: {}
    """What else a row says, from its times and the yardstick's median in seconds (NaN where there is none)."""
    yardstick: Run | None = None  # timed right before each variant, such as the machine's own matrix product
    times_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # of each round, by variant and pass
    yardstick_s: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The facts as words."""
        return ", ".join(f"{key} {value}" for key, value in self.facts.items())


def with_gradients(
    run: Callable[..., Tensor],
    leaves: Sequence[Tensor],
    slope: Tensor,
    checked: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> Variant:
    """Return the variant of a differentiable run(*leaves): forward, and forward with backward from the gradient slope.

    `checked` takes from the output and from each gradient the part that is compared with the reference.
    """

    def forward() -> None:
        with torch.no_grad():
            run(*leaves)

    both = partial(output_and_gradients, run, leaves, slope)
    return Variant({"fwd": forward, "fwd+bwd": both}, lambda: [checked(part) for part in both()])


def output_and_gradients(run: Callable[..., Tensor], leaves: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    """Return run(*leaves) and the gradients of the leaves."""
    out = run(*leaves)
    return [out, *torch.autograd.grad(out, leaves, slope)]


def check(contest: Contest) -> dict[str, str]:
    """Compare every variant with the reference, and return the competitors that cannot run here, with what they say.

    Those are taken out of the contest. Raises SckitError where a result is wrong.
    """
    own = next(iter(contest.variants))
    wanted = list(_arrays(contest.reference()))
    left_out = {}
    for name, variant in list(contest.variants.items()):
        if variant.result is None:
            continue
        try:
            result = variant.result()
        except RuntimeError as refusal:
            if name == own:
                raise
            left_out[name] = str(refusal).splitlines()[0]
            del contest.variants[name]
            continue
        for got, want in zip(_arrays(result), wanted, strict=True):
            error = _difference(got, want)
            if not error <= contest.tolerance:  # also where it is not a number
                raise SckitError(
                    f"{name!r} is wrong by {error:.1e} of the largest entry ({contest.name}), so no speed is reported;"
                    " run pytest tests/kernels."
                )
    return left_out


def measure(
    contests: Sequence[Contest],
    rounds: int,
    where: Row,
    *,
    device: str = "cpu",
    on_event: OnEvent = lambda kind, facts: None,
) -> list[Row]:
    """Time the contests, every variant once in each round after one of warm-up, and return a row for each pass.

    A row has the facts of the contest, pass and engine, median_ms with the 20th and 80th percentile over the rounds,
    the figures of the contest, and `where`, its provenance. `on_event` gets "progress" with done, of and what, and
    "row" with each row at the end.
    """
    done, of = 0, (rounds + 1) * sum(len(contest.variants) for contest in contests)
    for round_ in range(-1, rounds):  # the round before the first compiles and warms up
        for contest in contests:
            for engine, variant in contest.variants.items():
                on_event("progress", {"done": done, "of": of, "what": f"{contest.name}, {engine}"})
                done += 1
                yardstick_s = _wall_s(contest.yardstick, device) if contest.yardstick else float("nan")
                times_s = {name: _wall_s(run, device) for name, run in variant.passes.items()}
                if round_ >= 0:
                    contest.yardstick_s.append(yardstick_s)
                    for name, wall_s in times_s.items():
                        contest.times_s.setdefault((engine, name), []).append(wall_s)
    rows = []
    for contest in contests:
        for (engine, name), walls_s in contest.times_s.items():
            low_ms, median_ms, high_ms = (1e3 * np.percentile(walls_s, (20, 50, 80))).tolist()
            row = contest.facts | ({"pass": name} if name else {}) | {"engine": engine}
            row |= {"median_ms": median_ms, "p20_ms": low_ms, "p80_ms": high_ms}
            rows.append(row | contest.figures(row, float(np.median(contest.yardstick_s))) | where)
            on_event("row", rows[-1])
    return rows


def _wall_s(run: Run, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    runs = 0
    while runs < _REPEATS[device] and (not runs or time.perf_counter() - start < _LONG_ENOUGH_S):
        run()
        runs += 1
    wait()
    return (time.perf_counter() - start) / runs


def _arrays(result: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of a nested result, in order, as float64."""
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from _arrays(part)
    elif isinstance(result, Tensor):
        yield result.detach().double().cpu().numpy()
    else:
        yield np.asarray(result, np.float64)


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest difference as a share of the largest entry; infinity where the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    error, largest = (float(np.abs(part).max(initial=0.0)) for part in (got - want, want))
    return error / largest if largest else error
