"""Free text: exact match, containment and token F1, after SQuAD's normalisation (Rajpurkar et al. 2016, 1606.05250)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Kana and Han are written without spaces: each sign is a token, or no Chinese answer would ever be found in a sentence.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def fold(text: str) -> str:
    """NFKC, lower case (Unicode's case folding) and single spaces: what every comparison of words starts from."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalise(text: str) -> str:
    """Lower case, NFKC, without punctuation and English articles, whitespace folded.

    SQuAD's rule, applied to Unicode's punctuation too. One departure: text that is nothing but articles or punctuation
    ("A", "?") keeps them, since otherwise an empty answer would equal it.
    """
    folded = fold(text)
    words = "".join(sign for sign in folded if not _is_punctuation(sign))
    return " ".join(ARTICLES.sub(" ", words).split()) or " ".join(words.split()) or folded


def tokens(text: str) -> list[str]:
    """Tokens of the normalised text: words between spaces, and single signs in scripts without spaces."""
    return TOKEN.findall(normalise(text))


def exact_match(output: str, target: str) -> float:
    """1 where the normalised texts are equal, else 0."""
    return float(normalise(output) == normalise(target))


def containment(output: str, target: str) -> float:
    """1 where the target's tokens occur in the output, unbroken and in order, else 0. Empty is found in empty only."""
    wanted, given = tokens(target), tokens(output)
    if not wanted:
        return float(not given)
    return float(f" {' '.join(wanted)} " in f" {' '.join(given)} ")


def token_f1(output: str, target: str) -> float:
    """F1 of the two bags of tokens, in [0, 1] (Rajpurkar et al. 2016). Two empty bags score 1, one empty bag 0."""
    given, wanted = Counter(tokens(output)), Counter(tokens(target))
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def _is_punctuation(sign: str) -> bool:
    # ASCII's own list holds signs such as $ + < that Unicode counts as symbols; SQuAD removes them.
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")
