"""What every engine needs to know about a packed batch, computed once and shared by all layers and both passes."""

from typing import NamedTuple

import torch
from torch import Tensor

from sckit.kernels.rows import copied

TILE = 64  # queries, or keys, owned by one GPU program; sckit/kernels/README.md gives the reason


class AttentionPlan(NamedTuple):
    """Cells and their tiles, the most work first; int32 tensors."""

    cells: Tensor  # [C, 3]: first token, tokens, keys
    query_tiles: Tensor  # [N, 4]: first token, tokens and keys of the cell, first query of the tile
    key_tiles: Tensor  # [N, 4]: the same with the first key of the tile
    tokens: int  # of the batch; the kernels trust the tiles, so a plan of another batch must be recognised

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """Return the plan with its tensors on `device`."""
        return AttentionPlan._make([*(copied(part, device) for part in self.tensors()), self.tokens])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the plan without the number."""
        return self.cells, self.query_tiles, self.key_tiles


def plan_attention(offsets: Tensor, keys: Tensor | None = None) -> AttentionPlan:
    """Plan attention over cells of `offsets[c]:offsets[c + 1]` tokens whose first `keys[c]` tokens are keys.

    Shapes: offsets [C + 1] int32 or int64, from 0 to T; keys [C] integers, or None for every token of the cell.
    The plan lies on the device of `offsets`; build it from CPU tensors, since the checks read values.
    Raises ValueError when the offsets do not rise from 0 or when keys[c] is not in 0..tokens of the cell.
    """
    check_cells(offsets, keys)
    return build_plan(offsets, keys, int(offsets[-1]))


def check_cells(offsets: Tensor, keys: Tensor | None) -> None:
    """Raise ValueError unless offsets rise from 0 and keys fit their cells."""
    for name, values in (("offsets", offsets), ("keys", keys)):
        if values is not None and (values.ndim != 1 or values.dtype not in (torch.int32, torch.int64)):
            message = f"{name} must be one row of int32 or int64, got {values.dtype} of shape {tuple(values.shape)}."
            raise ValueError(message)
    if len(offsets) == 0 or int(offsets[0]) != 0:
        message = f"offsets must start with 0 and hold cells + 1 numbers, got {offsets[:1].tolist()}."
        raise ValueError(message)
    lengths = offsets.diff()
    if bool((lengths < 0).any()):
        cell = int((lengths < 0).nonzero()[0])
        message = f"offsets must not fall, but cell {cell} runs from {int(offsets[cell])} to {int(offsets[cell + 1])}."
        raise ValueError(message)
    if int(offsets[-1]) > 2**31 - 1 - TILE:
        message = f"a batch holds at most 2**31 tokens, got {int(offsets[-1])}; use smaller batches."
        raise ValueError(message)
    if keys is None:
        return
    if keys.shape != lengths.shape:
        message = f"keys must hold one number for each of the {len(lengths)} cells, got {len(keys)}."
        raise ValueError(message)
    wrong = (keys < 0) | (keys > lengths)
    if bool(wrong.any()):
        cell = int(wrong.nonzero()[0])
        message = (
            f"keys must lie in 0..tokens of the cell, but cell {cell} has {int(keys[cell])} of {int(lengths[cell])}."
        )
        raise ValueError(message)


def build_plan(offsets: Tensor, keys: Tensor | None, tokens: int) -> AttentionPlan:
    """Sort the cells by work and cut them into tiles, with shapes that depend on C and T alone."""
    lengths = offsets.diff()
    keys = lengths if keys is None else keys.to(lengths)
    order = torch.argsort(lengths.long() * (keys + 1), descending=True, stable=True)
    cells = torch.stack([offsets[:-1], lengths, keys], 1)[order].to(torch.int32)  # [C, 3]
    return AttentionPlan(cells, _tiles(cells, cells[:, 1], tokens), _tiles(cells, cells[:, 2], tokens), tokens)


def _tiles(cells: Tensor, span: Tensor, tokens: int) -> Tensor:
    """Cut the first `span` tokens of every cell into tiles; rows beyond the last tile are empty cells."""
    count = (span + TILE - 1) // TILE  # [C]
    end = count.cumsum(0)
    row = torch.arange(tokens // TILE + len(cells), device=cells.device)  # [N], the most that C cells can need
    cell = torch.searchsorted(end, row, right=True)
    real = cell < len(cells)
    cell = cell.clamp(max=max(len(cells) - 1, 0))
    first = (row - (end - count)[cell]) * TILE
    return torch.where(real[:, None], torch.cat([cells[cell], first[:, None]], 1), 0).to(torch.int32)
