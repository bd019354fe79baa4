"""A tagger of spans: which tokens of a text are the value of which key, learnt from texts whose spans are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from baselines.classic.crf import Crf, train_crf
from baselines.classic.literal import Run
from baselines.classic.tokens import Token, features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Features are hashed to this many columns (Weinberger et al. 2009), so that a text of any words can be read.
COLUMNS = 2**18
# The penalty on squared weights, and the steps of the optimiser.
PENALTY = 0.5
ROUNDS = 60
# Tokens that are learnt from: rows beyond them would cost minutes.
MOST_TOKENS = 100_000


@dataclass(frozen=True)
class Tagger:
    """Tags of a token: 0 for none of the keys, 1 + 2k where a value of key k begins, 2 + 2k where it goes on."""

    keys: tuple[str, ...]
    crf: Crf

    def spans(self, text: str, words: Sequence[Token]) -> dict[str, Run]:
        """The run of each key that has one; of several, the one that the tagger is surest of."""
        if not words:
            return {}
        emissions = self.crf.emissions(_hashed(features(text, words)))
        tags = self.crf.best(emissions)
        found: dict[str, tuple[float, Run]] = {}
        for at, tag in enumerate(tags):
            if tag == 0 or tag % 2 == 0:
                continue
            end = at + 1
            while end < len(tags) and tags[end] == tag + 1:
                end += 1
            sure = sum(float(emissions[one, tags[one]] - emissions[one, 0]) for one in range(at, end)) / (end - at)
            key = self.keys[tag // 2]
            if key not in found or sure > found[key][0]:
                found[key] = sure, Run(at, end)
        return {key: run for key, (_, run) in found.items()}


def train_tagger(
    texts: Sequence[str], words: Sequence[Sequence[Token]], spans: Sequence[Mapping[str, Run]], keys: Sequence[str]
) -> Tagger:
    """Learn from the runs of each text, which do not meet. Rows are left out evenly where there are too many tokens."""
    import numpy as np

    step = max(1, -(-sum(map(len, words)) // MOST_TOKENS))
    rows = [at for at in range(len(texts)) if words[at]][::step]
    seen = _hashed([names for at in rows for names in features(texts[at], words[at])])
    tags = np.concatenate([_tags(len(words[at]), spans[at], keys) for at in rows])
    crf = train_crf(seen, tags, [len(words[at]) for at in rows], _allowed(len(keys)), PENALTY, ROUNDS)
    return Tagger(tuple(keys), crf)


def _tags(length: int, spans: Mapping[str, Run], keys: Sequence[str]) -> NDArray[np.int64]:
    import numpy as np

    tags = np.zeros(length, dtype=np.int64)
    for at, key in enumerate(keys):
        if key in spans:
            tags[spans[key].first : spans[key].last] = 2 + 2 * at
            tags[spans[key].first] = 1 + 2 * at
    return tags


def _allowed(keys: int) -> NDArray[np.bool_]:
    """A value goes on only where it has begun or gone on; the last row is for the first token."""
    import numpy as np

    allowed = np.ones((2 + 2 * keys, 1 + 2 * keys), dtype=bool)
    for tag in range(2, 1 + 2 * keys, 2):
        allowed[:, tag] = False
        allowed[[tag - 1, tag], tag] = True
    return allowed


def _hashed(names: Sequence[Sequence[str]]) -> Any:
    from sklearn.feature_extraction import FeatureHasher

    return FeatureHasher(COLUMNS, input_type="string", alternate_sign=False).transform(names)
