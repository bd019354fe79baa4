"""The loop: calls are run and shown until the model answers, within limits, and the way to the answer is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from baselines.rag.chunks import Chunking
from baselines.rag.dense import Dense
from baselines.rag.index import open_index
from baselines.tools.arms import tool_arms
from baselines.tools.candidate import ToolCandidate
from baselines.tools.demonstrations import bootstrapped, traces
from baselines.tools.lookup import Lookup, lookup_by
from evals.candidate import Answer
from evals.engines.embed import Embedder
from evals.engines.engine import Message, Request, Response, ToolCall
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.models import DEMO_MODEL
from evals.evaluate import evaluate
from evals.events import Event, Note, ignore
from evals.exchange import exchanged
from evals.records import content_hash
from evals.scores import task_metrics
from evals.task.example import Example
from evals.task.load import Task, load_task
from evals.task.reading.documents import Document
from tests.bench.price_list import write_price_list

Reply = Callable[[Request], str | tuple[ToolCall, ...]]


@dataclass
class Scripted:
    """An engine whose tokens are characters, and which says what the script says to a request."""

    reply: Reply
    takes_tools: bool = False
    context_length: int = 100_000
    name: str = "scripted"
    fingerprint: str = "scripted"
    asked: list[Request] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(len(json.dumps(one.turn())) for one in messages) for messages in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in requests:
            self.asked.append(request)
            length = self.count_prompts([request.messages])[0] + sum(map(len, request.tools))
            if length + request.max_new_tokens > self.context_length:
                yield Response(request.id, "", length, 0, 0.0, skipped="too long")
                continue
            said = self.reply(request)
            text, calls = (said, ()) if isinstance(said, str) else ("", said)
            yield Response(request.id, text, length, len(text), 0.5, calls=calls)


def results(request: Request) -> list[str]:
    """What the tools gave in the example's own turns, which are the last ones."""
    question = max(at for at, one in enumerate(request.messages) if one.role == "user" and one.content.startswith("What do"))
    own = request.messages[question + 1 :]
    if any(one.role == "tool" for one in own):
        return [one.content for one in own if one.role == "tool"]
    lines = [line for one in own if one.role == "user" for line in one.content.splitlines()]
    return [line.split(": ", 1)[1] for line in lines if line.startswith("Result of")]


def question(request: Request) -> list[str]:
    own = [one.content for one in request.messages if one.role == "user" and one.content.startswith("What do")][-1]
    return own.removesuffix(" cost?").split()


def clever(request: Request) -> str | tuple[ToolCall, ...]:
    """Looks the price up, multiplies, and says the result, in the form that it is offered."""
    known = results(request)
    words = question(request)
    if len(known) == 2:
        return known[1]
    name, arguments = ("calculator", {"expression": f"{words[2]} * {known[0]}"}) if known else ("price_of", {"item": words[-1]})
    if request.tools:
        return (ToolCall(name, json.dumps(arguments)),)
    return json.dumps({"tool": name, "arguments": arguments})


@pytest.fixture
def price_list(tmp_path: Path) -> Task:
    return load_task(write_price_list(tmp_path / "prices", "none", train=12, dev=4, test=6))


def only(task: Task, engine: Scripted, notes: list[Event] | None = None, lookup: Lookup | None = None) -> ToolCandidate:
    heard: list[Event] = [] if notes is None else notes
    (arm,) = tool_arms(task, engine, lookup, heard.append)
    return arm


def answers(arm: ToolCandidate, examples: Sequence[Example]) -> dict[str, Answer]:
    steps = list(zip([one.id for one in examples], arm.requests(examples), strict=True))
    return {one.id: one.answer for one in exchanged(arm.engine, steps, arm.parse)}


