import pytest

from serve.errors import Code, ServingError
from serve.json_check import check_text


def error_of(text: str) -> str:
    with pytest.raises(ServingError) as caught:
        check_text(text, 0)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message.removeprefix("JSON Parse error: ")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"a": [], "b": {}, "c": [{}, [1, 2.5e-3, "x"], null]}',
        '["\\ud83d\\ude00", "\\n\\/\\u00e4", true, false, -0, 0.5, 1E5, 1e+5]',
        '[NaN, Infinity, -Infinity, 1, "a", [1, 2], [[], ["b" , 3]], [true]]',
        "[1] and more",
        "1",
        '"a"',
        f"[{'9' * 308}]",
    ],
)
def test_texts_that_are_left_alone(text: str):
    assert check_text(text, 0) == text


def test_words_that_python_does_not_know():
    assert check_text("[Inf,-Inf , -NaN]x", 0) == "[Infinity,-Infinity , NaN]x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The document is empty. at offset: 0"),
        ("\0", "The document is empty. at offset: 0"),
        ("x", "Invalid value. at offset: 0"),
        ("{", "Missing a name for object member. at offset: 1"),
        ("{1: 2}", "Missing a name for object member. at offset: 1"),
        ('{"a": 1,}', "Missing a name for object member. at offset: 8"),
        ('{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        ('{"a": 1 "b"', "Missing a comma or } after an object member. at offset: 8"),
        ("[1 2]", "Missing a comma or ] after an array element. at offset: 3"),
        (
            "[[1, 2], [3, 4], [5, 6] 7]",
            "Missing a comma or ] after an array element. at offset: 24",
        ),
        ("[1}", "Missing a comma or ] after an array element. at offset: 2"),
        ("[1", "Missing a comma or ] after an array element. at offset: 2"),
        ("[1,]", "Invalid value. at offset: 3"),
        # numbers
        ("[01]", "Missing a comma or ] after an array element. at offset: 2"),
        ("[-]", "Invalid value. at offset: 2"),
        ("[+1]", "Invalid value. at offset: 1"),
        ("[.5]", "Invalid value. at offset: 1"),
        ("[1.]", "Miss fraction part in number. at offset: 3"),
        ("[1.e5]", "Miss fraction part in number. at offset: 3"),
        ("[1e]", "Miss exponent in number. at offset: 3"),
        ("[1e+]", "Miss exponent in number. at offset: 4"),
        ("[0e999]", "Number too big to be stored in double. at offset: 1"),
        ("[1, -1e999]", "Number too big to be stored in double. at offset: 4"),
        (f"[{'9' * 309}]", "Number too big to be stored in double. at offset: 1"),
        # words
        ("[nul]", "Invalid value. at offset: 4"),
        ("[True]", "Invalid value. at offset: 1"),
        ("[-nan]", "Invalid value. at offset: 2"),
        ("[NAN]", "Invalid value. at offset: 2"),
        ("[Infini]", "Invalid value. at offset: 7"),
        ("[Infty]", "Missing a comma or ] after an array element. at offset: 4"),
        # strings
        ('["a', "Missing a closing quotation mark in string. at offset: 3"),
        ('["a\0"]', "Missing a closing quotation mark in string. at offset: 3"),
        ('["\t"]', "Invalid escape character in string. at offset: 2"),
        ('["ä\\x"]', "Invalid escape character in string. at offset: 4"),  # offsets count bytes
        ('["\\u12"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        ('["\\ud800"]', "The surrogate pair in string is invalid. at offset: 2"),
        ('["\\ud800\\u0041"]', "The surrogate pair in string is invalid. at offset: 2"),
        ('["\\ud800\\u41"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        ('["\\udc00"]', "The surrogate pair in string is invalid. at offset: 2"),
    ],
)
def test_texts_that_are_refused(text: str, message: str):
    assert error_of(text) == message


def test_offsets_count_bytes_that_are_no_utf8():
    text = b'["\xff\xe4" x'.decode("utf-8", "surrogateescape")
    assert error_of(text) == "Missing a comma or ] after an array element. at offset: 6"
