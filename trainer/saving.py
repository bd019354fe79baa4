"""Trained weights on disk: a folder that is there whole or not at all, the same bytes for the same weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The folder of what was trained, in its job's: LoRA and its like, or all weights.
ADAPTER, MODEL = "adapter", "model"
# What a model needs beside its weights and their settings, to be asked as its base is.
TOKENIZER = (
    "generation_config.json",
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
)


def save_weights(
    model: Any,
    folder: Path,
    name: str = "",
    *,
    tokenizer_of: Path | None = None,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """What was trained, under `folder/name`, which replaces what was there in one move: peft's files, or a whole model in fp32 with
    its settings, and with the tokeniser of the model in `tokenizer_of`, so that it can be asked like any other.

    Without a name it is `adapter` or `model`, by what it is. `beside` writes what else belongs into the folder.
    """
    is_adapter = hasattr(model, "peft_config")
    name = name or (ADAPTER if is_adapter else MODEL)
    new, final = folder / f".{name}.new", folder / name
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new, safe_serialization=True)
    (new / "README.md").unlink(missing_ok=True)
    if is_adapter:
        sort_lists(new / "adapter_config.json")
    elif tokenizer_of:
        copy_tokenizer(tokenizer_of, new)
        _as_it_was(tokenizer_of / "config.json", new / "config.json", "use_cache")
    if beside:
        beside(new)
    bring_to_disk(new)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(new, final)
    return final


def load_weights(model: Any, folder: Path) -> None:
    """The weights of `save_weights`, bit for bit, into the model's own."""
    from safetensors.torch import load_file

    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        return
    own = model.state_dict()
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            own[name].copy_(tensor)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The tokeniser, chat template and generation settings of a model's folder, byte for byte."""
    for pattern in TOKENIZER:
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _as_it_was(base: Path, config: Path, key: str) -> None:
    """A setting that trainers change for themselves, as the base has it."""
    was, own = json.loads(base.read_text()), json.loads(config.read_text())
    if key in was:
        own[key] = was[key]
    else:
        own.pop(key, None)
    config.write_text(json.dumps(own, indent=2, sort_keys=True) + "\n")


def bring_to_disk(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def sort_lists(config: Path) -> None:
    """peft writes sets in the order of Python's string hashes, which changes from process to process: sort them."""
    body = json.loads(config.read_text())
    for key, value in body.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            body[key] = sorted(value)
    config.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
