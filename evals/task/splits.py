"""Train, dev and test: taken as given or drawn by group, frozen by id and hash, and never overlapping."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from evals.errors import Problem
from evals.records import content_hash
from evals.task.checks.wording import words
from evals.task.example import Example
from evals.task.reading.formats import Row

NAMES = ("train", "dev", "test")
MIN_ROWS = 2
MIN_ROWS_TO_SPLIT = 10
DEV_SHARE = TEST_SHARE = 0.2
# What a group that nobody named is called: rows that are nearly the same.
ALIKE = "alike:"


def normalised_input(example: Example) -> str:
    """What counts as the same question: the words of all turns, numbers and signs of arithmetic too; bare symbols are kept."""
    turns = [f"{message.role}: {' '.join(words(message.content)) or message.content.strip()}" for message in example.messages]
    return "\n".join(turns)


def named_groups(rows: Mapping[str, Sequence[Row]]) -> tuple[dict[str, tuple[Row, ...]], int]:
    """The rows of all splits with a group on each that belongs to one, and how many rows were grouped here.

    A group is what the `group` column says, else a cluster of near-duplicates (`clusters`); a row alone in its cluster has
    none. A cluster's name comes from its content, so that it stays when other rows come and go.
    """
    from evals.task.checks.leaks import clusters

    texts = ["\n".join(message.content for message in row.example.messages) for name in rows for row in rows[name]]
    numbers = clusters(texts)
    sizes = Counter(numbers)
    least: dict[int, str] = {}
    for number, text in zip(numbers, texts, strict=True):
        least[number] = min(text, least.get(number, text))
    names = {number: ALIKE + content_hash(text)[:12] for number, text in least.items()}
    grouped: dict[str, tuple[Row, ...]] = {}
    found, at = 0, 0
    for split, some in rows.items():
        new = []
        for row in some:
            number = numbers[at]
            at += 1
            if row.example.group is None and sizes[number] > 1:
                row = replace(row, example=replace(row.example, group=names[number]))  # noqa: PLW2901
                found += 1
            new.append(row)
        grouped[split] = tuple(new)
    return grouped, found


@dataclass(frozen=True)
class Group:
    """Rows that stay together. `draw` is a number in [0, 1) of the seed and the group's name: the order of drawing."""

    rows: tuple[Row, ...]
    draw: float
    label: str

    @property
    def time(self) -> float:
        """Of its latest row: no row of a group may lie after what was drawn as the future."""
        return max(moment(row.example.time) for row in self.rows)


def make_splits(
    given: Mapping[str, Sequence[Row]], seed: int, *, by_label: bool = False
) -> tuple[dict[str, tuple[Row, ...]], list[str]]:
    """Fill in the splits that were not given by drawing whole groups from train. Returns them and what to say aloud.

    Rows with a `time`: the latest groups are the test, those before them dev. Else groups are drawn in the order of a hash
    of seed and name, from each label by its share (`by_label`): where rows are added, changed or taken away later, the
    others keep their split but for a few at the border.
    """
    splits = {name: tuple(given.get(name, ())) for name in NAMES}
    missing = [name for name in ("test", "dev") if name not in given]
    if not missing or len(splits["train"]) < MIN_ROWS_TO_SPLIT:
        return splits, []
    groups = _groups(splits["train"], seed, by_label=by_label)
    timed = all(row.example.time is not None for row in splits["train"])
    total = len(splits["train"])
    for name, share in (("test", TEST_SHARE), ("dev", DEV_SHARE)):
        if name in missing:
            wanted = share * total
            taken = _latest(groups, wanted) if timed else _drawn(groups, share, wanted, seed)
            chosen = set(map(id, taken))
            groups = [one for one in groups if id(one) not in chosen]
            splits[name] = tuple(row for one in taken for row in one.rows)
    splits["train"] = tuple(row for one in groups for row in one.rows)
    how = "by time, the latest last" if timed else f"by group, seed {seed}" + (", each label by its share" if by_label else "")
    sizes = ", ".join(f"{name} {len(splits[name])}" for name in NAMES)
    return splits, [f"{' and '.join(sorted(missing))} split from train {how}: {sizes}"]


def _groups(rows: Sequence[Row], seed: int, *, by_label: bool) -> list[Group]:
    """The groups of some rows in the order of their draw; the group's label is its most frequent one."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(row.example.group or normalised_input(row.example), []).append(row)
    groups = []
    for name, some in together.items():
        targets = Counter(row.example.target for row in some)
        label = max(sorted(targets), key=lambda one: targets[one]) if by_label else ""
        groups.append(Group(tuple(some), draw(seed, name), label))
    return sorted(groups, key=lambda one: (one.draw, one.rows[0].example.id))


def draw(seed: int, name: str) -> float:
    """A number in [0, 1) that only the seed and the name decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()[:7], "big") / 2**56


