"""Demonstrations of tool use: training rows that hold calls, or traces of the model's own that came out right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from baselines.tools.candidate import ToolCandidate
from evals.candidate import Answer
from evals.engines.engine import Message, ToolCall
from evals.events import Note, OnEvent
from evals.exchange import exchanged
from evals.metrics.metric import Metric
from evals.task.example import Example
from evals.task.load import Task
from evals.task.reading.strict_json import compact
from evals.task.tools import Tool, row_tools

SHOWN = 4
TRIED = 30
# Characters of a result that a demonstration repeats.
MAX_RESULT = 200


def traces(task: Task, tools: Sequence[Tool], on_event: OnEvent, count: int = SHOWN) -> tuple[Example, ...]:
    """Up to `count` training rows whose messages (or target) hold calls of the tools, drawn with the task's seed.

    Rows that call in different ways come first: of each sequence of tools one, then the next.
    """
    held = [one for one in task.train if _called(one)]
    usable = [one for one in held if _called(one) <= {tool.name for tool in (*tools, *row_tools(one.tools))}]
    if len(usable) < len(held):
        text = f"{len(held) - len(usable)} training rows call tools that the task does not have: they are not shown"
        on_event(Note(f"tools: {text}", "warning"))
    rows = random.Random(task.spec.seed).sample(usable, len(usable))
    seen: dict[tuple[str, ...], int] = {}
    ranked = []
    for place, one in enumerate(rows):
        way = tuple(call.name for message in one.messages for call in message.tool_calls)
        ranked.append((seen.get(way, 0), place))
        seen[way] = seen.get(way, 0) + 1
    return tuple(rows[place] for _, place in sorted(ranked)[:count])


def _called(example: Example) -> set[str]:
    inside = {call.name for message in example.messages for call in message.tool_calls}
    return inside | {call.name for call in example.calls}


def bootstrapped(
    candidate: ToolCandidate,
    task: Task,
    metrics: Sequence[Metric],
    on_event: OnEvent,
    *,
    tried: int = TRIED,
    count: int = SHOWN,
) -> ToolCandidate:
    """The same candidate with demonstrations of its own making (Khattab et al. 2024, DSPy's BootstrapFewShot).

    It answers `tried` training rows at most, drawn with the task's seed; of the answers that used a tool without an error
    and score 1 by the first metric, the first `count` are shown. A candidate that has demonstrations stays as it is. What
    was asked for is said.
    """
    if candidate.shots or not candidate.tools:
        return candidate
    rows = random.Random(task.spec.seed).sample(list(task.train), min(tried, len(task.train)))
    steps = list(zip([one.id for one in rows], candidate.requests(rows), strict=True))
    found = {one.id: one.answer for one in exchanged(candidate.engine, steps, candidate.parse)}
    scores = metrics[0]([(one, found[one.id].text) for one in rows])
    right = [one for one, score in zip(rows, scores, strict=True) if score >= 1 - 1e-9 and _clean(found[one.id])]
    requests = sum(len(one.trace) + 1 for one in found.values())
    kept = right[:count]
    on_event(
        Note(
            f"{candidate.name}: {len(right)} of {len(rows)} training rows were answered rightly with a tool; "
            f"{len(kept)} of them are shown as demonstrations (at most {requests:,} requests)"
        )
    )
    return replace(candidate, shots=tuple(traced(one, found[one.id]) for one in kept))


def _clean(answer: Answer) -> bool:
    return bool(answer.trace) and not answer.skipped and all("result" in one for one in answer.trace)


def traced(example: Example, answer: Answer) -> Example:
    """The example with the calls of an answer and their results as turns; its target is what the model answered."""
    turns: list[Message] = []
    for number, one in enumerate(answer.trace):
        call = ToolCall(str(one["tool"]), compact(one["arguments"]), f"call{number:05d}")
        result = str(one["result"])
        shown = result if len(result) <= MAX_RESULT else f"{result[:MAX_RESULT]} …"
        turns += [Message("assistant", "", (call,)), Message("tool", shown, tool_call_id=call.id, name=call.name)]
    return replace(example, messages=(*example.messages, *turns), target=answer.text, calls=())
