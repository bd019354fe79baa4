"""What a training holds in memory, without running it: its own model is built without weights and run on shapes alone.

So the count follows the code that trains (fused layers, shared beginnings, what autograd keeps of them), and the model's own
configuration. Two layers are enough: all but the first are alike.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.fused import fuse_lora
from trainer.fused_layer import fuse_layers
from trainer.labelled_head import CHUNK
from trainer.prefix import WORTHWHILE, share_prefix, supports
from trainer.recipe import Recipe

# A frozen weight in NF4 with double quantisation (Dettmers et al. 2023: 4.127 bits), in bytes.
NF4_BYTES = 0.516
# DPO makes logits in tiles, and folds each with so many copies of it in fp32 (trl's torch path, where there is no Triton).
TILE_ROWS, TILE_COPIES = 4096, 8


@dataclass(frozen=True)
class Batch:
    """The largest batch of a training: rows padded to `length` tokens, of which all rows share the first `prefix`, and the tokens in all
    rows that have a label."""

    rows: int
    length: int
    labels: int
    prefix: int = 0


@dataclass(frozen=True)
class Footprint:
    """In bytes: the weights in memory and on disk; what is trained (weight, gradient and both moments); what the forward pass keeps for
    the backward pass; the logits with their gradient. `trained` counts weights, and `span` the numbers that all layers hold of a token."""

    weights: float
    file: float
    trained: int
    learning: float
    kept: float
    logits: float
    span: int = 0


def footprint(model_folder: Path, recipe: Recipe, batch: Batch, dtype: str, device: str) -> Footprint:
    """Takes about half a second. Raises whatever transformers does where it cannot build the model from its configuration."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False, local_files_only=True)
    text = config.get_text_config()
    kind = getattr(torch, dtype)
    # All weights learn in fp32.
    held = kind if recipe.use_peft else torch.float32
    one, two = (_Layers(config, recipe, held, device, count) for count in (1, 2))
    layers = text.num_hidden_layers
    parameters = one.parameters + (two.parameters - one.parameters) * (layers - 1)
    trained = one.trained + (two.trained - one.trained) * (layers - 1)
    first, both = one.kept(batch), two.kept(batch)
    each = both - first
    width = 2 if dtype == "bfloat16" else 4
    if recipe.gradient_checkpointing:
        # Of each layer its input alone, and all of the one that is computed again.
        tokens = batch.rows * batch.length
        kept = layers * tokens * text.hidden_size * width + each
    else:
        kept = first + (layers - 1) * each
    if not recipe.use_peft and dtype == "bfloat16":
        # Autocast keeps the copies that it makes of the weights until the backward pass is through.
        kept += parameters * width
    frozen = parameters - trained
    return Footprint(
        weights=frozen * (NF4_BYTES if recipe.load_in_4bit else held.itemsize),
        file=float(sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))),
        trained=trained,
        # fp32: the weight, its gradient and two moments of Adam.
        learning=trained * 16.0,
        kept=float(kept),
        logits=_logits(recipe, batch.labels, text.vocab_size, width),
        span=layers * text.hidden_size,
    )


def _logits(recipe: Recipe, labels: int, vocabulary: int, width: int) -> float:
    if recipe.method == "dpo":
        return min(labels, TILE_ROWS) * min(vocabulary, CHUNK) * (width + 4.0 * TILE_COPIES)
    # fp32 logits, and their gradient in the model's dtype.
    return labels * vocabulary * (4.0 + width)


class _Layers:
    """The recipe's model with so many layers, on no device."""

    def __init__(self, config: Any, recipe: Recipe, dtype: Any, device: str, layers: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from trainer.model import SHORT_ROW, peft_config

        config = copy.deepcopy(config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        self.short = SHORT_ROW if device == "cpu" else 0
        self.device = device
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            self.parameters = sum(one.numel() for one in model.parameters())
            if recipe.use_peft:
                from peft import get_peft_model

                with warnings.catch_warnings():
                    # peft reads a setting of transformers' by its old name.
                    warnings.simplefilter("ignore", FutureWarning)
                    model = get_peft_model(model, peft_config(recipe))
                fuse_lora(model)
        self.model = model.train()
        self.base = model.get_base_model() if recipe.use_peft else model
        self.trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        self.parameters += self.trained if recipe.use_peft else 0

    def kept(self, batch: Batch) -> int:
        """Bytes that autograd keeps of a forward pass up to the last hidden state, weights apart."""
        import torch

        if batch.prefix >= WORTHWHILE and self.device == "cpu" and supports(self.base):
            layout = share_prefix(self.base)
            layout.prefix, layout.tails = batch.prefix, batch.rows
            fuse_layers(self.model, layout)
            shape = (1, batch.prefix + batch.rows * (batch.length - batch.prefix))
        else:
            self.base.set_attn_implementation("eager" if batch.length <= self.short else "sdpa")
            shape = (batch.rows, batch.length)
        ids = torch.zeros(shape, dtype=torch.long, device="meta")
        own = {one.untyped_storage()._cdata for one in self.model.parameters()}
        held: dict[int, Any] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                # The tensor beside its size: a storage that is let go of may give its address to another.
                held[storage._cdata] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = self.base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        del out
        return sum(size for size, _ in held.values())
