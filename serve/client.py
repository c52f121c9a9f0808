"""Asks a server for predictions, by REST or by gRPC; both give the same arrays.

The server may be this project's or tensorflow_model_server. REST needs only numpy; the gRPC
stubs, which bring TensorFlow with them, are imported when they are first used.
"""

import argparse
import base64
import dataclasses
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from serve import tensors
from serve.command_line import OneLineParser
from serve.errors import ServingError

if TYPE_CHECKING:
    import grpc
    from tensorflow_serving.apis import model_pb2, prediction_service_pb2_grpc

# For the time when the gRPC stubs import TensorFlow: its C++ part only tells what is fatal, as
# all other errors come as answers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A model server is asked without the proxy that the environment may name for the web.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

EPILOG = """\
One line of JSON is printed for each text:

  python -m serve.client --rest 127.0.0.1:8501 --model news "text one" "text two"
  python -m serve.client --grpc 127.0.0.1:8500 --model news "text one"

A model with several inputs wants each by its name; repeat them for more answers:

  python -m serve.client --rest 127.0.0.1:8501 --model pairs \\
      --input text_a="a sentence" --input text_b="another"
"""


class ClientError(Exception):
    """No answer, or an answer that is an error; the message is one line."""


@dataclasses.dataclass(frozen=True)
class SignatureTypes:
    """Name -> type ("float", "string" ...) of what a signature takes and gives."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def predict_rest(
    url: str,
    inputs: Mapping[str, Any] | None = None,
    *,
    instances: Sequence[Any] | None = None,
    signature_name: str = "serving_default",
    timeout: float = 60.0,
) -> dict[str, np.ndarray]:
    """Predicts by REST.

    Args:
        url: of the model, with "/versions/V" or not: "http://127.0.0.1:8501/v1/models/news".
        inputs: columnar form, name -> array or nested lists.
        instances: row form instead: a list of values, or of objects {name: value}.
        signature_name: which signature to run.
        timeout: seconds to wait for the server.

    Returns:
        The outputs by name, in the types of the signature. Strings are `str` in object arrays;
        `bytes` if they are no UTF-8, or if the name ends in "_bytes". (JSON tells only the first
        size of an output that is empty.)

    Raises:
        ClientError: the server cannot be reached, or answers with an error.

    Example:
        >>> predict_rest("http://127.0.0.1:8501/v1/models/news", {"text": ["good news"]})
        {'label': array(['world'], dtype=object), 'probabilities': array([[...]], dtype=float32)}
    """
    if (inputs is None) == (instances is None):
        raise ValueError("give one of inputs and instances")
    types = signature_types_rest(url, signature_name=signature_name, timeout=timeout)
    if instances is None:
        request = {"inputs": _to_json(inputs)}
    else:
        request = {"instances": _to_json(instances)}
    request["signature_name"] = signature_name
    answer = _call_rest(f"{url}:predict", json.dumps(request).encode(), timeout)
    try:
        if "predictions" in answer:
            outputs = _read_rows(answer["predictions"], types.outputs)
        else:
            outputs = tensors.read_columns(answer["outputs"], types.outputs)
    except (ServingError, KeyError) as error:
        raise ClientError(
            f"{url} gave an answer that does not fit its signature: {error}"
        ) from None
    return _decode_strings(outputs)


def predict_grpc(
    address: str,
    model: str,
    inputs: Mapping[str, Any],
    *,
    version: int | None = None,
    signature_name: str = "serving_default",
    timeout: float = 60.0,
) -> dict[str, np.ndarray]:
    """Predicts by gRPC.

    Args:
        address: HOST:PORT of the server.
        model: name of the model.
        inputs: name -> array or nested lists; they are cast to the types of the signature.
        version: which version to ask; the newest if None.
        signature_name: which signature to run.
        timeout: seconds to wait for the server.

    Returns:
        The outputs by name, as from `predict_rest`.

    Raises:
        ClientError: the server cannot be reached, or answers with an error.
    """
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    with _channel(address) as channel:
        try:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            spec = _model_spec(model, version)
            types = _signature_types_grpc(stub, spec, signature_name, timeout)
            request = predict_pb2.PredictRequest(model_spec=spec)
            request.model_spec.signature_name = signature_name
            for name, value in inputs.items():
                array = _to_array(name, value, types.inputs.get(name))
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            response = stub.Predict(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _grpc_error(address, error) from None
    outputs = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    return _decode_strings(outputs)


def signature_types_rest(
    url: str, *, signature_name: str = "serving_default", timeout: float = 60.0
) -> SignatureTypes:
    """What a signature takes and gives, from the metadata of the model."""
    answer = _call_rest(f"{url}/metadata", None, timeout)
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    signature = _find_signature(signatures, signature_name, url)
    return SignatureTypes(
        *(
            {name: _type_name(info["dtype"]) for name, info in signature[key].items()}
            for key in ("inputs", "outputs")
        )
    )


def signature_types_grpc(
    address: str,
    model: str,
    *,
    version: int | None = None,
    signature_name: str = "serving_default",
    timeout: float = 60.0,
) -> SignatureTypes:
    """The same, by gRPC."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with _channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            spec = _model_spec(model, version)
            return _signature_types_grpc(stub, spec, signature_name, timeout)
        except grpc.RpcError as error:
            raise _grpc_error(address, error) from None


