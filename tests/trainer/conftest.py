"""A language model small enough to train in a second: two Llama layers over characters, with a ChatML template."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.task.example import Example
from trainer.job import TrainingJob
from trainer.recipe import Recipe

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = ["red", "blue", "green", "pink"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*marks, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=marks[1:]
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # Large enough that the frozen head can say anything at all.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Fingerprints and measurements of the tests stay out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ADVISOR_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def colour_rows(count: int, split: str = "train") -> tuple[Example, ...]:
    """Name a colour by its first letter."""
    words = [COLOURS[number % len(COLOURS)] for number in range(count)]
    return tuple(
        Example(f"{split}-{number}", (Message("user", f"{word} {number}"),), word[0]) for number, word in enumerate(words)
    )


@pytest.fixture
def make_job(tiny_model: Path, tmp_path: Path) -> Callable[..., TrainingJob]:
    def make(name: str = "job", *, rows: int = 32, **recipe: Any) -> TrainingJob:
        settings = {"num_train_epochs": 3, "learning_rate": 1e-2, "save_steps": 4, "lora_r": 4, **recipe}
        return TrainingJob(
            model_folder=tiny_model,
            recipe=Recipe(**settings),
            prompt_format=PromptFormat("Say the letter.", "inline"),
            train=colour_rows(rows),
            dev=colour_rows(8, "dev"),
            folder=tmp_path / name,
            dtype="float32",
            purpose=name,
        )

    return make
