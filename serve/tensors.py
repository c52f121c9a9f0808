"""TensorFlow Serving's JSON, in both directions: a parsed document <-> named numpy arrays.

Types are called by TensorFlow's own names ("float", "int32", "string" ...), as they stand in
the error messages. Strings are object arrays of `bytes`. The order of the checks and the texts
of the messages are those of tensorflow_serving/util/json_tensor.cc. Knows no TensorFlow, so
that the client can use it too.
"""

import base64
import binascii
import enum
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from serve.errors import Code, ServingError, invalid_argument
from serve.json_text import echo, format_decimals, is_double, to_bytes, to_double, type_of
from serve.names import shape_text, short_type

NUMPY_TYPES: dict[str, type] = {
    "float": np.float32,
    "double": np.float64,
    "half": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "string": np.object_,
}

# An integer token must fit the range of its row here. The narrow types are only held to int32:
# what is too large for them wraps round, as it does in TF Serving.
INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "int8": (-(2**31), 2**31 - 1),
    "uint8": (-(2**31), 2**31 - 1),
    "int16": (-(2**31), 2**31 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}

# The largest integer token that a float holds without loss: all bits of the mantissa set.
LARGEST_EXACT_INTEGERS = {"float": 2**24 - 1, "double": 2**53 - 1}

MAX_RANK = 64  # numpy's; TensorFlow's own is 254
INDENT = "    "
ESCAPE = re.compile(r"\\(?:u[0-9a-f]{4}|.)")


class Format(enum.Enum):
    """The two forms of a predict request, named by their key; the answer takes the same form."""

    ROW = "instances"
    COLUMNAR = "inputs"


# --- document -> tensors -------------------------------------------------------------------


def read_signature_name(document: Mapping[str, Any]) -> str:
    """The "signature_name" of a request, "" if it names none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {echo(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def read_inputs(
    document: Mapping[str, Any], input_types: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], Format]:
    """The input tensors of a predict request.

    Args:
        document: the parsed body.
        input_types: name -> type of the inputs of the signature, e.g. {"text": "string"}.

    Raises:
        ServingError: the request does not fit the signature.
    """
    if not input_types:
        name = read_signature_name(document) or "DEFAULT"
        raise invalid_argument(f"Failed to get input map for signature: {name}")
    if "instances" in document and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {echo(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist"
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid_argument(
                f"JSON Value: {echo(document)} Expecting 'instances' to be an list/array"
            )
        if not instances:
            raise invalid_argument(f"JSON Value: {echo(document)} No values in 'instances' array")
        return read_rows(instances, input_types), Format.ROW
    if "inputs" in document:
        return read_columns(document["inputs"], input_types), Format.COLUMNAR
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def read_columns(value: Any, types: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Columnar form: one tensor a name, or the bare tensor if there is but one name."""
    if not _is_named(value):
        if len(types) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input "
                "tensors required as per tensorinfo_map"
            )
        [(name, type_name)] = types.items()
        return {name: _read_tensor(value, type_name)}
    tensors = {}
    for name, type_name in sorted(types.items()):
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        tensors[name] = _read_tensor(value[name], type_name)
    return tensors


