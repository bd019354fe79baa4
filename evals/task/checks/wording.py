"""When two wordings are one item: words, what must not differ between them, and a few small changes.

Two questions that differ in a number, a sign of arithmetic, a negation or a word in the same place are two items, however
alike their letters are: "What is 12+7?" and "What is 12+9?", "the capital of Iraq" and "of Iran". So letters are counted
(rapidfuzz) only to throw out what is clearly different; words decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from evals.metrics.text import UNSPACED, fold

# Under this many words one word moves the Jaccard too far: the changes are counted instead.
SHORT = 20
# One change in this many words is a light edit: two in a question of ten words, and always one.
WORDS_PER_CHANGE = 4
# From this many words on, a page with another date or counter is still the same page.
WORDS_PER_NUMBER = 100
BLOCKED = 1 << 20

APOSTROPHES = re.compile("['’‘`´]")
# A minus belongs to its number where nothing stands before it; between operands it is a sign, elsewhere a hyphen.
TOKEN = re.compile(rf"[{UNSPACED}]|(?:(?<![^\s(=<>+*/^×÷])[-−](?=\d))?\d+(?:[.,:]\d+)*|[^\W\d_]+|[-−+*/=<>^%×÷±√$€£¥]")
THOUSANDS = re.compile(r"[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
SIGN = re.compile(r"[-−+*/=<>^%×÷±√$€£¥]")
MONEY = frozenset("$€£¥")
ARTICLES = frozenset({"a", "an", "the"})
# English only: what is written in another language is kept apart by its numbers and by the words that face one another.
NUMBERS = frozenset(
    [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
        "thirty",
        "forty",
        "fifty",
        "sixty",
        "seventy",
        "eighty",
        "ninety",
        "hundred",
        "thousand",
        "million",
        "billion",
        "half",
        "third",
        "quarter",
        "once",
        "twice",
        "first",
        "second",
        "double",
        "triple",
    ]
)
NEGATIONS = frozenset({"not", "non", "no", "never", "none", "nor", "neither", "nothing", "nobody", "nowhere", "without"})
VERBS = [
    "do",
    "does",
    "did",
    "is",
    "are",
    "was",
    "were",
    "have",
    "has",
    "had",
    "would",
    "could",
    "should",
    "must",
    "need",
    "might",
    "ai",
]
SPELT_OUT = {f"{verb}nt": (verb, "not") for verb in VERBS} | {
    "cant": ("can", "not"),
    "cannot": ("can", "not"),
    "wont": ("will", "not"),
}
ENDINGS = ("ing", "ed", "es", "ly", "s")


def words(text: str) -> list[str]:
    """The words of a text, without case, punctuation and English articles; numbers whole, signs of arithmetic kept.

    SQuAD's rule (`metrics.text.normalise`) would make "12+7" and "127" one word, so it is not used here.
    """
    folded = APOSTROPHES.sub("", fold(text))
    found: list[str] = TOKEN.findall(folded)
    if SIGN.search(folded):
        found = [one for at, one in enumerate(found) if not _is_sign(one) or _counts(found, at)]
    spelt: list[str] = []
    for one in found:
        if one in SPELT_OUT:
            spelt += SPELT_OUT[one]
        elif one not in ARTICLES:
            spelt.append(one.replace(",", "") if "," in one and THOUSANDS.fullmatch(one) else one)
    # Nothing but articles or punctuation: it is what it is.
    return spelt or found or [folded]


def _is_sign(token: str) -> bool:
    return len(token) == 1 and SIGN.match(token) is not None


def _counts(found: Sequence[str], at: int) -> bool:
    """A sign beside money or after a number, or between operands (numbers and single letters); the others are punctuation."""
    left = found[at - 1] if at else ""
    right = found[at + 1] if at + 1 < len(found) else ""
    if found[at] in MONEY:
        return _has_digit(left) or _has_digit(right)
    if found[at] in "%√±":
        return _has_digit(left) or _has_digit(right)
    return _is_operand(left) and _is_operand(right)


def _has_digit(token: str) -> bool:
    return token[-1:].isdigit()


def _is_operand(token: str) -> bool:
    return _has_digit(token) or (len(token) == 1 and (token.isalpha() or token in "√±-−$€£¥%"))


@lru_cache(maxsize=1 << 16)
def is_fixed(word: str) -> bool:
    """Whether a word must not differ: a number, a sign of arithmetic or money, a negation."""
    return word in NUMBERS or word in NEGATIONS or any(sign.isdigit() for sign in word) or _is_sign(word)


def fixed(some: Sequence[str]) -> tuple[str, ...]:
    """The words that must not differ, sorted."""
    return tuple(sorted(word for word in some if is_fixed(word)))


def same_fixed(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether numbers, signs and negations agree; of long texts one in a hundred words may differ."""
    ours, theirs = fixed(first), fixed(second)
    if ours == theirs:
        return True
    apart = (Counter(ours) - Counter(theirs)) + (Counter(theirs) - Counter(ours))
    # A number that was replaced counts twice: gone from one, new in the other.
    return apart.total() <= 2 * (min(len(first), len(second)) // WORDS_PER_NUMBER)


def spelling(some: Sequence[str]) -> str:
    """What counts as exactly the same: the letters in their order, spaces apart only beside numbers ("log in", "login")."""
    parts: list[str] = []
    for one in some:
        parts.append(f" {one} " if is_fixed(one) else one)
    return "".join(parts)


def lightly_edited(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether a few words were misspelt, inflected or moved, and a few added or a few dropped, but none replaced.

    One change in four words of the shorter text is allowed. A text of two or three words may have a misspelt or inflected
    word, none more or less: "cancel transfer" is not "cancel". Where each text has words that the other one has in no
    spelling, or words face one another, a word was replaced: that makes two items of them.
    """
    fewer = min(len(first), len(second))
    allowed = fewer // WORDS_PER_CHANGE
    if abs(len(first) - len(second)) > allowed or (_has_own(first, second) and _has_own(second, first)):
        return False
    return _changes(first, second, max(1, allowed)) <= (max(1, allowed) if fewer > 1 else 0)


def _has_own(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first text has a word that the second one has in no spelling."""
    return any(word not in second and not any(alike(word, other) for other in second) for word in first)


def _changes(first: Sequence[str], second: Sequence[str], most: int) -> int:
    """The least number of words added, dropped, misspelt or inflected; BLOCKED where there is no such way within `most`.

    An alignment (Needleman and Wunsch) in three states: nothing open, words of the first text left over since the last
    match, words of the second left over. From one kind of left over there is no step to the other, or they would face.
    Only cells within `most` of the diagonal can be on the way (Ukkonen).
    """
    closed = (BLOCKED, BLOCKED, BLOCKED)
    row = [(0, BLOCKED, BLOCKED)] + [closed] * len(second)
    for at in range(min(most, len(second))):
        row[at + 1] = (BLOCKED, BLOCKED, BLOCKED if is_fixed(second[at]) else min(row[at][0], row[at][2]) + 1)
    for line, mine in enumerate(first, start=1):
        free = not is_fixed(mine)
        new = [closed] * len(row)
        if line <= most and free:
            new[0] = (BLOCKED, min(row[0][0], row[0][1]) + 1, BLOCKED)
        for at in range(max(0, line - most - 1), min(len(second), line + most)):
            word = second[at]
            cost = 0 if mine == word else 1 if alike(mine, word) else BLOCKED
            matched = min(row[at]) + cost
            dropped = min(row[at + 1][0], row[at + 1][1]) + 1 if free else BLOCKED
            added = min(new[at][0], new[at][2]) + 1 if not is_fixed(word) else BLOCKED
            new[at + 1] = (matched, dropped, added)
        row = new
        if min(map(min, row)) > most:
            return BLOCKED
    return min(*row[-1], BLOCKED)


@lru_cache(maxsize=1 << 16)
def alike(first: str, second: str) -> bool:
    """Whether two words are one, misspelt or inflected.

    A slip is one letter exchanged with its neighbour in a word of four letters or more, one letter more or less in a word of
    four, one replaced by another in a word of five: of shorter words too many are words themselves (Iran, Iraq). The first letter
    is only forgiven in a word of six or more, for it is seldom missed and tells many words apart (lock, block).
    """
    if is_fixed(first) or is_fixed(second):
        return False
    shorter, longer = sorted((first, second), key=len)
    if len(shorter) < 3:
        return False
    if first[0] == second[0] and stem(first) == stem(second):
        return True
    from rapidfuzz.distance import OSA

    if len(longer) < 4 or OSA.distance(first, second, score_cutoff=1) > 1:
        return False
    if len(first) == len(second) and sorted(first) == sorted(second):
        return True
    least = 6 if first[0] != second[0] else 5 if len(first) == len(second) else 4
    return len(longer) >= least


def stem(word: str) -> str:
    """The word without an English ending (one only, of words that keep three letters), a doubled consonant or a last e or y."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    if len(word) > 3 and word[-1] in "eyi":
        word = word[:-1]
    return word
