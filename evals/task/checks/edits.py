"""Lightly edited texts among many, none missed: by the rarest word of each, in any spelling that counts as the same.

Of two texts of which one is a light edit of the other, one holds every word of its fellow, but for slips and endings. So all
fellows of a text stand in the postings of its rarest word, and of the words that are alike to it. What a frame of words is
shared by, thousands of questions that differ in a name, is never compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evals.events import OnEvent, Ticker, ignore
from evals.task.checks.pairs import CHUNK, WORTH_SHOWING, Corpus, Pair
from evals.task.checks.wording import SHORT, WORDS_PER_CHANGE, alike, fixed, is_fixed, lightly_edited, stem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evals.task.checks.pairs import Allowed, Flags, Numbers

EDIT_RATIO = 0.8
LONGEST = SHORT + SHORT // WORDS_PER_CHANGE


def edited(some: Corpus, allowed: Allowed, on_event: OnEvent = ignore) -> list[Pair]:
    """Pairs, the shorter under SHORT words, that are light edits (`wording.lightly_edited`), with their edit ratio (Indel)."""
    import numpy as np
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    fits = (some.lengths > 1) & (some.lengths < LONGEST)
    joined = [" ".join(text) if fit else "" for text, fit in zip(some.texts, fits.tolist(), strict=True)]
    signs = np.array([len(one) for one in joined], dtype=np.int64)

    def close(first: Numbers, second: Numbers) -> Flags:
        fewer = np.minimum(some.lengths[first], some.lengths[second])
        more = np.maximum(some.lengths[first], some.lengths[second])
        ratio = 2 * np.minimum(signs[first], signs[second]) / np.maximum(1, signs[first] + signs[second])
        could: Flags = (fewer < SHORT) & (more - fewer <= fewer // WORDS_PER_CHANGE) & (ratio >= EDIT_RATIO)
        return could & allowed(first, second)

    pairs: dict[tuple[int, int], Pair] = {}
    for first, second in _fellows(some, fits, close, on_event):
        values = cpdist(
            [joined[at] for at in first.tolist()],
            [joined[at] for at in second.tolist()],
            scorer=Indel.normalized_similarity,
            score_cutoff=EDIT_RATIO,
            workers=2,
        )
        near = np.flatnonzero(values >= EDIT_RATIO)
        for one, other, value in zip(first[near].tolist(), second[near].tolist(), values[near].tolist(), strict=True):
            if (one, other) not in pairs and lightly_edited(some.texts[one], some.texts[other]):
                pairs[one, other] = Pair(one, other, value)
    return list(pairs.values())


def _fellows(some: Corpus, fits: Flags, close: Allowed, on_event: OnEvent) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs (lower number first) of which one holds the other's rarest word, or a word alike, and that are `close`."""
    import numpy as np

    if not fits.any():
        return
    guards: dict[tuple[str, ...], int] = {}
    # Only texts of the same numbers, signs and negations can be one item: a word is looked up among those.
    guard = np.array([guards.setdefault(fixed(text), len(guards)) for text in some.texts], dtype=np.int64)
    owners = np.repeat(np.arange(len(some.texts)), some.lengths)
    inside = fits[owners]
    owners = owners[inside]
    base = max(1, len(some.numbers))
    keys, slots = np.unique(guard[owners] * base + some.flat[inside], return_inverse=True)
    entries = np.unique(slots.reshape(-1) * len(some.texts) + owners)
    slots, owners = entries // len(some.texts), entries % len(some.texts)
    begins = np.searchsorted(slots, np.arange(len(keys) + 1))
    kin = _kin(some, keys, base)
    sizes = np.diff(begins)
    weight = np.bincount(kin[0], weights=sizes[kin[1]], minlength=len(keys)).astype(np.int64)
    rarest = _rarest(slots, owners, weight)
    yield from _asked(rarest, kin, begins, owners, close, on_event)


