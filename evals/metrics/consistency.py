"""Consistency: does a candidate give one answer to a question however it is worded, and however often it is asked?

Paraphrases are the invariance test of CheckList (Ribeiro et al. 2020, 2005.04118); samples are the agreement that
self-consistency rests on (Wang et al. 2022, 2203.11171). A steady wrong answer scores 1: this stands beside a metric of
being right, never in its place. An example without paraphrases, where `samples` is 0, is not measured: it has no variants,
and belongs in no mean, least of all as a 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from evals.engines.engine import Message
from evals.metrics.options import Consistency
from evals.records import content_hash
from evals.task.example import Example


@dataclass(frozen=True)
class Variant:
    """Another way to ask the example `of`. `example.id` is its id with `~p0` … or `~s0` … behind it.

    A paraphrase is asked as its original is (greedily: `temperature` 0, no seed); a sample is the original's own question,
    drawn at `temperature` with a `seed` that is the same each time.
    """

    example: Example
    of: str
    kind: Literal["paraphrase", "sample"]
    temperature: float = 0.0
    seed: int | None = None


def variants(examples: Sequence[Example], options: Consistency) -> list[Variant]:
    """What else must be asked about each example, in their order: its paraphrases, then `options.samples` samples.

    An example whose id has none among the `of`s of the result is not measured. A paraphrase that is the question itself,
    or stands there twice, is asked once only: it could but agree.
    """
    found = []
    for example in examples:
        wordings = [text for text in dict.fromkeys(example.paraphrases) if text != example.text]
        for number, text in enumerate(wordings):
            found.append(Variant(_reworded(example, text, f"{example.id}~p{number}"), example.id, "paraphrase"))
        for number in range(options.samples):
            name = f"{example.id}~s{number}"
            seed = int(content_hash(name)[:8], 16) % 2**31
            found.append(Variant(replace(example, id=name), example.id, "sample", options.temperature, seed))
    return found


def agreement(main: str, others: Sequence[str], same: Callable[[str, str], float]) -> float:
    """How far all answers to one question agree: the mean over every unordered pair of `main` and `others`, in [0, 1].

    `same` scores one answer against another in [0, 1], as the task's first metric scores an answer against the target. It
    need not be symmetric (containment is not), so each pair counts with the mean of both directions. Raises ValueError
    where there are no `others`: nothing was measured.
    """
    if not others:
        raise ValueError("one answer agrees with nothing: an example without variants is not measured")
    # Answers are mostly few different ones, and `same` may be dear: each ordered pair is scored once.
    known: dict[tuple[str, str], float] = {}

    def scored(a: str, b: str) -> float:
        if (a, b) not in known:
            known[a, b] = same(a, b)
        return known[a, b]

    pairs = list(combinations([main, *others], 2))
    return sum(scored(a, b) + scored(b, a) for a, b in pairs) / (2 * len(pairs))


def _reworded(example: Example, text: str, name: str) -> Example:
    """The example with another last user turn; what else was said stays."""
    last = max(at for at, message in enumerate(example.messages) if message.role == "user")
    turn = replace(example.messages[last], content=text)
    messages: tuple[Message, ...] = (*example.messages[:last], turn, *example.messages[last + 1 :])
    return replace(example, id=name, messages=messages, paraphrases=())
