"""Examples as token ids with labels: the loss sees the assistant's answer and its end-of-turn token, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.engines.tokenizer import open_tokenizer
from evals.errors import AdvisorError
from evals.events import Note, OnEvent
from evals.task.example import Example
from trainer.replay import Replay

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Rows that fit, each `{"input_ids": [...], "labels": [...]}` of equal length, and how many were too long."""

    rows: tuple[dict[str, list[int]], ...]
    dropped: int

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)


def load_tokenizer(folder: Path) -> Any:
    """The model's own tokeniser, as it is asked with."""
    return open_tokenizer(folder)[0]


def encode(tokenizer: Any, fmt: PromptFormat, example: Example, max_length: int) -> dict[str, list[int]] | None:
    """Token ids of prompt and answer with labels, or None where they are longer than `max_length`.

    The prompt is rendered as it will be when the tuned model is asked. Raises AdvisorError where the template, or a
    token that spans the seam, makes the asked prompt something else than the beginning of the trained text.
    """
    turns = [message.turn() for message in fmt.messages(example)]
    prompt, whole = _render(tokenizer, turns, example.target)
    if not whole.startswith(prompt):
        raise _not_a_prefix(example, "the chat template writes the prompt differently when an answer follows")
    prompt_ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    ids: list[int] = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
    ids = _up_to_end_of_turn(tokenizer, ids, len(prompt_ids), whole)
    if ids[: len(prompt_ids)] != prompt_ids or len(ids) <= len(prompt_ids):
        raise _not_a_prefix(example, "a token spans the end of the prompt and the start of the answer")
    if len(ids) > max_length:
        return None
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :]}


def encode_all(
    tokenizer: Any, fmt: PromptFormat, examples: Sequence[Example], max_length: int, split: str, on_event: OnEvent
) -> Encoded:
    """All examples of a split. Rows that are too long are counted aloud; a split with none left is an error."""
    encoded = [encode(tokenizer, fmt, example, max_length) for example in examples]
    rows = tuple(row for row in encoded if row is not None)
    dropped = len(encoded) - len(rows)
    if dropped and not rows:
        raise AdvisorError(
            f"all {dropped} rows are longer than max_length ({max_length} tokens)",
            where=f"{split} data",
            do="raise `max_length` under `train:` in the task file, or shorten the rows.",
        )
    if dropped:
        text = f"{dropped} of {len(encoded)} {split} rows are longer than max_length ({max_length} tokens) and left out"
        on_event(Note(text, "warning"))
    return Encoded(rows, dropped)


def encode_replay(tokenizer: Any, replay: Sequence[Replay], max_length: int) -> tuple[dict[str, list[int]], ...]:
    """Replay rows as they were asked: no instruction. A reply that was cut off is trained on without an end."""
    rows = []
    for at, one in enumerate(replay):
        example = Example(f"replay-{at}", (Message("user", one.prompt),), one.reply)
        row = encode(tokenizer, PromptFormat(""), example, max_length)
        if row is not None and not one.finished:
            row = {name: ids[:-1] for name, ids in row.items()}
        if row is not None and any(label != IGNORED for label in row["labels"]):
            rows.append(row)
    return tuple(rows)


def _render(tokenizer: Any, turns: list[dict[str, Any]], answer: str) -> tuple[str, str]:
    """The text of the prompt, and of prompt and answer."""
    full = [*turns, {"role": "assistant", "content": answer}]
    try:
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return prompt, tokenizer.apply_chat_template(full, tokenize=False)
    except Exception as error:
        # The same turn as in asking: a template without a system role gets the instruction in the first user turn.
        if turns[0]["role"] == "system" and len(turns) > 1:
            joined = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
            return _render(tokenizer, [joined, *turns[2:]], answer)
        raise AdvisorError(f"the chat template cannot render this: {error}", where="training data") from error


def _up_to_end_of_turn(tokenizer: Any, ids: list[int], start: int, whole: str) -> list[int]:
    """Cut what the template writes behind the end-of-turn token; a template that has none gets the end-of-text token.

    Without it the model would never learn to stop.
    """
    ends = set(tokenizer.all_special_ids)
    last = next((at for at in range(len(ids) - 1, start - 1, -1) if ids[at] in ends), None)
    if last is not None:
        return ids[: last + 1]
    plain: list[int] = tokenizer(whole.rstrip(), add_special_tokens=False, verbose=False)["input_ids"]
    return [*plain, tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else plain


def _not_a_prefix(example: Example, why: str) -> AdvisorError:
    return AdvisorError(
        f"the prompt as asked is not the beginning of the text as trained: {why}",
        where=f"training row {example.id}",
        do="use a model whose chat template renders both alike (most instruct models do).",
    )
