"""A graph in a session, run as TensorFlow Serving runs it: names of tensors in, arrays out."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from serve.errors import Code, ServingError


class ModelSession:
    """Runs a loaded graph. Any number of threads may call `run` at once.

    Args:
        session: holds the graph, variables restored.
    """

    def __init__(self, session: tf.compat.v1.Session) -> None:
        self._session = session
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], Callable] = {}
        self._lock = threading.Lock()

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        *,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Computes tensors.

        Args:
            feeds: name of a tensor -> its value; strings are object arrays of bytes.
            fetches: names of the tensors to compute.
            timeout: seconds until it ends with DEADLINE_EXCEEDED; None waits for ever.

        Raises:
            ServingError: with the code of TensorFlow.
        """
        run = self._callable(tuple(feeds), tuple(fetches))
        try:
            return [_to_array(result) for result in run(*feeds.values())]
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), error.message) from error

    def close(self) -> None:
        """Frees the memory. Nothing may be running."""
        self._callables.clear()
        self._session.close()

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Callable:
        with self._lock:
            if (feeds, fetches) not in self._callables:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                # Not session.run or session.make_callable: both hold a feed against the static
                # shape of its placeholder, which TF Serving does not do (it feeds [3] to [-1, 1]).
                run = self._session._make_callable_from_options(options)
                self._callables[feeds, fetches] = run
            return self._callables[feeds, fetches]


def _to_array(result: object) -> np.ndarray:
    """A fetched value as an array; a scalar string comes as bare bytes."""
    if isinstance(result, bytes):
        return np.array(result, dtype=object)
    return np.asarray(result)
