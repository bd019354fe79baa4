"""The transformers engine: greedy decoding in process, on CPU or CUDA, with adapters switched on one set of base weights."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engines import attention
from evals.engines.attention import Decoding, Pass, Prefix
from evals.engines.budget import Budget, measured_budget
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
from evals.engines.engine import Message, Request, Response, ScoreRequest
from evals.engines.machine import Machine, measure_machine
from evals.engines.models import parameter_count, resolve_model, weights_fingerprint
from evals.engines.scoring import Choices, Likelihood, divergences, likelihoods
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, waiting
from evals.records import content_hash, file_hash

if TYPE_CHECKING:
    from evals.engines.constrain import GrammarTokens

# For models that run their own way, whose cache grows by copying.
PLAIN_BUDGET = Budget(4096, 48)
# Tokens that all prompts of a call begin with: fewer are not worth a pass of their own.
MIN_SHARED = 32
# Of the free memory, keys and values take this share at most.
MEMORY_SHARE = 0.4
# For a base model that ships no chat template: plain turns, named in the run's notes.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter and the hash of its weights."""

    name: str
    folder: Path
    digest: str


UNKNOWN = object()
# Any few tokens that every vocabulary has.
TRIAL = [3, 5, 8, 13, 21, 34, 55, 89, 60]


class ModelHandle:
    """Weights and tokeniser of one base model, loaded when first needed and shared by the base and every adapter.

    `folder` and `fingerprint` need no weights in memory, so that a run whose records are all there loads nothing.
    """

    def __init__(self, name: str, dtype: str, on_event: OnEvent, *, trust_remote_code: bool = False) -> None:
        self.name = name
        self.wanted_dtype = dtype
        self.on_event = on_event
        self.trust_remote_code = trust_remote_code
        self.adapters: dict[str, str] = {}
        self._active: Any = None

    @cached_property
    def folder(self) -> Path:
        return resolve_model(self.name, self.on_event)

    @cached_property
    def machine(self) -> Machine:
        return measure_machine()

    @property
    def device(self) -> str:
        return self.machine.device

    @property
    def dtype(self) -> str:
        return self.machine.dtype if self.wanted_dtype == "auto" else self.wanted_dtype

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.folder)

    @cached_property
    def context_length(self) -> int:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True)
        return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, padding_side="left", trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise self._broken("tokeniser", error) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
            self.on_event(Note("the model has no chat template: plain 'User:'/'Assistant:' turns are used", "warning"))
        return tokenizer

    @cached_property
    def base(self) -> Any:
        """The model; once an adapter is loaded, its LoRA layers sit inside it and `model` wraps it."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        if self.device == "cpu":
            torch.set_num_threads(self.machine.threads)
        try:
            with waiting(self.on_event, f"loading {self.folder.name}"):
                model = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=getattr(torch, self.dtype),
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=True,
                )
                return model.to(self.device).eval()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise self._broken("model", error) from error

    def _broken(self, what: str, error: Exception, folder: Path | None = None) -> AdvisorError:
        whole = "adapter of this very model" if folder else "causal language model"
        return AdvisorError(
            f"the {what} cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
            where=str(folder or self.folder),
            do=f"check that the folder holds a whole {whole}, and that there is memory for it.",
        )

    @cached_property
    def shares(self) -> bool:
        """Whether the model runs with our attention: tried on a few tokens against its own way, once, and told if not."""
        import torch

        reason = self._unshareable()
        if not reason:
            attention.register()
            before = self.base.config._attn_implementation
            try:
                with torch.inference_mode():
                    theirs = self.base(input_ids=torch.tensor([TRIAL], device=self.device), use_cache=False).logits[0, -1]
                    self.base.set_attn_implementation(attention.NAME)
                    own = self._trial()
                gap, spread = (own - theirs).float().abs().mean(), theirs.float().std()
                # bf16 keeps 8 bits: a right answer is off by a few hundredths of the logits' spread, a wrong one by all of it.
                if not gap <= 0.1 * spread:
                    reason = f"its logits would be off by {float(gap):.2g}"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:200]
            if reason:
                with suppress(Exception):
                    self.base.set_attn_implementation(before)
        if reason:
            self.on_event(Note(f"prompts are read without shared prefixes: this model cannot share them ({reason})"))
        return not reason

    def _unshareable(self) -> str:
        config = self.base.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") in {"dynamic", "longrope"}:
            return "its positions depend on the batch's longest row"
        if self.base.config._attn_implementation != "sdpa":
            return f"its attention is {self.base.config._attn_implementation}"
        return ""

    def _trial(self) -> Any:
        """Logits behind TRIAL by a shared prefix, a row's lane and a decoding step."""
        prefix = read_prefix(self.forward, TRIAL[:5], None, self.device)
        store = LaneStore(self.forward, 2, 8, prefix, device=self.device, chunk=64, pad=0)
        rows = [Row(0, TRIAL[5:8], 2), Row(1, TRIAL[5:7], 2)]
        store.admit([(rows, 0)], 0)
        return self.forward([TRIAL[8:9], TRIAL[7:8]], Decoding(store.lanes, [3, 2], prefix, self.device))[0]

    def forward(self, ids: list[list[int]], this: Pass | None, picked: Sequence[tuple[int, int]] | None = None) -> Any:
        """Logits (number of places, vocabulary) of the `picked` places (row, column), or of every row's last token.

        The others' are never computed: a hook hands only these hidden states to the output head. Without a pass the rows run
        the model's own way, from position 0 and padded on the right.
        """
        import torch

        def pick(head: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = given[0]
            if picked is None:
                return (hidden[:, -1][None], *given[1:])
            at = torch.tensor(picked, device=hidden.device)
            return (hidden[at[:, 0], at[:, 1]][None], *given[1:])

        hook = self.base.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            with torch.inference_mode():
                more = {"position_ids": this.positions, "this_pass": this} if this else {}
                out = self.model(input_ids=torch.tensor(ids, device=self.device), use_cache=False, **more)
        except RuntimeError as error:
            raise _memory(error) from error
        finally:
            hook.remove()
        return out.logits[0]

    @cached_property
    def _wrapped(self) -> dict[str, Any]:
        return {}

    @property
    def model(self) -> Any:
        return self._wrapped.get("peft", self.base)

    @cached_property
    def lock(self) -> threading.Lock:
        """One forward pass at a time: an adapter is switched on and used under it."""
        return threading.Lock()

    @cached_property
    def grammar(self) -> GrammarTokens:
        from evals.engines.constrain import GrammarTokens

        return GrammarTokens(self.tokenizer, self.vocabulary, self.stop_ids)

    @cached_property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self.base.get_output_embeddings().weight.shape[0])

    @cached_property
    def budget(self) -> Budget:
        """How many tokens and rows go together, measured once for this model on this machine."""
        if not self.shares:
            return PLAIN_BUDGET
        most = min(self.cache_tokens(), self.context_length * 64)
        return measured_budget(self.forward, [self.fingerprint, self.dtype], self.machine, most)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Every token that ends an answer, by the model's generation settings and its tokeniser."""
        given = self.base.generation_config.eos_token_id
        known = given if isinstance(given, list) else [given]
        return sorted({one for one in [*known, self.tokenizer.eos_token_id] if one is not None})

    def cache_tokens(self) -> int:
        """Tokens whose keys and values fit into MEMORY_SHARE of the memory that is free now."""
        import torch

        config = self.base.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        each = 2 * config.num_hidden_layers * heads * size * getattr(torch, self.dtype).itemsize
        if self.device == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            import psutil

            free = psutil.virtual_memory().available
        return int(MEMORY_SHARE * free / each)

    def load_adapter(self, folder: Path, name: str, digest: str) -> None:
        """Put a LoRA adapter into the model, once a name and content."""
        if self.adapters.get(name) == digest:
            return
        from peft import PeftModel
        from safetensors import SafetensorError

        model = self.model
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if isinstance(model, PeftModel):
                    if self.adapters.pop(name, None):
                        model.delete_adapter(name)
                    model.load_adapter(folder, name, use_safetensors=True, autocast_adapter_dtype=False)
                else:
                    self._wrapped["peft"] = PeftModel.from_pretrained(
                        model, folder, name, use_safetensors=True, autocast_adapter_dtype=False
                    )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise self._broken("adapter", error, folder) from error
        self.model.eval()
        self.adapters[name] = digest
        self._active = UNKNOWN

    def switch(self, adapter: Adapter | None) -> None:
        """Let `model` answer with this adapter, or as the bare base, until the next switch."""
        import torch

        wanted = (adapter.name, adapter.digest) if adapter else None
        if self._active == wanted:
            return
        # Weights that are made or switched in inference mode could never be asked for gradients again.
        with torch.inference_mode(mode=False):
            if adapter:
                self.load_adapter(adapter.folder, adapter.name, adapter.digest)
                self.model.base_model.enable_adapter_layers()
                self.model.set_adapter(adapter.name, inference_mode=True)
            elif self.adapters:
                self.model.base_model.disable_adapter_layers()
        self._active = wanted


