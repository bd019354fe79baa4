"""Every arm that leaves the weights alone, on real tasks: accuracy and cost, with paired intervals against plain zero-shot.

`banking12` and `banking77` are intents; `restaurant8k` is extraction as JSON (three quarters of the targets are empty); `gsm8k` is
arithmetic in words; `price_list` is a made-up look-up with arithmetic that a small model can do with tools only. Everything is kept
below build/bench/prompts, so that a run goes on where it stopped; `--only NAME` runs one task.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from arms import Arms
from harness import ROOT, Bench, bench_data
from price_list import write_price_list
from rich.console import Console

from baselines.classic.arms import classic_arms
from baselines.prompts.arms import combined, prompt_arms
from baselines.prompts.constrained import constraint_of
from baselines.prompts.instruction import described
from baselines.prompts.optimise.arms import optimised_arms
from baselines.prompts.prompt import Prompt
from baselines.tools.arms import tool_arms
from baselines.tools.demonstrations import bootstrapped
from baselines.trivial import trivial_arms
from evals.engines.engine import Message
from evals.engines.models import DEMO_MODEL
from evals.statistics.paired import paired_difference
from evals.task.example import Example
from evals.task.splits import normalised_input

TEST, DEV = 200, 100
REQUESTS = 200
LABELS = 12
# A vote costs five times what reasons cost, and where those score nothing it finds nothing.
VOTED = ("banking12",)
OPTIMISED = ("banking12", "restaurant8k")
# What stands beside tools where the model calculates: it cannot in its head, and no prompt knows the prices.
WITHOUT_TOOLS = {
    "zero_shot",
    "zero_shot_described",
    "zero_shot_constrained",
    "few_shot_random_8",
    "few_shot_nearest_8",
    "reason_then_answer",
}


def rows(name: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bench_data() / name / f"{split}.jsonl").open(encoding="utf-8")]


def folded(text: str) -> str:
    """As the task's own check for one question in two splits sees it."""
    return normalised_input(Example("", (Message("user", text),), ""))


