"""The endpoint engine: the same questions to any server that speaks OpenAI's chat completions (vLLM, llama.cpp, a provider)."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evals.engines.cache import ResponseCache, through
from evals.engines.engine import Constraint, Message, Request, Response, ToolCall
from evals.engines.retry import Gate, Patience, TryAgain, asked_wait
from evals.engines.tool_calls import as_call, read_calls
from evals.errors import AdvisorError, did_you_mean
from evals.events import Event, Note, OnEvent
from evals.records import content_hash

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

DEFAULT_KEY = "OPENAI_API_KEY"
# Sent where no key is set: a server of one's own asks for none, but the header must hold something.
NO_KEY = "none"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
FALLBACK_CONTEXT = 8192
MOST_STOPS = 4
# A server that has never answered is more likely not there than busy.
FIRST_CONTACT_FAILURES = 3
MODELS_TIMEOUT = 30.0
# What a chat template writes around a turn.
TURN_TOKENS = 8
# Around an answer out of a list stands `{"answer": "…"}`.
WRAPPING_TOKENS = 24
# vLLM; llama.cpp (a slot's own room, then the model's); OpenRouter; LM Studio and Mistral.
CONTEXT_KEYS = ("max_model_len", "n_ctx", "n_ctx_train", "context_length", "max_context_length")
TOO_LONG = re.compile(
    r"context[_ ](length|size|window)|maximum model length|max_model_len|prompt is too long|too many (input |prompt )?tokens"
    r"|reduce the length",
    re.IGNORECASE,
)
CHOSEN = re.compile(r'\s*\{\s*"answer"\s*:\s*("(?:[^"\\]|\\.)*")')
JSON_BEGINS = re.compile(r'\s*([{\["\d-]|true|false|null|$)')
SECRETS = re.compile(r"\bsk-[\w*-]{4,}|\bBearer\s+\S+|(?<=://)[^/\s@]+@", re.IGNORECASE)


TRIAL_TOOL = json.dumps(
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
        },
    }
)


class _ToolsRefusedError(AdvisorError):
    """The server takes no functions to call."""


def checked_base_url(url: str) -> str:
    """The address without a slash at its end. Raises ValueError, without repeating the address, where it could hold a secret."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("base_url must be an address such as http://localhost:8000/v1")
    if "@" in parts.netloc:
        raise ValueError(
            "base_url must not hold a user or password: put the key into the environment and name it in api_key_env"
        )
    if parts.query or parts.fragment:
        raise ValueError("base_url must not hold a query string or fragment: keys belong into the environment (api_key_env)")
    return url.rstrip("/")


