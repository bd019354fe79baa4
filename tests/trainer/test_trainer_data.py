"""What the loss sees: the answer and its end of turn, after exactly the prompt that will be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.events import Event, Note
from evals.task.example import Example
from trainer.data import IGNORED, encode, encode_all, load_tokenizer

EXAMPLE = Example("row-1", (Message("user", "red 1"),), "r!")


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.mark.parametrize("placement", ["inline", "system"])
def test_labels_cover_the_answer_and_its_end_of_turn_and_nothing_else(tokenizer: Any, placement: Any) -> None:
    row = encode(tokenizer, PromptFormat("Say it.", placement), EXAMPLE, 200)
    assert row is not None
    assert tokenizer.decode([token for token in row["labels"] if token != IGNORED]) == "r!<|im_end|>"
    start = row["labels"].count(IGNORED)
    assert row["labels"] == [IGNORED] * start + row["input_ids"][start:]
    assert tokenizer.decode(row["input_ids"][:start]).endswith("<|im_start|>assistant\n")


def test_the_trained_prompt_is_the_asked_prompt(tokenizer: Any) -> None:
    fmt = PromptFormat("Say it.", "system")
    row = encode(tokenizer, fmt, EXAMPLE, 200)
    turns = [{"role": one.role, "content": one.content} for one in fmt.messages(EXAMPLE)]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row is not None
    assert row["input_ids"][: len(asked)] == asked
    assert row["labels"][: len(asked)] == [IGNORED] * len(asked)


def test_a_template_that_writes_the_prompt_differently_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}"
    with pytest.raises(AdvisorError, match="row-1"):
        encode(tokenizer, PromptFormat(""), EXAMPLE, 200)


def test_a_template_without_end_of_turn_gets_the_end_of_text(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    from evals.engines.tokenizer import PLAIN_TEMPLATE

    tokenizer.chat_template = PLAIN_TEMPLATE
    row = encode(tokenizer, PromptFormat(""), EXAMPLE, 200)
    assert row is not None
    assert tokenizer.decode([token for token in row["labels"] if token != IGNORED]).strip() == "r!<|im_end|>"


def test_a_template_without_a_system_role_gets_the_instruction_in_the_user_turn(tokenizer: Any) -> None:
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = strict + tokenizer.chat_template.removeprefix("{% for m in messages %}")
    row = encode(tokenizer, PromptFormat("Say it.", "system"), EXAMPLE, 200)
    assert row is not None
    assert "<|im_start|>user\nSay it.\n\nred 1<|im_end|>" in tokenizer.decode(row["input_ids"])


def test_long_rows_are_left_out_aloud(tokenizer: Any) -> None:
    heard: list[Event] = []
    fmt = PromptFormat("")
    long = Example("long", (Message("user", "red " * 40),), "r")
    encoded = encode_all(tokenizer, fmt, [EXAMPLE, long], 60, "train", heard.append)
    assert (len(encoded.rows), encoded.dropped) == (1, 1)
    assert [event.level for event in heard if isinstance(event, Note)] == ["warning"]
    with pytest.raises(AdvisorError, match="all 1 rows"):
        encode_all(tokenizer, fmt, [long], 60, "train", heard.append)
