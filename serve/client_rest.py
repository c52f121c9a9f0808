"""The client of REST."""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve import tensors
from serve.client_calls import AsyncioWay, BlockingWay, ClientError, Deadline, Retries
from serve.client_data import (
    Metadata,
    Signature,
    VersionState,
    decode_strings,
    dtypes,
    read_signatures,
    read_states,
    to_json,
)
from serve.client_http import AsyncHttp, BlockingHttp, Tls
from serve.client_model import ModelCalls
from serve.client_public import AsyncModelClient, ModelClient
from serve.client_wire import Choice
from serve.errors import ServingError

# HTTP status -> the code it stands for most often; 400 and 409 and 500 stand for several.
CODES: dict[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RestClient(ModelClient):
    """Asks one model by REST, blocking; threads may share it.

    Connections are kept open between calls; `close` or a `with` block ends them.

    Args:
        address: "HOST:PORT", or "https://HOST:PORT" of a proxy with TLS, a path of it included.
        model: name of the model.
        timeout: seconds that a call may take with all its requests and repeats, if the call
            itself names no other; `math.inf` is no limit.
        retries: how often and when a request that was UNAVAILABLE is sent again.
        batch_size: rows in one request; longer calls are cut. None sends all in one, but for
            `predict_rows`, which then sends each row by itself.
        max_in_flight: how many requests of one call may be under way at once.
        tls: the certificates of an https address.

    Example:
        >>> with RestClient("127.0.0.1:8501", "news") as client:
        ...     client.predict({"text": ["good news", "bad news"]})["label"]
        array(['world', 'business'], dtype=object)
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        batch_size: int | None = 32,
        max_in_flight: int = 4,
        tls: Tls | None = None,
    ) -> None:
        wire = RestWire(BlockingHttp(tls), model_url(address, model), model)
        way = BlockingWay()
        super().__init__(ModelCalls(wire, way, timeout, retries, batch_size, max_in_flight))


class AsyncRestClient(AsyncModelClient):
    """RestClient for asyncio: the same arguments; `async with`, and `await` before the calls."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        batch_size: int | None = 32,
        max_in_flight: int = 4,
        tls: Tls | None = None,
    ) -> None:
        wire = RestWire(AsyncHttp(tls), model_url(address, model), model)
        way = AsyncioWay()
        super().__init__(ModelCalls(wire, way, timeout, retries, batch_size, max_in_flight))


def model_url(address: str, model: str) -> str:
    """ "127.0.0.1:8501", "news" -> "http://127.0.0.1:8501/v1/models/news"."""
    base = address if "://" in address else f"http://{address}"
    try:
        parts = urllib.parse.urlsplit(base)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        is_address = False
    if not is_address or not base.isascii() or not base.isprintable():
        raise ValueError(f"an address of REST is HOST:PORT or http(s)://HOST:PORT, not {address!r}")
    return f"{base.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"


