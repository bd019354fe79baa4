"""The user's templates as arms: filled in, with their demonstrations through the same frame, beside ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines.prompts.prompt import Prompt
from baselines.prompts.templates import template_arms
from evals.engines.embed import Embedder
from evals.engines.engine import Constraint, Message
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import Problem, ProblemsError
from evals.evaluate import evaluate
from evals.events import Event, Note, ignore
from evals.task.load import Task, load_task
from evals.task.reading.templates import read_templates

CAREFUL = """---
system: "Be careful. {{instruction}}"
shots: 3
---
Message: {{input}}
One of:
{{labels}}
"""
CHOICE = Constraint("choice", '["red", "blue", "green", "pink"]')

MakeTask = Callable[..., Path]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(tiny_model), "float32", ignore))


@pytest.fixture(scope="module")
def embedder(tiny_embeddings: Path) -> Embedder:
    return Embedder(str(tiny_embeddings))


@pytest.fixture
def arms_of(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine, embedder: Embedder
) -> Callable[..., tuple[Task, dict[str, Prompt], list[str]]]:
    """The task with some prompts, its arms by their names, and the notes."""

    def make(
        prompts: dict[str, str], constraint: Constraint | None = None, **changes: Any
    ) -> tuple[Task, dict[str, Prompt], list[str]]:
        folder = make_task(tmp_path / "task")
        shutil.rmtree(folder / "prompts", ignore_errors=True)  # of an earlier call
        plain = replace(load_task(folder), **changes)
        (folder / "prompts").mkdir(exist_ok=True)
        for name, text in prompts.items():
            (folder / "prompts" / f"{name}.md").write_text(text)
        problems: list[Problem] = []
        task = replace(plain, templates=read_templates(folder / "prompts", problems))
        assert not problems
        told: list[Event] = []
        arms = template_arms(task, engine, embedder, told.append, constraint)
        return task, {one.name: one for one in arms}, [one.text for one in told if isinstance(one, Note)]

    return make


def test_a_template_is_an_arm_with_everything_filled_in(arms_of: Any) -> None:
    task, arms, told = arms_of({"careful": CAREFUL})
    assert (list(arms), told) == (["prompt_careful"], [])
    arm = arms["prompt_careful"]
    assert arm.kind == "prompt"
    labels = "blue\ngreen\npink\nred"
    for request, example in zip(arm.requests(task.dev), task.dev, strict=True):
        system, *turns = request.messages
        assert system == Message("system", "Be careful. Name the colour.")
        assert turns[-1] == Message("user", f"Message: {example.text}\nOne of:\n{labels}")
        # Demonstrations stand in the same frame, as alternating turns.
        assert [one.role for one in turns] == [*["user", "assistant"] * 3, "user"]
        rows = {(f"Message: {one.text}\nOne of:\n{labels}", one.target) for one in task.train}
        asked, said = [one.content for one in turns[:-1:2]], [one.content for one in turns[1:-1:2]]
        assert set(zip(asked, said, strict=True)) <= rows
        assert len(set(asked)) == 3
        assert (request.constraint, request.max_new_tokens) == (None, 24)


def test_no_templates_no_arms(arms_of: Any) -> None:
    assert arms_of({})[1:] == ({}, [])


def test_demonstrations_are_chosen_as_the_template_says(arms_of: Any) -> None:
    texts = {how: f"---\nshots: 4\nchoose: {how}\n---\n{{{{input}}}}" for how in ("random", "diverse", "nearest")}
    task, arms, _ = arms_of(texts)
    sets = {
        name: {tuple(turn.content for turn in one.messages[:-1]) for one in arm.requests(task.dev)}
        for name, arm in arms.items()
    }
    assert {name: len(some) for name, some in sets.items()} == {
        "prompt_diverse": 1,
        "prompt_nearest": len(task.dev),
        "prompt_random": 1,
    }
    (diverse,) = sets["prompt_diverse"]
    assert set(diverse[1::2]) == {"red", "blue", "green", "pink"}
    assert len({str(arm.settings) for arm in arms.values()}) == 3


def test_a_constraint_is_enforced_where_asked_for_and_its_lack_is_said(arms_of: Any) -> None:
    prompts = {"form": "---\nconstrained: true\n---\n{{input}}", "free": "{{input}}"}
    task, arms, told = arms_of(prompts, CHOICE)
    assert told == []
    asked = {name: arm.requests(task.dev)[0].constraint for name, arm in arms.items()}
    assert asked == {"prompt_form": CHOICE, "prompt_free": None}
    task, arms, told = arms_of(prompts)
    assert arms["prompt_form"].requests(task.dev)[0].constraint is None
    (note,) = told
    assert note.startswith("prompt_form: constrained answers are wanted")


def test_reasons_come_before_a_mark_that_the_demonstrations_show(arms_of: Any) -> None:
    task, arms, told = arms_of({"why": "---\nreason: true\nshots: 2\n---\nThink, then write Answer: {{input}}"})
    arm = arms["prompt_why"]
    request = arm.requests(task.dev)[0]
    assert told == []
    assert request.max_new_tokens == 24 + 96
    assert arm.answer_format.after == "Answer:"
    assert arm.parse("It is not blue.\nAnswer: red") == "red"
    said = [one.content for one in request.messages if one.role == "assistant"]
    assert {one.target for one in task.train} >= {one.removeprefix("Answer: ") for one in said}
    assert all(one.startswith("Answer: ") for one in said)


def test_reasons_take_what_the_longest_question_leaves(arms_of: Any, engine: HfEngine) -> None:
    task, arms, told = arms_of({"why": "---\nreason: true\n---\n" + "x" * 380 + "{{input}}"})
    arm = arms["prompt_why"]
    requests = arm.requests((*task.train, *task.dev))
    longest = max(engine.count_prompts([one.messages for one in requests]))
    assert {longest + one.max_new_tokens for one in requests} == {engine.context_length}
    assert told == [f"prompt_why: the context leaves {512 - longest - 24} of 96 tokens for reasons"]


def test_the_schema_is_compact_json_and_marks_in_what_is_filled_in_are_text(arms_of: Any) -> None:
    schema = {"type": "object", "properties": {"ü": {"const": "{{labels}}"}}}
    body = "{{schema}} {{input}}"
    task, arms, _ = arms_of({"form": body}, schema=schema)
    example = replace(task.dev[0], messages=(Message("user", "of {{input}} and {{schema}}"),))
    (request,) = arms["prompt_form"].requests([example])
    compact = '{"type":"object","properties":{"ü":{"const":"{{labels}}"}}}'
    assert json.loads(compact) == schema
    assert request.messages == (Message("user", f"{compact} of {{{{input}}}} and {{{{schema}}}}"),)


def test_a_mark_without_its_value_stops_before_anything_is_asked(arms_of: Any) -> None:
    with pytest.raises(ProblemsError) as raised:
        arms_of({"form": "{{schema}} {{input}}"})
    assert "the task has no output schema to put here" in str(raised.value)
    with pytest.raises(ProblemsError, match="hold this mark"):
        arms_of({"form": "{{instruction}} {{input}}"}, instruction="Say {{input}}.")


def test_an_arm_answers_every_question_and_its_record_follows_the_file(
    arms_of: Any, make_task: MakeTask, tmp_path: Path
) -> None:
    task, arms, _ = arms_of({"careful": CAREFUL})
    scores = evaluate(task, arms["prompt_careful"], "dev", tmp_path / "scores", ignore)
    assert len(scores.items) == len(task.dev)
    assert scores.skipped == 0
    changed, others, _ = arms_of({"careful": CAREFUL.replace("One of", "Some of")})
    assert others["prompt_careful"].settings != arms["prompt_careful"].settings
    assert changed.hash() != task.hash()
    # Where the files lie does not count.
    moved = load_task(make_task(tmp_path / "elsewhere", files={"prompts/careful.md": CAREFUL}))
    assert moved.hash() == task.hash()
