"""What a judge says of answers from passages: faithfulness, relevance, and which passages were of use (Es et al. 2023, 2309.15217).

The judge is the one of the task's metric `judge` (`evals/metrics/judge.py` says how far a judge can be trusted). Sentences are
split by rule here and not by the model, and nothing of an answer or a passage is ever anything but quoted data.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from baselines.rag.relevance import context_precision
from evals.engines.engine import Constraint, Engine, Message, Request, Response
from evals.errors import AdvisorError, Interrupted
from evals.events import Note, OnEvent, Ticker, ignore
from evals.metrics.judge import ALONE, CONSTRAINED_TOKENS, DATA, FREE_TOKENS, LAST, REASONED, read_grade
from evals.metrics.options import Judge as JudgeOptions
from evals.metrics.quoting import conversation, quoted
from evals.scores import Score, Scores
from evals.statistics.paired import mean_interval
from evals.task.example import Example

# Items that are judged: each asks for a verdict on every sentence and every passage.
SAMPLED = 50
# Sentences of one answer, and passages, that are judged; a model that talks on must not cost a thousand verdicts.
MOST_SENTENCES, MOST_PASSAGES = 12, 20
SCALE = 5

FAITHFULNESS, RELEVANCE, PRECISION = "faithfulness", "answer_relevance", "context_precision"
FIGURES = (FAITHFULNESS, RELEVANCE, PRECISION)

SUPPORTED = (
    "The statement is a part of an answer to the question. Do the passages alone say that it is true? "
    "What is true but not said there is not supported. Reply with yes or with no and nothing else."
)
DIRECT = (
    "How directly does the answer answer the question, whether or not it is right? An answer that says something else, "
    f"repeats itself or evades is worse. Reply with one whole number from 1 (not at all) to {SCALE} (fully) and nothing else."
)
USEFUL = "Does the passage hold what is needed to give the reference answer to the question? Reply with yes or with no and nothing else."
NO_VERDICT = "the reply holds no verdict"
YES_NO = ("yes", "no")
GRADES = tuple(str(grade) for grade in range(1, SCALE + 1))
NAMED = re.compile(r"(?i)\b(?:verdict|answer)\W{1,6}(?:is\W{1,4})?(yes|no)\b")
# "No, …" and "no" alone; not "no idea", nor "yes or no".
BEGINS = re.compile(r"(?i)\W*(yes|no)\b(?:[^\w\n]*(?:\n|$)|[.,;:!–—]|\s+[–—-])")


@dataclass(frozen=True)
class Judged:
    """A judge's opinion of one candidate on n sampled items of `of`; means with their 95% intervals (value, low, high).

    `faithfulness` is the share of an answer's sentences that the passages support; `answer_relevance` a grade of 1 to 5,
    (grade - 1) / 4; `context_precision` the mean precision at the ranks of the useful passages. `items` counts what each rests
    on. `asked` and `unreadable` count verdicts: those that could not be read are left out, as are items without any that
    could. A figure that nothing is known of is missing. `reasons` counts why verdicts could not be read.
    """

    candidate: str
    judge: str
    n: int
    of: int
    figures: Mapping[str, tuple[float, float, float]]
    items: Mapping[str, int]
    asked: Mapping[str, int]
    unreadable: Mapping[str, int]
    reasons: Mapping[str, int]
    skipped: int = 0

    def __post_init__(self) -> None:
        # From a record they come as lists.
        figures = {name: (float(value), float(low), float(high)) for name, (value, low, high) in self.figures.items()}
        object.__setattr__(self, "figures", figures)

    def sentences(self) -> tuple[str, ...]:
        """For people: the figures, then what takes away from them."""
        told = [
            f"{name.replace('_', ' ')} {self.figures[name][0]:.3f} (95% interval {self.figures[name][1]:.3f} to "
            f"{self.figures[name][2]:.3f}, n = {self.items[name]})"
            for name in FIGURES
            if name in self.figures
        ]
        sampled = f"{self.n} of {self.of} items" if self.n < self.of else f"all {self.n} items"
        said = [f"{self.judge} judged {self.candidate} on {sampled}: {', '.join(told) or 'nothing could be read'}."]
        lost = sum(self.unreadable.values())
        if lost:
            why = "; ".join(f"{reason}: {times}" for reason, times in self.reasons.items())
            said.append(f"{lost} of {sum(self.asked.values())} verdicts could not be read and are left out ({why}).")
        if self.skipped:
            said.append(f"{self.skipped} of these items have no answer, and only their passages were judged.")
        return tuple(said)


@dataclass(frozen=True)
class _Question:
    """One verdict that is wanted: of which item, for which figure, and the request."""

    item: int
    figure: str
    request: Request


def judged(
    engine: Engine,
    options: JudgeOptions,
    examples: Sequence[Example],
    scores: Scores,
    passages: Callable[[Score], Sequence[str]],
    on_event: OnEvent = ignore,
    *,
    seed: int = 0,
) -> Judged:
    """Ask the judge about at most 50 of the items, drawn by `seed`; `passages` gives what was shown for one, the best first.

    Of an answer the first 12 sentences are asked about, of its passages the first 20. Settled without asking: sentences of an
    answer that was shown no passage are not supported, an empty answer has no sentences and is not relevant (0), and where no
    passage was found the precision is 0. Raises AdvisorError where examples and scores are not the same items.
    """
    if [one.id for one in examples] != [one.id for one in scores.items]:
        raise AdvisorError(f"the answers of {scores.candidate} are not those to these examples", where=scores.split)
    drawn = sorted(random.Random(seed).sample(range(len(examples)), min(SAMPLED, len(examples))))
    chosen = [(examples[at], scores.items[at]) for at in drawn]
    shown = [list(passages(item))[:MOST_PASSAGES] for _, item in chosen]
    wanted = [
        question
        for at, ((example, item), some) in enumerate(zip(chosen, shown, strict=True))
        for question in _questions(at, example, item, some, options.reasoning_tokens)
    ]
    replies = _asked(engine, [one.request for one in wanted], f"judging {scores.candidate}", on_event)
    known: dict[tuple[int, str], list[float]] = {}
    missing: list[tuple[str, str]] = []
    for one in wanted:
        verdict = _read(one, replies.get(one.request.id), options.reasoning_tokens)
        if isinstance(verdict, str):
            missing.append((one.figure, verdict))
        else:
            known.setdefault((one.item, one.figure), []).append(verdict)
    values: dict[str, dict[int, float]] = {}
    for figure, at in product(FIGURES, range(len(chosen))):
        value = _value(figure, known.get((at, figure), ()), chosen[at][1], shown[at])
        if value is not None:
            values.setdefault(figure, {})[at] = value
    groups = [example.group for example, _ in chosen]
    return Judged(
        candidate=scores.candidate,
        judge=options.model.model_name_or_path,
        n=len(chosen),
        of=len(examples),
        figures={figure: _figure(some, groups) for figure, some in values.items()},
        items={figure: len(some) for figure, some in values.items()},
        asked=dict(Counter(one.figure for one in wanted)),
        unreadable=dict(Counter(figure for figure, _ in missing)),
        reasons=dict(Counter(why for _, why in missing)),
        skipped=sum(bool(item.skipped) for _, item in chosen),
    )


def sentences(text: str) -> list[str]:
    """The sentences of an answer, by sentencex's rules for English; a line's end is a sentence's end."""
    import sentencex

    every = [one.strip() for line in text.splitlines() for one in sentencex.segment("en", line)]
    return [one for one in every if any(sign.isalnum() for sign in one)]


