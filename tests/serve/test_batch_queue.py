from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from serve.batch_queue import BatchQueue, QueueOptions, Task, new_task, queue_options
from serve.errors import Code, ServingError
from serve.text_protos import BatchingParameters


def options_of(text: str) -> QueueOptions:
    return queue_options(text_format.Parse(text, BatchingParameters()))


def queue_of(text: str) -> BatchQueue:
    return BatchQueue(options_of(text), lambda batch: None)


def task_of(size: int) -> Task:
    return new_task({"x:0": np.arange(size)}, None)


def error_of(call: Any, *args: object) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        call(*args)
    return caught.value.code, caught.value.message


def sizes_waiting(queue: BatchQueue) -> list[list[int]]:
    """Sizes of the tasks of each batch that has any."""
    batches = []
    while queue.ready_at() < np.inf:
        batches.append([task.size for task in queue.take().tasks])
    return batches


def test_defaults():
    assert options_of("") == QueueOptions(1000, 1000, 0.0, 10, False, (), False)


def test_options():
    options = options_of(
        "max_batch_size {value: 8} batch_timeout_micros {value: 1500} "
        "max_enqueued_batches {value: 3} enable_large_batch_splitting {value: true} "
        "max_execution_batch_size {value: 4} allowed_batch_sizes: 2 allowed_batch_sizes: 4 "
        "pad_variable_length_inputs: true num_batch_threads {value: 1}"
    )
    assert options == QueueOptions(8, 4, 0.0015, 3, True, (2, 4), True)
    assert [options.padded_size(size) for size in (0, 1, 2, 3, 4)] == [0, 2, 2, 4, 4]


def test_options_that_are_of_no_effect():
    # As in TensorFlow Serving: no room is room for one batch; without splitting, its size is unused
    options = options_of("max_enqueued_batches {value: 0} max_execution_batch_size {value: 2}")
    assert (options.max_enqueued_batches, options.max_batch_size) == (1, 1000)
    options = options_of("enable_large_batch_splitting {value: true} max_batch_size {value: 8}")
    assert options.max_batch_size == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_size {value: 8} allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        (
            "allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 1000",
        ),
        (
            "max_batch_size {value: 8} allowed_batch_sizes: 8 max_execution_batch_size {value: 4}"
            "enable_large_batch_splitting {value: true}",
            "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; last "
            "entry was 8; expected 4",
        ),
        (
            "max_batch_size {value: 8} allowed_batch_sizes: 4 allowed_batch_sizes: 4 "
            "allowed_batch_sizes: 8",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        ("max_batch_size {value: 0}", "input_batch_size_limit must be positive; was 0"),
        ("batch_timeout_micros {value: -1}", "batch_timeout_micros must be non-negative; was -1"),
        (
            "enable_large_batch_splitting {value: true} max_enqueued_batches {value: 0}",
            "max_enqueued_batches must be positive; was 0",
        ),
        (
            "enable_large_batch_splitting {value: true} max_batch_size {value: 2} "
            "max_execution_batch_size {value: 4}",
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater "
            "than or equal to max_execution_batch_size.",
        ),
    ],
)
def test_options_that_are_refused(text: str, message: str):
    assert error_of(options_of, text) == (Code.INVALID_ARGUMENT, message)


def test_tasks():
    x = np.zeros((3, 2))
    assert new_task({"a:0": x, "b:0": x[:, 0]}, None).size == 3
    task = new_task({"a:0": x}, 5.0)
    assert task.deadline - task.enqueued == pytest.approx(5.0)
    invalid = Code.INVALID_ARGUMENT
    assert error_of(new_task, {}, None) == (
        invalid,
        "Batching Run() must have at least one input tensor",
    )
    assert error_of(new_task, {"a:0": x, "b:0": np.float32(1)}, None) == (
        invalid,
        "Batching Run() input tensors must have at least one dimension",
    )
    assert error_of(new_task, {"a:0": x, "b:0": x[:2]}, None) == (
        invalid,
        "Batching Run() input tensors must have equal 0th-dimension size",
    )


def test_batches_are_ready_when_they_are_full_or_their_time_has_come():
    queue = queue_of("max_batch_size {value: 4} batch_timeout_micros {value: 2000000}")
    assert queue.ready_at() == np.inf
    first = task_of(1)
    assert queue.add(first) == [first]
    queue.add(task_of(2))
    assert queue.ready_at() == first.enqueued + 2
    third = task_of(2)  # does not fit: the first batch is closed, though not full
    queue.add(third)
    assert queue.ready_at() == -np.inf
    assert [task.size for task in queue.take().tasks] == [1, 2]
    assert queue.ready_at() == third.enqueued + 2
    queue.add(task_of(2))
    assert queue.ready_at() == -np.inf
    assert queue.take().size == 4
    assert queue.ready_at() == np.inf


def test_requests_without_rows_run_too():
    queue = queue_of("")
    queue.add(task_of(0))
    assert sizes_waiting(queue) == [[0]]


def test_a_task_that_is_too_large():
    for splitting in ("", "enable_large_batch_splitting {value: true}"):
        queue = queue_of("max_batch_size {value: 4}" + splitting)
        assert error_of(queue.add, task_of(5)) == (
            Code.INVALID_ARGUMENT,
            "Task size 5 is larger than maximum input batch size 4",
        )


def test_a_full_queue():
    queue = queue_of("max_batch_size {value: 4} max_enqueued_batches {value: 2}")
    for size in (3, 2, 2):  # the first two do not fit into one batch
        queue.add(task_of(size))
    assert error_of(queue.add, task_of(1)) == (
        Code.UNAVAILABLE,
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches "
        "enqueued and max_enqueued_batches is 2",
    )
    assert queue.take().size == 3
    queue.add(task_of(1))
    assert sizes_waiting(queue) == [[2, 2], [1]]


def test_a_full_queue_that_splits():
    queue = queue_of(
        "max_batch_size {value: 9} max_execution_batch_size {value: 4} "
        "enable_large_batch_splitting {value: true} max_enqueued_batches {value: 2}"
    )
    queue.add(task_of(5))
    assert error_of(queue.add, task_of(4)) == (
        Code.UNAVAILABLE,
        "The batch scheduling queue to which this task was submitted is full; task size is 4 but "
        "scheduling capacity is only 3 (num_enqueued_batches=2, max_enqueued_batches=2, "
        "open_batch_size=1, max_execution_batch_size=4)",
    )
    queue.add(task_of(3))
    assert sizes_waiting(queue) == [[4], [1, 3]]


def test_a_closed_queue():
    queue = queue_of("batch_timeout_micros {value: 2000000}")
    queue.add(task_of(1))
    queue.is_closed = True
    assert queue.ready_at() == -np.inf
    assert error_of(queue.add, task_of(1))[0] == Code.UNAVAILABLE


@given(sizes=st.lists(st.integers(0, 20), max_size=12), limit=st.integers(1, 7))
def test_splitting_fills_batches_and_loses_no_row(sizes: list[int], limit: int):
    queue = BatchQueue(QueueOptions(20, limit, 0.0, 10**6, True), lambda batch: None)
    rows = []
    for size in sizes:
        parts = queue.add(task_of(size))
        rows.append([row for part in parts for row in part.feeds["x:0"]])
        assert all(part.size == len(part.feeds["x:0"]) for part in parts)
        assert size == 0 or all(part.size > 0 for part in parts)
    assert rows == [list(range(size)) for size in sizes]
    totals = [sum(batch) for batch in sizes_waiting(queue)]
    assert sum(totals) == sum(sizes)
    assert all(total == limit for total in totals[:-1])
    assert all(total <= limit for total in totals)
