"""What every method of optimisation works with: a budget, the model's answers to a wording of the prompt, and their scores."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from baselines.prompts.prompt import Prompt
from evals.candidate import Answer, AnswerFormat, PromptFormat
from evals.engines.engine import Engine, Message, Request, Response
from evals.events import Ticker
from evals.exchange import exchanged
from evals.metrics.build import MacroF1
from evals.metrics.metric import Metric
from evals.task.example import Example

# Fewer rows than these compare nothing: one answer would move the mean by more than most prompts do.
MIN_COMPARED = 8
PROPOSAL_TOKENS = 400
TEMPERATURE = 0.8


class BudgetSpent(Exception):
    """What is left of the budget does not pay for what was about to be asked. Nothing of it was asked."""


@dataclass(frozen=True)
class Spent:
    """Requests for answers to the task and for proposals, and the tokens of both."""

    answers: int = 0
    proposals: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def requests(self) -> int:
        return self.answers + self.proposals


class Meter:
    """Counts requests, and refuses what would go over the budget.

    A request counts whether or not the engine's cache knows the answer: a budget is a budget, and the same search must
    come to the same end on a machine that was asked before and on one that was not.
    """

    def __init__(self, budget: int, ticker: Ticker | None = None) -> None:
        self.budget = budget
        self.answers = self.proposals = self.prompt_tokens = self.output_tokens = 0
        self._ticker = ticker

    @property
    def left(self) -> int:
        return self.budget - self.answers - self.proposals

    @property
    def spent(self) -> Spent:
        return Spent(self.answers, self.proposals, self.prompt_tokens, self.output_tokens)

    def take(self, *, answers: int = 0, proposals: int = 0) -> None:
        """Before asking. Raises BudgetSpent where there is not as much left."""
        if answers + proposals > self.left:
            raise BudgetSpent(f"{answers + proposals} requests wanted, {self.left} of {self.budget} left")
        self.answers += answers
        self.proposals += proposals

    def came(self, prompt_tokens: int, output_tokens: int) -> None:
        """One response is there."""
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        if self._ticker:
            self._ticker.advance()


@dataclass(frozen=True)
class Wording:
    """A way to ask: an instruction and the demonstrations, the same for every question."""

    instruction: str
    shots: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Tried:
    """A proposal. `score` is the mean over `items` validation rows (training rows of its minibatches where it came no
    further, `validated` is then false); `refused` says why it was never asked."""

    instruction: str
    shots: int
    score: float
    items: int
    validated: bool = True
    refused: str = ""


@dataclass(frozen=True)
class Optimised:
    """What a search came to. Where nothing scored above the incumbent, the wording is the incumbent's, not `improved`.

    `score` and `incumbent_score` are means over the same `items` rows. They are the rows that chose, so that the first is
    optimistic: what the wording is worth shows on dev.
    """

    method: str
    instruction: str
    shots: tuple[Example, ...]
    spent: Spent
    history: tuple[Tried, ...]
    improved: bool
    score: float
    incumbent_score: float
    items: int


@dataclass
class Search:
    """One search: the rows it may use, who answers, who proposes, and everything that was answered so far.

    `learn` rows are shown to the proposer and become demonstrations; `hold` rows, all others of the search, only score.
    `instruction` is the user's own, and it and `described` (where there is one) are the incumbents. `form` says what an
    answer looks like, for the proposer. `metric` is the task's first; what a metric asks of a model itself (a judge)
    is not in the budget. Methods may call from several threads.
    """

    engine: Engine
    proposer: Engine
    metric: Metric
    answers: AnswerFormat
    instruction: str
    form: str
    learn: Sequence[Example]
    hold: Sequence[Example]
    meter: Meter
    seed: int = 0
    described: str = ""
    refused: list[Tried] = field(default_factory=list, init=False)
    _known: dict[Wording, dict[str, Answer]] = field(default_factory=dict, init=False)
    _values: dict[tuple[str, str], float] = field(default_factory=dict, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    @property
    def incumbents(self) -> tuple[Wording, ...]:
        """The wordings that need no search, the user's own first."""
        return tuple(Wording(text) for text in dict.fromkeys([self.instruction, self.described or self.instruction]))

    def prompt(self, wording: Wording) -> Prompt:
        shots = wording.shots
        chooser = (lambda examples: [shots] * len(examples)) if shots else None
        return Prompt("optimised", self.engine, PromptFormat(wording.instruction), self.answers, "optimised", chooser)

    def ask(self, wording: Wording, rows: Sequence[Example]) -> list[str]:
        """The answers to `rows`, parsed as `Prompt` does. What this search has asked already is not asked (nor paid) again.

        Raises BudgetSpent, and asks nothing, where the budget does not reach for all.
        """
        with self._lock:
            known = self._known.setdefault(wording, {})
            # A minibatch may hold a row twice.
            new = list({row.id: row for row in rows if row.id not in known}.values())
            if new:
                self.meter.take(answers=len(new))
                prompt = self.prompt(wording)
                steps = [(row.id, step) for row, step in zip(new, prompt.requests(new), strict=True)]
                for found in exchanged(self.engine, steps, prompt.parse):
                    known[found.id] = found.answer
                    self.meter.came(found.prompt_tokens, found.output_tokens)
            return [known[row.id].text for row in rows]

    def score(self, wording: Wording, rows: Sequence[Example]) -> tuple[list[float], list[str]]:
        """The task's metric for the answers to `rows`, and the answers. A row that could not be asked scores 0."""
        with self._lock:
            outputs = self.ask(wording, rows)
            return self._scores(wording, rows), outputs

    def _scores(self, wording: Wording, rows: Sequence[Example]) -> list[float]:
        known = self._known[wording]
        values = self.values([(row, known[row.id].text) for row in rows])
        return [0.0 if known[row.id].skipped else value for row, value in zip(rows, values, strict=True)]

    def values(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        """The metric of (row, answer) pairs; each pair is measured once, since a metric may start a process or ask a judge."""
        if isinstance(self.metric, MacroF1):
            # Its values hold for the batch as a whole only.
            return self.metric(pairs)
        with self._lock:
            new = list({(row.id, text): (row, text) for row, text in pairs if (row.id, text) not in self._values}.values())
            for (row, text), value in zip(new, self.metric(new) if new else [], strict=True):
                self._values[row.id, text] = value
            return [self._values[row.id, text] for row, text in pairs]

    def mean(self, wording: Wording, rows: Sequence[Example]) -> float:
        return mean(self.score(wording, rows)[0])

    def propose(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Response]:
        """The proposer's responses to `prompts`, each drawn with its seed, in their order. Raises as `ask` does."""
        with self._lock:
            self.meter.take(proposals=len(prompts))
            requests = [
                Request(str(at), (Message("user", text),), PROPOSAL_TOKENS, TEMPERATURE, seed)
                for at, (text, seed) in enumerate(zip(prompts, seeds, strict=True))
            ]
            found = {}
            for response in self.proposer.generate(requests):
                found[response.id] = response
                self.meter.came(response.prompt_tokens, response.output_tokens)
            return [found[request.id] for request in requests]

    def answered(self, wording: Wording, rows: Sequence[Example]) -> list[Example]:
        """Those of `rows` that the wording has been asked."""
        known = self._known.get(wording, {})
        return [row for row in rows if row.id in known]

    def outcome(self, method: str) -> Optimised:
        """What the search came to, compared on the validation rows that the best incumbent answered.

        A proposal must have answered all of them, `MIN_COMPARED` at least, and score above the incumbent. The best mean is
        taken; of equal ones that with an incumbent's instruction, then what was tried first.
        """
        asked = [one for one in self.incumbents if self.answered(one, self.hold)]
        if not asked:
            return Optimised(method, self.instruction, (), self.meter.spent, self.history(), False, 0.0, 0.0, 0)
        most = max(len(self.answered(one, self.hold)) for one in asked)
        level = [one for one in asked if len(self.answered(one, self.hold)) == most]
        incumbent = max(level, key=lambda one: self.mean(one, self.answered(one, self.hold)))
        rows = self.answered(incumbent, self.hold)
        chosen = self._chosen(incumbent, rows) if len(rows) >= MIN_COMPARED else incumbent
        return Optimised(
            method,
            chosen.instruction,
            chosen.shots,
            self.meter.spent,
            self.history(),
            chosen != incumbent,
            self.mean(chosen, rows),
            self.mean(incumbent, rows),
            len(rows),
        )

    def _chosen(self, incumbent: Wording, rows: Sequence[Example]) -> Wording:
        """The incumbent, where no proposal scores above it on `rows`."""
        bar = self.mean(incumbent, rows)
        known = {one.instruction for one in self.incumbents}
        rivals = [
            one
            for one in self._known
            if one not in self.incumbents and len(self.answered(one, rows)) == len(rows) and self.mean(one, rows) > bar
        ]
        # `max` takes the first of equal ones, and `sorted` leaves these in their order.
        return max(
            sorted(rivals, key=lambda one: one.instruction not in known),
            key=lambda one: self.mean(one, rows),
            default=incumbent,
        )

    def history(self) -> tuple[Tried, ...]:
        """Every wording that was asked, in that order, then the proposals that were refused."""
        tried = []
        for wording in self._known:
            held = self.answered(wording, self.hold)
            rows = held or self.answered(wording, self.learn)
            if rows:
                score = self.mean(wording, rows)
                tried.append(Tried(wording.instruction, len(wording.shots), score, len(rows), bool(held)))
        return (*tried, *self.refused)
