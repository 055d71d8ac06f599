"""Plant plausible bugs in the kernels, one at a time: the tests have to catch every one.

`python bench/mutations.py [--only PART]` copies the package and its tests, makes one edit, runs the tests of that
kernel, and fails when they pass. The untouched copy has to pass, or the rest would prove nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NUMBA = ["tests/kernels/test_attention.py", "-k", "numba and (16-wide or 24-wide or bound)"]
TRITON = ["tests/kernels/test_attention.py", "-k", "triton and (16-wide-float32 or 32-wide-bfloat16)"]
ADDRESSES = ["tests/kernels/test_attention_launch.py", "-k", "beyond_32_bits"]
EMBED = ["tests/kernels/test_embed.py", "-k", "agrees"]
HEAD = ["tests/kernels/test_head.py", "-k", "agrees"]


class Bug(NamedTuple):
    """One edit: `old`, which the file holds once, becomes `new`."""

    what: str
    file: str
    old: str
    new: str
    tests: list[str]


BUGS = [
    Bug("scale of the scores without its root", "attention_numba.py",
        "scale_log2 = np.float32(LOG2_E / math.sqrt(width))\n    one",
        "scale_log2 = np.float32(LOG2_E / width)\n    one", NUMBA),
    Bug("one key too many in the last block", "attention_numba.py",
        "rows = min(FORWARD_KEYS, n_keys - j0)", "rows = min(FORWARD_KEYS, n_keys - j0 + 1)", NUMBA),
    Bug("a hidden query does not see itself", "attention_numba.py",
        "own = min(max(0, n_keys - q0), n)", "own = n", NUMBA),
    Bug("the first key of the prefix counts as the query's own", "attention_numba.py",
        "own = max(0, n_keys - q0)\n            if own < n:",
        "own = max(0, n_keys - q0 - 1)\n            if own < n:", NUMBA),
    Bug("the running sum is not rescaled when the maximum rises", "simd_softmax.py",
        "start = [builder.fmul(code.load(total_at, v), decay[v]) for v in lanes]",
        "start = [code.load(total_at, v) for v in lanes]", NUMBA),
    Bug("a stale maximum: blocks after the first do not raise it", "simd_softmax.py",
        "code.store(tops[v], top_at, v)", "code.store(before[v], top_at, v)", NUMBA),
    Bug("the bound leaves out the norm of the keys", "attention_numba.py",
        "bounded = ordinary and _largest_square(host, block, row, n, width) * key_square <= BOUND * BOUND",
        "bounded = ordinary and _largest_square(host, block, row, n, width) <= BOUND * BOUND", NUMBA),
    Bug("the gradient of the keys keeps the base of the exponential", "attention_numba.py",
        "scale_rows(host, to_keys, row, dk_at, to_k[1], n_keys, width, ln_2)",
        "scale_rows(host, to_keys, row, dk_at, to_k[1], n_keys, width, one)", NUMBA),
    Bug("delta is left out of the score gradient", "simd_softmax.py",
        "builder.fmul(weight, builder.fsub(code.load(at[1], v), deltas[v]))",
        "builder.fmul(weight, code.load(at[1], v))", NUMBA),
    Bug("a block of queries overwrites the gradients of the ones before", "attention_numba.py",
        "dk_rows, row, rows, wide, n, int(q0 > 0))", "dk_rows, row, rows, wide, n, 0)", NUMBA),
    Bug("heads are swapped in the output", "attention_numba.py",
        "out_at = _place(out, start, head)\n        # strided",
        "out_at = _place(out, start, heads - 1 - head)\n        # strided", NUMBA),
    Bug("the last row of a product tile is dropped", "simd.py",
        "for tall in sorted({TILE_ROWS[code.width][wide], 4, 2, 1}, reverse=True):",
        "for tall in sorted({TILE_ROWS[code.width][wide], 4, 2}, reverse=True):", NUMBA),
    Bug("scale of the scores without its root", "attention_triton.py",
        "q.shape[0], LOG2_E / math.sqrt(q.shape[2]),", "q.shape[0], LOG2_E / q.shape[2],", TRITON),
    Bug("keys beyond the prefix are not masked", "attention_triton.py",
        "scores = tl.where(inside[None, :], scores, -1e30)", "scores = scores + 0.0", TRITON),
    Bug("the own key has no weight", "attention_triton.py",
        "total = tl.where(own, 1.0, 0.0)", "total = tl.where(own, 0.0, 0.0)", TRITON),
    Bug("a stale maximum", "attention_triton.py", "return larger, total, out", "return top, total, out", TRITON),
    Bug("the accumulator is not rescaled when the maximum rises", "attention_triton.py",
        "out = _dot(weights.to(v.dtype), v, out * decay[:, None], UPCAST)",
        "out = _dot(weights.to(v.dtype), v, out, UPCAST)", TRITON),
    Bug("heads are swapped in the output", "attention_triton.py",
        "to = OUT + (start + first) * (H * D) + head * D", "to = OUT + (start + first) * (H * D) + (H - 1 - head) * D",
        TRITON),
    Bug("the last query of a ragged cell gives no gradient to the keys", "attention_triton.py",
        "full + step < length, dk, dv", "full + step < length - 1, dk, dv", TRITON),
    Bug("delta is left out of the gradient of the keys", "attention_triton.py",
        "(weights * (slopes - delta[None, :]))", "(weights * slopes)", TRITON),
    Bug("the gradient of the keys is not scaled", "attention_triton.py",
        "(dk * scale).to(DK.dtype.element_ty)", "dk.to(DK.dtype.element_ty)", TRITON),
    Bug("addresses of 32 bits", "attention_triton.py", "tl.load(row).to(tl.int64)", "tl.load(row)", ADDRESSES),
    Bug("the last tile of a cell is dropped", "attention_plan.py",
        "count = (span + TILE - 1) // TILE", "count = (span + TILE - 2) // TILE", TRITON),
    Bug("a hidden token shows its value", "embed_triton.py",
        "tl.where(hidden[:, None], hidden_vector[None, :], shown", "tl.where(hidden[:, None], shown, shown", EMBED),
    Bug("a knot below its weight and above it are swapped", "embed_numba.py",
        "_add(grad, t, mine, v, one - upper, mine, v + 1, upper)",
        "_add(grad, t, mine, v, upper, mine, v + 1, one - upper)", EMBED),
    Bug("the last position of a segment is dropped", "rows_triton.py",
        "live = i + tl.arange(0, STEP) < last", "live = i + tl.arange(0, STEP) < last - 1", HEAD),
    Bug("targets past the end count in the loss", "head_triton.py",
        "tl.where(live, error * error, 0.0)", "error * error + tl.where(live, 0.0, 1.0)", HEAD),
]  # fmt: skip


def caught(bug: Bug | None, tests: list[str]) -> tuple[bool, str]:
    """Return whether the tests fail on a copy with the bug (None: the untouched copy), and the first failure."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        without = shutil.ignore_patterns("__pycache__", "results", "runs", ".venv", ".git")
        for part in ("sckit", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=without)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if bug is not None:
            path = copy / "sckit" / "kernels" / bug.file
            text = path.read_text()
            if text.count(bug.old) != 1:
                message = f"{bug.file} holds {text.count(bug.old)} times, not once: {bug.old!r}"
                raise SystemExit(message)
            path.write_text(text.replace(bug.old, bug.new))
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return True, f"a crash, signal {-done.returncode}"
    if done.returncode > 1:  # 1: tests ran and some failed
        message = f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise SystemExit(message)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return done.returncode == 1, failed[0].split("::", 1)[1].split(" - ")[0] if failed else ""


def main() -> int:
    """Return how many bugs the tests let pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only bugs whose file and name hold this")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    bugs = [bug for bug in BUGS if arguments.only in f"{bug.file}: {bug.what}"]
    suites = {tuple(bug.tests) for bug in bugs}
    missed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        controls = [pool.submit(caught, None, list(tests)) for tests in suites]
        results = [pool.submit(caught, bug, bug.tests) for bug in bugs]
        for tests, control in zip(suites, controls, strict=True):
            failed, test = control.result()
            if failed:
                message = f"the untouched copy fails {test} of {tests[0]}"
                raise SystemExit(message)
        for bug, result in zip(bugs, results, strict=True):
            found, test = result.result()
            missed += not found
            print(
                f"{'caught' if found else 'MISSED'}  {bug.file}: {bug.what}{'  by ' + test if found else ''}",
                flush=True,
            )
    print(f"{len(bugs) - missed} of {len(bugs)} bugs caught; the untouched copies pass")
    return missed


if __name__ == "__main__":
    sys.exit(main())
