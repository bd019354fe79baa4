"""A task for tools: what does a number of pieces of an item cost? The price stands in no prompt, and the product is too hard.

Made for models of about 100 M parameters, which cannot multiply and have no way to the price, but can copy: an item's code into
a look-up, its price and the quantity into a calculator, and the result into the answer. Items of dev and test stand in no
training row.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TOOLS = '''"""The price list, as a tool."""

import json
from pathlib import Path

PRICES = json.loads((Path(__file__).parent / "prices.json").read_text())


def price_of(item: str) -> int:
    """The price of one piece of an item.

    Args:
        item: its code, such as QX-482
    """
    if item not in PRICES:
        raise KeyError(f"there is no item {item}")
    return PRICES[item]
'''
TOOL_CALLS = ("price_of", "calculator")
LETTERS = [one for one in string.ascii_uppercase if one not in "IO"]


def write_price_list(
    folder: Path, model: str, *, train: int = 60, dev: int = 40, test: int = 200, traces: bool = True, seed: int = 0
) -> Path:
    """Write the task's folder and return it. With `traces` the training rows show the calls, as OpenAI's messages do."""
    draw = random.Random(seed)
    codes = {f"{draw.choice(LETTERS)}{draw.choice(LETTERS)}-{draw.randint(100, 999)}" for _ in range(4 * (train + dev + test))}
    items = draw.sample(sorted(codes), train + dev + test)
    prices = {item: draw.randint(11, 99) for item in items}
    orders = [(item, draw.randint(3, 99), prices[item]) for item in items]
    rows = [traced(*order) if traces and at < train else plain(*order) for at, order in enumerate(orders)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", rows[:train]), ("dev", rows[train : train + dev]), ("test", rows[train + dev :])):
        _write_rows(folder / f"{name}.jsonl", name, some)
    (folder / "prices.json").write_text(json.dumps(prices))
    (folder / "tools.py").write_text(TOOLS)
    spec = {
        "schema_version": 1,
        "name": "price-list",
        "instruction": "Say what the order costs. Answer with the number alone.",
        "data": {name: f"{name}.jsonl" for name in ("train", "dev", "test")},
        "output": {"type": "number"},
        "metric": "numeric_match",
        "model": {"model_name_or_path": model},
        "tools": {"functions": ["python:tools.py:price_of", "calculator"]},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder


def question(item: str, count: int) -> str:
    return f"What do {count} of item {item} cost?"


def plain(item: str, count: int, price: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": question(item, count)}, {"role": "assistant", "content": str(count * price)}]
    return {"messages": turns}


def traced(item: str, count: int, price: int) -> dict[str, Any]:
    """The whole way to the answer: look up the price, multiply, say the result."""
    steps = [({"item": item}, price), ({"expression": f"{count} * {price}"}, count * price)]
    turns: list[dict[str, Any]] = [{"role": "user", "content": question(item, count)}]
    for number, (name, (arguments, result)) in enumerate(zip(TOOL_CALLS, steps, strict=True)):
        call = {"id": f"call{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(result), "tool_call_id": f"call{number}", "name": name},
        ]
    return {"messages": [*turns, {"role": "assistant", "content": str(count * price)}]}


def _write_rows(path: Path, split: str, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps({"id": f"{split}-{at}", **row}) + "\n" for at, row in enumerate(rows)))
