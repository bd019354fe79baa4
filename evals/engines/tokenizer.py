"""A model's folder -> its tokeniser, with a padding token and a chat template: the same for asking and for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evals.records import content_hash, file_hash

# For a base model that ships no chat template: plain turns, named in the run's notes.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# Classes of transformers that are nothing but the file tokenizer.json.
PLAIN_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def open_tokenizer(folder: Path, *, trust_remote_code: bool = False, padding_side: str = "right") -> tuple[Any, bool]:
    """The tokeniser, and whether its chat template is its own. Raises OSError, ValueError or KeyError where there is none."""
    tokenizer = _class_of(folder).from_pretrained(
        folder, padding_side=padding_side, trust_remote_code=trust_remote_code, local_files_only=True
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    own = bool(tokenizer.chat_template)
    if not own:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer, own


def _class_of(folder: Path) -> Any:
    """The class that `AutoTokenizer` would choose, where that can be seen without it: it imports torch, two seconds of it."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        plain = settings["tokenizer_class"] in PLAIN_CLASSES and "auto_map" not in settings
    except (OSError, ValueError, KeyError, TypeError):
        plain = False
    if plain and (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def adapter_tokenizer(folder: Path) -> bool:
    """Whether what was trained brings a tokeniser of its own (a chat template, and marks for it), to be asked with."""
    return (folder / "tokenizer_config.json").is_file()


def tokenizer_hash(folder: Path) -> str:
    """Of the files of a folder's tokeniser and its template."""
    files = sorted({*folder.glob("tokenizer*"), *folder.glob("*.jinja")})
    return content_hash([[one.name, file_hash(one)] for one in files])


def make_room(model: Any, tokens: int) -> None:
    """Rows for `tokens` tokens in the embeddings and the head, where they have fewer: each new one is the mean of the old ones
    (Hewitt 2021), so that no mark begins as the likeliest token of all."""
    import torch

    old = model.get_input_embeddings().weight.shape[0]
    if tokens <= old:
        return
    model.resize_token_embeddings(tokens, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = layer.weight
            weight[old:] = weight[:old].float().mean(0).to(weight.dtype)
