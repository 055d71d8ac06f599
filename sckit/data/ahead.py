"""Making the next items on other threads while this one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice, repeat
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T]) -> Generator[T]:
    """Yield the items in order; memory holds one more of them. What making an item raises is raised in its place."""
    nothing = object()
    try:
        with closing(in_threads(repeat(partial(next, items, nothing)), 1)) as made:
            for item in made:
                if item is nothing:
                    return
                yield item  # type: ignore[misc]
    finally:
        items.close()


def in_threads(jobs: Iterator[Callable[[], T]], threads: int) -> Generator[T]:
    """Yield what the jobs return, in order, while the next ones run. What a job raises is raised in its place."""
    with ThreadPoolExecutor(threads, thread_name_prefix="sckit-ahead") as pool:
        # Of several threads none waits until the item that it has made is taken.
        coming = deque(pool.submit(job) for job in islice(jobs, threads + (threads > 1)))
        try:
            while coming:
                result = coming.popleft().result()
                coming.extend(pool.submit(job) for job in islice(jobs, 1))
                yield result
        finally:
            for future in coming:
                future.cancel()
