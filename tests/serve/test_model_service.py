from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
)

from serve.errors import Code, ServingError
from serve.grpc_server import NUM_SIDE_THREADS, GrpcServer
from serve.metrics import Metrics
from serve.model_config import ModelConfig
from serve.model_service import ModelService
from serve.model_store import ModelStore


class Nothing:
    """A model for what asks of no model anything."""

    def close(self) -> None: ...


def load(name: str, path: Path, version: int) -> Nothing:
    if (path / "broken").exists():
        raise ServingError(Code.DATA_LOSS, "it is broken")
    return Nothing()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    """The model half, with version 1."""
    (tmp_path / "half" / "1").mkdir(parents=True)
    store = ModelStore(
        [ModelConfig("half", tmp_path / "half")],
        load=load,  # pyright: ignore[reportArgumentType]
        poll_seconds=0.02,
        max_num_load_retries=0,
    )
    store.start()
    store.wait_until_available()
    yield store
    store.stop()


@pytest.fixture
def stub(store: ModelStore) -> Iterator[model_service_pb2_grpc.ModelServiceStub]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield model_service_pb2_grpc.ModelServiceStub(channel)
    server.stop(None).wait()


def status_request(text: str) -> get_model_status_pb2.GetModelStatusRequest:
    return text_format.Parse(text, get_model_status_pb2.GetModelStatusRequest())


def reload_request(*models: str, **fields) -> model_management_pb2.ReloadConfigRequest:
    request = model_management_pb2.ReloadConfigRequest(**fields)
    request.config.model_config_list.SetInParent()
    for model in models:
        text_format.Parse(model, request.config.model_config_list.config.add())
    return request


def listed(base_path: Path, *, name: str = "", more: str = 'model_platform: "tensorflow"') -> str:
    return f'name: "{name or base_path.name}" base_path: "{base_path}" {more}'


def error_of(call: Callable, *request, **keywords) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*request, **keywords)
    error = caught.value
    return f"{error.code().name}: {error.details()}"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "spec",
    [
        'name: "half"',
        'name: "half" version { value: 1 }',
        'name: "half" version_label: "no such label"',  # it counts for nothing here
    ],
)
def test_status(stub, spec: str):
    response = stub.GetModelStatus(status_request(f"model_spec {{ {spec} }}"))
    assert text_format.MessageToString(response) == (
        "model_version_status {\n  version: 1\n  state: AVAILABLE\n  status {\n  }\n}\n"
    )


@pytest.mark.parametrize(
    ("request_text", "error"),
    [
        ("", "INVALID_ARGUMENT: Missing ModelSpec"),
        ('model_spec { name: "no" }', "NOT_FOUND: Could not find any versions of model no"),
        ("model_spec { }", "NOT_FOUND: Could not find any versions of model "),
        (
            'model_spec { name: "half" version { value: 2 } }',
            "NOT_FOUND: Could not find version 2 of model half",
        ),
    ],
)
def test_status_errors(stub, request_text: str, error: str):
    assert error_of(stub.GetModelStatus, status_request(request_text)) == error


def test_the_status_of_a_version_that_failed(stub, tmp_path: Path, wait_until):
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "broken").touch()
    (tmp_path / "next").rename(tmp_path / "half" / "2")
    request = status_request('model_spec { name: "half" version { value: 2 } }')
    every = status_request('model_spec { name: "half" }')
    wait_until(lambda: "END" in str(stub.GetModelStatus(every)))
    [status] = stub.GetModelStatus(request).model_version_status
    assert status.status.error_code == Code.DATA_LOSS
    assert status.status.error_message == "it is broken"


def test_reload(stub, store: ModelStore, tmp_path: Path):
    (tmp_path / "mail" / "3").mkdir(parents=True)
    request = reload_request(listed(tmp_path / "mail"), metric_names=["/a", "/b"])
    response = stub.HandleReloadConfigRequest(request)
    assert response.HasField("status")
    assert (response.status.error_code, response.status.error_message) == (Code.OK, "")
    metrics = [(metric.name, metric.int64_value_increase) for metric in response.metric]
    assert metrics == [("/a", 0), ("/b", 0)]
    assert store.models() == ["mail"]
    with store.borrow("mail", version=3):
        pass  # it was waited for
    label = 'model_platform: "tensorflow" version_labels { key: "x" value: 3 }'
    request = reload_request(listed(tmp_path / "mail", more=label))
    stub.HandleReloadConfigRequest(request)
    with store.borrow("mail", label="x"):
        pass
    stub.HandleReloadConfigRequest(reload_request())
    assert store.models() == []


