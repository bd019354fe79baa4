"""What every benchmark shares: fair timing of peers, peak memory, and one record of what was found.

A benchmark is a script, `python tests/bench/<name>.py [--fast]`. It reports: a missed goal is a line in a table, and only an
invariant that does not hold (answers that differ, coverage, a false alarm) makes it exit 1.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.engines.machine import available_cores, processor_name
from evals.records import write_json

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 1 << 20
T = TypeVar("T")
Figure = float | int | str | dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What was hoped for and what came. The bench decides `met`, since some goals are floors and some are ceilings."""

    goal: str
    target: float
    value: float
    met: bool


@dataclass(frozen=True)
class Invariant:
    """What must hold whatever the machine."""

    text: str
    holds: bool


class Bench:
    """Collects what one benchmark finds; `finish` prints it and writes `build/bench/<name>.json`."""

    def __init__(self, name: str, *, fast: bool) -> None:
        self.name = name
        self.fast = fast
        self.figures: dict[str, Figure] = {}
        self.goals: list[Goal] = []
        self.invariants: list[Invariant] = []
        self.missing: list[str] = []

    def figure(self, key: str, value: Figure) -> None:
        """A measured number, a word, or a (nested) dict of them. The key should name the unit."""
        self.figures[key] = value

    def goal(self, goal: str, target: float, value: float, met: bool) -> None:
        self.goals.append(Goal(goal, target, value, met))

    def invariant(self, text: str, holds: bool) -> None:
        self.invariants.append(Invariant(text, bool(holds)))

    def lacks(self, what: str) -> None:
        """Something that could not be measured here and why (a peer that is not installed), so that no one takes it for equal."""
        self.missing.append(what)

    def finish(self) -> None:
        """Print the tables, write the record, and exit 1 where an invariant does not hold. Missed goals do not exit."""
        path = ROOT / "build" / "bench" / f"{self.name}.json"
        self._print()
        write_json(
            path,
            {
                "name": self.name,
                "commit": commit(),
                "machine": machine(),
                "figures": self.figures,
                "goals": [asdict(one) for one in self.goals],
                "invariants": [asdict(one) for one in self.invariants],
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "fast": self.fast,
                "missing": self.missing,
            },
        )
        Console().print(f"written: {path.relative_to(ROOT)}", markup=False)
        if not all(one.holds for one in self.invariants):
            sys.exit(1)

    def _print(self) -> None:
        console = Console()
        figures = Table("figure", "value", title=escape(self.name + (" (fast)" if self.fast else "")))
        for key, value in _flat(self.figures):
            figures.add_row(escape(key), escape(_shown(value)))
        console.print(figures)
        if self.goals:
            table = Table("goal", "target", "value", "met")
            for one in self.goals:
                table.add_row(escape(one.goal), _shown(one.target), _shown(one.value), "yes" if one.met else "[bold]NO[/bold]")
            console.print(table)
        if self.invariants:
            table = Table("invariant", "holds")
            for held in self.invariants:
                table.add_row(escape(held.text), "yes" if held.holds else "[bold red]NO[/bold red]")
            console.print(table)
        for what in self.missing:
            console.print(f"not measured: {what}", markup=False)


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested figures as (dotted key, value) rows."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    """Four digits of a fraction, all digits of a count, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,.0f}"


def commit() -> str:
    """Short hash of the checkout, with `-dirty` where files differ from it; `unknown` outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """Where this ran. torch is asked for its GPU only where the bench has imported it: the harness stays light."""
    found: dict[str, Any] = {
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def bench_data() -> Path:
    """The folder with the real data: `ADVISOR_BENCH_DATA`, else `../shared/data` beside the repository.

    Exits 0 with a sentence where it is absent: a machine without the data has nothing to report, and has not failed.
    """
    folder = Path(os.environ.get("ADVISOR_BENCH_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        skip(f"there is no folder {folder}; name the benchmark data with ADVISOR_BENCH_DATA")
    return folder


def skip(why: str) -> NoReturn:
    """End the bench without a record, as a success: it could not be run here."""
    print(f"skipped: {why}.", file=sys.stderr)
    sys.exit(0)


def peak_memory_mib() -> float:
    """The most memory (RSS, MiB) that this process has held so far.

    On Linux from VmHWM and not from getrusage: `ru_maxrss` survives exec, so a child would begin with its parent's peak.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE


def alternating(peers: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Each peer's wall seconds, `repeats` of them, taken in turns in this process.

    Turns, so that a machine which slows down slows all of them; each round begins with the next peer, so that none always
    runs on the caches that another one left. Warm up beforehand what should not be timed.
    """
    names = list(peers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            peers[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


class Measured(NamedTuple):
    """`seconds`: wall time of the call alone, without starting the process. `peak_mib`: the child's peak RSS, imports included."""

    result: Any
    seconds: float
    peak_mib: float


def measured_in_child(function: Callable[..., T], /, *arguments: Any, **named: Any) -> Measured:
    """Run `function` in a fresh process, so that neither memory nor caches of one peer count for another.

    The function must be importable (at the top of a module, the script guarded by `__main__`), and its arguments and result must
    pass through a pipe. Raises RuntimeError with the child's traceback, or with its exit code where it was killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, function, arguments, named))
    child.start()
    # Ours is closed, so that a child which dies without a word ends the wait.
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        outcome = None
    child.join()
    if outcome is None:
        raise RuntimeError(f"{function.__name__} ended without a result (exit code {child.exitcode})")
    if isinstance(outcome, str):
        raise RuntimeError(f"{function.__name__} failed in its process:\n{outcome}")
    return Measured(*outcome)


def _measure(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    try:
        started = time.perf_counter()
        result = function(*arguments, **named)
        sender.send((result, time.perf_counter() - started, peak_memory_mib()))
    except BaseException:
        sender.send(traceback.format_exc())
