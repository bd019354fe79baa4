"""How much of a passage a chunk covers. Both are literal text of documents, so that nothing needs to be aligned."""

from __future__ import annotations

from collections.abc import Sequence

# Fewer characters than these are shared by chance.
EDGE = 16


def folded(text: str) -> str:
    """Single spaces: what lengths and runs are counted in."""
    return " ".join(text.split())


def covers_half(text: str, passage: str) -> bool:
    """Whether an unbroken run of `text` is at least half of `passage` (both folded); False for an empty passage.

    Such a run holds one whole block of a passage that is cut into four (or a few more); so only where a block is found need
    its neighbourhood be compared. Exact, and a hundred times as fast as the longest common run.
    """
    half = (len(passage) + 1) // 2
    if not passage or len(text) < half:
        return False
    size = (half + 1) // 2
    for start in range(0, len(passage) - size + 1, size):
        block = passage[start : start + size]
        at = text.find(block)
        while at >= 0:
            before = _common(passage[:start][::-1], text[:at][::-1])
            if before + size + _common(passage[start + size :], text[at + size :]) >= half:
                return True
            at = text.find(block, at + 1)
    return False


def share_covered(texts: Sequence[str], passage: str) -> float:
    """Share of the passage's characters, in [0, 1], that some of the texts cover (all folded): 0 for an empty passage.

    A text covers a part of at least `EDGE` characters where it lies over the passage as two parts of one document do: inside
    it, around it, or over one of its ends. Words that both happen to hold cover nothing. A space between two parts is covered.
    """
    if not passage:
        return 0.0
    covered, reached = 0, 0
    for start, end in sorted(part for text in texts for part in _parts(text, passage)):
        # The space between two chunks is in neither.
        begin = reached if passage[reached:start] == " " else max(start, reached)
        covered += max(0, end - begin)
        reached = max(reached, end)
    return covered / len(passage)


def _parts(text: str, passage: str) -> list[tuple[int, int]]:
    """Where in the passage the text lies: from, to."""
    if passage in text:
        return [(0, len(passage))]
    at = passage.find(text)
    if at >= 0 and len(text) >= EDGE:
        return [(at, at + len(text))]
    return [part for part in (_over_begin(text, passage), _over_end(text, passage)) if part]


def _over_begin(text: str, passage: str) -> tuple[int, int] | None:
    """The longest beginning of the passage that ends the text."""
    at = text.find(passage[:EDGE])
    while 0 <= at <= len(text) - EDGE:
        if passage.startswith(text[at:]):
            return 0, len(text) - at
        at = text.find(passage[:EDGE], at + 1)
    return None


def _over_end(text: str, passage: str) -> tuple[int, int] | None:
    """The longest end of the passage that begins the text."""
    tail = passage[-EDGE:]
    at = text.rfind(tail)
    while at >= 0 and len(tail) == EDGE:
        if passage.endswith(text[: at + EDGE]):
            return len(passage) - at - EDGE, len(passage)
        at = text.rfind(tail, 0, at + EDGE - 1)
    return None


def _common(one: str, other: str) -> int:
    """The length of the longest common beginning, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
