"""The protocol buffers that REST and gRPC share: model spec, status, signatures."""

from collections.abc import Iterable, Mapping

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
)

from serve.version_states import VersionStatus


def model_spec(name: str, version: int, signature_name: str = "") -> model_pb2.ModelSpec:
    """Which model and version answered."""
    spec = model_pb2.ModelSpec(name=name, signature_name=signature_name)
    spec.version.value = version
    return spec


def model_status(statuses: Iterable[VersionStatus]) -> get_model_status_pb2.GetModelStatusResponse:
    """The answer to a status request."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in statuses:
        entry = response.model_version_status.add(version=status.version, state=int(status.state))
        # Set also when it is the default: clients expect the field to be there.
        entry.status.error_code = int(status.code)
        entry.status.error_message = status.message
    return response


def reloaded(metric_names: Iterable[str]) -> model_management_pb2.ReloadConfigResponse:
    """The answer to a reload that went well.

    Args:
        metric_names: what the request wants to know the increase of; a reload counts nothing.
    """
    response = model_management_pb2.ReloadConfigResponse()
    response.status.SetInParent()  # OK is the default: there, but empty
    for name in metric_names:
        response.metric.add(name=name, int64_value_increase=0)
    return response


def signature_map(
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
) -> get_model_metadata_pb2.SignatureDefMap:
    """The signatures of a model; the values of their defaults are withheld."""
    response = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in signatures.items():
        response.signature_def[name].CopyFrom(signature)
        response.signature_def[name].ClearField("defaults")
    return response
