"""Answers that are Python: run, and then tested, in a process with limits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from evals.child import kill_group
from evals.errors import AdvisorError
from evals.metrics.metric import PROGRAMS
from evals.metrics.options import Code as CodeOptions
from evals.task.example import Example

# A line that opens or closes a block of code, and what follows on it. By Markdown's rule one that is indented by four is none,
# as in the docstring of a function.
FENCE = re.compile(r" {0,3}(`{3,}+|~{3,}+)([^`]*)\Z")
# What starting, compiling and ending may take beside the answer's own time.
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Code:
    """1 where the answer's Python runs, the tests that stand in the target run after it, and the script exits with 0.

    The tests are Python that raises where something is wrong (`assert`; `unittest.main()` may end them); they share the
    answer's names. A target without tests scores 0. As many answers run at once as there are cores.

    A limit on accidents, not a jail. Wall time, memory, processor time and size of files are limited, the environment is
    empty, and everything that was started is killed. Without network and with read-only files only where the kernel gives
    an ordinary user namespaces; elsewhere the code can do what the user can. An answer that leaves early does not pass, but
    one that was written to fool its tests may (by reading the frames of its caller, or objects that equal everything).
    """

    options: CodeOptions

    @property
    def name(self) -> str:
        return self.options.label

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.options.model_dump(mode="json", exclude={"called"}), "python": list(sys.version_info[:3])}

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        if pairs:
            _must_run(self.options.timeout, self.options.memory_mib)
        pool = ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="code")
        try:
            return list(pool.map(lambda pair: self._score(pair[1], pair[0].target), pairs))
        finally:
            # Ctrl-C: those that wait for a core are not begun.
            pool.shutdown(cancel_futures=True)

    def _score(self, answer: str, tests: str) -> float:
        if not tests.strip():
            return 0.0
        return float(passes(bare_code(answer), tests, self.options.timeout, self.options.memory_mib))


def bare_code(text: str) -> str:
    """The first fenced block of a Markdown text, else the whole text. A block that does not end goes to the end of the text."""
    lines = text.split("\n")
    opening = next(((at, found[1]) for at, line in enumerate(lines) if (found := FENCE.match(line))), None)
    if opening is None:
        return text
    at, fence = opening
    return "".join(f"{line}\n" for line in takewhile(lambda line: not _closes(line, fence), lines[at + 1 :]))


def _closes(line: str, fence: str) -> bool:
    closing = FENCE.match(line)
    return closing is not None and closing[1].startswith(fence) and not closing[2].strip()


def passes(answer: str, tests: str, seconds: float, memory_mib: int) -> bool:
    """Whether the script of answer and tests runs to its end. `children/answer.py` has the limits."""
    job = json.dumps({"answer": answer, "tests": tests, "seconds": seconds, "memory_mib": memory_mib})
    folder = tempfile.TemporaryDirectory(prefix="advisor-code-", ignore_cleanup_errors=True)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(PROGRAMS / "answer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder.name,
            # Of numerical libraries each thread takes tens of MiB of addresses, which the limit of memory counts.
            env={"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(job.encode(), timeout=seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            kill_group(process.pid)
            process.communicate()
        return said == b"passed"
    finally:
        # Folders within folders, thousands deep, are left to whoever cleans up temporary files.
        with suppress(RecursionError):
            folder.cleanup()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _must_run(seconds: float, memory_mib: int) -> None:
    """Code that is right must pass here, or every answer would score 0. Raises AdvisorError."""
    if os.name != "posix":
        raise AdvisorError("answers cannot be run as code on this system", where="metric code", do="use Linux or macOS.")
    if not passes("one = 1", "assert one == 1", seconds, memory_mib):
        raise AdvisorError(
            f"Python itself does not start within {seconds:g} s and {memory_mib} MiB",
            where="metric code",
            do="raise `timeout` or `memory_mib` of this metric.",
        )
