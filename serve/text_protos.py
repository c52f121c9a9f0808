"""The configuration files of TensorFlow Serving: protocol buffers as text.

tensorflow-serving-api has the message of models.config alone; those of the other files are
described here, by the names and types of TensorFlow Serving's .proto files. Only the text form
is read, so that the numbers of the fields mean nothing.
"""

from pathlib import Path
from typing import TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf import wrappers_pb2 as wrappers
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from serve.errors import ServingError, invalid_argument

Field = descriptor_pb2.FieldDescriptorProto
Kind = TypeVar("Kind", bound=Message)

INT64 = (Field.TYPE_MESSAGE, ".google.protobuf.Int64Value")
BOOL = (Field.TYPE_MESSAGE, ".google.protobuf.BoolValue")
STRING = (Field.TYPE_MESSAGE, ".google.protobuf.StringValue")

# Message -> its fields -> (type, type's name if it is a message).
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BatchingParameters": {
        "max_batch_size": INT64,
        "batch_timeout_micros": INT64,
        "max_enqueued_batches": INT64,
        "num_batch_threads": INT64,
        "thread_pool_name": STRING,
        "allowed_batch_sizes": (Field.TYPE_INT64, ""),
        "pad_variable_length_inputs": (Field.TYPE_BOOL, ""),
        "enable_large_batch_splitting": BOOL,
        "max_execution_batch_size": INT64,
    },
    "PrometheusConfig": {"enable": (Field.TYPE_BOOL, ""), "path": (Field.TYPE_STRING, "")},
    "MonitoringConfig": {
        "prometheus_config": (Field.TYPE_MESSAGE, ".tensorflow.serving.PrometheusConfig")
    },
    "SSLConfig": {
        "server_key": (Field.TYPE_STRING, ""),
        "server_cert": (Field.TYPE_STRING, ""),
        "custom_ca": (Field.TYPE_STRING, ""),
        "client_verify": (Field.TYPE_BOOL, ""),
    },
}
REPEATED = {"allowed_batch_sizes"}

LINE_END = "': "  # between the text of a wrong line and the reason, where a ParseError has both
MAX_REASON_CHARACTERS = 300


def _make_messages() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="serve/configuration.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers.DESCRIPTOR.name],
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, (kind, type_name)) in enumerate(fields.items(), start=1):
            label = Field.LABEL_REPEATED if field in REPEATED else Field.LABEL_OPTIONAL
            message.field.add(
                name=field,
                number=number,
                type=kind,  # pyright: ignore[reportArgumentType]
                type_name=type_name or None,
                label=label,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.serving.{name}")
        )
        for name in MESSAGES
    }


ModelServerConfig = model_server_config_pb2.ModelServerConfig
_MESSAGES = _make_messages()
BatchingParameters = _MESSAGES["BatchingParameters"]
MonitoringConfig = _MESSAGES["MonitoringConfig"]
SSLConfig = _MESSAGES["SSLConfig"]


def read_text_proto(path: Path, kind: type[Kind]) -> Kind:
    """Reads a configuration file.

    Args:
        path: the file.
        kind: ModelServerConfig, BatchingParameters, MonitoringConfig or SSLConfig.

    Raises:
        ServingError: INVALID_ARGUMENT if it cannot be read or parsed; one line that names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise invalid_argument(f"{path}: {reason}") from None
    try:
        return text_format.Parse(text, kind())
    except text_format.ParseError as error:
        raise _parse_error(path, kind, error) from None


def _parse_error(path: Path, kind: type[Message], error: text_format.ParseError) -> ServingError:
    """As protocol buffers say it in C++: LINE:COLUMN: reason, without the text of the line."""
    reason = " ".join(str(error).split())
    if error.GetLine() is not None:
        reason = reason.removeprefix(f"{error.GetLine()}:{error.GetColumn()} : ")
        reason = f"{error.GetLine()}:{error.GetColumn()}: {reason.rpartition(LINE_END)[2]}"
    name = kind.DESCRIPTOR.full_name
    reason = reason[:MAX_REASON_CHARACTERS]
    return invalid_argument(f"{path}: Error parsing text-format {name}: {reason}")
