"""Run work on as many threads as torch uses; they are our own, so that Numba's threading layers are not involved."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import numpy as np
import torch
from torch import Tensor


def parameter_array(parameter: Tensor) -> np.ndarray:
    """Return a parameter on the CPU as an array that shares its numbers.

    `Tensor.numpy` would forbid torch to free the memory of a split network between two steps.
    """
    return np.from_dlpack(parameter.detach())


def run_threads(work: Callable[[int, int], None], most: int) -> None:
    """Call work(thread, threads) on at most `most` threads at once; work has to release the GIL."""
    threads = max(1, min(torch.get_num_threads(), most))
    others = [_pool(os.getpid()).submit(work, thread, threads) for thread in range(1, threads)]
    try:
        work(0, threads)
    finally:
        wait(others)  # they write to memory that the caller frees
    for other in others:
        other.result()


def run_ranges(work: Callable[[int, int], None], count: int) -> None:
    """Call work(first, last) on several threads at once, so that the ranges cover 0..count once."""
    run_threads(lambda thread, threads: work(count * thread // threads, count * (thread + 1) // threads), count)


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """Return this process's threads; a forked child has none of its parent's and gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sckit-kernels")
