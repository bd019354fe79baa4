"""Every answer has the form that right answers have, every such answer can be given, and a form that cannot be enforced
stops no run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from baselines.prompts.constrained import NUMBER, constrained, constrained_arms, constraint_of
from baselines.prompts.instruction import described, inferred_schema
from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import PromptFormat
from evals.engines.endpoint import EndpointEngine
from evals.engines.engine import Constraint
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.models import DEMO_MODEL
from evals.engines.retry import Patience
from evals.errors import Interrupted
from evals.events import Event, Note, ignore
from evals.exchange import exchanged
from evals.metrics.label import normalise_label
from evals.metrics.number import parse_number
from evals.task.example import Example
from evals.task.load import Task, load_task
from tests.serving import Reply, ScriptedServer, completion

MakeTask = Callable[..., Path]
NESTED = ["card", "card lost", "card lost\nabroad", 'say "card"', "c\\d", "car", "|", "CARD #2"]
TICKET = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.fixture
def engine(tiny_model: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(tiny_model), "float32", ignore))


def task_of(
    make_task: MakeTask, folder: Path, outputs: Sequence[str], files: dict[str, str] | None = None, **output: Any
) -> Task:
    """A task whose training targets are `outputs`, again and again up to 24 rows."""
    targets = [outputs[at % len(outputs)] for at in range(max(24, len(outputs)))]
    rows = [{"id": f"r{at}", "input": f"Item {at}.", "output": one} for at, one in enumerate(targets)]
    splits = {"train": rows, "dev": [{**one, "id": f"d{one['id']}", "input": f"Thing {one['id']}"} for one in rows[:8]]}
    splits["test"] = [{**one, "id": f"t{one['id']}", "input": f"Matter {one['id']}"} for one in rows[:8]]
    return load_task(make_task(folder, rows=splits, files=files, output=output))


def said_by(prompt: Prompt, rows: Sequence[Example], times: int) -> set[str]:
    """Answers to the rows, drawn so hot that the model's own wishes hardly matter."""
    found: set[str] = set()
    for time in range(times):
        asked = prompt.requests(rows)
        # Rows that share a seed draw alike.
        hot = [replace(one, temperature=20.0, seed=time * len(rows) + at) for at, one in enumerate(asked)]
        answers = [one.answer for one in exchanged(prompt.engine, [(one.id, one) for one in hot], prompt.parse)]
        assert not any(one.skipped for one in answers)
        found |= {one.text for one in answers}
    return found


def notes(told: Sequence[Event]) -> list[str]:
    return [one.text for one in told if isinstance(one, Note) and one.level == "warning"]


def test_of_labels_that_contain_each_other_each_can_be_said_and_nothing_else(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine
) -> None:
    task = task_of(make_task, tmp_path, NESTED, type="label", labels=NESTED)
    told: list[Event] = []
    constraint = constraint_of(task, engine, told.append)
    assert constraint == Constraint("choice", json.dumps(NESTED))
    assert not notes(told)
    plain = Prompt("zero_shot", engine, PromptFormat("Say it."), answer_format(task, engine))
    assert said_by(constrained(plain, constraint), task.dev, 25) == set(NESTED)
    # They are as many for the metric too, or an answer could be right by mistake.
    assert len({normalise_label(one) for one in NESTED}) == len(NESTED)


def test_a_choice_has_room_for_the_longest_label_however_it_is_written(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine
) -> None:
    long = "a label that no training row has " + "and goes on " * 5
    task = task_of(make_task, tmp_path, ["red", "blue"], type="label", labels=["red", "blue", long.strip()])
    (arm,) = constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    assert answer_format(task, engine).max_new_tokens < len(long)
    assert said_by(arm, task.dev, 20) == {"red", "blue", long.strip()}


