"""Rules of style that need no judge: length in words, phrases that must or must not stand there, reading level."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.metrics.label import whole_words
from evals.metrics.options import Style as StyleOptions
from evals.task.example import Example

SENTENCE_END = re.compile(r"[.!?…]+(?=[\s\"'”’)\]]|\Z)|\n\s*\n")
VOWELS = re.compile(r"[aeiouy]+")
SILENT = re.compile(r"(?<![aeiouy])(?<![^aeiouy]l)e\Z")


@dataclass(frozen=True)
class Style:
    """Share of the stated rules that an answer keeps, each key of the task file being one. The target is not looked at."""

    options: StyleOptions

    @property
    def name(self) -> str:
        return self.options.label

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.options.model_dump(mode="json", exclude={"called"})

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        return [kept_share(self.options, answer) for _, answer in pairs]


def kept_share(rules: StyleOptions, answer: str) -> float:
    """Rules kept of rules stated, in [0, 1]. An answer without a word keeps none: saying nothing is no style."""
    length = len(answer.split())
    if not length:
        return 0.0
    kept: list[bool] = []
    if rules.min_words is not None:
        kept.append(length >= rules.min_words)
    if rules.max_words is not None:
        kept.append(length <= rules.max_words)
    if rules.banned:
        kept.append(not any(occurs(phrase, answer) for phrase in rules.banned))
    if rules.required:
        kept.append(all(occurs(phrase, answer) for phrase in rules.required))
    if rules.max_grade is not None:
        kept.append(reading_grade(answer) <= rules.max_grade)
    return sum(kept) / len(kept) if kept else 1.0


def occurs(phrase: str, text: str) -> bool:
    """Whether the phrase stands in the text as whole words, in any case; spaces, hyphens and underscores are one."""
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    wanted = " ".join(unicodedata.normalize("NFKC", phrase).split())
    return re.search(whole_words(wanted), plain, re.IGNORECASE) is not None


def reading_grade(text: str) -> float:
    """The Flesch-Kincaid grade, of US schools: 0.39 words/sentences + 11.8 syllables/words - 15.59 (Kincaid et al. 1975).

    For English. A text without words has grade 0; a very short one may lie below.
    """
    found = [word for word in text.split() if any(sign.isalnum() for sign in word)]
    if not found:
        return 0.0
    parts = [part for part in SENTENCE_END.split(text) if any(sign.isalnum() for sign in part)]
    return 0.39 * len(found) / len(parts) + 11.8 * sum(map(syllables, found)) / len(found) - 15.59


def syllables(word: str) -> int:
    """Groups of vowels (y is one) without a silent e at the end ("make", "whole", but not "table"); at least one."""
    letters = "".join(sign for sign in unicodedata.normalize("NFKD", word).lower() if sign.isalpha())
    return max(1, len(VOWELS.findall(letters)) - bool(SILENT.search(letters)))
