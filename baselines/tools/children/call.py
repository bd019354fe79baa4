"""Calls the user's functions. Started by `baselines.tools.run` as `python -P call.py MEMORY_MIB MAX_CHARACTERS FILE…`.

stdin: a JSON line of {"file": number of the file, "function": name, "arguments": object, "seconds": limit} for each call, or
{"load": true}. stdout: for each {"result": text} or {"error": text}; for `load` {} or {"error", "file", "line"}. What the
functions print goes nowhere.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import traceback
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

FILE_BYTES = 16 * 2**20


def main(memory_mib: int, most: int, files: list[str]) -> None:
    with os.fdopen(os.dup(0), encoding="utf-8") as asked, os.fdopen(os.dup(1), "w", encoding="utf-8") as told:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        limit({resource.RLIMIT_AS: memory_mib * 2**20, resource.RLIMIT_FSIZE: FILE_BYTES, resource.RLIMIT_CORE: 0})
        modules: list[Any] = []
        for line in asked:
            question = json.loads(line)
            answer = load(files, modules) if "load" in question else call(question, modules, files, most)
            told.write(json.dumps(answer) + "\n")
            told.flush()


def limit(wanted: dict[int, int]) -> None:
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def load(files: list[str], modules: list[Any]) -> dict[str, Any]:
    """Run each file as a module. Modules beside a file can be imported from it."""
    for number, file in enumerate(files):
        try:
            sys.path.insert(0, os.path.dirname(file))
            place = spec_from_file_location(f"task_tools_{number}", file)
            if place is None or place.loader is None:
                raise ImportError(f"{file} cannot be loaded")
            module = module_from_spec(place)
            sys.modules[place.name] = module
            place.loader.exec_module(module)
            modules.append(module)
        except BaseException as error:
            return {"error": last_line(error), "file": file, "line": line_in(error, file)}
    return {}


def call(question: Any, modules: list[Any], files: list[str], most: int) -> dict[str, Any]:
    number = question["file"]
    # The clock outside ends a call that sleeps; this one ends a loop, should the clock be gone.
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit({resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime + question["seconds"]) + 5})
    try:
        return {"result": short(as_text(getattr(modules[number], question["function"])(**question["arguments"])), most)}
    except BaseException as error:
        line = line_in(error, files[number])
        # What the function held is let go first: there may be no memory left to say so.
        traceback.clear_frames(error.__traceback__)
        return {"error": short(last_line(error), 300) + (f" (line {line})" if line else "")}


def as_text(value: Any) -> str:
    """Text as it is, anything else as JSON. What says nothing of itself (`<object at 0x…>`) is refused."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=said)


def said(value: Any) -> str:
    kind: Any = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        raise TypeError(f"the function gave a {kind.__name__}, which is neither text nor a JSON value")
    return str(value)


def short(text: str, most: int) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= most else f"{text[:most]} … (cut: {len(text):,} characters in all)"


def last_line(error: BaseException) -> str:
    """The last line of the traceback; of a message of several lines the first."""
    try:
        lines = traceback.format_exception_only(error)
    except BaseException:
        return type(error).__name__
    # A SyntaxError's text stands before, notes stand after.
    last = next((line for line in lines if type(error).__name__ in line.split(":")[0]), lines[-1])
    return last.strip().splitlines()[0]


def line_in(error: BaseException, file: str) -> int:
    """The line of the user's file that an error came from, 0 where it did not."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno or 0
    line, place = 0, error.__traceback__
    while place is not None:
        line = place.tb_lineno if place.tb_frame.f_code.co_filename == file else line
        place = place.tb_next
    return line


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