class RestWire:
    """Puts calls into HTTP requests and reads the answers.

    Args:
        http: sends them.
        url: of the model.
        model: its name.
    """

    def __init__(self, http: BlockingHttp | AsyncHttp, url: str, model: str) -> None:
        self.model = model
        self._http = http
        self._url = url

    async def metadata(self, choice: Choice, deadline: Deadline) -> Metadata:
        answer = await self._call("GET", f"{self._versioned(choice)}/metadata", None, deadline)
        try:
            spec, metadata = answer["model_spec"], answer["metadata"]
            signatures = read_signatures(metadata["signature_def"]["signature_def"])
            return Metadata(spec["name"], int(spec["version"]), signatures)
        except (KeyError, TypeError, ValueError) as error:
            raise self._misfit(error) from None

    async def status(self, version: int | None, deadline: Deadline) -> list[VersionState]:
        url = self._versioned(Choice(version, ""))
        return read_states(await self._call("GET", url, None, deadline))

    async def predict(
        self,
        choice: Choice,
        columns: Mapping[str, Any],
        signature_name: str,
        signature: Signature,
        deadline: Deadline,
    ) -> dict[str, Any]:
        request = {"signature_name": signature_name, "inputs": to_json(columns)}
        return await self._post(choice, "predict", request, deadline)

    async def predict_instances(
        self, choice: Choice, instances: Sequence[Any], signature_name: str, deadline: Deadline
    ) -> dict[str, Any]:
        """The row form."""
        request = {"signature_name": signature_name, "instances": to_json(instances)}
        return await self._post(choice, "predict", request, deadline)

    def read_outputs(self, answer: dict[str, Any], signature: Signature) -> dict[str, np.ndarray]:
        types = dtypes(signature.outputs)
        try:
            if answer.get("predictions"):
                outputs = tensors.read_rows(answer["predictions"], types)
            elif "predictions" in answer:  # no rows, nothing to read the shapes from
                outputs = tensors.read_columns(dict.fromkeys(types, []), types)
            else:
                outputs = tensors.read_columns(answer["outputs"], types)
        except (ServingError, KeyError, ValueError) as error:
            raise self._misfit(error) from None
        return decode_strings(outputs)

    def answered_version(self, answer: dict[str, Any]) -> int | None:
        return None  # REST does not tell

    async def classify(
        self,
        choice: Choice,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        signature_name: str,
        deadline: Deadline,
    ) -> dict[str, np.ndarray]:
        request = _examples_request(examples, context, signature_name)
        answer = await self._post(choice, "classify", request, deadline)
        try:
            pairs = answer["results"]
            classes = np.array([[label for label, _ in row] for row in pairs], dtype=object)
            scores = np.array([[score for _, score in row] for row in pairs], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self._misfit(error) from None
        return {"classes": classes, "scores": scores}

    async def regress(
        self,
        choice: Choice,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        signature_name: str,
        deadline: Deadline,
    ) -> dict[str, np.ndarray]:
        request = _examples_request(examples, context, signature_name)
        answer = await self._post(choice, "regress", request, deadline)
        try:
            return {"values": np.array(answer["results"], dtype=np.float32)}
        except (KeyError, TypeError, ValueError) as error:
            raise self._misfit(error) from None

    async def close(self) -> None:
        await self._http.close()

    def _versioned(self, choice: Choice) -> str:
        if choice.version is not None:
            return f"{self._url}/versions/{choice.version}"
        if choice.label:
            return f"{self._url}/labels/{urllib.parse.quote(choice.label, safe='')}"
        return self._url

    async def _post(
        self, choice: Choice, verb: str, request: dict[str, Any], deadline: Deadline
    ) -> dict[str, Any]:
        try:
            body = json.dumps(request).encode()
        except (TypeError, ValueError) as error:
            message = f"the inputs have no JSON form: {error}"
            raise ClientError("INVALID_ARGUMENT", message) from None
        return await self._call("POST", f"{self._versioned(choice)}:{verb}", body, deadline)

    async def _call(
        self, method: str, url: str, body: bytes | None, deadline: Deadline
    ) -> dict[str, Any]:
        status, answer = await self._http.send(method, url, body, deadline)
        if status != 200:
            message = _error_message(answer)
            code = CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "UNKNOWN")
            raise ClientError(code, message, f"{url} answered {status}: {message}")
        try:
            document = json.loads(answer.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise ClientError("UNKNOWN", str(error), f"no answer from {url}: {error}") from None
        if not isinstance(document, dict):
            raise self._misfit("it is no JSON object")
        return document

    def _misfit(self, reason: Exception | str) -> ClientError:
        message = f"{self._url} gave an answer that does not fit its signature: {reason}"
        return ClientError("INTERNAL", message)


def _examples_request(
    examples: Sequence[Mapping[str, Any]], context: Mapping[str, Any], signature_name: str
) -> dict[str, Any]:
    request = {"signature_name": signature_name, "examples": to_json(examples)}
    return request | {"context": to_json(context)} if context else request


def _error_message(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip()
