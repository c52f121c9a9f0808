"""Servers made to fail in known ways, for the tests of the clients."""

import http.server
import json
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)


def signature_json(dtype: str = "DT_INT32", rows: str = "-1") -> dict[str, Any]:
    tensor = {"dtype": dtype, "tensor_shape": {"dim": [{"size": rows, "name": ""}]}}
    return {"inputs": {"x": tensor}, "outputs": {"y": tensor}, "method_name": "predict"}


class ScriptedHttp:
    """y = x, over HTTP; `script` has what is done instead, request by request.

    A step is (status, body), "close" (the connection, unanswered), "hang" or "trickle".
    """

    def __init__(self, port: int = 0) -> None:
        self.signature = signature_json()
        self.script: list[Any] = []
        self.posts: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.connections: set[Any] = set()
        self.most_at_once = 0
        self.answer: Callable[[dict[str, Any]], Any] = lambda body: {"outputs": body["inputs"]["x"]}
        self.is_over = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:  # noqa: N802
                scripted.note(self)
                signatures = {"signature_def": {"serving_default": scripted.signature}}
                spec = {"name": "m", "version": "7", "signature_name": ""}
                self.reply(200, {"model_spec": spec, "metadata": {"signature_def": signatures}})

            def do_POST(self) -> None:  # noqa: N802
                scripted.note(self)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with scripted.at_work(body):
                    step = scripted.script.pop(0) if scripted.script else None
                    self.take(step, body)

            def take(self, step: Any, body: dict[str, Any]) -> None:
                if step is None:
                    self.reply(200, scripted.answer(body))
                elif step == "hang":
                    scripted.is_over.wait(20)
                elif step == "close":
                    self.close_connection = True
                elif step == "trickle":
                    self.send_response(200)
                    self.send_header("Content-Length", "100000")
                    self.end_headers()
                    while not scripted.is_over.wait(0.02):
                        self.wfile.write(b" ")
                else:
                    self.reply(*step)

            def reply(self, status: int, document: Any) -> None:
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: Any) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None: ...  # clients that go away

        self._server = Server(("127.0.0.1", port), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def note(self, handler: Any) -> None:
        self.connections.add(handler.client_address)
        self.paths.append(handler.path)

    def at_work(self, body: dict[str, Any]) -> "ScriptedHttp":
        self.posts.append(body)
        return self

    def __enter__(self) -> None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._at_once -= 1

    @property
    def metadata_count(self) -> int:
        return sum(path.endswith("/metadata") for path in self.paths)

    def stop(self) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class ScriptedGrpc(prediction_service_pb2_grpc.PredictionServiceServicer):
    """y = x, over gRPC; `script` has the codes that come instead, or "hang"."""

    def __init__(self) -> None:
        self.version = 7
        self.dtype = "DT_INT32"
        self.script: list[Any] = []
        self.requests: list[Any] = []
        self.metadata_count = 0
        self.is_over = threading.Event()

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.requests.append(request)
        step = self.script.pop(0) if self.script else None
        if step == "hang":
            self.is_over.wait(20)
        elif step is not None:
            context.abort(step, "as the script says")
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        response.model_spec.version.value = self.version
        response.outputs["y"].CopyFrom(request.inputs["x"])
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.metadata_count += 1
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        response.model_spec.version.value = self.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        document = {"signature_def": {"serving_default": signature_json(self.dtype)}}
        json_format.ParseDict(document, signatures)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.requests.append(request)
        response = classification_pb2.ClassificationResponse()
        kind = request.input.WhichOneof("kind")
        for _ in getattr(request.input, kind).examples:
            classes = response.result.classifications.add().classes
            classes.add(label="gut", score=0.75)
            classes.add(label="schläft", score=0.25)
        return response

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.requests.append(request)
        response = regression_pb2.RegressionResponse()
        for example in request.input.example_list.examples:
            response.result.regressions.add(
                value=example.features.feature["x"].float_list.value[0] / 2
            )
        return response


def start_grpc(
    service: ScriptedGrpc, port: int = 0, *, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.Server, str]:
    """A running server and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    return server, f"127.0.0.1:{port}"
