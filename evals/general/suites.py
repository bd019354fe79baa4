"""The built-in suite: local tasks written here, as lm-eval configurations that need no network and no dataset cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from evals.errors import AdvisorError
from evals.general.instruction_checks import check
from evals.records import file_hash, read_jsonl

TASKS = Path(__file__).resolve().parent / "tasks"
# Where an item's own text stands, by kind of task.
ASKED = ("question", "prompt", "context", "good", "sentence_good")
QUICK = ("facts", "arithmetic", "grammar", "common_sense", "instructions")


@dataclass(frozen=True)
class GeneralTask:
    """`chat`: the prompt goes through the model's chat template, and the answer is generated and checked.

    `pooled`: whether its items count in the suite's verdict, or are reported only. `chance` is the score of guessing.
    """

    name: str
    config: dict[str, Any]
    items: int
    chat: bool
    digest: str
    pooled: bool = True
    chance: float = 0.0


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


def _dataset(rows: list[dict[str, Any]], **_: Any) -> Any:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _checked(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    import json

    return {"acc": float(check(results[0], json.loads(doc["check"])))}


def load_task(name: str, folder: Path = TASKS) -> GeneralTask:
    """One task of a folder: `<name>.yaml` beside `<name>.jsonl`."""
    import json

    config: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    data = folder / config.pop("dataset_kwargs")["data_files"]["test"]
    rows = read_jsonl(data)
    chat = bool(config.pop("apply_chat_template", False))
    if chat:
        # Arrow wants one type a column; the checks' arguments differ from row to row, so they travel as text.
        rows = [{**row, "check": json.dumps(row["check"])} for row in rows]
        config["process_results"] = _checked
    config.pop("dataset_path", None)
    config["custom_dataset"] = partial(_dataset, rows)
    told = config.get("metadata") or {}
    digest = file_hash(data)[:16] + file_hash(folder / f"{name}.yaml")[:16]
    return GeneralTask(name, config, len(rows), chat, digest, bool(told.get("pooled", True)), float(told.get("chance", 0.0)))


def quick_suite() -> Suite:
    return Suite("quick", tuple(load_task(name) for name in QUICK))


def standard_suite() -> Suite:
    """Items that `quick` has not. Raises AdvisorError where this version has none."""
    folder = TASKS / "standard"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        raise AdvisorError(
            "this version has no items of the standard suite yet",
            where="general: standard",
            do="name quick, lm-eval tasks, or a folder of task files; `confirm: half` needs no other items.",
        )
    return Suite("standard", tuple(load_task(name, folder) for name in names))


def item_texts(tasks: Sequence[GeneralTask], folder: Path = TASKS) -> list[tuple[str, Path, int, str]]:
    """(id, file, line, text) of each item of a suite, for whoever looks for it in a task's data."""
    found = []
    for task in tasks:
        path = folder / f"{task.name}.jsonl"
        for line, row in enumerate(read_jsonl(path), start=1):
            text = next(str(row[key]) for key in ASKED if key in row)
            found.append((str(row["id"]), path, line, text))
    return found
