"""`sckit bench kernels`: what a row says, that a wrong kernel gets no speed, and what is shown of the rows."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import sckit.bench.attention as bench
from sckit.bench.cases import CASES, PERCENTS, SHAPES, Case, cases_for
from sckit.bench.competitors import attention_competitors
from sckit.bench.counts import bench_counts
from sckit.bench.ops import bench_ops
from sckit.bench.report import append_rows, draw_kernels, print_comparison, print_kernels, read_rows
from sckit.cli.app import app
from sckit.errors import ConfigError, DataError, SckitError
from sckit.kernels.attention import attention
from sckit.provenance import measured_on

FEW = (Case("short", 1, 32, 3), Case("short", 1, 32, 3, hidden_share=0.5))


@pytest.fixture(scope="module")
def document():
    return bench.bench_kernels(FEW, rounds=2)


def shown(show, *arguments):
    console = Console(width=200, file=io.StringIO())
    show(*arguments, console)
    return console.file.getvalue()


def test_shapes_are_laws_of_real_cells():
    for shape in SHAPES.values():
        assert len(shape.quantiles) == len(PERCENTS)
        assert list(shape.quantiles) == sorted(shape.quantiles)
    lengths = np.array(Case("long", 1, 32, 400).lengths())
    assert abs(np.median(lengths) - 788) < 10
    assert np.mean(lengths > 1591) == pytest.approx(0.1, abs=0.01)
    assert Case("long", 1, 32, 400).lengths() == lengths.tolist()


def test_a_gpu_gets_the_same_cases_with_more_cells():
    assert [case.name for case in cases_for("cuda")] == [case.name for case in CASES]
    assert all(large.cells > small.cells for large, small in zip(cases_for("cuda"), CASES, strict=True))
    assert {case.name for case in cases_for("cpu", ["short"])} == {"short"}


def test_work_counts_queries_times_keys():
    case = Case("short", 2, 32, 5, hidden_share=0.5)
    pairs = sum(tokens * (tokens - tokens // 2) for tokens in case.lengths())
    assert case.gflop(backward=False) == pytest.approx(4 * pairs * 2 * 32 / 1e9)
    assert case.gflop(backward=True) == pytest.approx(3.5 * case.gflop(backward=False))


def test_a_row_holds_speed_spread_and_provenance(document):
    assert document["command"] == "bench kernels"
    engines = {"numba", "torch-split", "torch-matmul", "torch-buckets", "torch-padded"}
    assert {row["engine"] for row in document["rows"] if row["case"] == "short"} == engines
    assert {row["engine"] for row in document["rows"] if row["case"] != "short"} == engines - {
        "torch-buckets",
        "torch-padded",
    }
    for row in document["rows"]:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        work = FEW[row["case"] != "short"].gflop(backward=row["pass"] == "fwd+bwd")
        assert row["gflops"] == pytest.approx(work / row["median_ms"] * 1e3)
        assert row["share_of_peak"] > 0
        assert row["max_tokens"] >= row["median_tokens"]
        for key in ("time", "commit", "device", "dtype", "threads", "load", "torch", "triton", "numba", "source"):
            assert key in row
    json.dumps(document, allow_nan=False)


def test_no_speed_for_a_wrong_kernel(monkeypatch):
    def wrong(*arguments, engine, **named):
        out = attention(*arguments, engine=engine, **named)
        return out * 1.0001 if engine == "numba" else out

    monkeypatch.setattr(bench, "attention", wrong)
    with pytest.raises(SckitError, match=r"'numba' is wrong by .* so no speed is reported"):
        bench.bench_kernels(FEW[:1], rounds=1)


def test_a_competitor_that_cannot_run_is_left_out_and_named(monkeypatch):
    def broken(lengths, keys, device):
        def refuse(*_):
            message = "not on this machine"
            raise RuntimeError(message)

        return attention_competitors(lengths, keys, device) | {"torch-split": refuse}

    monkeypatch.setattr(bench, "attention_competitors", broken)
    document = bench.bench_kernels(FEW[:1], rounds=1)
    assert document["left_out"] == {"torch-split": "not on this machine"}
    assert "torch-split" not in {row["engine"] for row in document["rows"]}
    assert "torch-split left out: not on this machine" in shown(print_kernels, document)


@pytest.mark.parametrize("keys", [[40, 9, 1, 70], [20, 9, 0, 35]], ids=["all-keys", "half-hidden"])
def test_every_competitor_computes_attention(keys):
    lengths = [40, 9, 1, 70]
    q, k, v = torch.randn(3, sum(lengths), 2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    offsets = torch.tensor([0, 40, 49, 50, 120])
    want = attention(q, k, v, offsets, torch.tensor(keys), engine="reference")
    for variant in attention_competitors(lengths, keys, "cpu").values():
        torch.testing.assert_close(variant(q, k, v), want)


def test_table_chart_and_file(document, tmp_path):
    text = shown(print_kernels, document)
    assert text.count("numba") == 2 + 2
    assert "of the time with every token a key" in text
    draw_kernels(document, tmp_path / "k.png")
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")
    append_rows(document, tmp_path / "k.jsonl")
    append_rows(document, tmp_path / "k.jsonl")
    assert read_rows(tmp_path / "k.jsonl") == document["rows"]


def test_comparison_shows_ratios_and_warns_of_other_machines(document):
    half = [row | {"gflops": row["gflops"] / 2, "device": "another"} for row in document["rows"]]
    text = shown(print_comparison, document["rows"], half)
    assert text.count("2.00") == len(half)
    assert "compare the shares only" in text
    assert "numba" not in shown(print_comparison, document["rows"], [half[0] | {"heads": 99}])


def test_earlier_results_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no result"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="does not hold rows"):
        read_rows(tmp_path / "other.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_rows(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--case", "nope"], "choose among long, long-half-hidden, short, deep"),
        (["kernels", "--device", "meta"], "kernels for cpu and cuda only"),
        (["kernels", "--out", "nowhere/rows.jsonl"], "the folder of nowhere/rows.jsonl does not exist"),
        (["counts", "--out", "nowhere/rows.jsonl"], "the folder of nowhere/rows.jsonl does not exist"),
        (["kernels", "--chart", "kernels.xyz"], "choose a name that ends in .png, .pdf or .svg"),
        (["kernels", "--compare", "none.jsonl"], "there is no result none.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_anything_is_timed(arguments, message):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_kernel_that_is_wrong_in_large_batches_only_is_found(monkeypatch):
    def wrong(*arguments, engine, plan=None, **named):
        out = attention(*arguments, engine=engine, plan=plan, **named)
        return out * 0 if engine == "numba" and plan is not None and len(plan.cells) > 2 else out

    monkeypatch.setattr(bench, "attention", wrong)
    with pytest.raises(SckitError, match="'numba' is wrong"):
        bench.bench_kernels(FEW[:1], rounds=1)


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert measured_on("cpu", torch.float32)["commit"] is None


def test_command_ends_with_the_document(monkeypatch, tmp_path):
    monkeypatch.setattr("sckit.bench.cases.CASES", tuple(replace(case, cells=2) for case in FEW))
    arguments = ["--rounds", "1", "--out", str(tmp_path / "r.jsonl"), "--chart", str(tmp_path / "r.png"), "--json"]
    result = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert set(last) >= {"command", "peak_gflops", "rows"}
    assert len(read_rows(tmp_path / "r.jsonl")) == len(last["rows"])


def test_ops_time_every_engine_and_refuse_a_wrong_one(monkeypatch):
    rows = bench_ops(1, cases=[(700, 16)])["rows"]
    assert {(row["op"], row["engine"]) for row in rows} == {
        *(("embed", name) for name in ("numba", "reference", "torch-bag")),
        *(("head", name) for name in ("numba", "reference", "torch-vecdot")),
    }
    assert len(rows) == 12
    wrong = torch.linalg.vecdot
    monkeypatch.setattr(torch.linalg, "vecdot", lambda *parts: wrong(*parts) * 1.001)
    with pytest.raises(SckitError, match=r"'torch-vecdot' is wrong by .*op head, .*no speed"):
        bench_ops(1, cases=[(700, 16)])


def test_ops_and_counts_end_with_rows_of_known_origin(monkeypatch, tmp_path):
    monkeypatch.setattr("sckit.bench.ops.bench_ops", partial(bench_ops, cases=[(700, 16)]))
    monkeypatch.setattr("sckit.bench.counts.bench_counts", partial(bench_counts, cells=[20]))
    for name in ("ops", "counts"):
        result = CliRunner().invoke(app, ["bench", name, "--rounds", "1", "--out", str(tmp_path / name), "--json"])
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout.splitlines()[-1])["rows"]
        assert [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] == rows
        for row in rows:
            assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
            assert "commit" in row
            assert row["device"]
    assert {row["op"] for row in rows} >= {"normalise", "hide and pack", "split binomial", "gene moments", "totals"}
