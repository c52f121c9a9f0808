"""What the gRPC services share: errors as statuses, the model that a request names."""

import functools
import logging
from collections.abc import Callable

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis import model_pb2

from serve.errors import Code, ServingError, invalid_argument

MAX_MESSAGE_CHARACTERS = 1024

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
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[:MAX_MESSAGE_CHARACTERS] + "...TRUNCATED"
        context.abort(grpc.StatusCode[code.name], message)

    return answer_or_abort


def check_model_spec(request: Message) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")


def requested_version(spec: model_pb2.ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None
