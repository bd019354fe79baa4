"""Forgetting over time: over the steps of one training, over models that were tuned again, over a chain of tasks. Pure.

All is measured on dev and on the general suite. The locked test is for one claim, and to look at every step there would choose by it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from advisor.decision.compare import Comparison, adjusted, compare, signed, span_of
from advisor.decision.forgetting import ALPHA, forgetting
from evals.general.divergence import Divergence
from evals.general.lm_eval import GeneralScores
from evals.general.suites import Suite
from evals.scores import Scores
from evals.statistics.combined import mean_of_intervals
from evals.statistics.margin import Answer, NonInferiority, p_beyond
from evals.statistics.paired import holm, mean_interval

BASE = "base"
Groups = tuple[str, ...] | None


@dataclass(frozen=True)
class Elsewhere:
    """The general suite: the mean score on the pooled items, and its change from the base against the margin.

    `p_adjusted` is Holm's over all weights that are measured together, of "the loss is the margin or less". `broken` names the benchmarks
    that are broken on their own.
    """

    score: float
    change: NonInferiority
    p_adjusted: float
    broken: tuple[str, ...]

    @property
    def answer(self) -> Answer:
        """As `change` has it, but broken only after the adjustment."""
        broken = self.change.answer == "broken" and self.p_adjusted >= ALPHA
        return "undecided" if broken else self.change.answer


@dataclass(frozen=True)
class Cell:
    """The mean score on `n` dev items with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Point:
    """Weights on one task. `step` is that of their training (0: none is known). The base's `gain` and `general` are None."""

    name: str
    step: int
    dev: Cell
    gain: Comparison | None
    general: Elsewhere | None
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True)
class Course:
    """Weights on one task, in their order, the base first. `general_base` is its score on the suite's pooled items, `excluded` of its
    items stand in training rows and count nowhere. `kind` is `checkpoints` (steps of one training) or `models` (named ones)."""

    kind: str
    task: str
    metric: str
    suite: str
    margin: float
    general_base: float
    excluded: int
    points: tuple[Point, ...]

    def sentences(self) -> tuple[str, ...]:
        rows = [(one.name, one.general) for one in self.points if one.general]
        return (*_of_dev(self), *_of_general(rows, self.margin))


@dataclass(frozen=True)
class Training:
    """One row of a chain: weights after a training on `task`. `began` names the row whose weights it began with; empty: the base."""

    name: str
    task: str
    began: str


@dataclass(frozen=True)
class Mean:
    """The mean over `tasks` tasks of what was measured on each, with its 95% interval over dev items."""

    estimate: float
    low: float
    high: float
    tasks: int


@dataclass(frozen=True)
class Transfers:
    """`matrix[i][j]` is task j's dev score after training i; row 0 is the base. The comparisons, each with its task, are of dev items, a
    minus b:

    - `learnt`: after the task's own training minus the base;
    - `backward`: at the end minus after its own training (Lopez-Paz and Ranzato 2017, GEM, 1706.08840: R[T][j] - R[j][j]);
    - `forward`: before its own training minus the base (the same, R[j-1][j] - b[j], with the base for b);
    - `forgotten`: the best of the rows before the last minus the end (Chaudhry et al. 2018, 1801.10112). The best of several measured
      scores is measured too well: it is no smaller than minus `backward`.

    A task's own training is the last one on it, and for `forward` the first. The means of the last three are `backward_transfer`,
    `forward_transfer` and `forgetting`, None where a chain has no such task; `average` is the mean of the last row.
    """

    matrix: tuple[tuple[Cell, ...], ...]
    learnt: tuple[tuple[str, Comparison], ...]
    backward: tuple[tuple[str, Comparison], ...]
    forward: tuple[tuple[str, Comparison], ...]
    forgotten: tuple[tuple[str, Comparison], ...]
    average: Mean
    backward_transfer: Mean | None
    forward_transfer: Mean | None
    forgetting: Mean | None


@dataclass(frozen=True)
class Chain:
    """Trainings in their order, and what they did to all tasks: one column a task, one row a training. `general` and `divergences` are
    the trainings', on the suite of the first run; `shared` are sentences on dev rows that stand in training rows of others."""

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    trainings: tuple[Training, ...]
    scores: Transfers
    suite: str
    margin: float
    general_base: float
    excluded: int
    general: tuple[Elsewhere, ...]
    divergences: tuple[tuple[Divergence, ...], ...]
    shared: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        rows = [(one.name, lost) for one, lost in zip(self.trainings, self.general, strict=True)]
        return (*_of_transfer(self), *_of_general(rows, self.margin), *_of_rows(self), *self.shared)


