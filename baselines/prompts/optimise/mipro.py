"""DSPy's MIPROv2 behind our engine: instructions and demonstrations, chosen together (Opsahl-Ong et al. 2024, 2406.11695).

DSPy proposes and chooses; prompts have our own form, answers come from our engine, scores from the task's metric. Needs
the extra `mipro`. No cache of DSPy's, nothing written to disk, no network.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from baselines.prompts.optimise.proposals import fitting, shown
from baselines.prompts.optimise.search import BudgetSpent, Optimised, Search, Wording
from evals.errors import AdvisorError
from evals.task.example import Example

QUESTION, ANSWER = "question", "answer"
REQUESTS_EACH = 50
MIN_CANDIDATES, MAX_CANDIDATES = 3, 10
LABELLED, BOOTSTRAPPED = 4, 2
# DSPy tries rows one after the other until it has its demonstrations; a weak model would be asked all of them.
MAX_BOOTSTRAP_ROWS = 16
# A summary of the data costs the proposer about a dozen requests.
SUMMARY_FROM = 500


def require_dspy() -> None:
    """Raises AdvisorError where DSPy or what it optimises with is missing."""
    if any(find_spec(name) is None for name in ("dspy", "optuna")):
        raise AdvisorError(
            "MIPROv2 comes with DSPy, which is not installed",
            where="optimise: mipro",
            do="install finetune-advisor[mipro], or leave mipro out of `optimise: {methods: […]}`.",
        )


def mipro(search: Search) -> Optimised:
    """Search from the better of the incumbents, as long as the budget lasts. Raises AdvisorError where DSPy fails or is missing."""
    require_dspy()
    with suppress(BudgetSpent):
        start = max(search.incumbents, key=lambda one: search.mean(one, search.hold))
        _compile(search, start)
    return search.outcome("mipro")


@dataclass(frozen=True)
class Plan:
    """How much of everything the budget pays for. `trials` are wordings, each scored on all validation rows."""

    candidates: int
    rows: int
    summary: bool
    trials: int


def plan(search: Search) -> Plan:
    """The requests of a MIPROv2 run: bootstrapping (candidates - 2) sets of demonstrations from `rows` rows each, a proposal a
    candidate, perhaps a summary, and what is left for trials."""
    left = search.meter.left
    candidates = max(MIN_CANDIDATES, min(MAX_CANDIDATES, search.meter.budget // REQUESTS_EACH))
    rows = max(1, min(MAX_BOOTSTRAP_ROWS, len(search.learn), left // 5 // (candidates - 2)))
    summary = search.meter.budget >= SUMMARY_FROM
    trials = (left - (candidates - 2) * rows - candidates - 12 * summary) // len(search.hold)
    return Plan(candidates, rows, summary, trials)


def _compile(search: Search, start: Wording) -> None:
    planned = plan(search)
    if planned.trials < 1:
        return
    bridge = Bridge(search, start)
    try:
        with _quiet(bridge):
            _run(search, bridge, planned)
    except (BudgetSpent, AdvisorError):
        raise
    except Exception as error:
        if bridge.failed is None:
            raise AdvisorError(
                f"the search stopped with an error of the library: {error}",
                where="optimise: mipro",
                do="leave mipro out of `optimise: {methods: […]}`, or install another version of dspy.",
            ) from error
    # DSPy takes any error for a wrong answer and goes on; ours end the search.
    if bridge.failed is not None:
        raise bridge.failed


def _run(search: Search, bridge: Bridge, planned: Plan) -> None:
    import dspy

    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    model = _model(bridge)
    program = dspy.Predict(dspy.Signature(f"{QUESTION} -> {ANSWER}", bridge.start.instruction))
    bridge.given = program.signature.instructions
    with dspy.context(lm=model, adapter=_adapter(bridge), disable_history=True, track_usage=False):
        optimiser = dspy.MIPROv2(
            metric=bridge.metric,
            prompt_model=model,
            task_model=model,
            auto=None,
            num_candidates=planned.candidates,
            max_bootstrapped_demos=BOOTSTRAPPED,
            max_labeled_demos=LABELLED,
            num_threads=1,
            max_errors=search.meter.budget + len(search.hold),
            # A demonstration of the model's own must be right, not just score above 0.
            metric_threshold=1.0,
            seed=search.seed + 1,
            track_stats=False,
        )
        optimiser.compile(
            program,
            trainset=[bridge.example(row) for row in search.learn[: planned.rows]],
            valset=[bridge.example(row) for row in search.hold],
            num_trials=planned.trials,
            # All validation rows each time: then a wording that is tried again costs nothing, and all are asked together.
            minibatch=False,
            program_aware_proposer=False,
            data_aware_proposer=planned.summary,
        )


class Bridge:
    """Between DSPy's examples, demonstrations and calls, and the search's rows, wordings and requests.

    `given` is the instruction as DSPy holds it, which has none that is empty.
    """

    def __init__(self, search: Search, start: Wording) -> None:
        self.search = search
        self.start = start
        self.given = start.instruction
        self.failed: Exception | None = None
        self.proposed = 0
        self.out, self.err = sys.stdout, sys.stderr
        rows = [*search.learn, *search.hold]
        self._rows = {row.id: row for row in rows}
        # Rows with the same input have the same answer.
        self._asked = {shown(row): row for row in reversed(rows)}
        self._held = {row.id for row in search.hold}

    def example(self, row: Example) -> Any:
        import dspy

        # `row` tells the metric which one it is; DSPy shows inputs and answers only.
        return dspy.Example(question=shown(row), answer=row.target, row=row.id).with_inputs(QUESTION)

    def wording(self, instruction: str, demos: Sequence[Mapping[str, Any]]) -> Wording:
        shots = tuple(replace(self._asked[demo[QUESTION]], target=str(demo[ANSWER])) for demo in demos)
        return Wording(self.start.instruction if instruction == self.given else instruction, shots)

    def answer(self, instruction: str, demos: Sequence[Mapping[str, Any]], question: str) -> str:
        """For a validation row all of them are asked at once: DSPy wants each in turn, and one by one takes far longer."""
        row = self._asked[question]
        rows = self.search.hold if row.id in self._held else (row,)
        with self.ours():
            wording = self.wording(instruction, demos)
            self.search.score(wording, rows)
            return self.search.ask(wording, (row,))[0]

    def metric(self, example: Any, prediction: Any, trace: Any = None) -> float:
        with self.ours():
            return self.search.values([(self._rows[example.row], str(prediction[ANSWER]))])[0]

    def propose(self, text: str) -> str:
        self.proposed += 1
        seed = (self.search.seed * 1000 + self.proposed) % 2**31
        with self.ours():
            (response,) = self.search.propose([fitting(self.search.proposer, text)], [seed])
        return response.text

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Our own code inside DSPy's: its events reach the terminal, and its errors the end of the search."""
        if self.failed is not None:
            raise self.failed
        with redirect_stdout(self.out), redirect_stderr(self.err):
            try:
                yield
            except (AdvisorError, BudgetSpent) as error:
                self.failed = error
                raise