def read_yes_no(text: str) -> bool | None:
    """What a reply means: its first word where a sign or nothing follows, or the only thing that it calls verdict or answer;
    None where it says neither, or both."""
    begin = BEGINS.match(text)
    if begin:
        return begin[1].casefold() == "yes"
    named = {one.casefold() for one in NAMED.findall(text)}
    return named == {"yes"} if len(named) == 1 else None


def _questions(at: int, example: Example, item: Score, shown: Sequence[str], thinks: int) -> Iterator[_Question]:
    asked = ("question", conversation(example))
    every = [(f"passage {number}", text) for number, text in enumerate(shown, 1)]
    if not item.skipped and item.output.strip():
        answer = ("answer", item.output)
        for number, sentence in enumerate(sentences(item.output)[:MOST_SENTENCES] if shown else ()):
            parts = [*every, asked, ("statement", sentence)]
            yield _question(at, FAITHFULNESS, number, parts, SUPPORTED, YES_NO, thinks)
        yield _question(at, RELEVANCE, 0, [asked, answer], DIRECT, GRADES, thinks)
    for number, text in enumerate(shown):
        parts = [("passage", text), asked, ("reference answer", example.target)]
        yield _question(at, PRECISION, number, parts, USEFUL, YES_NO, thinks)


def _question(
    at: int, figure: str, number: int, parts: Sequence[tuple[str, str]], ask: str, choices: Sequence[str], thinks: int
) -> _Question:
    if thinks:
        ask = f"{ask.removesuffix(ALONE)}. {REASONED}"
    text, code = quoted(parts, (ask,))
    # The question to the judge comes last, after whatever a passage says.
    messages = (Message("user", f"{DATA.format(code=code)}\n\n{text}\n\n{ask}"),)
    name = f"{at}-{figure}-{number}"
    if thinks:
        return _Question(at, figure, Request(name, messages, thinks))
    constraint = Constraint("choice", json.dumps(list(choices)))
    return _Question(at, figure, Request(name, messages, CONSTRAINED_TOKENS, constraint=constraint))