def write_task(folder: Path, train: list[Any], test: list[Any], items: int, **spec: Any) -> None:
    """A task folder: dev is drawn from train, the test's items from the test file."""
    chance = random.Random(0)
    chosen = chance.sample(test, items)
    # What is asked is not shown: the files share some short messages.
    asked = {folded(row["input"]) for row in chosen}
    train = [row for name, row in {folded(row["input"]): row for row in train}.items() if name not in asked]
    chance.shuffle(train)
    dev, rest = train[: min(DEV, items)], train[min(DEV, items) :]
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in {"train": rest, "dev": dev, "test": chosen}.items():
        numbered = [{"id": f"{name}-{at}", **row} for at, row in enumerate(some)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered), encoding="utf-8")
    methods = ["propose", "gepa", *(["mipro"] if find_spec("dspy") else [])]
    body = {
        "name": folder.name,
        "data": {name: f"{name}.jsonl" for name in ("train", "dev", "test")},
        "model": {"model_name_or_path": DEMO_MODEL},
        "optimise": {"methods": methods, "requests": REQUESTS},
        **spec,
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")


def banking(folder: Path, items: int, count: int | None) -> None:
    train, test = rows("banking77", "train"), rows("banking77", "test")
    labels = sorted({row["output"] for row in train})
    if count:
        labels = sorted(random.Random(0).sample(labels, count))
    train, test = ([row for row in some if row["output"] in labels] for some in (train, test))
    instruction = "Name the intent of the customer's message. Answer with one of these names only:\n" + "\n".join(labels)
    write_task(folder, train, test, items, instruction=instruction, output={"type": "label", "labels": labels})


def restaurant(folder: Path, items: int) -> None:
    instruction = (
        "Extract what the customer says about a restaurant booking, word for word, as one JSON object. Its keys, each only where it "
        "is said: date, time, people, first_name, last_name. Answer {} where nothing of it is said."
    )
    train, test = rows("restaurant8k", "train"), rows("restaurant8k", "test")
    write_task(folder, train, test, items, instruction=instruction, output={"type": "json"}, metric=["json_fields"])


def gsm8k(folder: Path, items: int) -> None:
    def numbers(split: str) -> list[dict[str, str]]:
        found = [
            (row["question"], row["answer"].rsplit("####", 1)[-1].replace(",", "").strip()) for row in rows("gsm8k", split)
        ]
        return [{"input": question, "output": number} for question, number in found]

    write_task(
        folder,
        numbers("train"),
        numbers("test"),
        items,
        instruction="Solve the problem. Answer with the number only.",
        output={"type": "number"},
        tools={"functions": ["calculator"]},
    )


def price_list(folder: Path, items: int) -> None:
    # Another seed than the one by which the protocol was chosen.
    write_price_list(folder, model=DEMO_MODEL, test=items, seed=7)


TASKS: dict[str, Callable[[Path, int], None]] = {
    "banking12": lambda folder, items: banking(folder, items, LABELS),
    "banking77": lambda folder, items: banking(folder, items, None),
    "restaurant8k": restaurant,
    "gsm8k": gsm8k,
    "price_list": price_list,
}


class Measured(Arms):
    """One task's arms on its test items."""

    def __init__(self, name: str, folder: Path, items: int, console: Console) -> None:
        task_folder = folder / name
        if not (task_folder / "task.yaml").is_file():
            with tempfile.TemporaryDirectory(dir=folder) as made:
                TASKS[name](Path(made) / name, items)
                (Path(made) / name).rename(task_folder)
        super().__init__(name, task_folder, folder / "scores", console)
        self.searches = folder / "optimised" / name

    def run(self) -> None:
        task, engine = self.task, self.engine
        constraint = constraint_of(task, engine, self.told)
        prompts = prompt_arms(task, engine, self.embedder, constraint, self.told)
        if self.name in {"gsm8k", "price_list"}:
            prompts = [arm for arm in prompts if arm.name in WITHOUT_TOOLS]
        if self.name not in VOTED:
            prompts = [arm for arm in prompts if not arm.name.startswith("self_consistency")]
        self.measure([*trivial_arms(task), *classic_arms(task, self.embedder), *prompts])
        shown = [arm for arm in prompts if isinstance(arm, Prompt) and arm.name == "few_shot_nearest_8"]
        self.measure(combined(shown, constraint))
        tools = tool_arms(task, engine, None, self.told)
        self.measure([bootstrapped(one, task, self.metrics, self.told) for one in tools])
        if self.name in OPTIMISED:
            self.measure(optimised_arms(task, engine, engine, self.metrics, self.searches, self.told, described(task)))

    def figures(self) -> dict[str, Any]:
        """With what the searches for instructions spent."""
        found = super().figures()
        for path in sorted(self.searches.glob("*.json")):
            body = json.loads(path.read_text(encoding="utf-8"))
            found[f"search_{path.stem}"] = {key: body[key] for key in ("improved", "spent") if key in body}
        return found


def judge(bench: Bench, name: str, measured: Measured) -> None:
    mean = {arm: scores.mean for arm, scores in measured.scores.items()}
    scores = measured.scores
    if name == "banking12":
        gap = paired_difference(scores["few_shot_nearest_8"].values(), scores["few_shot_random_8"].values())
        bench.figure(
            "banking12, nearest minus random at 8", {"points": 100 * gap.estimate, "low": 100 * gap.low, "high": 100 * gap.high}
        )
        bench.goal("nearest minus random few-shot, 12 labels, points", 30, 100 * gap.estimate, 100 * gap.estimate >= 30)
        best = max(one.mean for one in scores.values() if one.kind == "no_llm")
        bench.goal("best arm without a language model, 12 labels", 0.90, best, best >= 0.90)
    if name == "price_list":
        tools = max(value for arm, value in mean.items() if scores[arm].kind == "tools")
        without = max(value for arm, value in mean.items() if scores[arm].kind == "prompt")
        bench.figure("price_list, with and without tools", {"with": tools, "best prompt without": without})
        bench.goal("price list with tools", 0.8, tools, tools >= 0.8)
    ids = [[item.id for item in one.items] for one in scores.values()]
    bench.invariant(f"{name}: every arm answered the same items", all(one == ids[0] for one in ids))
    asked = [one for one in scores.values() if one.kind not in {"trivial", "no_llm"}]
    bench.invariant(f"{name}: no item went without an answer", not any(one.skipped for one in asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="40 test items")
    parser.add_argument("--only", choices=list(TASKS), action="append", help="only this task (may be given again)")
    given = parser.parse_args()
    console = Console()
    bench = Bench("prompts", fast=given.fast)
    items = 40 if given.fast else TEST
    folder = ROOT / "build" / "bench" / ("prompts-fast" if given.fast else "prompts")
    folder.mkdir(parents=True, exist_ok=True)
    bench_data()
    tables = []
    for name in given.only or TASKS:
        measured = Measured(name, folder, items, console)
        measured.run()
        bench.figure(name, measured.figures())
        judge(bench, name, measured)
        tables.append(measured.table())
        console.print(tables[-1])
    if not find_spec("dspy"):
        bench.lacks("MIPROv2: dspy is not installed (the extra `mipro`)")
    bench.lacks(f"self-consistency on other tasks than {', '.join(VOTED)}")
    bench.finish()
    for table in tables:
        console.print(table)


if __name__ == "__main__":
    main()