def elsewhere(
    base: GeneralScores, rows: Sequence[GeneralScores], suite: Suite, margin: float, excluded: Collection[str] = ()
) -> tuple[tuple[Elsewhere, ...], float, int]:
    """Of each of the weights what it lost in general, the base's own score on the pooled items, and how many items were left out.

    Raises AdvisorError where one did not answer the base's items.
    """
    found = [forgetting(base, one, suite, margin, excluded=excluded) for one in rows]
    values = holm([_p(base, one, suite, margin, excluded) for one in rows])
    told = tuple(
        Elsewhere(one.tuned, one.pooled, p, tuple(each.task for each in one.broken))
        for one, p in zip(found, values, strict=True)
    )
    return told, found[0].base if found else 0.0, found[0].excluded if found else 0


def _p(base: GeneralScores, tuned: GeneralScores, suite: Suite, margin: float, excluded: Collection[str]) -> float:
    before = {(one.task, one.id): one.score for one in base.items}
    counted = [one for one in tuned.items if one.task in suite.pooled and one.id not in excluded]
    if not counted:
        return 1.0
    return p_beyond([one.score for one in counted], [before[one.task, one.id] for one in counted], margin)


def points(
    names: Sequence[tuple[str, int]],
    scores: Sequence[Scores],
    general: Sequence[Elsewhere],
    divergences: Sequence[tuple[Divergence, ...]],
    groups: Groups,
) -> tuple[Point, ...]:
    """The rows of a course. `scores` begin with the base's; the others are of the weights alone. Gains are adjusted together (Holm)."""
    base, *rest = scores
    gains = adjusted([compare(one, base, groups) for one in rest])
    first = Point(BASE, 0, cell(base, groups), None, None, ())
    return (
        first,
        *(
            Point(name, step, cell(one, groups), gain, lost, moved)
            for (name, step), one, gain, lost, moved in zip(names, rest, gains, general, divergences, strict=True)
        ),
    )


def cell(scores: Scores, groups: Groups) -> Cell:
    found = mean_interval(scores.values(), groups)
    return Cell(found.estimate, found.low, found.high, found.n)


def transfers(
    rows: Sequence[Sequence[Scores]], learns: Sequence[int], tasks: Sequence[str], groups: Sequence[Groups]
) -> Transfers:
    """`rows[i][j]`: scores on task j's dev items after training i, row 0 the base's; `learns[i - 1]` is the column of training i.

    Raises ValueError where a task is trained by no row.
    """
    last = len(rows) - 1
    own = [[row for row in range(1, last + 1) if learns[row - 1] == column] for column in range(len(tasks))]
    if not last or not all(own):
        raise ValueError("each task of a chain needs a training")

    def minus(column: int, a: int, b: int) -> Comparison:
        return compare(rows[a][column], rows[b][column], groups[column])

    columns = range(len(tasks))
    learnt = [(at, minus(at, own[at][-1], 0)) for at in columns]
    backward = [(at, minus(at, last, own[at][-1])) for at in columns if own[at][-1] < last]
    forward = [(at, minus(at, own[at][0] - 1, 0)) for at in columns if own[at][0] > 1]
    forgotten = [(at, minus(at, _best_row(rows, at), last)) for at, _ in backward]
    # Claims that are made together; what was forgotten is chosen by its size, and no claim.
    claims = adjusted([one for _, one in (*learnt, *backward, *forward)])
    cuts = (0, len(learnt), len(learnt) + len(backward), len(claims))

    def named(some: Sequence[tuple[int, Comparison]], part: int) -> tuple[tuple[str, Comparison], ...]:
        chosen = [one for _, one in some] if part < 0 else claims[cuts[part] : cuts[part + 1]]
        return tuple((tasks[at], one) for (at, _), one in zip(some, chosen, strict=True))

    final = tuple(cell(rows[last][at], groups[at]) for at in columns)
    return Transfers(
        tuple(tuple(cell(row[at], groups[at]) for at in columns) for row in rows),
        named(learnt, 0),
        named(backward, 1),
        named(forward, 2),
        named(forgotten, -1),
        Mean(*mean_of_intervals([(one.mean, one.low, one.high) for one in final]), len(final)),
        _mean([one for _, one in backward]),
        _mean([one for _, one in forward]),
        _mean([one for _, one in forgotten]),
    )


