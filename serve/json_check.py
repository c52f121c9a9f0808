"""The rules of TensorFlow Serving's JSON parser, where Python's has others.

TF Serving reads with RapidJSON 1.1.0 (its flags kParseNanAndInf and kParseStopWhenDone). Here a
text is walked through by those rules, without building values: to find what is wrong with it, in
RapidJSON's words, or to put what Python cannot read ("Inf") into what it can ("Infinity"). Slow
beside Python's parser, so that only the texts come here that need it.
"""

import re

from serve.errors import ServingError, invalid_argument

WHITESPACE = re.compile(r"[ \t\n\r]*")
PLAIN_CHARACTERS = re.compile(r'[^"\\\x00-\x1f]*')
SIMPLE_ESCAPE = re.compile(r'\\["\\/bfnrt]')
HEX_DIGITS = re.compile(r"[0-9a-fA-F]{4}")
DIGITS = re.compile(r"[0-9]*")
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
# Elements of an array with nothing odd about them, each with its comma, and lists of such: for
# speed alone they are passed over at once.
PLAIN = r"""(?>(?:-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,20})?(?:[eE]-?[0-9]{1,2})?
    |"[^"\\\x00-\x1f]*+"|true|false|null)[ \t\n\r]*+)"""
COMMA = r",[ \t\n\r]*+"
PLAIN_LIST = rf"(?>\[[ \t\n\r]*+(?:{PLAIN}{COMMA})*+{PLAIN}\][ \t\n\r]*+)"
PLAIN_ELEMENTS = re.compile(rf"(?:(?:{PLAIN}|{PLAIN_LIST}){COMMA})++", re.VERBOSE)

EMPTY = "The document is empty."
INVALID_VALUE = "Invalid value."
NO_NAME = "Missing a name for object member."
NO_COLON = "Missing a colon after a name of object member."
NO_COMMA = {
    "}": "Missing a comma or } after an object member.",
    "]": "Missing a comma or ] after an array element.",
}
NO_QUOTATION_MARK = "Missing a closing quotation mark in string."
BAD_ESCAPE = "Invalid escape character in string."
BAD_HEX = "Incorrect hex digit after \\u escape in string."
BAD_SURROGATES = "The surrogate pair in string is invalid."
NO_FRACTION = "Miss fraction part in number."
NO_EXPONENT = "Miss exponent in number."
TOO_BIG = "Number too big to be stored in double."

LARGEST_EXPONENT = 308


def skip_whitespace(text: str, position: int) -> int:
    """Where the white space that begins at a position ends."""
    match = WHITESPACE.match(text, position)
    return match.end() if match else position


def check_text(text: str, start: int) -> str:
    """Checks the first JSON value of a text.

    Args:
        text: the body of a request; bytes that are no UTF-8 stand in it as surrogates.
        start: where the value begins, white space skipped.

    Returns:
        The text, in it the words for numbers that are not finite as Python's parser knows them.

    Raises:
        ServingError: INVALID_ARGUMENT, with RapidJSON's message and the offset in bytes.
    """
    return _Check(text).run(start)


