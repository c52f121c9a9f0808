import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import batching
from serve.batching import BatchingSession, BatchScheduler
from serve.errors import Code, ServingError
from serve.metrics import Metrics
from serve.session import ModelSession
from serve.text_protos import BatchingParameters

# A batch runs when it is full, and not before.
WHEN_FULL = "batch_timeout_micros {value: 1000000000000} "
ONE_THREAD = "num_batch_threads {value: 1} "


class Model:
    """A SavedModel in a session that notes its runs, and holds them up while the gate is shut."""

    def __init__(self, path: Path) -> None:
        session = tf.compat.v1.Session(graph=tf.Graph())
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
        self.signatures = dict(meta_graph.signature_def)
        self.session = ModelSession(session)
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.gate.set()
        self.begun.clear()
        self.runs: list[Mapping[str, np.ndarray]] = []
        self.timeouts: list[float | None] = []
        self.problem: Exception | None = None

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        *,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        self.runs.append(feeds)
        self.timeouts.append(timeout)
        self.begun.set()
        assert self.gate.wait(30)
        if self.problem:
            raise self.problem
        return self.session.run(feeds, fetches, timeout=timeout)

    def close(self) -> None:
        """The models of this module are closed after all its tests."""

    def names(self, *outputs: str, signature: str = "serving_default") -> list[str]:
        """Tensors of outputs."""
        return [self.signatures[signature].outputs[output].name for output in outputs]

    def feeds(self, signature: str = "serving_default", **inputs: object) -> dict[str, Any]:
        """Tensors of inputs -> values."""
        infos = self.signatures[signature].inputs
        return {infos[name].name: value for name, value in inputs.items()}

    def sizes(self) -> list[int]:
        """Rows of each run."""
        return [len(next(iter(feeds.values()))) for feeds in self.runs]


@pytest.fixture(scope="module")
def models(exports: dict[str, Path]) -> Iterator[dict[str, Model]]:
    models = {name: Model(exports[name]) for name in ("half_plus_two", "pair", "text")}
    yield models
    for model in models.values():
        model.session.close()


@pytest.fixture
def half(models: dict[str, Model]) -> Model:
    models["half_plus_two"].reset()
    return models["half_plus_two"]


@pytest.fixture
def pair(models: dict[str, Model]) -> Model:
    models["pair"].reset()
    return models["pair"]


@pytest.fixture
def text(models: dict[str, Model]) -> Model:
    models["text"].reset()
    return models["text"]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def schedule(metrics: Metrics) -> Iterator[Callable[[str], BatchScheduler]]:
    """A function that makes a scheduler from BatchingParameters; it is stopped after the test."""
    schedulers = []

    def schedule(parameters: str) -> BatchScheduler:
        message = text_format.Parse(parameters, BatchingParameters())
        schedulers.append(BatchScheduler(message, metrics=metrics))
        return schedulers[-1]

    yield schedule
    for scheduler in schedulers:
        scheduler.stop()


@pytest.fixture
def batch(schedule: Callable[[str], BatchScheduler]) -> Callable[[Model, str], BatchingSession]:
    """A function that makes a batching session of a model from BatchingParameters."""

    def batch(model: Model, parameters: str) -> BatchingSession:
        return schedule(parameters).wrap(model, model.signatures)

    return batch


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as clients:
        yield clients


def waiting(session: BatchingSession) -> int:
    """Requests in the queues."""
    queues = session._queues.values()
    return sum(len(batch.tasks) for queue in queues for batch in queue._batches)


def errors_of(futures: list[Future]) -> list[tuple[Code, str]]:
    errors = [future.exception(timeout=30) for future in futures]
    assert all(isinstance(error, ServingError) for error in errors), errors
    return [(error.code, error.message) for error in errors if isinstance(error, ServingError)]


Batch = Callable[[Model, str], BatchingSession]
Wait = Callable[[Callable[[], bool]], None]


def test_requests_run_at_once_when_the_batch_is_full(
    half: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 6}")
    values = [np.float32([[1]]), np.float32([[2], [3]]), np.float32([[4], [5], [6]])]
    answers = list(clients.map(lambda x: session.run(half.feeds(x=x), half.names("y")), values))
    assert half.sizes() == [6]
    for x, (y,) in zip(values, answers, strict=True):
        np.testing.assert_array_equal(y, x / 2 + 2)


