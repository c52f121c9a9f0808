"""The messages of PredictionService: a request and a servable -> the answer.

What the service and the warm-up, which replays requests, have in common. Which model a request
names is not looked at here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serve import messages
from serve.errors import invalid_argument
from serve.grpc_tensors import read_tensor, write_tensor
from serve.names import DEFAULT_SIGNATURE
from serve.servable import Servable


def predict(
    servable: Servable,
    request: predict_pb2.PredictRequest,
    *,
    timeout: float | None = None,
    write: Callable[[np.ndarray], tensor_pb2.TensorProto] = write_tensor,
) -> predict_pb2.PredictResponse:
    """Answers Predict; `write` puts each output into its message."""
    outputs = servable.predict(
        _Inputs(request.inputs),
        signature_name=request.model_spec.signature_name,
        output_filter=request.output_filter,
        timeout=timeout,
    )
    response = predict_pb2.PredictResponse(model_spec=_spec(servable, request.model_spec))
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(write(array))
    return response


class _Inputs(Mapping[str, np.ndarray]):
    """The inputs of a request, each read when it is asked for.

    In TensorFlow Serving the checks of the signature and of the number of inputs come before.
    """

    def __init__(self, protos: Mapping[str, tensor_pb2.TensorProto]) -> None:
        self._protos = protos

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._protos:  # else protobuf would add it
            raise KeyError(name)
        return read_tensor(name, self._protos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._protos)

    def __len__(self) -> int:
        return len(self._protos)


def classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    *,
    timeout: float | None = None,
) -> classification_pb2.ClassificationResponse:
    """Answers Classify."""
    spec = request.model_spec
    outputs = servable.classify(
        read_input(request.input), signature_name=spec.signature_name, timeout=timeout
    )
    return classification_pb2.ClassificationResponse(
        model_spec=_spec(servable, spec), result=write_classifications(outputs)
    )


def regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    *,
    timeout: float | None = None,
) -> regression_pb2.RegressionResponse:
    """Answers Regress."""
    spec = request.model_spec
    values = servable.regress(
        read_input(request.input), signature_name=spec.signature_name, timeout=timeout
    )
    return regression_pb2.RegressionResponse(
        model_spec=_spec(servable, spec), result=write_regressions(values)
    )


def multi_inference(
    servable: Servable,
    request: inference_pb2.MultiInferenceRequest,
    *,
    timeout: float | None = None,
) -> inference_pb2.MultiInferenceResponse:
    """Answers MultiInference."""
    _check_model_names(request.tasks)
    tasks = [(task.model_spec.signature_name, task.method_name) for task in request.tasks]
    results = servable.multi_inference(read_input(request.input), tasks, timeout=timeout)
    response = inference_pb2.MultiInferenceResponse()
    for task, result in zip(request.tasks, results, strict=True):
        answer = response.results.add(model_spec=_spec(servable, task.model_spec))
        if isinstance(result, np.ndarray):
            answer.regression_result.CopyFrom(write_regressions(result))
        else:
            answer.classification_result.CopyFrom(write_classifications(result))
    return response


def read_input(message: input_pb2.Input) -> list[bytes]:
    """The examples of a request, serialised; a context is put in front of each of them.

    One after the other, two serialised messages are the two merged.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        return []
    examples = getattr(message, kind)
    context = examples.context.SerializeToString() if kind.endswith("with_context") else b""
    return [context + example.SerializeToString() for example in examples.examples]


def write_classifications(
    outputs: dict[str, np.ndarray],
) -> classification_pb2.ClassificationResult:
    """Classes and scores, (batch, number of classes); what is not there stays empty."""
    shape = next(iter(outputs.values())).shape
    labels = outputs["classes"] if "classes" in outputs else np.full(shape, b"", dtype=object)
    scores = outputs["scores"] if "scores" in outputs else np.zeros(shape, np.float32)
    result = classification_pb2.ClassificationResult()
    flat_scores = iter(scores.ravel().tolist())
    for row in labels.tolist():
        classes = result.classifications.add().classes
        for label in row:
            # The field is text: bytes that are no UTF-8 must not break the answer.
            classes.add(label=label.decode("utf-8", "replace"), score=next(flat_scores))
    return result


def write_regressions(values: np.ndarray) -> regression_pb2.RegressionResult:
    """One value an example, (batch,)."""
    result = regression_pb2.RegressionResult()
    for value in values.tolist():
        result.regressions.add(value=value)
    return result


def _check_model_names(tasks: Sequence[inference_pb2.InferenceTask]) -> None:
    if not tasks:
        raise invalid_argument("ModelSpec has no name specified.")
    for task in tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )


def _spec(servable: Servable, requested: model_pb2.ModelSpec) -> model_pb2.ModelSpec:
    signature_name = requested.signature_name or DEFAULT_SIGNATURE
    return messages.model_spec(requested.name, servable.version, signature_name)
