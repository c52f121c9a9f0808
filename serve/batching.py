"""Batching as TensorFlow Serving does it: requests that come at one time run as one.

Requests wait in the queue of their signature; the threads of the scheduler, which all models
share, take batches from the queues in turn.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from serve.batch_queue import (
    Batch,
    BatchQueue,
    QueueOptions,
    Task,
    new_task,
    queue_options,
    wrapped,
)
from serve.errors import Code, ServingError, invalid_argument
from serve.flags import number_of_cpus
from serve.metrics import Histogram, Metrics
from serve.session import ModelSession

STOP_SECONDS = 30

log = logging.getLogger(__name__)


class BatchScheduler:
    """Threads that run batches, and the queues they take them from.

    Args:
        parameters: a BatchingParameters message (see text_protos).
        metrics: counts batches, rows and waiting times.

    Raises:
        ServingError: INVALID_ARGUMENT for parameters that TensorFlow Serving refuses.
    """

    def __init__(self, parameters: Any, *, metrics: Metrics) -> None:
        self._options = queue_options(parameters)
        self._metrics = metrics
        num_threads = wrapped(parameters, "num_batch_threads", number_of_cpus())
        if num_threads < 1:
            raise invalid_argument(f"num_batch_threads must be positive; was {num_threads}")
        # One lock for all queues: it is held for microseconds. Threads without work wait here.
        self._changed = threading.Condition(threading.Lock())
        self._queues: deque[BatchQueue] = deque()  # the next one to take a batch from is first
        self._is_stopping = False
        # One of the threads without work waits with a time limit, until this time.
        self._timer = math.inf
        name = wrapped(parameters, "thread_pool_name", "batch_threads")
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}_{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def wrap(
        self,
        session: ModelSession,
        signatures: Mapping[str, meta_graph_pb2.SignatureDef],
        *,
        parameters: Any = None,
    ) -> "BatchingSession":
        """A session that batches what is run in `session`.

        Args:
            session: runs the batches; closed with the wrapping one.
            signatures: each gets a queue.
            parameters: the model's own BatchingParameters, if it has some; they are of its queues
                alone, since the threads are shared.

        Raises:
            ServingError: INVALID_ARGUMENT for parameters that TensorFlow Serving refuses.
        """
        options = self._options if parameters is None else queue_options(parameters)
        return BatchingSession(session, signatures, self, options, metrics=self._metrics)

    def add(self, queue: BatchQueue) -> None:
        """Takes batches from this queue, too."""
        with self._changed:
            queue.is_closed = self._is_stopping
            self._queues.append(queue)

    def remove(self, queues: Iterable[BatchQueue]) -> None:
        """Forgets queues, in which nothing waits."""
        with self._changed:
            for queue in queues:
                queue.is_closed = True
                self._queues.remove(queue)

    def schedule(self, queue: BatchQueue, task: Task) -> list[Task]:
        """Enqueues a task; see BatchQueue.add."""
        with self._changed:
            before = queue.ready_at()
            tasks = queue.add(task)
            after = queue.ready_at()
            # A thread is woken when a batch has become ready, or will be before any thread is
            # going to look. One is enough; and busy ones will look when they have run theirs.
            if before > task.enqueued and after < before and after < self._timer:
                self._changed.notify()
        return tasks

    def stop(self) -> None:
        """Runs what is waiting, then ends the threads; 30 seconds at most are waited for that."""
        with self._changed:
            self._is_stopping = True
            for queue in self._queues:
                queue.is_closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        num_running = sum(thread.is_alive() for thread in self._threads)
        if num_running:
            log.warning(
                "%d batches still run after %d seconds: they are left", num_running, STOP_SECONDS
            )

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Runs a batch; False when there will be none. (Not a part of the loop above: a thread
        that waits for the next batch must not keep the last one in memory.)"""
        found = self._next_batch()
        if found is None:
            return False
        queue, batch = found
        queue.process(batch)
        return True

    def _next_batch(self) -> tuple[BatchQueue, Batch] | None:
        with self._changed:
            while True:
                now = time.monotonic()
                for _ in range(len(self._queues)):
                    queue = self._queues[0]
                    self._queues.rotate(-1)
                    if queue.ready_at() <= now:
                        batch = queue.take()
                        # What is left is another thread's, if one has no work.
                        if self._soonest() < self._timer:
                            self._changed.notify()
                        return queue, batch
                if self._is_stopping:
                    return None
                self._wait(now)

    def _wait(self, now: float) -> None:
        soonest = self._soonest()
        if soonest >= self._timer:  # or both infinite
            self._changed.wait()
            return
        self._timer = soonest
        self._changed.wait(min(soonest - now, threading.TIMEOUT_MAX))
        if self._timer == soonest:
            self._timer = math.inf

    def _soonest(self) -> float:
        """When the next batch will be ready."""
        return min((queue.ready_at() for queue in self._queues), default=math.inf)


