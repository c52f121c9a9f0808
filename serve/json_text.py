"""The text of JSON, as TensorFlow Serving reads it, quotes it in errors, and writes decimals.

Python's own parser reads; it is fast, and for nearly every body it does what TF Serving's parser
(RapidJSON) does. What it refuses, and what it takes although RapidJSON would not, goes through
`json_check`, which knows RapidJSON's rules and messages.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from serve.errors import ServingError, invalid_argument
from serve.json_check import check_text, skip_whitespace

MAX_ECHO_BYTES = 256
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
FEW = 16  # so few numbers are formatted one by one: numpy would take longer to begin with

# Half a surrogate pair ("\\ud800"): Python takes it, RapidJSON does not. (A backslash before it may
# mean that it is none; that a text is checked for nothing costs time only.)
HALF_PAIR = re.compile(
    r"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])", re.DOTALL
)

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _keep_the_first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of several values under one name the first counts, as in TF Serving."""
    members = dict(pairs)
    return members if len(members) == len(pairs) else dict(reversed(pairs))


def _to_float(token: str) -> float:
    number = float(token)
    if math.isinf(number):  # a word for it, such as Infinity, does not come here
        raise ValueError(token)
    return number


DECODER = json.JSONDecoder(object_pairs_hook=_keep_the_first, parse_float=_to_float)
ENCODER = json.JSONEncoder(indent=4, ensure_ascii=False)


def read_document(body: bytes) -> dict[str, Any]:
    """Parses a request body; what follows the first complete JSON value is ignored.

    Raises:
        ServingError: INVALID_ARGUMENT if the body is not JSON, or not an object.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    # Bytes that are no UTF-8 travel through as they are, by way of surrogates.
    text = body.decode("utf-8", "surrogateescape")
    start = skip_whitespace(text, 1 if text.startswith("\ufeff") else 0)
    try:
        document = _parse(text, start)
    except RecursionError:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from None
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {echo(document)} Is not object")
    return document


def _parse(text: str, start: int) -> Any:
    if "\\u" in text and HALF_PAIR.search(text):
        text = check_text(text, start)
    try:
        return DECODER.raw_decode(text, start)[0]
    except ValueError:  # a mistake in the JSON, or a number of hundreds of digits
        return DECODER.raw_decode(check_text(text, start), start)[0]


def to_bytes(text: str) -> bytes:
    """A string of a document as UTF-8; bytes of the body that were none come back as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        reason = "The surrogate pair in string is invalid."
        raise invalid_argument(f"JSON Parse error: {reason}") from None


def is_double(value: Any) -> bool:
    """Whether a value of a document is a number that TF Serving's parser keeps as a double.

    Those are the decimals, and the integers that fit neither int64 nor uint64.
    """
    if type(value) is int:
        return not -(2**63) <= value < 2**64
    return type(value) is float


def to_double(value: float) -> float:
    """A number of a document as a double.

    Raises:
        ServingError: INVALID_ARGUMENT if it is an integer beyond all doubles.
    """
    try:
        return float(value)
    except OverflowError:
        raise too_big() from None


def too_big() -> ServingError:
    """The error for a number of more than 308 digits."""
    return invalid_argument("JSON Parse error: Number too big to be stored in double.")


def echo(value: Any) -> str:
    """A JSON value as error messages show it: indented, cut after 256 bytes."""
    if is_double(value):
        value = to_double(value)
        # rounded to float32 where it fits, so that 0.2 is not shown with noise digits
        fits_float = not math.isfinite(value) or abs(value) <= LARGEST_FLOAT32
        return format_decimal(np.float32(value) if fits_float else value)
    return _cut("".join(_beginning(ENCODER.iterencode(value))).encode("utf-8", "replace"))


def _beginning(parts: Iterable[str]) -> Iterable[str]:
    """Of the parts of a text those that reach into what an error message shows."""
    size = 0
    for part in parts:
        yield part
        size += len(part)
        if size >= MAX_ECHO_BYTES:
            return


def _cut(text: bytes) -> str:
    return text[:MAX_ECHO_BYTES].decode("utf-8", "ignore")


def type_of(value: Any) -> str:
    """The name of the type of a JSON value, as error messages give it."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return names[type(value)]


def format_decimal(value: np.floating | float) -> str:
    """A float as TF Serving writes it.

    Six digits where that gives the same number back, else as many as tell every two numbers of
    the type apart (9 for float32, 17 for float64); whole numbers end in ".0", so that a reader
    can tell floats from integers.

    Example:
        >>> format_decimal(np.float32(0.1)), format_decimal(2.0), format_decimal(float("inf"))
        ('0.1', '2.0', 'Infinity')
    """
    number = float(value)
    text = f"{number:.6g}"
    if type(value)(text) != value:
        text = f"{number:.{9 if type(value) is np.float32 else 17}g}"
    return _with_point(text)


def format_decimals(values: np.ndarray) -> list[str]:
    """`format_decimal` of each element of a flat array of float32 or float64.

    Many numbers are formatted at once, which is several times as fast as one by one.
    """
    if len(values) < FEW:
        return [format_decimal(value) for value in values]
    digits = 9 if values.dtype == np.float32 else 17
    needs_all = _surely_needs_all_digits(values)
    texts = np.empty(len(values), dtype=object)
    texts[needs_all] = _format(values[needs_all], digits)
    others = values[~needs_all]
    short = _format(others, 6)
    read_back = np.fromiter(map(float, short), np.float64, len(short)).astype(values.dtype)
    for index in np.flatnonzero(read_back != others).tolist():
        short[index] = f"{others[index]:.{digits}g}"
    texts[~needs_all] = short
    return [_with_point(text) for text in texts.tolist()]


def _with_point(text: str) -> str:
    return text if "." in text or "e" in text else NOT_FINITE.get(text) or f"{text}.0"


def _surely_needs_all_digits(values: np.ndarray) -> np.ndarray:
    """For speed: where six digits are so far off that another float is nearer, for certain.

    Half the distance of two floats is at most 6e-8 of their size, except for the subnormal ones.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sizes = np.abs(values.astype(np.float64))
        scales = 10.0 ** (5 - np.floor(np.log10(sizes)))
        errors = np.abs(np.rint(sizes * scales) / scales - sizes)
        return (errors > 1e-7 * sizes) & (sizes >= np.finfo(values.dtype).tiny)


def _format(numbers: np.ndarray, digits: int) -> list[str]:
    return (f"%.{digits}g " * len(numbers) % tuple(numbers.tolist())).split()
