"""Parts of a built-in suite, for tests that have no time for the whole."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from evals.general.suites import Suite


def first_items(suite: Suite, name: str = "few", **rows: int) -> Suite:
    """The named tasks of a suite, so many items of each."""
    kept = []
    for task in suite.tasks:
        make: Any = task.config["custom_dataset"]
        if count := rows.get(task.name):
            config = {**task.config, "custom_dataset": partial(make.func, make.args[0][:count])}
            kept.append(replace(task, config=config, items=count, digest=f"{task.digest}-{count}"))
    return Suite(name, tuple(kept))
