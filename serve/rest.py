"""The REST API of TensorFlow Serving: /v1/models/... routes, their answers and their errors.

A request in, an answer out; what moves them over the wire is `rest_server`. The content type of
a request is ignored, as TF Serving ignores it (curl sends a form's).
"""

import contextlib
import dataclasses
import http
import json
import logging
import re
import time
import urllib.parse
import zlib

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from serve import messages, tensors
from serve.errors import Code, ServingError, invalid_argument
from serve.examples import read_examples, write_classifications, write_regressions
from serve.json_text import read_document
from serve.metrics import Metrics
from serve.model_store import LARGEST_VERSION, ModelStore
from serve.names import DEFAULT_SIGNATURE
from serve.servable import Servable

# What libevent takes for a URI. TF Serving's patterns are held against path and query together:
# a query makes another name, or no request at all.
_IN_PATH = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]*"
_IN_QUERY = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*"
URI = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?"
    rf"(?P<target>(?P<path>{_IN_PATH}(?:%[0-9A-Fa-f]{{2}}{_IN_PATH})*)"
    rf"(?:\?{_IN_QUERY}(?:%[0-9A-Fa-f]{{2}}{_IN_QUERY})*)?"
    rf"(?:#{_IN_QUERY}(?:%[0-9A-Fa-f]{{2}}{_IN_QUERY})*)?)"
)
VERSION_OR_LABEL = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
POST_TARGET = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){VERSION_OR_LABEL}:(?P<verb>classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
GET_TARGET = re.compile(
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

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}

# libevent's page for what never reaches TF Serving's handlers
PAGE = (
    "<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n<H1>{phrase}</H1>\n"
    "</BODY></HTML>\n"
)

MAX_INFLATED_BYTES = 100 * 1024 * 1024
SHORTEST_GZIP_BYTES = 18  # its header and its footer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What the path of a request names; `verb` is "" for the status."""

    name: str = ""
    version: int | None = None
    label: str = ""
    verb: str = ""


NO_TARGET = Target()


class RestApi:
    """Answers requests. Any number of threads may call `answer` at once.

    Args:
        store: the models to serve.
        metrics: counts the requests.
        timeout: seconds for the model to answer a request; 0 or less is no limit.
        cors: whether answers may be read by pages from elsewhere.
        metrics_path: of Prometheus' page; None is no page.
    """

    def __init__(
        self,
        store: ModelStore,
        metrics: Metrics,
        *,
        timeout: float,
        cors: bool,
        metrics_path: str | None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._timeout = timeout if timeout > 0 else None
        self._headers = CORS_HEADERS if cors else {}
        self._metrics_path = metrics_path

    def answer(self, request: Request, body: bytes) -> Response:
        """Never raises: every error is an answer."""
        uri = URI.fullmatch(_target(request))
        if uri is None:
            return error_page(400)
        if uri["path"] == self._metrics_path:
            return self._answer_metrics(uri["target"])
        if not uri["target"].lower().startswith("/v1/"):
            return error_page(404)
        return self._answer_api(request, uri["target"], body)

    def _answer_metrics(self, target: str) -> Response:
        headers = {"Content-Type": "text/plain"}
        if target != self._metrics_path:
            message = f"Unexpected path: {target}. Should be {self._metrics_path}"
            return Response(message, 400, headers)
        return Response(self._metrics.page().encode("utf-8", "replace"), 200, headers)

    def _answer_api(self, request: Request, path: str, body: bytes) -> Response:
        started = time.perf_counter_ns()
        target, code = NO_TARGET, Code.OK
        try:
            if request.method == "OPTIONS":
                content = _answer_options(request)
            else:
                target = parse_target(request.method, path)
                content = self._dispatch(request, target, body)
        except ServingError as error:
            code, content = error.code, _error_body(error.message)
        except Exception as error:
            log.exception("%s %s failed", request.method, path)
            code, content = Code.INTERNAL, _error_body(repr(error))
        # Like TF Serving: every request is counted, only those that went well are timed.
        if code is Code.OK:
            passed = (time.perf_counter_ns() - started) // 1000
            self._metrics.request_latency.observe(passed, target.name, target.verb, "REST")
        self._metrics.request_count.add(target.name, code.name)
        return Response(content, HTTP_STATUS[code], self._headers, "application/json")

    def _dispatch(self, request: Request, target: Target, body: bytes) -> bytes:
        if request.method == "POST":
            document = read_document(inflate(request, body))
            if target.verb == "predict":
                return self._predict(target, document)
            return self._answer_examples(target, document)
        if not target.name:
            raise invalid_argument("Missing model name in request.")
        if target.verb == "metadata":
            return self._metadata(target)
        return self._status(target)

    def _predict(self, target: Target, document: dict) -> bytes:
        # The order of the checks is part of the contract:
        # the text, the signature's name, the model, the signature, the tensors.
        signature_name = tensors.read_signature_name(document)
        with self._borrow(target) as servable:
            input_types = servable.input_types(signature_name)
            if input_types is None:
                raise invalid_argument(
                    f'Serving signature name: "{signature_name or DEFAULT_SIGNATURE}" '
                    "not found in signature def"
                )
            inputs, request_format = tensors.read_inputs(document, input_types)
            outputs = servable.predict(inputs, signature_name=signature_name, timeout=self._timeout)
        return tensors.write_outputs(outputs, request_format)

    def _answer_examples(self, target: Target, document: dict) -> bytes:
        signature_name = tensors.read_signature_name(document)
        serialized = read_examples(document)
        with self._borrow(target) as servable:
            options = {"signature_name": signature_name, "timeout": self._timeout}
            if target.verb == "classify":
                return write_classifications(servable.classify(serialized, **options))
            return write_regressions(servable.regress(serialized, **options))

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
    """Takes a path (with its query, if it has one) apart.

    Raises:
        ServingError: there is nothing under this path for this method.
    """
    pattern = {"POST": POST_TARGET, "GET": GET_TARGET}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    malformed = invalid_argument(f"Malformed request: {method} {path}")
    if match is None:
        raise malformed
    verb = match["verb"] or ""
    # The pattern ignores case, what follows does not: ":PREDICT" is no verb, and "/METADATA"
    # asks for the status.
    if verb != verb.lower():
        if method == "POST":
            raise malformed
        verb = ""
    return Target(
        name=_decode(match["name"]),
        version=_to_version(match["version"]) if match["version"] else None,
        label=_decode(match["label"]),
        verb=verb,
    )


def _decode(text: str | None) -> str:
    if not text or "%" not in text:
        return text or ""
    return urllib.parse.unquote(text, errors="surrogateescape")


def _to_version(digits: str) -> int:
    # The length first: int() itself refuses thousands of digits.
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(LARGEST_VERSION)) or int(significant) > LARGEST_VERSION:
        raise invalid_argument(f"Failed to convert version: {digits} to numeric.")
    return int(significant)


def inflate(request: Request, body: bytes) -> bytes:
    """The body of a request, inflated if the request says that it is gzip.

    What cannot be inflated, or has over 100 MB when it is, is taken for an empty body, as in
    TF Serving: the client is told that the document is empty.
    """
    if not _is_gzip(request):
        return body
    size = inflated_size(request, body)
    if not size:
        return b""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with the header of gzip
    try:
        # One more than promised: a lie shows.
        inflated = inflater.decompress(body, size + 1)
    except zlib.error:
        return b""
    is_whole = inflater.eof and not inflater.unused_data and len(inflated) == size
    return inflated if is_whole else b""


def inflated_size(request: Request, body: bytes) -> int:
    """Bytes of the body when it is inflated: 0 for what is not going to be.

    A gzip body tells its size in its last four bytes. It need not be true, but no more than
    that is ever inflated.
    """
    if not _is_gzip(request):
        return len(body)
    size = int.from_bytes(body[-4:], "little")
    is_refused = len(body) < SHORTEST_GZIP_BYTES or size > MAX_INFLATED_BYTES
    return 0 if is_refused else size


def error_page(status: int) -> Response:
    """The answer to what is no request to the API at all."""
    page = PAGE.format(status=status, phrase=http.HTTPStatus(status).phrase)
    return Response(page, status, {"Content-Type": "text/html", "Connection": "close"})


def error_answer(code: Code, message: str) -> Response:
    """The API's answer to a request that is not even looked at."""
    return Response(_error_body(message), HTTP_STATUS[code], media_type="application/json")


def _target(request: Request) -> str:
    """Path and query as they were sent."""
    path, query = request.scope["raw_path"], request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def _is_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("content-encoding", "")


def _answer_options(request: Request) -> bytes:
    if re.search("https?://", request.headers.get("origin", "")):
        return b""
    raise ServingError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")


def _to_json(message: Message) -> str:
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
    )


def _error_body(message: str) -> bytes:
    # Bytes of the request that are no UTF-8 go back as they came.
    text = json.dumps({"error": message}, indent=4, ensure_ascii=False)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")
