"""What only a GPU can show: `pytest -m gpu`. Without one, and under Triton's interpreter, these tests are skipped."""

import os

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from sckit.bench.attention import bench_kernels
from sckit.bench.cases import Case
from sckit.config import ModelConfig, PretrainConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.split import run_vocabulary
from sckit.kernels.attention import attention, plan_attention
from sckit.kernels.engines import choose_engine
from sckit.model.closed_forms import fit_closed_forms
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # the compiler's advice
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),  # of the thread in which torch goes backward
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted: pytest -m gpu"),
]
EDGES = [0, 1, 2, 63, 64, 65, 127, 128, 129]


def cells_of(hidden_share):
    """Offsets, keys and number of tokens of cells around the tile and of a short batch of real lengths."""
    lengths = torch.tensor(EDGES + Case("short", 1, 32, 40).lengths() + [1700])
    keys = lengths - (hidden_share * lengths).long()
    return pad(lengths.cumsum(0), (1, 0)), keys, int(lengths.sum())


def results(qkv, offsets, keys, engine):
    leaf = qkv.detach().clone().requires_grad_()
    out = attention(*leaf.unbind(1), offsets, keys, engine=engine)
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).mul(50).sin().reshape(out.shape)
    out.backward(slope.to(out.dtype))
    return [out.detach(), *leaf.grad.unbind(1)]


def random_qkv(tokens, heads, width, dtype):
    generator = torch.Generator().manual_seed(width)
    return torch.randn(tokens, 3, heads, width, generator=generator).to("cuda", dtype)


@pytest.mark.parametrize("hidden_share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_attention_agrees_with_float64(width, dtype, hidden_share, assert_within_budget):
    if width == 128 and dtype == torch.float32:
        pytest.skip("not shipped: float32 heads of 128 spill registers")
    offsets, keys, tokens = cells_of(hidden_share)
    qkv = random_qkv(tokens, 4, width, dtype)
    exact = results(qkv.double(), offsets, keys, "reference")
    plain = results(qkv, offsets, keys, "reference")
    for name, *rest in zip(("out", "dq", "dk", "dv"), results(qkv, offsets, keys, "triton"), exact, plain, strict=True):
        if hidden_share == 1.0 and name in ("dq", "dk"):  # zero: the difference of two equal sums over the width
            assert rest[0].abs().max() <= width * torch.finfo(torch.float32).eps * qkv.abs().max(), name
        else:
            assert_within_budget(*rest, name)


def test_attention_gives_the_same_bits_twice_and_alone():
    offsets, keys, tokens = cells_of(0.3)
    qkv = random_qkv(tokens, 8, 64, torch.bfloat16)
    first, second = (results(qkv, offsets, keys, "triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    last = slice(int(offsets[-2]), int(offsets[-1]))
    alone = attention(*qkv[last].unbind(1), torch.tensor([0, last.stop - last.start]), keys[-1:], engine="triton")
    assert torch.equal(alone, first[0][last])


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 40e9, reason="needs 40 GB"
)
def test_attention_addresses_more_than_2_to_the_31_elements():
    heads, width, length = 8, 64, 1000
    cells = 2**31 // (3 * heads * width * length) + 2
    offsets = torch.arange(cells + 1) * length
    qkv = torch.randn(length, 3, heads, width, device="cuda", dtype=torch.bfloat16).repeat(cells, 1, 1, 1)
    assert qkv.numel() > 2**31
    q, k, v = qkv.unbind(1)
    plan = plan_attention(offsets).to("cuda")
    out, lse = torch.ops.sckit.attention_forward(q, k, v, *plan.tensors(), "triton")
    gradients = torch.ops.sckit.attention_backward(out, q, k, v, out, lse, *plan.tensors(), "triton")
    for whole in (out, *gradients):
        parts = whole.view(cells, length, heads, width)
        assert torch.equal(parts[0], parts[-1])


def test_tuning_is_on_request_and_changes_no_result():
    from sckit.kernels.attention_launch import TUNED
    from sckit.kernels.attention_tune import tune

    offsets, keys, tokens = cells_of(0.0)
    qkv = random_qkv(tokens, 4, 32, torch.bfloat16)
    exact = attention(*qkv.double().unbind(1), offsets, keys, engine="reference")
    assert not TUNED
    plan = plan_attention(offsets, keys).to("cuda")
    try:
        tune(*qkv.unbind(1), plan, rounds=2)
        assert TUNED
        out = attention(*qkv.unbind(1), offsets, keys, engine="triton")
    finally:
        TUNED.clear()
    assert (out.double() - exact).abs().max() < 0.02


@pytest.fixture(scope="module")
def world(simulated):
    cells = np.arange(280)
    vocabulary = run_vocabulary(simulated, cells, 5)
    return simulated, vocabulary, fit_closed_forms(simulated, vocabulary, cells, components=3, factors=2)


def gradients_of(model, loss, tokens):
    model.zero_grad()
    value = loss(tokens)
    value.backward()
    return {"loss": value.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("context", ["detected", "visible"])
def test_the_model_is_the_same_with_the_kernels_as_with_torch(world, context):
    """Token states, attention and masked head together: Triton against plain torch in float32, every gradient."""
    store, vocabulary, forms = world
    model = Model(ModelConfig(), forms).to("cuda")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator).to("cuda"))
    tokens = Tokens.of(Packer(store, vocabulary, Hiding("uniform"), context)(np.arange(60)), torch.device("cuda"))
    model.engine = "reference"
    want = gradients_of(model, model.loss, tokens)
    model.engine = "triton"
    got = gradients_of(model, model.loss, tokens)
    again = gradients_of(model, model.loss, tokens)
    assert got.keys() == want.keys()
    for name, right in want.items():
        assert (got[name] - right).abs().max() <= 1e-4 * right.abs().max() + 1e-7, name
    for name in ("gene.weight", "head.weight", "curve", "guess_curve"):
        assert torch.equal(got[name], again[name]), f"{name} differs between two runs"


def test_the_model_compiles_into_one_graph(world):
    store, vocabulary, forms = world
    model = Model(ModelConfig(), forms).to("cuda")
    compiled = torch.compile(model.loss, fullgraph=True)
    for cells in (np.arange(20), np.arange(30, 75)):
        tokens = Tokens.of(Packer(store, vocabulary, Hiding(0.5))(cells), torch.device("cuda"))
        torch.testing.assert_close(compiled(tokens), model.loss(tokens), atol=1e-4, rtol=1e-4)


def test_pretraining_runs_on_the_gpu(simulated, tmp_path):
    from sckit.training.pretrain import pretrain

    assert choose_engine("cuda", torch.bfloat16)[0] == "triton"
    done = pretrain(simulated.path, PretrainConfig(steps=10, device="cuda", components=3), runs=tmp_path)
    assert np.isfinite(done.best["r2_gene_mean"])


def test_the_benchmark_runs_on_the_gpu():
    document = bench_kernels((Case("short", 4, 32, 64), Case("short", 4, 32, 64, 0.5)), rounds=1, device="cuda")
    engines = {row["engine"] for row in document["rows"]}
    assert {"triton", "torch-split", "torch-padded"} <= engines
    assert all(row["gflops"] > 0 and row["dtype"] == "bfloat16" for row in document["rows"])
