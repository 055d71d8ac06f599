"""The processes of one training, as `torchrun` starts them: which one this is, and what they tell each other.

Without torchrun there is one process, which is the first, and everything here is for nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sckit.errors import LostProcessError, SckitError

T = TypeVar("T")

_PATIENCE = timedelta(days=1)  # the first process may prepare data for hours; when one dies, torchrun ends the others


@dataclass(frozen=True)
class Ranks:
    """All processes of a training, as one of them sees them."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do something and return what it returned, a value that JSON has, on all of them.

        Where it ends with an error, that error is raised there, and the others exit quietly with its exit code.
        """
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]
        error: BaseException | None = None
        if self.is_first:
            try:
                told = [work(), None]
            except BaseException as raised:
                error, told = raised, [None, getattr(raised, "exit_code", 1)]
        told = self._told(told)
        if error is not None:
            raise error
        if told[1] is not None:
            raise SystemExit(told[1])
        return told[0]

    def _told(self, value: Any) -> Any:
        """Return the value of the first process. It travels as JSON: unpickling what comes over a network runs code."""
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=_device())
        size = torch.tensor(len(text), device=_device())
        dist.broadcast(size, src=0)
        text = text if self.is_first else torch.empty(int(size), dtype=torch.uint8, device=_device())
        dist.broadcast(text, src=0)
        return json.loads(bytes(text.tolist()))

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return each number summed over all processes."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return total.tolist()

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wrapped(self, module: nn.Module, *, some_unused: bool) -> nn.Module:
        """Return a module whose backward pass averages gradients over all processes.

        some_unused: whether a forward pass may leave parameters out. Buffers stay as they are in each process.
        """
        if self.count == 1:
            return module
        renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # by torch 2.13
        buffers = "forward_sync_buffers" if renamed else "broadcast_buffers"
        options: dict[str, Any] = {"find_unused_parameters": some_unused, buffers: False}
        return DistributedDataParallel(module, **options)

    @contextmanager
    def told_of_a_death(self, resume: str) -> Iterator[None]:
        """Turn what torch says when another process is gone into one sentence; resume: what to go on with."""
        try:
            yield
        except SckitError:
            raise
        except (RuntimeError, dist.DistError) as error:
            if self.count == 1 or not _of_a_connection(error):
                raise
            message = f"another process of this training has ended; go on with the same torchrun and {resume}."
            raise LostProcessError(message) from error


_TRAININGS = itertools.count()

ALONE = Ranks()
"""The one process of a training without torchrun."""


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started: by NCCL on GPUs, each process with its own, and by gloo on CPUs."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, count = _meeting()
    # Each training of these processes has keys of its own: those of the one before lead to connections that are closed.
    own = PrefixStore(f"sckit-{next(_TRAININGS)}", store)
    dist.init_process_group("nccl" if on_gpus else "gloo", store=own, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()


@cache
def _meeting() -> tuple[Any, int, int]:
    """Return where the processes meet, which one this is, and how many there are; it stays while this process does."""
    return next(rendezvous("env://", timeout=_PATIENCE))


def _device() -> str:
    """Return where the numbers lie that processes exchange."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _of_a_connection(error: BaseException) -> bool:
    """Return whether an error is of the connection to another process."""
    words = "gloo", "nccl", "connection", "peer"
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