def test_a_batch_that_the_next_request_does_not_fit_runs_at_once(
    half: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 3}")
    x = np.float32([[1], [2]])
    futures = [clients.submit(session.run, half.feeds(x=x), half.names("y")) for _ in range(2)]
    wait_for(futures, return_when=FIRST_COMPLETED)
    assert half.sizes() == [2]
    session.run(half.feeds(x=x[:1]), half.names("y"))  # fills the second batch
    assert [future.result()[0].tolist() for future in futures] == [[[2.5], [3]]] * 2
    assert half.sizes() == [2, 3]


@pytest.mark.parametrize("micros", [0, 1000])
def test_a_batch_runs_when_its_time_has_come(half: Model, batch: Batch, micros: int):
    session = batch(half, f"batch_timeout_micros {{value: {micros}}}")
    for value in range(3):
        (y,) = session.run(half.feeds(x=np.float32([[value]])), half.names("y"))
        assert y.tolist() == [[value / 2 + 2]]
    assert half.sizes() == [1, 1, 1]


def test_what_comes_during_a_run_is_the_next_batch(
    half: Model, batch: Batch, clients: ThreadPoolExecutor, wait_until: Wait
):
    session = batch(half, ONE_THREAD)
    half.gate.clear()
    x = np.float32([[1]])
    futures = [clients.submit(session.run, half.feeds(x=x), half.names("y"))]
    assert half.begun.wait(30)
    for _ in range(5):
        futures.append(clients.submit(session.run, half.feeds(x=x), half.names("y")))
    wait_until(lambda: waiting(session) == 5)
    half.gate.set()
    assert [future.result()[0].tolist() for future in futures] == [[[2.5]]] * 6
    assert half.sizes() == [1, 5]