@pytest.mark.parametrize("native", [True, False])
def test_calls_are_run_and_shown_until_the_answer(price_list: Task, native: bool) -> None:
    engine = Scripted(clever, takes_tools=native)
    arm = only(price_list, engine)
    assert arm.name == ("tools_native" if native else "tools_json")
    found = answers(arm, price_list.test)
    prices = json.loads((price_list.folder / "prices.json").read_text())
    for example in price_list.test:
        answer = found[example.id]
        _, _, count, _, _, item, _ = example.text.split()
        assert answer.text == example.target == str(int(count) * prices[item])
        for entry, tool, arguments, result in zip(
            answer.trace,
            ["price_of", "calculator"],
            [{"item": item}, {"expression": f"{count} * {prices[item]}"}],
            [str(prices[item]), example.target],
            strict=True,
        ):
            assert {key: value for key, value in entry.items() if key != "seconds"} == {
                "tool": tool,
                "arguments": arguments,
                "result": result,
            }
        assert answer.seconds == pytest.approx(sum(one["seconds"] for one in answer.trace), abs=1e-4)
        assert 0 < answer.seconds < 20
    # All questions of a round are known at once: three rounds of six.
    assert len(engine.asked) == 18
    names = [json.loads(one)["function"]["name"] for one in engine.asked[0].tools]
    assert names == (["price_of", "calculator"] if native else [])
    last = engine.asked[-1].messages
    if native:
        assert [one.role for one in last[-5:]] == ["user", "assistant", "tool", "assistant", "tool"]
        assert last[-1].tool_call_id == last[-2].tool_calls[0].id != last[-4].tool_calls[0].id
        assert last[-1].name == "calculator"
    else:
        assert {one.role for one in last[1:]} == {"user", "assistant"}
        assert not any(one.tool_calls for one in last)
        assert "price_of(item: string): The price of one piece of an item." in last[0].content


def test_the_whole_evaluation_keeps_the_traces(price_list: Task, tmp_path: Path) -> None:
    arm = only(price_list, Scripted(clever))
    scores = evaluate(price_list, arm, "test", tmp_path / "scores", lambda event: None)
    assert scores.mean == 1.0
    assert [[one["tool"] for one in item.trace] for item in scores.items] == [["price_of", "calculator"]] * 6
    assert all(item.seconds >= 1.5 for item in scores.items)
    again = evaluate(price_list, arm, "test", tmp_path / "scores", lambda event: None)
    assert again.items == scores.items


def test_no_more_calls_than_allowed_and_then_an_answer_without_tools(price_list: Task) -> None:
    def greedy(request: Request) -> str | tuple[ToolCall, ...]:
        call = ToolCall("calculator", '{"expression": "1 + 1"}')
        return (call, call, call) if request.tools else "7"

    arm = replace(only(price_list, Scripted(greedy, takes_tools=True)), shots=())
    answer = answers(arm, price_list.test[:1])[price_list.test[0].id]
    assert answer.text == "7"
    assert len(answer.trace) == 4
    engine = arm.engine
    assert isinstance(engine, Scripted)
    assert [len(one.tools) for one in engine.asked] == [2, 2, 0]
    # The fourth call is the first of the second turn: a turn holds no call without a result.
    assert [len(one.tool_calls) for one in engine.asked[-1].messages if one.role == "assistant"] == [3, 1]
    assert len({call.id for one in engine.asked[-1].messages for call in one.tool_calls}) == 4

    def endless(request: Request) -> str:
        return '{"tool": "calculator", "arguments": {"expression": "1 + 1"}}'

    engine = Scripted(endless)
    answer = answers(replace(only(price_list, engine), shots=()), price_list.test[:1])[price_list.test[0].id]
    assert len(answer.trace) == 4
    assert len(engine.asked) == 5
    assert engine.asked[-1].messages[-1].content.endswith("No more tools: write only the answer.")


def test_what_is_wrong_with_a_call_is_told_and_recorded_and_no_answer_is_lost(price_list: Task) -> None:
    said = iter(
        [
            '{"tool": "price_off", "arguments": {"item": "x"}}',
            '{"tool": "price_of", "arguments": {"item": 3}}',
            '{"tool": "price_of", "arguments": {"item": "no such',
            '{"tool": "price_of", "arguments": {"item": "nothing"}}',
            "42",
        ]
    )
    engine = Scripted(lambda request: next(said))
    answer = answers(replace(only(price_list, engine), shots=()), price_list.test[:1])[price_list.test[0].id]
    assert answer.text == "42"
    wanted = [
        "did you mean 'price_of'",
        "3 is not of type 'string'",
        "no JSON",
        "KeyError: 'there is no item nothing' (line 16)",
    ]
    for entry, part in zip(answer.trace, wanted, strict=True):
        assert part in entry["error"]
        assert "result" not in entry
    shown = [one.content for one in engine.asked[-1].messages if one.role == "user"][1:]
    for text, part in zip(shown, wanted, strict=True):
        assert part in text


