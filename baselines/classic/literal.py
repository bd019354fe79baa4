"""Where the values of JSON answers stand in their inputs, word for word or between a fixed beginning and end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baselines.classic.fields import ABSENT, canonical
from baselines.classic.tokens import Token, tokens

# Fewer rows than this teach no pattern.
FEWEST = 5


@dataclass(frozen=True)
class Pattern:
    """Values of `key` are `before`, a run of the input's tokens, and `after`; `number`: they are numbers, not texts.

    `otherwise` is the answer where no such run is found, as canonical JSON, `ABSENT` where the key is then left out.
    """

    key: str
    before: str
    after: str
    number: bool
    otherwise: str

    def value(self, span: str) -> str:
        """The canonical JSON of the value that stands as `span` in an input; `otherwise` where that is no such value."""
        whole = f"{self.before}{span}{self.after}"
        if not self.number:
            return canonical(whole)
        try:
            read = json.loads(whole)
        except (ValueError, RecursionError):
            return self.otherwise
        return canonical(read) if _is_number(read) else self.otherwise

    def core(self, value: Any) -> str:
        """The part of a value that stands in the input; empty where the value is none of this pattern."""
        text = _as_text(value)
        if _is_number(value) is not self.number or not (text.startswith(self.before) and text.endswith(self.after)):
            return ""
        return text[len(self.before) : len(text) - len(self.after)]


@dataclass(frozen=True)
class Run:
    """The tokens `first` to `last` (without it) of a text."""

    first: int
    last: int

    def meets(self, other: Run) -> bool:
        return self.first < other.last and other.first < self.last


def runs(text: str, words: Sequence[Token], wanted: str) -> list[Run]:
    """Where `wanted` stands in the text, from the start of a token to the end of one."""
    starts = {word.start: at for at, word in enumerate(words)}
    ends = {word.end: at + 1 for at, word in enumerate(words)}
    found = []
    at = text.find(wanted) if wanted else -1
    while at >= 0:
        if at in starts and at + len(wanted) in ends:
            found.append(Run(starts[at], ends[at + len(wanted)]))
        at = text.find(wanted, at + 1)
    return found


def learn_patterns(texts: Sequence[str], objects: Sequence[Mapping[str, Any]]) -> list[Pattern]:
    """A pattern for each key of which most values stand in the input, its one most frequent other value set aside
    (such as "none" for "no order number is given")."""
    words = [tokens(text) for text in texts]
    keys = dict.fromkeys(key for one in objects for key in one)
    found = []
    for key in keys:
        values = [(at, one[key]) for at, one in enumerate(objects) if key in one]
        affixes = Counter(
            (*affix, _is_number(value)) for at, value in values if (affix := _affixes(texts[at], words[at], value)) is not None
        )
        if not affixes:
            continue
        # The shortest of equals: a value that stands there whole needs no affix.
        before, after, number = min(affixes, key=lambda one: (-affixes[one], len(one[0]) + len(one[1])))
        pattern = Pattern(key, before, after, number, ABSENT)
        there = {at for at, value in values if runs(texts[at], words[at], pattern.core(value))}
        elsewhere = Counter(canonical(value) for at, value in values if at not in there)
        usual, count = elsewhere.most_common(1)[0] if elsewhere else (ABSENT, 0)
        if len(there) < FEWEST or len(there) < elsewhere.total() - count:
            continue
        missing = len(objects) - len(values)
        found.append(Pattern(key, before, after, number, usual if count > missing else ABSENT))
    return found


def _affixes(text: str, words: Sequence[Token], value: Any) -> tuple[str, str] | None:
    """What stands before and after the longest run of the value's tokens that the text has; None where that is less than
    half of the value's characters."""
    whole = _as_text(value)
    if runs(text, words, whole):
        return "", ""
    parts = tokens(whole)[:50]
    for size in range(len(parts) - 1, 0, -1):
        for at in range(len(parts) - size + 1):
            first, last = parts[at].start, parts[at + size - 1].end
            if 2 * (last - first) >= len(whole) and runs(text, words, whole[first:last]):
                return whole[:first], whole[last:]
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value) if _is_number(value) else ""
