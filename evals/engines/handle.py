"""The weights of one model in this process: loaded when needed, run with shared prefixes where it can, adapters on top."""

from __future__ import annotations

import inspect
import json
import re
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from evals.engines import attention
from evals.engines.attention import Decoding, Pass
from evals.engines.budget import Budget, measured_budget
from evals.engines.decode import LaneStore, OutOfMemoryError, Row, read_prefix
from evals.engines.engine import Message, ToolCall
from evals.engines.machine import Machine, free_memory_mib, measure_machine
from evals.engines.models import resolve_model, weights_fingerprint
from evals.engines.tokenizer import make_room, open_tokenizer, tokenizer_hash
from evals.engines.tool_calls import parsed_by_tokenizer, read_calls
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, waiting

if TYPE_CHECKING:
    from evals.engines.constrain import GrammarTokens

# For models that run their own way, whose cache grows by copying.
PLAIN_BUDGET = Budget(4096, 48)
# Of the free memory, keys and values take this share at most.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter and the hash of its weights."""

    name: str
    folder: Path
    digest: str


UNKNOWN = object()
# Any few tokens that every vocabulary has.
TRIAL = [3, 5, 8, 13, 21, 34, 55, 89, 60]
# A tool, a call of it and the result, with the words that show each in a rendered chat.
TRIAL_TRACES = ("Adds a and b.", "a1703", "b4099", "= 5802")
TRIAL_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": TRIAL_TRACES[0],
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "string", "description": "A number."} for name in ("a", "b")},
            "required": ["a", "b"],
        },
    },
}
TRIAL_CALL = (
    Message("user", "How much is that together?"),
    # Mistral's template takes ids of nine letters and digits only.
    Message("assistant", "", (ToolCall("add", '{"a": "a1703", "b": "b4099"}', "call00001"),)),
    Message("tool", TRIAL_TRACES[3], tool_call_id="call00001", name="add"),
)
TURN_MARK = re.compile(r"<\|\w+\|>")


class ModelHandle:
    """Weights and tokeniser of one base model, loaded when first needed and shared by the base and every adapter.

    `folder` and `fingerprint` need no weights in memory, so that a run whose records are all there loads nothing. A tokeniser of its
    own (`tokenizer_folder`) an adapter has that was trained with a chat template, or with tokens, that the base is without.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        on_event: OnEvent,
        *,
        trust_remote_code: bool = False,
        tokenizer_folder: Path | None = None,
    ) -> None:
        self.name = name
        self.wanted_dtype = dtype
        self.on_event = on_event
        self.trust_remote_code = trust_remote_code
        self.tokenizer_folder = tokenizer_folder
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
        # Read as it stands first: transformers takes two seconds to import, and a check of data needs no more than this.
        try:
            body = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            if (length := int(body.get("text_config", body)["max_position_embeddings"])) > 0:
                return length
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise self._broken("configuration", error) from error
        return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)

    @cached_property
    def tokenizer(self) -> Any:
        try:
            folder, trusted = self.tokenizer_folder or self.folder, self.trust_remote_code and not self.tokenizer_folder
            tokenizer, own = open_tokenizer(folder, trust_remote_code=trusted, padding_side="left")
        except (OSError, ValueError, KeyError) as error:
            raise self._broken("tokeniser", error) from error
        if not own:
            self.on_event(Note("the model has no chat template: plain 'User:'/'Assistant:' turns are used", "warning"))
        return tokenizer

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template renders a tool, a call of it and its result, and we can read the call as it is written.

        Tried once, since nothing declares it: there are templates that leave calls or results out without a word. Of
        several templates transformers takes the one named `tool_use` where tools are given.
        """
        turns = [one.turn() for one in TRIAL_CALL]
        tokenizer = self.tokenizer  # outside: a broken one is an error, and no template without tools
        try:
            text: str = tokenizer.apply_chat_template(turns, tools=[TRIAL_TOOL], tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may raise whatever it likes
            return False
        return all(one in text for one in TRIAL_TRACES) and self._reads_call(text)

    def _reads_call(self, chat: str) -> bool:
        tools = [json.dumps(TRIAL_TOOL)]
        behind = chat[chat.rfind(TRIAL_CALL[0].content) + len(TRIAL_CALL[0].content) :]
        # Llama's call has no marks of its own: it is all that stands in its turn.
        tried = [read_calls(one, tools) for one in (behind, *TURN_MARK.split(behind))]
        shipped = parsed_by_tokenizer(self.tokenizer, behind, "", tools)
        wanted = [(one.name, json.loads(one.arguments)) for one in TRIAL_CALL[1].tool_calls]
        return any(
            [(one.name, json.loads(one.arguments)) for one in calls] == wanted for _, calls in ([shipped] if shipped else tried)
        )

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
                if self.tokenizer_folder:
                    make_room(model, len(self.tokenizer))
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
            raise out_of_memory(error) from error
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
    def marks(self) -> list[str]:
        """The control tokens, which a decoded text is without."""
        return [one.content for one in self.tokenizer.added_tokens_decoder.values() if one.special]

    @property
    def recurrent(self) -> bool:
        return "cache_params" in inspect.signature(self.base.forward).parameters

    @cached_property
    def budget(self) -> Budget:
        """How many tokens and rows go together, measured once for this model on this machine."""
        if not self.shares:
            return PLAIN_BUDGET
        most = min(self.cache_tokens(), self.context_length * 64)
        return measured_budget(self.forward, [self.fingerprint, self.dtype], self.machine, most, self.on_event)

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
        queries = getattr(config, "num_attention_heads", None)
        if not queries:
            return self.context_length * PLAIN_BUDGET.lanes  # a state of fixed size instead (Mamba): tokens cost no memory
        heads = getattr(config, "num_key_value_heads", None) or queries
        size = getattr(config, "head_dim", None) or config.hidden_size // queries
        each = 2 * config.num_hidden_layers * heads * size * getattr(torch, self.dtype).itemsize
        return int(MEMORY_SHARE * free_memory_mib(self.device) * 2**20 / each)

    @cached_property
    def _trained(self) -> WeakValueDictionary[str, ModelHandle]:
        return WeakValueDictionary()

    def trained(self, folder: Path) -> ModelHandle:
        """Another model's weights, asked as these are: loaded once as long as any engine has them, and let go with the last."""
        made = ModelHandle(str(folder), self.wanted_dtype, self.on_event, trust_remote_code=self.trust_remote_code)
        return self._trained.setdefault(made.fingerprint, made)

    def asked_with(self, folder: Path) -> ModelHandle:
        """These weights asked with the tokeniser of an adapter's `folder`, in a model of their own: the base has other embeddings."""
        made = ModelHandle(
            self.name, self.wanted_dtype, self.on_event, trust_remote_code=self.trust_remote_code, tokenizer_folder=folder
        )
        return self._trained.setdefault(f"{folder.resolve()} {tokenizer_hash(folder)}", made)

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
        if self.tokenizer_folder:
            write_tokens(self.model)
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


def write_tokens(model: Any) -> None:
    """Write the rows that an adapter has for its new tokens into the embeddings: peft would copy the whole matrix at each forward."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            module.merge()


def out_of_memory(error: RuntimeError) -> Exception:
    return OutOfMemoryError(str(error)) if "memory" in str(error).lower() else error
