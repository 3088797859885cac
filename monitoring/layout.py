"""Breaks long PromQL into lines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

WIDTH = 110
_SHORT = 20  # what is in parentheses and no longer stays on its line
_OPERATORS = (
    (" or ", " and ", " unless "),
    (" >= ", " <= ", " == ", " != ", " > ", " < "),
    (" + ", " - "),
    (" * ", " / "),
)
"""Loosest first: an expression is broken at the loosest that it has."""


def laid_out(expression: str, width: int = WIDTH) -> str:
    """The same expression, in lines of at most about *width* where it can be broken."""
    return "\n".join(_lines(_on_one_line(expression), width))


def _on_one_line(expression: str) -> str:
    """Single spaces, none inside of parentheses; strings stay as they are."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', expression)
    for number in range(0, len(parts), 2):
        text = re.sub(r"\s+", " ", parts[number])
        parts[number] = re.sub(r"\( | (?=\))| (?=,)", lambda found: found[0].strip(), text)
    return "".join(parts).strip()


def _lines(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    for operators in _OPERATORS:
        if places := _places(text, operators):
            return [line for part in _split(text, places) for line in _lines(part, width)]
    opening, closing = _longest_group(text)
    if closing - opening < _SHORT:
        return [text]
    content = text[opening + 1 : closing]
    arguments = _split(content, [place + 1 for place in _places(content, (", ",))])
    inner = ["  " + line for argument in arguments for line in _lines(argument, width - 2)]
    return [text[: opening + 1], *inner, text[closing:]]


def _split(text: str, places: list[int]) -> list[str]:
    """Cut before each place."""
    bounds = [0, *places, len(text)]
    return [text[begin:end].strip() for begin, end in itertools.pairwise(bounds) if text[begin:end].strip()]


def _outside(text: str) -> Iterator[tuple[int, int, str]]:
    """(place, depth, character) of all that is in no string."""
    depth, is_string = 0, False
    for place, character in enumerate(text):
        if character == '"' and text[place - 1] != "\\":
            is_string = not is_string
        if is_string or character == '"':
            continue
        depth -= character in ")}]"
        yield place, depth, character
        depth += character in "({["


def _places(text: str, operators: tuple[str, ...]) -> list[int]:
    """Where operators are, in no parentheses."""
    return [place for place, depth, character in _outside(text) if not depth and text.startswith(operators, place)]


def _longest_group(text: str) -> tuple[int, int]:
    """Where the longest pair of outer parentheses opens and closes."""
    longest, opened = (0, 0), 0
    for place, depth, character in _outside(text):
        if depth:
            continue
        if character == "(":
            opened = place
        if character == ")" and place - opened > longest[1] - longest[0]:
            longest = (opened, place)
    return longest