class EndpointEngine:
    """A served model. Weights, template and tokeniser are the server's; only text goes in and comes out.

    `max_concurrency` requests are under way at once; `request_timeout` is the whole time of one attempt, in seconds.
    Above temperature 0 nucleus sampling is switched off (`top_p` 1); a server's own `top_k` or `min_p` cannot be, since
    the protocol has no such keys.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        on_event: OnEvent,
        *,
        api_key_env: str = DEFAULT_KEY,
        max_concurrency: int = 8,
        request_timeout: float = 120.0,
        context_length: int | None = None,
        patience: Patience | None = None,
        cache: ResponseCache | None = None,
    ) -> None:
        try:
            self.base_url = checked_base_url(base_url)
        except ValueError as error:
            raise AdvisorError(str(error), where="model.base_url", do="mend it in the task file.") from None
        self.model = model
        self.on_event = on_event
        self.api_key_env = api_key_env
        self.max_concurrency = max_concurrency
        self.request_timeout = request_timeout
        self.stated_context_length = context_length
        self.patience = patience or Patience()
        self.cache = cache
        self._limit_key = "max_tokens"
        self._reached = False
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        return self.model

    @property
    def fingerprint(self) -> str:
        """Of the address and the name, which is all that is known: a server can change the weights under a name, and
        kept answers are then those of the earlier ones."""
        return content_hash(["endpoint", self.base_url, self.model])

    @cached_property
    def context_length(self) -> int:
        """As the task file states it; else as the server's `/models` tells it; else 8,192, with a note."""
        if self.stated_context_length:
            return self.stated_context_length
        listed = self._listed()
        mine = [one for one in listed if one.get("id") == self.model]
        # A server of one model answers to any name.
        for entry in mine or (listed if len(listed) == 1 else []):
            meta = entry.get("meta")
            known = {**entry, **(meta if isinstance(meta, dict) else {})}
            for key in CONTEXT_KEYS:
                if isinstance(known.get(key), int) and known[key] > 0:
                    return int(known[key])
        self._note(
            f"the server does not tell {self.model}'s context length: {FALLBACK_CONTEXT} is taken "
            "(`model: {context_length: …}` states another)",
            self.on_event,
        )
        return FALLBACK_CONTEXT

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the server takes functions and shows them to the model: asked once, with two answers of one token.

        A server that drops what it does not know counts as many tokens in a prompt with a function as in one without.
        """
        plain = Request("plain", (Message("user", "Hello."),), 1)
        try:
            told = {one.id: one for one in self._asked([plain, replace(plain, id="tools", tools=(TRIAL_TOOL,))])}
        except _ToolsRefusedError:
            return False
        if told["tools"].prompt_tokens > told["plain"].prompt_tokens or told["tools"].calls:
            return True
        self._note("the server accepts functions, but its model is not shown them: they go into the prompt", self.on_event)
        return False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """An estimate on the high side, one token for 3 bytes of UTF-8: the server's tokeniser is not here."""
        return [math.ceil(len(text.encode("utf-8", "replace")) / 3) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        """As `count_tokens`, with the marks that a chat template puts around each turn."""
        return [sum(self.count_tokens([one.content for one in turns])) + TURN_TOKENS * len(turns) for turns in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Kept answers first, then the server's, as they come."""
        return through(self.cache, self.fingerprint, requests, self._asked) if self.cache else self._asked(requests)

    def _asked(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Asks from a thread of its own. Closing the iterator (or an interrupt) cancels what is under way and joins it.

        Raises AdvisorError where the server refuses, or stays broken for longer than `patience` bears.
        """
        for request in requests:
            self._refuse_unenforceable(request.constraint)
        if not requests:
            return
        self._warn_of_plain_http()
        told: SimpleQueue[Response | Event | BaseException] = SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._ask_all(requests, told.put))
        thread = threading.Thread(target=_drive, args=(loop, work), name="endpoint", daemon=True)
        thread.start()
        left = len(requests)
        try:
            while left:
                one = told.get()
                if isinstance(one, BaseException):
                    raise one
                if isinstance(one, Event):
                    self.on_event(one)
                    continue
                left -= 1
                yield one
        finally:
            with suppress(RuntimeError):  # a loop that has ended and is closed
                loop.call_soon_threadsafe(work.cancel)
            thread.join()

    def _refuse_unenforceable(self, constraint: Constraint | None) -> None:
        """A regular expression has no place in the protocol; servers differ, and some drop unknown keys in silence."""
        if constraint is not None and constraint.kind == "regex":
            raise AdvisorError(
                "an OpenAI-compatible server cannot be made to keep to a regular expression",
                where=self._where,
                do="constrain by a JSON schema or a list of choices, or run the weights here (`engine: hf`).",
            )

    async def _ask_all(self, requests: Sequence[Request], tell: Callable[[Response | Event | BaseException], None]) -> None:
        """Every request to `tell`, by a fixed number of workers; of errors the first, which stops the others."""
        waiting = iter(requests)
        gate = Gate()
        try:
            async with self._client() as client, asyncio.TaskGroup() as group:

                async def work() -> None:
                    for request in waiting:
                        tell(await self._answered(client, request, gate, tell))

                for _ in range(min(self.max_concurrency, len(requests))):
                    group.create_task(work())
        except asyncio.CancelledError:
            raise
        except BaseExceptionGroup as errors:
            tell(errors.exceptions[0])
        except BaseException as error:
            tell(error)

    async def _answered(self, client: AsyncOpenAI, request: Request, gate: Gate, tell: Callable[[Event], None]) -> Response:
        """One request's answer, however often it has to be asked."""
        waited, failures, limits = 0.0, 0, 0
        while True:
            waited += await gate.passed()
            try:
                response = await self._attempt(client, request, tell)
                self._reached = True
                return response
            except TryAgain as again:
                self._reached = self._reached or not again.unreachable
                limits += again.limited
                failures += not again.limited
                delay = self.patience.delay(limits if again.limited else failures)
                if again.after is not None:
                    delay = max(again.after, self.patience.first_delay)
                if self._spent(failures, waited + delay, again):
                    raise self._given_up(again, failures + limits, waited, delay) from None
                if again.limited or again.after is not None:
                    gate.shut(delay)
                else:
                    await asyncio.sleep(delay)
                    waited += delay

    def _spent(self, failures: int, waiting: float, again: TryAgain) -> bool:
        bearable = self.patience.failures
        if again.unreachable and not self._reached:
            bearable = min(bearable, FIRST_CONTACT_FAILURES)
        return failures >= bearable or waiting > self.patience.waiting

    async def _attempt(self, client: AsyncOpenAI, request: Request, tell: Callable[[Event], None]) -> Response:
        """Ask once. Raises TryAgain where asking again may help, AdvisorError where it cannot."""
        import openai

        body = self._body(request)
        started = time.perf_counter()
        try:
            # The client's own time-out is one for each read: a server that drips bytes would never meet it.
            async with asyncio.timeout(self.request_timeout):
                found = await client.post("/chat/completions", cast_to=object, body=body)
        except TimeoutError:
            raise TryAgain(f"no whole answer within {self.request_timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise TryAgain(self._cause(error), unreachable=_nobody_there(error)) from None
        except openai.APIStatusError as error:
            if self._wants_other_key(body, error):
                self._limit_key = "max_completion_tokens"
                return await self._attempt(client, request, tell)
            if TOO_LONG.search(said := self._said_by(error)) and error.status_code in {400, 413, 422}:
                return Response(request.id, "", 0, 0, 0.0, skipped=f"the prompt does not fit: the server says: {said}")
            if request.tools and _refuses_tools(error.status_code, said):
                raise _ToolsRefusedError(
                    f"the server refuses a request with functions to call (status {error.status_code}): {said}",
                    where=self._where,
                    do="serve the model with function calling switched on, or leave `tools:` out of the task file.",
                ) from None
            if error.status_code == 404:
                raise await asyncio.to_thread(self._unknown_model, said) from None
            raise self._refusal(error, said) from None
        except (ValueError, RecursionError) as error:
            raise TryAgain(f"the answer is no JSON ({type(error).__name__})") from None
        return self._response(request, found, time.perf_counter() - started, tell)

    def _body(self, request: Request) -> dict[str, Any]:
        wrapping = 0
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{**one.turn(arguments_as_text=True), "content": _encodable(one.content)} for one in request.messages],
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            body["top_p"] = 1.0
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop[:MOST_STOPS])
        if request.tools:
            body["tools"] = [json.loads(tool) for tool in request.tools]
        if request.logprob:
            body |= {"logprobs": True, "top_logprobs": 1}
        if request.constraint is not None:
            body["response_format"] = _response_format(request.constraint)
            wrapping = WRAPPING_TOKENS if request.constraint.kind == "choice" else 0
        return {**body, self._limit_key: request.max_new_tokens + wrapping}

    def _wants_other_key(self, body: Mapping[str, Any], error: APIStatusError) -> bool:
        """OpenAI's newer models know the limit of an answer by another name only."""
        named = error.param == "max_tokens" or "max_completion_tokens" in error.message
        return error.status_code == 400 and "max_tokens" in body and named and not TOO_LONG.search(error.message)

    def _refusal(self, error: APIStatusError, said: str) -> Exception:
        """What an error's status means: TryAgain, or an AdvisorError for what no second try mends."""
        status = error.status_code
        if status == 429 and error.code == "insufficient_quota":
            return AdvisorError(
                f"the account has no quota left: {said}", where=self._where, do="top it up, then run the same command again."
            )
        if status in {408, 409, 429} or status >= 500:
            return TryAgain(f"status {status}: {said}", after=asked_wait(error.response.headers), limited=status == 429)
        if status in {401, 403}:
            return self._not_allowed(status, said)
        return AdvisorError(
            f"the server refuses the request (status {status}): {said}",
            where=self._where,
            do="see what the server expects; `advisor run` goes on where it stopped.",
        )

    def _not_allowed(self, status: int, said: str) -> AdvisorError:
        known = "holds no valid key" if self._key else "is not set"
        return AdvisorError(
            f"the server does not let us in (status {status}): {said}",
            where=self._where,
            do=f"the environment variable {self.api_key_env} {known}: set it to a key for this server "
            "(or name another one: `model: {api_key_env: …}`).",
        )

    def _unknown_model(self, said: str) -> AdvisorError:
        try:
            offered = [self._redacted(str(one.get("id"))) for one in self._listed()]
        except AdvisorError:
            offered = []
        if not offered:
            do = "check `model: {base_url: …}` (it mostly ends in /v1) and `model_name_or_path`."
        elif self.model in offered:
            do = "check `model: {base_url: …}`: the server offers this model, but no chat completions at this address."
        else:
            more = f" and {len(offered) - 20} more" if len(offered) > 20 else ""
            do = f"set `model_name_or_path` to what the server offers: {', '.join(offered[:20])}{more}."
        near = did_you_mean(self.model, offered) if self.model not in offered else ""
        return AdvisorError(f"the server does not know this (status 404): {said}{near}", where=self._where, do=do)

    def _given_up(self, again: TryAgain, attempts: int, waited: float, delay: float) -> AdvisorError:
        if again.unreachable and not self._reached:
            return self._unreachable(again.why)
        if again.limited:
            what = f"the server's rate limit holds: {waited:.0f} s were waited, and {delay:.0f} s more would be needed"
            do = "lower `model: {max_concurrency: …}` or ask for a higher limit"
        else:
            what = f"no answer after {attempts} attempts: {again.why}"
            do = "look at the server's log; where it is only slow, raise `model: {request_timeout: …}` (seconds)"
        return AdvisorError(what, where=self._where, do=f"{do}; then run the same command again: what is answered is kept.")

    def _unreachable(self, why: str) -> AdvisorError:
        return AdvisorError(
            f"the server cannot be reached ({why})", where=self._where, do="is it running? Check `model: {base_url: …}`."
        )

    def _response(self, request: Request, found: object, seconds: float, tell: Callable[[Event], None]) -> Response:
        try:
            choice = found["choices"][0]  # type: ignore[index]
            text = choice["message"].get("content") or ""
            named = choice["message"].get("tool_calls") or []
            if not isinstance(text, str) or not isinstance(named, list):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise TryAgain(f"no choices in the answer: {self._redacted(str(found))}") from None
        tokens = self._usage(found, request, text, tell)
        ended = choice.get("finish_reason")
        if ended == "content_filter":
            withheld = "the server's content filter withheld the answer"
            return Response(request.id, "", *tokens, seconds, skipped=withheld, cached_tokens=_cached(found, tokens[0]))
        truncated = ended == "length"
        calls: tuple[ToolCall, ...] = ()
        if request.tools:
            text, calls = _with_calls(text, named)
        if request.constraint is not None and not calls:
            text, truncated = self._kept_to(request.constraint, text, truncated)
        cut = _before_stop(text, request.stop)
        truncated = truncated and cut == text
        if request.tools and not calls:
            # Some servers show the functions to the model and leave its calls in the text.
            cut, calls = read_calls(cut, request.tools)
        # The tokens of a wrapped answer are not the answer's own.
        wrapped = request.constraint is not None and request.constraint.kind == "choice"
        logprob = _logprob(choice) if request.logprob and not wrapped else None
        cached = _cached(found, tokens[0])
        return Response(request.id, cut, *tokens, seconds, truncated, logprob=logprob, calls=calls, cached_tokens=cached)

    def _usage(self, found: Any, request: Request, text: str, tell: Callable[[Event], None]) -> tuple[int, int]:
        """Tokens in and out as the server counted them; without a count, 4 characters a token, with a note."""
        usage = found.get("usage") or {}
        try:
            return int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, TypeError, ValueError):
            self._note("the server counts no tokens: they are estimated at 4 characters each", tell)
            return math.ceil(sum(len(one.content) for one in request.messages) / 4), math.ceil(len(text) / 4)

    def _kept_to(self, constraint: Constraint, text: str, truncated: bool) -> tuple[str, bool]:
        """The answer of a constrained request, and whether it is truncated: then only its beginning can be looked at.

        Raises AdvisorError where the server let it leave its form.
        """
        with suppress(ValueError, RecursionError):
            if constraint.kind == "choice" and (chosen := CHOSEN.match(text)):
                if (answer := json.loads(chosen[1])) in json.loads(constraint.source):
                    return answer, False
            elif constraint.kind != "choice" and not truncated:
                json.loads(text)
                return text, False
            if truncated and JSON_BEGINS.match(text):
                return text, True
        raise AdvisorError(
            f"the server does not enforce the form of answers that was asked for (`response_format`): {text[:80]!r}",
            where=self._where,
            do="serve the model with one that does (vLLM, llama.cpp), or run the weights here (`engine: hf`).",
        )

    def _listed(self) -> list[dict[str, Any]]:
        """The server's models; none where it keeps no list. Raises AdvisorError where it is not there or lets nobody in."""
        import openai

        timeout = openai.Timeout(min(MODELS_TIMEOUT, self.request_timeout), connect=10.0)
        try:
            with openai.OpenAI(base_url=self.base_url, api_key=self._header, max_retries=0, timeout=timeout) as client:
                found: Any = client.get("/models", cast_to=object)
        except openai.APIConnectionError as error:
            raise self._unreachable(self._cause(error)) from None
        except openai.APIStatusError as error:
            if error.status_code in {401, 403}:
                raise self._not_allowed(error.status_code, self._said_by(error)) from None
            return []
        except (ValueError, RecursionError):
            return []
        rows = found.get("data") if isinstance(found, dict) else None
        return [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []

    def _client(self) -> AsyncOpenAI:
        import openai

        timeout = openai.Timeout(self.request_timeout, connect=min(10.0, self.request_timeout))
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=self._header, max_retries=0, timeout=timeout)

    @property
    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AdvisorError(
                "this environment variable holds characters that no key has", where=self.api_key_env, do="set it again."
            )
        return key

    @property
    def _header(self) -> str:
        return self._key or NO_KEY

    @property
    def _where(self) -> str:
        return f"{self.base_url}, model {self.model}"

    def _note(self, text: str, tell: Callable[[Event], None]) -> None:
        """Once an engine."""
        if text not in self._said:
            self._said.add(text)
            tell(Note(text, "warning"))

    def _warn_of_plain_http(self) -> None:
        parts = urlsplit(self.base_url)
        if self._key and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            self._note(f"the key in {self.api_key_env} travels to {parts.hostname} over plain http", self.on_event)

    def _said_by(self, error: APIStatusError) -> str:
        """The server's own words, without keys: OpenAI's `message`, FastAPI's `detail`, or whatever stands there."""
        body = error.body if isinstance(error.body, dict) else {}
        return self._redacted(str(body.get("message") or body.get("detail") or error.message))

    def _cause(self, error: Exception) -> str:
        cause = error.__cause__ or error
        return self._redacted(f"{type(cause).__name__}: {cause}".removesuffix(": "))

    def _redacted(self, text: str) -> str:
        """At most 300 printable characters on one line, without our key or anything that looks like one."""
        if self._key:
            text = text.replace(self._key, "[key]")
        shown = SECRETS.sub("[key]", text)[:300]
        return "".join(one if one.isprintable() else " " for one in shown)


def _drive(loop: asyncio.AbstractEventLoop, work: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(work)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _nobody_there(error: Exception) -> bool:
    """Whether no connection came about (rather than one that broke), by the client library's names for it."""
    return type(error.__cause__).__name__ in {"ConnectError", "ConnectTimeout"}


def _encodable(text: str) -> str:
    """Half a surrogate pair, which a JSON file can smuggle in, has no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _response_format(constraint: Constraint) -> dict[str, Any]:
    """A list of choices goes as a schema too; its root must be an object, so the answer is wrapped and unwrapped again."""
    schema = json.loads(constraint.source)
    if constraint.kind == "choice":
        answer = {"type": "string", "enum": schema}
        schema = {"type": "object", "properties": {"answer": answer}, "required": ["answer"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _refuses_tools(status: int, said: str) -> bool:
    """A wrong name of a model is a 404 too, and a broken server a 500: there the server must speak of tools."""
    return status in {400, 422} or (status in {404, 500, 501} and "tool" in said.lower())


def _with_calls(text: str, named: Sequence[Any]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text and the calls of an answer. A call that is not whole (cut off, no JSON) is put behind the text, as it came."""
    read = [(one, as_call(one)) for one in named]
    broken = [json.dumps(one, ensure_ascii=False) for one, call in read if call is None]
    return "\n".join(filter(None, [text, *broken])), tuple(call for _, call in read if call)


def _cached(found: Any, prompt_tokens: int) -> int:
    """Prompt tokens that the server had read before, where it says so (OpenAI's `prompt_tokens_details`); never more than all."""
    try:
        told = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    except (KeyError, TypeError):
        return 0
    return min(told, prompt_tokens) if isinstance(told, int) and told > 0 else 0


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """The server sees only the first few stop strings, and some leave the one that they met in the answer."""
    return text[: min((at for at in map(text.find, filter(None, stops)) if at >= 0), default=len(text))]


def _logprob(choice: Mapping[str, Any]) -> float | None:
    try:
        return math.fsum(one["logprob"] for one in choice["logprobs"]["content"])
    except (KeyError, TypeError):
        return None
