"""What a training reads, row by row: what its time and its memory hang on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evals.candidate import PromptFormat
from evals.events import ignore
from evals.task.example import Example
from trainer.data import IGNORED, Encoded, encode_all, encode_replay
from trainer.footprint import Batch
from trainer.preference_pairs import Pair, encode_pairs
from trainer.prefix import WORTHWHILE, common_prefix
from trainer.raw_text import encode_documents
from trainer.recipe import Recipe
from trainer.replay import Replay


class Row(NamedTuple):
    """`tokens` as the trainer counts them, `labels` of them learnt, and how many stand in the model's memory for it."""

    tokens: int
    labels: int
    width: int


@dataclass(frozen=True)
class Work:
    """The rows of a pass; how many tokens all rows begin with (shared on a processor).

    `dev` are the tokens of each dev row, whose loss is measured at the end.
    """

    rows: tuple[Row, ...]
    prefix: int = 0
    dev: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    def longest(self, batch: int) -> Batch:
        """The batch of the longest rows, which grouping by length puts together."""
        chosen = sorted(self.rows, key=lambda row: row.width, reverse=True)[:batch]
        return Batch(len(chosen), chosen[0].width, sum(row.labels for row in chosen), self.prefix)


def work_of(
    tokenizer: Any,
    fmt: PromptFormat,
    recipe: Recipe,
    train: Sequence[Example],
    dev: Sequence[Example],
    replay: Sequence[Replay] = (),
) -> Work:
    """The work of rows as the trainer will encode them. Raises AdvisorError where it would."""
    if recipe.method == "dpo":
        return Work(tuple(map(_of_pair, encode_pairs(tokenizer, fmt, train, recipe, "train", ignore).rows)))
    task_rows = _encoded(tokenizer, fmt, recipe, train).rows
    rows = task_rows + encode_replay(tokenizer, replay, recipe.max_length)
    looked = encode_all(tokenizer, fmt, dev, recipe, "dev", ignore).rows if dev else ()
    # The layout is chosen by what all rows share; a batch then shares what its own rows do, and most are the task's alone.
    shared = common_prefix([*rows, *looked]) >= WORTHWHILE
    return Work(
        tuple(map(_of_row, rows)), common_prefix(task_rows) if shared else 0, tuple(len(row["input_ids"]) for row in looked)
    )


def learnt_rows(tokenizer: Any, recipe: Recipe, train: Sequence[Example]) -> int:
    """So many rows a pass are made of these: of pretraining the blocks of its documents."""
    return len(encode_documents(tokenizer, train, recipe.max_length).rows) if recipe.method == "pretraining" else len(train)


def _encoded(tokenizer: Any, fmt: PromptFormat, recipe: Recipe, train: Sequence[Example]) -> Encoded:
    if recipe.method == "pretraining":
        return encode_documents(tokenizer, train, recipe.max_length)
    return encode_all(tokenizer, fmt, train, recipe, "train", ignore)


def _of_row(row: dict[str, list[int]]) -> Row:
    length = len(row["input_ids"])
    return Row(length, sum(label != IGNORED for label in row["labels"]), length)


def _of_pair(pair: Pair) -> Row:
    """The prompt counts twice, as two rows would, and is read once."""
    prompt, answers = len(pair["prompt_ids"]), len(pair["chosen_ids"]) + len(pair["rejected_ids"])
    return Row(2 * prompt + answers, answers, prompt + answers)
