"""The signature of a model: what is fed and fetched for a request, and what may come of it.

The checks, their order and the texts of their messages are TensorFlow Serving's. All that does not
depend on the request is worked out once, when the model is loaded.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serve.errors import Code, ServingError, invalid_argument
from serve.grpc_tensors import read_tensor
from serve.names import shape_text, short_type

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


class Signature:
    """One signature of a loaded model.

    Args:
        definition: from the MetaGraphDef.
        check_method_name: whether classify and regress insist on the method name; it is of no
            use with what TensorFlow 2 exports, whose signatures all say "predict".
    """

    def __init__(
        self, definition: meta_graph_pb2.SignatureDef, *, check_method_name: bool = False
    ) -> None:
        self.definition = definition
        self._check_method_name = check_method_name
        inputs = sorted(definition.inputs.items())
        self.input_types = {name: type_name(info.dtype) for name, info in inputs}
        self._feed_names = {name: info.name for name, info in inputs}
        self._outputs = {name: info.name for name, info in sorted(definition.outputs.items())}

    @functools.cached_property
    def _defaults(self) -> dict[str, np.ndarray]:
        defaults = self.definition.defaults
        return {name: read_tensor(name, defaults[name]) for name in sorted(defaults)}

    def feeds(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Name of the fed tensor -> value, for a predict request; see also `check_types`.

        Raises:
            ServingError: the inputs do not fit.
        """
        if self._check_method_name:
            self._check_predict_method()
        if len(inputs) != len(self._feed_names):
            self._check_input_count(inputs)
        feeds = {}
        num_used = 0
        for name, feed_name in self._feed_names.items():
            array = inputs.get(name)
            if array is None:
                array = self._default(name, inputs)
            else:
                num_used += 1
            feeds[feed_name] = array
        if num_used != len(inputs):
            used = ",".join(sorted(set(inputs) & set(self._feed_names)))
            raise invalid_argument(
                f"Inputs contains invalid name. Used request inputs: {used}, "
                f"request input: {','.join(sorted(inputs))}"
            )
        return feeds

    def check_types(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Raises a ServingError unless the types of `feeds` are right.

        TensorFlow Serving leaves that to the run: whatever else is wrong is told before.
        """
        for index, (name, feed_name) in enumerate(self._feed_names.items()):
            expected, received = self.input_types[name], type_name(feeds[feed_name].dtype)
            if expected != received:
                raise invalid_argument(
                    f"Expects arg[{index}] to be {expected} but {received} is provided"
                )

    def fetches(self, output_filter: Sequence[str] = ()) -> dict[str, str]:
        """Name of an output -> name of its tensor; of all outputs if the filter is empty.

        Raises:
            ServingError: the filter has a name that is no output, or has one twice.
        """
        if not output_filter:
            return self._outputs
        fetches: dict[str, str] = {}
        for name in output_filter:
            if name not in self._outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {name} Outputs expected to be "
                    f"in the set {_braced(self._outputs)}."
                )
            if name in fetches:
                raise invalid_argument(f"duplicate output tensor alias: {name}")
            fetches[name] = self._outputs[name]
        return fetches

    def classify(self) -> tuple[str, dict[str, str]]:
        """The tensor that takes the examples, and "classes" and/or "scores" -> its tensor.

        Raises:
            ServingError: the signature does not classify.
        """
        self._check_example_method("classification", CLASSIFY)
        if len(self._outputs) not in (1, 2):
            raise invalid_argument(
                f"Expected one or two output Tensors, found {len(self._outputs)}"
            )
        input_name = self._examples_input("classification")
        fetches = {
            name: self._outputs[name] for name in ("classes", "scores") if name in self._outputs
        }
        if not fetches:
            raise invalid_argument(
                'Expected classification signature outputs to contain at least one of "classes" '
                f'or "scores". Signature was: {self.definition}'
            )
        return input_name, fetches

    def regress(self) -> tuple[str, dict[str, str]]:
        """The tensor that takes the examples, and "outputs" -> its tensor.

        Raises:
            ServingError: the signature does not regress.
        """
        self._check_example_method("regression", REGRESS)
        if len(self._outputs) != 1:
            raise invalid_argument("Expected one output Tensor.")
        input_name = self._examples_input("regression")
        if "outputs" not in self._outputs:
            raise invalid_argument(
                f"No regression outputs found in SignatureDef: {self.definition}"
            )
        return input_name, self._outputs

    def _check_predict_method(self) -> None:
        method = self.definition.method_name
        if method not in (PREDICT, CLASSIFY, REGRESS):
            raise ServingError(
                Code.INTERNAL,
                "Expected prediction signature method_name to be one of "
                f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {method}",
            )

    def _check_example_method(self, kind: str, expected: str) -> None:
        if self._check_method_name and self.definition.method_name != expected:
            raise invalid_argument(
                f"Expected {kind} signature method_name to be {expected}. "
                f"Was: {self.definition.method_name}"
            )
        if len(self._feed_names) != 1:
            raise invalid_argument("Expected one input Tensor.")

    def _examples_input(self, kind: str) -> str:
        if "inputs" not in self._feed_names:
            raise invalid_argument(f"No {kind} inputs found in SignatureDef: {self.definition}")
        return self._feed_names["inputs"]

    def _check_input_count(self, inputs: Mapping[str, np.ndarray]) -> None:
        if len(inputs) < len(self._feed_names) and self.definition.defaults:
            return
        sent, known = set(inputs), set(self._feed_names)
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({_braced(sent)}) != len({_braced(known)}). "
            f"Sent extra: {_braced(sent - known)}. "
            f"Missing but required: {_braced(known - sent)}."
        )

    def _default(self, name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        if name not in self._defaults:
            raise invalid_argument(
                f"Signature input alias: {name}(feed name: {self._feed_names[name]}) not found in "
                "request and no default value provided. Inputs expected to be in the request "
                f"{_braced(inputs)}, or default input alias set: {','.join(self._defaults)}"
            )
        return self._defaults[name]


def check_classification(outputs: Mapping[str, np.ndarray], num_examples: int) -> None:
    """Raises a ServingError unless "classes" and "scores", as far as they are there, fit.

    They are (batch, number of classes), of strings and of float32.
    """
    for name, expected in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        array = outputs.get(name)
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(
                f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array.shape)}"
            )
        if _enum_name(array) != expected:
            raise invalid_argument(
                f"Expected {name} Tensor of {expected}. Got: {_enum_name(array)}"
            )
        if len(array) != num_examples:
            raise invalid_argument(
                f"Expected {name} output batch size of {num_examples}. Got: {len(array)}"
            )
    widths = [array.shape[1] for array in outputs.values()]
    if len(set(widths)) > 1:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). "
            f"Got {outputs['classes'].shape[1]} vs. {outputs['scores'].shape[1]}"
        )


def check_regression(output: np.ndarray, num_examples: int) -> None:
    """Raises a ServingError unless the output is float32, (batch,) or (batch, 1)."""
    if not (output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {shape_text(output.shape)}"
        )
    if len(output) != num_examples:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {num_examples} vs. {len(output)}"
        )
    if output.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_enum_name(output)}")


@functools.cache
def type_name(dtype: int | np.dtype | tf.DType) -> str:
    """TensorFlow's short name of a type, as it stands in messages: "float", not "float32"."""
    return short_type(tf.as_dtype(dtype).name)


def _enum_name(array: np.ndarray) -> str:
    return types_pb2.DataType.Name(tf.as_dtype(array.dtype).as_datatype_enum)


def _braced(names: set[str] | Mapping) -> str:
    return "{" + ",".join(sorted(names)) + "}"
