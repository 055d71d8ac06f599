"""The batches of one process, packed on other threads while the step before is taken.

An epoch is a list of batches that follows from (seed, epoch). Each step takes the next `accumulate` batches for every
process, whichever process computes them, so that steps do not depend on how many processes share them.
"""

import math
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from sckit.data.ahead import in_threads
from sckit.data.batch import Batch, Packer
from sckit.data.loader import Parts
from sckit.model.tokens import Tokens
from sckit.training.ranks import Ranks

_MOST_THREADS = 4


def _threads(device: torch.device) -> int:
    """Return how many threads make steps."""
    return 1 if device.type == "cpu" else min(_MOST_THREADS, os.cpu_count() or 1)


@dataclass(frozen=True)
class FoldBatch:
    """A batch of this process."""

    fold: int | None  # whose linear baseline it starts from
    batch: Batch
    tokens: Tokens  # the batch on the device
    is_own: bool  # False in a process for which none was left, which computes one of the others' for nothing


@dataclass(frozen=True)
class Step:
    """What a process computes in one step, and where the next step begins."""

    batches: list[FoldBatch]
    epoch: int
    next_batch: int


@dataclass(frozen=True)
class Feed:
    """Where the steps of a process come from."""

    batches_of: Callable[[int], Parts]
    packer_of: Callable[[int, str], Packer]
    accumulate: int
    visible_share: float  # of the batches, those with the context "visible"
    ranks: Ranks
    device: torch.device

    def steps(self, epoch: int, batch: int) -> Generator[Step]:
        """Yield the steps from a batch of an epoch on, without end.

        The next one is made at the same time; for a GPU, which is faster than one thread, up to four are.
        """
        device = self.device
        if device.type == "cuda" and device.index is None:  # each thread has a current one of its own
            device = torch.device("cuda", torch.cuda.current_device())
        return in_threads(replace(self, device=device)._jobs(epoch, batch), _threads(device))

    def _jobs(self, epoch: int, batch: int) -> Iterator[Callable[[], Step]]:
        """Yield what makes the steps."""
        while True:
            parts = self.batches_of(epoch)
            chosen = range(batch, min(batch + self.accumulate * self.ranks.count, len(parts)))
            following = (epoch, chosen.stop) if chosen.stop < len(parts) else (epoch + 1, 0)
            yield partial(self._made, epoch, chosen, parts, following)
            epoch, batch = following

    def _made(self, epoch: int, chosen: range, parts: Parts, following: tuple[int, int]) -> Step:
        own = chosen[self.ranks.rank :: self.ranks.count]
        batches = [self._packed(epoch, number, parts) for number in own]
        if len(own) * self.ranks.count < len(chosen):
            batches.append(self._packed(epoch, chosen[0], parts, is_own=False))
        return Step(batches, *following)

    def _packed(self, epoch: int, number: int, parts: Parts, *, is_own: bool = True) -> FoldBatch:
        fold, cells = parts[number]
        context = self._context(epoch * len(parts) + number)
        batch = self.packer_of(epoch, context)(cells)
        return FoldBatch(fold, batch, Tokens.of(batch, self.device), is_own)

    def _context(self, before: int) -> str:
        """Return the context of a batch by how many were before it; those of each kind are spread evenly."""
        share = self.visible_share
        return "visible" if math.floor((before + 1) * share) > math.floor(before * share) else "detected"
