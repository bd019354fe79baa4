"""The transformers engine: greedy decoding in process, on CPU or CUDA, with adapters switched on one set of base weights."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.engines.engine import Message, Request, Response
from evals.engines.machine import Machine, available_cores, measure_machine
from evals.engines.models import parameter_count, resolve_model, weights_fingerprint
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, waiting
from evals.records import content_hash, file_hash

BATCH_TOKENS = 24_000
MAX_BATCH = 48
MIN_PREFIX = 48
# For a base model that ships no chat template: plain turns, named in the run's notes.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


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
            torch.set_num_threads(available_cores())
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
    def _wrapped(self) -> dict[str, Any]:
        return {}

    @property
    def model(self) -> Any:
        return self._wrapped.get("peft", self.base)

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


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter and the hash of its weights."""

    name: str
    folder: Path
    digest: str


class HfEngine:
    """A model in this process: the base, or the same weights with an adapter switched on."""

    def __init__(self, handle: ModelHandle, adapter: Adapter | None = None) -> None:
        self.handle = handle
        self.adapter = adapter

    @property
    def name(self) -> str:
        return f"{self.handle.folder.name}+{self.adapter.name}" if self.adapter else self.handle.folder.name

    @property
    def fingerprint(self) -> str:
        weights = self.adapter.digest if self.adapter else ""
        return content_hash([self.handle.fingerprint, self.handle.dtype, self.handle.device, weights])

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
        return HfEngine(self.handle, Adapter(name, folder, content_hash([file_hash(weights), file_hash(config)])))

    def active(self) -> AbstractContextManager[Any]:
        """While this is entered, `handle.model` answers as this engine: with its adapter, or as the bare base."""
        if self.adapter:
            self.handle.load_adapter(self.adapter.folder, self.adapter.name, self.adapter.digest)
            self.handle.model.set_adapter(self.adapter.name)
            return nullcontext()
        return self.handle.model.disable_adapter() if self.handle.adapters else nullcontext()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.handle.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat up to where the assistant begins, by the model's own template."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        tokenizer = self.handle.tokenizer
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            # Templates refuse roles they do not know (Gemma has no system turn): the instruction joins the first user turn.
            if turns and turns[0]["role"] == "system" and len(turns) > 1:
                joined = Message("user", f"{turns[0]['content']}\n\n{turns[1]['content']}")
                return self.prompt_ids([joined, *messages[2:]])
            raise AdvisorError(f"the chat template cannot render this: {error}", where=self.name) from error
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        prompts = [(request, self.prompt_ids(request.messages)) for request in requests]
        fitting = []
        for request, ids in prompts:
            if len(ids) + request.max_new_tokens > self.handle.context_length:
                reason = f"prompt of {len(ids)} tokens does not fit the context of {self.handle.context_length}"
                yield Response(request.id, "", len(ids), 0, 0.0, skipped=reason)
            else:
                fitting.append((request, ids))
        fitting.sort(key=lambda pair: (pair[0].max_new_tokens, len(pair[1])), reverse=True)
        prefix, seconds = self._shared_prefix([ids for _, ids in fitting])
        share = seconds / len(fitting) if fitting else 0.0
        start = 0
        budget = BATCH_TOKENS
        while start < len(fitting):
            longest = len(fitting[start][1]) + fitting[start][0].max_new_tokens
            batch = fitting[start : start + max(1, min(MAX_BATCH, budget // longest))]
            try:
                answers = self._generate_batch(batch, prefix)
            except RuntimeError as error:
                if "memory" not in str(error).lower():
                    raise
                if len(batch) == 1:
                    raise AdvisorError(
                        f"out of memory for one prompt of {len(batch[0][1])} tokens",
                        where=self.name,
                        do="free memory, shorten the prompts, or name a smaller model.",
                    ) from error
                budget = longest * (len(batch) // 2)
                continue
            for answer in answers:
                yield Response(**{**answer.__dict__, "seconds": answer.seconds + share})
            start += len(batch)

    def _shared_prefix(self, prompts: Sequence[list[int]]) -> tuple[tuple[list[int], Any] | None, float]:
        """The tokens that all prompts begin with and their KV cache, computed once; None where it would not pay.

        At least one token of each prompt stays outside, since the next token's logits come from it.
        """
        if len(prompts) < 4:
            return None, 0.0
        low, high = min(prompts), max(prompts)
        length = 0
        limit = min(map(len, prompts)) - 1
        while length < limit and low[length] == high[length]:
            length += 1
        if length < MIN_PREFIX or not self._full_attention():
            return None, 0.0
        import torch
        from transformers import DynamicCache

        started = time.perf_counter()
        ids = low[:length]
        with self.active(), torch.inference_mode():
            cache = DynamicCache(config=self.handle.model.config)
            self.handle.model(
                input_ids=torch.tensor([ids], device=self.handle.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return (ids, cache), time.perf_counter() - started

    def _full_attention(self) -> bool:
        """Whether every layer sees all tokens: a window or a recurrent state does not bear padding behind the prefix."""
        config = self.handle.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)

    def _generate_batch(
        self, batch: Sequence[tuple[Request, list[int]]], prefix: tuple[list[int], Any] | None
    ) -> list[Response]:
        """One padded batch, greedily. With a prefix, padding stands between it and each prompt's own part."""
        import torch

        tokenizer, device = self.handle.tokenizer, self.handle.device
        started = time.perf_counter()
        head = prefix[0] if prefix else []
        tails = [ids[len(head) :] for _, ids in batch]
        width = max(map(len, tails))
        rows = [head + [tokenizer.pad_token_id] * (width - len(tail)) + tail for tail in tails]
        mask = [[1] * len(head) + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails]
        limit = max(request.max_new_tokens for request, _ in batch)
        more = {}
        if prefix:
            cache = copy.deepcopy(prefix[1])
            cache.batch_repeat_interleave(len(batch))
            more["past_key_values"] = cache
        with self.active(), torch.inference_mode():
            out = self.handle.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=limit,
                do_sample=False,
                # Of a model's own generation settings this one bends greedy decoding too, and would count the padding.
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=self._stop_ids(),
                **more,
            )
        answers = out[:, len(head) + width :].tolist()
        seconds = (time.perf_counter() - started) / len(batch)
        responses = []
        for (request, ids), answer in zip(batch, answers, strict=True):
            kept, truncated = self._cut(answer, request.max_new_tokens)
            text = tokenizer.decode(kept, skip_special_tokens=True)
            responses.append(Response(request.id, text, len(ids), len(kept), seconds, truncated))
        return responses

    def _stop_ids(self) -> list[int]:
        given = self.handle.model.generation_config.eos_token_id
        known = given if isinstance(given, list) else [given]
        return sorted({one for one in [*known, self.handle.tokenizer.eos_token_id] if one is not None})

    def _cut(self, ids: list[int], limit: int) -> tuple[list[int], bool]:
        """The answer up to its end mark, and whether it ran into the limit instead."""
        stops = set(self._stop_ids())
        end = next((index for index, one in enumerate(ids) if one in stops), None)
        if end is None or end >= limit:
            return ids[:limit], True
        return ids[:end], False
