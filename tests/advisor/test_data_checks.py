"""The checks of a task's data inside the flow: both rows are shown, a fix mends what it says, an edit is noticed, leaks are counted out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor.cli.main import main
from advisor.flow.drift import drift
from advisor.flow.fix import fix
from advisor.flow.intake import read_task
from advisor.flow.whole import go
from evals.errors import AdvisorError, ProblemsError
from evals.events import Event, Note, ignore
from evals.records import read_json
from evals.task.checks.findings import Checks, Finding, Place, from_record
from evals.task.load import load_task

Make = Callable[..., Path]
THINGS = [
    "harbour",
    "lantern",
    "orchard",
    "saddle",
    "violin",
    "quarry",
    "teapot",
    "glacier",
    "meadow",
    "compass",
    "anchor",
    "bakery",
]
DEEDS = ["rusting near", "painted beside", "forgotten under", "carried towards", "hidden behind", "sold before", "seen above"]
COLOURS = ["red", "blue", "green", "pink"]


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Sentences of a colour that are not like one another."""
    made = []
    for number in range(start, start + count):
        draw = random.Random(number)
        first, second, third = draw.sample(THINGS, 3)
        colour = COLOURS[number % 4]
        text = f"The {colour} {first} was {draw.choice(DEEDS)} a {second}, {draw.choice(DEEDS)} that {third} {number}"
        made.append({"id": f"row-{number}", "input": text, "output": colour})
    return made


@pytest.fixture
def folder(make_task: Make, tmp_path: Path) -> Path:
    return make_task(tmp_path / "task", rows={"train": rows(40), "dev": rows(16, 40), "test": rows(16, 56)})


def append(file: Path, *bodies: Any) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(body) + "\n" if not isinstance(body, str) else body for body in bodies)


def leak(number: int, name: str) -> dict[str, str]:
    """A row of the test once more, in capitals and without its last word."""
    one = rows(1, number)[0]
    return {**one, "id": name, "input": one["input"].upper().rsplit(" ", 1)[0] + "!"}


