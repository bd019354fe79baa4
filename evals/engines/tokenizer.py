"""A model's folder -> its tokeniser, with a padding token and a chat template: the same for asking and for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
