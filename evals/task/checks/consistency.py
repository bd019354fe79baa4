"""What rows say together: the same input with two answers, the same row twice, and how the labels are shared out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from evals.metrics.number import parse_number
from evals.metrics.text import fold
from evals.task.checks.findings import Finding, Level
from evals.task.checks.places import SHOWN_ROWS, Splits, every_row, place, shortened, whole_file
from evals.task.example import Example
from evals.task.reading.formats import Row
from evals.task.spec import OutputType

# Marks that end a word say little; between digits, or before one, they change the number. Signs such as + and - stay.
END_MARK = re.compile(r"[.,!?;:…。！？]+(?=\s|\Z)")
# Under so many rows of a label a model mostly guesses it, and its own score has no meaning.
FEW_ROWS = 5
# The most frequent label to the rarest one; and the share from which always saying one label looks good.
IMBALANCE = 10.0
MAJORITY = 0.8
NAMED = 8
Meaning = Callable[[str], Hashable]


def repeated_inputs(splits: Splits, output_type: OutputType) -> list[Finding]:
    """Contradictions (`contradiction`: same input, another target, wherever they stand) and rows that stand twice in one
    split (`duplicate`; to be dropped where the texts are equal but for whitespace, else only said)."""
    meaning = _meaning(output_type)
    together: dict[Hashable, list[tuple[str, Row]]] = {}
    for pool, row in every_row(splits):
        together.setdefault(_question(row.example), []).append((pool, row))
    found = []
    for rows in together.values():
        if len(rows) == 1:
            continue
        answers: dict[Hashable, list[tuple[str, Row]]] = {}
        for pool, row in rows:
            answers.setdefault(_answer(row.example, meaning), []).append((pool, row))
        if len(answers) > 1:
            found.append(_contradiction(list(answers.values()), output_type))
        for same in answers.values():
            found += _duplicates(same)
    return found


def class_balance(splits: Splits, labels: Sequence[str]) -> list[Finding]:
    """How the labels are shared out (`class_balance`): one sentence on train, and what a score would hide."""
    counts = {pool: Counter(row.example.target for row in rows) for pool, rows in splits.items()}
    train = counts.get("train", Counter())
    if not train:
        return []
    found = [_shares(splits, train)]
    few = {label: count for label, count in train.items() if count < FEW_ROWS}
    if few:
        message = f"{_labels(few)} under {FEW_ROWS} rows in train: {_listed(few)}"
        found.append(Finding("class_balance", "warning", message, whole_file(splits, "train"), float(len(few)), details=few))
    for pool in ("dev", "test"):
        unseen = {label: count for label, count in counts.get(pool, Counter()).items() if label not in train}
        if unseen:
            message = f"{_labels(unseen)} rows in {pool} and none in train, so that nothing can learn them: {_listed(unseen)}"
            found.append(
                Finding("class_balance", "warning", message, whole_file(splits, pool), float(len(unseen)), details=unseen)
            )
    silent = {label: 0 for label in labels if not any(label in one for one in counts.values())}
    if silent:
        message = (
            f"{_labels(silent)} been declared and {'have' if len(silent) > 1 else 'has'} no row in any split: {_named(silent)}"
        )
        found.append(
            Finding("class_balance", "review", message, whole_file(splits, "train"), float(len(silent)), details=silent)
        )
    return found


def _question(example: Example) -> Hashable:
    """What makes two rows the same question. Of preference data also the two answers that were compared, or the one rated."""
    turns = tuple((one.role, _loosely(one.content), one.tool_calls) for one in example.messages)
    compared: Hashable = None
    if example.rejected is not None:
        compared = frozenset((_loosely(example.target), _loosely(example.rejected)))
    elif example.desirable is not None:
        compared = _loosely(example.target)
    return turns, example.tools, example.images, compared


def _answer(example: Example, meaning: Meaning) -> Hashable:
    if example.desirable is not None and example.rejected is None:
        return example.desirable
    return meaning(example.target)


def _loosely(text: str) -> str:
    """Case, width, whitespace and end marks aside; bare marks keep their text."""
    folded = fold(text)
    return " ".join(END_MARK.sub("", folded).split()) or folded


def _meaning(output_type: OutputType) -> Meaning:
    """What makes two targets the same answer."""
    meanings: dict[OutputType, Meaning] = {"label": str.strip, "text": _loosely, "number": _number, "json": _canonical}
    return meanings[output_type]


def _number(text: str) -> Hashable:
    value = parse_number(text)
    # As many digits as the metric's tolerance tells apart.
    return _loosely(text) if value is None else f"{value:.6g}"


def _canonical(text: str) -> Hashable:
    try:
        # 1 and 1.0 are one number.
        return json.dumps(json.loads(text, parse_int=float), sort_keys=True)
    except (ValueError, RecursionError, OverflowError):
        return _loosely(text)


def _contradiction(answers: list[list[tuple[str, Row]]], output_type: OutputType) -> Finding:
    rows = sum(map(len, answers))
    shown = "; ".join(f"{shortened(one[0][1].example.target, 60)!r} ({len(one)})" for one in answers[:SHOWN_ROWS])
    more = f" and {len(answers) - SHOWN_ROWS} more" if len(answers) > SHOWN_ROWS else ""
    first = answers[0][0][1].example
    if first.desirable is not None:
        message = f"the same answer to the same input is called both good and bad, in {rows} rows"
    elif first.rejected is not None:
        message = f"of the same two answers now one is preferred and now the other, in {rows} rows"
    else:
        message = f"{rows} rows have the same input and {len(answers)} different targets: {shown}{more}"
    level: Level = "review" if output_type == "text" and first.rejected is None and first.desirable is None else "warning"
    places = tuple(place(*one[0]) for one in answers[:SHOWN_ROWS])
    ids = [row.example.id for one in answers for _, row in one]
    return Finding("contradiction", level, message, places, float(len(answers)), details={"ids": ids})


def _duplicates(rows: list[tuple[str, Row]]) -> list[Finding]:
    """Each later row of the same split, beside the first one."""
    first: dict[str, Row] = {}
    exactly: dict[Hashable, Row] = {}
    found = []
    for pool, row in rows:
        earlier = first.setdefault(pool, row)
        same = exactly.setdefault((pool, _exactly(row.example)), row)
        if earlier is row:
            continue
        equal = same is not row
        other = same if equal else earlier
        how = "the same input and target stand" if equal else "the same input and target, but for case and end marks, stand"
        message = f"{how} at {other.file}:{other.line} too"
        found.append(Finding("duplicate", "review", message, (place(pool, row), place(pool, other)), drop=equal))
    return found


def _exactly(example: Example) -> Hashable:
    """Everything of a row but its name, whitespace folded: what may be dropped because nothing is lost."""
    turns = tuple((one.role, " ".join(one.content.split()), one.tool_calls) for one in example.messages)
    return replace(example, id="", messages=(), target="", group=None), turns, " ".join(example.target.split())


def _shares(splits: Splits, train: Counter[str]) -> Finding:
    (most, largest), smallest = train.most_common(1)[0], min(train.values())
    share, ratio = largest / train.total(), largest / smallest
    message = (
        f"{len(train)} label{'s' if len(train) > 1 else ''} in {train.total():,} training rows, {smallest:,} to {largest:,} rows each "
        f"(1 to {ratio:.3g}); the most frequent, {shortened(most, 60)!r}, has {share:.1%}"
    )
    level: Level = "info"
    if share >= MAJORITY:
        level = "warning"
        message += ": always saying it looks good by accuracy; macro_f1 beside it does not hide the others"
    elif ratio >= IMBALANCE:
        level = "review"
        message += ": the rare ones weigh little in accuracy; look at macro_f1 beside it"
    details = {"counts": dict(train.most_common()), "majority_share": share, "imbalance": ratio}
    return Finding("class_balance", level, message, whole_file(splits, "train"), share, details=details)


def _labels(some: dict[str, int]) -> str:
    return f"{len(some)} label{'s have' if len(some) > 1 else ' has'}"


def _named(some: dict[str, int]) -> str:
    names = ", ".join(repr(shortened(label, 40)) for label in list(some)[:NAMED])
    return names + (f" and {len(some) - NAMED} more" if len(some) > NAMED else "")


def _listed(some: dict[str, int]) -> str:
    rarest = sorted(some.items(), key=lambda one: (one[1], one[0]))
    names = ", ".join(f"{shortened(label, 40)!r} ({count})" for label, count in rarest[:NAMED])
    return names + (f" and {len(some) - NAMED} more" if len(some) > NAMED else "")
