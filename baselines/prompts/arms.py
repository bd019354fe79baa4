"""All prompts that are tried: zero-shot, described, constrained, few-shot, the user's own, reasoning."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.prompts.constrained import constrained, constrained_arms, constraint_of
from baselines.prompts.instruction import described_arm
from baselines.prompts.prompt import Prompt, answer_format
from baselines.prompts.reasoning import SelfConsistency, reason_then_answer
from baselines.prompts.shots import few_shot_arms
from baselines.prompts.templates import template_arms
from evals.candidate import Candidate, PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Engine
from evals.events import OnEvent, ignore
from evals.task.load import Task

SAMPLES = 5


def prompt_arms(task: Task, engine: Engine, embedder: Embedder, on_event: OnEvent) -> list[Candidate]:
    """Every prompt candidate, the cheapest first."""
    answers = answer_format(task, engine)
    constraint = constraint_of(task, engine, on_event)
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


def combined(task: Task, prompts: Sequence[Prompt], engine: Engine) -> list[Prompt]:
    """The prompts with demonstrations once more with the form of answers enforced, where the task has a form."""
    # Why there is none was said when the prompts were made.
    constraint = constraint_of(task, engine, ignore)
    shown = [one for one in prompts if one.shots and not one.constraint and not one.answer_format.after]
    return [constrained(one, constraint) for one in shown] if constraint else []