def test_outputs_come_in_the_order_asked_for(
    pair: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(pair, WHEN_FULL + "max_batch_size {value: 2}")

    def run(value: float, outputs: tuple[str, ...]) -> list[list[float]]:
        feeds = pair.feeds(b=np.float32([value]), a=np.float32([10]))
        return [array.tolist() for array in session.run(feeds, pair.names(*outputs))]

    first = clients.submit(run, 2, ("sum", "product"))
    second = clients.submit(run, 3, ("product", "sum", "product"))
    assert first.result() == [[12], [20]]
    assert second.result() == [[30], [13], [30]]
    assert pair.sizes() == [2]


def test_other_fetches_than_a_signature_s_have_their_own_queue(
    pair: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(pair, WHEN_FULL + "max_batch_size {value: 2}")
    feeds = pair.feeds(a=np.float32([2]), b=np.float32([3]))
    all_outputs = clients.submit(session.run, feeds, pair.names("sum", "product"))
    sums = [clients.submit(session.run, feeds, pair.names("sum")) for _ in range(2)]
    assert [future.result()[0].tolist() for future in sums] == [[5], [5]]
    assert not all_outputs.done()
    session.run(feeds, pair.names("sum", "product"))
    assert [array.tolist() for array in all_outputs.result()] == [[5], [6]]


def test_strings(text: Model, batch: Batch, clients: ThreadPoolExecutor):
    session = batch(text, WHEN_FULL + "max_batch_size {value: 8}")

    def run(index: int) -> None:
        texts = np.array([b"good\0%d" % index, b""], dtype=object)
        echoed, label = session.run(text.feeds(text=texts), text.names("text_bytes", "label"))
        assert echoed.tolist() == texts.tolist()
        assert label.tolist() == [b"gut", "schläft".encode()]

    list(clients.map(run, range(4)))
    assert text.sizes() == [8]


def test_short_batches_are_padded_with_the_first_row_of_the_last_request(
    half: Model, batch: Batch, clients: ThreadPoolExecutor, wait_until: Wait, metrics: Metrics
):
    session = batch(
        half,
        ONE_THREAD + "max_batch_size {value: 8} allowed_batch_sizes: 4 allowed_batch_sizes: 8",
    )
    half.gate.clear()
    futures = [clients.submit(session.run, half.feeds(x=np.float32([[9]])), half.names("y"))]
    assert half.begun.wait(30)
    for count, x in enumerate(([[1], [2]], [[3], [4], [5]], np.empty((0, 1))), start=1):
        feeds = half.feeds(x=np.float32(x))
        futures.append(clients.submit(session.run, feeds, half.names("y")))
        wait_until(lambda count=count: waiting(session) == count)
    half.gate.set()
    answers = [future.result()[0].tolist() for future in futures]
    assert answers == [[[6.5]], [[2.5], [3]], [[3.5], [4], [4.5]], []]
    (alone,), (together,) = (feeds.values() for feeds in half.runs)
    assert alone.tolist() == [[9]] * 4
    assert together.tolist() == [[1], [2], [3], [4], [5], [3], [3], [3]]
    assert metrics.padding_size.count("4") == metrics.padding_size.count("8") == 1


def test_a_request_without_rows_alone(half: Model, batch: Batch):
    session = batch(half, "max_batch_size {value: 4} allowed_batch_sizes: 4")
    (y,) = session.run(half.feeds(x=np.empty((0, 1), np.float32)), half.names("y"))
    assert y.shape == (0, 1)


def test_unequal_shapes_fail_all_requests_of_the_batch(
    half: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 3}")
    futures = [
        clients.submit(session.run, half.feeds(x=np.zeros((1, width), np.float32)), half.names("y"))
        for width in (1, 1, 2)
    ]
    name = next(iter(half.feeds(x=None)))
    assert errors_of(futures) == 3 * [
        (
            Code.FAILED_PRECONDITION,
            f"Tensors with name '{name}' from different tasks have different shapes and padding "
            "is turned off. Set pad_variable_length_inputs to true, or ensure that all tensors "
            "with the same name have equal dimensions starting with the first dim.",
        )
    ]
    assert half.runs == []


def test_unequal_lengths_are_padded_with_the_first_element(
    half: Model, batch: Batch, clients: ThreadPoolExecutor, wait_until: Wait
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 3} pad_variable_length_inputs: true")
    small = np.float32([[[1], [2]], [[3], [4]]])  # (2, 2, 1)
    large = np.float32([[[5, 6, 7]]])  # (1, 1, 3)
    first = clients.submit(session.run, half.feeds(x=small), half.names("y"))
    wait_until(lambda: waiting(session) == 1)
    (second,) = session.run(half.feeds(x=large), half.names("y"))
    (merged,) = half.runs[0].values()
    assert merged.tolist() == [
        [[1, 1, 1], [2, 1, 1]],
        [[3, 1, 1], [4, 1, 1]],
        [[5, 6, 7], [5, 5, 5]],
    ]
    # The padding stays in the outputs, as in TensorFlow Serving.
    assert first.result()[0].tolist() == [
        [[2.5] * 3, [3, 2.5, 2.5]],
        [[3.5, 2.5, 2.5], [4, 2.5, 2.5]],
    ]
    assert second.tolist() == [[[4.5, 5, 5.5], [4.5] * 3]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 2), (1, 0)], "Got empty tensor in batch of non-empty tensors."),
        ([(1,) * 7, (1,) * 7], "Only tensors with rank from 1 to 6 can be padded."),
        ([(1, 2), (1, 2, 1)], "Tensors with name '{}' from different tasks differ in rank."),
    ],
)
def test_lengths_that_cannot_be_padded(
    half: Model,
    batch: Batch,
    clients: ThreadPoolExecutor,
    shapes: list[tuple[int, ...]],
    message: str,
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 2} pad_variable_length_inputs: true")
    futures = [
        clients.submit(session.run, half.feeds(x=np.ones(shape, np.float32)), half.names("y"))
        for shape in shapes
    ]
    name = next(iter(half.feeds(x=None)))
    assert errors_of(futures) == 2 * [(Code.INVALID_ARGUMENT, message.format(name))]


