"""General benchmarks, item by item, for base and tuned alike: lm-eval asks and scores, our engine answers (`fast.py`).

The base's answers are kept in the user's cache by the weights' hash, so that only the tuned model costs time. Both models see the same
items, prompts and seeds, and share the base's weights in memory: an adapter is switched on and off.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Ticker
from evals.general.fast import fast_lm
from evals.general.kept import base_home, has_changed, read_items, write_items
from evals.general.named import NamedTask, item_id
from evals.general.prepared import prepare, ready, seeded
from evals.general.suites import GeneralTask, Suite
from evals.records import content_hash, write_jsonl

# Counts up when what an item says changes: answers that were kept before are then measured again.
VERSION = 2
# The score of an item, first come: what leaderboards show of a task that has several.
METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")


@dataclass(frozen=True)
class GeneralItem:
    """One benchmark item: `score` is in [0, 1], 1 where it was answered right; `output` is what the model chose or wrote.

    `probability` is that of the chosen option among the options (softmax over their log-likelihoods), where there are any.
    """

    id: str
    task: str
    score: float
    output: str
    probability: float | None = None


@dataclass(frozen=True)
class GeneralScores:
    model: str
    suite: str
    items: tuple[GeneralItem, ...]

    @property
    def mean(self) -> float:
        return sum(item.score for item in self.items) / len(self.items)

    def by_task(self) -> dict[str, list[GeneralItem]]:
        tasks: dict[str, list[GeneralItem]] = {}
        for item in self.items:
            tasks.setdefault(item.task, []).append(item)
        return tasks


def measure(engine: HfEngine, suite: Suite, folder: Path, label: str, on_event: OnEvent) -> tuple[GeneralScores, bool]:
    """A model's items on a suite, kept as `folder/<suite>/<label>.jsonl`. Returns them, and whether all were there already.

    A finished task is kept, so that an interrupted measurement goes on with the next. The base's (no adapter, no trained weights) are
    looked for in the user's cache too, and left there. Raises AdvisorError where lm-eval cannot run a task.
    """
    home = folder / suite.name / label
    found: dict[str, list[GeneralItem]] = {}
    reasons: set[str] = set()
    for task in suite.tasks:
        items, why = _kept(engine, task, home)
        reasons |= {why} - {""}
        if items is not None:
            found[task.name] = items
    todo = [task for task in suite.tasks if task.name not in found]
    if _is_base(engine) and has_changed(engine) and todo:
        reasons.add("of other weights, which lay in the base's folder before")
    for why in sorted(reasons):
        on_event(Note(f"what is kept of {label} on {suite.name} is {why}: it is measured again", "warning"))
    if todo:
        ticker = Ticker(on_event, f"{label} on {suite.name}", sum(task.items for task in todo), "items")
        for task in todo:
            found[task.name] = _measured(engine, task, ticker, label, on_event)
            _keep(engine, task, home, found[task.name], label)
    scores = GeneralScores(label, suite.name, tuple(item for task in suite.tasks for item in found[task.name]))
    write_jsonl(folder / suite.name / f"{label}.jsonl", [asdict(one) for one in scores.items])
    return scores, not todo


def _is_base(engine: HfEngine) -> bool:
    return engine.adapter is None and not engine.called


def _key(engine: HfEngine, task: GeneralTask) -> str:
    """Of all that the answers depend on: weights, dtype and template; items; the machine, whose sums differ in the last bits."""
    machine = engine.handle.machine
    return content_hash([VERSION, version("lm_eval"), engine.fingerprint, task.digest, machine.processor, machine.torch])


def _kept(engine: HfEngine, task: GeneralTask, home: Path) -> tuple[list[GeneralItem] | None, str]:
    """The task's items from the run's folder, or a base's from the user's cache, and why what is there cannot be used."""
    key = _key(engine, task)
    own = read_items(home, task.name, key)
    items = _items_of(own.rows, task)
    if items is not None or not _is_base(engine):
        return items, own.why or ("damaged" if own.rows is not None and items is None else "")
    cached = read_items(base_home(engine), _cached_name(task), key)
    items = _items_of(cached.rows, task)
    if items is not None:
        write_items(home, task.name, key, [asdict(one) for one in items], task=task.name, from_cache=True)
        return items, ""
    return None, own.why or cached.why or ("damaged" if own.rows is not None or cached.rows is not None else "")


def _cached_name(task: GeneralTask) -> str:
    """Tasks of several suites may share a name (a half of one is called as the whole)."""
    return f"{task.name}-{content_hash(task.digest)[:12]}"


def _items_of(rows: Sequence[Mapping[str, Any]] | None, task: GeneralTask) -> list[GeneralItem] | None:
    """The task's items, every one of them; None where a row is none of ours."""
    if rows is None:
        return None
    try:
        items = [GeneralItem(**row) for row in rows]
    except TypeError:
        return None
    whole = len(items) == task.items == len({one.id for one in items if isinstance(one.id, str)})
    return items if whole and all(one.task == task.name and _sound(one) for one in items) else None


def _sound(item: GeneralItem) -> bool:
    numbers = [item.score, *([] if item.probability is None else [item.probability])]
    return isinstance(item.output, str) and all(type(one) in (int, float) and 0 <= one <= 1 for one in numbers)


def _keep(engine: HfEngine, task: GeneralTask, home: Path, items: Sequence[GeneralItem], label: str) -> None:
    key, rows = _key(engine, task), [asdict(one) for one in items]
    write_items(home, task.name, key, rows, task=task.name, model=label)
    if _is_base(engine):
        # A cache that cannot be written costs a second measurement, no more.
        with suppress(AdvisorError):
            write_items(base_home(engine), _cached_name(task), key, rows, task=task.name, model=engine.name)