def _model(bridge: Bridge) -> Any:
    """The proposer as a model of DSPy's. The task's own model is never called by it: `_adapter` answers."""
    import dspy

    class Proposer(dspy.BaseLM):  # type: ignore[misc]
        def forward(self, prompt: str | None = None, messages: Any = None, **settings: Any) -> Any:
            turns = [prompt] if prompt else [str(turn["content"]) for turn in messages or ()]
            text = bridge.propose("\n\n".join(turns))
            choice = SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop", logprobs=None)
            return SimpleNamespace(choices=[choice], usage={}, model=self.model)

    return Proposer(bridge.search.proposer.name, cache=False)


def _adapter(bridge: Bridge) -> Any:
    """How DSPy's calls become requests: the task's in the form of our `Prompt`, the proposer's in DSPy's own.

    A small proposer rarely keeps to DSPy's marks. Its whole text is then taken for the field that was wanted.
    """
    import dspy
    from dspy.utils.exceptions import AdapterParseError

    class Ours(dspy.ChatAdapter):  # type: ignore[misc]
        def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
            if set(signature.input_fields) == {QUESTION} and set(signature.output_fields) == {ANSWER}:
                return [{ANSWER: bridge.answer(signature.instructions, demos, inputs[QUESTION])}]
            texts = lm(messages=self.format(signature, demos, inputs))
            return [self._read(signature, text if isinstance(text, str) else text["text"]) for text in texts]

        def _read(self, signature: Any, text: str) -> dict[str, Any]:
            try:
                found: dict[str, Any] = self.parse(signature, text)
            except AdapterParseError:
                *others, last = signature.output_fields
                found = {**dict.fromkeys(others, ""), last: text}
            return found

    return Ours()


@contextmanager
def _quiet(bridge: Bridge) -> Iterator[None]:
    """DSPy and optuna print and log; their output is dropped, and what was set is as it was before."""
    before = logging.root.manager.disable
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, before)
        yield