def test_broken_arguments_of_a_native_call_do_not_break_the_template(price_list: Task) -> None:
    said: Iterator[Any] = iter([(ToolCall("price_of", "{broken", "abc"),), "7"])
    engine = Scripted(lambda request: next(said), takes_tools=True)
    answer = answers(replace(only(price_list, engine), shots=()), price_list.test[:1])[price_list.test[0].id]
    assert answer.trace[0]["arguments"] == "{broken"
    assert "no JSON" in answer.trace[0]["error"]
    assert engine.asked[-1].messages[-2].tool_calls == (ToolCall("price_of", "{}", "abc"),)


def test_a_call_of_a_declared_tool_is_the_answer(make_task: Callable[..., Path], tmp_path: Path) -> None:
    tool = {"name": "book", "parameters": {"type": "object", "properties": {"people": {"type": "integer"}}}}
    call = {"id": "c", "type": "function", "function": {"name": "book", "arguments": {"people": 4}}}
    rows = {
        name: [
            {
                "id": f"{name}-{at}",
                "messages": [{"role": "user", "content": f"Item {first + at}"}, {"role": "assistant", "tool_calls": [call]}],
                **({"tools": [{"name": "cancel", "description": "Cancels."}]} if at == 0 else {}),
            }
            for at in range(6)
        ]
        for first, name in ((10, "train"), (20, "dev"), (30, "test"))
    }
    folder = make_task(
        tmp_path / "t", rows=rows, files={"f.json": json.dumps(tool)}, tools={"functions": ["f.json"]}, output={"type": "text"}
    )
    task = load_task(folder)
    for native in (True, False):
        wanted = ToolCall("book", '{"people":4}')
        said = (wanted,) if native else '{"tool": "book", "arguments": {"people": 4}} \n'
        engine = Scripted(lambda request, said=said: said, takes_tools=native)  # type: ignore[misc]
        arm = only(task, engine)
        found = answers(arm, task.test)
        assert (
            {one.text for one in found.values()} == {task.test[0].target} == {'[{"name": "book", "arguments": {"people":4}}]'}
        )
        assert all([entry["tool"] for entry in one.trace] == ["book"] for one in found.values())
        assert len(engine.asked) == 6
        # A demonstration's target is shown as a call, not as the JSON that it is scored as.
        shown = [one for one in engine.asked[0].messages if one.role == "assistant"]
        assert len(shown) == 4
        assert all(one.tool_calls[0].name == "book" if native else one.content.startswith('{"tool": "book"') for one in shown)
        # A row may offer more.
        offered = [
            "cancel" in "".join(one.tools) if native else "cancel(): Cancels." in one.messages[0].content
            for one in engine.asked
        ]
        assert offered == [True, False, False, False, False, False]


def test_demonstrations_show_each_way_of_calling_and_never_the_question_itself(price_list: Task) -> None:
    way = (*price_list.train[0].messages[:3], Message("assistant", "x"), Message("user", "What do"))
    plain = replace(price_list.train[0], id="direct", messages=way)
    foreign = replace(
        price_list.train[0],
        id="foreign",
        messages=(Message("user", "q"), Message("assistant", "", (ToolCall("gone", "{}"),)), Message("tool", "1")),
    )
    task = price_list.with_split("train", (*price_list.train, plain, foreign))
    heard: list[Event] = []
    shown = traces(task, task.tools, heard.append)
    assert len(shown) == 4
    assert "direct" in {one.id for one in shown[:2]}
    assert "foreign" not in {one.id for one in shown}
    assert [one.text for one in heard if isinstance(one, Note)] == [
        "tools: 1 training rows call tools that the task does not have: they are not shown"
    ]
    assert traces(task, task.tools, heard.append) == shown

    engine = Scripted(clever)
    arm = only(price_list, engine)
    answers(arm, arm.shots[:1])
    asked = [one.content for one in engine.asked[0].messages if one.content.startswith("What do")]
    assert len(asked) == 4
    assert asked.count(arm.shots[0].text) == 1 == asked[::-1].index(arm.shots[0].text) + 1


