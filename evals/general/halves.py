"""One half of a suite to choose by, the other to confirm on: an item's half is a hash of its id, the same in every run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Literal

from evals.general.named import NamedTask
from evals.general.suites import GeneralTask, Suite

Half = Literal["a", "b"]


def half_of(item: str) -> Half:
    return "b" if hashlib.sha256(item.encode()).digest()[0] % 2 else "a"


def half(suite: Suite, which: Half) -> Suite:
    """The suite's items of one half. What is here is not asked for the other half at all."""
    tasks = tuple(_part(one, which) for one in suite.tasks)
    return replace(suite, name=f"{suite.name}-{which}", tasks=tuple(one for one in tasks if one.items))


def _part(task: GeneralTask, which: Half) -> GeneralTask:
    digest = f"{task.digest}-{which}"
    if isinstance(task, NamedTask):
        chosen = {name: tuple(one for one in at if half_of(f"{name}-{one}") == which) for name, at in task.chosen.items()}
        return replace(task, chosen=chosen, items=sum(map(len, chosen.values())), digest=digest)
    make = task.config["custom_dataset"]
    rows = [row for row in make.args[0] if half_of(str(row["id"])) == which]
    config = {**task.config, "custom_dataset": partial(make.func, rows, *make.args[1:], **make.keywords)}
    return replace(task, config=config, items=len(rows), digest=digest)
