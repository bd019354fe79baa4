"""Attention over keys and values that sequences share: a prefix is read once for a whole batch, not once a row.

transformers lets a model run with a registered attention function. Ours sees only the tokens of the present forward pass;
what came before them lies in a `Prefix` (the same for all rows) and in `Lanes` (each row's own, written in place, never
copied). The parts are attended to apart and joined by their log-sum-exp, which is exact: softmax over a union of keys is the
weighted mean of the softmaxes over its parts (Juravsky et al. 2024, "Hydragen"; Milakov and Gimelshein 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

NAME = "advisor_shared"
# Scores of one block of queries against all keys, where no fused kernel gives the log-sum-exp (elements).
BLOCK = 1 << 26
# Rows that decode side by side and are read to one length.
BLOCK_ROWS = 16


class UnsupportedError(Exception):
    """The model's attention has a term that this one leaves out (soft-capping, sinks): it runs the plain way instead."""


def register() -> None:
    """Make the name known to transformers. Without a `Pass` the model runs as with its usual attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **more: Any
) -> tuple[Any, None]:
    """query (rows, heads, width, size), key and value (rows, kv heads, width, size) -> (rows, width, heads, size)."""
    this: Pass | None = more.pop("this_pass", None)
    if this is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
        return out
    if more.get("softcap") or more.get("s_aux") is not None or not getattr(module, "is_causal", True):
        raise UnsupportedError(type(module).__name__)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return this.attend(module.layer_idx, query, key, value, scale, more.get("sliding_window")).transpose(1, 2), None


def attend(query: Any, key: Any, value: Any, scale: float, *, causal: bool = False, mask: Any = None) -> tuple[Any, Any]:
    """Softmax attention and the log-sum-exp of its scores: (rows, heads, width, size) and (rows, heads, width), fp32.

    Key and value may have fewer heads than the query (grouped heads). `mask` is what `hidden` makes: 0 where a key is seen,
    minus infinity elsewhere, (rows or 1, 1, width or 1, keys); each query must see a key.
    """
    import torch

    if query.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total = kernel(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
        return out, total
    return _attend_in_blocks(query, key, value, scale, causal=causal, mask=mask)


def hidden(seen: Any, dtype: Any) -> Any:
    """What is added to the scores so that only the keys that are `seen` (boolean) count."""
    import torch

    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _attend_in_blocks(
    query: Any, key: Any, value: Any, scale: float, *, causal: bool = False, mask: Any = None
) -> tuple[Any, Any]:
    """The same with plain products, a block of queries at a time, so that the scores stay small."""
    import torch

    rows, heads, width, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    step = max(1, BLOCK // (rows * heads * keys))
    outs, totals = [], []
    for start in range(0, width, step):
        part = query[:, :, start : start + step]
        grouped = part.reshape(rows, kv_heads, -1, size)
        scores = torch.matmul(grouped, key.transpose(-1, -2)).float().mul_(scale).view(rows, heads, -1, keys)
        if causal:
            at = torch.arange(start, start + part.shape[2], device=query.device)
            scores.masked_fill_(torch.arange(keys, device=query.device) > at[:, None], float("-inf"))
        if mask is not None:
            scores += mask if mask.shape[2] == 1 else mask[:, :, start : start + step]
        totals.append(scores.logsumexp(-1))
        weights = (scores - totals[-1][..., None]).exp_().to(value.dtype)
        outs.append(torch.matmul(weights.view(rows, kv_heads, -1, keys), value).view(rows, heads, -1, size))
    return torch.cat(outs, 2), torch.cat(totals, 2)


def joined(one: Any, one_total: Any, two: Any, two_total: Any) -> Any:
    """Attention over two sets of keys together, from the attention over each and its log-sum-exp."""
    share = (one_total - two_total).sigmoid().unsqueeze(-1)
    return two.float().lerp(one.float(), share).to(two.dtype)


@dataclass
class Prefix:
    """Keys and values of tokens that every row begins with: a layer's are (1, kv heads, length, size)."""

    ids: tuple[int, ...]
    keys: dict[int, Any] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def attend(self, layer: int, query: Any, scale: float, window: int | None, positions: Any) -> tuple[Any, Any] | None:
        """Each query over the whole prefix; None where a sliding window has left it behind for all of them.

        All rows' queries stand in one product: `positions` (rows, width) are theirs, for the window.
        """
        rows, heads, width, size = query.shape
        key, value = self.keys[layer], self.values[layer]
        kv_heads = key.shape[1]
        flat = query.reshape(rows, kv_heads, -1, size).transpose(0, 1).reshape(1, kv_heads, -1, size)
        mask = None
        if window is not None:
            import torch

            places = torch.arange(len(self), device=query.device)
            seen = places > positions[:, None, :, None] - window  # (rows, 1, width, length)
            if not bool(seen.any()):
                return None
            group = heads // kv_heads
            mask = seen.expand(rows, group, width, len(self)).reshape(1, 1, -1, len(self))
            blind = ~mask.any(-1)
            mask = mask | blind.unsqueeze(-1)
        out, total = attend(flat, key, value, scale, mask=None if mask is None else hidden(mask, query.dtype))
        if mask is not None:
            total = total.masked_fill(blind, float("-inf"))

        def back(flat: Any, *end: int) -> Any:
            return (
                flat.reshape(kv_heads, rows, heads // kv_heads, width, *end).transpose(0, 1).reshape(rows, heads, width, *end)
            )

        return back(out, size), back(total)


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `like`'s dtype and device. Zeros, because a key that is masked still meets its value: nought times NaN is NaN."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    import numpy as np
    import torch

    # The system hands out zeroed pages when they are first written: lanes as long as the longest answer allowed cost nothing
    # until they are filled. torch would write all of them at once. Vectors want an address that 64 divides.
    size = math.prod(shape) * like.element_size()
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + size]).view(like.dtype).view(shape)


