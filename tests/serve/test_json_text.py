import json

import numpy as np
import pytest

from serve.errors import Code, ServingError
from serve.json_text import echo, format_decimal, read_document, to_bytes


def error_of(body: bytes) -> str:
    with pytest.raises(ServingError) as caught:
        read_document(body)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def test_read_document_ignores_what_follows_the_first_value():
    assert read_document(b'  {"a": 1} {"b": 2} x') == {"a": 1}


def test_read_document_takes_tokens_beyond_json():
    document = read_document(b'{"a": [NaN, Infinity, -Infinity]}')
    np.testing.assert_array_equal(document["a"], [np.nan, np.inf, -np.inf])


def test_read_document_keeps_bytes_that_are_no_utf8():
    assert to_bytes(read_document(b'{"a": "\xff\xc3\xa4"}')["a"]) == b"\xff\xc3\xa4"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n", "JSON Parse error: The document is empty. at offset: 2"),
        (b'{"instances": [1.0, x]}', "JSON Parse error: Invalid value. at offset: 20"),
        # offsets count bytes
        ('{"ä": x}'.encode(), "JSON Parse error: Invalid value. at offset: 7"),
        (b"{1: 2}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (
            b'{"a" 1}',
            "JSON Parse error: Missing a colon after a name of object member. at offset: 5",
        ),
        (
            b'{"a": [1 2]}',
            "JSON Parse error: Missing a comma or ] after an array element. at offset: 9",
        ),
        (
            b'{"a": "]\\"[" "b": 1}',
            "JSON Parse error: Missing a comma or } after an object member. at offset: 13",
        ),
        (b"[1, 2]", "JSON Value: [\n    1,\n    2\n] Is not object"),
    ],
)
def test_read_document_refuses(body: bytes, message: str):
    assert error_of(body) == message


def test_read_document_survives_deep_nesting_and_long_numbers():
    assert error_of(b'{"a": ' + b"[" * 100_000).startswith("JSON Parse error: ")
    assert error_of(b'{"a": ' + b"1" * 10_000 + b"}").startswith("JSON Parse error: ")


def test_to_bytes_refuses_half_a_surrogate_pair():
    with pytest.raises(ServingError, match="The surrogate pair in string is invalid"):
        to_bytes(json.loads('"\\ud800"'))


def test_echo_is_cut_after_256_bytes():
    assert echo({"a": 1}) == '{\n    "a": 1\n}'
    assert echo("ä" * 1000) == '"' + "ä" * 127


def test_echo_shows_decimals_without_noise():
    assert [echo(value) for value in (0.2, 1.0, 1, 1e300)] == ["0.2", "1.0", "1", "1e+300"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(2), "2.0"),
        (np.float32(-0.0), "-0.0"),
        (np.float32(0.1), "0.1"),
        (np.float32(1 / 3), "0.333333343"),
        (np.float32(16777216), "16777216.0"),
        (np.float32(9e6), "9e+06"),
        (np.float32(3e-5), "3e-05"),
        (1 / 3, "0.33333333333333331"),
        (np.float64(0.2), "0.2"),
        (np.float32("nan"), "NaN"),
        (np.float32("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
    ],
)
def test_format_decimal(value: float, text: str):
    assert format_decimal(value) == text


def test_format_decimal_gives_every_float32_back():
    bits = np.random.default_rng(7).integers(0, 2**32, 2000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    read = np.array([np.float32(format_decimal(value)) for value in values])
    np.testing.assert_array_equal(read, values)
