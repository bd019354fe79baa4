"""The dated table of list prices that a task file may name a row of: data (`prices.json`), never looked at unasked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

KINDS = ("hosted", "machines")
# What stands in a row beside its prices.
WORDS = frozenset({"name", "date", "source"})


@dataclass(frozen=True)
class Listed:
    """A row: `prices` by the names of `PricesSpec`, in US dollars, as `source` listed them in `date` (year and month)."""

    name: str
    kind: str
    date: str
    source: str
    prices: Mapping[str, float]


@cache
def price_table() -> Mapping[str, Listed]:
    """Every row by its name."""
    body = json.loads(files("evals.task").joinpath("prices.json").read_text(encoding="utf-8"))
    rows = [(kind, row) for kind in KINDS for row in body[kind]]
    return {row["name"]: _listed(kind, row) for kind, row in rows}


def _listed(kind: str, row: Mapping[str, str | float]) -> Listed:
    prices = {name: float(value) for name, value in row.items() if name not in WORDS}
    return Listed(str(row["name"]), kind, str(row["date"]), str(row["source"]), prices)