# --- REST ----------------------------------------------------------------------------------


def _call_rest(url: str, body: bytes | None, timeout: float) -> dict[str, Any]:
    """One request: POST if there is a body, else GET."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with DIRECTLY.open(request, timeout=timeout) as response:
            return json.loads(response.read().decode("utf-8", "surrogateescape"))
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")
        raise ClientError(f"{url} answered {error.code}: {_error_message(text)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ClientError(f"no answer from {url}: {reason}") from None


def _error_message(body: str) -> str:
    try:
        return " ".join(json.loads(body)["error"].split())
    except (ValueError, KeyError, TypeError, AttributeError):
        return " ".join(body.split())


def _to_json(value: Any) -> Any:
    """Arrays -> lists, bytes -> {"b64": ...}; all else as it is."""
    if isinstance(value, np.ndarray | np.generic):
        return _to_json(value.tolist())
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {name: _to_json(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(element) for element in value]
    return value


def _read_rows(rows: list[Any], types: Mapping[str, str]) -> dict[str, np.ndarray]:
    if not rows:  # nothing to read the shape from
        return tensors.read_columns(dict.fromkeys(types, []), types)
    return tensors.read_rows(rows, types)


# --- gRPC ----------------------------------------------------------------------------------


def _channel(address: str) -> "grpc.Channel":
    import grpc

    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ],
    )


def _model_spec(model: str, version: int | None) -> "model_pb2.ModelSpec":
    from tensorflow_serving.apis import model_pb2

    spec = model_pb2.ModelSpec(name=model)
    if version is not None:
        spec.version.value = version
    return spec


def _signature_types_grpc(
    stub: "prediction_service_pb2_grpc.PredictionServiceStub",
    spec: "model_pb2.ModelSpec",
    signature_name: str,
    timeout: float,
) -> SignatureTypes:
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=spec, metadata_field=["signature_def"]
    )
    response = stub.GetModelMetadata(request, timeout=timeout)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    signature = _find_signature(signatures.signature_def, signature_name, spec.name)
    return SignatureTypes(
        *(
            {name: _type_name(types_pb2.DataType.Name(info.dtype)) for name, info in infos.items()}
            for infos in (signature.inputs, signature.outputs)
        )
    )


def _grpc_error(address: str, error: Any) -> ClientError:
    code, details = error.code().name, " ".join((error.details() or "").split())
    if code == "UNAVAILABLE":
        return ClientError(f"no answer from {address}: {details}")
    return ClientError(f"{address} answered {code}: {details}")


def _to_array(name: str, value: Any, type_name: str | None) -> np.ndarray:
    """An input as an array of its type; an unknown name goes as it is, the server refuses it."""
    dtype = tensors.NUMPY_TYPES.get(type_name or "")
    try:
        return np.asarray(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ClientError(f"input {name} is no array of type {type_name}: {error}") from None


# --- both ----------------------------------------------------------------------------------


def _type_name(enum_name: str) -> str:
    """ "DT_FLOAT" -> "float"."""
    return enum_name.removeprefix("DT_").lower()


def _find_signature(signatures: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in signatures:
        raise ClientError(f"{where} has no signature {name}, only {', '.join(sorted(signatures))}")
    return signatures[name]


def _decode_strings(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bytes -> str, where they are text and the name does not say that they are bytes."""
    decoded = {}
    for name, array in sorted(outputs.items()):
        decoded[name] = array
        if array.dtype == object and not name.endswith("_bytes"):
            try:
                decoded[name] = np.vectorize(bytes.decode, otypes=[object])(array)
            except UnicodeDecodeError:
                continue
    return decoded


