"""Calls as messages of gRPC, and what the answers say.

The messages bring TensorFlow with them, so they are imported when they are first used.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from serve.client_calls import ClientError, Deadline
from serve.client_data import (
    Metadata,
    Signature,
    VersionState,
    decode_strings,
    read_signatures,
    read_states,
    to_array,
)
from serve.client_wire import Choice

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from tensorflow_serving.apis import input_pb2, model_pb2

# For the time when the messages import TensorFlow: its C++ part only tells what is fatal, as all
# other errors come as answers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class Channel(Protocol):
    """Sends a message, blocking or in asyncio."""

    async def send(self, method: str, request: "Message", timeout: float | None) -> Any: ...

    async def close(self) -> None: ...


class GrpcWire:
    """Puts calls into messages and reads the answers.

    Args:
        channel: sends them.
        address: of the server, for errors.
        model: name of the model.
    """

    def __init__(self, channel: Channel, address: str, model: str) -> None:
        self.model = model
        self._channel = channel
        self._address = address

    async def metadata(self, choice: Choice, deadline: Deadline) -> Metadata:
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(choice), metadata_field=["signature_def"]
        )
        response = await self._send("GetModelMetadata", request, deadline)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        documents = {
            name: json_format.MessageToDict(signature, preserving_proto_field_name=True)
            for name, signature in signatures.signature_def.items()
        }
        spec = response.model_spec
        return Metadata(spec.name, spec.version.value, read_signatures(documents))

    async def status(self, version: int | None, deadline: Deadline) -> list[VersionState]:
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(
            model_spec=self._spec(Choice(version, ""))
        )
        response = await self._send("GetModelStatus", request, deadline)
        return read_states(json_format.MessageToDict(response, preserving_proto_field_name=True))

    async def predict(
        self,
        choice: Choice,
        columns: Mapping[str, Any],
        signature_name: str,
        signature: Signature,
        deadline: Deadline,
    ) -> Any:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec(choice, signature_name))
        for name, value in columns.items():
            kind = signature.inputs.get(name)
            array = to_array(name, value, kind.dtype if kind else None)
            try:
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            except (TypeError, ValueError) as error:
                message = f"input {name} is no tensor: {error}"
                raise ClientError("INVALID_ARGUMENT", message) from None
        return await self._send("Predict", request, deadline)

    def read_outputs(self, answer: Any, signature: Signature) -> dict[str, np.ndarray]:
        import tensorflow as tf

        return decode_strings(
            {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}
        )

    def answered_version(self, answer: Any) -> int | None:
        spec = answer.model_spec
        return spec.version.value if spec.HasField("version") else None

    async def classify(
        self,
        choice: Choice,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        signature_name: str,
        deadline: Deadline,
    ) -> dict[str, np.ndarray]:
        from tensorflow_serving.apis import classification_pb2

        request = classification_pb2.ClassificationRequest(
            model_spec=self._spec(choice, signature_name), input=_to_input(examples, context)
        )
        response = await self._send("Classify", request, deadline)
        rows = [row.classes for row in response.result.classifications]
        return {
            "classes": np.array([[found.label for found in row] for row in rows], dtype=object),
            "scores": np.array([[found.score for found in row] for row in rows], dtype=np.float32),
        }

    async def regress(
        self,
        choice: Choice,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        signature_name: str,
        deadline: Deadline,
    ) -> dict[str, np.ndarray]:
        from tensorflow_serving.apis import regression_pb2

        request = regression_pb2.RegressionRequest(
            model_spec=self._spec(choice, signature_name), input=_to_input(examples, context)
        )
        response = await self._send("Regress", request, deadline)
        values = [found.value for found in response.result.regressions]
        return {"values": np.array(values, dtype=np.float32)}

    async def close(self) -> None:
        await self._channel.close()

    def _spec(self, choice: Choice, signature_name: str = "") -> "model_pb2.ModelSpec":
        from tensorflow_serving.apis import model_pb2

        spec = model_pb2.ModelSpec(name=self.model, signature_name=signature_name)
        if choice.version is not None:
            spec.version.value = choice.version
        elif choice.label:
            spec.version_label = choice.label
        return spec

    async def _send(self, method: str, request: "Message", deadline: Deadline) -> Any:
        import grpc

        timeout = deadline.remaining(self._address)
        try:
            return await self._channel.send(method, request, timeout)
        except grpc.RpcError as error:
            raise _to_client_error(self._address, error, deadline) from None


def _to_client_error(address: str, error: Any, deadline: Deadline) -> ClientError:
    code, details = error.code().name, error.details() or ""
    if code == "DEADLINE_EXCEEDED" and "Deadline Exceeded" in details:  # ours, not the server's
        return deadline.error(address)
    said = "no answer from {}: {}" if code == "UNAVAILABLE" else f"{{}} answered {code}: {{}}"
    return ClientError(code, details, said.format(address, details))


def _to_input(
    examples: Sequence[Mapping[str, Any]], context: Mapping[str, Any]
) -> "input_pb2.Input":
    from tensorflow_serving.apis import input_pb2

    made = [_to_example(features) for features in examples]
    if not context:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=made))
    with_context = input_pb2.ExampleListWithContext(examples=made, context=_to_example(context))
    return input_pb2.Input(example_list_with_context=with_context)


def _to_example(features: Mapping[str, Any]) -> Any:
    """A tf.train.Example, in the types that TF Serving gives the same values in JSON."""
    from tensorflow.core.example import example_pb2

    example = example_pb2.Example()
    for name, value in features.items():
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        values = list(value) if isinstance(value, list | tuple) else [value]
        try:
            _add_values(example.features.feature[name], values)
        except (TypeError, ValueError) as error:
            message = f"feature {name} is no list of integers, of decimals or of text: {error}"
            raise ClientError("INVALID_ARGUMENT", message) from None
    return example


def _add_values(feature: Any, values: list[Any]) -> None:
    """Puts values into the list of their type; the first one decides which that is."""
    if not values:
        return
    if isinstance(values[0], int):
        # JSON's true is a number here too
        feature.int64_list.value.extend(int(v) if isinstance(v, bool) else v for v in values)
    elif isinstance(values[0], float):
        if any(isinstance(value, int) for value in values):  # protobuf would take them
            raise TypeError("there are integers among decimals")
        feature.float_list.value.extend(values)
    else:
        feature.bytes_list.value.extend(
            value.encode() if isinstance(value, str) else value for value in values
        )