def test_the_arm_is_told_the_form_that_it_is_kept_to(make_task: MakeTask, tmp_path: Path, engine: HfEngine) -> None:
    task = task_of(make_task, tmp_path, ["red", "blue"], type="label")
    (arm,) = constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    assert (arm.name, arm.kind) == ("zero_shot_constrained", "prompt")
    assert arm.prompt_format.instruction == described(task)
    assert all(one.constraint == constraint_of(task, engine, ignore) for one in arm.requests(task.dev))
    plain = replace(arm, name="few_shot_random_8", constraint=None)
    form = constraint_of(task, engine, ignore)
    assert form is not None
    assert constrained(plain, form).name == "few_shot_random_8_constrained"
    assert constrained(plain, form).settings != plain.settings


def test_no_weights_are_loaded_to_know_the_form(make_task: MakeTask, tmp_path: Path, engine: HfEngine) -> None:
    task = task_of(make_task, tmp_path, ["red", "blue"], type="label")
    assert constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    assert "base" not in vars(engine.handle)


def test_json_answers_fit_the_tasks_schema(make_task: MakeTask, tmp_path: Path, engine: HfEngine) -> None:
    target = json.dumps({"colour": "red", "count": 3})
    files = {"ticket.json": json.dumps(TICKET)}
    task = task_of(make_task, tmp_path, [target], files, type="json", schema="ticket.json")
    (arm,) = constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    assert arm.constraint is not None
    assert json.loads(arm.constraint.source) == TICKET
    answers = [json.loads(one) for one in said_by(arm, task.dev, 5)]
    for one in answers:
        jsonschema.validate(one, TICKET)
    assert {one["colour"] for one in answers} == {"red", "blue"}


