"""The built-in suites: local tasks written here, as lm-eval configurations that need no network and no dataset cache.

A task is asked as `tasks/<name>.yaml` says; its items are `tasks/quick/<name>.jsonl` and, others, `tasks/standard/<name>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from evals.general.instruction_checks import check
from evals.records import file_hash, read_jsonl

TASKS = Path(__file__).resolve().parent / "tasks"
# Where an item's own text stands, by kind of task.
ASKED = ("question", "prompt", "context", "good", "sentence_good")
NAMES = ("facts", "arithmetic", "grammar", "common_sense", "reading", "instructions", "refusals", "german")


@dataclass(frozen=True)
class GeneralTask:
    """`chat`: the prompt goes through the model's chat template, and the answer is generated and checked.

    `pooled`: whether its items count in the suite's verdict, or are reported only. `chance` is the score of guessing. `data` is the
    file of a built-in task's items.
    """

    name: str
    config: dict[str, Any]
    items: int
    chat: bool
    digest: str
    pooled: bool = True
    chance: float = 0.0
    data: Path | None = None


@dataclass(frozen=True)
class Suite:
    """Tasks that are measured together, under a name."""

    name: str
    tasks: tuple[GeneralTask, ...]

    @property
    def items(self) -> int:
        return sum(one.items for one in self.tasks)

    @property
    def pooled(self) -> tuple[str, ...]:
        """The names of the tasks whose items count in the verdict."""
        return tuple(one.name for one in self.tasks if one.pooled)

    @property
    def decisive(self) -> Suite:
        """What the verdict rests on: the pooled tasks alone."""
        return replace(self, tasks=tuple(one for one in self.tasks if one.pooled))


def _dataset(rows: list[dict[str, Any]], **_: Any) -> Any:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _checked(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    import json

    return {"acc": float(check(results[0], json.loads(doc["check"])))}


def load_task(name: str, suite: str = "quick") -> GeneralTask:
    """A task's items of one built-in suite."""
    import json

    config: dict[str, Any] = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    data = TASKS / suite / f"{name}.jsonl"
    rows = read_jsonl(data)
    chat = bool(config.pop("apply_chat_template", False))
    if chat:
        # Arrow wants one type a column; the checks' arguments differ from row to row, so they travel as text.
        rows = [{**row, "check": json.dumps(row["check"])} for row in rows]
        config["process_results"] = _checked
    config["custom_dataset"] = partial(_dataset, rows)
    told = config.get("metadata") or {}
    digest = file_hash(data)[:16] + file_hash(TASKS / f"{name}.yaml")[:16]
    pooled, chance = bool(told.get("pooled", True)), float(told.get("chance", 0.0))
    return GeneralTask(name, config, len(rows), chat, digest, pooled, chance, data)


def quick_suite() -> Suite:
    return Suite("quick", tuple(load_task(name) for name in NAMES))


def standard_suite() -> Suite:
    """Other items of the same kinds, more of them."""
    return Suite("standard", tuple(load_task(name, "standard") for name in NAMES))


def rows_of(task: GeneralTask) -> Sequence[Mapping[str, Any]]:
    """The items of a built-in task, or of a part of one; none of others."""
    make = task.config.get("custom_dataset")
    return make.args[0] if isinstance(make, partial) and make.args else ()


def text_of(row: Mapping[str, Any]) -> str:
    """What an item asks: the passage that it is about, and the question. Empty where it has none of the columns known here."""
    question = next((str(row[key]) for key in ASKED if key in row), "")
    return f"{row['passage']}\n{question}" if row.get("passage") else question


def item_texts(tasks: Sequence[GeneralTask]) -> list[tuple[str, Path, int, str]]:
    """(id, file, line, text) of each item of built-in tasks, for whoever looks for it in a task's data."""
    return [
        (str(row["id"]), one.data, line, text_of(row))
        for one in tasks
        if one.data is not None
        for line, row in enumerate(read_jsonl(one.data), start=1)
    ]
