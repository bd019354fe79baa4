"""Training rows that begin alike, and the ordinary padded batch of them."""

from __future__ import annotations

from typing import Any

import torch

from trainer.data import IGNORED

PREFIX = [1, 20, 21, 22, 23, 24, 25, 26]


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in (9, 12, 7):
        tail = torch.randint(30, 90, (length,), generator=generator).tolist()
        ids = [*PREFIX, *tail]
        made.append({"input_ids": ids, "labels": [IGNORED] * (len(PREFIX) + 4) + ids[len(PREFIX) + 4 :]})
    return made


def padded(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
    width = max(len(row["input_ids"]) for row in batch)

    def fill(name: str, value: int) -> Any:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in batch])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", IGNORED), "attention_mask": torch.tensor(mask)}


def beginning(prefix: int) -> list[dict[str, list[int]]]:
    """The rows, alike up to `prefix`."""
    made = rows()
    for at, row in enumerate(made):
        row["input_ids"][prefix : len(PREFIX)] = [50 + at] * (len(PREFIX) - prefix)
    return made
