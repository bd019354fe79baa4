"""Suites by name: `quick` and `standard`, lm-eval's own tasks and groups, and folders of task files.

Benchmarks of the Hub are looked for in its cache first, so that what was measured once can be measured again without network.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError, did_you_mean
from evals.general import suites
from evals.general.prepared import prepare, ready, seeded
from evals.general.suites import GeneralTask, Suite
from evals.general.task_files import TaskFile, task_files
from evals.records import content_hash, jsonable

BUILT_IN = ("quick", "standard")
# What leaderboards ask, by the names that lm-eval has for them.
HUB = ("mmlu", "hellaswag", "arc_challenge", "winogrande", "gsm8k", "ifeval", "truthfulqa_mc2")
# Of each benchmark of `hub` where no limit is named: whole, they take a small model a day on a processor.
HUB_ITEMS = 250
# Instructions are made for a model that is asked in its own format; lm-eval's other tasks are asked as plain text, as it does itself.
CHAT = {"ifeval"}
# Items from whose number of options the score of guessing is worked out.
LOOKED_AT = 50
# Seconds to wait for a first sign of the Hub.
PATIENCE = 5.0


@dataclass(frozen=True)
class NamedTask(GeneralTask):
    """A benchmark of lm-eval: its task objects by name (a group has several), and the places of the items that are asked."""

    tasks: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def asked(self) -> dict[str, str]:
        """What each item asks, by its id: for whoever looks for it elsewhere, or shows it. Sentences to choose from where that is all."""
        found = {}
        for task, at, doc in self._docs():
            text = str(task.doc_to_text(doc)) if task.doc_to_text(doc) not in ("", None) else ""
            found[item_id(task, at)] = text or "\n".join(map(str, task.doc_to_choice(doc)))
        return found

    def _docs(self) -> Iterator[tuple[Any, int, Any]]:
        for key, numbers in self.chosen.items():
            docs = self.tasks[key].eval_docs
            for at in numbers:
                yield self.tasks[key], at, docs[at]


def item_id(task: Any, place: int) -> str:
    """An item of lm-eval's: it is known by its place in its task's data, whichever others are drawn."""
    return f"{task.task_name}-{place}"


class Missing(Exception):
    """A benchmark that cannot be asked here. The message says why, and is empty where the Hub cannot be reached."""


def suite_of(
    spec: str | Sequence[str],
    *,
    beside: Path = Path(),
    limit: int | None = None,
    seed: int = 0,
    trust_task_code: bool = False,
) -> Suite:
    """The suite of a name or of several: `quick`, `standard`, `hub`, a task or group of lm-eval, or a folder of its task files.

    Folders are relative to `beside`. Of tasks that are not built in, `limit` items each are drawn by `seed`: the same for every model.
    Raises AdvisorError for a name that is none, and where data cannot be had, with what is there; ProblemsError with every fault of a
    folder's files. `trust_task_code`: a folder's `!function` tags are code of its own, which is run only where this is set.
    """
    names = [spec] if isinstance(spec, str) else list(dict.fromkeys(spec))
    if not names:
        raise AdvisorError(
            "the list of suites is empty", where="general.suite", do="name quick, standard, hub, a task or a folder."
        )
    found: list[GeneralTask] = []
    for name in names:
        if name == "quick":
            found += suites.quick_suite().tasks
        elif name == "standard":
            # Beside `quick`, which has the same kinds of items, under names of their own.
            both = "quick" in names
            found += [replace(one, name=f"standard_{one.name}") if both else one for one in suites.standard_suite().tasks]
        elif name == "hub":
            found += _all_of("hub", HUB, limit or HUB_ITEMS, seed)
        elif (beside / name).is_dir():
            found += [_of_file(one, limit, seed) for one in task_files((beside / name).resolve(), trust_code=trust_task_code)]
        else:
            found += _all_of(name, (name,), limit, seed)
    doubled = sorted({one.name for one in found if [other.name for other in found].count(one.name) > 1})
    if doubled:
        raise AdvisorError(f"the suite has {', '.join(doubled)} twice", where="general.suite", do="name each benchmark once.")
    return Suite(_safe("+".join(Path(name).name or name for name in names)), tuple(found))


def _safe(name: str) -> str:
    """Part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_+-]", "_", name)[:80]


def _all_of(suite: str, names: Sequence[str], limit: int | None, seed: int) -> list[NamedTask]:
    """All of them, or an error that says why not, and which there are."""
    there: list[NamedTask] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            there.append(_of_name(name, limit, seed))
        except Missing as error:
            missing[name] = str(error)
    if not missing:
        return there
    unreached = [name for name, why in missing.items() if not why]
    reasons = [f"{name}: {why}" for name, why in missing.items() if why]
    if unreached:
        reasons.insert(0, f"the data of {', '.join(unreached)} are not in the Hub's cache, and the Hub cannot be reached")
    have = ", ".join([*BUILT_IN, *(one.name for one in there)])
    raise AdvisorError(
        "; ".join(reasons),
        where=f"suite {suite}",
        do=f"mend that, or name what is available here under `general.suite`: {have}.",
    )