class Lanes:
    """Each row's own keys and values, (lanes, kv heads, capacity, size) a layer, written where they stay.

    The rows in use are the first ones: a row that leaves is filled with the last.
    """

    def __init__(self, lanes: int, capacity: int) -> None:
        self.lanes = lanes
        self.capacity = capacity
        self.keys: dict[int, Any] = {}
        self.values: dict[int, Any] = {}

    def write(self, layer: int, first: int, filled: Any, key: Any, value: Any) -> None:
        """Put new keys behind those that are there: `filled` is one length for all rows, or a tensor of each one's (width 1)."""
        if layer not in self.keys:
            for homes, new in ((self.keys, key), (self.values, value)):
                homes[layer] = _zeros(new, (self.lanes, new.shape[1], self.capacity, new.shape[3]))
        rows, width = key.shape[0], key.shape[2]
        for home, new in ((self.keys[layer], key), (self.values[layer], value)):
            part = home[first : first + rows]
            if isinstance(filled, int):
                part[:, :, filled : filled + width] = new
            else:
                part[filled.rows, :, filled.columns] = new[:, :, 0]

    def copy(self, source: int, target: int, length: int) -> None:
        for home in (*self.keys.values(), *self.values.values()):
            home[target, :, :length] = home[source, :, :length]

    def seed(self, prefix: Prefix, first: int, rows: int) -> None:
        """Copy a group's own prefix into the rows of its members."""
        for layer, key in prefix.keys.items():
            self.write(layer, first, 0, key.expand(rows, -1, -1, -1), prefix.values[layer].expand(rows, -1, -1, -1))


@dataclass(frozen=True)
class Places:
    """Where each row's next token is written: its row and its column."""

    rows: Any
    columns: Any


class Pass:
    """One forward pass: what its tokens may look at beside themselves. `positions` (rows, width) count from the prompt's start."""

    def __init__(self, positions: Any, prefix: Prefix | None = None) -> None:
        self.positions = positions
        self.prefix = prefix
        self.longest = int(positions.max()) + 1
        self._masks: dict[Any, Any] = {}

    def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float, window: int | None) -> Any:
        if window is not None and self.longest <= window:
            window = None
        own, total = self.own(layer, query, key, value, scale, window)
        if self.prefix is None:
            return own
        shared = self.prefix.attend(layer, query, scale, window, self.positions)
        return own if shared is None else joined(*shared, own, total)

    def own(self, layer: int, query: Any, key: Any, value: Any, scale: float, window: int | None) -> tuple[Any, Any]:
        raise NotImplementedError

    def mask(self, name: Any, seen: Callable[[], Any], dtype: Any) -> Any:
        """`hidden(seen())`, made once for all layers."""
        if name not in self._masks:
            self._masks[name] = hidden(seen(), dtype)
        return self._masks[name]

    def within(self, seen: Any, key_positions: Any, window: int | None) -> Any:
        """`seen` without the keys that a sliding window hides: a query sees its `window` last positions, itself included."""
        if window is None:
            return seen
        near = key_positions[:, None, None, :] > self.positions[:, None, :, None] - window
        return near if seen is None else seen & near