def _memory(error: RuntimeError) -> Exception:
    return OutOfMemoryError(str(error)) if "memory" in str(error).lower() else error


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
        return content_hash([self.handle.fingerprint, self.handle.dtype, self.handle.device, weights])

    @property
    def context_length(self) -> int:
        return self.handle.context_length

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

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat up to where the assistant begins, by the model's own template."""
        return self._tokens([self.prompt_text(messages)])[0]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.handle.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return found

    def prompt_text(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        tokenizer = self.handle.tokenizer
        try:
            text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            # Templates refuse roles they do not know (Gemma has no system turn): the instruction joins the first user turn.
            if turns and turns[0]["role"] == "system" and len(turns) > 1:
                joined = Message("user", f"{turns[0]['content']}\n\n{turns[1]['content']}")
                return self.prompt_text([joined, *messages[2:]])
            raise AdvisorError(f"the chat template cannot render this: {error}", where=self.name) from error
        return text

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        if self.cache is None:
            yield from self._asked(requests)
        else:
            yield from through(self.cache, self.fingerprint, requests, self._asked)

    def _asked(self, requests: Sequence[Request]) -> Iterator[Response]:
        rows: list[Row] = []
        prompts = self._tokens([self.prompt_text(request.messages) for request in requests])
        for index, (request, ids) in enumerate(zip(requests, prompts, strict=True)):
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
        try:
            prefix, seconds = self._shared_prefix(rows)
            for row in decode(rows, lambda lanes, capacity: self._store(lanes, capacity, prefix), self._lanes, chooser):
                request = requests[row.index]
                yield Response(
                    request.id,
                    chooser.text(row),
                    lengths[row.index],
                    len(row.answer),
                    row.seconds + seconds / len(rows),
                    row.truncated,
                    logprob=row.logprob if request.logprob else None,
                )
        except OutOfMemoryError as error:
            raise self._no_memory(max(lengths.values())) from error

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
        return PlainStore(self._plain_forward, self.handle.device, pad)

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
                raise _memory(error) from error

    def _lanes(self, capacity: int) -> int:
        return max(1, min(self.handle.budget.lanes, self.handle.cache_tokens() // capacity))
