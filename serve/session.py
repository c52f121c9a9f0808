"""A graph in a session, run as TensorFlow Serving runs it: names of tensors in, arrays out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

from serve.errors import Code, ServingError


class ModelSession:
    """Runs a loaded graph. Any number of threads may call `run` at once.

    Args:
        session: holds the graph, variables restored.
    """

    def __init__(self, session: tf.compat.v1.Session) -> None:
        self._session = session
        self._outputs: dict[str, Any] = {}

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
        fed = {
            self._output(name, "FeedInputs: unable to find feed output {}"): value
            for name, value in feeds.items()
        }
        fetched = [self._output(name, "FetchOutputs node {}: not found") for name in fetches]
        try:
            return [_to_array(result) for result in self._run(fed, fetched, timeout)]
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), error.message) from error

    def close(self) -> None:
        """Frees the memory. Nothing may be running."""
        self._outputs.clear()
        self._session.close()

    # The two methods below hold all that serve takes of TensorFlow's private parts. The public
    # ways, session.run and session.make_callable, hold a feed against the static shape of its
    # placeholder, which TF Serving does not do (it feeds [3] to [-1, 1]). The binding beneath
    # session.run does not, takes a time limit for each call, and releases the GIL. A callable
    # (_make_callable_from_options) would cost about the same 25 us a call, but has its limit fixed
    # when it is made, which takes milliseconds and a copy of the graph.

    def _run(self, feeds: dict[Any, np.ndarray], fetches: list, timeout: float | None) -> Any:
        session, no_metadata = self._session._session, cast(Any, None)
        options = cast(Any, None)
        if timeout is not None:
            message = config_pb2.RunOptions(timeout_in_ms=_milliseconds(timeout))
            options = pywrap_tf_session.TF_NewBufferFromString(message.SerializeToString())
        try:
            return pywrap_tf_session.TF_SessionRun_wrapper(
                session, options, feeds, fetches, [], no_metadata
            )
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)

    def _output(self, name: str, problem: str) -> Any:
        """The handle of a tensor. (Two threads may both make it the first time: no harm.)"""
        output = self._outputs.get(name)
        if output is None:
            try:
                output = self._session.graph.get_tensor_by_name(name)._as_tf_output()
            except (KeyError, ValueError):
                raise ServingError(Code.NOT_FOUND, problem.format(name)) from None
            self._outputs[name] = output
        return output


def _milliseconds(timeout: float) -> int:
    """At least 1: TensorFlow takes 0 for no limit. What is left of a deadline may be negative."""
    return min(max(math.ceil(timeout * 1000), 1), 2**31 - 1)


def _to_array(result: object) -> np.ndarray:
    """A fetched value as an array; a scalar string comes as bare bytes."""
    if isinstance(result, bytes):
        return np.array(result, dtype=object)
    return np.asarray(result)
