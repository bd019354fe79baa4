"""Why the model scores as it does: the effects that the probes carry, and the one cause that they show, where they show one.

Each effect is on the same items, with its interval and a sentence; docs/decision.md says how each cause is defined. Probes may
be bought piecemeal: what is not there is told as untested.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from advisor.decision.compare import signed, span_of
from baselines.probes import HOLDS_ANSWER
from evals.errors import AdvisorError
from evals.metrics.text import fold
from evals.scores import Score, Scores
from evals.statistics.paired import Paired, holm, mean_interval, paired_difference
from evals.statistics.passes import pass_at_k
from evals.statistics.power import more_items

Cause = Literal["format", "knowledge", "retrieval", "behaviour", "context_use", "sampling", "none"]

LEVEL = 0.05
ROUNDING = 1e-9
ASKS_A_MODEL = frozenset({"prompt", "optimised", "tools", "rag"})
PROMPTS = frozenset({"prompt", "optimised"})
MEANING: Mapping[Cause, str] = {
    "format": "answers are right in substance and not in form",
    "knowledge": "the model lacks facts that a passage supplies",
    "retrieval": "search does not bring the passages that would help",
    "behaviour": "the model does what is asked only where it is shown",
    "context_use": "the model does not make use of a passage that holds the answer",
    "sampling": "several draws agree on right answers that one answer misses",
}


@dataclass(frozen=True)
class Effect:
    """A difference of scores (`behaviour`: a slope, in score per doubling; `context_use`: a share of the score that is missing)
    with its 95% interval on n items. `p_adjusted` is Holm's, of the test whether it is a cause; 1 where it is no such claim."""

    name: str
    difference: float
    low: float
    high: float
    n: int
    sentence: str
    p_adjusted: float = 1.0


@dataclass(frozen=True)
class Diagnosis:
    """`cause` explains most of the missing score among those that are shown, `also` are the others; "none": none is shown, and
    the sentence says what could not be told. `untested` names, in sentences, what was not probed."""

    cause: Cause
    sentence: str
    effects: tuple[Effect, ...] = ()
    untested: tuple[str, ...] = ()
    also: tuple[Cause, ...] = ()

    def named(self, name: str) -> Effect | None:
        """The effect of that name, where it was measured."""
        return next((one for one in self.effects if one.name == name), None)


@dataclass(frozen=True)
class _Finding:
    """An effect; where it can be a cause, the test whose estimate must be above 0, and the score that it would explain."""

    effect: Effect
    cause: Cause = "none"
    test: Paired | None = None
    explains: float = 0.0


@dataclass(frozen=True)
class _Seen:
    """What there is to look at. `plain` is the model asked without demonstrations or passages, `prompt` the best prompt, `asked`
    the best arm of all that ask the model, `retrieved` the best pipeline, `blind` the best arm that has learnt nothing."""

    probes: Mapping[str, Scores]
    plain: Scores | None
    prompt: Scores | None
    asked: Scores | None
    retrieved: Scores | None
    blind: Scores | None
    groups: Sequence[str] | None
    min_gain: float

    def paired(self, a: Sequence[float], b: Sequence[float]) -> Paired:
        return paired_difference(a, b, self.groups)

    def above_least(self, a: Sequence[float], b: Sequence[float]) -> Paired:
        """a minus b minus the least gain that counts: for what is above 0 without being a cause. A tolerant reading never costs
        anything, and a vote gathers a little of any model's wavering.

        Of half the scores, since differences must lie in [-1, 1]; given in whole ones.
        """
        found = self.paired([one / 2 for one in a], [(one + self.min_gain) / 2 for one in b])
        return replace(found, estimate=2 * found.estimate, low=2 * found.low, high=2 * found.high, sd=2 * found.sd)

    @property
    def samples(self) -> list[Scores]:
        return [one for name, one in self.probes.items() if name.startswith("sample_")]

    @property
    def shown(self) -> list[tuple[int, Scores]]:
        """(demonstrations, scores), the fewest first."""
        counted = [(int(name.removeprefix("shots_")), one) for name, one in self.probes.items() if name.startswith("shots_")]
        return sorted(counted, key=lambda one: one[0])


def diagnose(
    probes: Sequence[Scores], arms: Sequence[Scores], groups: Sequence[str] | None, min_gain: float = 0.03
) -> Diagnosis:
    """What these probes (named as in `baselines/probes.py`) and the real candidates say of the missing score.

    A cause is named where its effect is shown (p < 0.05 after Holm's adjustment over all that are tested together) and explains
    at least `min_gain`; of several the one that explains most. `groups` names each item's cluster. Raises AdvisorError where
    the scores are not of the same items, or one is no number.
    """
    _same_items([*probes, *arms])
    seen = _look(probes, arms, groups, min_gain)
    some = [
        *_format(seen),
        _knowledge(seen),
        _context_use(seen),
        _retrieval(seen),
        _behaviour(seen),
        _sampling(seen),
        _headroom(seen),
    ]
    found = _adjusted([one for one in some if one])
    named = _named([one for one in found if _is_shown(one, min_gain)])
    effects, untested = tuple(one.effect for one in found), _untested(seen, found)
    if not named:
        return Diagnosis("none", _nothing_shown(found, min_gain), effects, untested)
    cause, *also = dict.fromkeys(one.cause for one in named)
    return Diagnosis(cause, _said(named[0], also), effects, untested, tuple(also))


