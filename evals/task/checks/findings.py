"""What the checks of a task's data find. A finding says what is wrong, shows the rows, and never changes anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["error", "warning", "review", "info"]
# Where a text stands. `preferences`, `replay`: pairs and general rows that training may learn from; `general`: the benchmarks that
# measure forgetting.
Pool = Literal["train", "dev", "test", "preferences", "replay", "documents", "general"]
SPLITS = frozenset({"train", "dev", "test", "preferences", "replay"})
SHOWN = 400
# Leaks that are no matter of opinion: a score on such a row may measure memory.
TAINTING = ("leak.exact", "leak.ngram", "leak.near", "leak.edited")
LEVELS: tuple[Level, ...] = ("error", "warning", "review", "info")


@dataclass(frozen=True)
class Place:
    """One row (or document): its pool, its id, where it stands (`line` 0: the whole file), and the text that is shown."""

    pool: Pool
    id: str
    file: str
    line: int
    text: str


@dataclass(frozen=True)
class Finding:
    """`check` names the check (`leak.exact`, `label_noise`, `personal_data` …), `message` is a sentence for people.

    `places` are the rows that it is about; of a leak both, first the one that a fix would take away (the train row of a
    train/test leak: the test stays whole). `value` is what was measured (Jaccard, ratio, cosine, probability, tokens).
    `drop`: whether `--fix` leaves the row of `places[0]` out. `details` is what else the record keeps, as JSON values.
    """

    check: str
    level: Level
    message: str
    places: tuple[Place, ...] = ()
    value: float | None = None
    drop: bool = False
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checks:
    """All findings, the gravest first; what was not checked, and why; and the seconds that each part took."""

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    seconds: dict[str, float]

    def tainted(self, split: str) -> frozenset[str]:
        """Ids of a split's rows that stand, nearly as they are, in another split."""
        return frozenset(
            place.id
            for one in self.findings
            if one.check in TAINTING and {place.pool for place in one.places} <= SPLITS
            for place in one.places
            if place.pool == split
        )

    def tainted_general(self) -> frozenset[str]:
        """Ids of general benchmark items that stand in the task's training rows."""
        pairs = [one.places for one in self.findings if one.check in TAINTING]
        return frozenset(
            place.id
            for places in pairs
            if any(one.pool in {"train", "preferences", "replay"} for one in places)
            for place in places
            if place.pool == "general"
        )

    def record(self) -> dict[str, Any]:
        return {
            "findings": [asdict(one) for one in self.findings],
            "not_checked": list(self.not_checked),
            "seconds": self.seconds,
        }

    def sentences(self) -> list[tuple[Level, str]]:
        """One line a kind of finding: how many, and the first of them."""
        kinds: dict[tuple[str, Level], list[Finding]] = {}
        for one in self.findings:
            kinds.setdefault((one.check, one.level), []).append(one)
        lines: list[tuple[Level, str]] = []
        for (check, level), some in kinds.items():
            more = f" (and {len(some) - 1} more)" if len(some) > 1 else ""
            lines.append((level, f"{check}: {where(some[0])}{some[0].message}{more}"))
        return lines + [("info", f"not checked: {one}") for one in self.not_checked]


def where(finding: Finding) -> str:
    """The places of a finding as a prefix: file and line, those of both rows where there are two."""
    places = [
        f"{Path(one.file).name}:{one.line}" if one.line else Path(one.file).name for one in finding.places[:2] if one.file
    ]
    return f"{' and '.join(places)}: " if places else ""


def from_record(body: dict[str, Any]) -> Checks:
    findings = tuple(Finding(**{**one, "places": tuple(Place(**place) for place in one["places"])}) for one in body["findings"])
    return Checks(findings, tuple(body["not_checked"]), dict(body["seconds"]))


def shown(finding: Finding) -> list[str]:
    """The rows of a finding, a line each: where they stand and their text."""
    lines = []
    for place in finding.places:
        at = f"{place.file}:{place.line}" if place.line else place.file
        lines.append(f"{place.pool} {at}: {' '.join(place.text.split())}")
    return lines


def counts(checks: Checks) -> dict[str, int]:
    return dict(Counter(one.check for one in checks.findings))
