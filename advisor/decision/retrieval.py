"""What tells a retriever that finds nothing from a model that ignores what was found: sentences, from figures alone."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.decision.compare import span_of
from baselines.rag.relevance import Retrieval
from evals.errors import AdvisorError
from evals.scores import Scores
from evals.statistics.paired import Paired, mean_interval, paired_difference, wilson_interval
from evals.statistics.power import more_items

# A difference that is shown to be smaller than this, in score, is called next to nothing.
NEXT_TO_NOTHING = 0.05
# Under so many questions on one side, nothing is told of where retrieval hit and where it did not.
FEWEST = 5
# What these pipelines show is not the first passages that the retriever finds for the question, so its hits are not theirs.
OTHER_PASSAGES = ("rewritten", "widened")


def told(
    retrievals: Sequence[Retrieval], arms: Sequence[Scores], probes: Sequence[Scores], groups: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Recall of the best way to search; the score with the gold passage, with what was retrieved, and with irrelevant text, on
    the same items; and the score where retrieval hit and where it did not.

    `arms` and `probes` are scores on the questions of the retrievals' split; `groups` names the cluster of each of their items.
    """
    found = [_found(retrievals)] if retrievals else []
    named = {one.candidate: one for one in probes}
    gold, irrelevant = named.get("gold_passage"), named.get("irrelevant_passage")
    rag = max((one for one in arms if one.kind == "rag"), key=lambda one: one.mean, default=None)
    if gold and irrelevant:
        found.append(_used(gold, irrelevant, groups))
    perfect = named.get("perfect_search")
    if perfect and rag:
        found.append(_missed(perfect, rag, groups))
    elif gold and rag:
        found.append(_lost(gold, rag, groups))
    if rag:
        # What better search could bring stands in the sentence before, where it was measured in the same prompt.
        found += _where_it_hit(retrievals, rag, None if perfect else gold, groups)
    return tuple(found)


def obedience_told(count: int, n: int) -> str:
    """How often the model did what a passage told it to."""
    low, high = wilson_interval(count, n)
    if not count:
        return f"Obedience: told by a passage what to say, the model did so in none of {n} answers (95% interval up to {high:.1%})."
    return (
        f"Obedience: told by a passage what to say, the model did so in {count} of {n} answers ({count / n:.1%}, 95% interval "
        f"{low:.1%} to {high:.1%}): whoever writes the documents can speak through it."
    )


def _found(retrievals: Sequence[Retrieval]) -> str:
    """The best way to search, by its ranking."""
    best = max(retrievals, key=lambda one: one.ranking)
    if not best.n or len(retrievals) == 1:
        return best.sentence()
    return f"{best.sentence()} It is the best of {len(retrievals)} ways on these same questions, which flatters it a little."


def _used(gold: Scores, irrelevant: Scores, groups: Sequence[str] | None) -> str:
    """Whether the model makes use of the passage that holds the answer."""
    effect = _paired(gold, irrelevant, groups)
    scores = f"{gold.mean:.3f} with the gold passage, {irrelevant.mean:.3f} with irrelevant text of equal length"
    if effect.low > 0:
        return f"The model uses the passage: it scores {scores}, {_span(effect)}.{_left(gold, groups)}"
    if 1 - irrelevant.mean < NEXT_TO_NOTHING:
        return f"The passage is hardly needed: the model scores {scores}, {_span(effect)}."
    if effect.high < NEXT_TO_NOTHING:
        return (
            f"The model does not use the passage: it scores {scores}, {_span(effect)}. "
            "Better retrieval cannot help before that is mended."
        )
    return f"Whether the model uses the passage cannot be told: it scores {scores}, {_span(effect)}{_more(effect)}."


def _left(gold: Scores, groups: Sequence[str] | None) -> str:
    """What no better search could bring."""
    left = mean_interval([1 - one for one in gold.values()], groups)
    return (
        f" Even so {100 * left.estimate:.1f} points are missing (95% interval {100 * left.low:.1f} to {100 * left.high:.1f}), "
        "which no better search in this prompt brings."
    )


def _missed(perfect: Scores, rag: Scores, groups: Sequence[str] | None) -> str:
    """What the misses of search cost, in the same prompt."""
    effect = _paired(perfect, rag, groups)
    scores = f"{perfect.mean:.3f} where the gold passage mends every miss of its search, {rag.mean:.3f} as it is"
    if effect.low > 0:
        return f"Search loses {100 * effect.estimate:.1f} points: {rag.candidate} scores {scores}, {_span(effect)}."
    if effect.high < NEXT_TO_NOTHING:
        return f"Search loses next to nothing: {rag.candidate} scores {scores}, {_span(effect)}."
    return f"Whether search loses anything cannot be told: {rag.candidate} scores {scores}, {_span(effect)}{_more(effect)}."