def _look(probes: Sequence[Scores], arms: Sequence[Scores], groups: Sequence[str] | None, min_gain: float) -> _Seen:
    by_name = {one.candidate: one for one in probes}

    def best(kinds: frozenset[str]) -> Scores | None:
        return max((arm for arm in arms if arm.kind in kinds), key=lambda arm: arm.mean, default=None)

    plain = by_name.get("shots_0") or next((arm for arm in arms if arm.candidate == "zero_shot"), None)
    prompt, asked, retrieved, blind = map(best, (PROMPTS, ASKS_A_MODEL, frozenset({"rag"}), frozenset({"trivial"})))
    return _Seen(by_name, plain, prompt, asked, retrieved, blind, groups, min_gain)


def _same_items(scores: Sequence[Scores]) -> None:
    ids = [item.id for item in scores[0].items] if scores else []
    for one in scores:
        if [item.id for item in one.items] != ids:
            raise AdvisorError(f"{one.candidate} and {scores[0].candidate} were not scored on the same items", where=one.split)
        wrong = next((item for item in one.items if not math.isfinite(item.score)), None)
        if wrong is not None:
            raise AdvisorError(
                f"{one.candidate} has the score {wrong.score} for item {wrong.id}: a score is a number", where=one.split
            )


# The effects. Substance is the tolerant reading: what it lacks is not form.


def _substance(scores: Scores) -> list[float]:
    return [item.metrics.get("tolerant", item.score) for item in scores.items]


def _format(seen: _Seen) -> list[_Finding]:
    """Of the plain prompt, and of the best candidate that asks the model: the form may be missing in either."""
    found = [_form(seen, "format", seen.plain)] if seen.plain else []
    if seen.asked and not _alike(seen.asked, seen.plain):
        found.append(_form(seen, "format_of_best", seen.asked))
    return found


def _alike(a: Scores, b: Scores | None) -> bool:
    """The plain prompt may be there twice, as a probe and as an arm."""
    return b is not None and a.values() == b.values() and _substance(a) == _substance(b)


def _form(seen: _Seen, name: str, scores: Scores) -> _Finding:
    """Never negative, so that it must be above the least gain that counts; and what is read tolerantly must beat those that have
    learnt nothing, or the tolerant reading found but the label that happens to be mentioned. The weaker of both tests counts."""
    tolerant, strict = _substance(scores), scores.values()
    tests = [seen.above_least(tolerant, strict)]
    if seen.blind:
        tests.append(seen.paired(tolerant, seen.blind.values()))
    weaker = max(tests, key=lambda one: one.p if one.estimate > 0 else 2 - one.p)
    found = seen.paired(tolerant, strict)
    sentence = f"Format: what {scores.candidate} said, read tolerantly instead of strictly, gains {_span(found)}: "
    return _Finding(_effect(name, found, sentence + "that much is form, not substance."), "format", weaker, found.estimate)


def _knowledge(seen: _Seen) -> _Finding | None:
    """On the substance of answers, since a passage brings facts and not form. It explains what passages bring in the pipeline's own
    prompt, where that is known; what search loses of it is not the model's lack."""
    gold, irrelevant = seen.probes.get("gold_passage"), seen.probes.get("irrelevant_passage")
    if not (gold and irrelevant):
        return None
    with_it, without = _substance(gold), _substance(irrelevant)
    found = seen.paired(with_it, without)
    means = [sum(one) / len(one) for one in (with_it, without)]
    forgiven = "" if with_it == gold.values() and without == irrelevant.values() else ", its form forgiven"
    sentence = (
        f"Knowledge: with the gold passage the model scores {means[0]:.3f}{forgiven}, with an irrelevant one of equal length "
        f"{means[1]:.3f}: {_span(found)}."
    )
    explains = found.estimate
    if perfect := seen.probes.get("perfect_search"):
        explains = min(explains, sum(_substance(perfect)) / len(perfect.items) - means[1])
    return _Finding(_effect("knowledge", found, sentence), "knowledge", found, explains)