NOT_A_LIST = (
    "INVALID_ARGUMENT: ServerModelConfig type not supported by HandleReloadConfigRequest. "
    "Only ModelConfigList is currently supported"
)


def test_reload_of_another_kind(stub, store: ModelStore):
    request = model_management_pb2.ReloadConfigRequest()
    assert error_of(stub.HandleReloadConfigRequest, request) == NOT_A_LIST
    request.config.custom_model_config.SetInParent()
    assert error_of(stub.HandleReloadConfigRequest, request) == NOT_A_LIST
    assert store.models() == ["half"]


def test_reloads_that_are_refused(stub, store: ModelStore, tmp_path: Path, caplog):
    half = tmp_path / "half"
    label = 'model_platform: "tensorflow" version_labels { key: "stable" value: 7 }'
    for models, error in [
        (
            [listed(half), listed(half)],
            "INVALID_ARGUMENT: Illegal to list model half multiple times in config list",
        ),
        (
            [listed(half, more='model_platform: "torch"')],
            "INVALID_ARGUMENT: Illegal to change a model's platform. For model half platform was "
            "tensorflow and new platform requested is torch",
        ),
        (
            [listed(half, name="new", more='model_platform: "torch"')],
            "INVALID_ARGUMENT: Model new requests unsupported platform torch",
        ),
        (
            [listed(half, more=label)],
            "FAILED_PRECONDITION: Request to assign label to version 7 of model half, which is "
            "not currently available for inference",
        ),
    ]:
        assert error_of(stub.HandleReloadConfigRequest, reload_request(*models)) == error
        assert error.partition(": ")[2] in caplog.text
    assert store.models() == ["half"]
    with store.borrow("half"):
        pass


def test_reload_of_a_broken_model(stub, tmp_path: Path):
    (tmp_path / "mail" / "1").mkdir(parents=True)
    (tmp_path / "mail" / "1" / "broken").touch()
    request = reload_request(listed(tmp_path / "half"), listed(tmp_path / "mail"))
    assert error_of(stub.HandleReloadConfigRequest, request) == (
        "UNKNOWN: 1 model(s) did not become available: {{{name: mail version: 1} due to error: "
        "DATA_LOSS: it is broken}, }"
    )


def test_a_client_that_goes_away_is_not_waited_for(
    stub, store: ModelStore, tmp_path: Path, wait_until
):
    # The server has two threads for requests: both wait, then both are free again.
    for call in wait_for_nothing(stub, store, tmp_path, 2, wait_until):
        call.cancel()
    stub.HandleReloadConfigRequest(reload_request(listed(tmp_path / "half")), timeout=10)
    assert store.models() == ["half"]


def test_reloads_that_wait_hold_up_nothing(store: ModelStore, tmp_path: Path, wait_until):
    """More of them than there are threads for status and health; nor does the end wait for them."""
    server = GrpcServer(store, Metrics(), 0, health=True)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        calls = wait_for_nothing(stub, store, tmp_path, NUM_SIDE_THREADS + 1, wait_until)
        status = status_request('model_spec { name: "half" }')
        assert stub.GetModelStatus(status, timeout=10).model_version_status
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(), timeout=10).status
        server.stop()
        errors = [error_of(call.result) for call in calls]
    assert errors == ["CANCELLED: The server is stopping"] * len(calls)


def wait_for_nothing(
    stub, store: ModelStore, tmp_path: Path, num_calls: int, wait_until
) -> list[grpc.Future]:
    """Reloads that wait, each for one model more, of which none has a version."""
    calls, models = [], []
    for number in range(num_calls):
        models.append(listed(tmp_path / f"nowhere{number}"))
        calls.append(stub.HandleReloadConfigRequest.future(reload_request(*models)))
        wait_until(lambda: len(store.models()) == len(models) and "nowhere0" in store.models())
    return calls
