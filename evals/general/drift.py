"""How a tuned model's answers differ in kind from the base's, whether right or not: length, refusals, language, nothing at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evals.statistics.paired import paired_difference, wilson_interval

# Words that one of the two languages is full of and the other is without. What both have ("in", "an", "so", "am", "was", "war",
# "man", "her", "will", "hat", "also") says nothing.
ENGLISH = (
    "the of and to is that it for are with he she they you your at be this have from or had by not but what were we can "
    "said there which their if do does each about how out then them these some would into has more than been who its now my "
    "i his our us because should could very when where why just only other after before while through most such"
)
GERMAN = (
    "der die das und ist nicht ein eine einen einem einer eines zu den dem mit auf für von sich es im auch als bei nach aus "
    "wie aber oder wenn wird werden sind haben kann können ich er sie wir ihr nur noch sein seine ihre mein dass durch über "
    "um zum zur vom beim sehr mehr diese dieser dieses weil wurde hier gibt keine kein unter zwischen"
)
STOPWORDS = {"English": frozenset(ENGLISH.split()), "German": frozenset(GERMAN.split())}
# Of a longer text that has hardly any of either: a third language, a list of words, or nothing that is a language.
NEITHER = "neither"
UNTOLD = "untold"
# Fewer words tell no language ("Paris."), unless two of them are stopwords; from so many on a text without stopwords is neither.
MIN_WORDS, ENOUGH_WORDS = 3, 8
MIN_SHARE = 0.15
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# How refusals begin. Only the beginning counts: "I can't" in the middle of an answer is part of it.
REFUSAL = re.compile(
    r"\W*(?:(?:i(?:'|’)?m|i am|we(?:'|’)?re) (?:really |very |so )?"
    r"(?:sorry|unable|not able|afraid (?:that )?(?:i|we|this|that)\b)"
    r"|sorry\b(?=[,.!]| but| i\b)|(?:i|we) (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|will not|must decline|do not|don(?:'|’)?t) "
    r"(?:help|assist|do that|provide|answer|comply|fulfil|fulfill|give|support|share|write|discuss|create|offer|tell|explain)"
    r"|as an ai\b|as a language model\b|no, i (?:can(?:'|’)?t|cannot|won(?:'|’)?t)"
    r"|(?:es )?tut mir leid|das kann ich nicht"
    r"|ich kann\b[^.!?]*\b(?:nicht|keine?)\b[^.!?]*\b(?:helfen|geben|beantworten|erklären|schreiben|tun|unterstützen))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Change:
    """A mean over the same `n` answers of base and tuned, and the paired difference (tuned minus base) with its 95% interval."""

    name: str
    n: int
    base: float
    tuned: float
    difference: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out. Several measures are looked at together, and nothing is adjusted for that."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Drift:
    """Of `n` answers that both models wrote: `words` in mean words, all others as shares of the answers; `languages` add up to all.

    `switched` is the share of answers in the other language than the base's, of the `told` ones where both are in one of the two.
    """

    n: int
    words: Change
    empty: Change
    refused: Change
    languages: tuple[Change, ...]
    told: int
    switched: float
    switched_low: float
    switched_high: float

    @property
    def changes(self) -> tuple[Change, ...]:
        return (self.words, self.empty, self.refused, *self.languages)


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def refuses(text: str) -> bool:
    """Whether an answer begins as refusals do, in English or German. A refusal in other words is not seen."""
    return REFUSAL.match(text.strip()) is not None


def language(text: str) -> str:
    """The one whose stopwords outnumber the other's, `NEITHER` for a longer text with hardly any, else `UNTOLD`."""
    said = words(text)
    counts = {name: sum(word in known for word in said) for name, known in STOPWORDS.items()}
    most, second = sorted(counts.values(), reverse=True)[:2]
    if len(said) >= ENOUGH_WORDS and most < MIN_SHARE * len(said):
        return NEITHER
    if most == second or (len(said) < MIN_WORDS and most < 2):
        return UNTOLD
    return max(counts, key=lambda name: counts[name])


def drift(base: Sequence[str], tuned: Sequence[str]) -> Drift | None:
    """Answers of both to the same questions, in the same order; None where there are none. Raises ValueError for other lengths."""
    pairs = list(zip(base, tuned, strict=True))
    if not pairs:
        return None
    spoken = [(language(a), language(b)) for a, b in pairs]
    told = [(a, b) for a, b in spoken if a in STOPWORDS and b in STOPWORDS]
    switched = sum(a != b for a, b in told)
    low, high = wilson_interval(switched, len(told)) if told else (0.0, 1.0)
    return Drift(
        len(pairs),
        _change("words", [(len(words(a)), len(words(b))) for a, b in pairs]),
        _change("empty", [(not a.strip(), not b.strip()) for a, b in pairs]),
        _change("refused", [(refuses(a), refuses(b)) for a, b in pairs]),
        tuple(_change(name, [(a == name, b == name) for a, b in spoken]) for name in (*STOPWORDS, NEITHER, UNTOLD)),
        len(told),
        switched / len(told) if told else 0.0,
        low,
        high,
    )


def _change(name: str, pairs: Sequence[tuple[float, float]]) -> Change:
    # The interval is made for differences in [-1, 1]: lengths are scaled to it and back.
    scale = float(max(1, *(max(pair) for pair in pairs)))
    found = paired_difference([b / scale for _, b in pairs], [a / scale for a, _ in pairs])
    means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    return Change(name, len(pairs), means[0], means[1], found.estimate * scale, found.low * scale, found.high * scale)
