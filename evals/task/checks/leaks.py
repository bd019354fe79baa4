"""What one pool of texts knows of another: rows of train, dev and test that are one item, questions that a document holds word
for word, benchmark items among the training rows.

From strict to loose: the same words; a run of 8 words and more (the whole of a short text, half of a long one); a Jaccard index
of 0.8 over word pairs; a light edit of a text under 20 words; and for a person to judge, a high cosine of embeddings. Numbers,
signs of arithmetic and negations must agree in all of them, and in short texts no word may be replaced: `wording` says how.
Texts are compared without what the task repeats in its rows, such as an instruction (`pairs.corpus`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evals.events import OnEvent, ignore
from evals.task.checks.edits import edited
from evals.task.checks.findings import Finding, Place
from evals.task.checks.matching import Pieces, matched
from evals.task.checks.pairs import Corpus, Pair, corpus, distinct, held_by_documents, near, quoted
from evals.task.checks.wording import fixed, words
from evals.task.reading.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Embed = Callable[[Sequence[str]], NDArray[np.float32]]

# The row that a fix takes away, and what it would be a leak of. The test loses nothing, nor do documents and benchmarks.
CROSSINGS = (
    ("train", "dev"),
    ("train", "test"),
    ("dev", "test"),
    ("train", "general"),
    ("preferences", "dev"),
    ("preferences", "test"),
    ("preferences", "general"),
    ("replay", "dev"),
    ("replay", "test"),
    ("replay", "general"),
)
CHECKS = ("leak.exact", "leak.ngram", "leak.near", "leak.edited")
HOW = {
    "leak.exact": "has the same words as",
    "leak.ngram": "shares a run of {value:.0f} words with",
    "leak.near": "has nearly the same words (Jaccard {value:.2f}) as",
    "leak.edited": "is a light edit (ratio {value:.2f}) of",
}
NAMES = {"general": "general benchmark item"}
# Cosine plus what it has over its next neighbours; and the same where word pieces are matched too, which count half. Measured
# (`make bench-intake`): about one in a hundred questions to a bank of another intent reaches it.
STANDS_OUT, STANDS_OUT_IN_PIECES, PIECES_COUNT = 0.96, 1.32, 0.5
# The score from which on a pair is worth reading piece by piece (most pairs that pass have nine tenths of the share), and the
# partners of a row that are read.
WORTH_READING, PARTNERS = 0.87, 2
LEAST_COSINE = 0.7
NEIGHBOURS = 3
MOST_SHOWN = 50
BLOCK = 2048


@dataclass(frozen=True)
class Text:
    """One text that can leak, and where it stands (`place.text` is the whole of it).

    `group`: rows of one group are expected to be alike, in one pool. A leak between two rows of one group says so.
    """

    place: Place
    group: str | None = None


def leaks(texts: Sequence[Text], on_event: OnEvent = ignore, documents: Sequence[Document] = ()) -> list[Finding]:
    """Rows that stand in two pools, with their words equal, quoted, nearly equal or lightly edited.

    Each row of either side is told once for each other pool, by the strictest kind and with its best partner; a pair that is the
    best of both is one finding. Within a pool nothing is a leak.
    `value` is 1 (exact), words of the shared run, the Jaccard index or the edit ratio. Of documents only what they hold of dev
    and test questions is looked at: the answers are supposed to be there.
    """
    rows = [one for one in texts if one.place.text.strip()]
    found, own = distinct([one.place.text for one in rows])
    some = corpus(found)
    holders = _holders(rows, own, len(found))
    # By row and the other pool: the strictest kind, the highest value, the first pair (the row that loses, the one that stays).
    best: dict[tuple[int, str], tuple[int, float, int, int]] = {}
    for kind, pair in _crossing_pairs(some, holders, on_event):
        for loser, other in _crossings(holders, pair):
            losing, staying = holders[loser[1]][loser[0]], holders[other[1]][other[0]]
            offers = [(row, other[0], (kind, -pair.value, row, staying[0])) for row in losing]
            offers += [(row, loser[0], (kind, -pair.value, losing[0], row)) for row in staying]
            for row, pool, offer in offers:
                best[row, pool] = min(best.get((row, pool), offer), offer)
    told = sorted({(row, partner, kind, value) for kind, value, row, partner in best.values()})
    findings = [_finding(rows[row], rows[partner], kind, -value) for row, partner, kind, value in told]
    return findings + _in_documents(rows, own, holders, some, documents)


def _holders(rows: Sequence[Text], own: Sequence[int], count: int) -> list[dict[str, list[int]]]:
    """For each distinct text, the rows that hold it, by pool."""
    holders: list[dict[str, list[int]]] = [{} for _ in range(count)]
    for row, number in enumerate(own):
        holders[number].setdefault(rows[row].place.pool, []).append(row)
    return holders


def _crossing_pairs(some: Corpus, holders: Sequence[dict[str, list[int]]], on_event: OnEvent) -> Iterator[tuple[int, Pair]]:
    """(kind, pair) of distinct texts, a text with itself where two pools hold it."""
    import numpy as np

    pools = ("train", "dev", "test", "general", "preferences", "replay")
    bits = np.array([sum(1 << pools.index(pool) for pool in one) for one in holders], dtype=np.int64)
    crossings = [(1 << pools.index(loser), 1 << pools.index(other)) for loser, other in CROSSINGS]

    def allowed(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        ours, theirs = bits[first], bits[second]
        crossing = np.zeros(len(first), dtype=np.bool_)
        for loser, other in crossings:
            crossing |= ((ours & loser > 0) & (theirs & other > 0)) | ((ours & other > 0) & (theirs & loser > 0))
        return crossing

    for number, one in enumerate(holders):
        if len(one) > 1:
            yield 0, Pair(number, number, 1.0)
    for kind, search in enumerate((quoted, near, edited), start=1):
        for pair in search(some, allowed, on_event):
            yield kind, pair


def _crossings(holders: Sequence[dict[str, list[int]]], pair: Pair) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """((pool, text) that loses, (pool, text) that stays) for every way that a pair crosses from pool to pool."""
    for loser, other in CROSSINGS:
        for first, second in {(pair.first, pair.second), (pair.second, pair.first)}:
            if loser in holders[first] and other in holders[second]:
                yield (loser, first), (other, second)


def _finding(row: Text, other: Text, kind: int, value: float) -> Finding:
    check = CHECKS[kind]
    message = f"this {row.place.pool} row {HOW[check].format(value=value)} a {_name(other)}"
    if row.group is not None and row.group == other.group:
        message += f"; both are of group {row.group!r}, whose rows belong in one split"
    # `--fix` writes the splits; preferences and replay are the user's to mend.
    return Finding(check, "warning", message, (row.place, other.place), value, drop=row.place.pool in {"train", "dev", "test"})


def _name(text: Text) -> str:
    return NAMES.get(text.place.pool, f"{text.place.pool} row")


def _in_documents(
    rows: Sequence[Text],
    own: Sequence[int],
    holders: Sequence[dict[str, list[int]]],
    some: Corpus,
    documents: Sequence[Document],
) -> list[Finding]:
    """Dev and test questions that a document holds word for word, each with the document that holds most of it."""
    asked = [number for number, one in enumerate(holders) if "dev" in one or "test" in one]
    best: dict[int, tuple[int, int]] = {}
    for number, document, run in held_by_documents(some, asked, (words(one.text) for one in documents)):
        best[number] = max(best.get(number, (0, 0)), (run, -document))
    findings = []
    for row, number in enumerate(own):
        if number in best and rows[row].place.pool in {"dev", "test"}:
            run, minus = best[number]
            holder = documents[-minus]
            place = Place("documents", holder.id, holder.id, 0, holder.text)
            message = f"a document holds {run} words in a row of this {rows[row].place.pool} question"
            findings.append(Finding("leak.ngram", "review", message, (rows[row].place, place), float(run)))
    return findings


def similar(
    texts: Sequence[Text],
    embed: Embed,
    threshold: float | None = None,
    *,
    pieces: Pieces | None = None,
    reported: Sequence[Finding] = (),
) -> list[Finding]:
    """Rows of two pools that may mean the same, by the cosine of their embeddings (unit vectors): for a person to judge.

    In a narrow domain all rows have a high cosine, so what counts is the cosine plus its margin over the mean of both rows' next
    neighbours across the two pools (Artetxe and Schwenk 2019, 1811.01136; with a margin of 0 the threshold is one of the
    cosine). With `pieces` the best partners are read once more, word piece by word piece (`matching`). Each row once for each
    other pool, with its best partner; not the rows that are `reported` (by `leaks`) for that pool, and no two texts whose
    numbers, signs or negations differ, which embeddings hardly see.

    The MOST_SHOWN that stand out most are shown with their cosine, and a last finding (`info`) says how many more there are.
    """
    rows = [one for one in texts if one.place.text.strip()]
    if not rows:
        return []
    import numpy as np

    vectors = embed([one.place.text for one in rows])
    guards: dict[tuple[str, ...], int] = {}
    guard = np.array([guards.setdefault(fixed(words(one.place.text)), len(guards)) for one in rows], dtype=np.int64)
    known = {(one.places[0].pool, one.places[0].id, one.places[1].pool) for one in reported if len(one.places) > 1}
    found: list[Match] = []
    for loser, other in CROSSINGS:
        pools = [
            np.array([at for at, one in enumerate(rows) if one.place.pool == pool], dtype=np.int64) for pool in (loser, other)
        ]
        least, most = (threshold or STANDS_OUT, 1) if pieces is None else (WORTH_READING, PARTNERS)
        matches = _standing_out(vectors, guard, pools[0], pools[1], least, most)
        matches = [one for one in matches if (loser, rows[one.row].place.id, other) not in known]
        found += matches if pieces is None else _read_again(matches, rows, pieces, threshold or STANDS_OUT_IN_PIECES)
    found.sort(key=lambda one: (-one.score, one.row, one.partner))
    findings = [_similar_finding(rows[one.row], rows[one.partner], one.cosine) for one in found[:MOST_SHOWN]]
    if len(found) > MOST_SHOWN:
        more = len(found) - MOST_SHOWN
        message = f"{more} more rows may mean the same as one of another pool; the {MOST_SHOWN} that stand out most are shown"
        findings.append(Finding("leak.similar", "info", message, value=float(more)))
    return findings


def _read_again(matches: Sequence[Match], rows: Sequence[Text], pieces: Pieces, threshold: float) -> list[Match]:
    """The matches that still stand out when their word pieces are matched too, each row with its best partner."""
    pairs = [(rows[one.row].place.text, rows[one.partner].place.text) for one in matches]
    shares = matched(pairs, [one.place.text for one in rows], pieces)
    best: dict[int, Match] = {}
    for one, share in zip(matches, shares, strict=True):
        read = replace(one, score=one.score + PIECES_COUNT * share)
        if read.score >= threshold and read.score > best.get(one.row, NO_MATCH).score:
            best[one.row] = read
    return list(best.values())


@dataclass(frozen=True)
class Match:
    """A row and a partner by their numbers; `score` is the cosine plus its margin (plus what its word pieces say)."""

    row: int
    partner: int
    cosine: float
    score: float


def _similar_finding(row: Text, partner: Text, cosine: float) -> Finding:
    message = f"this {row.place.pool} row may mean the same as a {_name(partner)} (cosine {cosine:.2f})"
    return Finding("leak.similar", "review", message, (row.place, partner.place), cosine)


NO_MATCH = Match(-1, -1, 0.0, -1.0)


def _standing_out(
    vectors: NDArray[np.float32],
    guard: NDArray[np.int64],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
    least: float,
    most: int,
) -> list[Match]:
    """The rows of one pool with up to `most` best partners in the other one whose score is `least` or more, in blocks of rows."""
    import numpy as np

    found: list[Match] = []
    if not len(ours) or not len(theirs):
        return found
    around = _next_neighbours(vectors[ours], vectors[theirs]), _next_neighbours(vectors[theirs], vectors[ours])
    for start in range(0, len(ours), BLOCK):
        block = ours[start : start + BLOCK]
        cosines = vectors[block] @ vectors[theirs].T
        scores = 2 * cosines - (around[0][start : start + BLOCK, None] + around[1][None, :]) / 2
        scores[(guard[block][:, None] != guard[theirs][None, :]) | (cosines < LEAST_COSINE)] = -1.0
        for _ in range(min(most, len(theirs))):
            best = scores.argmax(axis=1)
            for at in np.flatnonzero(scores.max(axis=1) >= least).tolist():
                partner = int(best[at])
                cosine = min(1.0, float(cosines[at, partner]))
                found.append(Match(int(block[at]), int(theirs[partner]), cosine, float(scores[at, partner])))
            scores[np.arange(len(block)), best] = -1.0
    return found


def _next_neighbours(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each row the mean cosine of its NEIGHBOURS nearest after the nearest (which where there is no other stands for them)."""
    import numpy as np

    count = min(NEIGHBOURS + 1, len(theirs))
    means = np.zeros(len(ours), dtype=np.float32)
    for start in range(0, len(ours), BLOCK):
        cosines = ours[start : start + BLOCK] @ theirs.T
        nearest = np.partition(cosines, len(theirs) - count, axis=1)[:, len(theirs) - count :]
        rest = nearest.sum(axis=1) - nearest.max(axis=1)
        means[start : start + BLOCK] = rest / (count - 1) if count > 1 else nearest[:, 0]
    return means


def clusters(texts: Sequence[str]) -> list[int]:
    """The number of each text's cluster of near-duplicates, counted from 0 in the order in which they first appear.

    Clusters are joined from all pairs that `leaks` would report, so that a split that keeps clusters whole leaks nothing. The
    same partition comes from any order of the texts.
    """
    import numpy as np

    found, own = distinct(texts)
    some = corpus(found)
    root = list(range(len(found)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    def apart(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        # What is joined already, by whatever way, need not be compared: questions about one passage are many pairs.
        roots = np.array([find(number) for number in range(len(root))], dtype=np.int64)
        different: NDArray[np.bool_] = roots[first] != roots[second]
        return different

    for search in (quoted, near, edited):
        for pair in search(some, apart):
            root[find(pair.first)] = find(pair.second)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(number), len(numbers)) for number in own]
