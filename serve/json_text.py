"""The text of JSON, as TensorFlow Serving reads it, quotes it in errors, and writes decimals."""

import json
import math
from typing import Any

import numpy as np

from serve.errors import invalid_argument

MAX_ECHO_BYTES = 256
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def read_document(body: bytes) -> dict[str, Any]:
    """Parses a request body; what follows the first complete JSON value is ignored.

    Raises:
        ServingError: INVALID_ARGUMENT if the body is not JSON, or not an object.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    # Bytes that are no UTF-8 travel through as they are, by way of surrogates.
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    start = len(text) - len(text.lstrip(" \t\n\r"))
    try:
        document, _ = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        offset = len(to_bytes(text[: error.pos]))
        reason = _parse_error(error, text)
        raise invalid_argument(f"JSON Parse error: {reason} at offset: {offset}") from None
    except (RecursionError, ValueError) as error:
        # Python's own limits: the depth of nesting and the number of digits.
        raise invalid_argument(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {echo(document)} Is not object")
    return document


def _parse_error(error: json.JSONDecodeError, text: str) -> str:
    """The words of TF Serving's parser (RapidJSON) for an error of Python's parser."""
    if not text[error.pos :] and not text.strip(" \t\n\r"):
        return "The document is empty."
    if error.msg.startswith("Expecting ',' delimiter"):
        if _is_inside_object(text[: error.pos]):
            return "Missing a comma or } after an object member."
        return "Missing a comma or ] after an array element."
    for beginning, words in (
        ("Expecting property name", "Missing a name for object member."),
        ("Expecting ':'", "Missing a colon after a name of object member."),
        ("Unterminated string", "Missing a closing quotation mark in string."),
        ("Invalid \\uXXXX", "Incorrect hex digit after \\u escape in string."),
        ("Invalid \\escape", "Invalid escape character in string."),
        ("Invalid control character", "Invalid encoding in string."),
    ):
        if error.msg.startswith(beginning):
            return words
    return "Invalid value."


def _is_inside_object(text: str) -> bool:
    """Whether the innermost bracket that is open at the end of `text` is a curly one."""
    open_brackets = []
    in_string = is_escaped = False
    for character in text:
        if in_string:
            in_string = is_escaped or character != '"'
            is_escaped = not is_escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "{[":
            open_brackets.append(character)
        elif character in "}]":
            open_brackets.pop()
    return open_brackets[-1:] == ["{"]


def to_bytes(text: str) -> bytes:
    """A string of a document as UTF-8; bytes of the body that were none come back as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        reason = "The surrogate pair in string is invalid."
        raise invalid_argument(f"JSON Parse error: {reason}") from None


def echo(value: Any) -> str:
    """A JSON value as error messages show it: indented, cut after 256 bytes."""
    if isinstance(value, float):
        # rounded to float32 where it fits, so that 0.2 is not shown with noise digits
        fits_float = not math.isfinite(value) or abs(value) <= LARGEST_FLOAT32
        text = format_decimal(np.float32(value) if fits_float else value)
    else:
        text = json.dumps(value, indent=4, ensure_ascii=False)
    return _cut(text.encode("utf-8", "replace"))


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
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    text = f"{number:.6g}"
    if type(value)(text) != value:
        text = f"{number:.{9 if type(value) is np.float32 else 17}g}"
    return text if "." in text or "e" in text else f"{text}.0"
