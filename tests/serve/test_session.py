import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from serve.errors import Code, ServingError
from serve.session import ModelSession


@pytest.fixture(scope="module")
def session() -> Iterator[ModelSession]:
    """half:0 from x:0, joined:0 from text:0; taken:0 waits until put:0 has put x:0 somewhere."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 1], name="x")
        text = tf.compat.v1.placeholder(tf.string, [None], name="text")
        queue = tf.queue.FIFOQueue(1, [tf.float32])
        tf.identity(x / 2, name="half")
        tf.identity(tf.strings.reduce_join(text), name="joined")
        tf.identity(queue.dequeue(), name="taken")
        with tf.control_dependencies([queue.enqueue(x)]):
            tf.identity(x, name="put")
        tf.identity(tf.debugging.check_numerics(x, "odd"), name="checked")
    session = ModelSession(tf.compat.v1.Session(graph=graph))
    yield session
    session.close()


def error_of(session: ModelSession, *args: object, **kwargs: object) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        session.run(*args, **kwargs)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_static_shapes_are_not_checked(session: ModelSession, timeout: float | None):
    # Fails when TensorFlow's private parts, which run the graph, have changed.
    half, again = session.run({"x:0": np.float32([2, 6])}, ["half:0", "half:0"], timeout=timeout)
    np.testing.assert_array_equal(half, [1, 3])
    np.testing.assert_array_equal(again, [1, 3])


def test_strings_and_scalars(session: ModelSession):
    text = np.array([b"a\0", b"\xff"], dtype=object)
    (joined,) = session.run({"text:0": text}, ["joined:0"])
    assert (joined.dtype, joined.shape, joined.item()) == (object, (), b"a\0\xff")


def test_arrays_of_any_layout(session: ModelSession):
    x = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))[:, ::2]
    (half,) = session.run({"x:0": x}, ["half:0"])
    np.testing.assert_array_equal(half, [[0, 1], [1.5, 2.5]])


@pytest.mark.parametrize("timeout", [0.02, 0.0, -3.0])
def test_timeout(session: ModelSession, timeout: float):
    assert error_of(session, {}, ["taken:0"], timeout=timeout) == (
        Code.DEADLINE_EXCEEDED,
        "Timed out waiting for notification",
    )


@pytest.mark.parametrize("timeout", [None, 1e9])
def test_a_run_that_waits_stops_no_other_thread(session: ModelSession, timeout: float | None):
    taken = []

    def take() -> None:
        taken.extend(session.run({}, ["taken:0"], timeout=timeout))

    thread = threading.Thread(target=take)
    thread.start()
    session.run({"x:0": np.float32([[7]])}, ["put:0"])
    thread.join()
    np.testing.assert_array_equal(taken, [[[7]]])


def test_errors_keep_their_code(session: ModelSession):
    nan = np.float32([[np.nan]])
    code, message = error_of(session, {"x:0": nan}, ["checked:0"], timeout=60.0)
    assert code == Code.INVALID_ARGUMENT and "odd : Tensor had NaN values" in message
    code, message = error_of(session, {}, ["half:0"])
    assert code == Code.INVALID_ARGUMENT and "must feed a value for placeholder" in message


def test_tensors_the_graph_lacks(session: ModelSession):
    x = np.float32([[1]])
    assert error_of(session, {"z:0": x}, ["half:0"]) == (
        Code.NOT_FOUND,
        "FeedInputs: unable to find feed output z:0",
    )
    for name in ("z:0", "half", "half:1"):
        assert error_of(session, {"x:0": x}, [name]) == (
            Code.NOT_FOUND,
            f"FetchOutputs node {name}: not found",
        )