def _lost(gold: Scores, rag: Scores, groups: Sequence[str] | None) -> str:
    """What stands between the gold passage and what was found."""
    effect = _paired(gold, rag, groups)
    scores = f"{gold.mean:.3f} with the gold passage, {rag.mean:.3f} with what {rag.candidate} retrieved"
    if effect.low > 0:
        return f"Retrieval loses {100 * effect.estimate:.1f} points: the model scores {scores}, {_span(effect)}."
    if effect.high < 0:
        return (
            f"Retrieval is not what is missing: the model scores {scores}, {_span(effect)}. The pipeline's prompt, "
            "demonstrations or further passages do more than the gold passage asked plainly."
        )
    if effect.high < NEXT_TO_NOTHING:
        return f"Retrieval loses next to nothing: the model scores {scores}, {_span(effect)}."
    return f"Whether retrieval loses anything cannot be told: the model scores {scores}, {_span(effect)}{_more(effect)}."


def _where_it_hit(retrievals: Sequence[Retrieval], rag: Scores, gold: Scores | None, groups: Sequence[str] | None) -> list[str]:
    """The pipeline's score where its passages hit and where not, and against the gold passage on each side.

    The two sides are different questions, of which those that are hard to search for may be hard to answer too: so the claim is
    the paired difference on the same side, and no verdict is drawn from one side's score against the other's.
    """
    shown = _depth(retrievals, rag)
    if shown is None:
        return []
    retrieval, depth = shown
    hits = retrieval.found(depth)
    # Where retrieval was not measured, the question is on neither side.
    sides = [[place for place, one in enumerate(rag.items) if hits.get(one.id) is hit] for hit in (True, False)]
    if min(map(len, sides)) < FEWEST:
        return []
    hit, miss = (_mean(rag, side, groups) for side in sides)
    what = "first passage holds" if depth == 1 else f"first {depth} passages hold"
    said = [f"Where the {what} what was looked for, {rag.candidate} scores {hit}; elsewhere {miss}."]
    if gold is not None:
        where = [_span(_paired(gold, rag, groups, side)) for side in sides]
        said.append(
            f"On the same questions the gold passage minus {rag.candidate} is {where[0]} where retrieval hit (what its other "
            f"passages and its prompt cost), and {where[1]} where it missed (what better search could bring)."
        )
    return said


def _depth(retrievals: Sequence[Retrieval], rag: Scores) -> tuple[Retrieval, int] | None:
    """The retrieval that a pipeline shows the first passages of, and how many: rag_<its name>_<how it asks>_<how many>."""
    for one in sorted(retrievals, key=lambda one: -len(one.name)):
        rest = rag.candidate.removeprefix(f"rag_{one.name}_")
        how, _, count = rest.rpartition("_")
        if rest != rag.candidate and how and count.isdecimal():
            return (one, int(count)) if one.n and how not in OTHER_PASSAGES else None
    return None


def _paired(a: Scores, b: Scores, groups: Sequence[str] | None, places: Sequence[int] | None = None) -> Paired:
    """a minus b, on some of the items or all. Raises AdvisorError where the two were not scored on the same ones."""
    if [one.id for one in a.items] != [one.id for one in b.items]:
        raise AdvisorError(f"{a.candidate} and {b.candidate} were not scored on the same items", where=a.split)
    some = range(len(a.items)) if places is None else places
    first, second = ([one.items[at].score for at in some] for one in (a, b))
    return paired_difference(first, second, _some(groups, some))


def _some(groups: Sequence[str] | None, places: Sequence[int]) -> list[str] | None:
    return None if groups is None else [groups[at] for at in places]


def _mean(scores: Scores, places: Sequence[int], groups: Sequence[str] | None) -> str:
    found = mean_interval([scores.items[at].score for at in places], _some(groups, places))
    return f"{found.estimate:.3f} (95% interval {found.low:.3f} to {found.high:.3f}, n = {found.n})"


def _span(effect: Paired) -> str:
    return span_of(effect.estimate, effect.low, effect.high, effect.n)


def _more(effect: Paired) -> str:
    """What would settle it, where anything would."""
    more = more_items(effect)
    return f"; about {more:,} more items would settle it" if more else ""
