"""A run: one folder with every record, held by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evals.errors import AdvisorError, did_you_mean
from evals.events import Event, OnEvent, Progress, StageFinished, StageStarted, broadcast, to_json
from evals.records import read_json
from evals.task.load import Task, find_task, load_task

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Record = TypeVar("Record")


@dataclass(frozen=True)
class Run:
    """`runs/<id>/`: the id is the task's name and 8 hex digits of the hash of everything that the run depends on."""

    folder: Path
    on_event: OnEvent

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def scores(self) -> Path:
        return self.folder / "scores"

    def path(self, name: str) -> Path:
        return self.folder / name

    def stage(self, name: str, title: str, make: Callable[[], tuple[Record, str, bool]]) -> Record:
        """Run one stage inside its events. `make` returns the record, a summary, and whether it was there already."""
        started = time.monotonic()
        self.on_event(StageStarted(name, title))
        record, summary, reused = make()
        self.on_event(StageFinished(name, time.monotonic() - started, summary, reused))
        return record


def run_folder(task: Task, runs_dir: Path) -> Path:
    return runs_dir / f"{task.name}-{task.hash()[:8]}"


def reuse(path: Path, input_hash: str) -> dict[str, Any] | None:
    """A stage's record where it exists and was made from the same inputs."""
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except AdvisorError:
        return None
    return record if record.get("input_hash") == input_hash else None


@contextmanager
def open_run(task: Task, runs_dir: Path, on_event: OnEvent) -> Iterator[Run]:
    """Hold the run's folder: its lock, and its `events.jsonl` as one more listener.

    Raises AdvisorError where another process holds it, or where the folder cannot be written.
    """
    folder = run_folder(task, runs_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise AdvisorError(
            f"the run's folder cannot be written: {error.strerror or error}",
            where=str(folder),
            do="free some disk space, or choose another place with --runs-dir.",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AdvisorError(
                f"another advisor is working on this run (process {holder})",
                where=str(folder),
                do="wait until it has ended, or stop it; then run the same command again.",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        with _event_log(folder / "events.jsonl") as log:
            yield Run(folder, broadcast([on_event, log]))


@contextmanager
def _event_log(path: Path) -> Iterator[OnEvent]:
    """Appends events as JSON Lines; of progress only beginnings and ends, since the rest is for eyes."""
    with path.open("a", encoding="utf-8") as file:

        def write(event: Event) -> None:
            if isinstance(event, Progress) and 0 < event.done < event.total:
                return
            file.write(json.dumps(to_json(event), ensure_ascii=False) + "\n")
            file.flush()

        yield write


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run: by itself, by its id, or by a task, whose run is the one of the task as it is now.

    A run of an earlier state of the task is not taken in its place: a gate must not pass on what has changed since.
    """
    for folder in (Path(name), runs_dir / name):
        if (folder / "task.json").is_file():
            return folder
    runs = sorted(one.parent.name for one in runs_dir.glob("*/task.json"))
    try:
        task = load_task(find_task(name, EXAMPLES))
    except AdvisorError as error:
        if Path(name).exists() or (EXAMPLES / name).exists():
            raise
        raise AdvisorError(
            f"there is no such run, task or example{did_you_mean(name, runs)}",
            where=name,
            do=f"name one of: {', '.join(runs) or 'no runs in ' + str(runs_dir)}.",
        ) from error
    folder = run_folder(task, runs_dir)
    if not (folder / "task.json").is_file():
        earlier = [one for one in runs if one.rsplit("-", 1)[0] == task.name]
        changed = f" ({', '.join(earlier)}: of an earlier state of its file or data)" if earlier else ""
        raise AdvisorError(f"this task has no run yet{changed}", where=str(folder), do=f"run `advisor run {name}` first.")
    return folder


def task_of(folder: Path) -> Task:
    """The task that a run belongs to, read anew. Raises AdvisorError where it has changed since or is not on this machine."""
    source = Path(read_json(folder / "task.json")["source"])
    task = load_task(source)
    if run_folder(task, folder.parent).name != folder.name:
        raise AdvisorError(
            "the task's file or data have changed since this run",
            where=str(folder),
            do=f"run `advisor run {source}` for the task as it is now; this run's report still stands in its folder.",
        )
    return task
