"""Asks a model server by REST or by gRPC, blocking or in asyncio; all give the same arrays.

The server may be this project's or tensorflow_model_server. `python -m serve.client --help`
tells of the command. REST needs only numpy and httpcore; gRPC and its stubs, which bring
TensorFlow with them, are imported when they are first used.

Example:
    >>> with RestClient("127.0.0.1:8501", "news") as client:
    ...     client.predict({"text": ["good news"]})
    {'label': array(['world'], dtype=object), 'probabilities': array([[...]], dtype=float32)}
"""

import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.client_calls import (
    BlockingWay,
    ClientError,
    Deadline,
    Retries,
    run_blocking,
    send_repeatedly,
)
from serve.client_command import main
from serve.client_data import Metadata, Signature, TensorType, VersionState
from serve.client_grpc import AsyncGrpcClient, GrpcClient
from serve.client_http import BlockingHttp, Tls
from serve.client_model import ModelCalls
from serve.client_public import AsyncModelClient, ModelClient
from serve.client_rest import AsyncRestClient, RestClient, RestWire
from serve.client_wire import Choice
from serve.names import DEFAULT_SIGNATURE

__all__ = [
    "AsyncGrpcClient",
    "AsyncModelClient",
    "AsyncRestClient",
    "ClientError",
    "GrpcClient",
    "Metadata",
    "ModelClient",
    "RestClient",
    "Retries",
    "Signature",
    "TensorType",
    "Tls",
    "VersionState",
    "main",
    "predict_grpc",
    "predict_rest",
]

NEWEST = Choice(None, "")


def predict_rest(
    url: str,
    inputs: Mapping[str, Any] | None = None,
    *,
    instances: Sequence[Any] | None = None,
    signature_name: str = DEFAULT_SIGNATURE,
    timeout: float = 60.0,
) -> dict[str, np.ndarray]:
    """Predicts by REST, in one request and on a connection of its own.

    Args:
        url: of the model, with "/versions/V" or not: "http://127.0.0.1:8501/v1/models/news".
        inputs: columnar form, name -> array or nested lists.
        instances: row form instead: a list of values, or of objects {name: value}.
        signature_name: which signature to run.
        timeout: seconds to wait for the answer.

    Returns:
        The outputs by name, as from `RestClient.predict`.

    Raises:
        ClientError: the server cannot be reached, or answers with an error.

    Example:
        >>> predict_rest("http://127.0.0.1:8501/v1/models/news", {"text": ["good news"]})
        {'label': array(['world'], dtype=object), 'probabilities': array([[...]], dtype=float32)}
    """
    if (inputs is None) == (instances is None):
        raise ValueError("give one of inputs and instances")
    url = urllib.parse.quote(url.rstrip("/"), safe=":/[]%@")
    wire = RestWire(BlockingHttp(None), url, url.rsplit("/", 1)[-1])
    try:
        if instances is not None:
            return run_blocking(_predict_instances(wire, instances, signature_name, timeout))
        calls = ModelCalls(wire, BlockingWay(), timeout, Retries(), None, 1)
        return run_blocking(calls.predict(inputs, signature_name, NEWEST, None))
    finally:
        run_blocking(wire.close())


async def _predict_instances(
    wire: RestWire, instances: Sequence[Any], signature_name: str, timeout: float
) -> dict[str, np.ndarray]:
    rules = {"deadline": Deadline(timeout), "retries": Retries(), "way": BlockingWay()}
    deadline = rules["deadline"]
    metadata = await send_repeatedly(lambda: wire.metadata(NEWEST, deadline), **rules)
    signature = metadata.signature(signature_name)
    answer = await send_repeatedly(
        lambda: wire.predict_instances(NEWEST, instances, signature_name, deadline), **rules
    )
    return wire.read_outputs(answer, signature)


def predict_grpc(
    address: str,
    model: str,
    inputs: Mapping[str, Any],
    *,
    version: int | None = None,
    signature_name: str = DEFAULT_SIGNATURE,
    timeout: float = 60.0,
) -> dict[str, np.ndarray]:
    """Predicts by gRPC, in one request and on a connection of its own.

    Args:
        address: HOST:PORT of the server.
        model: name of the model.
        inputs: name -> array or nested lists; they are cast to the types of the signature.
        version: which version to ask; the newest if None.
        signature_name: which signature to run.
        timeout: seconds to wait for the answer.

    Returns:
        The outputs by name, as from `GrpcClient.predict`.

    Raises:
        ClientError: the server cannot be reached, or answers with an error.
    """
    with GrpcClient(address, model, timeout=timeout, batch_size=None) as client:
        return client.predict(inputs, version=version, signature_name=signature_name)


if __name__ == "__main__":
    sys.exit(main())
