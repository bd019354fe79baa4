"""The transformers engine: greedy decoding in process, on CPU or CUDA, with adapters switched on one set of base weights."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.engines.adapter_card import check_adapter
from evals.engines.attention import Prefix
from evals.engines.cache import ResponseCache, through
from evals.engines.chat import Chat, chat_of, ids_of
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
from evals.engines.moments import input_moments
from evals.engines.scoring import Choices, Compared, Likelihood, compared, likelihoods
from evals.engines.tokenizer import PLAIN_TEMPLATE, adapter_tokenizer, tokenizer_hash
from evals.engines.tool_calls import parsed_by_tokenizer, read_calls
from evals.errors import AdvisorError
from evals.events import OnEvent, Ticker
from evals.records import content_hash, file_hash

# Tokens that all prompts of a call begin with: fewer are not worth a pass of their own.
MIN_SHARED = 32
# Seconds without an answer after which the tokens are told.
QUIET = 1.0
# Wider than any tokeniser's own, so that none has to be loaded for answers that are kept: <|im_end|>, </s>, [INST], <start_of_turn>.
LIKE_A_CONTROL_TOKEN = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,40}\]")


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


class HfEngine:
    """A model in this process: the base, the same weights with an adapter switched on, or other weights trained from them.

    `called` names the last of these, whose folder's name says nothing.
    """

    def __init__(
        self, handle: ModelHandle, adapter: Adapter | None = None, cache: ResponseCache | None = None, *, called: str = ""
    ) -> None:
        self.handle = handle
        self.adapter = adapter
        self.cache = cache
        self.called = called

    @property
    def name(self) -> str:
        if self.called:
            return self.called
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
        """What a training has left in `folder` (safetensors only): these weights with a LoRA adapter on top, or a whole model trained
        from them, which has weights and a fingerprint of its own.

        Raises AdvisorError where there is neither, or where its card names another base or other files.
        """
        if (folder / "config.json").is_file():
            check_adapter(folder, self.handle.fingerprint)
            return HfEngine(self.handle.trained(folder), None, self.cache, called=f"{self.handle.folder.name}+{name}")
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise AdvisorError("there is no adapter here", where=str(folder), do="run `advisor train` first.")
        config = folder / "adapter_config.json"
        if not config.is_file():
            raise AdvisorError("this adapter has no adapter_config.json", where=str(folder), do="run `advisor train` again.")
        check_adapter(folder, self.handle.fingerprint)
        # The settings count too: rank and alpha scale the weights.
        named = [file_hash(weights), file_hash(config)]
        if not adapter_tokenizer(folder):
            return HfEngine(self.handle, Adapter(name, folder, content_hash(named)), self.cache)
        adapter = Adapter(name, folder, content_hash([*named, tokenizer_hash(folder)]))
        return HfEngine(self.handle.asked_with(folder), adapter, self.cache)

    def active(self) -> AbstractContextManager[Any]:
        """While this is entered, `handle.model` answers as this engine: with its adapter, or as the bare base."""
        self.handle.switch(self.adapter)
        return nullcontext()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokens(texts)]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [len(ids) for ids in ids_of(self.handle.tokenizer, [self._chat(messages) for messages in prompts])]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat up to where the assistant begins, by the model's own template."""
        return ids_of(self.handle.tokenizer, [self._chat(messages)])[0]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = (
            self.handle.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        )
        return found

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> str:
        """The chat as the model's template writes it, with the tools in the place that the template has for them."""
        return self._chat(messages, tools).text

    def _chat(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> Chat:
        if tools and not self.takes_tools:
            raise AdvisorError(
                "the model's chat template has no place for tools",
                where=self.name,
                do="describe them in the prompt, or take a model that was made to call functions.",
            )
        return chat_of(self.handle.tokenizer, messages, tools, where=self.name)

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        return through(self.cache, self._kept_under, requests, self._asked) if self.cache else self._asked(requests)

    def _kept_under(self, request: Request) -> str:
        """The fingerprint of the answer. What read like a control token in a text was one once: such answers are not taken for today's."""
        texts = (*request.tools, *(f"{turn.content}{turn.tool_calls}{turn.name}" for turn in request.messages))
        quotes = any(map(LIKE_A_CONTROL_TOKEN.search, texts))
        return content_hash([self.fingerprint, "quoted"]) if quotes else self.fingerprint

    def _asked(self, requests: Sequence[Request]) -> Iterator[Response]:
        rows: list[Row] = []
        chats = [self._chat(request.messages, request.tools) for request in requests]
        for index, (request, ids) in enumerate(zip(requests, ids_of(self.handle.tokenizer, chats), strict=True)):
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
        for row, shared, seconds in self._decoded(rows, chooser):
            request = requests[row.index]
            text, calls = self._read(chooser.text(row), row, chats[row.index].text, request.tools)
            yield Response(
                request.id,
                text,
                lengths[row.index],
                len(row.answer),
                row.seconds + seconds / len(rows),
                row.truncated,
                logprob=row.logprob if request.logprob else None,
                calls=calls,
                # The first one's reading of what all begin with was for the others too.
                cached_tokens=row.cached + (shared if row is not rows[0] else 0),
            )

    def completions(self, rows: Sequence[Row], stop_ids: Sequence[int] = ()) -> Iterator[tuple[int, str]]:
        """(index, what is written behind the row's own token ids) as rows finish: for callers that lay out their prompts themselves.

        A row ends at one of its stop strings (which is left out), at a token that ends an answer or stands in `stop_ids`, or at its
        limit. Raises AdvisorError where one does not fit the context.
        """
        for row in rows:
            if row.room > self.context_length:
                raise AdvisorError(f"{row.room} tokens do not fit the context of {self.context_length}", where=self.name)
        chooser = Chooser(self.handle.tokenizer, [*self.handle.stop_ids, *stop_ids], None)
        for row, _, _ in self._decoded(rows, chooser):
            yield row.index, chooser.text(row)

    def _decoded(self, rows: Sequence[Row], chooser: Chooser) -> Iterator[tuple[Row, int, float]]:
        """Finished rows, with the tokens that all share and the seconds that it took to read these."""
        longest = max((len(row.ids) for row in rows), default=0)
        pulse = Pulse(self.handle.on_event, f"{self.name} answers", sum(row.limit for row in rows))
        try:
            prefix, seconds = self._shared_prefix(rows)

            def store(lanes: int, capacity: int) -> Store:
                return self._store(lanes, capacity, prefix)

            for row in decode(rows, store, self._lanes, chooser, pulse.told):
                pulse.answered()
                yield row, len(prefix) if prefix else 0, seconds
        except OutOfMemoryError as error:
            raise self._no_memory(longest) from error

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

    def compared(self, tuned: HfEngine, texts: Sequence[Sequence[int]], given: int = 0) -> list[Compared]:
        """This one and `tuned` on token sequences, over this one's vocabulary, behind the first `given` tokens, which all share.

        Raises AdvisorError for a sequence with no token to predict.
        """
        if any(len(one) < max(2, given + 1) for one in texts):
            raise AdvisorError("a text of one token says nothing about a next one", where=self.name)
        found = dict(
            compared(
                self._forward,
                lambda *given: tuned._forward(*given)[..., : self.handle.vocabulary],
                texts,
                given=given,
                share=self.handle.shares and tuned.handle.shares,
                vocabulary=self.handle.vocabulary,
                device=self.handle.device,
                pad=self.handle.tokenizer.pad_token_id,
            )
        )
        return [found[index] for index in range(len(texts))]

    def moments(
        self, texts: Sequence[Sequence[int]], layers: Collection[str], told: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """What linear layers are given on token sequences, as `input_moments` has it. Only the last token's logits are made."""
        self.handle.switch(self.adapter)
        modules = dict(self.handle.base.named_modules())
        return input_moments(modules, lambda ids: self._forward([ids], None), texts, layers, told)

    def divergence(self, tuned: HfEngine, texts: Sequence[str]) -> list[float]:
        """KL(this || tuned) of each text's tokens, in nats a token, over this one's vocabulary; texts are cut at the context."""
        found = self.compared(tuned, [one[: self.context_length] for one in self._tokens(texts)])
        return [math.fsum(one.kl) / len(one.kl) for one in found]

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
