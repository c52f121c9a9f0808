"""One loaded version of a model: its graph in a session, its signatures, and what it answers.

The graph runs as it does in TensorFlow Serving: in a session, from the names of the tensors
that the signature gives. (`tf.saved_model.load` would refuse ranks that TF Serving accepts and
would always compute every output.)
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from serve.errors import Code, ServingError, invalid_argument
from serve.metrics import Metrics
from serve.names import DEFAULT_SIGNATURE
from serve.signatures import (
    CLASSIFY,
    REGRESS,
    Signature,
    check_classification,
    check_regression,
)

RUNTIME = "TF1"  # as TF Serving calls its sessions in runtime_latency


class Session(Protocol):
    """What runs the graph: a ModelSession, or one that batches."""

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        *,
        timeout: float | None = None,
    ) -> list[np.ndarray]: ...

    def close(self) -> None: ...


class Servable:
    """A SavedModel in memory. Any number of threads may use it at once.

    Args:
        version: the number of its folder.
        session: runs the graph.
        signatures: from the MetaGraphDef.
        name: of the model, for the metrics.
        metrics: count the runs and the examples; None counts for nobody.
        check_method_names: TF Serving's --enable_signature_method_name_check.
    """

    def __init__(
        self,
        version: int,
        session: Session,
        signatures: Mapping[str, meta_graph_pb2.SignatureDef],
        *,
        name: str = "",
        metrics: Metrics | None = None,
        check_method_names: bool = False,
    ) -> None:
        self.version = version
        self.signatures = signatures
        self._session = session
        self._name = name
        self._metrics = metrics or Metrics()
        self._signatures = {
            key: Signature(definition, check_method_name=check_method_names)
            for key, definition in signatures.items()
        }

    def input_types(self, signature_name: str) -> dict[str, str] | None:
        """Name -> type of the inputs of a signature ("" is the default); None if it is absent."""
        signature = self._signatures.get(signature_name or DEFAULT_SIGNATURE)
        return signature and signature.input_types

    def predict(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        signature_name: str = "",
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
            inputs: one array a name; strings are object arrays of bytes. Inputs for which the
                signature has a default may be left out.
            signature_name: "" is "serving_default".
            output_filter: names of the outputs to compute; all when empty.
            timeout: seconds; None waits for ever.

        Raises:
            ServingError: the inputs do not fit, or an operation of the graph fails.
        """
        signature_name = signature_name or DEFAULT_SIGNATURE
        signature = self._signatures.get(signature_name)
        if signature is None:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.'
            )
        feeds = signature.feeds(inputs)
        fetches = signature.fetches(output_filter)
        signature.check_types(feeds)
        return self._run("Predict", feeds, fetches, timeout)

    def classify(
        self, examples: Sequence[bytes], *, signature_name: str = "", timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Classifies examples.

        Args:
            examples: serialised tf.train.Example.
            signature_name: "" is "serving_default".
            timeout: seconds; None waits for ever.

        Returns:
            "classes" (batch, number of classes) of bytes and/or "scores", as float32.

        Raises:
            ServingError: the signature does not classify, or an operation fails.
        """
        input_name, fetches = self._example_signature(signature_name).classify()
        outputs = self._run("Classify", _feed(input_name, examples), fetches, timeout)
        self._count(examples)
        check_classification(outputs, len(examples))
        return outputs

    def regress(
        self, examples: Sequence[bytes], *, signature_name: str = "", timeout: float | None = None
    ) -> np.ndarray:
        """Gives each example a number: (batch,) of float32; else as `classify`."""
        input_name, fetches = self._example_signature(signature_name).regress()
        outputs = self._run("Regress", _feed(input_name, examples), fetches, timeout)
        self._count(examples)
        check_regression(outputs["outputs"], len(examples))
        return outputs["outputs"].ravel()

    def multi_inference(
        self,
        examples: Sequence[bytes],
        tasks: Sequence[tuple[str, str]],
        *,
        timeout: float | None = None,
    ) -> list[dict[str, np.ndarray] | np.ndarray]:
        """Classifies and regresses the same examples in one run of the graph.

        Args:
            examples: serialised tf.train.Example.
            tasks: (signature name, method name), no signature twice.
            timeout: seconds; None waits for ever.

        Returns:
            For each task what `classify` or `regress` would give.

        Raises:
            ServingError: a task cannot be run, or an operation fails.
        """
        plans = self._plans(tasks)
        input_names = {input_name for input_name, _ in plans}
        if len(input_names) > 1:
            raise invalid_argument("Input tensor must be the same for all Signatures.")
        tensors = {tensor: tensor for _, fetches in plans for tensor in fetches.values()}
        feed = _feed(min(input_names), examples)
        values = self._run("MultiInference", feed, dict(sorted(tensors.items())), timeout)
        self._count(examples)
        results: list[dict[str, np.ndarray] | np.ndarray] = []
        for (_, method), (_, fetches) in zip(tasks, plans, strict=True):
            outputs = {name: values[tensor] for name, tensor in fetches.items()}
            if method == CLASSIFY:
                check_classification(outputs, len(examples))
                results.append(outputs)
            else:
                check_regression(outputs["outputs"], len(examples))
                results.append(outputs["outputs"].ravel())
        return results

    def close(self) -> None:
        """Frees the memory. No request may be running."""
        self._session.close()

    def _example_signature(self, name: str) -> Signature:
        name = name or DEFAULT_SIGNATURE
        if name not in self._signatures:
            raise invalid_argument(f"No signature was found with the name: {name}")
        return self._signatures[name]

    def _plans(self, tasks: Sequence[tuple[str, str]]) -> list[tuple[str, dict[str, str]]]:
        """For each task the tensor to feed and the tensors to fetch."""
        plans: dict[str, tuple[str, dict[str, str]]] = {}
        for name, method in tasks:
            name = name or DEFAULT_SIGNATURE
            if name in plans:
                raise invalid_argument(f"Duplicate evaluation of signature: {name}")
            if name not in self._signatures:
                raise invalid_argument(f"Requested signature not found in model graph: {name}")
            signature = self._signatures[name]
            if method == CLASSIFY:
                plans[name] = signature.classify()
            elif method == REGRESS:
                plans[name] = signature.regress()
            else:
                raise ServingError(
                    Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method}"
                )
        return list(plans.values())

    def _run(
        self,
        api: str,
        feeds: Mapping[str, np.ndarray],
        fetches: Mapping[str, str],
        timeout: float | None,
    ) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        results = self._session.run(feeds, tuple(fetches.values()), timeout=timeout)
        microseconds = (time.perf_counter() - start) * 1e6
        self._metrics.runtime_latency.observe(microseconds, self._name, api, RUNTIME)
        return dict(zip(fetches, results, strict=True))

    def _count(self, examples: Sequence[bytes]) -> None:
        self._metrics.request_example_counts.observe(len(examples), self._name)
        self._metrics.request_example_count_total.add(self._name, amount=len(examples))


def _feed(input_name: str, examples: Sequence[bytes]) -> dict[str, np.ndarray]:
    if not examples:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(examples), dtype=object)
    array[:] = examples
    return {input_name: array}
