"""Ranges of work on as many threads as torch uses: our own, so that Numba's threading layers are not involved."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def share_out(work: Callable[[int, int], None], count: int) -> None:
    """Call work(first, last) so that the ranges cover 0..count once, side by side; work has to let go of the GIL."""
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * i // threads for i in range(threads + 1)]
    others = [_pool(os.getpid()).submit(work, bounds[i], bounds[i + 1]) for i in range(1, threads)]
    work(0, bounds[1])
    for other in others:
        other.result()


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """Return this process's threads; a forked child has none of its parent's and gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sckit-kernels")
