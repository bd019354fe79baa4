"""Citations of passages in answers: found, taken out before the answer is scored, and checked against the passages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evals.metrics.text import containment
from evals.scores import Scores

# [1], [1, 3], [1][2], [2-4], [passage 2], [^1] and the same in 【】. Not (1), which is a list's or a law's, and not [2020]: a
# number of a passage has three digits at most.
NUMBER = r"[0-9]{1,3}"
CITATION = re.compile(
    rf"[\[【][ ]?(?:(?:passages?|sources?|no\.?)[ ]?|[#^])?({NUMBER}(?:[ ]?(?:,|;|-|–|&|and)[ ]?{NUMBER}){{0,20}})[ ]?[\]】]",
    re.IGNORECASE,
)
RANGE = re.compile(rf"({NUMBER})[ ]?[-–][ ]?({NUMBER})")
# A range that is longer than any prompt has passages is its two ends.
MAX_RANGE = 50
# White space before a citation goes with it; a full stop or comma behind it stays where the sentence ends.
WITH_SPACE = re.compile(rf"[^\S\n]*{CITATION.pattern}", re.IGNORECASE)


def citations(text: str) -> list[int]:
    """The numbers that a text cites, each once, in the order in which they come."""
    return list(dict.fromkeys(number for match in CITATION.finditer(text) for number in _numbers(match[1])))


def without_citations(text: str) -> str:
    """The text without its citations and the white space before each."""
    return WITH_SPACE.sub("", text)


def _numbers(inside: str) -> list[int]:
    """The numbers of one citation: "1, 3-5" is 1, 3, 4, 5."""

    def spelt(match: re.Match[str]) -> str:
        first, last = int(match[1]), int(match[2])
        return ",".join(map(str, range(first, last + 1))) if first <= last <= first + MAX_RANGE else f"{first},{last}"

    return [int(one) for one in re.findall(r"[0-9]+", RANGE.sub(spelt, inside))]


def cited_part(text: str) -> str:
    """The part of a model's text whose citations are those of its answer: up to the first line that says something, and
    the lines of nothing but citations behind it. Small models talk on, about other passages."""
    lines = text.splitlines()
    says = [bool(without_citations(line).strip()) for line in lines]
    end = says.index(True) + 1 if True in says else len(lines)
    while end < len(lines) and not says[end]:
        end += 1
    return "\n".join(lines[:end])


def defused(text: str) -> str:
    """A passage's own numbers in brackets (a paper's references) in round ones: none of them may pass for a number of ours."""
    return CITATION.sub(lambda match: f"({match[0][1:-1]})", text)


def supported(answer: str, cited: Sequence[int], passages: Sequence[str]) -> bool | None:
    """Whether the answer's words stand unbroken in one of the passages that it cites; None where it cites nothing.

    Passage n is `passages[n - 1]`. Words are compared by SQuAD's normalisation (`evals.metrics.text`).
    """
    if not cited:
        return None
    return any(containment(passages[number - 1], answer) > 0 for number in cited if 0 < number <= len(passages))


def citation_report(scores: Scores) -> dict[str, float]:
    """Shares over the answers that were given (`answers`): those that cite at all (`cited`), of these those that cite only
    passages which were shown (`valid`), and those whose words stand in a passage that they cite (`supported`).

    A share of nothing is 0. Empty where no answer was asked for citations.
    """
    told = [one for item in scores.items if not item.skipped for one in item.trace if "cited" in one]
    citing = [one for one in told if one["cited"]]
    if not told:
        return {}

    def share(count: int) -> float:
        return count / len(citing) if citing else 0.0

    return {
        "answers": float(len(told)),
        "cited": len(citing) / len(told),
        "valid": share(sum(not one["unknown_citations"] for one in citing)),
        "supported": share(sum(bool(one["supported"]) for one in citing)),
    }
