import json

import numpy as np
import pytest

from serve.errors import Code, ServingError
from serve.json_text import (
    echo,
    format_decimal,
    format_decimals,
    is_double,
    read_document,
    to_bytes,
    to_double,
)


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


def test_read_document_takes_what_python_does_not():
    document = read_document(b'{"a": [Inf, -Inf, -NaN, 1], "b": "Inf"}')
    np.testing.assert_array_equal(document["a"], [np.inf, -np.inf, np.nan, 1])
    assert document["b"] == "Inf"


def test_read_document_skips_a_byte_order_mark():
    assert read_document(b'\xef\xbb\xbf {"a": 1}') == {"a": 1}
    assert error_of(b"\xef\xbb\xbf {x}").endswith("at offset: 5")


def test_read_document_keeps_the_first_of_two_members():
    assert read_document(b'{"a": 1, "b": 2, "a": 3}') == {"a": 1, "b": 2}


def test_read_document_keeps_surrogate_pairs():
    assert to_bytes(read_document(rb'{"a": "\ud83d\ude00"}')["a"]) == "\U0001f600".encode()
    assert read_document(rb'{"a": "\\ud800"}') == {"a": "\\ud800"}  # a backslash, then letters


def test_read_document_survives_deep_nesting_and_long_numbers():
    for body in (b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000):
        assert error_of(b'{"a": ' + body) == "JSON Parse error: The document is nested too deeply."
    too_big = "JSON Parse error: Number too big to be stored in double. at offset: 6"
    for number in (b"1" * 10_000, b"1e999", b"-1e309", b"1" * 400 + b".5"):
        assert error_of(b'{"a": ' + number + b"}") == too_big
    assert read_document(b'{"a": 0.' + b"0" * 5000 + b"1}") == {"a": 0.0}
    assert read_document(b'{"a": 0.00001e310}') == {"a": 1e305}


def test_integers_beyond_64_bits_are_doubles():
    assert [is_double(value) for value in (2**64 - 1, -(2**63), 2**64, -(2**63) - 1, 1.0)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert echo(2**64) == "1.84467441e+19"
    with pytest.raises(ServingError, match="Number too big to be stored in double"):
        to_double(10**400)


def test_to_bytes_refuses_half_a_surrogate_pair():
    with pytest.raises(ServingError, match="The surrogate pair in string is invalid"):
        to_bytes(json.loads('"\\ud800"'))


def test_echo_is_cut_after_256_bytes():
    assert echo({"a": 1}) == '{\n    "a": 1\n}'
    assert echo("ä" * 1000) == '"' + "ä" * 127
    assert echo([[1] * 3] * 1_000_000) == json.dumps([[1] * 3] * 9, indent=4)[:256]


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


def random_floats(kind: type, count: int) -> np.ndarray:
    """All sizes, the subnormal and those that are not finite among them, and round numbers."""
    random = np.random.default_rng(7)
    bits = random.integers(0, 2 ** (8 * kind().itemsize), count, dtype=f"u{kind().itemsize}")
    rounded = np.round(random.normal(size=count), 3).astype(kind)
    whole = random.integers(-(10**8), 10**8, count).astype(kind)
    return np.concatenate([bits.view(kind), (bits >> np.uint8(10)).view(kind), rounded, whole])


@pytest.mark.parametrize(("kind", "digits"), [(np.float32, 9), (np.float64, 17)])
def test_format_decimals_are_the_shorter_of_two_forms(kind: type, digits: int):
    values = random_floats(kind, 500)
    for value, text in zip(values, format_decimals(values), strict=True):
        if not np.isfinite(value):
            assert text in ("NaN", "Infinity", "-Infinity")
            continue
        short, full = f"{value:.6g}", f"{value:.{digits}g}"
        assert text.removesuffix(".0") == (short if kind(short) == value else full)
        assert kind(text) == value
        assert "." in text or "e" in text