def _context_use(seen: _Seen) -> _Finding | None:
    """What is missing although the gold passage is there. A cause where that is more than the passage brought, form forgiven:
    the score with it falls short of the middle between an irrelevant one and a perfect score.

    Only on items whose passage is known to hold the answer (`baselines.probes`): elsewhere a model that reads may be wrong too.
    """
    gold, irrelevant = seen.probes.get("gold_passage"), seen.probes.get("irrelevant_passage")
    if gold is None:
        return None
    left = mean_interval([1 - one for one in gold.values()], seen.groups)
    sentence = (
        f"Context use: with the gold passage {100 * left.estimate:.1f} points are still missing "
        f"(95% interval {100 * left.low:.1f} to {100 * left.high:.1f}, n = {left.n})."
    )
    effect = Effect("context_use", left.estimate, left.low, left.high, left.n, sentence)
    holding = [at for at, item in enumerate(gold.items) if _holds_answer(item)]
    if irrelevant is None or 2 * len(holding) < len(gold.items):
        return _Finding(effect)
    read, unread = ([values[at] for at in holding] for values in (_substance(gold), _substance(irrelevant)))
    groups = None if seen.groups is None else [seen.groups[at] for at in holding]
    test = paired_difference([(1 + one) / 2 for one in unread], read, groups)
    return _Finding(effect, "context_use", test, 1 - sum(read) / len(read))


def _holds_answer(item: Score) -> bool:
    return any(step.get(HOLDS_ANSWER) is True for step in item.trace)


def _retrieval(seen: _Seen) -> _Finding | None:
    rag, better = seen.retrieved, seen.probes.get("perfect_search") or seen.probes.get("gold_passage")
    if rag is None or better is None:
        return None
    found = seen.paired(better.values(), rag.values())
    told = f"{rag.candidate} with the misses of its search mended, minus as it is"
    if better.candidate == "gold_passage":
        told = f"the gold passage minus what {rag.candidate} found"
    return _Finding(
        _effect("retrieval_loss", found, f"Retrieval loss: {told}: {_span(found)}."), "retrieval", found, found.estimate
    )


def _behaviour(seen: _Seen) -> _Finding | None:
    """The slope of each item's score over log2(1 + demonstrations), by least squares, then its mean over the items.

    A cause by the slope of the substance: what demonstrations mend in the form alone is told as form.
    """
    if len(seen.shown) < 2:
        return None
    doublings = np.array([math.log2(1 + count) for count, _ in seen.shown])
    away = doublings - doublings.mean()
    weights = away / (away @ away)
    strict, substance = (
        [float(one) for one in np.array(values).T @ weights]
        for values in ([one.values() for _, one in seen.shown], [_substance(one) for _, one in seen.shown])
    )
    found, test = (seen.paired(slopes, [0.0] * len(slopes)) for slopes in (strict, substance))
    scores = ", ".join(f"{one.mean:.3f} with {count}" for count, one in seen.shown)
    sentence = f"Behaviour: the model scores {scores} demonstrations, {_span(found)} for each doubling"
    if strict != substance:
        sentence += f", of which {signed(test.estimate)} are substance"
    return _Finding(
        _effect("behaviour", found, f"{sentence}."), "behaviour", test, test.estimate * float(doublings[-1] - doublings[0])
    )


def _sampling(seen: _Seen) -> _Finding | None:
    """What the answer that most draws give gains on the answer of the prompt that they are drawn from.

    The best of several draws is never worse than one, also where the model tosses coins: so the vote is tested, which needs
    nobody to know what is right, and which coins do not win (self-consistency: Wang et al. 2022, 2203.11171).
    """
    if len(seen.samples) < 2:
        return None
    voted = _voted(seen.samples)
    against = seen.prompt or seen.plain
    one = against.values() if against else pass_at_k(_drawn(seen.samples), 1).tolist()
    found = seen.paired(voted, one)
    sentence = (
        f"Sampling: the answer that most of {len(seen.samples)} draws give scores {sum(voted) / len(voted):.3f}, "
        f"{against.candidate if against else 'one draw'} {sum(one) / len(one):.3f}: {_span(found)}."
    )
    return _Finding(_effect("sampling", found, sentence), "sampling", seen.above_least(voted, one), found.estimate)


def _voted(samples: Sequence[Scores]) -> list[float]:
    """Each item's score of the answer given most often; the mean of those that are given equally often."""
    found = []
    for answers in zip(*(one.items for one in samples), strict=True):
        texts = [fold(one.output) for one in answers]
        votes = Counter(texts)
        most = max(votes.values())
        scores = [one.score for one, text in zip(answers, texts, strict=True) if votes[text] == most]
        found.append(sum(scores) / len(scores))
    return found


