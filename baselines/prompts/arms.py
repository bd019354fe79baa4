"""All prompts that are tried: zero-shot, described, constrained, few-shot, the user's own, reasoning."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.prompts.constrained import constrained, constrained_arms
from baselines.prompts.instruction import described_arm
from baselines.prompts.prompt import Prompt, answer_format
from baselines.prompts.reasoning import SelfConsistency, reason_then_answer
from baselines.prompts.shots import few_shot_arms
from baselines.prompts.templates import template_arms
from evals.candidate import Candidate, PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Constraint, Engine
from evals.events import OnEvent
from evals.task.load import Task

SAMPLES = 5


def prompt_arms(
    task: Task, engine: Engine, embedder: Embedder, constraint: Constraint | None, on_event: OnEvent
) -> list[Candidate]:
    """Every prompt candidate, the cheapest first. `constraint` is the form of the task's answers (`constraint_of`)."""
    answers = answer_format(task, engine)
    reasoning = reason_then_answer(task, engine, on_event)
    arms = [Prompt("zero_shot", engine, PromptFormat(task.instruction, "system"), answers, on_event=on_event)]
    if task.instruction:
        inline = PromptFormat(task.instruction, "inline")
        arms.append(Prompt("zero_shot_inline", engine, inline, answers, on_event=on_event))
    return [
        *arms,
        described_arm(task, engine, on_event),
        *constrained_arms(task, engine, constraint, on_event),
        *template_arms(task, engine, embedder, on_event, constraint),
        *few_shot_arms(task, engine, embedder, on_event),
        reasoning,
        SelfConsistency(reasoning, SAMPLES, task.spec.seed),
    ]


def combined(prompts: Sequence[Prompt], constraint: Constraint | None) -> list[Prompt]:
    """The prompts with demonstrations once more with the form of answers enforced, where the task has a form."""
    shown = [one for one in prompts if one.shots and not one.constraint and not one.answer_format.after]
    return [constrained(one, constraint) for one in shown] if constraint else []
