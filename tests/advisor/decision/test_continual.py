"""What a matrix of scores says, held to the papers' formulas written out; and what the rows of a course are called."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from advisor.decision.continual import Chain, Comparison, Course, Elsewhere, Training, elsewhere, points, transfers
from advisor.report.continual import NAMES, continual_report, curves
from evals.general.lm_eval import GeneralItem, GeneralScores
from evals.general.suites import GeneralTask, Suite
from evals.scores import Score, Scores
from evals.statistics.margin import NonInferiority, p_beyond
from evals.statistics.paired import holm, paired_difference

TASKS = ("a", "b", "c")


def scored(name: str, task: str, values: list[float]) -> Scores:
    return Scores(name, "tuned", "dev", "accuracy", tuple(Score(f"{task}-{at}", one, "x") for at, one in enumerate(values)))


def drawn(seed: int, rows: int, tasks: int) -> list[list[Scores]]:
    chance = random.Random(seed)
    sizes = [chance.randint(12, 30) for _ in range(tasks)]
    return [
        [scored(f"row {row}", TASKS[at], [float(chance.random() < 0.5) for _ in range(size)]) for at, size in enumerate(sizes)]
        for row in range(rows)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [2, 3])
def test_transfers_are_those_of_the_papers(seed: int, count: int) -> None:
    rows = drawn(seed, count + 1, count)
    found = transfers(rows, range(count), TASKS[:count], [None] * count)
    matrix = [[one.mean for one in row] for row in rows]
    assert [[one.mean for one in row] for row in found.matrix] == matrix
    # GEM: T tasks, numbered from 1; b is the base.
    b, r, last = matrix[0], {i: matrix[i] for i in range(1, count + 1)}, count
    bwt = sum(r[last][i - 1] - r[i][i - 1] for i in range(1, last)) / (last - 1)
    fwt = sum(r[i - 1][i - 1] - b[i - 1] for i in range(2, last + 1)) / (last - 1)
    # Chaudhry et al.: the maximum over all models before the last.
    forgetting = sum(max(r[l][j - 1] for l in range(1, last)) - r[last][j - 1] for j in range(1, last)) / (last - 1)  # noqa: E741
    assert found.backward_transfer is not None
    assert found.forward_transfer is not None
    assert found.forgetting is not None
    assert found.backward_transfer.estimate == pytest.approx(bwt)
    assert found.forward_transfer.estimate == pytest.approx(fwt)
    assert found.forgetting.estimate == pytest.approx(forgetting)
    assert found.average.estimate == pytest.approx(sum(r[last]) / count)
    assert found.forgetting.estimate >= -found.backward_transfer.estimate - 1e-12
    for at, (task, one) in enumerate(found.learnt):
        paired = paired_difference(rows[at + 1][at].values(), rows[0][at].values())
        assert (task, one.difference, one.low, one.high) == (TASKS[at], paired.estimate, paired.low, paired.high)
    claims = [one for _, one in (*found.learnt, *found.backward, *found.forward)]
    assert [one.p_adjusted for one in claims] == pytest.approx(holm([one.p for one in claims]))
    for transfer in (found.backward_transfer, found.forward_transfer, found.forgetting):
        assert transfer.low <= transfer.estimate <= transfer.high


def test_of_a_task_that_is_trained_again_the_last_training_counts() -> None:
    """a, b, a: only b can be lost at the end, and only b had trainings before its own."""
    rows = drawn(3, 4, 2)
    found = transfers(rows, [0, 1, 0], TASKS[:2], [None, None])
    matrix = [[one.mean for one in row] for row in rows]
    assert {task: one.difference for task, one in found.learnt} == pytest.approx(
        {"a": matrix[3][0] - matrix[0][0], "b": matrix[2][1] - matrix[0][1]}
    )
    assert {task: one.difference for task, one in found.backward} == pytest.approx({"b": matrix[3][1] - matrix[2][1]})
    assert {task: one.difference for task, one in found.forward} == pytest.approx({"b": matrix[1][1] - matrix[0][1]})


def test_one_training_has_no_transfer_and_a_task_without_one_is_refused() -> None:
    rows = drawn(1, 2, 1)
    found = transfers(rows, [0], TASKS[:1], [None])
    assert (found.backward_transfer, found.forward_transfer, found.forgetting) == (None, None, None)
    with pytest.raises(ValueError, match="needs a training"):
        transfers(drawn(1, 3, 2), [0, 0], TASKS[:2], [None, None])


def test_items_of_one_group_count_as_one() -> None:
    rows = [[scored("base", "a", [0.0] * 12)], [scored("one", "a", [1.0, 1.0, 1.0, 0.0] * 3)]]
    alone = transfers(rows, [0], ("a",), [None]).learnt[0][1]
    grouped = transfers(rows, [0], ("a",), [tuple("aaabbbcccddd")]).learnt[0][1]
    assert grouped.high - grouped.low != pytest.approx(alone.high - alone.low)


def general(name: str, right: int, count: int = 200, other: int = 10) -> GeneralScores:
    items = [GeneralItem(f"f-{at}", "facts", float(at < right), "x") for at in range(count)]
    return GeneralScores(name, "quick", (*items, *(GeneralItem(f"o-{at}", "other", 1.0, "x") for at in range(other))))


SUITE = Suite("quick", (GeneralTask("facts", {}, 200, False, "d"), GeneralTask("other", {}, 10, False, "e", pooled=False)))


def test_what_is_lost_in_general_is_called_broken_only_after_the_adjustment_over_all_rows() -> None:
    base = general("base", 150)
    rows = [general(f"row {right}", right) for right in (150, 134, 100)]
    found, score, excluded = elsewhere(base, rows, SUITE, 0.05)
    assert (score, excluded) == (0.75, 0)
    assert [one.change.estimate for one in found] == pytest.approx([0.0, -0.08, -0.25])
    values = [
        p_beyond([float(at < right) for at in range(200)], [float(at < 150) for at in range(200)], 0.05)
        for right in (150, 134, 100)
    ]
    assert [one.p_adjusted for one in found] == pytest.approx(holm(values))
    # Alone the second would be broken.
    assert [one.change.answer for one in found] == ["holds", "broken", "broken"]
    assert values[1] < 0.05 < found[1].p_adjusted
    assert [one.answer for one in found] == ["holds", "undecided", "broken"]
    left_out, score, excluded = elsewhere(base, rows, SUITE, 0.05, {f"f-{at}" for at in range(100)})
    assert (score, excluded, left_out[0].change.n) == (0.5, 100, 100)


def course(changes: dict[str, float], margin: float = 0.05) -> Course:
    base = scored("base", "a", [0.0] * 20)
    rest = [scored(name, "a", [float(at < 4 * number) for at in range(20)]) for number, name in enumerate(changes, start=1)]
    lost = []
    for one in changes.values():
        answer: Any = "holds" if one - 0.02 > -margin else "broken" if one + 0.02 < -margin else "undecided"
        more = 100 if answer == "undecided" else 0
        lost.append(Elsewhere(0.7 + one, NonInferiority(one, one - 0.02, one + 0.02, margin, answer, 400, more), 0.01, ()))
    names = [(name, number) for number, name in enumerate(changes, start=1)]
    made = points(names, [base, *rest], lost, [() for _ in rest], None)
    return Course("checkpoints", "a", "accuracy", "quick", margin, 0.7, 0, made)


def test_a_course_says_where_most_is_gained_and_where_loss_begins() -> None:
    found = course({"step_1": 0.0, "step_2": -0.05, "step_3": -0.1, "step_4": -0.2})
    told = " ".join(found.sentences())
    assert "Largest gain over the base on dev: step_4, +80.0 points" in told
    assert "beyond 5 points: step_3, step_4; first at step_3." in told
    assert "within 5 points: step_1." in told
    assert "Not settled, which is not the same as no loss: step_2. About 100 more items" in told
    gains = [one.gain for one in found.points[1:] if one.gain]
    assert [one.p_adjusted for one in gains] == pytest.approx(holm([one.p for one in gains]))


def test_the_curves_are_drawn_where_the_numbers_are() -> None:
    found = course({"step_1": 0.0, "step_2": -0.04, "step_3": -0.1})
    lines = [line for line in curves(found).splitlines() if "|" in line]
    assert [line[:NAMES].strip() for line in lines] == ["base", "step_1", "step_2", "step_3"]
    panels = [[part for part in line[NAMES:].split("|") if part.strip()] for line in lines]
    left = [one[0].index("o") for one in panels]
    right = [one[1].index("o") for one in panels]
    assert left == sorted(left)
    assert len({*left}) == 4
    assert right[0] == right[1] > right[2] > right[3]
    # Minus the margin is right of what is broken and left of what holds.
    margin = {one[1].index("!") for one in panels if "!" in one[1]}.pop()
    assert right[3] < margin < right[2]


def chain(*, began: str = "one", p: float = 0.001, difference: float = -0.4) -> Chain:
    rows = drawn(1, 3, 2)
    found = transfers(rows, [0, 1], TASKS[:2], [None, None])
    lost = Comparison("two", "one", "dev", "accuracy", 20, difference, difference - 0.1, difference + 0.1, p, p)
    none = Elsewhere(0.7, NonInferiority(0.0, -0.01, 0.01, 0.05, "holds", 400, 0), 1.0, ())
    found = replace(found, backward=(("a", lost),))
    trainings = (Training("one", "a", ""), Training("two", "b", began))
    return Chain(TASKS[:2], ("accuracy", "accuracy"), trainings, found, "quick", 0.05, 0.7, 0, (none, none), ((), ()))


def test_a_chain_says_what_was_lost_and_never_that_nothing_was() -> None:
    assert "a has lost by later trainings: -40.0 points" in " ".join(chain().sentences())
    told = " ".join(chain(p=0.2).sentences())
    assert "a: inconclusive whether it is answered otherwise at the end" in told
    assert "has lost" not in told
    # No training that began elsewhere is called the cause.
    replaced = " ".join(chain(began="").sentences())
    assert "a is answered worse by the last weights, which did not begin with those of its own training: -40.0" in replaced
    assert "has lost" not in replaced
    assert "later trainings cost" not in replaced
    assert "later trainings cost" in " ".join(chain().sentences())
    assert "not from the row before: two" in " ".join(chain(began="").sentences())
    assert "not from the row before" not in " ".join(chain().sentences())


def test_the_report_of_a_chain_holds_the_matrix_and_marks_own_trainings() -> None:
    found = chain()
    text = continual_report(found)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    for at, name in ((0, "base"), (1, "one"), (2, "two")):
        for cell in found.scores.matrix[at]:
            assert f"{cell.mean:.3f}" in rows[name]
    assert rows["one"].split("|")[3].rstrip().endswith("\\*")
    assert rows["two"].split("|")[4].rstrip().endswith("\\*")
    assert "locked test was not opened" in text
