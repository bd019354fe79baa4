"""What a proposer is told, and what is made of its text: an instruction, or the reason why it is none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from baselines.prompts.optimise.search import PROPOSAL_TOKENS, Search, Tried, Wording
from evals.engines.engine import Engine, Message
from evals.task.example import Example
from evals.task.load import Task

MAX_CHARACTERS = 2000
MAX_SHOWN = 600
MANY_LABELS = 100
CUT = "\n[…]\n"
# A run of so many characters of the prompt in a proposal is an echo, not a coincidence.
ECHO = 60
FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
PREFIX = re.compile(r"^\W*(?:the |a )?(?:new |improved |better )?(?:instructions?|prompt)\W*:[*_\s]*", re.IGNORECASE)
QUOTES = {'"': '"', "“": "”", "'": "'", "`": "`"}

OPENING = "You write the instruction that a language model is given before each input of a task."
ASKING = (
    "Write a better instruction for this task. Say what is wanted, name the rules that the examples follow, and describe "
    "the exact form of the answer. Write the instruction only: no examples, no comments, no greeting."
)


def answer_form(task: Task) -> str:
    """What an answer looks like, in a sentence: for the proposer, which sees a few examples only."""
    if task.output_type == "label":
        labels = ", ".join(task.labels[:MANY_LABELS])
        return f"The answer is exactly one of these labels: {labels}."
    if task.output_type == "json":
        properties = (task.schema or {}).get("properties")
        keys = f" with the keys {', '.join(map(str, properties))}" if isinstance(properties, dict) and properties else ""
        return f"The answer is one JSON object{keys}, and nothing else."
    return "The answer is a number, and nothing else." if task.output_type == "number" else "The answer is a short text."


def shown(example: Example) -> str:
    """The input of an example as one text; the roles are named where there are more turns than one."""
    if len(example.messages) == 1:
        return example.text
    return "\n".join(f"{message.role}: {message.content}" for message in example.messages)


def clipped(text: str, length: int = MAX_SHOWN) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def first_prompt(search: Search, examples: Sequence[Example]) -> str:
    rows = [f"Input: {clipped(shown(one))}\nAnswer: {clipped(one.target)}" for one in examples]
    return _written(search, search.instruction, "Examples of inputs and right answers:", rows)


def mending_prompt(search: Search, instruction: str, wrong: Sequence[tuple[Example, str]]) -> str:
    """`wrong` are examples with what was answered under `instruction`."""
    rows = [
        f"Input: {clipped(shown(one))}\nAnswered: {clipped(said) or '(nothing)'}\nRight answer: {clipped(one.target)}"
        for one, said in wrong
    ]
    return _written(search, instruction, "With this instruction the model made these mistakes:", rows)


def _written(search: Search, instruction: str, title: str, rows: Sequence[str]) -> str:
    current = f"The instruction is now:\n\n{instruction}" if instruction else "There is no instruction yet."
    return "\n\n".join([OPENING, current, search.form, title, *rows, ASKING])


def fitting(proposer: Engine, text: str, new_tokens: int = PROPOSAL_TOKENS) -> str:
    """`text` as it is where the proposer's context holds it and the answer, else with its middle cut out.

    The beginning says what it is about and the end what to do; the examples are between them.
    """
    room = proposer.context_length - new_tokens

    def fits(some: str) -> bool:
        return proposer.count_prompts([[Message("user", some)]])[0] <= room

    if fits(text):
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_without_middle(text, middle)) else (low, middle - 1)
    return _without_middle(text, low)


def _without_middle(text: str, keep: int) -> str:
    head = keep // 2
    return text[:head] + CUT + text[len(text) - (keep - head) :]


def cleaned(text: str) -> str:
    """The instruction in a proposer's text: what is between fences, without a title and quotes around it."""
    fenced = FENCE.search(text)
    body = (fenced.group(1) if fenced else text).strip()
    body = PREFIX.sub("", body, count=1).strip()
    if len(body) > 1 and QUOTES.get(body[0]) == body[-1]:
        body = body[1:-1].strip()
    return body


def refusal(instruction: str, prompt: str) -> str:
    """Why this is no instruction to try, or an empty string: no words, too long, or the proposer's own prompt again."""
    if not re.search(r"\w", instruction):
        return "empty"
    if len(instruction) > MAX_CHARACTERS:
        return f"over {MAX_CHARACTERS} characters"
    return "repeats the prompt" if _echoes(instruction, prompt) else ""


def _echoes(instruction: str, prompt: str) -> bool:
    """Whether a run of `ECHO` characters is of the words of ours around the task's own."""
    ours = [" ".join(one.split()) for one in (OPENING, ASKING) if one in prompt]
    text = " ".join(instruction.split())
    return any(own[at : at + ECHO] in text for own in ours for at in range(0, max(1, len(own) - ECHO + 1)))


def kept(search: Search, texts: Sequence[tuple[str, str, bool]], before: Sequence[Wording]) -> list[Wording]:
    """The new instructions among (prompt, text, truncated), each once; those refused go into the search's history."""
    known = {_folded(one.instruction) for one in before}
    found = []
    for prompt, text, truncated in texts:
        instruction = cleaned(text)
        why = refusal(instruction, prompt) or ("did not end" if truncated else "")
        if not why and _folded(instruction) in known:
            why = "proposed before"
        if why:
            search.refused.append(Tried(clipped(instruction), 0, 0.0, 0, False, why))
            continue
        known.add(_folded(instruction))
        found.append(Wording(instruction))
    return found


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
