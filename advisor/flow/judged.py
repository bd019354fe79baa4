"""A claim that rests on a judge's word: corrected by people's scores where there are enough, else marked as what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from advisor.decision.compare import Comparison
from advisor.decision.outcome import JudgeState
from evals.metrics.calibration import CANNOT_PASS, calibrate, read_labels, scored_both, scored_by_people, to_label
from evals.metrics.options import Judge
from evals.records import content_hash, write_jsonl
from evals.scores import Scores
from evals.statistics.paired import FEW_ITEMS
from evals.statistics.ppi import ppi_paired_difference
from evals.task.load import Task

# Items that people are asked to score: twice what is needed, for a fair interval.
ASKED = 2 * FEW_ITEMS


def judges(task: Task) -> Judge | None:
    """The judge, where its word decides."""
    first = task.metric_options[0]
    return first if isinstance(first, Judge) else None


def uncalibrated(task: Task) -> tuple[str, ...]:
    """What advice that rests on a judge cannot tell: it is given before people have seen the answers."""
    judge = judges(task)
    return (f"The scores are a judge's opinion ({judge.model.model_name_or_path}): {CANNOT_PASS}.",) if judge else ()


def judged_claim(
    task: Task, folder: Path, claim: Comparison, a: Scores, b: Scores, groups: list[str] | tuple[str, ...] | None
) -> tuple[Comparison, JudgeState | None]:
    """The claim by prediction-powered inference, and what the judge's word is worth; the claim as it is where no judge decides.

    Where labels are missing, answers for people to score are written to the run's folder, blinded.
    """
    judge = judges(task)
    if judge is None:
        return claim, None
    labels = read_labels(task.folder / judge.labels) if judge.labels else {}
    answers = [[(item.id, item.output) for item in one.items] for one in (a, b)]
    positions, human_a, human_b = scored_both(labels, answers[0], answers[1])
    # An answer that both gave is one answer.
    pairs: dict[tuple[str, str], tuple[float, float]] = {}
    for one, said in zip((a, b), answers, strict=True):
        at, people = scored_by_people(labels, said)
        pairs |= {said[index]: (one.items[index].score, score) for index, score in zip(at, people, strict=True)}
    found = calibrate([one for one, _ in pairs.values()], [one for _, one in pairs.values()])
    enough = len(positions) >= FEW_ITEMS
    if enough:
        paired = ppi_paired_difference(a.values(), b.values(), positions, human_a, human_b, groups)
        claim = replace(
            claim,
            difference=paired.estimate,
            low=paired.low,
            high=paired.high,
            p=paired.p,
            p_adjusted=max(paired.p, claim.p_adjusted),
        )
        return claim, JudgeState(True, len(positions), found.sentence, "")
    rows = to_label(a, b, task.split(a.split), ASKED, task.spec.seed)
    path = folder / f"to_label_{content_hash(rows)[:8]}.jsonl"
    if not path.exists():  # people may have begun to fill it in
        write_jsonl(path, rows)
    sentence = (
        f"people have scored both answers of {len(positions)} items, {FEW_ITEMS} are needed: the judge is {CANNOT_PASS}; "
        f"fill in `score` in {path.name}, name the file as the judge's `labels:`, and run `advisor evaluate` again"
    )
    return claim, JudgeState(False, len(positions), sentence, str(path))
