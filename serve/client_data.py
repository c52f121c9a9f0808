"""What a client sends and gets, however it travels: signatures, states, columns, JSON values."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve import tensors
from serve.client_calls import ClientError
from serve.names import DEFAULT_SIGNATURE


@dataclasses.dataclass(frozen=True)
class TensorType:
    """Type ("float", "string" ...) and shape of a tensor.

    A size that the request decides is None, as is a shape of which not even the rank is known.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension is, or may be, the batch."""
        return self.shape is None or self.shape[:1] == (None,)


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a signature takes and gives, by name; `method` is "tensorflow/serving/predict" ..."""

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]
    method: str

    @property
    def has_rows(self) -> bool:
        """Whether a batch may be cut: one row in, one row out."""
        return all(kind.has_rows for kind in (*self.inputs.values(), *self.outputs.values()))


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The signatures of the version of a model that answered."""

    model: str
    version: int
    signatures: dict[str, Signature]

    def signature(self, name: str) -> Signature:
        """One of them; "" is "serving_default".

        Raises:
            ClientError: there is none of this name.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            names = ", ".join(sorted(self.signatures))
            raise ClientError(
                "INVALID_ARGUMENT", f"{self.model} has no signature {name}, only {names}"
            )
        return self.signatures[name]


@dataclasses.dataclass(frozen=True)
class VersionState:
    """A version and its state: "START", "LOADING", "AVAILABLE", "UNLOADING" or "END"."""

    version: int
    state: str
    error_code: str
    error_message: str


def read_signatures(documents: Mapping[str, Any]) -> dict[str, Signature]:
    """Signatures from the JSON form of their SignatureDef, by name and sorted."""
    return {
        name: Signature(
            _read_types(document.get("inputs", {})),
            _read_types(document.get("outputs", {})),
            document.get("method_name", ""),
        )
        for name, document in sorted(documents.items())
        if not name.startswith("__")  # TensorFlow's own: "__saved_model_init_op"
    }


def _read_types(documents: Mapping[str, Any]) -> dict[str, TensorType]:
    types = {}
    for name, document in sorted(documents.items()):
        shape = document.get("tensor_shape", {})
        sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", [])]
        types[name] = TensorType(
            document["dtype"].removeprefix("DT_").lower(),
            None if shape.get("unknown_rank") else tuple(None if n < 0 else n for n in sizes),
        )
    return types


def read_states(document: Mapping[str, Any]) -> list[VersionState]:
    """The states from the JSON form of a GetModelStatusResponse."""
    return [
        VersionState(
            int(entry.get("version", 0)),
            entry.get("state", "UNKNOWN"),
            entry.get("status", {}).get("error_code", "OK"),
            entry.get("status", {}).get("error_message", ""),
        )
        for entry in document.get("model_version_status", [])
    ]


def dtypes(types: Mapping[str, TensorType]) -> dict[str, str]:
    """Name -> type, as `tensors` wants it."""
    return {name: kind.dtype for name, kind in types.items()}


# --- columns -------------------------------------------------------------------------------


def to_columns(inputs: Any, signature: Signature) -> dict[str, Any]:
    """Inputs by name; a bare value is that of the only one."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {only_input(signature): inputs}


def rows_to_columns(rows: Sequence[Any], signature: Signature) -> dict[str, list[Any]]:
    """Rows, each a bare value or {name: value}, as one list a name.

    Raises:
        ClientError: they do not all have the names of the first one.
    """
    if not any(isinstance(row, Mapping) for row in rows):
        return {only_input(signature): list(rows)}
    names = set(rows[0]) if isinstance(rows[0], Mapping) else set()
    if any(not isinstance(row, Mapping) or set(row) != names for row in rows):
        raise ClientError(
            "INVALID_ARGUMENT", f"every row must have the names {', '.join(sorted(names))}"
        )
    return {name: [row[name] for row in rows] for name in sorted(names)}


def only_input(signature: Signature) -> str:
    """The name of the input of a signature that has one.

    Raises:
        ClientError: it has several.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs)
        raise ClientError("INVALID_ARGUMENT", f"the model takes {names}: give each by its name")
    return next(iter(signature.inputs))


def num_rows(columns: Mapping[str, Any]) -> int | None:
    """The length that all columns have; None if they are no lists of one length."""
    lengths = {
        len(value)
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)
        else None
        for value in columns.values()
    }
    return lengths.pop() if len(lengths) == 1 else None


def cut(columns: Mapping[str, Any], rows: range) -> dict[str, Any]:
    """Some rows of columns."""
    return {name: value[rows.start : rows.stop] for name, value in columns.items()}


def check_rows(outputs: Mapping[str, np.ndarray], count: int) -> None:
    """Raises ClientError if an output does not have one row for each row that was sent."""
    for name, array in outputs.items():
        if array.shape[:1] != (count,):
            raise ClientError(
                "INVALID_ARGUMENT",
                f"output {name} has the shape {array.shape} for {count} rows: the model cannot be "
                "asked in several requests; send all in one, by batch_size=None",
            )


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of several requests as those of one.

    Raises:
        ClientError: the parts differ in more than their number of rows.
    """
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        shapes = sorted({array.shape[1:] for array in arrays})
        if len(shapes) > 1:
            raise ClientError(
                "INVALID_ARGUMENT",
                f"output {name} has rows of the shapes {shapes[0]} and {shapes[-1]}, as the batch "
                "decides: send all in one request, by batch_size=None, or ask for single rows, by "
                "predict_rows and batch_size=1",
            )
        joined[name] = np.concatenate(arrays)
    return joined


# --- values --------------------------------------------------------------------------------


def to_array(name: str, value: Any, dtype: str | None) -> np.ndarray:
    """An input as an array of its type; an unknown name goes as it is, the server refuses it."""
    try:
        return np.asarray(value, dtype=tensors.NUMPY_TYPES.get(dtype or ""))
    except (TypeError, ValueError) as error:
        raise ClientError(
            "INVALID_ARGUMENT", f"input {name} is no array of type {dtype}: {error}"
        ) from None


def decode_strings(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bytes -> str, where they are text and the name does not say that they are bytes."""
    decoded = {}
    for name, array in sorted(outputs.items()):
        decoded[name] = array
        if array.dtype == object and not name.endswith("_bytes"):
            try:
                decoded[name] = np.vectorize(bytes.decode, otypes=[object])(array)
            except UnicodeDecodeError:
                continue
    return decoded


def to_json(value: Any) -> Any:
    """Arrays -> lists, bytes -> {"b64": ...}; all else as it is."""
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {name: to_json(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(element) for element in value]
    return value