def _measured(engine: HfEngine, task: GeneralTask, ticker: Ticker, label: str, on_event: OnEvent) -> list[GeneralItem]:
    """The task's items, and a word where the model had nothing to say to some."""
    finished = ticker.done + task.items
    lm = fast_lm(engine, lambda count: ticker.advance(min(count, finished - ticker.done)))
    tasks, samples = run_task(lm, task)
    ticker.advance(finished - ticker.done)
    items, silent = [], 0
    for name, rows in samples.items():
        for row in _of_one_filter(rows):
            item, said = _item(task, tasks[name], row)
            silent += not said
            items.append(item)
    if len(items) != task.items or len({one.id for one in items}) != len(items):
        raise AdvisorError(
            f"{len(items)} answers for {task.items} items", where=task.name, do="give each item an id of its own."
        )
    if silent:
        on_event(Note(f"{label} answers nothing to {silent} of {task.items} items of {task.name}: they score 0", "warning"))
    return items


def run_task(lm: Any, task: GeneralTask) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """lm-eval's tasks by name (a group has several), and of each the samples that it logs of this `lm_eval.api.model.LM`.

    Raises AdvisorError where it fails.
    """
    prepare()
    from lm_eval.evaluator import evaluate

    with seeded(), _quiet():
        try:
            tasks, chosen = lm_eval_tasks(task)
            # `simple_evaluate` would ask the system for its hardware and software on every call, which takes longer than a small task.
            result = evaluate(
                lm=lm,
                task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
                samples=chosen,
                log_samples=True,
                bootstrap_iters=0,
                apply_chat_template=task.chat,
                fewshot_as_multiturn=task.chat,
            )
        except (AdvisorError, KeyboardInterrupt):
            raise
        except Exception as error:  # a task is what people write: templates, lists of choices, columns that are not there
            raise AdvisorError(
                f"lm-eval cannot run this task: {type(error).__name__}: {str(error)[:300]}",
                where=task.name,
                do="try it with `lm-eval run`, mend it, or leave it out of `general.suite`.",
            ) from error
    return tasks, {name: sorted(rows, key=lambda one: int(one["doc_id"])) for name, rows in result["samples"].items()}


def lm_eval_tasks(task: GeneralTask) -> tuple[dict[str, Any], dict[str, list[int]] | None]:
    """lm-eval's own task objects by name, and the items to be asked of each (None: all)."""
    from lm_eval.tasks import TaskManager

    if isinstance(task, NamedTask):
        # lm-eval takes an empty list of items for all of them.
        chosen = {name: list(numbers) for name, numbers in task.chosen.items() if numbers}
        return {name: task.tasks[name] for name in chosen}, chosen
    tasks = TaskManager(include_defaults=False, include_path=None).load([dict(task.config)])["tasks"]
    for one in tasks.values():
        ready(one)
    return dict(tasks), None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _of_one_filter(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A task may read answers in several ways (`filter_list`), each of which makes samples: the first one's."""
    return [one for one in rows if one["filter"] == rows[0]["filter"]]


def metric_of(sample: Mapping[str, Any], task: str) -> str:
    """The metric that scores an item. Raises AdvisorError where none is a number between 0 and 1 for a single item."""
    values = {name: sample[name] for name in sample["metrics"]}
    single = [name for name, one in values.items() if _is_number(one) and 0 <= float(one) <= 1]
    for name in (*METRICS, *single):
        if name in single:
            return str(name)
    raise AdvisorError(
        f"none of this task's metrics ({', '.join(values) or 'none'}) scores a single item between 0 and 1",
        where=task,
        do="take a task with acc, acc_norm or exact_match.",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (getattr(value, "shape", None) == () and hasattr(value, "item"))


def _item(task: GeneralTask, lm_task: Any, sample: Mapping[str, Any]) -> tuple[GeneralItem, bool]:
    """An item from lm-eval's sample, and whether the model gave an answer at all."""
    doc = sample["doc"]
    name = item_id(lm_task, sample["doc_id"]) if isinstance(task, NamedTask) else str(doc["id"])
    metric = metric_of(sample, task.name)
    output, probability, said = _answer(lm_task, sample, metric)
    # lm-eval takes the first option where no likelihood is a number, and some checks pass on silence.
    return GeneralItem(name, task.name, float(sample[metric]) if said else 0.0, output, probability), said


def _answer(lm_task: Any, sample: Mapping[str, Any], metric: str) -> tuple[str, float | None, bool]:
    """What the model wrote, or the option that it chose with the option's probability; and whether that is anything."""
    if lm_task.OUTPUT_TYPE == "generate_until":
        text = str(sample["resps"][0][0])
        return text, None, bool(text.strip())
    values = [float(one[0]) for one in sample["filtered_resps"]]
    if any(map(math.isnan, values)) or max(values) == -math.inf:
        return "", None, False
    if lm_task.OUTPUT_TYPE != "multiple_choice":
        return f"{values[0]:.4f}", None, True
    options = [str(one) for one in lm_task.doc_to_choice(sample["doc"])]
    values = values[: len(options)]
    weights = [len(one) or 1 for one in options] if metric == "acc_norm" else [1] * len(options)
    chosen = max(range(len(options)), key=lambda at: values[at] / weights[at])
    highest = max(values)
    total = math.fsum(math.exp(one - highest) for one in values)
    return options[chosen], math.exp(values[chosen] - highest) / total, True
