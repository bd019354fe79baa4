"""Long texts that are nearly the same, and texts that quote one another, among many and without comparing all pairs.

Candidates for a Jaccard index come from the rarest word pairs: where two sets share all but k of their members, the k + 1 rarest
of each hold one in common (prefix filtering: Chaudhuri et al. 2006, Bayardo et al. 2007). Unlike MinHash this misses nothing,
knows no seed, and is not slowed by what all rows of a task share. Each candidate is then verified by its true figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from evals.events import OnEvent, Ticker, ignore
from evals.task.checks.wording import SHORT, WORDS_PER_NUMBER, fixed, same_fixed, spelling, words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Flags = NDArray[np.bool_]
    # Which of the pairs (first text of each, second text of each) are asked for.
    Allowed = Callable[[Numbers, Numbers], Flags]

JACCARD = 0.8
GRAM = 8
# The share that a run must cover of a text of SHORT words or more; of a shorter one it must be all.
RUN_SHARE = 0.5
# The share of a question that a document must hold in one run: a word of it may be off at one end.
QUOTED_SHARE = 0.8
# A run of words that stands in more texts than this is a turn of phrase.
TURN_OF_PHRASE = 50
# An instruction or a form that a task repeats in its rows says nothing about two of them. Repeated are 8-grams that stand in
# more than one of twenty texts and more than 50; of few texts, in more than four of five.
REPEATED_SHARE, REPEATED_TEXTS, REPEATED_OF_FEW, FEWEST = 0.05, 50, 0.8, 10
# Pairs held at a time, and from how many on the work is worth showing.
CHUNK, WORTH_SHOWING = 1 << 21, 1 << 20
# Candidates that are verified before the caller is asked again which ones are wanted.
ASKED_AGAIN = 2048


@dataclass(frozen=True)
class Pair:
    """Two texts by their number, and how alike they are: the Jaccard index, the words of the run that they share, or the edit ratio."""

    first: int
    second: int
    value: float


@dataclass(frozen=True)
class Corpus:
    """Distinct texts as words and as word numbers. `flat` holds the texts one after another, text i from `starts[i]` on.

    Which pairs there are depends on the texts alone, never on their order: a number only breaks ties of words as rare.
    """

    texts: list[list[str]]
    numbers: dict[str, int]
    flat: Numbers
    starts: Numbers
    lengths: Numbers


@dataclass(frozen=True)
class Grams:
    """Runs of words as 64-bit hashes, ordered by hash: of which text, and from which word on."""

    hashes: NDArray[np.uint64]
    owners: Numbers
    places: Numbers


def distinct(texts: Sequence[str]) -> tuple[list[list[str]], list[int]]:
    """The words of each distinct text, and for every text the number of its own. Texts of equal spelling are one."""
    numbers: dict[str, int] = {}
    found: list[list[str]] = []
    own: list[int] = []
    for text in texts:
        some = words(text)
        number = numbers.setdefault(spelling(some), len(found))
        if number == len(found):
            found.append(some)
        own.append(number)
    return found, own


def corpus(texts: Sequence[list[str]]) -> Corpus:
    """Distinct texts, made ready: without the words that the task repeats in them."""
    whole = _numbered(list(texts))
    repeated = _repeated(whole)
    if not repeated.any():
        return whole
    own = [
        [word for word, skip in zip(text, repeated[start : start + len(text)].tolist(), strict=True) if not skip]
        for text, start in zip(whole.texts, whole.starts.tolist(), strict=True)
    ]
    return _numbered(own)


def _numbered(texts: list[list[str]]) -> Corpus:
    import numpy as np

    numbers: dict[str, int] = {}
    flat = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], dtype=np.int64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    return Corpus(texts, numbers, flat, np.cumsum(lengths) - lengths, lengths)


def _repeated(whole: Corpus) -> Flags:
    """Which words of `flat` stand in a run that the task repeats."""
    import numpy as np

    count = len(whole.texts)
    ends = np.zeros(len(whole.flat) + 1, dtype=np.int64)
    if count >= FEWEST:
        limit = max(REPEATED_SHARE * count, min(REPEATED_TEXTS, REPEATED_OF_FEW * count))
        grams = _grams(whole.flat, whole.starts, whole.lengths)
        often = _texts_of_gram(grams) > limit
        begins = whole.starts[grams.owners[often]] + grams.places[often]
        np.add.at(ends, begins, 1)
        np.add.at(ends, begins + GRAM, -1)
    covered: Flags = np.cumsum(ends)[:-1] > 0
    return covered


def _grams(flat: Numbers, starts: Numbers, lengths: Numbers, size: int = GRAM) -> Grams:
    """All runs of `size` words that lie within one text."""
    import numpy as np

    owners = np.repeat(np.arange(len(lengths)), np.maximum(lengths - size + 1, 0))
    first = np.cumsum(np.maximum(lengths - size + 1, 0)) - np.maximum(lengths - size + 1, 0)
    places = np.arange(len(owners)) - first[owners]
    begins = starts[owners] + places
    mixed = _mixed(flat)
    hashes = np.zeros(len(owners), dtype=np.uint64)
    for step in range(size):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + mixed[begins + step]
    order = np.lexsort((places, owners, hashes))
    return Grams(hashes[order], owners[order], places[order])


def _mixed(numbers: Numbers) -> NDArray[np.uint64]:
    """A word's number as 64 bits without pattern (splitmix64, Steele et al. 2014)."""
    import numpy as np

    z = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _first_of_each(grams: Grams) -> Grams:
    """Each gram of a text once, the first: a text that repeats itself a million times is not compared with itself."""
    import numpy as np

    again = (grams.hashes[1:] == grams.hashes[:-1]) & (grams.owners[1:] == grams.owners[:-1])
    fresh = np.r_[True, ~again][: len(grams.hashes)]
    return Grams(grams.hashes[fresh], grams.owners[fresh], grams.places[fresh])