class BatchingSession:
    """Runs requests of many threads in batches; to its callers the same as a ModelSession.

    There is a queue for each signature, and one for each other combination of feeds and fetches
    that is asked for (by an output_filter).

    Args:
        session: runs the batches; closed with this one.
        signatures: the combinations of feeds and fetches to expect.
        scheduler: has the threads.
        options: of the queues.
        metrics: counts batches, rows and waiting times.
    """

    def __init__(
        self,
        session: ModelSession,
        signatures: Mapping[str, meta_graph_pb2.SignatureDef],
        scheduler: BatchScheduler,
        options: QueueOptions,
        *,
        metrics: Metrics,
    ) -> None:
        self._session = session
        self._scheduler = scheduler
        self._options = options
        self._metrics = metrics
        self._lock = threading.Lock()
        self._queues: dict[tuple[frozenset[str], frozenset[str]], BatchQueue] = {}
        for signature in signatures.values():
            self._queue(
                [info.name for info in signature.inputs.values()],
                [info.name for info in signature.outputs.values()],
            )

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        *,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Computes tensors, in one run with what other threads ask for at the same time.

        Args:
            feeds: name of a tensor -> its value, rows in dim 0; strings are object arrays of bytes.
            fetches: names of the tensors to compute.
            timeout: seconds. As in TensorFlow Serving, a batch is given up (DEADLINE_EXCEEDED)
                when the latest of its requests is, and not even begun (RESOURCE_EXHAUSTED) if
                that was while they waited. None is no limit.

        Raises:
            ServingError: of this request, or of the batch it was in.
        """
        queue = self._queue(feeds, fetches)
        task = new_task(feeds, timeout)
        for _ in feeds:
            _observe(self._metrics.input_batch_size, task.size)
        tasks = self._scheduler.schedule(queue, task)
        for part in tasks:
            part.wait()
        for part in tasks:
            if part.error is not None:
                # A new error: the threads of a batch must not hang their tracebacks on one.
                raise ServingError(part.error.code, part.error.message)
        if len(tasks) == 1:
            return [tasks[0].outputs[name][tasks[0].rows] for name in fetches]
        parts = [[part.outputs[name][part.rows] for part in tasks] for name in fetches]
        return [_concatenate(arrays) for arrays in parts]

    def close(self) -> None:
        """Frees the memory. Nothing may be running."""
        self._scheduler.remove(self._queues.values())
        self._session.close()

    def _queue(self, feeds: Iterable[str], fetches: Iterable[str]) -> BatchQueue:
        key = frozenset(feeds), frozenset(fetches)
        queue = self._queues.get(key)
        if queue is not None:
            return queue
        with self._lock:
            if key not in self._queues:
                names = sorted(key[0]), sorted(key[1])
                queue = BatchQueue(self._options, lambda batch: self._process(batch, *names))
                self._scheduler.add(queue)
                self._queues[key] = queue
            return self._queues[key]

    def _process(self, batch: Batch, feeds: Sequence[str], fetches: Sequence[str]) -> None:
        """Runs a batch and gives each task its part, or the error."""
        outputs, error = {}, None
        try:
            outputs = dict(zip(fetches, self._run_batch(batch, feeds, fetches), strict=True))
        except ServingError as problem:
            error = problem
        except Exception as problem:  # whatever it is: threads wait for these tasks
            error = ServingError(Code.INTERNAL, f"{type(problem).__name__}: {problem}")
        start = 0
        for task in batch.tasks:
            size = task.size  # the task is not ours any more once it is finished
            task.finish(outputs, start, error)
            start += size

    def _run_batch(
        self, batch: Batch, feeds: Sequence[str], fetches: Sequence[str]
    ) -> list[np.ndarray]:
        now = time.monotonic()
        for task in batch.tasks:
            _observe(self._metrics.queuing_latency, (now - task.enqueued) * 1e6)
        deadline = max(task.deadline for task in batch.tasks)
        if deadline <= now:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
            )
        size = self._options.padded_size(batch.size)
        self._metrics.padding_size.observe(size - batch.size, str(size))
        _observe(self._metrics.processed_batch_size, size)
        merged = {
            name: _merge(name, batch.tasks, size - batch.size, self._options.is_padding_lengths)
            for name in feeds
        }
        timeout = None if deadline == math.inf else deadline - now
        outputs = self._session.run(merged, fetches, timeout=timeout)
        for output in outputs:
            _check_rows(output, size)
        return outputs


def _observe(histogram: Histogram, value: float) -> None:
    # TF Serving leaves the one label of these, the thread pool's name, empty.
    histogram.observe(value, *[""] * len(histogram.labels))


def _merge(
    name: str, tasks: Sequence[Task], num_padding: int, is_padding_lengths: bool
) -> np.ndarray:
    """One input of a batch.

    Args:
        name: of the tensor.
        tasks: whose rows are joined.
        num_padding: times that the first row of the last task is added.
        is_padding_lengths: pads what is smaller in a dimension but the first.

    Raises:
        ServingError: the shapes differ, or cannot be padded.
    """
    arrays = [task.feeds[name] for task in tasks]
    if is_padding_lengths:
        arrays = _pad_lengths(name, arrays)
    elif any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"Tensors with name '{name}' from different tasks have different shapes and padding "
            "is turned off. Set pad_variable_length_inputs to true, or ensure that all tensors "
            "with the same name have equal dimensions starting with the first dim.",
        )
    if num_padding:
        last = next(array for array in reversed(arrays) if len(array))
        arrays.append(np.repeat(last[:1], num_padding, axis=0))
    return _concatenate(arrays)


def _pad_lengths(name: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pads each array behind, with its own first element, to the largest of each dimension."""
    if any(array.ndim > 6 for array in arrays):
        raise invalid_argument("Only tensors with rank from 1 to 6 can be padded.")
    if any(array.ndim != arrays[0].ndim for array in arrays):
        raise invalid_argument(f"Tensors with name '{name}' from different tasks differ in rank.")
    largest = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    return [_pad(array, (len(array), *largest)) for array in arrays]


def _pad(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape == shape:
        return array
    if array.size == 0:
        if math.prod(shape):
            raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
        return array.reshape(shape)
    padded = np.full(shape, array.flat[0], array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    # numpy would find a common type, and so change what the others of a batch have sent.
    if any(array.dtype != arrays[0].dtype for array in arrays):
        raise ServingError(
            Code.INTERNAL,
            "Tensor concat operation failed: Cannot concatenate tensors that have different "
            "data types.",
        )
    return np.concatenate(arrays)


def _check_rows(output: np.ndarray, size: int) -> None:
    if output.ndim == 0:
        raise ServingError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
    if len(output) != size:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        )
