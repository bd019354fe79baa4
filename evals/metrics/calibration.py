"""Where people's scores meet a judge's: rows for them to fill in, rows read back, and how far the two agree."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from evals.errors import Problem, ProblemsError
from evals.metrics.quoting import conversation
from evals.statistics.paired import FEW_ITEMS, Paired, paired_difference
from evals.task.example import Example

if TYPE_CHECKING:
    from evals.scores import Scores

MAX_LINE = 1_000_000
CANNOT_PASS = "uncalibrated, cannot pass a gate"
# (example id, answer) -> people's score in [0, 1].
Labels = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Calibration:
    """What `labelled` answers that people scored too say about a judge. Figures are None where they cannot be had.

    `correlation` is Spearman's, `distance` the mean absolute difference, and `bias` the judge's mean minus people's, paired. It is
    `calibrated` from 30 labels on: then prediction-powered inference (`evals.statistics.ppi`) can stand on them, however
    poor the judge is. `sentence` says all that to people.
    """

    labelled: int
    correlation: float | None
    distance: float | None
    bias: Paired | None
    state: Literal["calibrated", "uncalibrated"]
    sentence: str


def calibrate(judged: Sequence[float], human: Sequence[float]) -> Calibration:
    """The judge's and people's scores in [0, 1] of the same answers. Raises ValueError for different lengths or NaN."""
    if len(judged) != len(human):
        raise ValueError(f"{len(judged)} scores of the judge and {len(human)} of people: they must be of the same answers")
    labelled = len(judged)
    if not labelled:
        return Calibration(0, None, None, None, "uncalibrated", f"The judge is {CANNOT_PASS}: no answer was scored by people.")
    bias = paired_difference(judged, human)
    distance = sum(abs(one - other) for one, other in zip(judged, human, strict=True)) / labelled
    correlation = _rank_correlation(judged, human)
    enough = labelled >= FEW_ITEMS
    ranks = "no rank correlation (one side has no spread)" if correlation is None else f"rank correlation {correlation:.2f}"
    agree = (
        f"{ranks}, mean absolute difference {distance:.2f}, judge minus people {bias.estimate:+.2f} "
        f"(95% interval {bias.low:+.2f} to {bias.high:+.2f})."
    )
    lacking = f"The judge is {CANNOT_PASS}: people scored {labelled} answers, {FEW_ITEMS} are needed"
    start = f"The judge is calibrated on {labelled} answers that people scored" if enough else lacking
    state: Literal["calibrated", "uncalibrated"] = "calibrated" if enough else "uncalibrated"
    return Calibration(labelled, correlation, distance, bias, state, f"{start}; {agree}")


def read_labels(path: Path) -> Labels:
    """People's scores from JSON Lines of `id`, `output` and `score`: a number in [0, 1], or of 1 to k with `"scale": k`.

    Other keys are left alone, and so is a row whose score is still null. Several scores of one answer count as their mean.
    Raises ProblemsError with every bad row.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ProblemsError([Problem(str(path), 0, "", f"not UTF-8 text (byte {error.start})")]) from error
    except OSError as error:
        raise ProblemsError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}")]) from error
    found: dict[tuple[str, str], list[float]] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(line)
            if row is not None:
                name, output, score = row
                found.setdefault((name, output), []).append(score)
        except _BadRowError as error:
            problems.append(Problem(str(path), number, error.key, error.message))
    if problems:
        raise ProblemsError(problems)
    return {key: sum(scores) / len(scores) for key, scores in found.items()}


def scored_by_people(labels: Labels, answers: Sequence[tuple[str, str]]) -> tuple[list[int], list[float]]:
    """Positions in `answers`, (id, output) each, that have a label; and the labels. White space around an answer is nothing."""
    keys = [(name, output.strip()) for name, output in answers]
    positions = [at for at, key in enumerate(keys) if key in labels]
    return positions, [labels[keys[at]] for at in positions]


