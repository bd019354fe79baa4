"""Tools through the model's own chat template: whether it has a place for them, what it is sent, and what is read back."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from evals.engines.cache import ResponseCache
from evals.engines.chat import one_call_a_turn
from evals.engines.decode import Row
from evals.engines.engine import Constraint, Message, Request, ToolCall
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.tokenizer import PLAIN_TEMPLATE
from evals.errors import AdvisorError
from evals.events import ignore
from tests.conftest import CHATML

# ChatML with tools as Hermes and Qwen have them, in few words: a word is many tokens here.
HERMES = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ADD = '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}'
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
ADDED = ToolCall("add", '{"a": 2, "b": 3}', "call00001")
FAMILIES = Path(str(importlib.util.find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]


def engine_with(folder: Path, template: str | dict[str, str]) -> HfEngine:
    """An engine whose tokeniser has this template."""
    engine = HfEngine(ModelHandle(str(folder), "float32", ignore))
    engine.handle.tokenizer.chat_template = template
    return engine


@pytest.fixture(scope="module")
def hermes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> HfEngine:
    folder = tmp_path_factory.mktemp("models") / "hermes"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(HERMES)
    return HfEngine(ModelHandle(str(folder), "float32", ignore))


@pytest.mark.parametrize(
    ("family", "takes"),
    [
        ("qwen2_5", True),
        ("qwen3", True),
        ("qwen3_5_nothink", True),
        ("llama3_1", True),
        ("llama3_2", True),
        ("gemma4", True),
        ("lfm2_2_5", True),
        ("llama3", False),  # knows no tools
        ("gemma3", False),
        ("phi3", False),  # drops their results
        ("deepseekv3", False),  # wants arguments as text
        ("gptoss", False),  # a form of calls that we do not read
    ],
)
def test_families_that_ship_a_place_for_tools_are_known(tiny_model: Path, family: str, takes: bool) -> None:
    engine = engine_with(tiny_model, (FAMILIES / f"{family}.jinja").read_text(encoding="utf-8"))
    assert engine.takes_tools is takes


def test_a_template_must_show_the_tool_its_call_and_its_result(tiny_model: Path) -> None:
    assert engine_with(tiny_model, HERMES).takes_tools
    for lacking in (
        PLAIN_TEMPLATE,
        CHATML,
        HERMES.replace("{{ t | tojson }}", ""),
        HERMES.replace("{{ c.function | tojson }}", "{{ c.function.name }}"),
        HERMES.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"),
        HERMES.replace("<tool_call>{{", "<a_mark_of_its_own>{{"),
        "{{ raise_exception('no') }}",
        "{% nonsense",
    ):
        assert lacking != HERMES
        assert not engine_with(tiny_model, lacking).takes_tools
    # Of several templates the one named `tool_use` is taken where there are tools.
    assert engine_with(tiny_model, {"default": CHATML, "tool_use": HERMES}).takes_tools
    assert not engine_with(tiny_model, {"default": CHATML, "rag": HERMES}).takes_tools


def test_a_broken_tokeniser_is_an_error_and_no_template_without_tools(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    with pytest.raises(AdvisorError, match="the tokeniser cannot be loaded"):
        _ = HfEngine(ModelHandle(str(tmp_path / "m"), "float32", ignore)).takes_tools


def test_tools_for_a_template_without_a_place_are_refused(tiny_model: Path) -> None:
    engine = engine_with(tiny_model, CHATML)
    with pytest.raises(AdvisorError, match="no place for tools"):
        list(engine.generate([Request("a", (Message("user", "2+3?"),), 4, tools=(ADD,))]))


def test_tools_calls_and_results_are_rendered_by_the_template(hermes: HfEngine) -> None:
    chat = (Message("user", "2+3?"), Message("assistant", "", (ADDED,)), Message("tool", "5", tool_call_id="call00001"))
    assert hermes.prompt_text(chat, (ADD,)) == (
        f"<|im_start|>system\nTools: {ADD}<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n"
        f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Tools" not in hermes.prompt_text(chat)


def test_a_call_that_the_model_writes_is_read_and_kept(hermes: HfEngine, tmp_path: Path) -> None:
    """The weights are random: a constraint makes them write a call."""
    said = f"So: {CALL}"
    forced = Constraint("choice", json.dumps([said]))
    question = (Message("user", "2+3?"),)
    asked = [
        Request("with", question, 90, constraint=forced, tools=(ADD,)),
        Request("without", question, 90, constraint=forced),
        Request("free", question, 6, tools=(ADD,)),
    ]
    engine = HfEngine(hermes.handle, cache=ResponseCache(tmp_path / "answers.sqlite"))
    found = {one.id: one for one in engine.generate(asked)}
    assert (found["with"].text, found["with"].calls) == ("So:", (ToolCall("add", '{"a": 2, "b": 3}'),))
    assert (found["without"].text, found["without"].calls) == (said, ())
    # Without a call the text is what it is for a request of no tools with the same prompt.
    ids = hermes.handle.tokenizer(hermes.prompt_text(question, (ADD,)))["input_ids"]
    assert found["free"].prompt_tokens == len(ids) == found["with"].prompt_tokens > found["without"].prompt_tokens
    assert found["free"].text
    assert not found["free"].calls
    again = {one.id: one for one in HfEngine(hermes.handle, cache=engine.cache).generate(asked)}
    assert again == found


def test_marks_that_are_special_tokens_are_read_and_do_not_stay(tiny_model: Path) -> None:
    engine = engine_with(tiny_model, HERMES)
    tokenizer = engine.handle.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|eom|>"]})
    answer = tokenizer('Wait. [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]<|eom|>')["input_ids"]
    row = Row(0, [], 99, ("STOP",), answer=answer)
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert "TOOL_CALLS" not in text
    assert engine._read(text, row, "", (ADD,)) == ("Wait.", (ToolCall("add", '{"a": 1}'),))
    assert engine._read(text, row, "", ()) == (text, ())
    # What stands behind a stop string was not said.
    row.answer = tokenizer('So STOP [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]')["input_ids"]
    assert engine._read("So ", row, "", (ADD,)) == ("So ", ())


def test_a_template_for_one_call_a_turn_is_given_one_call_a_turn(tiny_model: Path) -> None:
    engine = engine_with(tiny_model, (FAMILIES / "llama3_2.jinja").read_text(encoding="utf-8"))
    two = (ToolCall("add", '{"a": 11}', "x"), ToolCall("add", '{"a": 22}', "y"))
    results = [Message("tool", "is 222", tool_call_id="y"), Message("tool", "is 111", tool_call_id="x")]
    chat = [Message("system", "Be brief."), Message("user", "?"), Message("assistant", "Well.", two), *results]
    text = engine.prompt_text(chat, (ADD,))
    places = [text.index(one) for one in ("Be brief.", '"a": 11', "is 111", '"a": 22', "is 222")]
    assert places == sorted(places)
    # Nothing is moved where a result is missing.
    assert one_call_a_turn(chat[:-1]) == chat[:-1]
    apart = one_call_a_turn(chat)
    assert [len(one.tool_calls) for one in apart] == [0, 0, 1, 0, 1, 0]
    assert [one.content for one in apart[2:]] == ["Well.", "is 111", "", "is 222"]
    unnamed = [replace_id(one) for one in chat]
    assert [one.content for one in one_call_a_turn(unnamed)[3::2]] == ["is 222", "is 111"]
    assert one_call_a_turn(apart) == apart


def replace_id(message: Message) -> Message:
    """Without the ids of calls: the results then stand in the order of the calls."""
    calls = tuple(ToolCall(one.name, one.arguments) for one in message.tool_calls)
    return Message(message.role, message.content, calls)
