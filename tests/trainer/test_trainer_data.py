"""What the loss sees: the answer and its end of turn, after exactly the prompt that will be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.engines.engine import Message, ToolCall
from evals.errors import AdvisorError
from evals.events import Event, Note
from evals.task.example import Example
from trainer.data import IGNORED, Labelled, encode, encode_all, encode_replay, labelled, load_tokenizer
from trainer.recipe import Recipe
from trainer.replay import Replay

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
    encoded = encode_all(tokenizer, fmt, [EXAMPLE, long], Recipe(max_length=60), "train", heard.append)
    assert (len(encoded.rows), encoded.dropped) == (1, 1)
    assert [event.level for event in heard if isinstance(event, Note)] == ["warning"]
    with pytest.raises(AdvisorError, match="all 1 rows"):
        encode_all(tokenizer, fmt, [long], Recipe(max_length=60), "train", heard.append)


def test_rows_are_cut_at_the_end_that_the_recipe_names_and_counted(tokenizer: Any) -> None:
    fmt, heard = PromptFormat(""), list[Event]()
    long = Example("long", (Message("user", "red"),), "a long answer")
    whole = encode(tokenizer, fmt, long, 1000)
    assert whole is not None
    length = len(whole["input_ids"]) - 4
    start = encode_all(
        tokenizer, fmt, [EXAMPLE, long], Recipe(max_length=length, truncation_mode="keep_start"), "train", heard.append
    )
    assert (start.dropped, start.truncated, start.ids) == (0, 1, ("row-1", "long"))
    assert start.rows[1] == {name: ids[:length] for name, ids in whole.items()}
    # The end of its turn is gone; what is left of the answer is learnt.
    assert tokenizer.decode([one for one in start.rows[1]["labels"] if one != IGNORED]) == "a long ans"
    end = encode_all(
        tokenizer, fmt, [EXAMPLE, long], Recipe(max_length=length, truncation_mode="keep_end"), "train", heard.append
    )
    assert end.rows[1] == {name: ids[-length:] for name, ids in whole.items()}
    assert [one.text for one in heard if isinstance(one, Note)] == [
        f"1 of 2 train rows are cut to max_length ({length} tokens) at their {side} ({mode})"
        for side, mode in (("end", "keep_start"), ("beginning", "keep_end"))
    ]


def test_a_row_that_is_cut_before_its_answer_is_left_out(tokenizer: Any) -> None:
    heard: list[Event] = []
    recipe = Recipe(max_length=60, truncation_mode="keep_start")
    long = Example("long", (Message("user", "red " * 40),), "r")
    encoded = encode_all(tokenizer, PromptFormat(""), [long, EXAMPLE], recipe, "train", heard.append)
    assert (len(encoded.rows), encoded.dropped, encoded.truncated, encoded.ids) == (1, 1, 0, ("row-1",))
    assert any("1 of 2 train rows hold nothing of an answer when cut" in one.text for one in heard if isinstance(one, Note))
    with pytest.raises(AdvisorError, match="all labels of all 2 rows are masked"):
        encode_all(tokenizer, PromptFormat(""), [long, long], recipe, "train", heard.append)


def test_a_label_at_the_first_place_is_none(tokenizer: Any) -> None:
    """Nothing stands before it that would predict it."""
    assert Labelled([5, 6, 7], [5, IGNORED, IGNORED], 0).cut(3, "drop") is None
    assert Labelled([5, 6, 7], [IGNORED, IGNORED, 7], 0).cut(1, "keep_end") is None
    assert Labelled([5, 6, 7], [IGNORED, IGNORED, 7], 0).cut(2, "keep_end") == {"input_ids": [6, 7], "labels": [IGNORED, 7]}


def test_turns_that_the_template_rewrites_are_not_learnt_and_counted(tokenizer: Any) -> None:
    heard: list[Event] = []
    talk = Example("talk", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "d")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] +", "(m['content'] if loop.last or m['role'] == 'user' else 'x') +"
    )
    (row,) = encode_all(tokenizer, PromptFormat(""), [talk], Recipe(), "train", heard.append).rows
    assert tokenizer.decode([one for one in row["labels"] if one != IGNORED]) == "d<|im_end|>"
    (said,) = [one.text for one in heard if isinstance(one, Note)]
    assert said.startswith("earlier turns of the assistant left unlearnt: 1 (in 1 of 1 train rows)")


def test_a_greeting_before_the_first_question_is_not_learnt_where_the_template_cannot_ask_for_it(tokenizer: Any) -> None:
    greeted = Example("greeted", (Message("assistant", "Hello."), Message("user", "Hi")), "b")
    found = labelled(tokenizer, PromptFormat(""), greeted)
    assert found.unsure == 1
    assert tokenizer.decode([one for one in found.labels if one != IGNORED]) == "b<|im_end|>"


def test_several_calls_of_a_turn_are_trained_on_as_they_are_asked(tokenizer: Any) -> None:
    """Llama's template refuses them: asking takes them apart, and so does training."""
    calls = (ToolCall("one", "{}", "a"), ToolCall("two", "{}", "b"))
    turns = (
        Message("user", "do"),
        Message("assistant", "", calls),
        Message("tool", "1", tool_call_id="a"),
        Message("tool", "2", tool_call_id="b"),
    )
    refuses = (
        "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    )
    refuses += "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template.removeprefix("{% for m in messages %}")
    row = encode(tokenizer, PromptFormat(""), Example("calls", turns, "done"), 1000)
    assert row is not None
    text = tokenizer.decode(row["input_ids"])
    assert text.index("one") < text.index("1<|im_end|>") < text.index("two") < text.index("2<|im_end|>")


def test_replay_may_be_the_users_conversations(tokenizer: Any) -> None:
    talk = Example("mine", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "d")
    mine, reply, cut = encode_replay(tokenizer, [talk, Replay("a", "b", finished=True), Replay("a", "b", finished=False)], 1000)
    assert [tokenizer.decode([one for one in row["labels"] if one != IGNORED]) for row in (mine, reply, cut)] == [
        "b<|im_end|>d<|im_end|>",
        "b<|im_end|>",
        "b",
    ]
