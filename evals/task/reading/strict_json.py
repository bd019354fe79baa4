"""JSON that a stranger wrote: what Python's reader lets pass in silence is refused here, by name."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from typing import Any

MAX_DEPTH = 100
MAX_DIGITS = 1000
SURROGATE = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """What is wrong with a JSON text. `at` is the offset in the text where that is known, else -1."""

    def __init__(self, message: str, at: int = -1) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


def parse(text: str) -> Any:
    """The value of a whole JSON text. Raises JsonError."""
    value, end = parse_at(text, skip_space(text, 0))
    rest = skip_space(text, end)
    if rest != len(text):
        raise JsonError("broken JSON: something stands after the value", rest)
    return value


def parse_at(text: str, start: int) -> tuple[Any, int]:
    """The value that starts at an offset, and the offset behind it. Raises JsonError.

    Refused: a key that stands twice in an object (the later one would win), NaN and Infinity (RFC 8259 has no such
    numbers), numbers that overflow, integers of more than MAX_DIGITS digits, values nested deeper than MAX_DEPTH, and
    halves of surrogate pairs, which no tokeniser takes.
    """
    try:
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonError(f"broken JSON: {error.msg[0].lower()}{error.msg[1:]}", error.pos) from error
    except RecursionError as error:
        raise JsonError(f"nested too deeply (more than {MAX_DEPTH} levels)") from error
    # Cheap looks first: nearly every row is flat and has no such escape.
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and measure(value)[0] > MAX_DEPTH:
        raise JsonError(f"nested too deeply (more than {MAX_DEPTH} levels)")
    if text.find("\\u", start, end) >= 0 and holds_surrogate(value):
        raise JsonError("half of a surrogate pair (such as \\ud83d) is no text, and no tokeniser takes it")
    return value, end


SPACE = re.compile(r"[ \t\n\r]*")


def skip_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def measure(value: Any) -> tuple[int, int]:
    """(depth, count): how many lists and objects stand inside each other (0 for a text or a number), and all values.

    The count is what a value costs in memory, in round figures. Level by level: recursion would end before the limit does.
    """
    deepest, count, level = 0, 1, [value]
    while level := [one for one in level if one.__class__ is dict or one.__class__ is list]:
        deepest += 1
        inner: list[Any] = []
        for one in level:
            if one:
                inner.extend(one.values() if one.__class__ is dict else one)
        count += len(inner)
        level = inner
    return deepest, count


def holds_surrogate(value: Any) -> bool:
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str) and SURROGATE.search(one):
            return True
        if isinstance(one, dict):
            rest += [*one, *one.values()]
        elif isinstance(one, list):
            rest += one
    return False


def compact(value: Any) -> str:
    """A value as JSON text without spaces, keys in their order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = {sys.intern(key): value for key, value in pairs}
    if len(body) != len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise JsonError(f"the key {key[:60]!r} stands here twice")
    return body


def _constant(name: str) -> None:
    raise JsonError(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"a number of {len(digits):,} digits (at most {MAX_DIGITS:,}): write it as text")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError(f"{digits[:40]} is too large for a number")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer, parse_float=_float)
