"""The form of answers, enforced while the model decodes: labels by choice, JSON by schema, numbers by a regular expression."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from baselines.prompts.instruction import answer_schema, described_arm
from baselines.prompts.prompt import Prompt
from evals.engines.endpoint import EndpointEngine
from evals.engines.engine import Constraint, Engine, Message, Request
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, Interrupted
from evals.events import Note, OnEvent
from evals.metrics.number import parse_number
from evals.task.load import Task

if TYPE_CHECKING:
    from evals.engines.handle import ModelHandle

# A plain number of bounded length: a small model that may write digits for ever does.
NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?"
# Enough for a server to show that it does not enforce a form.
TRIAL_TOKENS = 16


def constraint_of(task: Task, engine: Engine, on_event: OnEvent) -> Constraint | None:
    """The form that every right answer to the task has, where it has one that this engine can enforce.

    What cannot be enforced (a schema with keywords that the compiler does not know, numbers on an endpoint, labels that
    the tokeniser cannot write) is a warning, and no constraint. Weights are not loaded; an endpoint is asked one short question.
    """
    constraint = _wanted(task)
    if constraint is None:
        return None
    try:
        _try(engine, constraint, task)
    except Interrupted:
        raise
    except AdvisorError as error:
        on_event(Note(f"answers are not constrained: {error.what}", "warning"))
        return None
    return constraint


def constrained(prompt: Prompt, constraint: Constraint) -> Prompt:
    """The same prompt with the form of its answers enforced."""
    answers = prompt.answer_format
    if constraint.kind == "choice":
        # A choice ends by itself. At worst it is written byte by byte, and cut off it would be no choice.
        longest = max(len(one.encode("utf-8", "replace")) for one in json.loads(constraint.source))
        answers = replace(answers, max_new_tokens=max(answers.max_new_tokens, longest + 1))
    return replace(prompt, name=f"{prompt.name}_constrained", answer_format=answers, constraint=constraint)


def constrained_arms(task: Task, engine: Engine, constraint: Constraint | None, on_event: OnEvent) -> list[Prompt]:
    """`zero_shot_constrained`, with the instruction that tells the form; none where there is no form to enforce."""
    if constraint is None:
        return []
    return [replace(constrained(described_arm(task, engine, on_event), constraint), name="zero_shot_constrained")]


def _wanted(task: Task) -> Constraint | None:
    if task.output_type == "label" and task.labels:
        return Constraint("choice", json.dumps(task.labels))
    if task.output_type == "json":
        return Constraint("json_schema", json.dumps(answer_schema(task)))
    if task.output_type == "number":
        return Constraint("regex", NUMBER)
    return None


def _try(engine: Engine, constraint: Constraint, task: Task) -> None:
    """Raises AdvisorError where this engine cannot keep answers to the constraint."""
    if constraint.kind == "regex":
        _refuse_other_numbers(task)
    if isinstance(engine, HfEngine):
        _compile(engine.handle, constraint)
    elif isinstance(engine, EndpointEngine):
        asked = Message("user", "Answer in the form that is asked for.")
        for _ in engine.generate([Request("the form of answers", (asked,), TRIAL_TOKENS, constraint=constraint)]):
            pass


def _compile(handle: ModelHandle, constraint: Constraint) -> None:
    """With the tokeniser alone: `handle.grammar` would load the weights, of a run whose answers may all be there."""
    from evals.engines.constrain import GrammarTokens

    tokenizer = handle.tokenizer
    stop = tokenizer.eos_token_id
    GrammarTokens(tokenizer, len(tokenizer), [0 if stop is None else stop]).matcher(constraint)
    if constraint.kind == "choice":
        _refuse_unwritable(tokenizer, json.loads(constraint.source))


def _refuse_unwritable(tokenizer: Any, labels: Sequence[str]) -> None:
    """A label that comes back from its tokens as another text could not be decoded, and would stop the run half way."""
    for label in labels:
        tokens = tokenizer(label, add_special_tokens=False)["input_ids"]
        back = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if back.strip() != label.strip():
            raise AdvisorError(f"the model's tokeniser cannot write the label {label[:60]!r}")


def _refuse_other_numbers(task: Task) -> None:
    """Right answers that `NUMBER` has no room for: so long, or with so small a share, that they need another form."""
    for example in task.train:
        value = parse_number(example.target)
        if value is None or not re.fullmatch(NUMBER, f"{value:.15g}"):
            raise AdvisorError(f"the target {example.target[:60]!r} is no plain number of 15 digits and 6 decimals")
