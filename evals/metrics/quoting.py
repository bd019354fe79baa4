"""Other people's text inside a prompt: quoted so that it cannot end its quotation and speak as us."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evals.records import content_hash
from evals.task.example import Example, calls_as_text

# The beginning of what tokenisers read as the end of a turn or the start of another: <|im_end|>, </s>, [/INST] and their kin.
CONTROL = re.compile(
    r"<(?=[|｜][^<>\s]{1,60}[|｜]>)|<(?=/?(?:s|bos|eos|start_of_turn|end_of_turn|SYS>)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)


def quoted(parts: Sequence[tuple[str, str]], salt: Sequence[str] = ()) -> tuple[str, str]:
    """(name, text) parts as one text, each between two lines that carry a code; and the code.

    The code is a hash of all parts and `salt`: the same for the same request, so that kept answers stay valid, and not to
    be had by whoever writes a part, since the part itself is hashed. Nothing is taken out of a text. Only the control marks
    of chat templates get a space after their first sign: a tokeniser would read them as a new turn whatever is around them.
    """
    given = [[name, text] for name, text in parts]
    code = content_hash([given, list(salt)])[:16]
    while any(code in text for _, text in parts):
        code = content_hash([code, given])[:16]
    harmless = [(name, CONTROL.sub(r"\g<0> ", text)) for name, text in parts]
    return "\n\n".join(f"[{name} {code}]\n{text}\n[end of {name} {code}]" for name, text in harmless), code


def conversation(example: Example) -> str:
    """What was asked: the user's turn alone where there is no other, else every turn with its role before it."""
    if len(example.messages) == 1:
        return example.messages[0].content
    turns = []
    for message in example.messages:
        calls = f" {calls_as_text(message.tool_calls)}" if message.tool_calls else ""
        turns.append(f"{message.role}: {message.content}{calls}")
    return "\n\n".join(turns)
