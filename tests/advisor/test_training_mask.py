"""The mask as it is shown: exactly the tokens that the trainer's labels keep, and what a template loses is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advisor.flow.mask import MaskedRow, TrainingMask, mask_rows, training_mask
from evals.candidate import PromptFormat
from evals.engines.engine import Message, ToolCall
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.events import ignore
from evals.task.example import Example
from evals.task.load import load_task
from evals.task.reading.formats import Row
from trainer.data import IGNORED, encode, load_tokenizer
from trainer.recipe import Recipe

FMT = PromptFormat("Say it.", "inline")
RECIPE = Recipe(max_length=1000)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def row(name: str, *turns: Message, target: str = "r!", **more: Any) -> Row:
    return Row(Example(name, turns, target, **more), "train.jsonl", 1)


def user(text: str) -> Message:
    return Message("user", text)


def lost(mask: TrainingMask) -> list[str]:
    return [one.details["lost"] for one in mask.findings if "lost" in one.details]


def trained(one: MaskedRow) -> str:
    return "".join(segment.text for segment in one.segments if segment.trained)


def test_the_shown_mask_is_the_labels_of_the_trainer(tokenizer: Any) -> None:
    rows = [row(f"row-{count}", user("red " * count)) for count in range(1, 10)]
    mask = mask_rows(tokenizer, FMT, rows, RECIPE)
    assert [one.row.example.id for one in mask.rows] == ["row-1", "row-5", "row-9"]
    assert mask.findings == ()
    for one in mask.rows:
        encoded = encode(tokenizer, FMT, one.row.example, 1000)
        assert encoded is not None
        assert "".join(segment.text for segment in one.segments) == tokenizer.decode(encoded["input_ids"])
        assert trained(one) == "r!<|im_end|>"
        assert one.tokens == len(encoded["input_ids"])
        assert one.trained_tokens == sum(label != IGNORED for label in encoded["labels"]) == 3
        assert one.segments[0].text.startswith("<|im_start|>user\nSay it.\n\nred")


def test_a_task_is_shown_with_its_recipe_and_nothing_but_the_tokeniser_is_loaded(
    make_task: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    task = load_task(make_task(tmp_path / "task", instruction="Name the colour.\n\nA long codebook."))
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    mask = training_mask(task, engine)
    assert len(mask.rows) == 3
    assert mask.findings == ()
    assert "base" not in engine.handle.__dict__
    for one in mask.rows:
        # The recipe trains with the first paragraph of the instruction.
        assert one.segments[0].text.startswith("<|im_start|>user\nName the colour.\n\nItem")
        assert trained(one) == f"{one.row.example.target}<|im_end|>"


def test_every_turn_of_the_assistant_is_shown_as_trained_unless_the_recipe_says_the_last_alone(tokenizer: Any) -> None:
    talk = row("talk", Message("system", "short"), user("a?"), Message("assistant", "a."), user("b?"), target="b.")
    mask = mask_rows(tokenizer, FMT, [talk], RECIPE)
    assert [one.text for one in mask.rows[0].segments if one.trained] == ["a.<|im_end|>", "b.<|im_end|>"]
    assert mask.findings == ()
    last = mask_rows(tokenizer, FMT, [talk], replace(RECIPE, assistant_only_loss=False))
    assert trained(last.rows[0]) == "b.<|im_end|>"


def test_turns_that_the_template_rewrites_are_told_of(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] +", "(m['content'] if loop.last or m['role'] == 'user' else 'cut') +"
    )
    talk = row("talk", user("a?"), Message("assistant", "a."), user("b?"), target="b.")
    mask = mask_rows(tokenizer, FMT, [talk], RECIPE)
    assert trained(mask.rows[0]) == "b.<|im_end|>"
    assert [one.message[:38] for one in mask.findings if not one.details] == ["1 earlier turn of the assistant is not"]


@pytest.mark.parametrize(("mode", "kept"), [("keep_start", "r!"), ("keep_end", "r!<|im_end|>")])
def test_a_row_that_is_cut_is_shown_as_it_is_trained_on(tokenizer: Any, mode: Any, kept: str) -> None:
    long = row("long", user("red"))
    length = mask_rows(tokenizer, FMT, [long], RECIPE).rows[0].tokens
    (one,) = mask_rows(tokenizer, FMT, [long], Recipe(max_length=length - 1, truncation_mode=mode)).rows
    assert (one.fits, one.cut, one.tokens, trained(one)) == (True, True, length - 1, kept)


def test_a_base_model_is_shown_with_the_template_that_training_gives_it(
    make_task: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    engine = HfEngine(ModelHandle(str(tmp_path / "base"), "float32", ignore))
    mask = training_mask(load_task(make_task(tmp_path / "task")), engine)
    assert all(one.segments[0].text.startswith("<|im_start|>user\n") for one in mask.rows)
    assert all(trained(one) == f"{one.row.example.target}<|im_end|>" for one in mask.rows)
    # Asked as it is, it has no such turns.
    assert engine.prompt_text((Message("user", "a"),)) == "User: a\nAssistant:"


def test_a_row_longer_than_the_recipe_takes_is_shown_and_said_to_be_left_out(tokenizer: Any) -> None:
    mask = mask_rows(tokenizer, FMT, [row("short", user("red")), row("long", user("red " * 50))], Recipe(max_length=100))
    assert [(one.row.example.id, one.fits) for one in mask.rows] == [("short", True), ("long", False)]


def test_a_template_that_passes_over_system_turns_is_told_of(tokenizer: Any) -> None:
    deaf = "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    deaf += (
        "'<|im_end|>' + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rows = [row("plain", user("a")), row("strict", Message("system", "be brief"), user("b"))]
    assert lost(mask_rows(tokenizer, FMT, rows, RECIPE)) == []
    tokenizer.chat_template = deaf
    mask = mask_rows(tokenizer, FMT, rows, RECIPE)
    assert lost(mask) == ["the system turn"]
    assert [one.id for one in mask.findings[0].places] == ["strict"]
    assert mask.findings[0].value == 1.0


def test_a_template_that_refuses_system_turns_has_them_in_the_user_turn_and_loses_nothing(tokenizer: Any) -> None:
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = strict + tokenizer.chat_template.removeprefix("{% for m in messages %}")
    mask = mask_rows(tokenizer, FMT, [row("strict", Message("system", "be brief"), user("b"))], RECIPE)
    assert mask.findings == ()
    assert "be brief" in mask.rows[0].segments[0].text


def test_calls_that_the_template_does_not_write_are_told_of(tokenizer: Any) -> None:
    turns = [user("weather?"), Message("assistant", "", (ToolCall("look_up", '{"at": 1}'),)), Message("tool", "sunny")]
    tooled = row("tooled", *turns, target="Sunny.")
    assert lost(mask_rows(tokenizer, FMT, [tooled], RECIPE)) == ["the calls of tools"]
    writes = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
    tokenizer.chat_template = writes + tokenizer.chat_template.removeprefix("{% for m in messages %}")
    assert lost(mask_rows(tokenizer, FMT, [tooled], RECIPE)) == []


def test_offered_tools_that_the_prompt_never_shows_are_told_of(tokenizer: Any) -> None:
    tool = '{"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"type": "object"}}}'
    offered = [row(f"row-{at}", user("weather?"), tools=(tool,)) for at in range(3)]
    mask = mask_rows(tokenizer, FMT, offered, RECIPE)
    assert lost(mask) == ["the tools that are offered"]
    assert "3 rows hold" in mask.findings[0].message


def test_a_template_that_changes_the_answer_is_told_of(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'].split('</think>')[-1]")
    mask = mask_rows(tokenizer, FMT, [row("thinks", user("a"), target="<think>hm</think>b")], RECIPE)
    assert [one.check for one in mask.findings] == ["template"]
    assert mask.findings[0].details["trained"].startswith("b")


def test_a_template_that_cannot_be_trained_with_is_an_error_with_its_row(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}"
    mask = mask_rows(tokenizer, FMT, [row("one", user("a"))], RECIPE)
    assert mask.rows == ()
    assert [(one.check, one.level, one.places[0].id) for one in mask.findings] == [("template", "error", "one")]


def test_no_rows_no_mask(tokenizer: Any) -> None:
    assert mask_rows(tokenizer, FMT, [], RECIPE) == TrainingMask((), ())
