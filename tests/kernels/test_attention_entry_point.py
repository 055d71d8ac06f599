"""The entry point of attention: what it refuses and in which words, which engine it takes, and when engines load."""

import subprocess
import sys
import time

import pytest
import torch

from sckit.kernels import engines
from sckit.kernels.attention import attention, choose_engine


def test_threads_are_done_before_an_error_leaves() -> None:
    from sckit.kernels.threads import run_threads

    done = []

    def work(thread: int, _threads: int) -> None:
        if thread == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        done.append(thread)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_threads(work, 2)
    finally:
        torch.set_num_threads(threads)
    assert done == [1]


@pytest.mark.parametrize(
    ("offsets", "keys", "message"),
    [
        pytest.param([1, 6], None, "must start with 0", id="first-is-not-zero"),
        pytest.param([0, 4, 2, 6], None, "cell 1 runs from 4 to 2", id="falling"),
        pytest.param([0, 5], None, "end with the number of tokens, 6, got 5", id="too-few-tokens"),
        pytest.param([0, 4, 6], [1], "each of the 2 cells, got 1", id="keys-of-another-batch"),
        pytest.param([0, 4, 6], [5, 0], "cell 0 has 5 of 4", id="more-keys-than-tokens"),
        pytest.param([0, 4, 6], [4, -1], "cell 1 has -1 of 2", id="negative-keys"),
        pytest.param([0.0, 6.0], None, "int32 or int64, got torch.float32", id="offsets-are-floats"),
    ],
)
def test_wrong_offsets_and_keys_are_named(offsets: list, keys: list | None, message: str) -> None:
    q = torch.zeros(6, 1, 8)
    with pytest.raises(ValueError, match=message):
        attention(q, q, q, torch.tensor(offsets), None if keys is None else torch.tensor(keys))


@pytest.mark.parametrize(
    ("shape", "dtype", "engine", "message"),
    [
        pytest.param((6, 8), torch.float32, "auto", r"one shape \[T, H, D\]", id="no-heads"),
        pytest.param((6, 1, 8), torch.int64, "auto", "one floating dtype", id="integers"),
        pytest.param((6, 1, 8), torch.float32, "cuda", "must be one of auto, reference", id="unknown-engine"),
        pytest.param((6, 1, 8), torch.float64, "numba", "float32, got torch.float64", id="numba-float64"),
        pytest.param((6, 1, 12), torch.float32, "auto", "head widths 8, 16, .*, got 12", id="numba-12-wide"),
        pytest.param((6, 1, 24), torch.float32, "triton", "head widths 16, 32, 64, 128, got 24", id="triton-24-wide"),
        pytest.param((6, 1, 128), torch.float32, "triton", "up to 64 wide, got 128", id="triton-128-wide-float32"),
        pytest.param((6, 1, 16), torch.float64, "triton", "float16, bfloat16 or float32, got", id="triton-float64"),
    ],
)
def test_engines_say_what_they_cannot_do(shape: tuple, dtype: torch.dtype, engine: str, message: str) -> None:
    q = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        attention(q, q, q, torch.tensor([0, 6]), engine=engine)


def test_triton_refuses_cpu_tensors_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "interpreted", lambda: False)
    q = torch.zeros(6, 1, 16)
    with pytest.raises(ValueError, match="needs GPU tensors"):
        attention(q, q, q, torch.tensor([0, 6]), engine="triton")


@pytest.mark.parametrize(
    ("device", "dtype", "engine"),
    [
        ("cpu", torch.float32, "numba"),
        ("cpu", torch.float64, "reference"),
        ("cpu", torch.bfloat16, "reference"),
        ("cuda", torch.bfloat16, "triton"),
        ("cuda", torch.float64, "reference"),
        ("mps", torch.float32, "reference"),
    ],
)
def test_auto_chooses_by_device_and_dtype(device: str, dtype: torch.dtype, engine: str) -> None:
    chosen, reason = choose_engine(device, dtype)
    assert chosen == engine
    assert reason


def test_engines_load_when_first_used() -> None:
    code = "import sys, sckit.kernels.attention; print(sorted({'numba', 'triton', 'llvmlite'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert engines.ENGINES[0] == "auto"
