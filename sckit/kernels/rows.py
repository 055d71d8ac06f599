"""Which row of a table each position takes, sorted once per batch so that gradients are sums over segments.

The gradient of a gathered row is the sum over the positions that took it. Sorted by row those are segments, so every
sum has one owner and one order: no atomics, and the same bits with any number of threads.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def copied(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device`. For a GPU it is copied from pinned memory, so that the CPU does not wait."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class RowPlan(NamedTuple):
    """Rows of N positions, U of them distinct; int32 tensors."""

    rows: Tensor  # [N], row of each position
    order: Tensor  # [N], positions by row, those of one row ascending
    present: Tensor  # [U], the distinct rows, ascending
    bounds: Tensor  # [U + 1]: order[bounds[u]:bounds[u + 1]] are the positions of row present[u]
    n_rows: int  # of the smallest table that has all rows

    def to(self, device: torch.device | str) -> "RowPlan":
        """Return the plan with its tensors on `device`."""
        return RowPlan._make([*(copied(part, device) for part in self.tensors()), self.n_rows])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the plan without the number."""
        return self.rows, self.order, self.present, self.bounds


def plan_rows(rows: Tensor) -> RowPlan:
    """Plan for positions that take `rows` [N], int32 or int64, of some table; build it from a CPU tensor.

    Raises ValueError unless rows is one line of whole numbers from 0 to 2**31 - 1.
    """
    if rows.ndim != 1 or rows.dtype not in (torch.int32, torch.int64):
        message = f"rows must be one line of int32 or int64, got {rows.dtype} of shape {tuple(rows.shape)}."
        raise ValueError(message)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < 2**31 - 1:
        message = f"rows must lie in 0..2**31 - 2, got {int(rows.min())}..{int(rows.max())}."
        raise ValueError(message)
    n_rows = int(rows.max()) + 1 if len(rows) else 0
    keys = rows.numpy().astype(np.uint16 if n_rows <= 2**16 else np.int32)  # numpy sorts 16 bits by radix
    order = np.argsort(keys, kind="stable")
    line = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]])[: len(line)])
    parts = (
        rows.numpy(),
        order,
        line[starts],
        np.append(starts, len(line)),
    )  # copied, so that no later change of `rows` escapes the checks
    return RowPlan._make([*(torch.from_numpy(np.array(part, np.int32)) for part in parts), n_rows])


def each_row(count: int, device: torch.device) -> RowPlan:
    """Return the plan of positions that take row 0, 1, 2 and so on, one each."""
    line = torch.arange(count + 1, dtype=torch.int32, device=device)
    return RowPlan(line[:-1], line[:-1], line[:-1], line, count)


def check_plan(name: str, plan: RowPlan, positions: int, table_rows: int) -> None:
    """Raise ValueError unless the plan has this number of positions and its rows fit the table."""
    if plan.rows.shape[0] != positions:
        message = f"{name} is a plan of {plan.rows.shape[0]} positions, but there are {positions}."
        raise ValueError(message)
    if plan.n_rows > table_rows:
        message = f"{name} takes row {plan.n_rows - 1} of a table that has {table_rows} rows."
        raise ValueError(message)
