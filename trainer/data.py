"""Examples as token ids with labels: the loss sees the assistant's answers and their end-of-turn tokens, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.candidate import PromptFormat
from evals.engines.chat import Chat, chat_of, ids_of, special_ids, written
from evals.engines.engine import Message
from evals.engines.tokenizer import open_tokenizer
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, ignore
from evals.task.example import Example
from trainer.recipe import Recipe, Truncation
from trainer.replay import Replay

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Rows to train on, each `{"input_ids": [...], "labels": [...]}` of equal length, and the ids of their examples.

    So many more were `dropped`, since they were too long or nothing of their answers was left; `truncated` of the rows were cut.
    """

    rows: tuple[dict[str, list[int]], ...]
    dropped: int
    truncated: int = 0
    ids: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)


@dataclass(frozen=True)
class Labelled:
    """A conversation at its full length. `unsure` turns of the assistant are not learnt, for the template rewrites them later on."""

    input_ids: list[int]
    labels: list[int]
    unsure: int

    def cut(self, max_length: int, truncation_mode: Truncation) -> dict[str, list[int]] | None:
        """The row in at most `max_length` tokens, or None where it is dropped: too long, or without a token to learn behind the cut."""
        ids, labels = self.input_ids, self.labels
        if len(ids) > max_length:
            if truncation_mode == "drop":
                return None
            kept = slice(max_length) if truncation_mode == "keep_start" else slice(-max_length, None)
            ids, labels = ids[kept], labels[kept]
        # The first token of a row is never predicted.
        if all(label == IGNORED for label in labels[1:]):
            return None
        return {"input_ids": ids, "labels": labels}


def load_tokenizer(folder: Path) -> Any:
    """The model's own tokeniser, as it is asked with."""
    return open_tokenizer(folder)[0]


def encode(
    tokenizer: Any,
    fmt: PromptFormat,
    example: Example,
    max_length: int,
    *,
    assistant_only_loss: bool = True,
    truncation_mode: Truncation = "drop",
) -> dict[str, list[int]] | None:
    """Token ids of the conversation with labels, or None where the row is dropped (`Labelled.cut`). Raises as `labelled` does."""
    return labelled(tokenizer, fmt, example, every_turn=assistant_only_loss).cut(max_length, truncation_mode)


def labelled(tokenizer: Any, fmt: PromptFormat, example: Example, *, every_turn: bool = True) -> Labelled:
    """The conversation with labels on the answer and its end of turn; with `every_turn`, on the assistant's earlier ones too.

    The prompt is rendered as it will be when the tuned model is asked, and an earlier turn is learnt where it stands exactly as it
    would if it were the answer: behind the prompt that asks for it, up to the end of turn that the model has to write. Calls of tools
    are part of their turn.

    Raises AdvisorError where the template, or a token that spans the seam, makes the asked prompt something else than the beginning of
    the trained text.
    """
    turns, where = fmt.messages(example), f"training row {example.id}"
    asked = chat_of(tokenizer, turns, where=where)
    whole = chat_of(tokenizer, (*turns, Message("assistant", example.target)), asks=False, where=where)
    if not whole.text.startswith(asked.text):
        raise _not_a_prefix(where, "the chat template writes the prompt differently when an answer follows")
    earlier = _earlier(tokenizer, whole) if every_turn else []
    prompt, ids, *rest = ids_of(tokenizer, [asked, whole, *(chat for pair in earlier if pair for chat in pair)])
    answer = _up_to_end(tokenizer, ids, len(prompt), whole, last=True)
    if answer[: len(prompt)] != prompt or len(answer) <= len(prompt):
        raise _not_a_prefix(where, "a token spans the end of the prompt and the start of the answer")
    labels = [IGNORED] * len(prompt) + answer[len(prompt) :]
    encoded, unsure = iter(rest), 0
    for pair in earlier:
        start, turn = (next(encoded), next(encoded)) if pair else ([], [])
        if pair:
            turn = _up_to_end(tokenizer, turn, len(start), pair[1], last=False)
        if len(start) < len(turn) and turn[: len(start)] == start and answer[: len(turn)] == turn:
            labels[len(start) : len(turn)] = turn[len(start) :]
        else:
            unsure += 1
    return Labelled(answer, labels, unsure)


def encode_all(
    tokenizer: Any, fmt: PromptFormat, examples: Sequence[Example], recipe: Recipe, split: str, on_event: OnEvent
) -> Encoded:
    """All examples of a split. What is cut, left out or not learnt is counted aloud; a split with nothing left is an error."""
    found = [labelled(tokenizer, fmt, example, every_turn=recipe.assistant_only_loss) for example in examples]
    cut = [one.cut(recipe.max_length, recipe.truncation_mode) for one in found]
    long = [len(one.input_ids) > recipe.max_length for one in found]
    kept = [(row, example.id) for row, example in zip(cut, examples, strict=True) if row is not None]
    dropped = len(found) - len(kept)
    if dropped and not kept:
        raise _nothing_left(dropped, recipe, split)
    truncated = sum(row is not None and one for row, one in zip(cut, long, strict=True))
    for text in _losses(found, dropped, truncated, recipe, split):
        on_event(Note(text, "warning"))
    return Encoded(tuple(row for row, _ in kept), dropped, truncated, tuple(name for _, name in kept))