def test_check_shows_both_rows_of_a_leak_and_ends_with_zero(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(folder / "train.jsonl", leak(60, "copy"))
    assert main(["check", str(folder), "--no-embeddings", "--runs-dir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert f"{folder / 'train.jsonl'}:41" in out
    assert f"{folder / 'test.jsonl'}:5" in out
    assert "leak." in out
    assert "not checked: label noise" in out


def test_the_findings_as_json_are_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(folder / "train.jsonl", leak(60, "copy"))
    assert main(["check", str(folder), "--json", "--no-embeddings", "--runs-dir", str(tmp_path / "runs")]) == 0
    checks = from_record(json.loads(capsys.readouterr().out))
    assert checks.tainted("test") == {"row-60"}
    assert checks.tainted("train") == {"copy"}


def test_a_fix_leaves_out_what_it_says_and_its_copy_passes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {**rows(1, 70)[0], "id": "again"}
    append(
        folder / "train.jsonl",
        leak(60, "copy"),
        same,
        "{broken\n",
        {"id": "void", "input": "What?", "output": " "},
        {"id": "odd", "input": "The violet lamp of a stranger", "output": "violet"},
        {"id": "row-3", "input": "Another row of this name, about something blue", "output": "blue"},
    )
    spec = yaml.safe_load((folder / "task.yaml").read_text())
    spec["output"] = {"type": "label", "labels": COLOURS}
    (folder / "task.yaml").write_text(yaml.safe_dump(spec))
    before = (folder / "train.jsonl").read_bytes()
    with pytest.raises(ProblemsError, match="advisor check --fix"):
        load_task(folder)
    out = folder / "clean.jsonl"
    assert main(["check", str(folder), "--fix", str(out)]) == 0
    said = capsys.readouterr().out
    for line in (41, 42, 43, 44, 45):
        assert f"train.jsonl:{line}: left out" in said
    assert "train.jsonl:46: renamed" in said
    assert (folder / "train.jsonl").read_bytes() == before
    spec["data"]["train"] = "clean.jsonl"
    (folder / "task.yaml").write_text(yaml.safe_dump(spec))
    task = load_task(folder)
    assert len(task.train) == 41
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept[:40] == rows(40)
    assert "id" not in kept[40]
    again = fix(folder, folder / "cleaner.jsonl", ignore)
    assert (again.changes, again.kept) == ((), {"train": 41})


def test_a_fix_never_writes_over_a_file(folder: Path) -> None:
    before = (folder / "train.jsonl").read_bytes()
    with pytest.raises(AdvisorError, match="such a file already"):
        fix(folder, folder / "train.jsonl", ignore)
    assert (folder / "train.jsonl").read_bytes() == before


def test_a_fix_of_dev_is_written_beside(folder: Path) -> None:
    append(folder / "dev.jsonl", leak(60, "copy"), {**rows(1, 45)[0], "id": "double"})
    fixed = fix(folder, folder / "clean.jsonl", ignore)
    assert {name: path.name for name, path in fixed.written.items()} == {"train": "clean.jsonl", "dev": "clean.dev.jsonl"}
    assert fixed.kept == {"train": 40, "dev": 17}, "what repeats in dev stays"


def test_where_rows_share_their_passages_a_fix_leaves_them_in_and_asks_for_a_group(make_task: Make, tmp_path: Path) -> None:
    passages = [" ".join(row["input"] for row in rows(4, 4 * n)) for n in range(10)]
    asked = [
        {"id": f"q{n}", "input": f"{passages[n % 10]} Which one is the {THINGS[n % 12]}?", "output": COLOURS[n % 4]}
        for n in range(60)
    ]
    folder = make_task(tmp_path / "t", rows={"train": asked[:40], "dev": asked[40:50], "test": asked[50:]})
    fixed = fix(folder, folder / "clean.jsonl", ignore)
    assert fixed.kept["train"] == 40
    assert any("name a `group:` column" in one.message for one in fixed.remaining)


def test_an_edit_of_the_data_is_noticed_and_says_what_it_does_to_the_old_run(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = go(read_task(str(folder)), runs, ignore, until="intake").folder
    assert drift(read_task(str(folder)), runs) is None
    bodies = rows(16, 56)
    bodies[0]["input"] += " indeed"
    moved = bodies.pop()
    (folder / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in bodies))
    append(folder / "train.jsonl", moved, *rows(2, 80))
    found = drift(read_task(str(folder)), runs)
    assert found is not None
    assert found.run == first.name
    assert (found.changed["test"], found.added["train"], found.once_test, found.once_seen) == (1, 2, 1, 0)
    heard: list[Event] = []
    go(read_task(str(folder)), runs, heard.append, until="intake")
    said = " ".join(one.text for one in heard if isinstance(one, Note) and one.level == "warning")
    assert f"the data are not those of run {first.name}" in said
    assert "1 rows of that run's locked test are in train or dev now" in said


def test_what_was_checked_once_is_not_checked_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(folder / "train.jsonl", leak(60, "copy"))
    first = go(read_task(str(folder)), tmp_path / "runs", ignore, until="intake")
    monkeypatch.setattr("advisor.flow.intake.check_data", lambda *_, **__: pytest.fail("checked again"))
    second = go(read_task(str(folder)), tmp_path / "runs", ignore, until="intake")
    assert second.checks == first.checks
    assert read_json(first.folder / "checks.json")["findings"]
    report = (first.folder / "report.md").read_text()
    assert "## The data" in report
    assert "leak." in report


def finding(check: str, *places: tuple[str, str]) -> Finding:
    return Finding(check, "warning", "alike", tuple(Place(pool, name, "f", 1, "") for pool, name in places))  # type: ignore[arg-type]


def test_what_taints_a_test_row_is_a_leak_between_splits_and_nothing_else() -> None:
    checks = Checks(
        (
            finding("leak.near", ("train", "a"), ("test", "b")),
            finding("leak.edited", ("dev", "c"), ("test", "d")),
            finding("leak.similar", ("train", "a"), ("test", "e")),
            finding("leak.ngram", ("documents", "x.md"), ("test", "f")),
            finding("leak.near", ("train", "g"), ("general", "facts-1")),
            finding("label_noise", ("train", "h")),
        ),
        (),
        {},
    )
    assert checks.tainted("test") == {"b", "d"}
    assert checks.tainted("dev") == {"c"}
    assert checks.tainted_general() == {"facts-1"}
