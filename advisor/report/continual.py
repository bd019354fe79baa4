"""Forgetting over time, in Markdown: what it says, the curves or the matrix, and the numbers that they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.decision.compare import Comparison, signed
from advisor.decision.continual import BASE, Cell, Chain, Course, Elsewhere, Mean
from advisor.report.quoted import block, plain
from advisor.report.table import table
from evals.general.divergence import Divergence
from trainer.card import escaped

# Columns of each panel of the drawing, and of the names before it.
WIDTH, NAMES = 28, 18
TITLES = {"checkpoints": "over the steps of one training", "models": "over models in their order"}
SEEN = (
    "All of it is dev and the general suite; the locked test was not opened, since looking at every row there would choose by it. "
    "Intervals are over items, not over trainings with other seeds."
)
Span = tuple[float, float, float]


def continual_report(record: Course | Chain) -> str:
    return _chain(record) if isinstance(record, Chain) else _course(record)


def _course(course: Course) -> str:
    parts = [
        f"# Forgetting {TITLES[course.kind]}: {escaped(course.task)}",
        _listed(course.sentences()),
        block(curves(course).splitlines()),
        _escaped_table(course_head(course), course_rows(course)),
        f"`{BASE}` is asked with the same prompt as the tuned weights, not with the best prompt: the run's report holds it against that. "
        "Gains are paired, with 95% intervals; general changes have one-sided 95% bounds. To choose a step, let `advisor run` repair: it "
        "confirms what it chose on items that chose nothing.",
        _general_note(course),
        SEEN,
    ]
    return "\n\n".join(parts) + "\n"


def course_head(course: Course) -> list[str]:
    moved = _moved_head([one.divergences for one in course.points])
    head = [
        "weights",
        "steps",
        f"{course.metric} on dev",
        "gain over base",
        "general",
        "general change",
        "within the margin",
        "broken alone",
    ]
    return [*head, *moved]


def course_rows(course: Course) -> list[list[str]]:
    """A row a point, of plain texts."""
    moved = _moved_head([one.divergences for one in course.points])
    return [
        [
            plain(one.name),
            str(one.step) if one.step or one.name == BASE else "",
            f"{one.dev.mean:.3f}",
            _gain(one.gain) if one.gain else "",
            *(_general(one.general) if one.general else (f"{course.general_base:.3f}", "", "", "")),
            *_moved(one.divergences, moved),
        ]
        for one in course.points
    ]


def curves(course: Course) -> str:
    """Gain on dev and change of the general score with their intervals, first to last downwards; `:` is the base, `!` minus the margin."""
    gains: list[Span] = [
        (one.gain.difference, one.gain.low, one.gain.high) if one.gain else (0.0, 0.0, 0.0) for one in course.points
    ]
    lost: list[Span] = [
        (one.general.change.estimate, one.general.change.low, one.general.change.high) if one.general else (0.0, 0.0, 0.0)
        for one in course.points
    ]
    left, right = _panel(gains, {0.0: ":"}), _panel(lost, {0.0: ":", -course.margin: "!"})
    names = [_short(one.name) for one in course.points]
    lines = [f"{'':{NAMES}}  {'gain on dev, points':<{WIDTH}}   general change, points"]
    lines += [f"{name:<{NAMES}} |{a}| |{b}|" for name, a, b in zip(names, left[0], right[0], strict=True)]
    lines.append(f"{'':{NAMES}}  {left[1]}   {right[1]}")
    lines.append("o estimate, - its interval, : the base, ! minus the margin")
    return "\n".join(line.rstrip() for line in lines)


def _short(name: str) -> str:
    text = plain(name)
    return text if len(text) <= NAMES else f"{text[: NAMES - 1]}…"


def _panel(spans: Sequence[Span], marks: dict[float, str]) -> tuple[list[str], str]:
    """A line a span, `o` its estimate between its limits, and the scale below them."""
    values = [*marks, *(value for one in spans for value in one)]
    low, high = min(values), max(values)
    high = high if high > low else low + 0.01

    def at(value: float) -> int:
        return round((value - low) / (high - low) * (WIDTH - 1))

    lines = []
    for value, bottom, top in spans:
        cells = [" "] * WIDTH
        cells[at(bottom) : at(top) + 1] = "-" * (at(top) - at(bottom) + 1)
        for place, mark in marks.items():
            cells[at(place)] = mark
        cells[at(value)] = "o"
        lines.append("".join(cells))
    ends = f"{100 * low:<+{WIDTH // 2}.1f}{100 * high:>+{WIDTH - WIDTH // 2}.1f}"
    return lines, ends


def _chain(chain: Chain) -> str:
    scores = chain.scores
    parts = [
        f"# Forgetting over a chain of tasks: {escaped(', '.join(chain.tasks))}",
        _listed(chain.sentences()),
        "## Dev score of each task (column) after each training (row)",
        _escaped_table(chain_head(chain), chain_rows(chain)),
        f"`{BASE}` is asked with each task's own prompt, as the tuned weights are. {OWN} General changes are held against the base and "
        "have one-sided 95% bounds.",
        "## What training did to the tasks, in points on dev with 95% intervals",
        _escaped_table(TRANSFER_HEAD, transfer_rows(chain)),
        _means(scores.average, scores.backward_transfer, scores.forward_transfer, scores.forgetting),
        _general_note(chain),
        SEEN,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def chain_head(chain: Chain) -> list[str]:
    named = [f"{plain(task)} ({metric})" for task, metric in zip(chain.tasks, chain.metrics, strict=True)]
    return [
        "after",
        "began with",
        *named,
        "general",
        "general change",
        "within the margin",
        "broken alone",
        *_moved_head(chain.divergences),
    ]


def chain_rows(chain: Chain, *, intervals: bool = True) -> list[list[str]]:
    """The matrix with the general suite beside it, of plain texts; `OWN` says what a star is."""

    def told(cell: Cell) -> str:
        return f"{cell.mean:.3f} ({cell.low:.2f} to {cell.high:.2f})" if intervals else f"{cell.mean:.3f}"

    head = _moved_head(chain.divergences)
    base, *rest = chain.scores.matrix
    rows = [[BASE, "", *map(told, base), f"{chain.general_base:.3f}", "", "", "", *_moved((), head)]]
    for one, cells, general, moved in zip(chain.trainings, rest, chain.general, chain.divergences, strict=True):
        scores = [told(cell) + (" *" if task == one.task else "") for task, cell in zip(chain.tasks, cells, strict=True)]
        rows.append([plain(one.name), plain(one.began) or BASE, *scores, *_general(general), *_moved(moved, head)])
    return rows


OWN = "A star stands at a task's own training."
TRANSFER_HEAD = ["task", "learnt", "backward transfer", "forward transfer", "forgotten", "from"]


def transfer_rows(chain: Chain) -> list[list[str]]:
    """A row a task, of plain texts; empty where a transfer is not defined (backward of the last task, forward of the first)."""
    learnt, backward, forward = (dict(some) for some in (chain.scores.learnt, chain.scores.backward, chain.scores.forward))
    forgotten = dict(chain.scores.forgotten)
    rows = []
    for task in chain.tasks:
        lost = forgotten.get(task)
        told = [_gain(some[task]) if task in some else "" for some in (learnt, backward, forward)]
        rows.append([plain(task), *told, _gain(lost) if lost else "", plain(lost.a) if lost else ""])
    return rows


def _means(average: Mean, backward: Mean | None, forward: Mean | None, forgetting: Mean | None) -> str:
    lines = [f"Mean score of the tasks at the end: {average.estimate:.3f} ({average.low:.3f} to {average.high:.3f})."]
    lines.append(
        "Backward transfer is the score at the end minus that after a task's own training (GEM, Lopez-Paz and Ranzato 2017); forward "
        "transfer that before its own training minus the base's; forgotten is the best earlier score minus that at the end (Chaudhry et "
        "al. 2018)."
    )
    absent = [name for name, one in (("backward", backward), ("forward", forward), ("forgetting", forgetting)) if one is None]
    if absent:
        lines.append(f"Not defined for this chain: {', '.join(absent)}.")
    return " ".join(lines)


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(one)}" for one in sentences)


def _escaped_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table([escaped(one) for one in head], [[escaped(one) for one in row] for row in rows])


def _gain(one: Comparison) -> str:
    return f"{signed(one.difference)} ({signed(one.low)} to {signed(one.high)})"


def _general(one: Elsewhere) -> tuple[str, str, str, str]:
    change = one.change
    told = f"{signed(change.estimate)} ({signed(change.low)} to {signed(change.high)})"
    return f"{one.score:.3f}", told, one.answer, plain(", ".join(one.broken))


def _general_note(record: Course | Chain) -> str:
    left = f" {record.excluded} of its items stand in training rows and are left out." if record.excluded else ""
    margin = f"{100 * record.margin:g} points"
    return (
        f"General suite `{escaped(record.suite)}`: a row *holds* where a loss of {margin} is ruled out, is *broken* where a greater one is "
        f"shown (after Holm's adjustment over the rows), and is undecided between.{left}"
    )


def _moved_head(rows: Sequence[Sequence[Divergence]]) -> list[str]:
    """The texts on which all were held against the base."""
    return [f"KL, {name}" for name in dict.fromkeys(one.name for row in rows for one in row)]


def _moved(found: Sequence[Divergence], head: Sequence[str]) -> list[str]:
    known = {f"KL, {one.name}": f"{one.kl:.3f}" for one in found}
    return [known.get(name, "") for name in head]