# --- the command ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the answers as JSON lines; gives the exit status."""
    flags = _parse_flags(arguments)
    try:
        outputs = _ask(flags)
    except ClientError as error:
        print(f"serve.client: {error}", file=sys.stderr)
        return 2
    for answer in _rows(outputs):
        print(json.dumps(_to_json(answer), ensure_ascii=False))
    return 0


def _parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="serve.client",
        description="Asks a model server and prints its answers.",
        epilog=EPILOG,
    )
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--rest", metavar="HOST:PORT", help="ask by REST")
    server.add_argument("--grpc", metavar="HOST:PORT", help="ask by gRPC")
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument("--version", type=int, help="which version to ask; else the newest")
    parser.add_argument("--signature", default="serving_default", help="which signature to run")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="value of a named input"
    )
    parser.add_argument("texts", nargs="*", help="texts, for a model with one input")
    flags = parser.parse_args(arguments)
    if bool(flags.texts) == bool(flags.input):
        parser.error("give either texts or --input NAME=VALUE")
    if any("=" not in pair for pair in flags.input):
        parser.error("--input must be NAME=VALUE")
    return flags


def _ask(flags: argparse.Namespace) -> dict[str, np.ndarray]:
    name = {"signature_name": flags.signature}
    if flags.rest:
        url = f"http://{flags.rest}/v1/models/{urllib.parse.quote(flags.model, safe='')}"
        if flags.version is not None:
            url += f"/versions/{flags.version}"
        types = signature_types_rest(url, **name)
        return predict_rest(url, _columns(flags, types.inputs), **name)
    asked = {"version": flags.version, **name}
    types = signature_types_grpc(flags.grpc, flags.model, **asked)
    return predict_grpc(flags.grpc, flags.model, _columns(flags, types.inputs), **asked)


def _columns(flags: argparse.Namespace, types: Mapping[str, str]) -> dict[str, list[Any]]:
    """The inputs of the command line, one list a name."""
    names = ", ".join(sorted(types))
    if flags.texts:
        if len(types) != 1:
            raise ClientError(f"the model takes {names}: give each as --input NAME=VALUE")
        pairs = [(names, text) for text in flags.texts]
    else:
        pairs = [tuple(pair.split("=", 1)) for pair in flags.input]
    columns: dict[str, list[Any]] = {}
    for name, text in pairs:
        if name not in types:
            raise ClientError(f"the model has no input {name}, it takes {names}")
        columns.setdefault(name, []).append(_parse_value(name, text, types[name]))
    return columns


def _parse_value(name: str, text: str, type_name: str) -> Any:
    """A string as it stands, anything else as JSON: 1.5 or [1, 2]."""
    if type_name == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise ClientError(f"input {name} is of type {type_name}, not {text!r}") from None


def _rows(outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One answer a row; a single answer if the outputs have no common batch size."""
    sizes = {array.shape[:1] for array in outputs.values()}
    if len(sizes) != 1 or sizes == {()}:
        return [dict(outputs)]
    [(batch_size,)] = sizes
    return [{name: array[row] for name, array in outputs.items()} for row in range(batch_size)]


if __name__ == "__main__":
    sys.exit(main())