def _asked(engine: Engine, requests: Sequence[Request], task: str, on_event: OnEvent) -> dict[str, Response]:
    """Responses by request id; in free text from an engine that cannot hold a verdict to its form, which is said."""
    ticker = Ticker(on_event, task, len(requests), "verdicts")
    found: dict[str, Response] = {}

    def ask(some: Sequence[Request]) -> None:
        for response in engine.generate(some) if some else ():
            found[response.id] = response
            ticker.advance()

    try:
        ask(requests)
    except Interrupted:
        raise
    except AdvisorError as refused:
        # Where one verdict kept its form, or none was held to one, the form was not what went wrong.
        if found or all(one.constraint is None for one in requests):
            raise
        on_event(
            Note(
                f"{task}: verdicts are read out of free text, since the engine could not hold them to their form ({refused.what})"
            )
        )
        ask([replace(one, constraint=None, max_new_tokens=FREE_TOKENS) for one in requests])
    return found


def _read(one: _Question, response: Response | None, thinks: int) -> float | str:
    """The verdict as a number in [0, 1], or why there is none."""
    if response is None or response.skipped:
        return response.skipped if response else "the engine gave no response"
    lines = [line for line in response.text.splitlines() if line.strip()]
    text = LAST.sub("", lines[-1]) if thinks and lines else response.text
    if one.figure == RELEVANCE:
        grade = read_grade(text, SCALE)
        return NO_VERDICT if grade is None else (grade - 1) / (SCALE - 1)
    said = read_yes_no(text)
    return NO_VERDICT if said is None else float(said)


def _value(figure: str, verdicts: Sequence[float], item: Score, shown: Sequence[str]) -> float | None:
    """An item's figure from its verdicts in their order; None where there is nothing to be said."""
    if verdicts:
        return context_precision([bool(one) for one in verdicts]) if figure == PRECISION else sum(verdicts) / len(verdicts)
    if figure == PRECISION:
        return None if shown or item.skipped else 0.0
    if item.skipped:
        return None
    if figure == RELEVANCE:
        return None if item.output.strip() else 0.0
    return 0.0 if sentences(item.output) and not shown else None


def _figure(some: Mapping[int, float], groups: Sequence[str | None]) -> tuple[float, float, float]:
    found = mean_interval(list(some.values()), [groups[at] for at in some])
    return found.estimate, found.low, found.high
