"""One JSON object of studies, read a study at a time: ReXGradient's metadata, ReXrank's test files.

Such a file has hundreds of MB, so it is never held whole. A record that is malformed or too large costs only
itself: its end is found by its brackets. Every number comes out as its text (an id keeps its digits, and none
is too long to convert) and literal NaN as None; bytes that are no UTF-8 come out as lone surrogates, which
`Study` refuses by field.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from unirg.cohort.corpora import source
from unirg.errors import UserError

CHUNK = 2**20
MAX_RECORD = 4 * 2**20
"""Characters. A real record has a few thousand."""

_SPACE = re.compile(r"[ \t\r\n]*")
# Possessive: hundreds of thousands of escapes are one match, without a stack to go back on.
_TO_MARK = re.compile(r'[^{}\[\],"]*+')
_TO_QUOTE = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
# strict=False: a raw line break within a report's text is accepted.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None, strict=False)


@dataclass(frozen=True)
class Unreadable:
    """A record that is no JSON, or too large."""

    reason: str


def records(
    root: str, relative: str, label: str, decoder: json.JSONDecoder = _DECODER
) -> Iterator[tuple[str, Any]]:
    """(key, value or `Unreadable`) of the file's object, in its order, with bounded memory.

    Args:
        decoder: another one for who needs numbers and NaN as they stand.

    Raises:
        FileNotFoundError: there is none.
        UserError: the file is not one JSON object in UTF-8, or is cut off; or the storage failed.
    """
    read = 0
    try:
        with source.opened(root, relative, label) as file:
            for item in _Buffer(file, decoder).members():
                read += 1
                yield item
    except _Broken:
        raise UserError(
            f"{label}: not one JSON object in UTF-8, or cut off after {read} studies; fetch the file again"
        ) from None


class _Broken(Exception):
    """The object itself, not one of its records, cannot be read."""


class _Buffer:
    """The text from `position` on that was read and not yet passed over."""

    def __init__(self, file: IO[bytes], values: json.JSONDecoder) -> None:
        self._file, self._values = file, values
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._ended = False
        self._text = ""
        self._position = 0
        self._grow()
        self._text = self._text.removeprefix("\ufeff")

    def members(self) -> Iterator[tuple[str, Any]]:
        self._expect("{")
        if self._next() == "}":
            self._position += 1
        else:
            separator = ","
            while separator == ",":
                key = self._value() if self._next() == '"' else None
                if not isinstance(key, str):
                    raise _Broken
                self._expect(":")
                yield key, self._value()
                separator = self._expect(",}")
        if self._next():
            raise _Broken

    def _value(self) -> Any:
        """The value here, or `Unreadable`; the position is then behind it."""
        self._next()
        while True:
            try:
                value, end = self._values.raw_decode(self._text, self._position)
            except (ValueError, RecursionError):
                value, end = None, -1
            buffered = len(self._text) - self._position
            # A number at the very end of the buffer may go on.
            if (0 <= end < len(self._text)) or self._ended or buffered > MAX_RECORD or not self._grow():
                break
        if 0 <= end <= self._position + MAX_RECORD:
            self._position = end
            return value
        return Unreadable("record too large" if self._skip() > MAX_RECORD else "unreadable record")

    def _skip(self) -> int:
        """Pass over the value here by its brackets and quotes alone; how many characters it has."""
        depth, in_string, passed = 0, False, 0
        while True:
            plain = (_TO_QUOTE if in_string else _TO_MARK).match(self._text, self._position)
            end = plain.end() if plain else self._position
            passed += end - self._position
            self._position = end
            mark = self._text[end : end + 1]
            if not mark or mark == "\\":  # the end of what was read, if within an escape
                if not self._grow():
                    raise _Broken
                continue
            if depth == 0 and not in_string and mark in ",}]":
                return passed
            if mark == '"':
                in_string = not in_string
            elif mark in "{[":
                depth += 1
            elif mark in "}]":
                depth -= 1
            self._position += 1
            passed += 1

    def _expect(self, allowed: str) -> str:
        found = self._next()
        if not found or found not in allowed:
            raise _Broken
        self._position += 1
        return found

    def _next(self) -> str:
        """The first character that is no space, '' at the end; the position is then at it."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._grow():
                return ""

    def _grow(self) -> bool:
        """Read on, letting go of what was passed over; False at the end of the file."""
        while not self._ended:
            data = self._file.read(CHUNK)
            self._ended = not data
            piece = self._decoder.decode(data, final=self._ended)
            if piece:
                self._text = self._text[self._position :] + piece
                self._position = 0
                return True
        return False
