"""The queue of one signature, in which requests gather into batches; it knows no threads."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.errors import Code, ServingError, invalid_argument


@dataclass(frozen=True)
class QueueOptions:
    """What BatchingParameters say of a queue.

    Attributes:
        max_task_size: rows a request may have.
        max_batch_size: rows a batch may have; less than `max_task_size` only with splitting.
        timeout: seconds until a batch runs that is not full.
        max_enqueued_batches: batches that may wait, the open one among them.
        is_splitting: whether a request that does not fit a batch is spread over several.
        allowed_batch_sizes: rows a batch is padded to; () for no padding.
        is_padding_lengths: whether inputs of unequal shapes are padded to the largest.
    """

    max_task_size: int = 1000
    max_batch_size: int = 1000
    timeout: float = 0.0
    max_enqueued_batches: int = 10
    is_splitting: bool = False
    allowed_batch_sizes: tuple[int, ...] = ()
    is_padding_lengths: bool = False

    def padded_size(self, size: int) -> int:
        """The smallest allowed size of at least `size` rows; 0 rows have none to repeat."""
        if size == 0:
            return 0
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)


def queue_options(parameters: Any) -> QueueOptions:
    """Reads BatchingParameters (see text_protos).

    Raises:
        ServingError: INVALID_ARGUMENT for what TensorFlow Serving refuses.
    """
    is_splitting = wrapped(parameters, "enable_large_batch_splitting", False)
    max_task_size = wrapped(parameters, "max_batch_size", 1000)
    max_batch_size = max_task_size
    if is_splitting:
        max_batch_size = wrapped(parameters, "max_execution_batch_size", max_task_size)
    max_enqueued_batches = wrapped(parameters, "max_enqueued_batches", 10)
    if max_enqueued_batches == 0 and not is_splitting:
        max_enqueued_batches = 1  # as TF Serving does
    micros = wrapped(parameters, "batch_timeout_micros", 0)
    options = QueueOptions(
        max_task_size,
        max_batch_size,
        micros / 1e6,
        max_enqueued_batches,
        is_splitting,
        tuple(parameters.allowed_batch_sizes),
        parameters.pad_variable_length_inputs,
    )
    _check_allowed_batch_sizes(options)
    if max_task_size <= 0:
        raise invalid_argument(f"input_batch_size_limit must be positive; was {max_task_size}")
    if micros < 0:
        raise invalid_argument(f"batch_timeout_micros must be non-negative; was {micros}")
    if max_enqueued_batches <= 0:
        raise invalid_argument(f"max_enqueued_batches must be positive; was {max_enqueued_batches}")
    if not 0 < max_batch_size <= max_task_size:
        raise invalid_argument(
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater "
            "than or equal to max_execution_batch_size."
        )
    return options


def wrapped(parameters: Any, name: str, default: Any) -> Any:
    """The value in a field of BatchingParameters that is a message around it."""
    return getattr(parameters, name).value if parameters.HasField(name) else default


def _check_allowed_batch_sizes(options: QueueOptions) -> None:
    sizes = options.allowed_batch_sizes
    if not sizes:
        return
    if any(later <= size for size, later in zip(sizes, sizes[1:], strict=False)):
        raise invalid_argument("allowed_batch_sizes entries must be monotonically increasing")
    if sizes[-1] != options.max_batch_size:
        rule = "match max_batch_size"
        if options.is_splitting:
            rule = "be equal to max_execution_batch_size"
        raise invalid_argument(
            f"Last entry in allowed_batch_sizes must {rule}; last entry was {sizes[-1]}; "
            f"expected {options.max_batch_size}"
        )


class Task:
    """A request, or a part of one, that waits for its batch to run.

    Args:
        feeds: name of a tensor -> its value; dim 0 of each is `size`.
        size: rows.
        enqueued: time.monotonic().
        deadline: time.monotonic() after which nobody wants the answer.
    """

    __slots__ = ("_done", "deadline", "enqueued", "error", "feeds", "outputs", "rows", "size")

    def __init__(
        self, feeds: Mapping[str, np.ndarray], size: int, enqueued: float, deadline: float
    ) -> None:
        self.feeds = feeds
        self.size = size
        self.enqueued = enqueued
        self.deadline = deadline
        self.outputs: Mapping[str, np.ndarray] = {}
        self.rows = slice(0, 0)
        self.error: ServingError | None = None
        # A bare lock, held until the task is done: a tenth of the cost of an Event.
        self._done = threading.Lock()
        self._done.acquire()

    def wait(self) -> None:
        """Waits until the batch has run. To be called once."""
        self._done.acquire()

    def finish(
        self, outputs: Mapping[str, np.ndarray], start: int, error: ServingError | None
    ) -> None:
        """Hands over the outputs of the whole batch, in which the task begins at row `start`."""
        self.outputs = outputs
        self.rows = slice(start, start + self.size)
        self.error = error
        self._done.release()

    def split(self, first_size: int, size: int) -> list["Task"]:
        """Parts: `first_size` rows if that is any, then `size` rows each, then what is left."""
        starts = [*range(first_size, self.size, size), self.size]
        if first_size > 0:
            starts.insert(0, 0)
        return [
            Task(
                {name: array[start:stop] for name, array in self.feeds.items()},
                stop - start,
                self.enqueued,
                self.deadline,
            )
            for start, stop in zip(starts, starts[1:], strict=False)
        ]


class Batch:
    """Tasks that run at once."""

    __slots__ = ("size", "started", "tasks")

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.size = 0
        self.started = math.inf

    def add(self, task: Task) -> None:
        if not self.tasks:
            self.started = task.enqueued
        self.tasks.append(task)
        self.size += task.size


class BatchQueue:
    """Batches that wait. The last one is open; there is always one. Callers hold a lock.

    Args:
        options: sizes and times.
        process: runs a batch and finishes its tasks; called in a thread, without the lock.
    """

    def __init__(self, options: QueueOptions, process: Callable[[Batch], None]) -> None:
        self.options = options
        self.process = process
        self.is_closed = False
        self._batches = deque([Batch()])

    def add(self, task: Task) -> list[Task]:
        """Puts a task into the open batch, or into new ones.

        Returns:
            What to wait for: the task, or the parts of it.

        Raises:
            ServingError: the task is too large (INVALID_ARGUMENT), or the queue is full.
        """
        self._check_room(task)
        limit = self.options.max_batch_size
        room = limit - self._batches[-1].size
        is_split = self.options.is_splitting and task.size > room
        tasks = task.split(room, limit) if is_split else [task]
        for part in tasks:
            if self._batches[-1].size + part.size > limit:
                self._batches.append(Batch())
            self._batches[-1].add(part)
        return tasks

    def ready_at(self) -> float:
        """time.monotonic() from which the first batch may run; inf when there is none."""
        first = self._batches[0]
        if not first.tasks:
            return math.inf
        is_complete = len(self._batches) > 1 or first.size >= self.options.max_batch_size
        if is_complete or self.is_closed:
            return -math.inf
        return first.started + self.options.timeout

    def take(self) -> Batch:
        """Removes the first batch, which is closed by that."""
        batch = self._batches.popleft()
        if not self._batches:
            self._batches.append(Batch())
        return batch

    def _check_room(self, task: Task) -> None:
        options, count, last = self.options, len(self._batches), self._batches[-1]
        if self.is_closed:
            raise ServingError(Code.UNAVAILABLE, "The batch scheduling queue is closed")
        if task.size > options.max_task_size:
            raise invalid_argument(
                f"Task size {task.size} is larger than maximum input batch size "
                f"{options.max_task_size}"
            )
        full = "The batch scheduling queue to which this task was submitted is full; "
        if not options.is_splitting:
            is_full = count >= options.max_enqueued_batches
            if is_full and last.size + task.size > options.max_batch_size:
                raise ServingError(
                    Code.UNAVAILABLE,
                    f"{full}currently {count} batches enqueued and max_enqueued_batches is "
                    f"{options.max_enqueued_batches}",
                )
            return
        capacity = (options.max_enqueued_batches - count + 1) * options.max_batch_size - last.size
        if task.size > capacity:
            raise ServingError(
                Code.UNAVAILABLE,
                f"{full}task size is {task.size} but scheduling capacity is only {capacity} "
                f"(num_enqueued_batches={count}, "
                f"max_enqueued_batches={options.max_enqueued_batches}, "
                f"open_batch_size={last.size}, "
                f"max_execution_batch_size={options.max_batch_size})",
            )


def new_task(feeds: Mapping[str, np.ndarray], timeout: float | None) -> Task:
    """A task of the size of dim 0 of its inputs.

    Raises:
        ServingError: INVALID_ARGUMENT if they have no dim 0, or not the same.
    """
    if not feeds:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    size = -1
    for array in feeds.values():
        if array.ndim == 0:
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        if size not in (-1, len(array)):
            raise invalid_argument(
                "Batching Run() input tensors must have equal 0th-dimension size"
            )
        size = len(array)
    now = time.monotonic()
    return Task(feeds, size, now, math.inf if timeout is None else now + timeout)