def test_without_a_schema_json_has_the_form_of_the_training_targets(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine
) -> None:
    rows = [
        {"colour": colour, "round": round_, **more}
        for colour in ("red", "blue")
        for round_ in (True, False)
        for more in ({}, {"size": None})
    ]
    task = task_of(make_task, tmp_path, [json.dumps(one) for one in rows], type="json")
    constraint = constraint_of(task, engine, ignore)
    assert constraint is not None
    schema = json.loads(constraint.source)
    assert schema == inferred_schema(rows * 3)
    (arm,) = constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    for one in said_by(arm, task.dev, 3):
        jsonschema.validate(json.loads(one), schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "https://example.com/x.json"}, None),
        ({**TICKET, "not": {"required": ["x"]}}, '"not"'),
        ({**TICKET, "dependentRequired": {"colour": ["count"]}}, "dependentRequired"),
        ({**TICKET, "properties": {"colour": {"type": "string", "format": "shade"}}}, "shade"),
        ({**TICKET, "properties": {"colour": {"type": "string", "pattern": "(?=r)red"}}}, "look-ahead"),
        ({**TICKET, "x-guidance": {"no_such": 1}}, "no_such"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_a_warning_and_no_arm(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine, schema: dict[str, Any], said: str | None
) -> None:
    task = task_of(make_task, tmp_path, ['{"colour": "red", "count": 3}'], type="json")
    told: list[Event] = []
    assert constraint_of(replace(task, schema=schema), engine, told.append) is None
    (note,) = notes(told)
    assert note.startswith("answers are not constrained: ")
    assert (said or "JSON schema") in note
    assert constrained_arms(task, engine, None, ignore) == []


@pytest.mark.parametrize(
    "schema",
    [
        {name: TICKET[name] for name in TICKET if name != "type"},
        {"$ref": "#/$defs/ticket", "$defs": {"ticket": TICKET}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Ticket", "description": "One.", **TICKET},
    ],
)
def test_a_schema_need_not_say_that_an_answer_is_an_object(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine, schema: dict[str, Any]
) -> None:
    task = replace(task_of(make_task, tmp_path, ['{"colour": "red", "count": 3}'], type="json"), schema=schema)
    (arm,) = constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    for one in said_by(arm, task.dev, 2):
        jsonschema.validate(json.loads(one), TICKET)


def test_a_label_that_the_tokeniser_cannot_write_is_a_warning_and_no_arm(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine
) -> None:
    task = task_of(make_task, tmp_path, ["red", "blå"], type="label")
    told: list[Event] = []
    assert constraint_of(task, engine, told.append) is None
    assert "'blå'" in notes(told)[0]


def test_numbers_are_plain_ones(make_task: MakeTask, tmp_path: Path, engine: HfEngine) -> None:
    task = task_of(make_task, tmp_path, ["3", "-4.5", "1,000"], type="number")
    assert constraint_of(task, engine, ignore) == Constraint("regex", NUMBER)
    (arm,) = constrained_arms(task, engine, constraint_of(task, engine, ignore), ignore)
    answers = said_by(arm, task.dev, 5)
    assert len(answers) > 20
    for one in answers:
        assert re.fullmatch(NUMBER, one)
        assert parse_number(one) is not None
    for one in ("0", "-7", "12.5", "-0.000001"):
        assert re.fullmatch(NUMBER, one)


@pytest.mark.parametrize("target", ["1e20", "0.00000001", "3.14159265"])
def test_numbers_that_have_no_plain_form_are_not_constrained(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine, target: str
) -> None:
    task = task_of(make_task, tmp_path, ["3", target], type="number")
    told: list[Event] = []
    assert constraint_of(task, engine, told.append) is None
    assert target in notes(told)[0]


def test_text_has_no_form(make_task: MakeTask, tmp_path: Path, engine: HfEngine) -> None:
    task = task_of(make_task, tmp_path, [f"word {at}" for at in range(24)], type="text")
    told: list[Event] = []
    assert constraint_of(task, engine, told.append) is None
    assert constrained_arms(task, engine, None, told.append) == []
    assert not told


# --- served models ----------------------------------------------------------------------------------------------------


@contextmanager
def served(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[tuple[ScriptedServer, EndpointEngine]]:
    server = ScriptedServer(answer)
    with server.running() as base_url:
        patience = Patience(failures=1, waiting=0.1, first_delay=0.01)
        yield server, EndpointEngine(base_url, "m", ignore, patience=patience, context_length=4096)


def test_a_server_that_keeps_to_the_form_is_asked_once(make_task: MakeTask, tmp_path: Path) -> None:
    task = task_of(make_task, tmp_path, ["red", "blå"], type="label")
    with served(lambda *_: Reply(body=completion('{"answer": "red"}'))) as (server, engine):
        assert constraint_of(task, engine, ignore) is not None
        assert len(server.bodies) == 1
        assert not any(one.text in str(server.bodies) for one in task.test)


@pytest.mark.parametrize(
    "reply",
    [Reply(400, {"error": {"message": "Invalid schema for response_format"}}), Reply(body=completion("Certainly! red"))],
)
def test_a_server_that_does_not_is_a_warning(make_task: MakeTask, tmp_path: Path, reply: Reply) -> None:
    task = task_of(make_task, tmp_path, ["red", "blue"], type="label")
    with served(lambda *_: reply) as (_, engine):
        told: list[Event] = []
        assert constraint_of(task, engine, told.append) is None
        assert "response_format" in notes(told)[0]


def test_a_server_is_not_asked_for_numbers(make_task: MakeTask, tmp_path: Path) -> None:
    task = task_of(make_task, tmp_path, ["3", "4"], type="number")
    with served(lambda *_: Reply(body=completion("3"))) as (server, engine):
        told: list[Event] = []
        assert constraint_of(task, engine, told.append) is None
        assert "regular expression" in notes(told)[0]
        assert not server.bodies


def test_an_interrupt_is_no_missing_form(
    make_task: MakeTask, tmp_path: Path, engine: HfEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("baselines.prompts.constrained._try", stop)
    with pytest.raises(Interrupted):
        constraint_of(task_of(make_task, tmp_path, ["red", "blue"], type="label"), engine, ignore)


@pytest.mark.demo_model
def test_the_demo_model_can_write_labels_of_any_script(make_task: MakeTask, tmp_path: Path, demo_cache: Path) -> None:
    labels = ["card", "card lost", "naïve", "日本", "日本語", "👍", "👍🏽"]
    task = task_of(make_task, tmp_path, labels, type="label")
    told: list[Event] = []
    assert constraint_of(task, HfEngine(ModelHandle(DEMO_MODEL, "auto", ignore)), told.append) is not None
    assert not notes(told)
