"""Demonstrations: which training rows a question is shown, drawn at random, spread over the data, or nearest to the question."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from baselines.prompts.prompt import Prompt, answer_format
from evals.candidate import PromptFormat
from evals.engines.embed import Embedder
from evals.engines.engine import Engine, Message
from evals.events import Note, OnEvent
from evals.records import content_hash
from evals.task.example import Example
from evals.task.load import Task
from evals.task.reading.templates import Choose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

SHOTS = (2, 4, 8, 16, 32)
CHOOSERS: tuple[Choose, ...] = ("random", "diverse", "nearest")
# Rows among which those that are spread are looked for, each against each (16 MB); more are drawn down to so many.
MAX_SPREAD = 2000
# Likenesses of questions and training rows that are held at once.
MAX_LIKENESSES = 4_000_000
# Rows by which the typical length of a demonstration is measured.
MEASURED = 100

# The demonstrations of each question, the best one last.
Chooser = Callable[[Sequence[Example]], list[tuple[Example, ...]]]


@dataclass(frozen=True)
class Pool:
    """Training rows that may be shown, equal ones once, with the places of each question and of each group, and the group
    of each training row by its id."""

    rows: tuple[Example, ...]
    questions: Mapping[tuple[Message, ...], Sequence[int]]
    groups: Mapping[str, Sequence[int]]
    group_of: Mapping[str, str]

    def barred(self, example: Example) -> set[int]:
        """Places of the rows that would tell an example its answer: the same question, and for a training row its group."""
        group = self.groups[self.group_of[example.id]] if example.id in self.group_of else ()
        return {*self.questions.get(example.messages, ()), *group}


def pool_of(train: Sequence[Example]) -> Pool:
    rows = tuple({(row.messages, row.target): row for row in reversed(train)}.values())[::-1]
    questions: dict[tuple[Message, ...], list[int]] = {}
    groups: dict[str, list[int]] = {row.group: [] for row in train if row.group is not None}
    for at, row in enumerate(rows):
        questions.setdefault(row.messages, []).append(at)
        if row.group is not None:
            groups[row.group].append(at)
    return Pool(rows, questions, groups, {row.id: row.group for row in train if row.group is not None})


def random_shots(train: Sequence[Example], count: int, seed: int) -> Chooser:
    """The same demonstrations for every question, so that their prefix is computed once; fewer are a part of more.

    A question that is one of them is shown the next one instead.
    """
    pool = pool_of(train)
    order = list(range(len(pool.rows)))
    random.Random(seed).shuffle(order)
    return lambda examples: [_first(pool, order, count, example) for example in examples]


def diverse_shots(train: Sequence[Example], count: int, embedder: Embedder, seed: int, *, by_label: bool = False) -> Chooser:
    """The same demonstrations for every question, chosen so that every training row has one of them near it.

    They are the exemplars of greedy facility location on the cosines of the questions: the first is the row most like all
    others, and each next one is what adds most to the sum, over all rows, of the likeness to the nearest exemplar (at least
    1 - 1/e of the best sum: Nemhauser et al. 1978). That is both of what was found to matter, a spread as Auto-CoT takes it
    from clusters (Zhang et al. 2022, 2210.03493) and rows that stand for others, as vote-k does (Su et al. 2022, 2209.01975);
    coverage by greedy choice: Gupta et al. 2023 (2305.14907). Fewer are a part of more. The most typical one stands last.

    `by_label`: no target is shown again before all were shown once, and so on. `seed` draws the rows that are looked at
    where there are more than MAX_SPREAD.
    """
    pool = pool_of(train)

    @cache
    def order() -> list[int]:
        targets = [row.target if by_label else "" for row in pool.rows]
        some = _sample(targets, MAX_SPREAD, seed)
        vectors = embedder.encode([pool.rows[at].text for at in some], "embedding the training rows")
        chosen = [some[at] for at in spread(vectors, [targets[at] for at in some], count)]
        return [*chosen, *sorted(set(some) - set(chosen))]

    return lambda examples: [_first(pool, order(), count, example)[::-1] for example in examples]


def nearest_shots(train: Sequence[Example], count: int, embedder: Embedder) -> Chooser:
    """The training rows nearest to each question by cosine, the nearest last (Liu et al. 2022, 2101.06804)."""
    pool = pool_of(train)

    @cache
    def vectors() -> Vectors:
        return embedder.encode([row.text for row in pool.rows], "embedding the training rows")

    def choose(examples: Sequence[Example]) -> list[tuple[Example, ...]]:
        questions = embedder.encode([example.text for example in examples], "embedding the questions")
        found = nearest(questions, vectors(), [pool.barred(example) for example in examples], count)
        return [tuple(pool.rows[at] for at in reversed(places)) for places in found]

    return choose


def spread(vectors: Vectors, targets: Sequence[str], count: int) -> list[int]:
    """Places of up to `count` unit vectors (n, d) in the order of greedy facility location; of the targets that were taken
    least often only, where there is a choice. Of gains that are equal to four decimals (as those of two rows near to each
    other are) the first, so that rounding chooses nothing."""
    import numpy as np

    likeness = vectors @ vectors.T
    codes = np.unique(np.asarray(targets, dtype=object).astype(str), return_inverse=True)[1]
    taken = np.zeros(codes.max(initial=0) + 1, dtype=int)
    free = np.ones(len(vectors), dtype=bool)
    covered = np.full(len(vectors), -1.0, dtype=np.float32)
    order: list[int] = []
    while len(order) < min(count, len(vectors)):
        gains = np.maximum(likeness - covered, 0).sum(axis=1, dtype=np.float64)
        open_ = free & (taken[codes] == taken[codes[free]].min())
        best = int(np.argmax(np.where(open_, gains.round(4), -1.0)))
        order.append(best)
        free[best] = False
        taken[codes[best]] += 1
        covered = np.maximum(covered, likeness[best])
    return order


def nearest(questions: Vectors, rows: Vectors, barred: Sequence[Iterable[int]], count: int) -> list[list[int]]:
    """Places of the `count` rows most like each question, the nearest first, equals in the order of rows; none that is barred."""
    import numpy as np

    if not len(rows) or count < 1:
        return [[] for _ in questions]
    found = []
    step = max(1, MAX_LIKENESSES // len(rows))
    for start in range(0, len(questions), step):
        likeness = questions[start : start + step] @ rows.T
        for at, line in enumerate(likeness, start):
            line[list(barred[at])] = -np.inf
            least = np.partition(line, -count)[-count] if count < len(line) else -np.inf
            near = np.flatnonzero((line >= least) & np.isfinite(line))
            found.append([int(one) for one in near[np.argsort(-line[near], kind="stable")][:count]])
    return found


def _first(pool: Pool, order: Sequence[int], count: int, example: Example) -> tuple[Example, ...]:
    barred = pool.barred(example)
    some = [at for at in order[: count + len(barred)] if at not in barred]
    return tuple(pool.rows[at] for at in some[:count])


def _sample(targets: Sequence[str], most: int, seed: int) -> list[int]:
    """Places of at most `most` targets, in order, drawn so that each target has its turn before another comes again."""
    if len(targets) <= most:
        return list(range(len(targets)))
    order = list(range(len(targets)))
    random.Random(seed).shuffle(order)
    met: Counter[str] = Counter()
    turns = {}
    for at in order:
        turns[at] = met[targets[at]]
        met[targets[at]] += 1
    return sorted(sorted(order, key=turns.__getitem__)[:most])


def chosen_by(choose: Choose, task: Task, count: int, embedder: Embedder, pool: str) -> tuple[Chooser, dict[str, Any]]:
    """A chooser from the task's training rows, and the settings that it depends on. `pool` is the rows' hash."""
    seed, by_label = task.spec.seed, task.output_type == "label"
    settings: dict[str, Any] = {"choose": choose, "count": count, "pool": pool}
    if choose == "random":
        return random_shots(task.train, count, seed), {**settings, "seed": seed}
    settings["embeddings"] = embedder.fingerprint
    if choose == "nearest":
        return nearest_shots(task.train, count, embedder), settings
    return diverse_shots(task.train, count, embedder, seed, by_label=by_label), {**settings, "seed": seed, "by_label": by_label}


def few_shot_arms(task: Task, engine: Engine, embedder: Embedder, on_event: OnEvent) -> list[Prompt]:
    """`few_shot_<how>_<k>` for k of SHOTS and each way to choose, as far as the training rows and the context go.

    A k is offered where a prompt of mean length fits with it; the longer ones lose demonstrations, which the prompt says.
    """
    answers, system = answer_format(task, engine), PromptFormat(task.instruction, "system")
    counts = _offered(task, engine, system, answers.max_new_tokens, on_event)
    pool = content_hash(task.train)
    arms = []
    for count in counts:
        for choose in CHOOSERS:
            shots, settings = chosen_by(choose, task, count, embedder, pool)
            name = f"few_shot_{choose}_{count}"
            arms.append(Prompt(name, engine, system, answers, shots=shots, shot_settings=settings, on_event=on_event))
    return arms


def _offered(task: Task, engine: Engine, prompt_format: PromptFormat, answer: int, on_event: OnEvent) -> list[int]:
    """The counts that the training rows have and that fit; the others are said."""
    rows = len(pool_of(task.train).rows)
    question, shot = typical_tokens(task, engine, prompt_format)
    offered, left_out = [], []
    for count in SHOTS:
        tokens = question + count * shot + answer
        if count > rows:
            left_out.append(f"{count} (train has {rows} different rows)")
        elif tokens > engine.context_length:
            left_out.append(f"{count} (about {tokens:,.0f} tokens with the answer; the context has {engine.context_length:,})")
        else:
            offered.append(count)
    if left_out:
        on_event(Note(f"no few-shot prompts with {', '.join(left_out)} demonstrations"))
    return offered


def typical_tokens(task: Task, engine: Engine, prompt_format: PromptFormat) -> tuple[float, float]:
    """Mean tokens of a prompt without demonstrations, and of each demonstration, by training rows in the chat template."""
    rows = random.Random(task.spec.seed).sample(task.train, min(MEASURED, len(task.train)))
    others = [*rows[1:], rows[0]]
    bare = engine.count_prompts([prompt_format.messages(row) for row in rows])
    shown = engine.count_prompts([prompt_format.messages(row, (shot,)) for row, shot in zip(rows, others, strict=True)])
    return sum(bare) / len(rows), (sum(shown) - sum(bare)) / len(rows)
