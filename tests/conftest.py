"""Models small enough to build in a second, a cache of the tests' own, and a small valid task."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from evals.engines.machine import cache_folder

# The same examples each time, so that a change is judged by what it changed; `--hypothesis-profile default` goes looking for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = {token: number for number, token in enumerate([*MARKS, *string.printable])}
COLOURS = ["red", "blue", "green", "pink"]
# Before `own_cache` patches it.
USERS_CACHE = cache_folder()


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run beside each other have a core each, and so have the processes that they start: threads of two models that share
    two cores wait for each other most of the time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Fingerprints and measurements of the tests stay out of the user's cache."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("ADVISOR_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def users_cache() -> Iterator[Path]:
    """As `demo_cache`, in force for a whole module: for servers that several of its tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_CACHE", str(USERS_CACHE))
        yield USERS_CACHE


@pytest.fixture
def demo_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache, where the demo model lies; in force while the test runs. For tests marked `demo_model`."""
    monkeypatch.setenv("ADVISOR_CACHE", str(USERS_CACHE))
    return USERS_CACHE


def save_tokenizer(folder: Path, template: str | None = CHATML) -> None:
    """One token a character, and the three marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    # Byte fallback changes nothing here, and names a kind of decoder that constrained decoding knows.
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="?",
        eos_token="<|im_end|>",
        additional_special_tokens=MARKS[1:],
        model_max_length=256,
    )
    if template is not None:
        fast.chat_template = template
    fast.save_pretrained(folder)


# Sizes that every tiny language model shares. The wide initialisation makes the answers differ from prompt to prompt.
TINY = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY["<|im_end|>"],
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Llama layers over characters, with a ChatML template, in safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tokenizer(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Gemma 3 layers, the first with a sliding window of 32 tokens."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("models") / "tiny-gemma"
    save_tokenizer(folder)
    torch.manual_seed(0)
    # Tied to embeddings that Gemma scales up, the head would echo the last token.
    config = Gemma3TextConfig(
        **{**TINY, "tie_word_embeddings": False},
        head_dim=16,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two BERT layers over characters with mean pooling, as sentence-transformers keeps them."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel

    base = tmp_path_factory.mktemp("models")
    save_tokenizer(base / "bert", None)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(base / "bert")
    transformer = models.Transformer(str(base / "bert"), max_seq_length=256)
    SentenceTransformer(modules=[transformer, models.Pooling(32)], device="cpu").save(str(base / "tiny-embeddings"))
    return base / "tiny-embeddings"


def colour_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """The colour that a sentence names: rows of an input, an output and an id."""
    words = [COLOURS[number % len(COLOURS)] for number in range(start, start + count)]
    return [
        {"id": f"row-{start + at}", "input": f"Item {start + at} is {word}.", "output": word} for at, word in enumerate(words)
    ]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def make_task(tiny_model: Path, tiny_embeddings: Path) -> Callable[..., Path]:
    """A factory of task folders: `make_task(folder)` is valid; `rows` replaces splits (None leaves one out), `files` adds
    files, and the keyword arguments replace keys of `task.yaml` (None leaves one out)."""

    def make(
        folder: Path,
        *,
        rows: Mapping[str, list[Any] | None] | None = None,
        files: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        splits = {"train": colour_rows(24), "dev": colour_rows(8, 24), "test": colour_rows(8, 32), **(rows or {})}
        given = {name: body for name, body in splits.items() if body is not None}
        for name, body in given.items():
            (folder / f"{name}.jsonl").write_text(jsonl(body))
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        body = {
            "schema_version": 1,
            "name": "colours",
            "instruction": "Name the colour.",
            "data": {name: f"{name}.jsonl" for name in given},
            "output": {"type": "label"},
            "model": {"model_name_or_path": str(tiny_model), "dtype": "float32"},
            "embeddings": {"model_name_or_path": str(tiny_embeddings)},
            # A search of 300 requests has tests of its own.
            "optimise": {"requests": 0},
            **spec,
        }
        kept = {key: value for key, value in body.items() if value is not None}
        (folder / "task.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
        return folder

    return make
