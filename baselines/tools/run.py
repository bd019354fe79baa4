"""Runs the calls that a model makes: the calculator and the look-up here, the user's functions in a process with limits."""

from __future__ import annotations

import json
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.tools.calculator import CalculatorError, calculate
from evals.child import Child, Ended, Late
from evals.engines.engine import ToolCall
from evals.errors import AdvisorError, did_you_mean
from evals.task.reading.strict_json import JsonError, parse
from evals.task.tools import Tool

PROGRAM = Path(__file__).parent / "children" / "call.py"
# Characters of a result that the model is shown.
MAX_RESULT = 4_000
# Of one tool, after which the run ends: 200 questions must not wait for 200 timeouts.
TIMEOUTS_IN_A_ROW = 3
# Seconds in which the user's files must be imported, beside the time of a call.
IMPORT_SECONDS = 60.0
MANY_ERRORS = 3


@dataclass(frozen=True)
class Outcome:
    """What the model is told of a call. `error` says that it has no result; `seconds` are those of the call."""

    text: str
    error: bool = False
    seconds: float = 0.0


class CallFailed(Exception):
    """Why a call has no result. The message is for the model."""


class Toolbox:
    """The tools of one candidate while it answers. Close it: the process with the user's functions lives until then.

    There is one such process at a time, started at the first call, in the task's folder, with the user's rights and
    environment. One that hangs or crashes is replaced at the next call; what a function keeps between calls is lost then.
    """

    def __init__(
        self, tools: Sequence[Tool], folder: Path, timeout: float, memory_mib: int, find: Callable[[str], str] | None = None
    ) -> None:
        self.tools = {one.name: one for one in tools}
        self.folder = folder
        self.timeout = timeout
        self.memory_mib = memory_mib
        self.find = find
        self.files = list(dict.fromkeys(one.file for one in tools if one.kind == "python"))
        self._late: Counter[str] = Counter()
        self._children: list[Child] = []
        # Where nobody closes this (an interrupted run), the process ends with it.
        self.close = weakref.finalize(self, _end, self._children)

    def run(self, call: ToolCall) -> Outcome:
        """What came of a call: a result, or what was wrong with it. Neither ends the run.

        Raises AdvisorError where the user must mend the function: its file cannot be imported, or it has taken too long
        three times in a row.
        """
        started = time.perf_counter()
        try:
            tool = self._tool(call)
            text, error = cut(self._run(tool, checked(tool, call.arguments))), False
        except CallFailed as failed:
            text, error = cut(str(failed)), True
        return Outcome(text, error, time.perf_counter() - started)

    def _tool(self, call: ToolCall) -> Tool:
        tool = self.tools.get(call.name)
        if tool is None:
            meant = did_you_mean(call.name, self.tools)
            raise CallFailed(f"there is no tool {call.name[:80]!r}{meant}; the tools are: {', '.join(self.tools)}")
        return tool

    def _run(self, tool: Tool, arguments: dict[str, Any]) -> str:
        if tool.kind == "python":
            return self._python(tool, arguments)
        if tool.name == "lookup":
            if self.find is None:
                raise CallFailed("there are no documents")
            return self.find(arguments["query"])
        try:
            return calculate(arguments["expression"])
        except CalculatorError as error:
            raise CallFailed(str(error)) from error

    def _python(self, tool: Tool, arguments: dict[str, Any]) -> str:
        child = self._child()
        question = {
            "file": self.files.index(tool.file),
            "function": tool.function,
            "arguments": arguments,
            "seconds": self.timeout,
        }
        try:
            said = child.ask(question, self.timeout)
        except Late as error:
            self._drop()
            self._late[tool.name] += 1
            if self._late[tool.name] >= TIMEOUTS_IN_A_ROW:
                raise AdvisorError(
                    f"took longer than {self.timeout:g} s {TIMEOUTS_IN_A_ROW} times in a row (the last time with "
                    f"{json.dumps(arguments, ensure_ascii=False)[:200]})",
                    where=f"tool python:{tool.file}:{tool.function}",
                    do="make the function quicker, or give it more time with `tools: {timeout: SECONDS}`.",
                ) from error
            raise CallFailed(f"timed out after {self.timeout:g} s") from error
        except Ended as error:
            self._drop()
            self._late[tool.name] = 0
            raise CallFailed("the function crashed: its process ended") from error
        self._late[tool.name] = 0
        if "error" in said:
            raise CallFailed(str(said["error"]))
        return str(said["result"])

    def _child(self) -> Child:
        if not self._children:
            paths = [str((self.folder / file).resolve()) for file in self.files]
            child = Child(["-P"], PROGRAM, str(self.memory_mib), str(MAX_RESULT), *paths, folder=self.folder)
            self._children.append(child)
            self._load(child)
        return self._children[0]

    def _load(self, child: Child) -> None:
        """Import the user's files, before any call and apart from its time. Raises AdvisorError with file and line."""
        where = ", ".join(self.files)
        try:
            said = child.ask({"load": True}, IMPORT_SECONDS)
        except Late as error:
            raise self._failed(f"cannot be imported within {IMPORT_SECONDS:g} s", where) from error
        except Ended as error:
            raise self._failed("ends the process that imports it", where) from error
        if "error" in said:
            line = f":{said['line']}" if said["line"] else ""
            raise self._failed(f"cannot be imported: {said['error'][:300]}", f"{said['file']}{line}")

    def _failed(self, what: str, where: str) -> AdvisorError:
        self._drop()
        return AdvisorError(what, where=where, do="mend the file: its functions are the task's tools.")

    def _drop(self) -> None:
        _end(self._children)


def _end(children: list[Child]) -> None:
    while children:
        children.pop().__exit__()


def cut(text: str) -> str:
    """What a model can read: at most MAX_RESULT characters, with a mark where more was there."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    # The mark of a result that was cut in its process stands behind these.
    return text if len(text) <= MAX_RESULT + 100 else f"{text[:MAX_RESULT]} … (cut: {len(text):,} characters in all)"


def checked(tool: Tool, arguments: str) -> dict[str, Any]:
    """The arguments of a call. Raises CallFailed, which names what the tool's schema does not allow."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        body = parse(arguments)
    except JsonError as error:
        raise CallFailed(f"the arguments are no JSON: {error.message}") from error
    if not isinstance(body, dict):
        raise CallFailed("the arguments must be a JSON object")
    # An empty registry: nothing is fetched.
    validator: Any = Draft202012Validator(tool.parameters, registry=Registry())
    try:
        found: list[ValidationError] = sorted(validator.iter_errors(body), key=lambda one: list(map(str, one.path)))
    except (Unresolvable, RecursionError, re.error) as error:
        raise CallFailed("the arguments cannot be checked") from error
    if found:
        told = [_wrong(one) for one in found[:MANY_ERRORS]]
        raise CallFailed(f"wrong arguments for {tool.name}: {'; '.join(told)}")
    return body


def _wrong(error: Any) -> str:
    place = ".".join(map(str, error.path))
    return f"{place}: {error.message[:200]}" if place else error.message[:200]
