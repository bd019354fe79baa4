"""JSON answers: RFC 8259 read strictly for scoring, and tolerantly for diagnosis."""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from typing import Any

from evals.metrics.text import exact_match

MAX_DEPTH = 100  # no answer is nested deeper; a fixed limit gives every machine and call depth the same score
MAX_STARTS = 1000
NOTHING: Any = object()  # "no JSON", which None (JSON's null) is not
START = re.compile(r'\{(?=\s*["}])')  # an object is empty or starts with a key


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the whole text is (but for whitespace around it), else None. Never raises.

    NaN, Infinity, numbers beyond a float's range and nesting deeper than `MAX_DEPTH` are refused; of duplicate keys the
    last counts.
    """
    value = parse_value(text)
    return value if isinstance(value, dict) else None


def find_object(text: str) -> dict[str, Any] | None:
    """The first JSON object found anywhere in the text (in a code fence, after talk), else None. Never raises.

    Gives up after `MAX_STARTS` places where one seemed to start, and where one is nested deeper than `MAX_DEPTH`.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, strict=False)
    # Each failure costs the length of the text (json counts its lines for the message), hence the limit.
    for start in islice(START.finditer(text), MAX_STARTS):
        try:
            value, _ = decoder.raw_decode(text, start.start())
        except ValueError:
            continue
        except RecursionError:
            return None
        return value if _depth_within(value) else None
    return None


def json_exact(output: str, target: str) -> float:
    """1 where both are the same JSON value, else 0. Key order and whitespace do not count; 1 equals 1.0, but not true.

    A target that is no JSON is compared as normalised text.
    """
    wanted = parse_value(target)
    if wanted is NOTHING:
        return exact_match(output, target)
    given = parse_value(output)
    return float(given is not NOTHING and equal(given, wanted))


def json_fields(output: str, target: str) -> float:
    """Mean over the union of both objects' top-level keys of "the values are equal", in [0, 1].

    The output is read strictly: one that is not an object scores 0. Two empty objects score 1. A target that is not an
    object is compared whole, by `json_exact`.
    """
    wanted = parse_object(target)
    if wanted is None:
        return json_exact(output, target)
    given = parse_object(output)
    return 0.0 if given is None else field_overlap(given, wanted)


def field_overlap(given: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The share of keys, of all keys that either object has, under which both have equal values."""
    keys = given.keys() | wanted.keys()
    if not keys:
        return 1.0
    shared = given.keys() & wanted.keys()
    return sum(equal(given[key], wanted[key]) for key in shared) / len(keys)


def equal(one: Any, other: Any) -> bool:
    """Equality of JSON values. Python's own == would take true for 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def fold_keys(value: Any) -> Any:
    """The value with the keys of every object in it case-folded and stripped."""
    if isinstance(value, dict):
        return {key.strip().casefold(): fold_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [fold_keys(item) for item in value]
    return value


def parse_value(text: str) -> Any:
    """The JSON value that the whole text is, by the rules of `parse_object`, else `NOTHING`. Never raises."""
    try:
        value = json.loads(text.strip(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return NOTHING
    return value if _depth_within(value) else NOTHING


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("beyond the range of a float")
    return number


def _depth_within(value: Any) -> bool:
    """Whether lists and objects are nested at most `MAX_DEPTH` deep. Goes level by level, so as not to recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item for box in level if isinstance(box, dict | list) for item in (box.values() if isinstance(box, dict) else box)
        ]
        if not level:
            return True
    return not any(isinstance(box, dict | list) for box in level)