def test_bootstrapping_keeps_what_came_out_right_with_a_tool(tmp_path: Path) -> None:
    task = load_task(write_price_list(tmp_path / "p", "none", train=12, dev=4, test=6, traces=False))
    lucky = {one.text: one.target for one in task.train[:4]}

    def reply(request: Request) -> str | tuple[ToolCall, ...]:
        asked = [one.content for one in request.messages if one.role == "user" and one.content.startswith("What do")][-1]
        if asked in lucky:
            return lucky[asked]
        return clever(request) if sum(map(ord, asked)) % 2 else "wrong"

    heard: list[Event] = []
    arm = only(task, Scripted(reply))
    assert arm.shots == ()
    metrics = task_metrics(task, heard.append)
    better = bootstrapped(arm, task, metrics, heard.append, tried=12, count=3)
    right = [one for one in task.train if one.text not in lucky and sum(map(ord, one.text)) % 2]
    assert 1 <= len(right) <= 8
    assert {one.id for one in better.shots} <= {one.id for one in right}
    assert len(better.shots) == min(3, len(right))
    for shot in better.shots:
        assert [one.role for one in shot.messages] == ["user", "assistant", "tool", "assistant", "tool"]
        assert shot.messages[-1].content == shot.target
    (note,) = [one.text for one in heard if isinstance(one, Note)]
    assert f"{len(right)} of 12 training rows were answered rightly with a tool" in note
    assert f"{12 + 2 * len(right)} requests" in note
    assert content_hash(better.settings) != content_hash(arm.settings)
    assert bootstrapped(better, task, metrics, heard.append) is better

    useless = bootstrapped(replace(arm, engine=Scripted(lambda request: "no")), task, metrics, heard.append)
    assert useless.shots == ()


def test_a_conversation_that_outgrows_the_context_loses_demonstrations_and_then_results(
    make_task: Callable[..., Path], tmp_path: Path
) -> None:
    source = "def long(n: int) -> str:\n    return str(n) * 3000"
    rows = {
        name: [{"id": f"{name}-{at}", "input": f"What do {first + at}", "output": "done"} for at in range(4)]
        for first, name in ((10, "train"), (20, "dev"), (30, "test"))
    }
    task = load_task(
        make_task(
            tmp_path / "t",
            rows=rows,
            files={"t.py": source},
            tools={"functions": ["python:t.py:long"]},
            output={"type": "text"},
        )
    )
    shots = tuple(
        replace(
            one,
            messages=(
                *one.messages,
                Message("assistant", "", (ToolCall("long", '{"n": 1}', "a"),)),
                Message("tool", "x" * 300),
            ),
        )
        for one in task.train
    )

    def reply(request: Request) -> str:
        said = len(results(request))
        return json.dumps({"tool": "long", "arguments": {"n": said + 1}}) if said < 3 else "done"

    heard: list[Event] = []
    whole = Scripted(reply)
    arm = replace(only(task, whole), shots=shots, on_event=heard.append)
    assert {one.text for one in answers(arm, task.test).values()} == {"done"}
    assert heard == []
    assert all("shown" not in entry for entry in answers(arm, task.test)["test-0"].trace)

    opening = arm.count(arm.opening(task.test[0], shots), ())
    small = Scripted(reply, context_length=opening + 3000 + 1500)
    found = answers(replace(arm, engine=small), task.test)
    assert {one.text for one in found.values()} == {"done"}
    # The oldest are shortened first, and the record holds them whole.
    assert [one.get("shown") for one in found["test-0"].trace] == [400, 400, None]
    assert [len(one["result"]) for one in found["test-0"].trace] == [3000] * 3
    assert [one.text for one in heard if isinstance(one, Note)] == [
        "tools_json: 4 of 4 prompts lost parts of tool results to fit the context"
    ]
    heard.clear()

    tiny = Scripted(reply, context_length=arm.count(arm.opening(task.test[0], ()), ()) + 1100)
    found = answers(replace(arm, engine=tiny), task.test)
    assert {one.text for one in found.values()} == {"done"}
    assert [one.get("shown") for one in found["test-0"].trace] == [60, 60, 400]
    assert "4 of 4 prompts lost demonstrations and" in str(heard[0])

    none = Scripted(reply, context_length=300)
    assert {one.skipped for one in answers(replace(arm, engine=none), task.test).values()} == {"too long"}


