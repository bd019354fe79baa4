"""Has the data changed since an earlier run of this task, and what does that do to what the run found?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advisor.flow.run import run_folder
from evals.errors import AdvisorError
from evals.records import read_json
from evals.task.load import Task
from evals.task.splits import NAMES, freeze


@dataclass(frozen=True)
class Drift:
    """Rows of a task now against those of an earlier run, by id and hash.

    `changed`, `added` and `removed` count rows by today's (or, where removed, the run's) split; `once_seen` are rows of
    today's test that the run trained on or chose with; `once_test` are rows of the run's locked test that stand in train or
    dev today.
    """

    run: str
    changed: dict[str, int]
    added: dict[str, int]
    removed: dict[str, int]
    once_seen: int
    once_test: int

    @property
    def any(self) -> bool:
        moved = self.once_seen + self.once_test
        return bool(moved or any(sum(one.values()) for one in (self.changed, self.added, self.removed)))

    def sentences(self) -> list[str]:
        """What changed, and what it does to the old run; empty where the rows are the same."""
        if not self.any:
            return []
        parts = []
        for what, counts in (("changed", self.changed), ("new", self.added), ("gone", self.removed)):
            told = ", ".join(f"{count} in {name}" for name, count in counts.items() if count)
            if told:
                parts.append(f"{what}: {told}")
        said = [
            f"the data are not those of run {self.run} ({'; '.join(parts) or 'rows moved between splits'}): its scores stand "
            "for the rows as they were and are not compared with new ones; its report and verdict are of that state"
        ]
        if self.once_test:
            said.append(
                f"{self.once_test} rows of that run's locked test are in train or dev now: nothing trained from here on may be "
                "scored on that run's test"
            )
        if self.once_seen:
            said.append(
                f"{self.once_seen} of today's test rows were in that run's train or dev: an adapter or a prompt chosen there has "
                "seen them, so this run measures everything anew"
            )
        return said


def drift(task: Task, runs_dir: Path) -> Drift | None:
    """Against the newest other run of the same task file; None where there is none."""
    source = str(task.folder.resolve())
    runs: list[tuple[float, Path]] = []
    for record in runs_dir.glob("*/splits.json"):
        try:
            if read_json(record.parent / "task.json").get("source") == source:
                runs.append((record.stat().st_mtime, record.parent))
        except (OSError, AdvisorError):
            continue
    # The name of the task's own run takes a hash of all rows: not where there is nothing to compare.
    others = [one for one in runs if one[1].name != run_folder(task, runs_dir).name]
    return _between(task, max(others)[1]) if others else None


def _between(task: Task, folder: Path) -> Drift | None:
    try:
        body = read_json(folder / "splits.json")
        then = {str(row["id"]): (name, str(row["hash"])) for name in NAMES for row in body[name]}
    except (OSError, AdvisorError, KeyError, TypeError):
        return None
    frozen = freeze({name: task.split(name) for name in NAMES})
    now = {row["id"]: (name, row["hash"]) for name in NAMES for row in frozen[name]}
    changed, added, removed = (dict.fromkeys(NAMES, 0) for _ in range(3))
    once_seen = once_test = 0
    for key, (name, digest) in now.items():
        if key not in then:
            added[name] += 1
            continue
        before, old = then[key]
        changed[name] += digest != old
        once_seen += name == "test" and before != "test"
        once_test += name != "test" and before == "test"
    for key, (name, _) in then.items():
        removed[name] += key not in now
    return Drift(folder.name, changed, added, removed, once_seen, once_test)
