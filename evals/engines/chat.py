"""A chat as a model's template writes it, as text and as token ids: one way for asking and for training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from evals.engines.engine import Message
from evals.errors import AdvisorError


@dataclass(frozen=True)
class Chat:
    """`turns` as the template takes them and the `text` that it makes of them; it `asks` where the assistant's turn is begun at its end.

    `quotes`: a text of the user's reads like one of the model's control tokens (`<|im_end|>`), and is to stay text.
    """

    turns: tuple[Message, ...]
    tools: tuple[str, ...]
    asks: bool
    text: str
    quotes: bool


def chat_of(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[str] = (), *, asks: bool = True, where: str = ""
) -> Chat:
    """The chat, with the tools (JSON texts) in the place that the template has for them.

    What a template refuses it is given otherwise: several calls of one turn (Llama's) in a turn each; a system turn (Gemma's) as the
    beginning of the first user turn. Raises AdvisorError, naming `where`, where it refuses that too.
    """
    try:
        return written(tokenizer, messages, tools, asks=asks)
    except Exception as error:
        if len(apart := one_call_a_turn(messages)) > len(messages):
            return chat_of(tokenizer, apart, tools, asks=asks, where=where)
        if len(messages) > 1 and messages[0].role == "system":
            joined = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
            return chat_of(tokenizer, [joined, *messages[2:]], tools, asks=asks, where=where)
        raise AdvisorError(f"the chat template cannot render this: {error}", where=where) from error


def written(tokenizer: Any, messages: Sequence[Message], tools: Sequence[str] = (), *, asks: bool = True) -> Chat:
    """As `chat_of`, of turns that the template takes as they are. Raises whatever a template may raise."""
    turns, given = _as_given(messages, tools)
    text: str = tokenizer.apply_chat_template(turns, tools=given, tokenize=False, add_generation_prompt=asks)
    quotes = any(map(_control_tokens(tokenizer, len(tokenizer)).search, _strings([turns, given])))
    return Chat(tuple(messages), tuple(tools), asks, text, quotes)


def ids_of(tokenizer: Any, chats: Sequence[Chat]) -> list[list[int]]:
    """Token ids of each chat: the template's own control tokens are tokens, whatever reads like one in a user's text is text.

    Raises AdvisorError where a tokeniser makes a control token of any text, so that no prompt can quote it.
    """
    plain = [chat.text for chat in chats if not chat.quotes]
    encoded = iter(tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else ())
    return [_quoting(tokenizer, chat) if chat.quotes else next(encoded) for chat in chats]


def _quoting(tokenizer: Any, chat: Chat) -> list[int]:
    turns, given = _as_given(chat.turns, chat.tools)
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            turns,
            tools=given,
            add_generation_prompt=chat.asks,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
    except ValueError as error:
        raise AdvisorError(f"a control token stands in a text, and cannot be kept apart from the real one: {error}") from error
    return ids


def one_call_a_turn(messages: Sequence[Message]) -> list[Message]:
    """The same chat with each call in a turn of its own, before its result; turns whose results are not all there stay."""
    found: list[Message] = []
    left = list(messages)
    while left:
        turn, calls = left[0], left[0].tool_calls
        results = [one for one in left[1 : 1 + len(calls)] if one.role == "tool"]
        del left[: 1 + len(results) if len(results) == len(calls) else 1]
        if len(calls) < 2 or len(results) < len(calls):
            found += [turn, *results] if len(results) == len(calls) else [turn]
            continue
        named = {one.tool_call_id: one for one in results}
        if named.keys() == {call.id for call in calls} and len(named) == len(calls):
            results = [named[call.id] for call in calls]
        for number, (call, result) in enumerate(zip(calls, results, strict=True)):
            found += [replace(turn, content="" if number else turn.content, tool_calls=(call,)), result]
    return found


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that are no text: the end of a turn is one of them, whether or not the tokeniser's settings name it (Gemma's do not)."""
    return _special_ids(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Any, size: int) -> frozenset[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added.union(tokenizer.all_special_ids))


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, size: int) -> re.Pattern[str]:
    """What may be a control token: any token that was added to the vocabulary. (Gemma's line ends are such, and never meant; a
    single sign is text, whatever else it stands for.)"""
    added = sorted(one for one in tokenizer.added_tokens_encoder if len(one) > 1 and not one.isspace())
    return re.compile("|".join(map(re.escape, added)) or "(?!)")


def _as_given(messages: Sequence[Message], tools: Sequence[str]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    return [message.turn() for message in messages], [json.loads(tool) for tool in tools] or None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