def _best_row(rows: Sequence[Sequence[Scores]], column: int) -> int:
    """Of the trainings before the last the first with the best score; the base is none."""
    return max(range(1, len(rows) - 1), key=lambda row: rows[row][column].mean)


def _mean(some: Sequence[Comparison]) -> Mean | None:
    """Dev items of different tasks are different items: their errors are independent."""
    if not some:
        return None
    return Mean(*mean_of_intervals([(one.difference, one.low, one.high) for one in some]), len(some))


def _of_dev(course: Course) -> list[str]:
    rest = course.points[1:]
    best = max(rest, key=lambda one: one.gain.difference if one.gain else 0.0)
    gain = best.gain
    if gain is None:
        return []
    told = span_of(gain.difference, gain.low, gain.high, gain.n)
    shown = "shown to gain" if gain.better else "not shown to gain"
    lead = f"Largest gain over the base on dev: {best.name}, {told}, {shown} after Holm's adjustment over {len(rest)}."
    return [f"{lead} The largest of several is measured too well."] if len(rest) > 1 else [lead]


def _of_general(rows: Sequence[tuple[str, Elsewhere]], margin: float) -> list[str]:
    named = {answer: [name for name, one in rows if one.answer == answer] for answer in ("holds", "broken", "undecided")}
    points_lost = f"{100 * margin:g} points"
    found = []
    if named["broken"]:
        found.append(
            f"General loss shown to be beyond {points_lost}: {', '.join(named['broken'])}; first at {named['broken'][0]}."
        )
    if named["holds"]:
        found.append(f"General loss shown to be within {points_lost}: {', '.join(named['holds'])}.")
    if named["undecided"]:
        more = [one.change.more_items for _, one in rows if one.answer == "undecided"]
        most = max((one for one in more if one), default=0)
        settle = f" About {most} more items would settle all of them." if most and all(more) else ""
        found.append(f"Not settled, which is not the same as no loss: {', '.join(named['undecided'])}.{settle}")
    return found


def _of_transfer(chain: Chain) -> list[str]:
    """A later training is named as the cause only where it began with the weights that it is held against."""
    scores, found = chain.scores, []
    inherited = _inherited(chain)
    cost = (
        "what later trainings cost earlier tasks" if inherited >= dict(scores.backward).keys() else "what the last weights lack"
    )
    # Of two trainings only one is before the last: nothing is chosen.
    chosen = "; the best is chosen by its size, which flatters it" if len(scores.matrix) > 3 else ""
    for name, one, what in (
        ("Backward transfer", scores.backward_transfer, f"below 0 {cost}"),
        ("Forward transfer", scores.forward_transfer, "above 0 what earlier trainings gave to tasks not yet trained"),
        ("Forgetting", scores.forgetting, f"from the best of the earlier rows to the last{chosen}"),
    ):
        if one is not None:
            over = f"mean of {one.tasks} task{'s' if one.tasks > 1 else ''}"
            found.append(
                f"{name}: {signed(one.estimate)} points (95% interval {signed(one.low)} to {signed(one.high)}, {over}): {what}."
            )
    for task, each in scores.backward:
        told = span_of(each.difference, each.low, each.high, each.n)
        sure = each.p_adjusted < ALPHA and (each.high < 0 or each.low > 0)
        if not sure:
            found.append(
                f"{task}: inconclusive whether it is answered otherwise at the end than after its own training, {told}."
            )
        elif task in inherited:
            found.append(f"{task} has {'lost' if each.high < 0 else 'won'} by later trainings: {told}.")
        else:
            found.append(
                f"{task} is answered {'worse' if each.high < 0 else 'better'} by the last weights, which did not begin with those of its "
                f"own training: {told}."
            )
    return found


def _inherited(chain: Chain) -> frozenset[str]:
    """The tasks whose own (last) training the last row began with, at once or through others."""
    by_name = {one.name: one for one in chain.trainings}
    own = {one.task: one.name for one in chain.trainings}
    came: set[str] = set()
    name = chain.trainings[-1].name
    while name:
        came.add(name)
        name = by_name[name].began
    return frozenset(task for task, row in own.items() if row in came)


def _of_rows(chain: Chain) -> list[str]:
    replaced = [one.name for one in chain.trainings[1:] if not one.began]
    if not replaced:
        return []
    return [
        f"Trained from the base and not from the row before: {', '.join(replaced)}. Such a row shows other weights put in the place of the "
        "earlier ones, not what a further training lost of them."
    ]
