"""Calls a function of the user's on each answer. Started by `evals.metrics.python_function` as `python -P function.py FILE FUNCTION`.

stdin: a JSON line of [output, target] for each answer. stdout: for each {"score": number} or {"error": text}. What the function
prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any


def main(file: str, name: str) -> None:
    with os.fdopen(os.dup(0), encoding="utf-8") as asked, os.fdopen(os.dup(1), "w", encoding="utf-8") as told:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        function: Any = None
        for line in asked:
            output, target = json.loads(line)
            try:
                function = function or load(file, name)
                answer: dict[str, Any] = {"score": number(function(output, target))}
            except BaseException as error:
                answer = {"error": last_line(error, file)}
            told.write(json.dumps(answer) + "\n")
            told.flush()


def load(file: str, name: str) -> Any:
    """The function, from its file run as a module. Modules beside the file can be imported from it."""
    sys.path.insert(0, os.path.dirname(file))
    place = spec_from_file_location("task_metric", file)
    if place is None or place.loader is None:
        raise ImportError(f"{file} cannot be loaded")
    module = module_from_spec(place)
    sys.modules["task_metric"] = module
    place.loader.exec_module(module)
    return getattr(module, name)


def number(value: Any) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"the score is {value!r:.60}, and no number")
    return float(value)


def last_line(error: BaseException, file: str) -> str:
    """The last line of the traceback (of a message of several lines the first), and the line of the user's file it came from."""
    lines = traceback.format_exception_only(error)
    # A SyntaxError's text stands before, notes stand after.
    last = next((line for line in lines if type(error).__name__ in line.split(":")[0]), lines[-1])
    said = last.strip().splitlines()[0][:300]
    places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{said} (line {places[-1]})" if places else said


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
