"""GEPA behind our engine: instructions evolve by reflection on what went wrong (Agrawal et al. 2025, 2507.19457).

The library decides what to mutate and what to keep; we answer, score, reflect and count. Nothing is written to disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from baselines.prompts.optimise.proposals import clipped, fitting, refusal, shown
from baselines.prompts.optimise.search import BudgetSpent, Optimised, Search, Tried, Wording
from evals.errors import AdvisorError
from evals.task.example import Example

MINIBATCH = 3
# Reflections that are asked together: one at a time leaves an engine that answers in batches idle.
AT_ONCE = 4
# Requests of a reflection: itself, and the minibatch before and after.
REFLECTION = 1 + 2 * MINIBATCH
COMPONENT = "instruction"


def gepa(search: Search) -> Optimised:
    """Evolve the better of the incumbents until the budget is spent. Raises AdvisorError where the library fails."""
    with suppress(BudgetSpent):
        start = max(search.incumbents, key=lambda one: search.mean(one, search.hold))
        _evolve(search, start)
    return search.outcome("gepa")


def _evolve(search: Search, start: Wording) -> None:
    import gepa as library

    ours = Adapter(search)
    try:
        library.optimize(
            seed_candidate={COMPONENT: start.instruction},
            trainset=list(search.learn),
            valset=list(search.hold),
            adapter=ours,
            reflection_lm=Reflection(ours),
            sampling_strategy=Sampling(search),
            reflection_minibatch_size=min(MINIBATCH, len(search.learn)),
            stop_callbacks=ours.stop,
            logger=Silent(),
            run_dir=None,
            track_best_outputs=False,
            display_progress_bar=False,
            seed=search.seed,
        )
    except (BudgetSpent, AdvisorError):
        raise
    except Exception as error:
        raise AdvisorError(
            f"the search stopped with an error of the library: {error}",
            where="optimise: gepa",
            do="leave gepa out of `optimise: {methods: […]}`, or install another version of it.",
        ) from error
    if ours.failed is not None:
        raise ours.failed


class Silent:
    """The library's log, which is not kept: what was tried is in the outcome's history."""

    def log(self, message: str) -> None: ...


class Adapter:
    """What GEPA asks of a system: to answer a batch under an instruction, and to say what went wrong.

    A candidate is `{"instruction": text}`; a row of data is an `Example`.
    """

    propose_new_texts = None

    def __init__(self, search: Search) -> None:
        self.search = search
        self.reflections = 0
        self.failed: Exception | None = None
        self._refused: set[str] = set()

    def stop(self, state: Any) -> bool:
        """Where a further reflection and its minibatch cannot be paid, or where the rounds ask nothing new any more."""
        meter = self.search.meter
        return self.failed is not None or meter.left < REFLECTION or state.i >= meter.budget

    def evaluate(self, batch: Sequence[Example], candidate: Mapping[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

        wording = Wording(candidate[COMPONENT])
        if self._junk(wording.instruction):
            scores, outputs = [0.0] * len(batch), [""] * len(batch)
        else:
            scores, outputs = self.search.score(wording, batch)
        traces = list(zip(batch, outputs, scores, strict=True)) if capture_traces else None
        return EvaluationBatch(outputs=outputs, scores=scores, trajectories=traces)

    def _junk(self, instruction: str) -> bool:
        """Scores 0 without a request. The incumbents are what they are."""
        why = "" if Wording(instruction) in self.search.incumbents else refusal(instruction, "")
        if why and instruction not in self._refused:
            self._refused.add(instruction)
            self.search.refused.append(Tried(clipped(instruction), 0, 0.0, 0, False, why))
        return bool(why)

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], eval_batch: Any, components_to_update: Sequence[str]
    ) -> dict[str, list[dict[str, str]]]:
        return {COMPONENT: [_told(row, output, score) for row, output, score in eval_batch.trajectories]}

    def reflect(self, prompts: Sequence[str]) -> list[str]:
        """The proposer's texts. The library takes an error here for a bad proposal, so ours is kept and ends the search."""
        if self.failed is not None:
            # The library tries each again alone.
            raise self.failed
        first = self.search.seed * 1000 + self.reflections
        self.reflections += len(prompts)
        try:
            fitted = [fitting(self.search.proposer, text) for text in prompts]
            found = self.search.propose(fitted, [(first + at) % 2**31 for at in range(len(prompts))])
        except (AdvisorError, BudgetSpent) as error:
            self.failed = error
            raise
        return [one.text for one in found]


class Reflection:
    """The library's language model: a text, or several chats together."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __call__(self, prompt: str | Sequence[Mapping[str, Any]]) -> str:
        return self._adapter.reflect([prompt if isinstance(prompt, str) else _joined(prompt)])[0]

    def batch_complete(self, chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
        return self._adapter.reflect([_joined(chat) for chat in chats])


class Sampling:
    """How many candidates evolve in a round: as many at once as the budget still pays for."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def sample_tasks(self, *given: Any) -> Any:
        from gepa.strategies.proposal_sampling import IndependentSampling

        count = min(AT_ONCE, self._search.meter.left // REFLECTION)
        return IndependentSampling(max(1, count)).sample_tasks(*given)


def _joined(chat: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(str(turn["content"]) for turn in chat)


def _told(row: Example, output: str, score: float) -> dict[str, str]:
    right = "This is right." if score >= 1 else f"This scores {score:.2f} of 1. The right answer is: {clipped(row.target)}"
    return {"Inputs": clipped(shown(row)), "Generated Outputs": clipped(output), "Feedback": right}
