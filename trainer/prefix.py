"""Rows that begin alike (system turn, instruction) pay for their beginning once a batch, not once a row.

A batch is laid out as one sequence: the common beginning, then every row's own tail, padded to one width. Each tail sees
the beginning and itself. The result is exact: keys and values of the beginning are the same for all rows, and their
gradients add up. With an instruction of a third of the row this saves a third of the work, with a long one nearly all.
Source of the layout: tree attention, as in shared-prefix decoding (Juravsky et al. 2024, Hydragen).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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


def collator(pad: int) -> Callable[[Sequence[dict[str, list[int]]]], dict[str, Any]]:
    """Rows -> `input_ids`, `position_ids`, `labels`, each (1, prefix + tails x width); `layout` is (prefix, tails).

    The prefix is what the rows of this batch have in common: one without replay shares the instruction too.
    """
    import torch

    def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        prefix = common_prefix(rows)
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

    heads, shared = query.shape[1], key.shape[1]
    query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))
    width = (query.shape[0] - prefix) // tails
    found = []
    for tail in (False, True) if prefix else (True,):
        asked = _grouped(query, prefix, tails, shared, tail=tail) * scale
        keys, values = (_seen(one, prefix, tails, tail=tail) for one in (key, value))
        weights = _weights(asked, keys, prefix if tail else 0, width if tail else prefix)
        found.append(_ungrouped(weights @ values, tails, shared, heads, tail=tail).reshape(-1, heads, query.shape[-1]))
    return torch.cat(found)[None]


# Up to so many keys a row, its attention weights are kept for the backward pass; beyond, they are made again there.
KEPT_KEYS = 512


def attention_forward(qkv: Any, layout: Layout, heads: int, shared: int) -> tuple[Any, list[Any]]:
    """`tree_attention` of queries, keys and values beside each other, (n, (heads + 2 shared) x size), without autograd.

    Returns (n, heads x size), and what `attention_backward` needs. Each tail's keys are the beginning's and its own, side by side: one
    product instead of two and a sum, at the cost of a copy of the beginning's keys for each tail.
    """
    import torch

    size = qkv.shape[-1] // (heads + 2 * shared)
    prefix, tails, width = _sizes(qkv, layout)
    query, key, value = qkv.view(-1, heads + 2 * shared, size).split([heads, shared, shared], 1)
    out = torch.empty(qkv.shape[0], heads, size, dtype=qkv.dtype, device=qkv.device)
    kept: list[Any] = []
    for tail in (False, True):
        if not (tail or prefix):
            kept += [None] * 4
            continue
        asked = _grouped(query, prefix, tails, shared, tail=tail) * size**-0.5
        keys, values = (_seen(one, prefix, tails, tail=tail) for one in (key, value))
        weights = _weights(asked, keys, prefix if tail else 0, width if tail else prefix)
        _write(weights @ values, out, prefix, tails, shared, tail=tail)
        kept += [asked, keys, values, weights if keys.shape[1] <= KEPT_KEYS else None]
    return out.view(qkv.shape[0], -1), kept


def attention_backward(grad: Any, kept: Sequence[Any], layout: Layout, heads: int, shared: int) -> Any:
    """The gradient of `qkv` from that of `attention_forward`'s result (n, heads x size)."""
    import torch

    size = grad.shape[-1] // heads
    prefix, tails, width = _sizes(grad, layout)
    out = torch.empty(grad.shape[0], heads + 2 * shared, size, dtype=grad.dtype, device=grad.device)
    to_query, to_key, to_value = out.split([heads, shared, shared], 1)
    beginnings = []
    for tail in (True, False):
        if not (tail or prefix):
            continue
        asked, keys, values, weights = kept[4 * tail : 4 * tail + 4]
        if weights is None:
            weights = _weights(asked, keys, prefix if tail else 0, width if tail else prefix)
        above = _grouped(grad.view(-1, heads, size), prefix, tails, shared, tail=tail)
        scores = torch._softmax_backward_data(above @ values.transpose(1, 2), weights, -1, grad.dtype)
        _write((scores @ keys).mul_(size**-0.5), to_query, prefix, tails, shared, tail=tail)
        for target, found in ((to_key, scores.transpose(1, 2) @ asked), (to_value, weights.transpose(1, 2) @ above)):
            if tail:
                of_tails = found.view(shared, tails, prefix + width, size)
                target[prefix:].view(tails, width, shared, size).copy_(of_tails[:, :, prefix:].permute(1, 2, 0, 3))
                beginnings.append(of_tails[:, :, :prefix].sum(1))
            else:
                target[:prefix] = (found + beginnings.pop(0)).transpose(0, 1)
    return out.view(grad.shape[0], -1)


def _sizes(flat: Any, layout: Layout) -> tuple[int, int, int]:
    """Tokens of the beginning, number of tails, tokens of a tail."""
    return layout.prefix, layout.tails, (flat.shape[0] - layout.prefix) // layout.tails


def _grouped(query: Any, prefix: int, tails: int, shared: int, *, tail: bool) -> Any:
    """Queries (n, heads, size) of the tails or of the beginning, a row for each that shares its keys: (parts, group x tokens, size)."""
    group, size = query.shape[1] // shared, query.shape[2]
    part, parts = (query[prefix:], tails) if tail else (query[:prefix], 1)
    return part.reshape(parts, -1, shared, group, size).permute(2, 0, 3, 1, 4).reshape(shared * parts, -1, size)


def _ungrouped(found: Any, tails: int, shared: int, heads: int, *, tail: bool) -> Any:
    """The inverse of `_grouped`, as a view (parts, tokens, shared, group, size)."""
    found = found.view(shared, tails if tail else 1, heads // shared, -1, found.shape[-1])
    return found.permute(1, 3, 0, 2, 4)


def _write(found: Any, out: Any, prefix: int, tails: int, shared: int, *, tail: bool) -> None:
    """`_ungrouped` into its place in `out` (n, heads, size)."""
    found = _ungrouped(found, tails, shared, out.shape[1], tail=tail)
    (out[prefix:] if tail else out[:prefix]).view(found.shape).copy_(found)


def _seen(key: Any, prefix: int, tails: int, *, tail: bool) -> Any:
    """Keys or values (n, shared, size) that the beginning sees, or each tail: (parts, tokens, size)."""
    import torch

    head = key[:prefix].transpose(0, 1)
    if not tail:
        return head
    shared, size = key.shape[1:]
    own = key[prefix:].reshape(tails, -1, shared, size).permute(2, 0, 1, 3)
    return torch.cat([head[:, None].expand(-1, tails, -1, -1), own], 2).view(shared * tails, -1, size)


def _weights(asked: Any, keys: Any, before: int, width: int) -> Any:
    """Attention weights (parts, group x width, before + width): all that stand before, and causally the own."""
    import torch

    scores = asked @ keys.transpose(1, 2)
    scores.masked_fill_(_future(width, asked.shape[1] // width, before, asked.device), float("-inf"))
    return torch.softmax(scores, -1)


@lru_cache(maxsize=4)
def _future(width: int, group: int, before: int, device: Any) -> Any:
    """What a row must not see: the same for all layers of a batch."""
    import torch

    return torch.ones(width, before + width, dtype=torch.bool, device=device).triu(before + 1).repeat(group, 1)
