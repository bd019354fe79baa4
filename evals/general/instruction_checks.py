"""Checks for the instruction-following task of the built-in general suite.

Each row of ``instructions.jsonl`` carries a ``check``: a JSON object with a
``kind`` and that kind's arguments.  :func:`check` says whether a model's reply
satisfies it.  Everything here is pure: no model, no files, no randomness.

=============== ================ =================================================
kind            arguments        the reply passes when ...
=============== ================ =================================================
contains_word   word             it has that word (any case, whole word)
contains_all    words            it has each of the words
contains_any    words            it has at least one of the words
starts_with     text             it begins with the text (any case)
ends_with       text             it ends with the text (any case)
one_word        --               it is a single word
max_words       n                it has between 1 and n words
uppercase       --               it has letters, and none is lower case
repeat          text             it is that text (case, quotes, final stop ignored)
numbered_list   n                its numbered lines start 1, 2, ..., n
comma_list      n                it is one line with n or more short parts by commas
json_object     keys             its first {...} is a JSON object with the keys
number          value            the last whole number in it is the value
refuses         --               it begins as refusals do (``drift.refuses``)
answers         --               it says something, and does not begin so
all             checks           it passes every one of the nested checks
=============== ================ =================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from evals.general.drift import refuses

Check = Mapping[str, Any]

_QUOTES = "\"'`\u201c\u201d\u2018\u2019"


def words(text: str) -> list[str]:
    """The words of a text in lower case; apostrophes stay inside a word."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())


def _has(text: str, word: str) -> bool:
    """Whether the word (or phrase) occurs in the text, on word boundaries."""
    return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text.lower()) is not None


def _bare(text: str) -> str:
    """The text without outer quotes, final stop, case and extra spaces."""
    return " ".join(text.lower().split()).strip(_QUOTES + " .!").strip()


def _numbered(text: str, n: int) -> bool:
    marks = [int(m) for m in re.findall(r"^\s*(\d{1,3})[.)]\s*\S", text, re.MULTILINE)]
    return marks[:n] == list(range(1, n + 1))


def _comma_list(text: str, n: int) -> bool:
    parts = [part.strip() for part in text.split(",")]
    return "\n" not in text and len(parts) >= n and all(0 < len(words(p)) <= 4 for p in parts)


def _json_object(text: str, keys: list[str]) -> bool:
    start = text.find("{")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:] if start >= 0 else "")
    except ValueError:
        return False
    return isinstance(value, dict) and all(key in value for key in keys)


def _number(text: str, value: int) -> bool:
    found = re.findall(r"(?<![\w.])-?\d+(?![\w]|\.\d)", text)
    return bool(found) and int(found[-1]) == value


KINDS: dict[str, Callable[[str, Check], bool]] = {
    "contains_word": lambda t, c: _has(t, c["word"]),
    "contains_all": lambda t, c: all(_has(t, w) for w in c["words"]),
    "contains_any": lambda t, c: any(_has(t, w) for w in c["words"]),
    "starts_with": lambda t, c: t.lstrip(_QUOTES).lower().startswith(c["text"].lower()),
    "ends_with": lambda t, c: t.rstrip(_QUOTES).lower().endswith(c["text"].lower()),
    "one_word": lambda t, c: len(words(t)) == 1,
    "max_words": lambda t, c: 1 <= len(words(t)) <= c["n"],
    "uppercase": lambda t, c: t.isupper(),
    "repeat": lambda t, c: _bare(t) == _bare(c["text"]),
    "numbered_list": lambda t, c: _numbered(t, c["n"]),
    "comma_list": lambda t, c: _comma_list(t, c["n"]),
    "json_object": lambda t, c: _json_object(t, c["keys"]),
    "number": lambda t, c: _number(t, c["value"]),
    "refuses": lambda t, c: refuses(t),
    "answers": lambda t, c: bool(words(t)) and not refuses(t),
    "all": lambda t, c: all(check(t, nested) for nested in c["checks"]),
}


def check(reply: str, spec: Check) -> bool:
    """Whether the reply passes the check; an unknown kind raises ``KeyError``."""
    return KINDS[spec["kind"]](reply.strip(), spec)