def _texts_of_gram(grams: Grams) -> Numbers:
    """For each gram, in how many texts it stands."""
    import numpy as np

    if not len(grams.hashes):
        return np.zeros(0, dtype=np.int64)
    fresh = np.r_[True, grams.hashes[1:] != grams.hashes[:-1]]
    group = np.cumsum(fresh) - 1
    texts: Numbers = np.bincount(group[fresh | np.r_[True, grams.owners[1:] != grams.owners[:-1]]])
    own: Numbers = texts[group]
    return own


def near(some: Corpus, allowed: Allowed, on_event: OnEvent = ignore) -> Iterator[Pair]:
    """Pairs of SHORT words or more whose sets of word pairs have a Jaccard index of at least 0.8, and the same numbers."""
    import numpy as np

    lengths = np.where(some.lengths >= SHORT, some.lengths, 0)
    grams = _first_of_each(_grams(some.flat, some.starts, lengths, size=2))
    sizes = np.bincount(grams.owners, minlength=len(some.texts))
    reach = sizes - np.ceil(JACCARD * sizes - 1e-9).astype(np.int64) + 1
    sets: dict[int, frozenset[tuple[str, str]]] = {}

    def close(first: Numbers, second: Numbers) -> Flags:
        fewer, more = np.minimum(sizes[first], sizes[second]), np.maximum(sizes[first], sizes[second])
        return (fewer >= JACCARD * more) & allowed(first, second)

    def of(number: int) -> frozenset[tuple[str, str]]:
        if number not in sets:
            text = some.texts[number]
            sets[number] = frozenset(pairwise(text))
        return sets[number]

    for first, second in _sharing(grams.hashes, grams.owners, reach, close, on_event, "comparing long texts"):
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            shared = len(of(one) & of(other))
            jaccard = shared / (len(of(one)) + len(of(other)) - shared)
            if jaccard >= JACCARD and same_fixed(some.texts[one], some.texts[other]):
                yield Pair(one, other, jaccard)