def _rarest(slots: Numbers, owners: Numbers, weight: Numbers) -> tuple[Numbers, Numbers]:
    """(text, its slot of least weight) for each text that has a slot."""
    import numpy as np

    order = np.lexsort((slots, weight[slots], owners))
    first = np.r_[True, owners[order][1:] != owners[order][:-1]]
    return owners[order][first], slots[order][first]


def _kin(some: Corpus, keys: Numbers, base: int) -> tuple[Numbers, Numbers]:
    """(slot, slot of a word that is the same or alike under the same guard), ordered by the first. A slot is a guard's word."""
    import numpy as np

    names = list(some.numbers)
    word, guard = keys % base, keys // base
    first, second = alike_words(names)
    # Every slot of a word, and under the same guard the slot of its kin, where there is one.
    order = np.argsort(word, kind="stable")
    starts = np.searchsorted(word[order], np.arange(len(names) + 1))
    counts = (starts[1:] - starts[:-1])[first]
    at = np.repeat(np.arange(len(first)), counts)
    step = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    ours = order[starts[first[at]] + step]
    wanted = guard[ours] * base + second[at]
    theirs = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    there = keys[theirs] == wanted
    every = np.arange(len(keys))
    ours, theirs = np.r_[every, ours[there]], np.r_[every, theirs[there]]
    by_first = np.argsort(ours, kind="stable")
    return ours[by_first], theirs[by_first]


def alike_words(names: list[str]) -> tuple[Numbers, Numbers]:
    """All pairs of different words that are alike (`wording.alike`), both ways round, by their numbers.

    Words alike have their stem in common, or one of the spellings with a letter left out (or the word itself): a letter more, less,
    replaced or exchanged always leaves one.
    """
    import numpy as np

    together: dict[str, list[int]] = {}
    for number, word in enumerate(names):
        if len(word) >= 3 and not is_fixed(word):
            less = {word[:at] + word[at + 1 :] for at in range(len(word))} if len(word) >= 4 else set()
            for key in {word, f"{stem(word)}-", *less}:
                together.setdefault(key, []).append(number)
    pairs = {
        (one, other)
        for numbers in together.values()
        if len(numbers) > 1
        for at, one in enumerate(numbers)
        for other in numbers[at + 1 :]
        if alike(names[one], names[other])
    }
    both = np.array(sorted(pairs | {(other, one) for one, other in pairs}), dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _asked(
    rarest: tuple[Numbers, Numbers],
    kin: tuple[Numbers, Numbers],
    begins: Numbers,
    owners: Numbers,
    close: Allowed,
    on_event: OnEvent,
) -> Iterator[tuple[Numbers, Numbers]]:
    """The postings of each text's rarest word and its kin, CHUNK candidates at a time, without those that are not `close`."""
    import numpy as np

    texts, slots = rarest
    kin_begins = np.searchsorted(kin[0], np.arange(len(begins)))
    asking, kin_at = _expanded(texts, kin_begins[slots], kin_begins[slots + 1])
    looked_up = kin[1][kin_at]
    upto = np.cumsum(begins[looked_up + 1] - begins[looked_up])
    ticker = Ticker(on_event, "comparing short texts", int(upto[-1]), "pairs") if upto[-1] > WORTH_SHOWING else None
    start = 0
    while start < len(asking):
        before = int(upto[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(upto, before + CHUNK, side="right")))
        some = looked_up[start:stop]
        one, at = _expanded(asking[start:stop], begins[some], begins[some + 1])
        first, second = np.minimum(one, owners[at]), np.maximum(one, owners[at])
        kept = (first != second) & close(first, second)
        base = int(owners.max()) + 1
        codes = np.unique(first[kept] * base + second[kept])
        yield codes // base, codes % base
        if ticker:
            ticker.advance(len(one))
        start = stop


def _expanded(values: Numbers, begins: Numbers, ends: Numbers) -> tuple[Numbers, NDArray[np.int64]]:
    """Each value once for every number of its range, and the numbers."""
    import numpy as np

    counts = ends - begins
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(values, counts), np.repeat(begins, counts) + offsets