def test_the_process_of_the_users_functions_ends_with_the_answers(price_list: Task) -> None:
    (price_list.folder / "tools.py").write_text("import os\ndef price_of(item: str) -> int:\n    return os.getpid()")
    import os

    engine = Scripted(lambda request: '{"tool": "price_of", "arguments": {"item": "a"}}' if not results(request) else "1")
    found = answers(replace(only(price_list, engine), shots=()), price_list.test)
    pids = {one.trace[0]["result"] for one in found.values()}
    assert len(pids) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.pop()), 0)


def test_lookup_finds_the_passage(make_task: Callable[..., Path], tmp_path: Path, tiny_embeddings: Path) -> None:
    documents = [
        Document("a.md", "# Tea\n\nTea costs three."),
        Document("b.md", "# Bread\n\nBread costs nine hundred and more."),
    ]
    embedder = Embedder(str(tiny_embeddings))

    def dense(name: str, some: list[Document]) -> Dense:
        return Dense(open_index(tmp_path / name, some, Chunking("sentences", 96), embedder))

    lookup = lookup_by(dense("both", documents))
    assert lookup.find("Tea: Tea costs three.") == "Tea: Tea costs three."
    assert len(lookup_by(dense("both", documents), 2).find("x").splitlines()) == 2
    data = {**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, "documents": "d"}
    files = {"d/a.md": documents[0].text}
    task = load_task(make_task(tmp_path / "t", files=files, data=data, tools={"functions": ["lookup"]}))
    said = iter(['{"tool": "lookup", "arguments": {"query": "Bread: Bread costs nine hundred and more."}}', "red"])
    arm = only(task, Scripted(lambda request: next(said)), lookup=lookup)
    answer = answers(arm, task.test[:1])[task.test[0].id]
    assert answer.trace[0]["result"] == "Bread: Bread costs nine hundred and more."
    other = lookup_by(dense("one", documents[:1]))
    assert len({content_hash(replace(arm, lookup=one).settings) for one in (lookup, other, None)}) == 3


def test_settings_follow_all_that_answers_depend_on(price_list: Task) -> None:
    arm = only(price_list, Scripted(clever))
    tool = arm.tools[0]
    others = [
        replace(arm, tools=(replace(tool, file_sha256="0"), *arm.tools[1:])),
        replace(arm, tools=arm.tools[:1]),
        replace(arm, shots=arm.shots[1:]),
        replace(arm, native=True),
        replace(arm, spec=arm.spec.model_copy(update={"max_turns": 2})),
    ]
    assert len({content_hash(one.settings) for one in (arm, *others)}) == 6


def test_without_tools_there_is_no_arm(make_task: Callable[..., Path], tmp_path: Path) -> None:
    assert tool_arms(load_task(make_task(tmp_path / "t")), Scripted(clever), None, lambda event: None) == []


@pytest.mark.demo_model
def test_the_demo_model_answers_with_tools_what_it_cannot_without(demo_cache: Path, tmp_path: Path) -> None:
    task = load_task(write_price_list(tmp_path / "prices", DEMO_MODEL, train=12, dev=4, test=12))
    engine = HfEngine(ModelHandle(DEMO_MODEL, "float32", ignore))
    assert not engine.takes_tools
    (arm,) = tool_arms(task, engine, None, ignore)
    found = answers(arm, task.test)
    # 0.93 of 60 were right; fewer than 8 of 12 would be one in thousands.
    assert sum(found[one.id].text == one.target for one in task.test) >= 8
    without = answers(replace(arm, tools=(), shots=()), task.test)
    assert sum(without[one.id].text == one.target for one in task.test) <= 1