def _drawn(samples: Sequence[Scores]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([one.values() for one in samples]).T


def _headroom(seen: _Seen) -> _Finding | None:
    """The best of k draws minus one draw and k - 1 blind guesses, each as good as the best arm that has learnt nothing.

    What a verifier or a reward could find in the draws at most. Never a cause: without blind guesses it is never negative.
    """
    k = len(seen.samples)
    if k < 2:
        return None
    drawn = _drawn(seen.samples)
    one, best = pass_at_k(drawn, 1), pass_at_k(drawn, k)
    guess = seen.blind.mean if seen.blind else 0.0
    guessed = 1 - (1 - one) * (1 - guess) ** (k - 1)
    found = seen.paired(best.tolist(), guessed.tolist())
    told = f" With {k - 1} blind guesses beside it, one draw would reach {guessed.mean():.3f}." if guess else ""
    sentence = (
        f"Headroom of sampling: one draw scores {one.mean():.3f}, the best of {k} draws {best.mean():.3f}.{told} A verifier or "
        f"reinforcement could find at most {_span(found)}."
    )
    return _Finding(_effect("headroom", found, sentence))


def _effect(name: str, found: Paired, sentence: str) -> Effect:
    return Effect(name, found.estimate, found.low, found.high, found.n, sentence)


def _span(found: Paired) -> str:
    return span_of(found.estimate, found.low, found.high, found.n)


# Which of them is the cause.


def _adjusted(found: Sequence[_Finding]) -> list[_Finding]:
    """An effect that points the other way is no cause, and takes its place among those tested with p = 1."""
    tested = [one.test.p if one.test.estimate > 0 else 1.0 for one in found if one.test]
    values = iter(holm(tested))
    return [replace(one, effect=replace(one.effect, p_adjusted=next(values))) if one.test else one for one in found]


def _is_shown(one: _Finding, min_gain: float) -> bool:
    return one.test is not None and one.effect.p_adjusted < LEVEL and one.explains >= min_gain - ROUNDING


def _named(shown: Sequence[_Finding]) -> list[_Finding]:
    """The causes that are shown, the one that explains most first, none explaining what another does.

    What search loses is not missing knowledge. The gold passage is asked in the plain prompt: where demonstrations or votes
    are shown to mend that, what is missing with the passage may be theirs, and no passage is said to be unread.
    """
    points = {one.cause: one.explains for one in shown}
    lost = points.get("retrieval", 0.0)
    rest = [replace(one, explains=one.explains - lost) if one.cause == "knowledge" else one for one in shown]
    if points.keys() & {"behaviour", "sampling"}:
        rest = [one for one in rest if one.cause != "context_use"]
    return sorted(rest, key=lambda one: -one.explains)


def _said(first: _Finding, also: Sequence[Cause]) -> str:
    told = (
        f"Diagnosis: {first.cause.replace('_', ' ')}: {MEANING[first.cause]}. That explains {100 * first.explains:.1f} points."
    )
    if also:
        told += f" Shown as well: {', '.join(one.replace('_', ' ') for one in also)}."
    return told


def _nothing_shown(found: Sequence[_Finding], min_gain: float) -> str:
    """What could not be told, and about how many more items would tell it (80% power, at the level that Holm begins with)."""
    tested = [(one, one.test) for one in found if one.test]
    if not tested:
        return "Diagnosis: nothing was probed that could tell what the missing score is due to."
    first, test = max(tested, key=lambda one: one[0].explains if one[1].estimate > 0 else -1.0)
    effects = "the one effect tested" if len(tested) == 1 else f"{len(tested)} effects tested together"
    told = f"Diagnosis: no cause of the missing score is shown, of {effects}"
    strict = replace(test, level=1 - LEVEL / len(tested))
    if test.estimate > 0 and first.explains >= min_gain:
        more = more_items(strict, test.estimate)
        told += f"; {first.cause.replace('_', ' ')} comes nearest ({signed(first.explains)} points)"
        return f"{told}. About {more:,} more items would settle it." if more else f"{told}."
    more = more_items(strict, min_gain) if min_gain > 0 else None
    told += f": none is estimated at the {signed(min_gain)} points that count"
    return f"{told}. About {more:,} more items would show one of that size." if more else f"{told}."


def _untested(seen: _Seen, found: Sequence[_Finding]) -> tuple[str, ...]:
    """What the probes do not reach, each in a sentence."""
    tested = {one.cause for one in found}
    said = []
    if "format" not in tested:
        said.append("Format untested: the model was not asked plainly.")
    if "knowledge" not in tested:
        said.append("Knowledge untested: without gold passages nothing tells whether the model lacks facts.")
    elif "context_use" not in tested:
        said.append(
            "Context use untested: it is not known that the gold passages hold the answers word for word, so that what is missing "
            "with them need not be misread."
        )
    if seen.retrieved and "retrieval" not in tested:
        said.append("Retrieval untested: without gold passages nothing tells what search loses.")
    if "behaviour" not in tested:
        said.append("Behaviour untested: the model was not asked with growing numbers of demonstrations.")
    if "sampling" not in tested:
        said.append("Sampling untested: no repeated draws were made.")
    return tuple(said)