def read_rows(rows: list[Any], types: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Row form: a list of items of one shape; the batch dimension is put in front of it."""
    if not isinstance(rows[0], dict) and len(types) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input "
            "tensors required as per tensorinfo_map"
        )
    return _read_plain_rows(rows, types) or _read_row_by_row(rows, types)


def _read_plain_rows(rows: list[Any], types: Mapping[str, str]) -> dict[str, np.ndarray] | None:
    """All rows at once; None if they are not all alike, so that each must be looked at."""
    if not isinstance(rows[0], dict):
        columns = {min(types): rows}
    elif "b64" in types or any(type(row) is not dict or row.keys() != types.keys() for row in rows):
        return None
    else:
        columns = {name: [row[name] for row in rows] for name in types}
    tensors = {}
    for name, column in columns.items():
        tensor = _read_plain(column, types[name])
        if tensor is None:
            return None
        tensors[name] = tensor
    return tensors


def _read_row_by_row(rows: list[Any], types: Mapping[str, str]) -> dict[str, np.ndarray]:
    rows_are_named = _is_named(rows[0])
    items: dict[str, list[np.ndarray]] = {}
    for index, row in enumerate(rows):
        if _is_named(row) != rows_are_named:
            expected, got = ("object", "list") if rows_are_named else ("value/list", "object")
            raise invalid_argument(
                f"Expecting {expected} but got {got} at item {index} of input list"
            )
        if rows_are_named:
            _add_named_row(row, index, types, items)
        else:
            _add_item(row, min(types), types, items, f"Failed to process element: {index}")
    return {name: np.stack(arrays) for name, arrays in items.items()}  # (batch, ...)


def _add_named_row(
    row: dict[str, Any], index: int, types: Mapping[str, str], items: dict[str, list[np.ndarray]]
) -> None:
    for name, value in row.items():
        _add_item(value, name, types, items, f"Failed to process element: {index} key: {name}")
    if row.keys() != types.keys():
        raise invalid_argument(
            f"Failed to process element: {index} of 'instances' list. JSON object: {echo(row)} "
            f"keys must be equal to: {','.join(sorted(types))}"
        )


def _add_item(
    value: Any,
    name: str,
    types: Mapping[str, str],
    items: dict[str, list[np.ndarray]],
    failure: str,
) -> None:
    """Appends the tensor of one row to those of the rows before it, which it must resemble."""
    try:
        if name not in types:
            raise invalid_argument(f"JSON object: does not have named input: {name}")
        tensor = _read_tensor(value, types[name])
        first = items.setdefault(name, [tensor])[0]
        if first is tensor:
            return
        if first.size != tensor.size:
            raise invalid_argument(f"Expecting tensor size: {first.size} but got: {tensor.size}")
        if first.shape != tensor.shape:
            raise invalid_argument(
                f"Expecting shape {shape_text(first.shape)} but got: {shape_text(tensor.shape)}"
            )
        items[name].append(tensor)
    except ServingError as error:
        raise invalid_argument(
            f"{failure} of 'instances' list. Error: {error.code.name}: {error.message}"
        ) from None


def _is_named(value: Any) -> bool:
    """Whether a value is an object of named tensors, and not a {"b64": ...} string."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _read_tensor(value: Any, type_name: str) -> np.ndarray:
    """Nested lists of any depth -> an array; its shape is read off the first elements."""
    tensor = _read_plain(value, type_name)
    if tensor is not None:
        return tensor
    shape = _first_shape(value)
    if len(shape) > MAX_RANK:
        raise invalid_argument(f"lists are nested {len(shape)} deep, expected at most {MAX_RANK}")
    convert = _converter(type_name)
    flat: list[Any] = []
    _flatten(value, 0, shape, convert, flat)
    return _to_array(flat, type_name).reshape(shape)


def _first_shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _read_plain(value: Any, type_name: str) -> np.ndarray | None:
    """Regular nested lists of values of the type itself -> an array, without a loop in Python.

    None for all else: it may still be a tensor, but each value must be looked at.
    """
    shape = _first_shape(value)
    if not 0 < len(shape) < MAX_RANK:  # below: rows are one dimension less than their tensor
        return None
    flat = value
    for size in shape[1:]:
        if set(map(type, flat)) - {list} or set(map(len, flat)) - {size}:
            return None
        flat = list(itertools.chain.from_iterable(flat))
    kinds = set(map(type, flat))
    if type_name == "string" and kinds <= {str}:
        array = _to_array([to_bytes(text) for text in flat], type_name)
    elif type_name == "bool" and kinds <= {bool}:
        array = _to_array(flat, type_name)
    elif type_name in INTEGER_RANGES and kinds <= {int}:
        array = _to_integers(flat, type_name)
    elif type_name in LARGEST_EXACT_INTEGERS and kinds <= {int, float}:
        array = _to_decimals(flat, kinds, type_name)
    else:
        return None
    return None if array is None else array.reshape(shape)


def _to_integers(flat: list[int], type_name: str) -> np.ndarray | None:
    smallest, largest = INTEGER_RANGES[type_name]
    if flat and not (smallest <= min(flat) and max(flat) <= largest):
        return None
    return _to_array(flat, type_name)


def _to_decimals(flat: list[float], kinds: set[type], type_name: str) -> np.ndarray | None:
    """None if a number might lose precision; integers and decimals have limits of their own."""
    try:
        numbers = np.array(flat, dtype=np.float64)
    except OverflowError:
        return None
    finite = np.abs(numbers[np.isfinite(numbers)])
    largest = finite.max(initial=0.0)
    if largest > np.finfo(NUMPY_TYPES[type_name]).max:
        return None
    if int in kinds and largest > LARGEST_EXACT_INTEGERS[type_name]:
        return None
    return numbers.astype(NUMPY_TYPES[type_name])


def _flatten(
    value: Any, level: int, shape: Sequence[int], convert: Callable[[Any], Any], flat: list[Any]
) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise invalid_argument(
                f"JSON Value: {echo(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {rank}"
            )
        flat.append(convert(value))
        return
    if level >= rank:
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for element in value:
        _flatten(element, level + 1, shape, convert, flat)


def _to_array(flat: list[Any], type_name: str) -> np.ndarray:
    if type_name == "string":
        array = np.empty(len(flat), dtype=object)  # by hand: numpy would make fixed-width bytes
        array[:] = flat
        return array
    if type_name in ("int8", "uint8", "int16"):
        return np.array(flat, dtype=np.int32).astype(NUMPY_TYPES[type_name])
    # An empty list of a type that JSON cannot write still has a shape.
    return np.array(flat, dtype=NUMPY_TYPES.get(type_name, np.float32))


def _converter(type_name: str) -> Callable[[Any], Any]:
    """The function that checks one JSON value and converts it for a type."""
    if type_name == "string":
        return _to_string
    if type_name == "bool":
        return _to_bool
    if type_name in LARGEST_EXACT_INTEGERS:
        return lambda value: _to_decimal(value, type_name)
    if type_name in INTEGER_RANGES:
        return lambda value: _to_integer(value, type_name)
    return lambda value: _refuse(value, type_name)


def _to_string(value: Any) -> bytes:
    if isinstance(value, dict):
        return decode_base64(value)
    if not isinstance(value, str):
        raise _type_error(value, "string")
    return to_bytes(value)


def decode_base64(value: dict[str, Any]) -> bytes:
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {echo(value)} not formatted correctly for base64 data")
    digits = "".join(value["b64"].split()).rstrip("=")
    padding = "=" * (-len(digits) % 4)  # may be left out in the request
    try:
        return base64.b64decode(digits + padding, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _type_error(value, "bool")
    return value


def _to_integer(value: Any, type_name: str) -> int:
    smallest, largest = INTEGER_RANGES[type_name]
    if type(value) is not int or not smallest <= value <= largest:
        raise _type_error(value, type_name)
    return value


def _to_decimal(value: Any, type_name: str) -> float:
    if type(value) not in (int, float):
        raise _type_error(value, type_name)
    if is_double(value):
        value = to_double(value)
        largest = float(np.finfo(NUMPY_TYPES[type_name]).max)
        is_lossless = abs(value) <= largest or not math.isfinite(value)
    else:
        is_lossless = abs(value) <= LARGEST_EXACT_INTEGERS[type_name]
    if not is_lossless:
        raise invalid_argument(
            f"Cannot convert JSON value: {echo(value)} to {type_name} without loss of precision."
        )
    return value


def _refuse(value: Any, type_name: str) -> Any:
    if isinstance(value, dict):
        raise _type_error(value, type_name)
    raise ServingError(
        Code.UNIMPLEMENTED, f"Conversion of JSON Value: {echo(value)} to type: {type_name}"
    )


def _type_error(value: Any, type_name: str) -> ServingError:
    return invalid_argument(
        f"JSON Value: {echo(value)} Type: {type_of(value)} is not of expected type: {type_name}"
    )


# --- tensors -> JSON text ------------------------------------------------------------------


def write_outputs(outputs: Mapping[str, np.ndarray], request_format: Format) -> bytes:
    """The body of the answer, in the form of the request and laid out as TF Serving does.

    Raises:
        ServingError: a tensor has no JSON form, or (row form) there is no common batch size.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    outputs = dict(sorted(outputs.items()))
    if request_format is Format.ROW:
        key, value = "predictions", _write_rows(outputs)
    else:
        key, value = "outputs", _write_columns(outputs)
    text = f'{{\n{INDENT}"{key}": {value}\n}}'
    return text.encode("utf-8", "surrogateescape")


def _write_columns(outputs: Mapping[str, np.ndarray]) -> str:
    level = 1 if len(outputs) == 1 else 2
    members = {}
    for name, array in outputs.items():
        texts = _write_values(name, array, level + array.ndim)
        [members[name]] = _nest(texts, 1, array.shape, level, one_line=False)
    return members[name] if len(members) == 1 else _write_object(members, 1)


def _write_rows(outputs: Mapping[str, np.ndarray]) -> str:
    batch_size = _batch_size(outputs)
    level = 2 if len(outputs) == 1 else 3
    columns = []
    for name, array in outputs.items():
        texts = _write_values(name, array, level + array.ndim - 1)
        columns.append(_nest(texts, batch_size, array.shape[1:], level, one_line=True))
    if len(columns) == 1:
        return write_single_line_rows(columns[0])
    rows = [
        _write_object(dict(zip(outputs, values, strict=True)), 2)
        for values in zip(*columns, strict=True)
    ]
    return _write_list(rows, 1)


def write_single_line_rows(rows: list[str]) -> str:
    """A list that opens and goes on in one line and closes in its own: so it is in TF Serving."""
    return f"[{', '.join(rows)}\n{INDENT}]" if rows else "[]"


def _batch_size(outputs: Mapping[str, np.ndarray]) -> int:
    batch_size = -1
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information")
        if batch_size not in (-1, len(array)):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} "
                f"expecting: {batch_size}"
            )
        batch_size = len(array)
    return batch_size


def _write_values(name: str, array: np.ndarray, level: int) -> list[str]:
    """The text of each element, row by row; `level` is the depth of nesting they stand at.

    Strings of an output named *_bytes go as base64.
    """
    kind, flat = array.dtype, array.ravel()
    if kind.kind == "O":
        write = _write_base64 if name.endswith("_bytes") else write_string
        return [write(value, level) for value in flat.tolist()]
    if kind in (np.float32, np.float64):
        return format_decimals(flat)
    if kind == np.bool_:
        return ["true" if value else "false" for value in flat.tolist()]
    if kind.name in INTEGER_RANGES:
        return list(map(str, flat.tolist()))
    raise invalid_argument(f"Failed to write JSON value for tensor type: {short_type(kind.name)}")


def _nest(
    texts: list[str], count: int, shape: Sequence[int], level: int, *, one_line: bool
) -> list[str]:
    """Brackets around the texts of `count` arrays of one shape, each of which stands at `level`."""
    for axis in reversed(range(len(shape))):
        size, num_lists = shape[axis], count * math.prod(shape[:axis])
        slices = (texts[index * size : (index + 1) * size] for index in range(num_lists))
        if one_line:
            texts = [f"[{', '.join(elements)}]" for elements in slices]
        else:
            texts = [_write_list(elements, level + axis) for elements in slices]
    return texts


def _write_list(elements: list[str], level: int) -> str:
    if not elements:
        return "[]"
    separator = ",\n" + INDENT * (level + 1)
    return f"[{separator[1:]}{separator.join(elements)}\n{INDENT * level}]"


def _write_object(members: Mapping[str, str], level: int) -> str:
    separator = ",\n" + INDENT * (level + 1)
    lines = separator.join(f"{encode_basestring(name)}: {value}" for name, value in members.items())
    return f"{{{separator[1:]}{lines}\n{INDENT * level}}}"


def write_string(value: bytes, level: int = 0) -> str:
    """A string in quotation marks; bytes that are no UTF-8 become surrogates for a while."""
    text = encode_basestring(value.decode("utf-8", "surrogateescape"))
    if "\\u" in text:  # as TF Serving writes control characters: \u001B, not \u001b
        return ESCAPE.sub(_with_capital_digits, text)
    return text


def _with_capital_digits(escape: re.Match[str]) -> str:
    is_code = escape[0].startswith("\\u")
    return "\\u" + escape[0][2:].upper() if is_code else escape[0]


def _write_base64(value: bytes, level: int) -> str:
    return _write_object({"b64": f'"{base64.b64encode(value).decode("ascii")}"'}, level)