class Packed(Pass):
    """Tokens that see one another as `seen` (rows, 1, width, width) says, or causally; nothing is kept but into `record`."""

    def __init__(self, positions: Any, prefix: Prefix | None = None, *, seen: Any = None, record: Prefix | None = None) -> None:
        super().__init__(positions, prefix)
        self.seen = seen
        self.record = record

    def own(self, layer: int, query: Any, key: Any, value: Any, scale: float, window: int | None) -> tuple[Any, Any]:
        if self.record is not None:
            self.record.keys[layer], self.record.values[layer] = key, value
        if self.seen is None and window is None:
            return attend(query, key, value, scale, causal=True)
        mask = self.mask(window, lambda: self.within(self._seen(key.shape[2]), self.positions, window), query.dtype)
        return attend(query, key, value, scale, mask=mask)

    def _seen(self, width: int) -> Any:
        import torch

        if self.seen is not None:
            return self.seen
        return torch.ones(width, width, dtype=torch.bool, device=self.positions.device).tril()[None, None]


class Filling(Pass):
    """New rows' prompts, padded on the right, behind `filled` tokens of their own that are in the lanes already."""

    def __init__(
        self, lanes: Lanes, first: int, filled: int, width: int, rows: int, prefix: Prefix | None, device: str
    ) -> None:
        import torch

        start = (len(prefix) if prefix else 0) + filled
        self.start = start - filled
        super().__init__(torch.arange(start, start + width, device=device).expand(rows, width), prefix)
        self.lanes, self.first, self.filled = lanes, first, filled

    def own(self, layer: int, query: Any, key: Any, value: Any, scale: float, window: int | None) -> tuple[Any, Any]:
        self.lanes.write(layer, self.first, self.filled, key, value)
        if not self.filled and window is None:
            # What is padded on the right comes last: causal attention never lets a real token see it.
            return attend(query, key, value, scale, causal=True)
        rows, width = key.shape[0], key.shape[2]
        end = self.filled + width
        whole = slice(self.first, self.first + rows)
        mask = self.mask(window, lambda: self._seen(rows, end, window), query.dtype)
        return attend(query, self.lanes.keys[layer][whole, :, :end], self.lanes.values[layer][whole, :, :end], scale, mask=mask)

    def _seen(self, rows: int, end: int, window: int | None) -> Any:
        import torch

        columns = torch.arange(end, device=self.positions.device)
        causal = (columns <= columns[self.filled :, None])[None, None]
        return self.within(causal, (columns + self.start).expand(rows, end), window)


class Decoding(Pass):
    """One new token for each of the first rows; `filled` are the tokens that each has in its lane.

    Neighbours of like length are attended to in blocks, each as far as its own longest row: lanes are read, not their padding.
    """

    def __init__(self, lanes: Lanes, filled: Sequence[int], prefix: Prefix | None, device: str) -> None:
        import torch

        columns = torch.tensor(filled, device=device)
        self.start = len(prefix) if prefix else 0
        super().__init__((columns + self.start)[:, None], prefix)
        self.lanes = lanes
        self.places = Places(torch.arange(len(filled), device=device), columns)
        places = torch.arange(max(filled) + 1, device=device)
        self.blocks = []
        for first in range(0, len(filled), BLOCK_ROWS):
            rows = slice(first, min(first + BLOCK_ROWS, len(filled)))
            end = max(filled[rows]) + 1
            ragged = min(filled[rows]) + 1 < end
            self.blocks.append((rows, end, ragged))
        self.columns, self.filled = places, columns

    def own(self, layer: int, query: Any, key: Any, value: Any, scale: float, window: int | None) -> tuple[Any, Any]:
        import torch

        rows, heads, _, size = query.shape
        self.lanes.write(layer, 0, self.places, key, value)
        keys, values = self.lanes.keys[layer], self.lanes.values[layer]
        # The heads of one group ask the same keys: they stand as the rows of one product.
        grouped = query.reshape(rows, keys.shape[1], -1, size)
        outs, totals = [], []
        for block, end, ragged in self.blocks:
            mask = None
            if ragged or window is not None:
                mask = self.mask((block.start, window), lambda: self._seen(block, end, window), query.dtype)  # noqa: B023
            out, total = attend(grouped[block], keys[block, :, :end], values[block, :, :end], scale, mask=mask)
            outs.append(out)
            totals.append(total)
        return torch.cat(outs).reshape(rows, heads, 1, size), torch.cat(totals).reshape(rows, heads, 1)

    def _seen(self, block: slice, end: int, window: int | None) -> Any:
        """(rows of the block, 1, 1, end): a row sees what it has filled, its new token, and no more than its window."""
        seen = self.columns[:end] <= self.filled[block, None]
        if window is not None:
            seen = seen & (self.columns[:end] > self.filled[block, None] - window)
        return seen[:, None, None, :]