def encode_replay(
    tokenizer: Any, replay: Sequence[Replay | Example], max_length: int, on_event: OnEvent = ignore
) -> tuple[dict[str, list[int]], ...]:
    """Replay rows as they were asked: no instruction. A reply that was cut off is trained on without an end. Those that are too long are
    left out, and counted aloud."""
    rows, long = [], 0
    for at, one in enumerate(replay):
        finished = isinstance(one, Example) or one.finished
        example = one if isinstance(one, Example) else Example(f"replay-{at}", one.turns, one.reply)
        row = encode(tokenizer, PromptFormat(""), example, max_length)
        long += row is None
        if row is not None and not finished:
            row = {name: ids[:-1] for name, ids in row.items()}
        if row is not None and any(label != IGNORED for label in row["labels"]):
            rows.append(row)
    if long:
        text = f"{long} of {len(replay)} replay rows are longer than max_length ({max_length} tokens) and left out"
        on_event(Note(text, "warning"))
    return tuple(rows)


def _losses(found: Sequence[Labelled], dropped: int, truncated: int, recipe: Recipe, split: str) -> list[str]:
    """What a split loses on its way to the loss, in sentences."""
    told, limit = [], f"max_length ({recipe.max_length} tokens)"
    if dropped and recipe.truncation_mode == "drop":
        told.append(f"{dropped} of {len(found)} {split} rows are longer than {limit} and left out")
    elif dropped:
        told.append(f"{dropped} of {len(found)} {split} rows hold nothing of an answer when cut to {limit}, and are left out")
    if truncated:
        end = "end" if recipe.truncation_mode == "keep_start" else "beginning"
        told.append(f"{truncated} of {len(found)} {split} rows are cut to {limit} at their {end} ({recipe.truncation_mode})")
    if unsure := sum(one.unsure for one in found):
        rows = sum(one.unsure > 0 for one in found)
        told.append(
            f"earlier turns of the assistant left unlearnt: {unsure} (in {rows} of {len(found)} {split} rows), since the chat template "
            "writes them otherwise once the conversation goes on"
        )
    return told


def _nothing_left(rows: int, recipe: Recipe, split: str) -> AdvisorError:
    limit = f"max_length ({recipe.max_length} tokens)"
    if recipe.truncation_mode == "drop":
        what = f"all {rows} rows are longer than {limit}"
    else:
        what = f"all labels of all {rows} rows are masked: cut to {limit} by {recipe.truncation_mode}, no row holds any of its answer"
    return AdvisorError(
        what, where=f"{split} data", do="raise `max_length` under `train:` in the task file, or shorten the rows."
    )


def _earlier(tokenizer: Any, whole: Chat) -> list[tuple[Chat, Chat] | None]:
    """For each turn of the assistant's but the last: the prompt that asks for it, and the chat up to its end.

    None where the template takes no chat that ends there (a greeting before the user's first turn).
    """
    found: list[tuple[Chat, Chat] | None] = []
    for at, turn in enumerate(whole.turns[:-1]):
        if turn.role != "assistant":
            continue
        before, through = whole.turns[:at], whole.turns[: at + 1]
        try:
            found.append((written(tokenizer, before), written(tokenizer, through, asks=False)))
        except Exception:  # a template may raise whatever it likes
            found.append(None)
    return found


def _up_to_end(tokenizer: Any, ids: list[int], start: int, chat: Chat, *, last: bool) -> list[int]:
    """Cut what the template writes behind the end-of-turn token of the chat's last turn, which begins at `start`.

    That token is the first special one behind the turn's text (Phi's writes the end of text behind it), or behind its calls the last
    one. Where a template has none, the answer of a row gets the end-of-text token: without it the model would never learn to stop.
    """
    turn, special = chat.turns[-1], special_ids(tokenizer)
    ends = [at for at in range(start, len(ids)) if ids[at] in special]
    if ends and not turn.tool_calls:
        content = "".join(turn.content.split())
        said = (at for at in ends if content in "".join(_text(tokenizer, ids[start:at]).split()))
        return ids[: next(said, ends[-1]) + 1]
    if ends:
        return ids[: ends[-1] + 1]
    if chat.quotes:
        while len(ids) > start and _text(tokenizer, ids[-1:]).isspace():
            ids = ids[:-1]
        plain = ids
    else:
        plain = tokenizer(chat.text.rstrip(), add_special_tokens=False, verbose=False)["input_ids"]
    return [*plain, tokenizer.eos_token_id] if last and tokenizer.eos_token_id is not None else plain


def _text(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _not_a_prefix(where: str, why: str) -> AdvisorError:
    return AdvisorError(
        f"the prompt as asked is not the beginning of the text as trained: {why}",
        where=where,
        do="use a model whose chat template renders both alike (most instruct models do).",
    )
