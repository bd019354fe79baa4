"""The endpoint engine against a scripted server: what it asks, what it bears, what it says, and that nothing is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import pytest

from evals.engines.endpoint import FALLBACK_CONTEXT, EndpointEngine, checked_base_url
from evals.engines.engine import Constraint, Message, Request, Response, ToolCall
from evals.engines.retry import Patience, asked_wait
from evals.errors import AdvisorError
from evals.events import Event, Note
from tests.serving import Reply, ScriptedServer, completion, free_port

KEY = "sk-proj-very-secret-0123456789"
QUICK = Patience(waiting=20.0, failures=4, first_delay=0.02, longest_delay=0.1)


def ask(*texts: str, **more: Any) -> list[Request]:
    return [Request(f"r{at}", (Message("user", text),), more.pop("limit", 5), **more) for at, text in enumerate(texts)]


def echo(number: int, body: dict[str, Any]) -> Reply:
    return Reply(body=completion(f"to {body['messages'][-1]['content']}"))


@contextmanager
def serving(
    answer: Callable[[int, dict[str, Any]], Reply], models: Any = None, pause: float = 0.0, **settings: Any
) -> Iterator[tuple[ScriptedServer, EndpointEngine, list[Event]]]:
    server = ScriptedServer(answer, models, pause)
    told: list[Event] = []
    with server.running() as base_url:
        yield server, EndpointEngine(base_url, "m", told.append, **{"patience": QUICK, **settings}), told


def only(engine: EndpointEngine, asked: list[Request]) -> Response:
    (found,) = engine.generate(asked)
    return found


def first_then(*replies: Reply) -> Callable[[int, dict[str, Any]], Reply]:
    """These replies to the first requests, then echoes."""
    return lambda number, body: replies[number] if number < len(replies) else echo(number, body)


def test_a_request_says_what_the_protocol_says_and_its_answer_is_read() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}
    body = completion("blue. END and more", ended="length")
    body["choices"][0]["logprobs"] = logprobs
    with serving(lambda *_: Reply(body=body)) as (server, engine, _):
        found = only(engine, ask("why?", limit=7, seed=3, stop=("END", "b", "c", "d", "e"), logprob=True))
        sampled = only(engine, ask("why?", temperature=0.7))
    sent = server.bodies[0]
    assert {key: sent[key] for key in ("model", "max_tokens", "temperature", "seed", "logprobs")} == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.0,
        "seed": 3,
        "logprobs": True,
    }
    assert sent["messages"] == [{"role": "user", "content": "why?"}]
    assert sent["stop"] == ["END", "b", "c", "d"]  # no server takes more
    assert "top_p" not in sent
    assert server.bodies[1]["top_p"] == 1
    # Cut at the earliest stop ("b" of blue), so it did not end by the limit.
    assert (found.id, found.text, found.truncated, found.logprob) == ("r0", "", False, -0.75)
    assert (found.prompt_tokens, found.output_tokens) == (11, 3)
    assert (sampled.text, sampled.truncated, sampled.logprob) == ("blue. END and more", True, None)


def test_every_request_is_answered_once_and_no_more_are_under_way_than_allowed() -> None:
    texts = [f"q{at}" for at in range(60)]
    with serving(echo, pause=0.02, max_concurrency=5) as (server, engine, _):
        found = list(engine.generate(ask(*texts)))
    assert Counter(one.id for one in found) == Counter(f"r{at}" for at in range(60))
    assert {one.id: one.text for one in found} == {f"r{at}": f"to q{at}" for at in range(60)}
    assert server.most == 5
    assert len(server.bodies) == 60


def test_answers_come_as_soon_as_they_are_known() -> None:
    held = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] == "late":
            held.wait(10)
        return echo(number, body)

    with serving(answer) as (_, engine, _):
        answers = engine.generate(ask("late", "early"))
        assert next(answers).text == "to early"
        held.set()
        assert [one.text for one in answers] == ["to late"]


def test_a_rate_limit_holds_all_workers_for_as_long_as_the_server_asks() -> None:
    limit = Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
    with serving(first_then(limit), max_concurrency=1) as (server, engine, _):
        assert len(list(engine.generate(ask("a", "b")))) == 2
    assert server.times[1] - server.times[0] >= 0.99

    # With more workers: one is refused at once, the others' later questions wait as well.
    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number == 0:
            return limit
        time.sleep(0.2)
        return echo(number, body)

    with serving(answer, max_concurrency=3) as (server, engine, _):
        assert len(list(engine.generate(ask(*"abcdefgh")))) == 8
    late = [at - server.times[0] for at in server.times[3:]]
    assert min(late) >= 0.99


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert asked_wait({"retry-after": "2.5"}) == 2.5
    assert asked_wait({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert asked_wait({"retry-after": formatdate(time.time() + 10, usegmt=True)}) == pytest.approx(10, abs=1.5)
    assert asked_wait({"retry-after": formatdate(time.time() - 99, usegmt=True)}) == 0
    assert asked_wait({"retry-after": "soon"}) is None
    assert asked_wait({"retry-after": "nan"}) is None
    assert asked_wait({}) is None


@pytest.mark.parametrize(
    "broken",
    [
        Reply(500, {"error": {"message": "oops"}}),
        Reply(503, b"<html>busy</html>"),
        Reply(408, {}),
        Reply(body=completion("lost"), cut=True),
        Reply(body=json.dumps(completion("lost")).encode()[:60]),
        Reply(body={"choices": []}),
        Reply(body={"error": {"message": "no room", "code": 502}}),
        Reply(body=["not", "an", "object"]),
        Reply(body=completion("lost"), dripped=0.05),
    ],
    ids=["500", "503", "408", "cut", "half-json", "no-choices", "error-in-200", "list", "dripping"],
)
def test_what_may_pass_is_asked_again(broken: Reply) -> None:
    with serving(first_then(broken, broken), request_timeout=0.5) as (server, engine, _):
        started = time.monotonic()
        found = only(engine, ask("a"))
    assert (found.text, len(server.bodies)) == ("to a", 3)
    # A drip never meets a time-out between two reads: the whole attempt has one.
    assert time.monotonic() - started < 5
    assert found.seconds < 0.5


def test_what_stays_broken_is_an_error_that_says_so_and_keeps_what_was_answered() -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        bad = body["messages"][0]["content"] == "bad"
        return Reply(500, {"error": {"message": "out of cheese"}}) if bad else echo(number, body)

    with serving(answer, max_concurrency=1) as (server, engine, _):
        kept = list(engine.generate(ask("a", "b")))
        with pytest.raises(AdvisorError, match=r"no answer after 4 attempts: status 500: out of cheese") as caught:
            kept.extend(engine.generate(ask("c", "bad", "d")))
    assert [one.text for one in kept] == ["to a", "to b", "to c"]
    assert engine.base_url in str(caught.value)
    assert "model m" in str(caught.value)
    assert len(server.bodies) == 3 + 4


def test_patience_with_a_rate_limit_ends() -> None:
    def never(number: int, body: dict[str, Any]) -> Reply:
        return Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})

    patience = Patience(waiting=0.5, failures=2, first_delay=0.05, longest_delay=0.1)
    with serving(never, patience=patience) as (server, engine, _), pytest.raises(AdvisorError, match="rate limit holds"):
        only(engine, ask("a"))
    assert len(server.bodies) > 3  # a limit is no failure, however often it comes
    with (
        serving(first_then(Reply(429, {}, {"Retry-After": "3600"}))) as (_, engine, _),
        pytest.raises(AdvisorError, match="3600 s more would be needed"),
    ):
        only(engine, ask("a"))


def test_no_quota_is_not_waited_for() -> None:
    empty = Reply(429, {"error": {"message": "pay first", "code": "insufficient_quota"}})
    with serving(first_then(empty)) as (server, engine, _), pytest.raises(AdvisorError, match="no quota left"):
        only(engine, ask("a"))
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_is_said_soon() -> None:
    engine = EndpointEngine(f"http://127.0.0.1:{free_port()}/v1", "m", lambda _: None, patience=QUICK)
    with pytest.raises(AdvisorError, match="cannot be reached") as caught:
        list(engine.generate(ask("a", "b")))
    assert "is it running?" in str(caught.value)
    with pytest.raises(AdvisorError, match="cannot be reached"):
        _ = engine.context_length


@pytest.mark.parametrize(("status", "key"), [(401, KEY), (403, "very-secret of another shape")])
def test_a_refused_key_is_named_by_its_variable_and_never_shown(status: int, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    said = f"Incorrect API key provided: {key}. Authorization: Bearer {KEY}; also sk-other-secret*****9876"
    refused = Reply(status, {"error": {"message": said}})
    with serving(first_then(refused), api_key_env="MY_KEY") as (server, engine, _):
        with pytest.raises(AdvisorError, match="does not let us in") as caught:
            only(engine, ask("a"))
        shown = f"{caught.value}{caught.value.__cause__!r}"
        assert only(engine, ask("a")).text == "to a"
        assert key not in engine.fingerprint + engine.name
    assert "MY_KEY" in shown
    for secret in (key, "very-secret", "other-secret", "9876"):
        assert secret not in shown
    assert server.keys == [f"Bearer {key}"] * 2


def test_keys_come_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(echo) as (server, engine, _):
        only(engine, ask("a"))
    assert server.keys == ["Bearer none"]
    for url in ("http://me:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret", "host:80", "ftp://host"):
        with pytest.raises(ValueError, match="base_url must") as caught:
            checked_base_url(url)
        assert "secret" not in str(caught.value)
    assert checked_base_url("https://host/v1/") == "https://host/v1"


def test_a_key_over_plain_http_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    told: list[Event] = []
    for address in ("http://no-such-host.invalid/v1", "https://no-such-host.invalid/v1"):
        patience = Patience(failures=1)
        with pytest.raises(AdvisorError, match="cannot be reached"):
            list(EndpointEngine(address, "m", told.append, patience=patience).generate(ask("a")))
    assert [one.text for one in told if isinstance(one, Note)] == [
        "the key in OPENAI_API_KEY travels to no-such-host.invalid over plain http"
    ]


def test_an_unknown_model_is_answered_with_those_that_there_are() -> None:
    models = {"data": [{"id": "mm"}, {"id": "other"}]}
    with (
        serving(first_then(Reply(404, {"error": {"message": "no model m"}})), models) as (_, engine, _),
        pytest.raises(AdvisorError, match=r"no model m \(did you mean 'mm'\?\)") as caught,
    ):
        only(engine, ask("a"))
    assert "mm, other" in str(caught.value)


def test_control_characters_of_a_server_do_not_reach_the_terminal() -> None:
    with (
        serving(first_then(Reply(404, {"error": {"message": "\x1b[31mred\n"}})), {"data": [{"id": "\x1b]0;x"}]}) as (
            _,
            engine,
            _,
        ),
        pytest.raises(AdvisorError, match="red") as caught,
    ):
        only(engine, ask("a"))
    assert "\x1b" not in str(caught.value)


def test_a_refused_request_is_not_repeated() -> None:
    with (
        serving(first_then(Reply(400, {"detail": "no such role"}))) as (server, engine, _),
        pytest.raises(AdvisorError, match=r"status 400\): no such role"),
    ):
        only(engine, ask("a"))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "error",
    [
        {
            "message": "This model's maximum context length is 4096 tokens, you requested 5000",
            "code": "context_length_exceeded",
        },
        {"message": "request (6031 tokens) exceeds the available context size (1024 tokens)", "code": 400},
        {"message": "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 8 tokens"},
    ],
    ids=["openai", "llama.cpp", "vllm"],
)
def test_a_prompt_that_is_too_long_is_skipped_with_the_servers_reason(error: dict[str, Any]) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return Reply(400, {"error": error}) if body["messages"][0]["content"] == "long" else echo(number, body)

    with serving(answer) as (_, engine, _):
        found = {one.id: one for one in engine.generate(ask("long", "short"))}
    assert "context" in found["r0"].skipped
    assert (found["r0"].text, found["r1"].text, found["r1"].skipped) == ("", "to short", "")


def test_a_withheld_answer_is_skipped() -> None:
    with serving(lambda *_: Reply(body=completion("", ended="content_filter"))) as (_, engine, _):
        assert "content filter" in only(engine, ask("a")).skipped


def test_the_newer_name_of_the_limit_is_learnt_once() -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Reply(400, {"error": {"message": said, "param": "max_tokens", "code": "unsupported_parameter"}})
        return echo(number, body)

    with serving(answer, max_concurrency=1) as (server, engine, _):
        assert len(list(engine.generate(ask("a", "b", "c")))) == 3
    assert ["max_tokens" in one for one in server.bodies] == [True, False, False, False]
    assert server.bodies[-1]["max_completion_tokens"] == 5


def test_a_server_that_counts_no_tokens_is_estimated_and_said_once() -> None:
    with serving(lambda *_: Reply(body=completion("four", usage=None))) as (_, engine, told):
        found = list(engine.generate(ask("x" * 40, "y" * 40)))
    assert [(one.prompt_tokens, one.output_tokens) for one in found] == [(10, 1)] * 2
    assert [one.text for one in told if isinstance(one, Note)] == [
        "the server counts no tokens: they are estimated at 4 characters each"
    ]


def test_closing_early_stops_asking_and_leaves_no_thread() -> None:
    with serving(echo, pause=0.05, max_concurrency=2) as (server, engine, _):
        answers = engine.generate(ask(*map(str, range(100))))
        next(answers)
        answers.close()
        assert not [one for one in threading.enumerate() if one.name == "endpoint"]
        time.sleep(0.1)  # what was on the wire already still arrives
        asked = len(server.bodies)
        time.sleep(0.2)
        assert len(server.bodies) == asked < 10


def test_an_interrupt_of_the_reader_stops_the_work() -> None:
    with serving(echo, pause=0.05, max_concurrency=2) as (server, engine, _):

        def read() -> None:
            for _ in engine.generate(ask(*map(str, range(100)))):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            read()
        assert not [one for one in threading.enumerate() if one.name == "endpoint"]
        assert len(server.bodies) < 10


def test_a_schema_is_sent_and_a_server_that_ignores_it_is_found_out() -> None:
    schema = json.dumps({"type": "object", "properties": {"colour": {"type": "string"}}})
    asked = ask("a", constraint=Constraint("json_schema", schema))
    with serving(first_then(Reply(body=completion('{"colour": "red"}')))) as (server, engine, _):
        assert only(engine, asked).text == '{"colour": "red"}'
        with pytest.raises(AdvisorError, match="does not enforce the form"):
            only(engine, asked)
    sent = server.bodies[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", json.loads(schema))


def test_of_a_truncated_answer_the_beginning_must_be_of_the_form() -> None:
    replies = Reply(body=completion('{"colour": "re', ended="length")), Reply(body=completion("Well, the", ended="length"))
    asked = ask("a", constraint=Constraint("json_schema", "{}"))
    with serving(first_then(*replies)) as (_, engine, _):
        assert only(engine, asked).truncated
        with pytest.raises(AdvisorError, match="does not enforce the form"):
            only(engine, asked)


def test_a_choice_is_asked_for_as_an_object_and_unwrapped() -> None:
    asked = ask("a", constraint=Constraint("choice", '["red", "blue"]'))
    answers = [('{"answer": "blue"}', "stop"), ('{\n "answer":"red"\n\n', "length"), ('{"answer": "pink"}', "stop")]
    with serving(first_then(*(Reply(body=completion(text, ended=ended)) for text, ended in answers))) as (server, engine, _):
        assert only(engine, asked).text == "blue"
        # Whole, though the object around it is not.
        whole = only(engine, asked)
        assert (whole.text, whole.truncated) == ("red", False)
        with pytest.raises(AdvisorError, match="does not enforce the form"):
            only(engine, asked)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["red", "blue"]
    assert server.bodies[0]["max_tokens"] > 5  # room for the object around it


def test_a_regular_expression_is_refused_before_anything_is_asked() -> None:
    asked = [*ask("a"), *ask("b", constraint=Constraint("regex", "[0-9]+"))]
    with serving(echo) as (server, engine, _), pytest.raises(AdvisorError, match="regular expression"):
        list(engine.generate(asked))
    assert not server.bodies


ADD = '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}'


def test_tools_calls_and_results_go_out_in_the_protocols_form() -> None:
    call = ToolCall("add", '{"a": 2}', "c1")
    chat = (Message("user", "?"), Message("assistant", "", (call,)), Message("tool", "5", tool_call_id="c1", name="add"))
    with serving(lambda *_: Reply(body=completion("5"))) as (server, engine, _):
        assert only(engine, [Request("r", chat, 5, tools=(ADD,))]).text == "5"
        only(engine, ask("no tools"))
    sent = server.bodies[0]
    assert sent["tools"] == [json.loads(ADD)]
    assert sent["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"a": 2}'}}],
        },
        {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "add"},
    ]
    assert "tools" not in server.bodies[1]


@pytest.mark.parametrize(
    ("body", "text", "calls"),
    [
        (completion(None, calls=[("add", '{"a":2}', "c1")]), "", (ToolCall("add", '{"a": 2}', "c1"),)),
        (
            completion("So:", calls=[("add", '{"a": 2}', "c1"), ("now", "", "c2")], ended="tool_calls"),
            "So:",
            (ToolCall("add", '{"a": 2}', "c1"), ToolCall("now", "{}", "c2")),
        ),
        (completion(None, calls=[("add", {"a": 2}, "c1")]), "", (ToolCall("add", '{"a": 2}', "c1"),)),  # Ollama, once
        (completion('<tool_call>{"name": "add"}</tool_call>'), "", (ToolCall("add", "{}"),)),
        (completion('{"name": "add", "parameters": {}}'), "", (ToolCall("add", "{}"),)),
        (completion("5", calls=[]), "5", ()),
    ],
)
def test_calls_of_an_answer_are_read(body: dict[str, Any], text: str, calls: tuple[ToolCall, ...]) -> None:
    with serving(lambda *_: Reply(body=body)) as (_, engine, _):
        found = only(engine, ask("a", tools=(ADD,)))
        assert (found.text, found.calls, found.skipped) == (text, calls, "")
        # Who offered nothing is not called.
        assert only(engine, ask("a")).calls == ()


@pytest.mark.parametrize("given", ['{"a": ', "[2]", "two", 3, '{"a": NaN}'])
def test_a_call_that_is_not_whole_is_text(given: Any) -> None:
    body = completion("So:", calls=[("add", given, "c1"), ("add", "{}", "c2")], ended="length")
    with serving(lambda *_: Reply(body=body)) as (_, engine, _):
        found = only(engine, ask("a", tools=(ADD,)))
    said, _, broken = found.text.partition("\n")
    assert said == "So:"
    assert json.loads(broken)["function"] == {"name": "add", "arguments": given}
    assert found.calls == (ToolCall("add", "{}", "c2"),)
    assert found.truncated


def test_calls_that_are_no_list_are_asked_again() -> None:
    broken = completion("a")
    broken["choices"][0]["message"]["tool_calls"] = "add"
    with serving(first_then(Reply(body=broken))) as (server, engine, _):
        assert only(engine, ask("a", tools=(ADD,))).text == "to a"
    assert len(server.bodies) == 2


def test_a_constrained_answer_may_be_a_call_instead() -> None:
    asked = ask("a", constraint=Constraint("json_schema", "{}"), tools=(ADD,))
    bodies = completion(None, calls=[("add", "{}", "c1")]), completion("no JSON")
    with serving(first_then(*(Reply(body=one) for one in bodies))) as (_, engine, _):
        assert only(engine, asked).calls == (ToolCall("add", "{}", "c1"),)
        with pytest.raises(AdvisorError, match="does not enforce the form"):
            only(engine, asked)


def tokens(count: int) -> dict[str, Any]:
    return {"prompt_tokens": count, "completion_tokens": 1}


@pytest.mark.parametrize(
    ("offered", "takes", "notes"),
    [
        (Reply(body=completion("a", usage=tokens(90))), True, 0),
        (Reply(body=completion(None, calls=[("add", "{}", "c1")], usage=tokens(9))), True, 0),
        (Reply(body=completion("a", usage=tokens(9))), False, 1),  # accepted, and left out of the prompt
        (Reply(400, {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}}), False, 0),
        (Reply(422, {"detail": "extra inputs are not permitted"}), False, 0),
        (Reply(404, {"error": {"message": "No endpoints found that support tool use"}}), False, 0),
        (Reply(500, {"error": {"message": "tools param requires --jinja flag"}}), False, 0),
    ],
)
def test_whether_a_server_takes_tools_is_asked_once(offered: Reply, takes: bool, notes: int) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return offered if "tools" in body else Reply(body=completion("a", usage=tokens(9)))

    with serving(answer) as (server, engine, told):
        assert engine.takes_tools is takes
        assert engine.takes_tools is takes
        assert 1 <= len(server.bodies) <= 2
        assert {one["max_tokens"] for one in server.bodies} == {1}
    assert [one.level for one in told if isinstance(one, Note)] == ["warning"] * notes


def test_what_is_no_word_on_tools_is_an_error_as_elsewhere() -> None:
    engine = EndpointEngine(f"http://127.0.0.1:{free_port()}/v1", "m", lambda _: None, patience=QUICK)
    with pytest.raises(AdvisorError, match="cannot be reached"):
        _ = engine.takes_tools
    for reply, said in (
        (Reply(404, {"error": {"message": "no model m"}}), "no model m"),
        (Reply(401, {"error": {"message": "who are you?"}}), "does not let us in"),
        (Reply(500, {"error": {"message": "oops"}}), "no answer after 4 attempts"),
    ):
        with serving(lambda *_, reply=reply: reply) as (_, engine, _), pytest.raises(AdvisorError, match=said):
            _ = engine.takes_tools
    # A passing failure is borne.
    with serving(first_then(Reply(503, {}), Reply(503, {}), Reply(429, {}, {"Retry-After": "0"}))) as (server, engine, _):
        assert engine.takes_tools is False
        assert len(server.bodies) == 5


def test_a_request_with_tools_that_is_refused_says_so() -> None:
    refused = Reply(400, {"error": {"message": "this model does not support tools"}})
    with serving(lambda *_: refused) as (_, engine, _):
        with pytest.raises(AdvisorError, match=r"refuses a request with functions to call \(status 400\): this model"):
            only(engine, ask("a", tools=(ADD,)))
        with pytest.raises(AdvisorError, match=r"refuses the request \(status 400\)"):
            only(engine, ask("a"))


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"data": [{"id": "x", "max_model_len": 1}, {"id": "m", "max_model_len": 4096}]}, 4096),
        ({"data": [{"id": "other.gguf", "meta": {"n_ctx_train": 8000, "n_ctx": 1024}}]}, 1024),
        ({"data": [{"id": "other.gguf", "meta": {"n_ctx_train": 8000}}]}, 8000),
        ({"data": [{"id": "x", "max_model_len": 1}, {"id": "y", "max_model_len": 2}]}, FALLBACK_CONTEXT),
        ({"data": [{"id": "m"}]}, FALLBACK_CONTEXT),
        ({"data": [{"id": "m", "meta": "x", "max_model_len": "many"}, 3]}, FALLBACK_CONTEXT),
        ([], FALLBACK_CONTEXT),
        (None, FALLBACK_CONTEXT),
    ],
)
def test_the_context_is_what_the_server_tells(models: Any, expected: int) -> None:
    with serving(echo, models) as (_, engine, told):
        assert engine.context_length == expected
        assert engine.context_length == expected
    assert len(told) == (expected == FALLBACK_CONTEXT)
    with serving(echo, models, context_length=77) as (_, engine, _):
        assert engine.context_length == 77


def test_tokens_are_estimated_on_the_high_side() -> None:
    engine = EndpointEngine("http://localhost:1/v1", "m", lambda _: None)
    assert engine.count_tokens(["", "abc", "abcd", "日本"]) == [0, 1, 2, 2]


def test_no_requests_ask_nothing() -> None:
    assert list(EndpointEngine(f"http://127.0.0.1:{free_port()}/v1", "m", lambda _: None).generate([])) == []


def test_half_a_surrogate_pair_in_a_question_does_no_harm() -> None:
    with serving(echo) as (_, engine, _):
        assert only(engine, ask("a\ud800b")).text == "to a?b"


def test_the_client_library_is_not_imported_before_it_is_needed() -> None:
    look = "import sys, evals.task.spec, evals.engines.endpoint; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
