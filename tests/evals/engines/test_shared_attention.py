"""Attention in parts against attention as a whole, and the way for devices without torch's CPU kernel against that kernel."""

from __future__ import annotations

from typing import Any

import pytest

from evals.engines import attention


def tensors(rows: int, width: int, keys: int, heads: int = 6, kv_heads: int = 2, size: int = 8) -> tuple[Any, Any, Any]:
    import torch

    torch.manual_seed(rows + width + keys)
    query = torch.randn(rows, heads, width, size)
    return query, torch.randn(rows, kv_heads, keys, size), torch.randn(rows, kv_heads, keys, size)


def whole(query: Any, key: Any, value: Any, scale: float, seen: Any = None) -> tuple[Any, Any]:
    """The definition, in double precision."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.double().repeat_interleave(groups, 1) for one in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * scale
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def close(one: tuple[Any, Any], two: tuple[Any, Any]) -> bool:
    return all(bool((left.double() - right.double()).abs().max() < 1e-4) for left, right in zip(one, two, strict=True))


@pytest.mark.parametrize("block", [1, 64, 1 << 26])
@pytest.mark.parametrize("kind", ["all", "causal", "mask", "row mask"])
def test_both_ways_follow_the_definition(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(attention, "BLOCK", block)
    query, key, value = tensors(3, 7, 7)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    seen = {
        "all": None,
        "causal": causal[None, None],
        "mask": (torch.rand(3, 1, 7, 7) < 0.5) | torch.eye(7, dtype=torch.bool),
        "row mask": (torch.arange(7) < torch.tensor([[3], [7], [1]]))[:, None, None],
    }[kind]
    expected = whole(query, key, value, 0.3, seen)
    given: dict[str, Any] = {"causal": True} if kind == "causal" else {}
    if kind in {"mask", "row mask"}:
        given = {"mask": attention.hidden(seen, query.dtype)}
    assert close(attention.attend(query, key, value, 0.3, **given), expected)
    assert close(attention._attend_in_blocks(query, key, value, 0.3, **given), expected)


def test_parts_joined_are_the_whole() -> None:
    import torch

    query, key, value = tensors(2, 5, 11)
    one = attention.attend(query, key[:, :, :4], value[:, :, :4], 0.3)
    two = attention.attend(query, key[:, :, 4:], value[:, :, 4:], 0.3)
    expected, _ = whole(query, key, value, 0.3)
    assert bool((attention.joined(*one, *two).double() - expected).abs().max() < 1e-4)
    # A part that nothing is seen of counts for nothing, whatever it holds.
    blind = torch.full_like(one[1], float("-inf"))
    assert bool((attention.joined(one[0] * 100, blind, *two) == two[0]).all())


@pytest.mark.parametrize("window", [None, 3, 6, 40])
def test_a_prefix_is_seen_by_all_rows_as_far_as_their_windows_reach(window: int | None) -> None:
    import torch

    query, key, value = tensors(3, 2, 5)
    prefix = attention.Prefix((1,) * 5, {0: key[:1]}, {0: value[:1]})
    positions = torch.tensor([[5, 6], [7, 8], [12, 13]])
    found = prefix.attend(0, query, 0.3, window, positions)
    seen = None if window is None else torch.arange(5) > positions[:, None, :, None] - window
    expected = whole(query, key[:1].expand(3, -1, -1, -1), value[:1].expand(3, -1, -1, -1), 0.3, seen)
    assert found is not None
    reached = torch.ones(3, 2, dtype=torch.bool) if seen is None else seen.any(-1)[:, 0]
    for row in range(3):
        for at in range(2):
            if reached[row, at]:
                assert close((found[0][row, :, at], found[1][row, :, at]), (expected[0][row, :, at], expected[1][row, :, at]))
            else:
                assert bool((found[1][row, :, at] == float("-inf")).all())
    assert prefix.attend(0, query, 0.3, 2, positions + 9) is None


def test_a_lane_is_written_where_it_stays_and_padding_is_zero() -> None:
    import torch

    lanes = attention.Lanes(4, 6)
    _, key, value = tensors(2, 1, 3)
    lanes.write(0, 1, 0, key, value)
    assert bool((lanes.keys[0][1:3, :, :3] == key).all())
    assert lanes.keys[0].data_ptr() % 64 == 0
    assert not lanes.keys[0][[0, 3]].any()
    one = torch.full((2, 2, 1, 8), 5.0)
    lanes.write(0, 1, attention.Places(torch.arange(2), torch.tensor([5, 3])), one, one)
    assert bool((lanes.values[0][1, :, 5] == 5).all())
    assert bool((lanes.values[0][2, :, 3] == 5).all())
    assert not lanes.values[0][1, :, 3:5].any()
