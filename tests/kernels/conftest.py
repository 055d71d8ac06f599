"""What the kernel tests share: the one tolerance rule, and memory that shows when an output was not written."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Let torch.empty and the like return NaN, as torch does in its deterministic mode."""
    torch.use_deterministic_algorithms(mode=True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def assert_within_budget() -> Callable[[Tensor, Tensor, Tensor, str], None]:
    """Compare with float64: at most twice the error of plain torch in the same dtype, plus eight roundings."""

    def check(fast: Tensor, exact: Tensor, plain: Tensor, name: str) -> None:
        assert fast.dtype == plain.dtype, f"{name} has dtype {fast.dtype}, wanted {plain.dtype}"
        assert fast.shape == exact.shape, f"{name} has shape {tuple(fast.shape)}, wanted {tuple(exact.shape)}"
        if exact.numel() == 0:
            return
        rounding = torch.finfo(fast.dtype).eps * exact.abs().max()
        error = (fast.double() - exact).abs().max()
        budget = 2 * (plain.double() - exact).abs().max() + 8 * rounding
        assert error <= budget, f"{name}: error {error:.2e}, budget {budget:.2e}"

    return check
