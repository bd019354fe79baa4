"""The user's own prompts as arms: each template of `prompts/*.md` beside ours, on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baselines.prompts.prompt import Prompt, answer_format
from baselines.prompts.reasoning import MARK, with_reasons
from baselines.prompts.shots import Chooser, chosen_by
from evals.candidate import AnswerFormat, PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Constraint, Engine
from evals.errors import ProblemsError
from evals.events import Note, OnEvent
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task
from evals.task.reading.templates import Template, filled, mark_values, template_problems


def template_arms(
    task: Task, engine: Engine, embedder: Embedder, on_event: OnEvent, constraint: Constraint | None
) -> list[Prompt]:
    """Each template as the arm `prompt_<name>`. `constraint` is the form of the task's answers, None where there is none.

    Raises ProblemsError where a template asks for what the task does not have.
    """
    if not task.templates:
        return []
    if problems := template_problems(task.templates, task.folder, _values(task)):
        raise ProblemsError(problems)
    answers = answer_format(task, engine)
    return [_arm(one, task, engine, embedder, on_event, constraint, answers) for one in task.templates]


def _arm(
    template: Template,
    task: Task,
    engine: Engine,
    embedder: Embedder,
    on_event: OnEvent,
    constraint: Constraint | None,
    answers: AnswerFormat,
) -> Prompt:
    name = f"prompt_{template.name}"
    asked = prompt_format(template, task)
    if template.constrained and constraint is None:
        said = "constrained answers are wanted, and this task's answers have no form to enforce: it is asked without"
        on_event(Note(f"{name}: {said}", "warning"))
    shots, settings = None, None
    if template.shots:
        shots, settings = chosen_by(template.choose, task, template.shots, embedder, content_hash(task.train))
    if template.reason:
        answers = with_reasons(name, answers, asked, task, engine, on_event)
        shots = concluding(shots) if shots else None
    return Prompt(
        name,
        engine,
        asked,
        answers,
        shots=shots,
        shot_settings=settings,
        constraint=constraint if template.constrained else None,
        on_event=on_event,
    )


def prompt_format(template: Template, task: Task) -> PromptFormat:
    """System message and frame, with everything but the question filled in."""
    values = _values(task)
    return PromptFormat(filled(template.system, values), "system", filled(template.frame, values))


def _values(task: Task) -> dict[str, str]:
    return mark_values(task.instruction, task.labels, task.schema)


def concluding(shots: Chooser) -> Chooser:
    """The same demonstrations with the mark before their answers, as the model shall write it (they have no reasons)."""

    def choose(examples: Sequence[Example]) -> list[tuple[Example, ...]]:
        return [tuple(replace(shot, target=f"{MARK} {shot.target}") for shot in some) for some in shots(examples)]

    return choose
