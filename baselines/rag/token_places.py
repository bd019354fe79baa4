"""Where the tokens of a text begin, so that its parts can be measured and cut without being tokenised again."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from evals.engines.embed import Embedder
from evals.task.reading.strict_json import SURROGATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# WordPiece reads a run of more than 100 characters as one unknown token (and so does any tokeniser a run of what it drops): such
# a run is measured in pieces of this many characters, by which it can be cut too.
LONGEST_TOKEN = 100
PIECE = 50
# A longer token is no word that the model knows, but a run of letters that it does not. It is never cut, and counts as one token
# for every four of its characters: to the model that reads the passages it is about as long.
LONGEST_WORD = 16
LETTERS = 4


class TokenPlaces:
    """The tokens of `text[start:end]`, by the place in `text` that each begins at."""

    def __init__(self, text: str, start: int, end: int, embedder: Embedder) -> None:
        self.text = text
        # No tokeniser takes half of a surrogate pair.
        self.places: list[int] = (_places(SURROGATE.sub("?", text[start:end]), embedder) + start).tolist()

    def count(self, start: int, end: int) -> int:
        """How many tokens begin in this part."""
        return bisect_left(self.places, end) - bisect_left(self.places, start)

    def windows(self, start: int, end: int, size: int, overlap: int = 0) -> list[tuple[int, int]]:
        """This part in windows of at most `size` tokens, of which `overlap` at most are those of the window before.

        They begin and end at white space where the second half of a window has some, else between two words, else between two
        tokens. A character of several tokens is never cut, so that a window may hold more than `size` of them where it is one
        character.
        """
        at, last = bisect_left(self.places, start), bisect_left(self.places, end)
        found = []
        while at + size < last:
            cut = self._cut(max(at + size // 2, at + overlap) + 1, at + size, last)
            if cut >= last:
                break
            found.append((start, self.places[cut]))
            again = next((one for one in range(cut - overlap, cut) if self._strength(one) == 2), cut)
            at, start = again, self.places[again]
        return [*found, (start, end)]

    def _cut(self, least: int, most: int, last: int) -> int:
        """The last of the best places to cut at."""
        best = max(range(most, least - 1, -1), key=self._strength, default=most)
        while best < last and self._strength(best) < 0:
            best += 1
        return best

    def _strength(self, token: int) -> int:
        """Of a cut before this token: 2 at white space, 1 between words, 0 within one, -1 within a character."""
        place = self.places[token]
        if token and self.places[token - 1] == place:
            return -1
        before, after = self.text[place - 1 : place], self.text[place : place + 1]
        if not before or before.isspace() or after.isspace():
            return 2
        return 0 if before.isalnum() and after.isalnum() else 1


def _places(text: str, embedder: Embedder) -> NDArray[np.int64]:
    import numpy as np

    spans = _spans(text, embedder)
    borders = np.concatenate([[0], spans[:, 0], [len(text)]])
    holes = [(int(borders[at]), int(borders[at + 1])) for at in np.flatnonzero(np.diff(borders) > LONGEST_TOKEN)]
    if holes:
        spans = spans[~np.isin(spans[:, 0], [start for start, _ in holes])]
        spans = np.concatenate([spans, *(_pieces(text, *hole, embedder) for hole in holes)])
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
    lengths = spans[:, 1] - spans[:, 0]
    counted: NDArray[np.int64] = np.repeat(spans[:, 0], np.where(lengths > LONGEST_WORD, lengths // LETTERS, 1))
    return counted


def _spans(text: str, embedder: Embedder) -> NDArray[np.int64]:
    """(n, 2): where each token begins and ends."""
    import numpy as np

    return np.array(embedder.token_spans(text), dtype=np.int64).reshape(-1, 2)


def _pieces(text: str, start: int, end: int, embedder: Embedder) -> NDArray[np.int64]:
    """The tokens of a run that is read piece by piece; a piece of which nothing is read is a token too."""
    import numpy as np

    firsts = np.arange(start, end, PIECE)
    apart = "\n".join(text[first : min(first + PIECE, end)] for first in firsts.tolist())
    found = _spans(apart, embedder)
    # Not the line ends, which some tokenisers count.
    found = found[found[:, 0] % (PIECE + 1) < PIECE]
    found = found - found[:, :1] // (PIECE + 1) + start
    unread = firsts[~np.isin(firsts, found[:, 0])]
    return np.concatenate([found, np.stack([unread, unread + 1], axis=1)])
