"""What the gRPC services share: errors as statuses, the model that a request names, counting."""

import functools
import logging
import time
from collections.abc import Callable

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis import model_pb2

from serve.errors import Code, ServingError, invalid_argument

MAX_MESSAGE_BYTES = 1024
ENTRYPOINT = "GRPC"

log = logging.getLogger(__name__)


def with_status(answer: Callable) -> Callable:
    """Ends the call with the code and the message of a ServingError."""

    @functools.wraps(answer)
    def answer_or_abort(self, request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return answer(self, request, context)
        except ServingError as error:
            code, message = error.code, error.message
        except Exception as error:
            log.exception("%s failed", answer.__name__)
            code, message = Code.INTERNAL, repr(error)
        context.abort(grpc.StatusCode[code.name], cut(message))

    return answer_or_abort


def counted(answer: Callable) -> Callable:
    """Counts the requests in `self.metrics`; TF Serving does so in Predict, Classify, Regress."""

    @functools.wraps(answer)
    def answer_and_count(self, request: Message, context: grpc.ServicerContext) -> Message:
        start = time.perf_counter()
        name, code = request.model_spec.name, Code.INTERNAL
        try:
            response = answer(self, request, context)
            code = Code.OK
            microseconds = (time.perf_counter() - start) * 1e6
            self.metrics.request_latency.observe(microseconds, name, answer.__name__, ENTRYPOINT)
            return response
        except ServingError as error:
            code = error.code
            raise
        finally:
            self.metrics.request_count.add(name, code.name)

    return answer_and_count


def cut(message: str) -> str:
    """A message as it goes on the wire: 1024 bytes at most, and never anything but UTF-8."""
    encoded = message.encode("utf-8", "replace")
    if len(encoded) > MAX_MESSAGE_BYTES:
        return encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"
    return encoded.decode("utf-8")


def time_left(context: grpc.ServicerContext) -> float | None:
    """Seconds until the deadline of a call; None if it has none.

    Raises:
        ServingError: it is over.
    """
    seconds = context.time_remaining()
    # Without a deadline some versions of grpcio tell a time of centuries.
    if seconds is None or seconds > 2**31:
        return None
    if seconds <= 0:
        raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
    return seconds


def check_model_spec(request: Message) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")


def requested_version(spec: model_pb2.ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None