def _drawn(groups: Sequence[Group], share: float, wanted: float, seed: int) -> list[Group]:
    """Whole groups by their draw, from each label its share of `wanted` rows; what a share leaves over is drawn too."""
    strata: dict[str, list[Group]] = {}
    for one in groups:
        strata.setdefault(one.label, []).append(one)
    here = sum(len(one.rows) for one in groups)
    taken: list[Group] = []
    for label, some in sorted(strata.items()):
        exact = wanted * sum(len(one.rows) for one in some) / here
        # Rounded by a draw of its own: then a row more or less of one label moves no row of another.
        count = math.floor(exact) + (draw(seed, f"{share}\0{label}") < exact - math.floor(exact))
        taken += _up_to(some, count, len(groups) - len(taken) - 1)
    if sum(len(one.rows) for one in taken) < MIN_ROWS:
        chosen = set(map(id, taken))
        rest = [one for one in groups if id(one) not in chosen]
        taken += _up_to(rest, MIN_ROWS - sum(len(one.rows) for one in taken), len(rest) - 1)
    return taken


def _up_to(groups: Sequence[Group], count: int, most: int) -> list[Group]:
    """Groups in their order until they hold `count` rows; one that would overshoot by more than it adds is passed over."""
    taken: list[Group] = []
    held = 0
    for one in groups:
        if held >= count or len(taken) >= most:
            break
        if held + len(one.rows) - count <= count - held:
            taken.append(one)
            held += len(one.rows)
    return taken


def _latest(groups: Sequence[Group], wanted: float) -> list[Group]:
    """The latest groups that hold about `wanted` rows; groups of one moment stay together."""
    moments: dict[float, list[Group]] = {}
    for one in groups:
        moments.setdefault(one.time, []).append(one)
    taken: list[Group] = []
    held = 0
    for at in sorted(moments, reverse=True):
        size = sum(len(one.rows) for one in moments[at])
        rest = sum(len(one.rows) for one in groups) - held - size
        if held >= max(MIN_ROWS, round(wanted)) or rest < MIN_ROWS:
            break
        taken += moments[at]
        held += size
    return taken


def moment(time: str | None) -> float:
    """Seconds of an ISO 8601 date, or the number itself. Raises ValueError for what is neither."""
    text = (time or "").strip()
    try:
        number = float(text)
    except ValueError:
        stamp = datetime.fromisoformat(text)
        return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no moment")
    return number


def time_problems(rows: Sequence[Row], key: str) -> list[Problem]:
    """Rows that lack the time that others have, or whose time cannot be read."""
    if not any(row.example.time is not None for row in rows):
        return []
    problems = []
    for row in rows:
        if row.example.time is None:
            problems.append(Problem(row.file, row.line, key, "other rows have a time and this one has none"))
            continue
        try:
            moment(row.example.time)
        except (ValueError, OverflowError, OSError):
            message = f"{row.example.time[:40]!r} is no time: write a number or an ISO 8601 date such as 2026-05-31"
            problems.append(Problem(row.file, row.line, key, message))
    return problems


def split_problems(splits: Mapping[str, Sequence[Row]]) -> list[Problem]:
    """Too few rows, ids that stand twice, and questions that stand in two splits (normalised exact match)."""
    problems: list[Problem] = []
    rows_in_all = sum(len(splits[name]) for name in NAMES)
    for name in NAMES:
        rows = splits[name]
        if len(rows) < MIN_ROWS:
            file = rows[0].file if rows else f"({name})"
            problems.append(
                Problem(
                    file,
                    0,
                    f"data.{name}",
                    f"{len(rows)} row{'s' if len(rows) != 1 else ''} in the {name} split: at least {MIN_ROWS} are needed, "
                    f"and {MIN_ROWS_TO_SPLIT} in all where dev and test are split from train ({rows_in_all} here)",
                )
            )
    ids: dict[str, Row] = {}
    questions: dict[str, tuple[str, Row]] = {}
    # The test first: the row that is accused, and that a fix takes away, is the one of the lesser split.
    for name in reversed(NAMES):
        for row in splits[name]:
            first = ids.setdefault(row.example.id, row)
            if first is not row:
                problems.append(
                    Problem(
                        row.file,
                        row.line,
                        "id",
                        f"{row.example.id!r} stands at {first.file}:{first.line} too "
                        "(a row without an id is named after its content: equal rows get equal names)",
                    )
                )
            where, other = questions.setdefault(normalised_input(row.example), (name, row))
            if where != name:
                problems.append(
                    Problem(
                        row.file,
                        row.line,
                        f"data.{name}",
                        f"the same input stands in {where} at {other.file}:{other.line}; "
                        f"a score on it would measure memory. `advisor check --fix` leaves this one out",
                    )
                )
    return problems


def freeze(splits: Mapping[str, Sequence[Example]]) -> dict[str, list[dict[str, str]]]:
    """The record of the splits: id and hash of each row."""
    return {name: [{"id": one.id, "hash": row_hash(one)} for one in rows] for name, rows in splits.items()}


def row_hash(example: Example) -> str:
    """16 hex digits of a row's content. The group that was found for it belongs to its neighbours, and does not count."""
    return content_hash(replace(example, group=named_group(example)))[:16]


def named_group(example: Example) -> str | None:
    """The group that the data name, not one that was found for the row."""
    return None if example.group is None or example.group.startswith(ALIKE) else example.group