@cache
def _manager() -> Any:
    """lm-eval's index of its own tasks: some seconds of reading, once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _of_name(name: str, limit: int | None, seed: int) -> NamedTask:
    prepare()
    known = _manager().all_tasks
    if name not in known:
        raise AdvisorError(
            f"there is no suite, no folder and no lm-eval task of this name{did_you_mean(name, [*BUILT_IN, 'hub', *known])}",
            where=f"general.suite: {name}",
            do="name quick, standard, hub, a task that `lm-eval ls tasks` lists, or a folder of task files.",
        )
    return _task(name, dict(_loaded(name)), limit, seed, chat=name in CHAT)


@cache
def _loaded(name: str) -> Mapping[str, Any]:
    """lm-eval's task objects, with data from the Hub's cache or the Hub. Raises Missing."""
    try:
        with _offline():
            return dict(_manager().load([name])["tasks"])
    except ImportError as error:
        why = f"needs a package that is not installed ({_first_line(error)}): try `pip install 'lm-eval[{name}]'`"
        raise Missing(why) from error
    except Exception as error:  # whatever a library says where its cache has not all
        if not hub_answers():
            raise Missing from error
    try:
        return dict(_manager().load([name])["tasks"])
    except Exception as error:
        raise Missing(f"its data cannot be had: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _offline() -> Iterator[None]:
    """Data sets come from the cache alone: without this, every look costs half a minute of retries where there is no network."""
    import datasets
    import huggingface_hub

    places = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(home, name, False) for home, name in places]
    for home, name in places:
        setattr(home, name, True)
    try:
        yield
    finally:
        for (home, name), value in zip(places, before, strict=True):
            setattr(home, name, value)


@cache
def hub_answers() -> bool:
    """Whether the Hub can be reached (and may be: `HF_HUB_OFFLINE`), asked once a process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:
        return False
    return True


def _of_file(file: TaskFile, limit: int | None, seed: int) -> NamedTask:
    from lm_eval.tasks import TaskManager

    prepare()
    try:
        with seeded():
            tasks = TaskManager(include_defaults=False).load([dict(file.config)])["tasks"]
    except Exception as error:  # columns that are not there, templates that do not parse, data that are no data
        raise AdvisorError(
            f"lm-eval cannot load this task: {type(error).__name__}: {_first_line(error)}",
            where=str(file.path),
            do="mend the file (`lm-eval validate` says more), or leave it out.",
        ) from error
    return _task(file.name, dict(tasks), limit, seed, chat=file.chat, about=[file.digest])


def _task(
    name: str, tasks: dict[str, Any], limit: int | None, seed: int, *, chat: bool, about: Sequence[str] = ()
) -> NamedTask:
    """A benchmark of these task objects, with `limit` items of all of them drawn by `seed`."""
    for one in tasks.values():
        if one.OUTPUT_TYPE == "loglikelihood_rolling":
            raise AdvisorError("this task scores whole texts, not items", where=name, do="take one with questions and answers.")
        ready(one)
    docs = {key: one.eval_docs for key, one in tasks.items()}
    places = [(key, at) for key, rows in docs.items() for at in range(len(rows))]
    if limit is not None and limit < len(places):
        places = random.Random(f"{seed} {name}").sample(places, limit)
    if not places:
        raise AdvisorError("this task has no items", where=name, do="leave it out, or give it data.")
    chosen = {key: tuple(sorted(at for other, at in places if other == key)) for key in docs}
    chosen = {key: numbers for key, numbers in chosen.items() if numbers}
    shown = [(tasks[key], docs[key][at]) for key, numbers in chosen.items() for at in numbers]
    digest = content_hash([[*about], chosen, [_described(tasks[key]) for key in chosen], _hashed(doc for _, doc in shown)])
    metadata = _metadata(next(iter(tasks.values())))
    chance = metadata.get("chance")
    return NamedTask(
        name=_safe(name),
        config={},
        items=len(places),
        chat=chat,
        digest=digest,
        pooled=metadata.get("pooled") is not False,
        chance=float(chance) if isinstance(chance, int | float) else _guessing(shown[:: max(1, len(shown) // LOOKED_AT)]),
        tasks={key: tasks[key] for key in chosen},
        chosen=chosen,
    )


def _metadata(task: Any) -> Mapping[str, Any]:
    found = getattr(task.config, "metadata", None)
    return found if isinstance(found, Mapping) else {}


def _described(task: Any) -> str:
    """All that the task file says, but where its data lie: these are hashed themselves."""
    return repr(sorted((key, jsonable(one)) for key, one in task.dump_config().items() if key != "dataset_kwargs"))


def _hashed(docs: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(repr(doc).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _guessing(shown: Sequence[tuple[Any, Any]]) -> float:
    """The mean of one over the number of options, of tasks that lm-eval scores itself; 0 where answers are written."""
    shares = [
        1 / max(1, len(task.doc_to_choice(doc)))
        if task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results)
        else 0.0
        for task, doc in shown
    ]
    return sum(shares) / len(shares)