def test_types_are_not_mixed(half: Model, batch: Batch, clients: ThreadPoolExecutor):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 2}")
    futures = [
        clients.submit(session.run, half.feeds(x=np.ones((1, 1), dtype)), half.names("y"))
        for dtype in (np.float32, np.int32)
    ]
    assert [code for code, _ in errors_of(futures)] == [Code.INTERNAL] * 2


def test_requests_that_cannot_be_batched(half: Model, pair: Model, batch: Batch):
    def error(session: BatchingSession, feeds: dict, names: list[str]) -> tuple[Code, str]:
        with pytest.raises(ServingError) as caught:
            session.run(feeds, names)
        return caught.value.code, caught.value.message

    session = batch(half, "max_batch_size {value: 2}")
    assert error(session, half.feeds(x=np.zeros((3, 1), np.float32)), half.names("y")) == (
        Code.INVALID_ARGUMENT,
        "Task size 3 is larger than maximum input batch size 2",
    )
    assert error(session, half.feeds(x=np.float32(1)), half.names("y")) == (
        Code.INVALID_ARGUMENT,
        "Batching Run() input tensors must have at least one dimension",
    )
    session = batch(pair, "")
    feeds = pair.feeds(a=np.float32([1]), b=np.float32([1, 2]))
    assert error(session, feeds, pair.names("sum")) == (
        Code.INVALID_ARGUMENT,
        "Batching Run() input tensors must have equal 0th-dimension size",
    )


def test_outputs_that_cannot_be_split(half: Model, batch: Batch, clients: ThreadPoolExecutor):
    session = batch(half, "")
    for signature, output, message in [
        ("total", "total", "Batched output tensor has 0 dimensions"),
        (
            "triples",
            "y",
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        ),
    ]:
        feeds = half.feeds(signature, x=np.zeros(3, np.float32))
        names = half.names(output, signature=signature)
        future = clients.submit(session.run, feeds, names)
        assert errors_of([future]) == [(Code.FAILED_PRECONDITION, message)]


def test_the_error_of_a_run_goes_to_each_request(
    half: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 4}")
    feeds = half.feeds("triples", x=np.zeros(2, np.float32))  # 4 numbers are no triples
    names = half.names("y", signature="triples")
    futures = [clients.submit(session.run, feeds, names) for _ in range(2)]
    errors = errors_of(futures)
    assert [code for code, _ in errors] == [Code.INVALID_ARGUMENT] * 2
    assert all("requires a multiple of 3" in message for _, message in errors)
    assert futures[0].exception() is not futures[1].exception()


def test_a_bug_ends_the_requests_and_not_the_thread(half: Model, batch: Batch):
    session = batch(half, ONE_THREAD)
    feeds = half.feeds(x=np.float32([[1]]))
    half.problem = ZeroDivisionError("division by zero")
    with pytest.raises(ServingError, match="ZeroDivisionError: division by zero") as caught:
        session.run(feeds, half.names("y"))
    assert caught.value.code == Code.INTERNAL
    half.problem = None
    assert session.run(feeds, half.names("y"))[0].tolist() == [[2.5]]


def test_a_full_queue_refuses(half: Model, batch: Batch, clients: ThreadPoolExecutor):
    session = batch(half, ONE_THREAD + "max_batch_size {value: 1} max_enqueued_batches {value: 1}")
    half.gate.clear()
    run = (session.run, half.feeds(x=np.float32([[1]])), half.names("y"))
    running = clients.submit(*run)
    assert half.begun.wait(30)
    refused, enqueued = wait_for(
        [clients.submit(*run) for _ in range(2)], timeout=30, return_when=FIRST_COMPLETED
    )
    half.gate.set()
    assert errors_of(list(refused)) == [
        (
            Code.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full; currently 1 "
            "batches enqueued and max_enqueued_batches is 1",
        )
    ]
    for future in (running, *enqueued):
        assert future.result()[0].tolist() == [[2.5]]


SPLITTING = (
    "enable_large_batch_splitting {value: true} max_batch_size {value: 8} "
    "max_execution_batch_size {value: 3} "
)


