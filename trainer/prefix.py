"""Rows that begin alike (system turn, instruction) pay for their beginning once a batch, not once a row.

A batch is laid out as one sequence: the common beginning, then every row's own tail, padded to one width. Each tail sees
the beginning and itself. The result is exact: keys and values of the beginning are the same for all rows, and their
gradients add up. With an instruction of a third of the row this saves a third of the work, with a long one nearly all.
Source of the layout: tree attention, as in shared-prefix decoding (Juravsky et al. 2024, Hydragen).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data import IGNORED

ATTENTION = "shared_prefix"
# Below this many common tokens the plain layout is as fast.
WORTHWHILE = 16
# Families whose attention is softmax(q k / sqrt(d)) over all earlier tokens, and nothing else.
PLAIN_ATTENTION = ("llama", "qwen2", "qwen3", "smollm3")


@dataclass
class Layout:
    """How the batch in hand is laid out: tokens of the common beginning, and how many tails follow it."""

    prefix: int = 0
    tails: int = 0


def common_prefix(rows: Sequence[dict[str, list[int]]]) -> int:
    """How many tokens all rows begin with. A prompt's last token stays outside: it predicts the row's first answer token."""
    low, high = min(row["input_ids"] for row in rows), max(row["input_ids"] for row in rows)
    limit = min(next(at for at, label in enumerate(row["labels"]) if label != IGNORED) for row in rows) - 1
    length = 0
    while length < limit and low[length] == high[length]:
        length += 1
    return length


def supports(model: Any) -> bool:
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ()
    sliding = getattr(config, "use_sliding_window", False) or "sliding_attention" in layers
    return config.model_type in PLAIN_ATTENTION and not sliding and not getattr(config, "attention_dropout", 0.0)


def collator(prefix: int, pad: int) -> Callable[[Sequence[dict[str, list[int]]]], dict[str, Any]]:
    """Rows -> `input_ids`, `position_ids`, `labels`, each (1, prefix + tails x width); `layout` is (prefix, tails)."""
    import torch

    def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows) - prefix
        ids, labels, positions = list(rows[0]["input_ids"][:prefix]), [IGNORED] * prefix, list(range(prefix))
        for row in rows:
            padding = prefix + width - len(row["input_ids"])
            ids += row["input_ids"][prefix:] + [pad] * padding
            labels += row["labels"][prefix:] + [IGNORED] * padding
            positions += range(prefix, prefix + width)
        return {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            "labels": torch.tensor([labels]),
            "layout": torch.tensor([prefix, len(rows)]),
            "tokens": torch.tensor(sum(len(row["input_ids"]) for row in rows)),
        }

    return collate


def share_prefix(model: Any) -> Layout:
    """Give the model the attention of this layout; what is written into the returned object holds for the next forward."""
    from transformers import AttentionInterface, AttentionMaskInterface

    layout = Layout()

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Any, None]:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return tree_attention(query, key, value, layout.prefix, layout.tails, scale), None

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    model.set_attn_implementation(ATTENTION)
    return layout


def tree_attention(query: Any, key: Any, value: Any, prefix: int, tails: int, scale: float) -> Any:
    """Causal attention of a (1, heads, prefix + tails x width, size) batch in which no tail sees another.

    Keys and values may have fewer heads (grouped queries). Returns (1, length, heads, size).
    """
    import torch

    _, heads, length, size = query.shape
    shared = key.shape[1]
    group, width = heads // shared, (length - prefix) // tails
    query = query[0].view(shared, group, length, size) * scale
    key, value = key[0], value[0]
    head_keys, head_values = key[:, :prefix], value[:, :prefix]

    def future(rows: int) -> Any:
        return torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1).repeat(group, 1)

    # The beginning sees itself.
    asked = query[:, :, :prefix].reshape(shared, group * prefix, size)
    scores = (asked @ head_keys.transpose(1, 2)).masked_fill(future(prefix), float("-inf"))
    first = (torch.softmax(scores, -1) @ head_values).view(shared, group, prefix, size)

    # Every tail sees the beginning and itself.
    asked = query[:, :, prefix:].reshape(shared, group, tails, width, size).transpose(1, 2)
    asked = asked.reshape(shared, tails, group * width, size)
    own_keys = key[:, prefix:].reshape(shared, tails, width, size)
    own_values = value[:, prefix:].reshape(shared, tails, width, size)
    to_head = asked.view(shared, -1, size) @ head_keys.transpose(1, 2)
    to_own = (asked @ own_keys.transpose(2, 3)).masked_fill(future(width), float("-inf"))
    weights = torch.softmax(torch.cat([to_head.view(shared, tails, -1, prefix), to_own], -1), -1)
    from_head = weights[..., :prefix].reshape(shared, -1, prefix) @ head_values
    rest = from_head.view(shared, tails, -1, size) + weights[..., prefix:] @ own_values
    rest = rest.view(shared, tails, group, width, size).transpose(1, 2).reshape(shared, group, tails * width, size)
    return torch.cat([first, rest], 2).view(1, heads, length, size).transpose(1, 2)