def _sharing(
    keys: NDArray[np.int64] | NDArray[np.uint64], owners: Numbers, reach: Numbers, close: Allowed, on_event: OnEvent, task: str
) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of owners that hold one of the `reach` rarest keys of each in common and are `close`, some at a time, once each."""
    import numpy as np

    if not len(keys):
        return
    _, number, count = np.unique(keys, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    order = np.lexsort((number, count[number], owners))
    number, owners = number[order], owners[order]
    fresh = np.r_[True, (number[1:] != number[:-1]) | (owners[1:] != owners[:-1])]
    number, owners = number[fresh], owners[fresh]
    begins = np.r_[True, owners[1:] != owners[:-1]]
    rank = np.arange(len(owners)) - np.flatnonzero(begins)[np.cumsum(begins) - 1]
    rare = rank < reach[owners]
    number, owners = number[rare], owners[rare]
    order = np.lexsort((owners, number))
    yield from _within(number[order], owners[order], close, on_event, task)


def _within(
    group: NDArray[np.int64] | NDArray[np.uint64], owners: Numbers, close: Allowed, on_event: OnEvent, task: str
) -> Iterator[tuple[Numbers, Numbers]]:
    """The pairs of owners within each group (runs of equal numbers) that are `close`, CHUNK candidates at a time."""
    import numpy as np

    last = np.r_[group[1:] != group[:-1], True]
    ends = np.flatnonzero(last)[np.cumsum(last) - last]
    followers = ends - np.arange(len(group))
    upto = np.cumsum(followers)
    ticker = Ticker(on_event, task, int(upto[-1]), "pairs") if upto[-1] > WORTH_SHOWING else None
    start = 0
    while start < len(group):
        before = upto[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(upto, before + CHUNK, side="right")))
        some = followers[start:stop]
        at = np.repeat(np.arange(start, stop), some)
        step = np.arange(len(at)) - np.repeat(np.cumsum(some) - some, some) + 1
        first, second = owners[at], owners[at + step]
        kept = (first != second) & close(first, second)
        codes = np.unique(first[kept] * (owners.max() + 1) + second[kept])
        yield codes // (owners.max() + 1), codes % (owners.max() + 1)
        if ticker:
            ticker.advance(len(at))
        start = stop


def quoted(some: Corpus, allowed: Allowed, on_event: OnEvent = ignore) -> Iterator[Pair]:
    """Pairs of which one holds the other, or a large part of it, word for word: the words of the longest shared run.

    At least 8 words, and all of a text under SHORT words (else every "I would like to know the rate of …" would be one), half
    of a longer one whose numbers, signs and negations stand in the other too.
    """
    import numpy as np

    every = _grams(some.flat, some.starts, some.lengths)
    grams = _first_of_each(every)
    repeats = np.bincount(every.owners, minlength=len(some.texts)) != np.bincount(grams.owners, minlength=len(some.texts))
    own = _by_text(grams, len(some.texts))
    count = _texts_of_gram(grams)
    seen: list[Numbers] = []
    kept = (count > 1) & (count <= TURN_OF_PHRASE)
    if kept.any():
        base = len(some.texts)
        for first, second in _within(grams.hashes[kept], grams.owners[kept], allowed, on_event, "comparing runs of words"):
            seen.append(np.unique(first * base + second))
    codes = np.unique(np.concatenate(seen)) if seen else np.zeros(0, dtype=np.int64)
    for start in range(0, len(codes), ASKED_AGAIN):
        firsts, seconds = (some_codes for some_codes in np.divmod(codes[start : start + ASKED_AGAIN], max(1, len(some.texts))))
        # Asked again: the caller may know more by now.
        still = allowed(firsts, seconds) if start else np.ones(len(firsts), dtype=np.bool_)
        for first, second in zip(firsts[still].tolist(), seconds[still].tolist(), strict=True):
            shorter, longer = sorted((first, second), key=lambda one: len(some.texts[one]))
            needed = _needed(len(some.texts[shorter]))
            if repeats[first] or repeats[second]:
                run = longest_run(_of(some, shorter), _of(some, longer), needed)
            else:
                run = _run_of_grams(own(shorter), own(longer))
            if run >= needed and _holds(some.texts[longer], some.texts[shorter]):
                yield Pair(first, second, run)


def _by_text(grams: Grams, count: int) -> Callable[[int], tuple[NDArray[np.uint64], Numbers]]:
    """The grams of one text with their places, ordered by hash."""
    import numpy as np

    order = np.argsort(grams.owners, kind="stable")
    hashes, places = grams.hashes[order], grams.places[order]
    begins = np.searchsorted(grams.owners[order], np.arange(count + 1))
    return lambda text: (hashes[begins[text] : begins[text + 1]], places[begins[text] : begins[text + 1]])


def _run_of_grams(first: tuple[NDArray[np.uint64], Numbers], second: tuple[NDArray[np.uint64], Numbers]) -> int:
    """Words of the longest run of two texts that hold no gram twice: grams that follow one another in both."""
    import numpy as np

    at = np.minimum(np.searchsorted(second[0], first[0]), len(second[0]) - 1)
    both = second[0][at] == first[0]
    ours, shift = first[1][both], (second[1][at] - first[1])[both]
    if not len(ours):
        return 0
    order = np.lexsort((ours, shift))
    ours, shift = ours[order], shift[order]
    breaks = np.flatnonzero((np.diff(ours) != 1) | (np.diff(shift) != 0)) + 1
    return int(np.diff(np.r_[0, breaks, len(ours)]).max()) + GRAM - 1


def _needed(length: int) -> int:
    """How long a shared run must be, by the words of the shorter text."""
    return max(GRAM, length if length < SHORT else round(RUN_SHARE * length))


def _holds(longer: Sequence[str], shorter: Sequence[str]) -> bool:
    """Whether the numbers, signs and negations of the shorter text stand in the longer one."""
    missing = Counter(fixed(shorter)) - Counter(fixed(longer))
    return missing.total() <= len(shorter) // WORDS_PER_NUMBER


def _of(some: Corpus, number: int) -> Numbers:
    return some.flat[some.starts[number] : some.starts[number] + some.lengths[number]]


def longest_run(first: Numbers, second: Numbers, least: int = 1) -> int:
    """Words of the longest run that two texts share, 0 where it is under `least`. O(n log n), whatever the texts repeat."""
    import numpy as np

    def shares(size: int) -> bool:
        return bool(np.isin(_runs(first, size), _runs(second, size)).any())

    low, high = max(1, least), min(len(first), len(second))
    if low > high or not shares(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if shares(middle) else (low, middle - 1)
    return low


def _runs(text: Numbers, size: int) -> NDArray[np.uint64]:
    """Hashes of all runs of `size` words, by doubling."""
    import numpy as np

    power, hashes, width = np.uint64(0x9E3779B97F4A7C15), _mixed(text), 1
    # The hash of 2w words from two of w, as in suffix sorting; the last step overlaps, which tells no two runs less apart.
    while width < size:
        step = min(width, size - width)
        hashes = _mixed((hashes[: len(hashes) - step] * power + hashes[step:]).astype(np.int64))
        width += step
    return hashes


def held_by_documents(some: Corpus, asked: Sequence[int], documents: Iterable[Sequence[str]]) -> Iterator[tuple[int, int, int]]:
    """(text, document, words of the run) where a document holds 8 words and four fifths of a text of `asked` in one run.

    The documents' words are looked up and never compared with one another: they may be long and many.
    """
    import numpy as np

    chosen = np.array(sorted(asked), dtype=np.int64)
    if not len(chosen):
        return
    grams = _grams(some.flat, some.starts[chosen], some.lengths[chosen])
    known = np.unique(grams.hashes)
    for number, document in enumerate(documents):
        # A word that no text holds gets a number of no word.
        flat = np.array([some.numbers.get(word, -1) for word in document], dtype=np.int64)
        runs = _grams(flat, np.zeros(1, dtype=np.int64), np.array([len(flat)], dtype=np.int64))
        hits = np.intersect1d(known, runs.hashes)
        for text in np.unique(grams.owners[np.isin(grams.hashes, hits)]).tolist() if len(hits) else ():
            own = int(chosen[text])
            needed = max(GRAM, int(np.ceil(QUOTED_SHARE * some.lengths[own])))
            run = longest_run(_of(some, own), flat, needed)
            if run >= needed:
                yield own, number, run