def test_large_requests_are_split(half: Model, batch: Batch):
    session = batch(half, ONE_THREAD + SPLITTING + "allowed_batch_sizes: 2 allowed_batch_sizes: 3")
    x = np.arange(7, dtype=np.float32)[:, np.newaxis]
    (y,) = session.run(half.feeds(x=x), half.names("y"))
    np.testing.assert_array_equal(y, x / 2 + 2)
    assert half.sizes() == [3, 3, 2]  # the last with padding
    with pytest.raises(ServingError, match="Task size 9 is larger than maximum input batch size 8"):
        session.run(half.feeds(x=np.zeros((9, 1), np.float32)), half.names("y"))


def test_the_first_part_fills_the_open_batch(
    half: Model, batch: Batch, clients: ThreadPoolExecutor, wait_until: Wait
):
    session = batch(half, WHEN_FULL + SPLITTING)
    first = clients.submit(session.run, half.feeds(x=np.float32([[1], [2]])), half.names("y"))
    wait_until(lambda: waiting(session) == 1)
    x = np.arange(4, dtype=np.float32)[:, np.newaxis]
    (y,) = session.run(half.feeds(x=x), half.names("y"))
    np.testing.assert_array_equal(y, x / 2 + 2)
    assert first.result()[0].tolist() == [[2.5], [3]]
    assert half.sizes() == [3, 3]


def test_an_error_of_a_part_is_the_request_s(half: Model, batch: Batch):
    session = batch(half, SPLITTING)
    half.problem = ServingError(Code.DATA_LOSS, "lost")
    with pytest.raises(ServingError, match="lost") as caught:
        session.run(half.feeds(x=np.zeros((7, 1), np.float32)), half.names("y"))
    assert caught.value.code == Code.DATA_LOSS
    assert len(half.runs) == 3


def test_the_latest_deadline_is_that_of_the_batch(
    half: Model, batch: Batch, clients: ThreadPoolExecutor
):
    session = batch(half, WHEN_FULL + "max_batch_size {value: 3}")

    def run(*timeouts: float | None) -> list[Future]:
        feeds = half.feeds(x=np.float32([[1]]))
        futures = [
            clients.submit(session.run, feeds, half.names("y"), timeout=timeout)
            for timeout in timeouts
        ]
        wait_for(futures, timeout=30)
        return futures

    # One whose time was over when the batch was taken is answered with the others.
    answers = [future.result()[0].tolist() for future in run(100, 200, -1)]
    assert answers == [[[2.5]]] * 3
    assert half.timeouts[0] is not None and 100 < half.timeouts[0] <= 200
    assert [future.result()[0].tolist() for future in run(100, None, -1)] == [[[2.5]]] * 3
    assert half.timeouts[1:] == [None]
    assert errors_of(run(-1, -2, 0)) == 3 * [
        (Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
    ]
    assert len(half.runs) == 2


def test_a_thread_takes_from_the_queues_in_turn(
    half: Model,
    schedule: Callable[[str], BatchScheduler],
    clients: ThreadPoolExecutor,
    wait_until: Wait,
):
    scheduler = schedule(ONE_THREAD + "max_batch_size {value: 1}")
    versions = [scheduler.wrap(half, half.signatures) for _ in range(2)]
    half.gate.clear()
    futures = []
    for count, (version, value) in enumerate([(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)]):
        feeds = half.feeds(x=np.float32([[value]]))
        futures.append(clients.submit(versions[version].run, feeds, half.names("y")))
        if count == 0:
            assert half.begun.wait(30)
        wait_until(lambda count=count: sum(map(waiting, versions)) == count)
    half.gate.set()
    wait_for(futures, timeout=30)
    order = [int(next(iter(feeds.values()))[0, 0]) for feeds in half.runs]
    assert order == [0, 3, 1, 4, 2]


def test_threads(half: Model, schedule: Callable[[str], BatchScheduler]):
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "pool_of_test" in thread.name]

    scheduler = schedule('num_batch_threads {value: 3} thread_pool_name {value: "pool_of_test"}')
    assert sorted(names()) == [f"pool_of_test_{index}" for index in range(3)]
    scheduler.stop()
    assert names() == []
    with pytest.raises(ServingError, match="num_batch_threads must be positive; was 0") as caught:
        schedule("num_batch_threads {value: 0}")
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_batches_run_side_by_side(half: Model, batch: Batch, clients: ThreadPoolExecutor):
    session = batch(half, "num_batch_threads {value: 2} max_batch_size {value: 1}")
    half.gate.clear()
    run = (session.run, half.feeds(x=np.float32([[1]])), half.names("y"))
    futures = [clients.submit(*run) for _ in range(2)]
    assert half.begun.wait(30)
    half.begun.clear()
    assert len(half.runs) == 2 or half.begun.wait(30)
    half.gate.set()
    wait_for(futures, timeout=30)