class _Check:
    """One walk through a text; each `_read` takes a position and gives the one after."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._open: list[str] = []  # what closes the brackets that are open
        self._words: list[tuple[int, int, str]] = []  # begin, end, what to put in its place

    def run(self, start: int) -> str:
        if self._at(start) in ("", "\0"):
            raise self._error(EMPTY, start)
        position: int | None = start
        while position is not None:
            position = self._next_value(self._read_value(position))
        return self._with_known_words()

    def _at(self, position: int) -> str:
        return self._text[position : position + 1]

    def _skip(self, position: int) -> int:
        return skip_whitespace(self._text, position)

    def _error(self, reason: str, position: int) -> ServingError:
        offset = len(self._text[:position].encode("utf-8", "surrogateescape"))
        return invalid_argument(f"JSON Parse error: {reason} at offset: {offset}")

    def _read_value(self, position: int) -> int:
        """Reads a scalar, or opens brackets up to the first scalar in them."""
        while self._at(position) in ("{", "["):
            closing = "}" if self._at(position) == "{" else "]"
            position = self._skip(position + 1)
            if self._at(position) == closing:
                return position + 1
            self._open.append(closing)
            if closing == "}":
                position = self._read_name(position)
            else:
                position = self._end_of(PLAIN_ELEMENTS, position)
        if self._at(position) == '"':
            return self._read_string(position)
        for word in ("null", "true", "false"):
            if self._at(position) == word[0]:
                return self._read_word(word, position)
        return self._read_number(position)

    def _next_value(self, position: int) -> int | None:
        """Closes brackets up to where the next value begins; None at the end of the document."""
        while self._open:
            position = self._skip(position)
            character = self._at(position)
            if character == ",":
                position = self._skip(position + 1)
                return self._read_name(position) if self._open[-1] == "}" else position
            if character != self._open[-1]:
                raise self._error(NO_COMMA[self._open[-1]], position)
            self._open.pop()
            position += 1
        return None

    def _read_name(self, position: int) -> int:
        if self._at(position) != '"':
            raise self._error(NO_NAME, position)
        position = self._skip(self._read_string(position))
        if self._at(position) != ":":
            raise self._error(NO_COLON, position)
        return self._skip(position + 1)

    def _read_string(self, position: int) -> int:
        position += 1
        while True:
            position = self._end_of(PLAIN_CHARACTERS, position)
            character = self._at(position)
            if character == '"':
                return position + 1
            if character == "\\":
                position = self._read_escape(position)
            elif character in ("", "\0"):
                raise self._error(NO_QUOTATION_MARK, position)
            else:
                raise self._error(BAD_ESCAPE, position)  # a control character: so it is called

    def _read_escape(self, position: int) -> int:
        if SIMPLE_ESCAPE.match(self._text, position):
            return position + 2
        if not self._text.startswith("\\u", position):
            raise self._error(BAD_ESCAPE, position)
        code = self._read_hex(position + 2, position)
        if not 0xD800 <= code <= 0xDFFF:
            return position + 6
        is_pair = code <= 0xDBFF and self._text.startswith("\\u", position + 6)
        if not is_pair or not 0xDC00 <= self._read_hex(position + 8, position) <= 0xDFFF:
            raise self._error(BAD_SURROGATES, position)
        return position + 12

    def _read_hex(self, position: int, escape: int) -> int:
        match = HEX_DIGITS.match(self._text, position)
        if not match:
            raise self._error(BAD_HEX, escape)
        return int(match[0], 16)

    def _read_number(self, start: int) -> int:
        if not INTEGER.match(self._text, start):
            return self._read_not_finite(start)
        position = self._end_of(INTEGER, start)
        num_decimals = 0
        if self._at(position) == ".":
            num_decimals = self._end_of(DIGITS, position + 1) - position - 1
            position += 1 + num_decimals
            if not num_decimals:
                raise self._error(NO_FRACTION, position)
        if self._at(position) in ("e", "E"):
            position += 2 if self._at(position + 1) in ("+", "-") else 1
            sign, begin = self._at(position - 1), position
            position = self._end_of(DIGITS, begin)
            if position == begin:
                raise self._error(NO_EXPONENT, position)
            exponent = self._text[begin:position].lstrip("0")[:9] or "0"
            if sign != "-" and int(exponent) > LARGEST_EXPONENT + num_decimals:
                raise self._error(TOO_BIG, start)
        if abs(float(self._text[start:position])) == float("inf"):
            raise self._error(TOO_BIG, start)
        return position

    def _read_not_finite(self, start: int) -> int:
        position = start + 1 if self._at(start) == "-" else start
        minus = "-" if position > start else ""
        if self._at(position) == "N":
            end = self._read_word("NaN", position)
            self._words.append((start, end, "NaN"))
            return end
        if self._at(position) != "I":
            raise self._error(INVALID_VALUE, position)
        end = self._read_word("Inf", position)
        if self._at(end) == "i":
            end = self._read_word("inity", end)
        self._words.append((start, end, f"{minus}Infinity"))
        return end

    def _read_word(self, word: str, position: int) -> int:
        for character in word:
            if self._at(position) != character:
                raise self._error(INVALID_VALUE, position)
            position += 1
        return position

    def _end_of(self, pattern: re.Pattern[str], position: int) -> int:
        match = pattern.match(self._text, position)
        return match.end() if match else position

    def _with_known_words(self) -> str:
        if not self._words:
            return self._text
        parts, end_before = [], 0
        for begin, end, word in self._words:
            parts += [self._text[end_before:begin], word]
            end_before = end
        return "".join((*parts, self._text[end_before:]))
