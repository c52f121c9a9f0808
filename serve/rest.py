"""The REST API of TensorFlow Serving: /v1/models/... routes, their answers and their errors.

An ASGI application on raw bodies: the content type is ignored, as TF Serving ignores it (curl
sends a form's). Requests run in threads; the event loop only reads and writes.
"""

import contextlib
import dataclasses
import json
import logging
import re
import urllib.parse
import zlib

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from serve import messages, tensors
from serve.errors import Code, ServingError, invalid_argument
from serve.json_text import read_document
from serve.model_store import LARGEST_VERSION, ModelStore
from serve.servable import DEFAULT_SIGNATURE, Servable

VERSION_OR_LABEL = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
POST_PATH = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){VERSION_OR_LABEL}:(?P<verb>classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
GET_PATH = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{VERSION_OR_LABEL}(?:/(?P<verb>metadata))?",
    re.IGNORECASE | re.ASCII,
)

HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.DATA_LOSS: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

MAX_INFLATED_BYTES = 100 * 1024 * 1024

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """What the path of a request names; `verb` is "" for the status."""

    name: str
    version: int | None
    label: str
    verb: str


class RestApi:
    """The ASGI application.

    Args:
        store: the models to serve.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        response = await run_in_threadpool(self._answer, request, body)
        await response(scope, receive, send)

    def _answer(self, request: Request, body: bytes) -> Response:
        # The path as it was sent: names are percent-decoded only after it is taken apart.
        path = request.scope["raw_path"].decode("latin-1")
        if not path.lower().startswith("/v1/"):
            return PlainTextResponse("Not Found", status_code=404)
        try:
            if request.method == "OPTIONS":
                return _answer_options(request, path)
            target = parse_target(request.method, path)
            if request.headers.get("content-encoding", "").lower() == "gzip":
                body = inflate(body)
            return _json_response(self._dispatch(request.method, target, body))
        except ServingError as error:
            return _error_response(error)
        except Exception as error:
            log.exception("%s %s failed", request.method, path)
            return _error_response(ServingError(Code.INTERNAL, repr(error)))

    def _dispatch(self, method: str, target: Target, body: bytes) -> bytes:
        if method == "POST":
            if target.verb == "predict":
                return self._predict(target, body)
            raise ServingError(
                Code.UNIMPLEMENTED, f"this local server does not answer :{target.verb} yet"
            )
        if not target.name:
            raise invalid_argument("Missing model name in request.")
        if target.verb == "metadata":
            return self._metadata(target)
        return self._status(target)

    def _predict(self, target: Target, body: bytes) -> bytes:
        # The order of the checks is part of the contract:
        # the text, the signature's name, the model, the signature, the tensors.
        document = read_document(body)
        signature_name = tensors.read_signature_name(document)
        with self._borrow(target) as servable:
            input_types = servable.input_types(signature_name)
            if input_types is None:
                raise invalid_argument(
                    f'Serving signature name: "{signature_name or DEFAULT_SIGNATURE}" '
                    "not found in signature def"
                )
            inputs, request_format = tensors.read_inputs(document, input_types)
            outputs = servable.predict(inputs, signature_name=signature_name)
        return tensors.write_outputs(outputs, request_format)

    def _status(self, target: Target) -> bytes:
        # A label is not looked at here: TF Serving answers with all versions.
        statuses = self._store.status(target.name, version=target.version)
        return _to_json(messages.model_status(statuses)).encode()

    def _metadata(self, target: Target) -> bytes:
        with self._borrow(target) as servable:
            model_spec = _to_json(messages.model_spec(target.name, servable.version))
            signatures = _to_json(messages.signature_map(servable.signatures))
        # TF Serving too puts its text together from two, to have names, not an Any, inside.
        return (
            f'{{\n"model_spec":{model_spec},\n"metadata": {{"signature_def": {signatures}}}\n}}\n'
        ).encode()

    def _borrow(self, target: Target) -> contextlib.AbstractContextManager[Servable]:
        return self._store.borrow(target.name, version=target.version, label=target.label)


def parse_target(method: str, path: str) -> Target:
    """Takes a path apart.

    Raises:
        ServingError: there is nothing under this path for this method.
    """
    pattern = {"POST": POST_PATH, "GET": GET_PATH}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    malformed = invalid_argument(f"Malformed request: {method} {path}")
    if match is None:
        raise malformed
    verb = match["verb"] or ""
    # The pattern ignores case, what follows does not: ":PREDICT" is no verb.
    if method == "POST" and verb != verb.lower():
        raise malformed
    return Target(
        name=urllib.parse.unquote(match["name"] or ""),
        version=_to_version(match["version"]) if match["version"] else None,
        label=urllib.parse.unquote(match["label"] or ""),
        verb=verb,
    )


def _to_version(digits: str) -> int:
    # The length first: int() itself refuses thousands of digits.
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(LARGEST_VERSION)) or int(significant) > LARGEST_VERSION:
        raise invalid_argument(f"Failed to convert version: {digits} to numeric.")
    return int(significant)


def inflate(body: bytes) -> bytes:
    """Unpacks a gzip body, up to 100 MB."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with the header of gzip
    try:
        inflated = inflater.decompress(body, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise invalid_argument(f"the gzip body cannot be inflated: {error}") from None
    if not inflater.eof:
        raise invalid_argument("the gzip body is cut off, or over 100 MB when inflated")
    return inflated


def _answer_options(request: Request, path: str) -> Response:
    if re.match("https?://", request.headers.get("origin", "")):
        return Response(status_code=200)
    return _error_response(invalid_argument(f"Malformed request: OPTIONS {path}"))


def _to_json(message: Message) -> str:
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
    )


def _json_response(body: bytes, status_code: int = 200) -> Response:
    return Response(body, status_code=status_code, media_type="application/json")


def _error_response(error: ServingError) -> Response:
    text = json.dumps({"error": error.message}, indent=4, ensure_ascii=False)
    return _json_response(text.encode("utf-8", "replace"), HTTP_STATUS[error.code])
