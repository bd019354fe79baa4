"""Rows with two answers as token ids, in the columns that trl's DPOTrainer trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from evals.candidate import PromptFormat
from evals.errors import AdvisorError
from evals.events import Note, OnEvent
from evals.task.example import Example
from trainer.data import IGNORED, labelled
from trainer.recipe import Recipe


class Pair(TypedDict):
    """One prompt and its two answers, each up to its end of turn; `length` is that of the prompt with the longer answer."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    length: int


@dataclass(frozen=True)
class Pairs:
    """Pairs to train on with the ids of their rows, and how many were left out: too long, or two answers that are the same. `truncated`
    of the pairs were cut."""

    rows: tuple[Pair, ...]
    ids: tuple[str, ...]
    dropped: int
    truncated: int = 0

    @property
    def longest(self) -> int:
        return max((row["length"] for row in self.rows), default=0)


def encode_pairs(
    tokenizer: Any, fmt: PromptFormat, examples: Sequence[Example], recipe: Recipe, split: str, on_event: OnEvent
) -> Pairs:
    """All pairs of a split. What is cut or left out is counted aloud. Raises AdvisorError where a row has no pair or nothing is left."""
    rows: list[Pair] = []
    ids: list[str] = []
    lost = alike = truncated = 0
    for example in examples:
        found, long = encode_pair(tokenizer, fmt, example, recipe)
        if found is None:
            lost += 1
        elif found["chosen_ids"] == found["rejected_ids"]:
            alike += 1
        else:
            rows.append(found)
            ids.append(example.id)
            truncated += long
    limit = f"max_length ({recipe.max_length} tokens)"
    too_long = "are longer than" if recipe.truncation_mode == "drop" else "hold too little to compare when cut to"
    if not rows:
        raise AdvisorError(
            f"none of {len(examples)} rows gives a pair: {lost} {too_long} {limit}, {alike} have one and the same answer twice",
            where=f"{split} pairs",
            do="give pairs of a better and a worse answer (`data: {preferences: …}`), or raise `max_length` under `train:`.",
        )
    end = "end" if recipe.truncation_mode == "keep_start" else "beginning"
    for count, what in (
        (
            lost,
            f"{too_long} {limit} and left out" if recipe.truncation_mode == "drop" else f"{too_long} {limit}, and are left out",
        ),
        (truncated, f"are cut to {limit} at their {end} ({recipe.truncation_mode})"),
        (alike, "have one and the same answer twice and are left out"),
    ):
        if count:
            on_event(Note(f"{count} of {len(examples)} {split} pairs {what}", "warning"))
    return Pairs(tuple(rows), tuple(ids), lost + alike, truncated)


def encode_pair(tokenizer: Any, fmt: PromptFormat, example: Example, recipe: Recipe) -> tuple[Pair | None, bool]:
    """The pair as it is asked and answered, or None where either answer makes it too long; and whether either is longer than `max_length`.

    Raises AdvisorError where the row has no answer that lost, or as `labelled` does.
    """
    if example.rejected is None:
        raise AdvisorError(
            "DPO needs an answer that lost, and this row has none",
            where=f"row {example.id}",
            do="give each row `chosen` and `rejected` (`data: {preferences: …}`).",
        )
    # The answers are compared, whatever was said before them.
    whole = [
        labelled(tokenizer, fmt, one, every_turn=False)
        for one in (example, replace(example, target=example.rejected, calls=()))
    ]
    long = any(len(one.input_ids) > recipe.max_length for one in whole)
    both = [one.cut(recipe.max_length, recipe.truncation_mode) for one in whole]
    if both[0] is None or both[1] is None:
        return None, long
    (chosen_prompt, chosen), (rejected_prompt, rejected) = _halves(both[0]), _halves(both[1])
    # Cut at the front, the longer answer leaves less of the prompt: both are given that much.
    shared = min(len(chosen_prompt), len(rejected_prompt))
    if not shared:
        return None, long
    prompt = chosen_prompt[len(chosen_prompt) - shared :]
    if prompt != rejected_prompt[len(rejected_prompt) - shared :]:
        raise AdvisorError("the two answers of this row are rendered behind different prompts", where=f"row {example.id}")
    pair: Pair = {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "length": shared + max(len(chosen), len(rejected)),
    }
    return pair, long


def _halves(row: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """The prompt and the last answer: what stands behind the last token that the loss does not see."""
    masked = [at for at, label in enumerate(row["labels"]) if label == IGNORED]
    seam = masked[-1] + 1 if masked else 0
    return row["input_ids"][:seam], row["input_ids"][seam:]