def test_batches_of_two_models_have_their_own_times(
    half: Model,
    pair: Model,
    schedule: Callable[[str], BatchScheduler],
    clients: ThreadPoolExecutor,
    wait_until: Wait,
):
    # The one that is ready sooner is not kept by the other, for which a thread waits already.
    scheduler = schedule(ONE_THREAD + WHEN_FULL + "max_batch_size {value: 2}")
    own = text_format.Parse("batch_timeout_micros {value: 1000}", BatchingParameters())
    slow = scheduler.wrap(half, half.signatures)
    fast = scheduler.wrap(pair, pair.signatures, parameters=own)
    x = half.feeds(x=np.float32([[1]]))
    future = clients.submit(slow.run, x, half.names("y"))
    wait_until(lambda: waiting(slow) == 1)
    feeds = pair.feeds(a=np.float32([2]), b=np.float32([3]))
    assert fast.run(feeds, pair.names("sum"))[0].tolist() == [5]
    assert not future.done()
    slow.run(x, half.names("y"))
    assert future.result()[0].tolist() == [[2.5]]


def test_a_thread_that_runs_a_batch_leaves_the_next_to_another(
    half: Model, pair: Model, schedule: Callable[[str], BatchScheduler], clients: ThreadPoolExecutor
):
    scheduler = schedule("num_batch_threads {value: 2} batch_timeout_micros {value: 50000}")
    first, second = (scheduler.wrap(model, model.signatures) for model in (half, pair))
    half.gate.clear()
    held = clients.submit(first.run, half.feeds(x=np.float32([[1]])), half.names("y"))
    feeds = pair.feeds(a=np.float32([2]), b=np.float32([3]))
    future = clients.submit(second.run, feeds, pair.names("sum"))
    try:
        assert future.result(timeout=30)[0].tolist() == [5]
        assert half.begun.wait(30) and not held.done()
    finally:
        half.gate.set()


def test_close_removes_the_queues(half: Model, schedule: Callable[[str], BatchScheduler]):
    scheduler = schedule("")
    old, new = (scheduler.wrap(half, half.signatures) for _ in range(2))
    run = (half.feeds(x=np.float32([[1]])), half.names("y"))
    old.run(*run)
    assert len(scheduler._queues) == 2 * len(half.signatures)
    old.close()
    assert len(scheduler._queues) == len(half.signatures)
    with pytest.raises(ServingError, match="is closed") as caught:
        old.run(*run)
    assert caught.value.code == Code.UNAVAILABLE
    assert new.run(*run)[0].tolist() == [[2.5]]


def test_stop_runs_what_waits(
    half: Model,
    schedule: Callable[[str], BatchScheduler],
    clients: ThreadPoolExecutor,
    wait_until: Wait,
):
    scheduler = schedule(WHEN_FULL)
    session = scheduler.wrap(half, half.signatures)
    run = (session.run, half.feeds(x=np.float32([[1]])), half.names("y"))
    future = clients.submit(*run)
    wait_until(lambda: waiting(session) == 1)
    scheduler.stop()
    assert future.result(timeout=30)[0].tolist() == [[2.5]]
    assert errors_of([clients.submit(*run)])[0][0] == Code.UNAVAILABLE


