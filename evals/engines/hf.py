"""The transformers engine: greedy decoding in process, on CPU or CUDA, with adapters switched on one set of base weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.engines.attention import Prefix
from evals.engines.cache import ResponseCache, through
from evals.engines.decode import (
    Chooser,
    LaneStore,
    OutOfMemoryError,
    PlainStore,
    Row,
    Store,
    decode,
    read_prefix,
    shared_by_all,
)
from evals.engines.engine import Message, Request, Response, ScoreRequest, ToolCall
from evals.engines.handle import Adapter, ModelHandle, out_of_memory
from evals.engines.models import parameter_count
from evals.engines.scoring import Choices, Likelihood, divergences, likelihoods
from evals.engines.tokenizer import PLAIN_TEMPLATE
from evals.engines.tool_calls import parsed_by_tokenizer, read_calls
from evals.errors import AdvisorError
from evals.events import OnEvent, Ticker
from evals.records import content_hash, file_hash

# Tokens that all prompts of a call begin with: fewer are not worth a pass of their own.
MIN_SHARED = 32
# Seconds without an answer after which the tokens are told.
QUIET = 1.0


class Pulse:
    """Tells the tokens that are written while no answer is finished: rows that decode together mostly end together."""

    def __init__(self, on_event: OnEvent, task: str, tokens: int) -> None:
        self.on_event, self.task, self.total = on_event, task, tokens
        self.ticker: Ticker | None = None
        self.tokens = 0
        self.heard = time.monotonic()

    def told(self, tokens: int) -> None:
        self.tokens += tokens
        if time.monotonic() - self.heard < QUIET:
            return
        self.heard = time.monotonic()
        if self.ticker is None:
            self.ticker = Ticker(self.on_event, self.task, self.total, "tokens", done=self.tokens)
        else:
            self.ticker.advance(self.tokens - self.ticker.done)

    def answered(self) -> None:
        self.heard = time.monotonic()


def one_call_a_turn(messages: Sequence[Message]) -> list[Message]:
    """The same chat with each call in a turn of its own, before its result; turns whose results are not all there stay."""
    found: list[Message] = []
    left = list(messages)
    while left:
        turn, calls = left[0], left[0].tool_calls
        results = [one for one in left[1 : 1 + len(calls)] if one.role == "tool"]
        del left[: 1 + len(results) if len(results) == len(calls) else 1]
        if len(calls) < 2 or len(results) < len(calls):
            found += [turn, *results] if len(results) == len(calls) else [turn]
            continue
        named = {one.tool_call_id: one for one in results}
        if named.keys() == {call.id for call in calls} and len(named) == len(calls):
            results = [named[call.id] for call in calls]
        for number, (call, result) in enumerate(zip(calls, results, strict=True)):
            found += [replace(turn, content="" if number else turn.content, tool_calls=(call,)), result]
    return found


class HfEngine:
    """A model in this process: the base, or the same weights with an adapter switched on."""

    def __init__(self, handle: ModelHandle, adapter: Adapter | None = None, cache: ResponseCache | None = None) -> None:
        self.handle = handle
        self.adapter = adapter
        self.cache = cache

    @property
    def name(self) -> str:
        return f"{self.handle.folder.name}+{self.adapter.name}" if self.adapter else self.handle.folder.name

    @property
    def fingerprint(self) -> str:
        weights = self.adapter.digest if self.adapter else ""
        # The template of ours that a model without one gets shapes its answers too.
        return content_hash([self.handle.fingerprint, self.handle.dtype, self.handle.device, weights, PLAIN_TEMPLATE])

    @property
    def context_length(self) -> int:
        return self.handle.context_length

    @property
    def takes_tools(self) -> bool:
        return self.handle.takes_tools

    @cached_property
    def parameters(self) -> int:
        return parameter_count(self.handle.folder)

    def with_adapter(self, folder: Path, name: str) -> HfEngine:
        """The same weights with a LoRA adapter on top (safetensors only)."""
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise AdvisorError("there is no adapter here", where=str(folder), do="run `advisor train` first.")
        config = folder / "adapter_config.json"
        if not config.is_file():
            raise AdvisorError("this adapter has no adapter_config.json", where=str(folder), do="run `advisor train` again.")
        # The settings count too: rank and alpha scale the weights.
        adapter = Adapter(name, folder, content_hash([file_hash(weights), file_hash(config)]))
        return HfEngine(self.handle, adapter, self.cache)

    def active(self) -> AbstractContextManager[Any]:
        """While this is entered, `handle.model` answers as this engine: with its adapter, or as the bare base."""
        self.handle.switch(self.adapter)
        return nullcontext()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokens(texts)]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return self.count_tokens([self.prompt_text(messages) for messages in prompts])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat up to where the assistant begins, by the model's own template."""
        return self._tokens([self.prompt_text(messages)])[0]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = (
            self.handle.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        )
        return found

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> str:
        """The chat as the model's template writes it, with the tools in the place that the template has for them."""
        if tools and not self.takes_tools:
            raise AdvisorError(
                "the model's chat template has no place for tools",
                where=self.name,
                do="describe them in the prompt, or take a model that was made to call functions.",
            )
        turns = [message.turn() for message in messages]
        given = [json.loads(tool) for tool in tools] or None
        tokenizer = self.handle.tokenizer  # outside: what is wrong with it is no fault of the template
        try:
            text: str = tokenizer.apply_chat_template(turns, tools=given, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            # Llama's refuses several calls in one turn.
            if len(apart := one_call_a_turn(messages)) > len(messages):
                return self.prompt_text(apart, tools)
            # Templates refuse roles they do not know (Gemma has no system turn): the instruction joins the first user turn.
            if turns and turns[0]["role"] == "system" and len(turns) > 1:
                joined = Message("user", f"{turns[0]['content']}\n\n{turns[1]['content']}")
                return self.prompt_text([joined, *messages[2:]], tools)
            raise AdvisorError(f"the chat template cannot render this: {error}", where=self.name) from error
        return text

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        return through(self.cache, self.fingerprint, requests, self._asked) if self.cache else self._asked(requests)

    def _asked(self, requests: Sequence[Request]) -> Iterator[Response]:
        rows: list[Row] = []
        prompts = [self.prompt_text(request.messages, request.tools) for request in requests]
        for index, (request, ids) in enumerate(zip(requests, self._tokens(prompts), strict=True)):
            if len(ids) + request.max_new_tokens > self.context_length:
                reason = f"prompt of {len(ids)} tokens does not fit the context of {self.context_length}"
                yield Response(request.id, "", len(ids), 0, 0.0, skipped=reason)
            else:
                rows.append(self._row(index, request, ids))
        lengths = {row.index: len(row.ids) for row in rows}
        if not rows:
            return
        chooser = Chooser(
            self.handle.tokenizer, self.handle.stop_ids, self.handle.grammar if any(row.matcher for row in rows) else None
        )
        pulse = Pulse(self.handle.on_event, f"{self.name} answers", sum(row.limit for row in rows))
        try:
            prefix, seconds = self._shared_prefix(rows)

            def store(lanes: int, capacity: int) -> Store:
                return self._store(lanes, capacity, prefix)

            for row in decode(rows, store, self._lanes, chooser, pulse.told):
                pulse.answered()
                request = requests[row.index]
                text, calls = self._read(chooser.text(row), row, prompts[row.index], request.tools)
                yield Response(
                    request.id,
                    text,
                    lengths[row.index],
                    len(row.answer),
                    row.seconds + seconds / len(rows),
                    row.truncated,
                    logprob=row.logprob if request.logprob else None,
                    calls=calls,
                )
        except OutOfMemoryError as error:
            raise self._no_memory(max(lengths.values())) from error

    def _read(self, text: str, row: Row, prompt: str, tools: Sequence[str]) -> tuple[str, tuple[ToolCall, ...]]:
        """What the model said beside its calls, and the calls. Their marks may be special tokens, which `text` is without."""
        if not tools:
            return text, ()
        tokenizer = self.handle.tokenizer
        whole: str = tokenizer.decode(row.answer, skip_special_tokens=False)
        whole = whole[: min((at for at in map(whole.find, row.stop) if at >= 0), default=len(whole))]
        said, calls = parsed_by_tokenizer(tokenizer, whole, prompt, tools) or read_calls(whole, tools)
        if not calls:
            return text, ()
        for mark in self.handle.marks:
            said = said.replace(mark, "")
        return said.strip(), calls

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, list[Likelihood]]]:
        """(id, likelihood of each continuation as the answer) in any order."""
        choices = []
        for request in requests:
            ends = self._tokens(request.continuations)
            choices.append(Choices(tuple(self.prompt_ids(request.messages)), tuple(map(tuple, ends))))
        for index, found in self.likelihoods(choices):
            yield requests[index].id, found

    def likelihoods(self, choices: Sequence[Choices]) -> Iterator[tuple[int, list[Likelihood]]]:
        """(index, likelihood of each continuation) of token ids, in any order. Raises AdvisorError where one does not fit."""
        for one in choices:
            if not one.context or not all(one.continuations):
                raise AdvisorError("a continuation can be scored only behind a token, and with one of its own", where=self.name)
            longest = len(one.context) + max(map(len, one.continuations)) - 1
            if longest > self.context_length:
                raise AdvisorError(f"{longest} tokens do not fit the context of {self.context_length}", where=self.name)
        # Half the chunk each time that memory does not suffice; what is scored by then is kept.
        left = dict(enumerate(choices))
        chunk = self.handle.budget.chunk
        while left:
            numbers = list(left)
            try:
                for at, found in self._likelihoods([left[number] for number in numbers], chunk):
                    yield numbers[at], found
                    del left[numbers[at]]
            except OutOfMemoryError as error:
                if chunk <= 1:
                    raise self._no_memory(max(len(one.context) for one in choices)) from error
                chunk //= 2

    def _likelihoods(self, choices: Sequence[Choices], chunk: int) -> Iterator[tuple[int, list[Likelihood]]]:
        handle = self.handle
        return likelihoods(
            self._forward,
            choices,
            share=handle.shares,
            vocabulary=handle.vocabulary,
            chunk=chunk,
            device=handle.device,
            pad=handle.tokenizer.pad_token_id,
        )

    def perplexity(self, texts: Sequence[str]) -> list[float]:
        """exp of the mean negative log-likelihood a token of each text (two tokens at least), read in windows of the context.

        Windows do not overlap: a window's first token is given, not scored (the fixed-length way, an upper bound).
        """
        windows = [
            (index, ids[start : start + self.context_length])
            for index, ids in enumerate(self._tokens(texts))
            for start in range(0, len(ids), self.context_length)
        ]
        windows = [(index, ids) for index, ids in windows if len(ids) > 1]
        sums = [[0.0, 0] for _ in texts]
        for at, (found,) in self.likelihoods([Choices((ids[0],), (tuple(ids[1:]),)) for _, ids in windows]):
            sums[windows[at][0]][0] -= found.logprob
            sums[windows[at][0]][1] += found.tokens
        if not all(count for _, count in sums):
            raise AdvisorError("a text of one token has no perplexity", where=self.name)
        return [math.exp(total / count) for total, count in sums]

    def divergence(self, tuned: HfEngine, texts: Sequence[str]) -> list[float]:
        """KL(this || tuned) of each text's tokens, in nats a token. Both engines share one base; texts are cut at the context."""
        ids = [one[: self.context_length] for one in self._tokens(texts)]
        if any(len(one) < 2 for one in ids):
            raise AdvisorError("a text of one token says nothing about a next one", where=self.name)
        found = dict(
            divergences(
                self._forward,
                tuned._forward,
                ids,
                vocabulary=self.handle.vocabulary,
                pad=self.handle.tokenizer.pad_token_id,
            )
        )
        return [found[index] for index in range(len(texts))]

    def _no_memory(self, tokens: int) -> AdvisorError:
        return AdvisorError(
            f"out of memory for one prompt of up to {tokens} tokens",
            where=self.name,
            do="free memory, shorten the prompts, or name a smaller model.",
        )

    def _row(self, index: int, request: Request, ids: list[int]) -> Row:
        matcher = self.handle.grammar.matcher(request.constraint) if request.constraint else None
        return Row(
            index,
            ids,
            request.max_new_tokens,
            request.stop,
            request.temperature,
            request.seed,
            request.logprob,
            matcher,
        )

    def _shared_prefix(self, rows: Sequence[Row]) -> tuple[Prefix | None, float]:
        """Cut what all prompts begin with from the rows, and read it once; None where that would not pay or cannot be."""
        if len(rows) < 2 or not self.handle.shares:
            return None, 0.0
        length = shared_by_all([row.ids for row in rows])
        if length < MIN_SHARED:
            return None, 0.0
        started = time.perf_counter()
        prefix = read_prefix(self._forward, rows[0].ids[:length], None, self.handle.device)
        for row in rows:
            row.ids = row.ids[length:]
        return prefix, time.perf_counter() - started

    def _store(self, lanes: int, capacity: int, prefix: Prefix | None) -> Store:
        pad = self.handle.tokenizer.pad_token_id
        if self.handle.shares:
            return LaneStore(
                self._forward, lanes, capacity, prefix, device=self.handle.device, chunk=self.handle.budget.chunk, pad=pad
            )
        return PlainStore(self._plain_forward, self.handle.device, pad, recurrent=self.handle.recurrent)

    def _forward(self, *given: Any) -> Any:
        with self.handle.lock:
            self.handle.switch(self.adapter)
            return self.handle.forward(*given)

    def _plain_forward(self, **given: Any) -> Any:
        import torch

        with self.handle.lock, torch.inference_mode():
            self.handle.switch(self.adapter)
            try:
                return self.handle.model(**given)
            except RuntimeError as error:
                raise out_of_memory(error) from error

    def _lanes(self, capacity: int) -> int:
        return max(1, min(self.handle.budget.lanes, self.handle.cache_tokens() // capacity))