def scored_both(
    labels: Labels, a: Sequence[tuple[str, str]], b: Sequence[tuple[str, str]]
) -> tuple[list[int], list[float], list[float]]:
    """Positions of the items of which people scored both candidates' answers, and those scores: for `ppi_paired_difference`.

    Raises ValueError where a and b are not of the same items in the same order.
    """
    if [name for name, _ in a] != [name for name, _ in b]:
        raise ValueError("a and b must be answers to the same items in the same order")
    first, second = (dict(zip(*scored_by_people(labels, answers), strict=True)) for answers in (a, b))
    positions = sorted(first.keys() & second.keys())
    return positions, [first[at] for at in positions], [second[at] for at in positions]


def to_label(scores_a: Scores, scores_b: Scores, examples: Sequence[Example], count: int, seed: int) -> list[dict[str, Any]]:
    """Rows for people to fill in: both candidates' answers to `count` items drawn at random (all, where there are fewer).

    The draw looks at no score, so that what people say of it holds for all items. The rows are blinded: shuffled, without
    the candidate's name and the judge's opinion; an answer that both gave stands there once. A skipped item is 0 by rule
    and comes filled in. Raises ValueError for under one item, or where the candidates have not answered all `examples`.
    """
    if count < 1:
        raise ValueError(f"{count} items cannot be labelled")
    answered = [{item.id: item for item in scores.items} for scores in (scores_a, scores_b)]
    missing = [one.id for one in examples if not all(one.id in items for items in answered)]
    if missing:
        raise ValueError(f"{len(missing)} examples have no answer of both candidates, the first is {missing[0]}")
    draw = random.Random(seed)
    drawn = draw.sample(sorted(examples, key=lambda one: one.id), min(count, len(examples)))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for example in drawn:
        for item in (items[example.id] for items in answered):
            rows[example.id, item.output.strip()] = {
                "id": example.id,
                "question": conversation(example),
                "target": example.target,
                "output": item.output,
                "score": 0.0 if item.skipped else None,
            }
    shuffled = list(rows.values())
    draw.shuffle(shuffled)
    return shuffled


class _BadRowError(Exception):
    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


def _row(line: str) -> tuple[str, str, float] | None:
    """(id, answer, score in [0, 1]) of one line; None where nobody has scored it yet."""
    if len(line) > MAX_LINE:
        raise _BadRowError("", f"the line is longer than {MAX_LINE:,} characters")
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRowError("", "broken JSON") from error
    if not isinstance(body, dict):
        raise _BadRowError("", "each line is one JSON object")
    name, output = body.get("id"), body.get("output")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise _BadRowError("id", "must be the example's id")
    if not isinstance(output, str):
        raise _BadRowError("output", "must be the answer's text")
    if "score" not in body:
        raise _BadRowError("score", "this key is missing (null where nobody has scored the answer yet)")
    if body["score"] is None:
        return None
    return str(name), output.strip(), _unit(body["score"], body.get("scale"))


def _unit(score: Any, scale: Any) -> float:
    """A score of 0 to 1, or of 1 to `scale`, in [0, 1]."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise _BadRowError("score", "must be a number")
    if scale is None:
        if not 0 <= score <= 1:
            raise _BadRowError("score", f'{str(score)[:20]} is not in [0, 1]; a score of 1 to 5 needs `"scale": 5` beside it')
        return float(score)
    if isinstance(scale, bool) or not isinstance(scale, int) or not 2 <= scale <= 100:
        raise _BadRowError("scale", "must be a whole number from 2 to 100")
    if not 1 <= score <= scale:
        raise _BadRowError("score", f"{str(score)[:20]} is not in 1 to {scale}")
    return (score - 1) / (scale - 1)


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: Pearson's of the ranks, ties at their mean rank. None where a side has one value only."""
    first, second = _centred_ranks(a), _centred_ranks(b)
    size = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / size if size else None


def _centred_ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks - (len(values) + 1) / 2
