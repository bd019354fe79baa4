"""A base model that has no chat template learns one: turns between two marks, which are new tokens where its vocabulary lacks them."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.tokenizer import make_room, open_tokenizer
from trainer.job import TrainingJob
from trainer.recipe import Method

START, END = "<|im_start|>", "<|im_end|>"
GENERATION = "generation_config.json"
# ChatML (OpenAI 2023), as trl's and most open models' templates write it.
CHATML = (
    "{% for message in messages %}{{ '"
    + START
    + "' + message['role'] + '\n' + message['content'] + '"
    + END
    + "' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + START + "assistant\n' }}{% endif %}"
)
# What learns answers to questions. Preferences are between answers that a model can give already, and documents are no chat.
INSTRUCTS: tuple[Method, ...] = ("sft", "raft", "rejection_sampling")


@dataclass(frozen=True)
class NewTokens:
    """The tokeniser that a training renders its rows with; `learnt` are the template's marks, whose embeddings it has to learn.

    Nothing is learnt (and the tokeniser is the model's own) where the model has a template.
    """

    tokenizer: Any
    learnt: tuple[int, ...] = ()
    base: Path | None = None

    def put_into(self, model: Any) -> None:
        """Room for the marks in the model's embeddings, where its vocabulary ends before them; and its text ends with a turn."""
        if self.learnt:
            make_room(model, len(self.tokenizer))

    def peft_settings(self, model: Any) -> dict[str, Any]:
        """What has LoRA learn the marks' rows of the embeddings and of the head, and no other row of them."""
        if not self.learnt:
            return {}
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        layers = [model.get_input_embeddings()] if tied else [model.get_input_embeddings(), model.get_output_embeddings()]
        names = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
        return {"trainable_token_indices": {names[id(layer)]: list(self.learnt) for layer in layers}}

    def leave_out_the_rest(self, model: Any) -> None:
        """Have an adapter saved with the marks' rows alone. peft would write the whole embeddings beside them, since they have grown."""
        if self.learnt and hasattr(model, "peft_config"):
            model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)

    def save(self, folder: Path) -> None:
        """The tokeniser with its template beside what was trained, which is asked with it; and whatever generates ends with a turn."""
        if not self.learnt:
            return
        self.tokenizer.save_pretrained(folder)
        path = (self.base or folder) / GENERATION
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        settings |= {"eos_token_id": self.tokenizer.eos_token_id}
        (folder / GENERATION).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def prepared(job: TrainingJob) -> NewTokens:
    """The tokeniser for a job's rows: the model's own, with a chat template added where it has none and the job teaches to answer."""
    return taught(job.model_folder, job.recipe.method)


def taught(folder: Path, method: Method) -> NewTokens:
    tokenizer, own = open_tokenizer(folder)
    if own or method not in INSTRUCTS:
        return NewTokens(tokenizer)
    # What the tokeniser itself begins a text with, the model has never been without.
    begins = bool(bare := tokenizer("", verbose=False)["input_ids"]) and bare[0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + CHATML
    marks = [START, END]
    tokenizer.add_special_tokens({"additional_special_tokens": marks}, replace_extra_special_tokens=False)
    tokenizer.eos_token = END
    return NewTokens(tokenizer, tuple(tokenizer.convert_tokens_to_ids(marks)), folder)
