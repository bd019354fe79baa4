"""Labels: one of a closed set. Signs ("C++", "-1", "<=") and articles ("A") are part of a label, unlike of a text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from evals.metrics.text import UNSPACED, fold

# What models put around a label: quotes, brackets, Markdown, a closing full stop. Not + - < ! and the like.
WRAPPING = " \"'`*_()[]{}.,;:“”‘’«»„"
LETTER = rf"[^\W_{UNSPACED}]"
JOINT = re.compile(r"(?<=[^\W_])[\s_\-]+(?=[^\W_])")


def normalise_label(text: str) -> str:
    """Case and width folded, without the quotes, brackets or full stop around it (unless there is nothing else)."""
    folded = fold(text)
    return folded.strip(WRAPPING) or folded


def accuracy(output: str, target: str) -> float:
    """1 where output and target are the same label, else 0."""
    return float(normalise_label(output) == normalise_label(target))


def macro_f1_shares(outputs: Sequence[str], targets: Sequence[str], labels: Sequence[str] = ()) -> list[float]:
    """What each answer adds to macro-F1: the mean of these values is the macro-F1 of all of them.

    v = N/L * 2/(n + m) for an answer that is right, else 0: N answers, L labels, n targets and m answers of its label. So a
    single value may be above 1. L counts the labels that occur as a target, and those of `labels` that occur as an answer;
    an answer that is no label is wrong, but no label of its own.
    """
    given, wanted = [normalise_label(one) for one in outputs], [normalise_label(one) for one in targets]
    counts = Counter(given) + Counter(wanted)
    known = set(wanted) | ({normalise_label(one) for one in labels} & set(given))
    return [
        len(wanted) / len(known) * 2 / counts[target] if output == target else 0.0
        for output, target in zip(given, wanted, strict=True)
    ]


def first_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` mentions first, as whole words and in any case; the longest where several start there.

    Spaces, hyphens and underscores inside a label stand for one another. A label of one letter must stand in its own
    case, so that the article in "a clear B" is not the label A; only where nothing is found that way may it be in any.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    return _earliest(plain, labels, strict_case=True) or _earliest(plain, labels, strict_case=False)


def _earliest(text: str, labels: Sequence[str], *, strict_case: bool) -> str | None:
    found: list[tuple[int, int, str]] = []
    for label in labels:
        plain = " ".join(unicodedata.normalize("NFKC", label).split())
        if not plain:
            continue
        flags = re.NOFLAG if strict_case and len(plain) == 1 else re.IGNORECASE
        match = re.search(whole_words(plain), text, flags)
        if match:
            found.append((match.start(), match.start() - match.end(), label))
    return min(found, key=lambda one: one[:2])[2] if found else None


def whole_words(label: str) -> str:
    """A pattern for the label that does not start or end inside a longer word."""
    body = r"[\s_\-]+".join(re.escape(part) for part in JOINT.split(label))
    before = rf"(?<!{LETTER})" if re.match(LETTER, label) else ""
    after = rf"(?!{LETTER})" if re.search(rf"{LETTER}\Z", label) else ""
    return before + body + after
