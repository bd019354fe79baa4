"""Tokens of an input, with their places, and what a tagger sees of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Letters, digits, or one other sign: "N78175" and "6pm" are two tokens each, so that a value may begin or end between them.
TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
# What an input says about itself in brackets, such as "[asked for: time]", bears on all of its tokens.
MARK = re.compile(r"\[([^\[\]]{1,200})\]")
MOST_MARKS = 20
MOST_TOKENS = 2000
EDGE = "\x00"


@dataclass(frozen=True)
class Token:
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """The first `MOST_TOKENS` tokens."""
    found: list[Token] = []
    for one in TOKEN.finditer(text):
        if len(found) == MOST_TOKENS:
            break
        found.append(Token(one.group(), one.start(), one.end()))
    return found


def shape(text: str) -> str:
    """Its kinds of signs: "Xx" for a capitalised word, "d4" for four digits, the sign itself for a sign."""
    if text.isdecimal():
        return f"d{min(len(text), 9)}"
    if not text.isalpha():
        return text
    return "x" if text.islower() else "X" if text.isupper() else "Xx" if text[0].isupper() else "xX"


def features(text: str, words: Sequence[Token]) -> list[list[str]]:
    """Names of what is true of each token of `text`: itself, its neighbours, its place, and the marks in the text."""
    lower = [word.text.casefold() for word in words]
    shapes = [shape(word.text) for word in words]
    marks = _marks(text)
    length = min(len(words), 12)
    around = [EDGE, EDGE, *lower, EDGE, EDGE]
    shapes_around = [EDGE, *shapes, EDGE]
    found = []
    for at, (word, kind) in enumerate(zip(lower, shapes, strict=True)):
        before2, before, _, after, after2 = around[at : at + 5]
        kind_before, _, kind_after = shapes_around[at : at + 3]
        names = [
            "bias",
            f"word={word}",
            f"kind={kind}",
            f"begins={word[:2]}",
            f"begins={word[:3]}",
            f"ends={word[-2:]}",
            f"ends={word[-3:]}",
            f"-1={before}",
            f"-2={before2}",
            f"+1={after}",
            f"+2={after2}",
            f"-1 kind={kind_before}",
            f"+1 kind={kind_after}",
            f"-1,0={before} {word}",
            f"0,+1={word} {after}",
            f"-2,-1={before2} {before}",
            f"+1,+2={after} {after2}",
            f"-1,kind={before} {kind}",
            f"kind,+1={kind} {after}",
            f"kinds={kind_before} {kind} {kind_after}",
            f"from the start={min(at, 4)}",
            f"to the end={min(len(words) - at, 4)}",
            f"length={length}",
        ]
        for mark in marks:
            names += [
                f"mark={mark}",
                f"mark,kind={mark} {kind}",
                f"mark,word={mark} {word}",
                f"mark,length={mark} {length}",
            ]
        found.append(names)
    return found


def _marks(text: str) -> list[str]:
    """What stands in brackets, whole and word by word."""
    whole = [one.casefold() for one in MARK.findall(text)]
    return sorted({mark for one in whole for mark in (one, *re.findall(r"\w+", one))})[:MOST_MARKS]