def test_stop_waits_so_long(
    half: Model,
    schedule: Callable[[str], BatchScheduler],
    clients: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(batching, "STOP_SECONDS", 0.1)
    scheduler = schedule("num_batch_threads {value: 2}")
    session = scheduler.wrap(half, half.signatures)
    half.gate.clear()
    future = clients.submit(session.run, half.feeds(x=np.float32([[1]])), half.names("y"))
    assert half.begun.wait(30)
    scheduler.stop()
    assert not future.done()
    assert "1 batches still run after" in caplog.text
    half.gate.set()
    assert future.result(timeout=30)[0].tolist() == [[2.5]]


def test_metrics(pair: Model, batch: Batch, clients: ThreadPoolExecutor, metrics: Metrics):
    session = batch(
        pair,
        WHEN_FULL + "max_batch_size {value: 4} allowed_batch_sizes: 4",
    )
    feeds = pair.feeds(a=np.float32([1, 2]), b=np.float32([3, 4]))
    list(clients.map(lambda _: session.run(feeds, pair.names("sum")), range(2)))

    def lines(name: str) -> dict[str, float]:
        lines = [
            line for line in metrics.page().splitlines() if f"batching_session:{name}_" in line
        ]
        return {line.split("{")[0].split(":")[-1]: float(line.split()[-1]) for line in lines}

    assert lines("input_batch_size")["input_batch_size_count"] == 4  # two inputs a request
    assert lines("input_batch_size")["input_batch_size_sum"] == 8
    assert lines("processed_batch_size")["processed_batch_size_count"] == 1
    assert lines("processed_batch_size")["processed_batch_size_sum"] == 4
    assert lines("queuing_latency")["queuing_latency_count"] == 2
    assert lines("padding_size")["padding_size_count"] == 1
    assert lines("padding_size")["padding_size_sum"] == 0


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    limit=st.integers(5, 9),
    is_splitting=st.booleans(),
    is_padded=st.booleans(),
    threads=st.integers(1, 3),
)
def test_each_request_gets_its_own_rows(
    models: dict[str, Model],
    sizes: list[int],
    limit: int,
    is_splitting: bool,
    is_padded: bool,
    threads: int,
):
    pair = models["pair"]
    pair.reset()
    limit = limit - 4 if is_splitting else limit  # so that the largest do not fit one batch
    parameters = BatchingParameters(
        max_batch_size={"value": max(limit, 5)},
        max_enqueued_batches={"value": 1000},
        num_batch_threads={"value": threads},
        enable_large_batch_splitting={"value": is_splitting},
        max_execution_batch_size={"value": limit},
        allowed_batch_sizes=[limit] if is_padded else [],
    )
    scheduler = BatchScheduler(parameters, metrics=Metrics())
    session = scheduler.wrap(pair, pair.signatures)

    def run(index: int) -> None:
        a = np.arange(sizes[index], dtype=np.float32) + 10 * index
        b = np.full(sizes[index], index, np.float32)
        product, total = session.run(pair.feeds(a=a, b=b), pair.names("product", "sum"))
        np.testing.assert_array_equal(total, a + b)
        np.testing.assert_array_equal(product, a * b)

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(run, range(len(sizes))))
    scheduler.stop()
    assert max(pair.sizes()) <= limit


def test_many_clients(text: Model, half: Model, schedule: Callable[[str], BatchScheduler]):
    """32 clients of two models for about a second, every answer checked."""
    scheduler = schedule(
        "max_batch_size {value: 16} batch_timeout_micros {value: 200} num_batch_threads {value: 3}"
        "max_enqueued_batches {value: 64} allowed_batch_sizes: 8 allowed_batch_sizes: 16"
    )
    texts = scheduler.wrap(text, text.signatures)
    numbers = scheduler.wrap(half, half.signatures)

    def ask(client: int) -> None:
        for index in range(400):
            size = 1 + (client + index) % 3
            if client % 2:
                sent = np.array([b"%d %d %d" % (client, index, row) for row in range(size)], object)
                (got,) = texts.run(text.feeds(text=sent), text.names("text_bytes"), timeout=60)
                assert got.tolist() == sent.tolist()
            else:
                x = np.float32([[1000 * client + index + row] for row in range(size)])
                (y,) = numbers.run(half.feeds(x=x), half.names("y"))
                assert y.tolist() == (x * np.float32(0.5) + 2).tolist()

    with ThreadPoolExecutor(32) as clients:
        for future in [clients.submit(ask, client) for client in range(32)]:
            future.result()
    assert len(text.runs) + len(half.runs) < 32 * 400  # some ran together
