"""Pairs of answers: the prompt that they share, where it is not given."""

from __future__ import annotations

from typing import Any

from evals.task.reading.conversation import RowError, parsed_list

# Anthropic's HH data: both texts are whole dialogues.
ANSWERS = "\n\nAssistant:"
ASKS = "\n\nHuman:"


def implicit_prompt(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) with the prompt taken off the answers. Raises RowError where they share no beginning.

    Lists of messages that share their first turns are whole conversations (as in UltraFeedback, whose `prompt` repeats the
    first turn). Texts are split where they begin to differ, at the last whole word, or at the last turn of an HH dialogue.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("rejected", "chosen and rejected must both be text, or both lists of messages")
    if not isinstance(chosen, str):
        return _of_turns(prompt, parsed_list(chosen, "chosen"), parsed_list(rejected, "rejected"))
    return (prompt, chosen, rejected) if prompt is not None else _of_texts(chosen, rejected)


def _of_turns(prompt: Any, chosen: list[Any], rejected: list[Any]) -> tuple[Any, Any, Any]:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # Two equal answers share all; what is compared is the last turn.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    repeated = shared > 0 and (prompt is None or _repeats(prompt, chosen[:shared]))
    if repeated:
        return chosen[:shared], chosen[shared:], rejected[shared:]
    if prompt is None:
        raise RowError("prompt", "chosen and rejected share no beginning, and there is no `prompt`")
    return prompt, chosen, rejected


def _repeats(prompt: Any, turns: list[Any]) -> bool:
    """Whether the shared turns are the prompt once more."""
    if isinstance(prompt, str):
        return any(isinstance(one, dict) and one.get("role") == "user" and one.get("content") == prompt for one in turns)
    return bool(turns[: len(prompt)] == prompt)


def _of_texts(chosen: str, rejected: str) -> tuple[Any, str, str]:
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = chosen[: next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))]
    dialogue = shared.rfind(ANSWERS)
    if shared.startswith(ASKS) and dialogue > 0:
        end = dialogue + len(ANSWERS)
        return _dialogue(shared[:dialogue]), chosen[end:].strip(), rejected[end:].strip()
    # Back to the last whole word: "4" and "42" share a sign, and no prompt.
    end = max((at + 1 for at, sign in enumerate(shared) if sign.isspace()), default=0)
    if not shared[:end].strip():
        raise RowError("prompt", "chosen and rejected share no beginning, and there is no `prompt`")
    return shared[:end].rstrip(), chosen[end:], rejected[end:]


def _dialogue(text: str) -> list[dict[str, str]]:
    """The turns of an HH dialogue."""
    turns = []
    for asked in text.split(ASKS)[1:]:
        question, *answers = asked.split(ANSWERS)
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": one.strip()} for one in answers]
    return turns
