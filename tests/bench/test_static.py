"""The gate on machine code: it passes what ships, and it fails when a kernel is made worse."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has packages for Linux only")

PLANTED = """
import json
import sys
from pathlib import Path

import triton
import triton.language as tl

from sckit.bench.shipped import ship_attention
from sckit.bench.static import bench_static
from sckit.kernels import attention_triton as engine
from sckit.kernels.attention_launch import LAUNCHES, Launch


def one(name, target, width, kind="bf16", **constants):
    row = LAUNCHES[target][width, 2]
    kernel = next(made for made in ship_attention(target, width, kind, row) if made.name == "attention " + name)
    return kernel._replace(constants=kernel.constants | constants, case=kernel.case + " " + str(constants))

def dkv(target, keys, queries):
    kernel = one("dK dV", target, 64, N=keys, M=queries)
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    return kernel._replace(options=options, scores=keys * queries, exps_per_score=9)

"""


def gate(code: str) -> Any:
    """Run code outside the interpreter, where kernels compile, and return the JSON that it prints last."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = PLANTED + code
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def broken(document: dict[str, Any]) -> list[str]:
    return [failure["rule"] for failure in document["failures"]]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return gate("print(json.dumps(bench_static()))")


def test_everything_that_ships_passes(whole: dict[str, Any]) -> None:
    from sckit.bench.shipped import TARGETS

    assert whole["failures"] == []
    assert whole["ok"]
    for target in TARGETS:
        cases = {(row["kernel"], row["case"]) for row in whole["rows"] if row["target"] == target}
        for kernel in ("attention forward", "attention dQ", "attention dK dV"):
            for case in ("bf16 D16", "bf16 D32", "bf16 D64", "bf16 D128", "fp16 D32", "fp16 D64", "fp32 D64"):
                assert (kernel, case) in cases


def test_the_supported_tritons_have_a_baseline(whole: dict[str, Any]) -> None:
    minor = ".".join(whole["triton"].split(".")[:2])
    if minor not in ("3.6", "3.7", "3.8", "3.9"):
        pytest.skip(f"nothing is recorded for Triton {minor}, so only the absolute rules count")
    assert whole["baseline"].startswith(f"Triton {minor}.")


def test_the_polynomial_takes_exponentials_off_the_special_unit(whole: dict[str, Any]) -> None:
    exps = {(row["kernel"], row["target"], row["case"]): row["exps_per_score"] for row in whole["rows"]}
    for (kernel, target, case), share in exps.items():
        if case.endswith("poly"):
            assert share <= exps[kernel, target, "bf16 D32"] - 0.24


def test_spills_fail() -> None:
    document = gate('print(json.dumps(bench_static([dkv("sm_80", 128, 64), dkv("gfx942", 128, 128)])))')
    assert {"stack", "spills"} <= {f["rule"] for f in document["failures"] if f["target"] == "sm_80"}
    assert {"scratch", "spills"} <= {f["rule"] for f in document["failures"] if f["target"] == "gfx942"}
    assert not document["ok"]


def test_older_matrix_instructions_fail() -> None:
    (failure,) = [
        f
        for f in gate('print(json.dumps(bench_static([dkv("sm_90", 32, 64)])))')["failures"]
        if f["rule"] == "matrix instructions"
    ]
    assert (failure["got"], failure["wanted"]) == ("HMMA", "HGMMA")


def test_operands_that_became_float32_fail() -> None:
    """UPCAST is the interpreter's way round a bug; on a GPU it would silently take the matrix cores away."""
    code = 'print(json.dumps(bench_static([one("forward", "sm_80", 32, UPCAST=True)])))'
    (failure,) = [f for f in gate(code)["failures"] if f["rule"] == "matrix instructions"]
    assert (failure["got"], failure["wanted"]) == ("none", "HMMA")


def test_loads_that_wait_fail() -> None:
    code = 'print(json.dumps(bench_static([one("forward", "sm_80", 32, STAGES=1)])))'
    assert "asynchronous copies in the loop" in broken(gate(code))


def test_worse_than_recorded_fails_and_a_new_triton_has_no_record(tmp_path: Path) -> None:
    code = f"""
folder = Path({str(tmp_path)!r})
kernels = [one("forward", "sm_90", 32)]
documents = [bench_static(kernels, folder=folder), bench_static(kernels, folder=folder, record=True)]
(file,) = folder.iterdir()
documents.append(bench_static(kernels, folder=folder))
baseline = json.loads(file.read_text())
(row,) = baseline["rows"].values()
row["instructions_per_score"] /= 1.06
row["shared_bytes"] /= 1.04
row["resident_warps"] *= 1.06
file.write_text(json.dumps(baseline))
print(json.dumps([*documents, bench_static(kernels, folder=folder)]))
"""
    without, recording, same, worse = gate(code)
    assert (without["baseline"], recording["baseline"]) == (None, None)
    assert same["baseline"] == f"Triton {same['triton']}"
    assert all(document["ok"] for document in (without, recording, same))
    rules = [rule.split(",")[0] for rule in broken(worse)]
    assert rules == ["instructions_per_score", "resident_warps"]


def test_the_command_ends_with_one_document_and_exit_code_1_on_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    import sckit.bench.static as gate_file
    from sckit.cli.app import app

    failure = {"kernel": "attention dQ", "target": "sm_90", "case": "bf16 D32", "rule": "spills", "got": 4, "wanted": 0}
    row = {"kernel": "attention dQ", "target": "sm_90", "case": "bf16 D32", "registers": 255, "spills": 4}
    row |= {"shared_bytes": 1024, "resident_warps": 8, "matrix": ["HGMMA"], "async_copies": 2}
    row |= {"instructions_per_score": 9.0, "exps_per_score": 1.0}
    for failures, code in (([failure], 1), ([], 0)):
        document = {"command": "bench static", "triton": "0", "baseline": None, "recorded": None}
        document |= {"ok": not failures, "rows": [row], "failures": failures}
        monkeypatch.setattr(gate_file, "bench_static", lambda document=document, **_: document)
        result = CliRunner().invoke(app, ["bench", "static", "--json"])
        assert result.exit_code == code
        assert json.loads(result.stdout.splitlines()[-1]) == document
        named = "attention dQ, sm_90, bf16 D32: spills: got 4, wanted 0" in result.output
        assert named == bool(failures)


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sckit.bench.static import bench_static
    from sckit.errors import SckitError

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SckitError, match="TRITON_INTERPRET is set"):
        bench_static([])
