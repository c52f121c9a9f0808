"""Batches on all cores: an op that tokenises runs on one."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Batch], Result], batches: Iterable[Batch]
) -> Iterator[Result]:
    """Yields function(batch) of each batch, in order, as many at a time as there are cores.

    Args:
        function: Lets other threads run meanwhile, as TensorFlow's functions do.
        batches: Read as they are needed, in the thread of the caller.
    """
    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[Result]] = deque()
        for batch in batches:
            pending.append(pool.submit(function, batch))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
