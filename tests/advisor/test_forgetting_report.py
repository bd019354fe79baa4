"""The section on forgetting: the verdict comes first and says what it may, and nothing that a model says gets out of its block."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from advisor.decision.forgetting import Forgetting, forgetting
from advisor.report.forgetting import SHOWN_ITEMS, forgetting_record, forgetting_section
from evals.general.divergence import Divergence
from evals.general.lm_eval import GeneralItem, GeneralScores
from evals.general.suites import GeneralTask, Suite
from evals.records import jsonable

HOSTILE = "```\n<script>alert(1)</script> [x](javascript:y) | [red]z[/] \x1b[31m `` ` ````"
MOVED = Divergence("general text", 60, 2328, 37.6, 36.2, 0.963, 0.938, 0.989, 0.15, 0.14, 0.16)


def scores(model: str, task: str, rows: list[float], output: str = "yes", probability: float | None = 0.8) -> GeneralScores:
    items = [GeneralItem(f"{task}-{at}", task, one, output, probability) for at, one in enumerate(rows)]
    return GeneralScores(model, "quick", tuple(items))


def both(*parts: GeneralScores) -> GeneralScores:
    return replace(parts[0], items=tuple(one for part in parts for one in part.items))


def found_of(lost: int, n: int = 300, excluded: int = 0, **more: Any) -> Forgetting:
    """A pooled benchmark that loses `lost` of its items, and one that is reported only, at chance, in words."""
    base = both(scores("base", "facts", [1.0] * n), scores("base", "german", [0.2] * 5, "Das ist der Hund und die Katze", None))
    tuned = both(
        scores("tuned", "facts", [0.0] * lost + [1.0] * (n - lost), more.pop("says", "no")),
        scores("tuned", "german", [0.2] * 5, "", None),
    )
    suite = Suite(
        "quick", (GeneralTask("facts", {}, n, False, "", True, 0.25), GeneralTask("german", {}, 5, True, "", False, 0.2))
    )
    left_out = {f"facts-{at}" for at in range(excluded)}
    return forgetting(base, tuned, suite, 0.05, excluded=left_out, divergences=[MOVED], **more)


def section(found: Forgetting) -> str:
    record = json.loads(json.dumps(jsonable(forgetting_record(found))))
    return forgetting_section({"general": record})


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (0, "**The loss is smaller than the margin of 5 points.**"),
        (60, "**The loss is greater than the margin of 5 points.**"),
        (16, "**Whether the loss is within the margin of 5 points is not settled.**"),
    ],
)
def test_the_verdict_stands_first(lost: int, said: str) -> None:
    found = found_of(lost)
    text = section(found)
    heading, _, rest = text.partition("\n\n")
    assert heading.startswith("## Forgetting: suite `quick`")
    assert rest.startswith(said)
    assert f"{-100 * lost / 300:+.1f} points" in rest.split("\n")[0]
    settled = found.pooled.answer != "undecided"
    assert ("more items would settle it. That is not the same as no loss." in rest) == (not settled)
    assert "no difference" not in text
    if not settled:
        assert f"About {found.pooled.more_items} more items" in rest


def test_the_table_tells_what_is_pooled_what_turned_and_what_is_at_chance() -> None:
    text = section(found_of(60))
    (facts,) = [line for line in text.splitlines() if line.startswith("| `facts`")]
    cells = [one.strip() for one in facts.strip("|").split("|")]
    assert cells[1:4] == ["300", "1.000", "0.800"]
    assert cells[4] == "-20.0"
    assert cells[6].startswith("broken (p = ")
    assert cells[6].endswith("Holm)")
    assert cells[7:9] == ["60", "0"]
    assert "| `german` (not pooled) | 5 |" in text
    assert "On `german` the base itself scores hardly more than by guessing: no loss can show there." in text
    assert "0.1500 (0.1400 to 0.1600)" in text
    assert "| empty, % | 0.0 | 100.0 | +100.0 |" in text
    assert "| length, words | 7.0 | 0.0 | -7.0 |" in text


def test_left_out_items_are_counted_in_the_text_and_in_the_table() -> None:
    text = section(found_of(60, excluded=60))
    assert "Left out: 60 of the items, which stand in the training rows" in text
    assert "| `facts` | 240 | 60 | 1.000 | 1.000 | +0.0 |" in text
    assert "Left out" not in section(found_of(60))
    nothing = section(found_of(60, excluded=300))
    assert "**Nothing can be said: no pooled item is left.** Left out: 300 of the items" in nothing
    assert "smaller than the margin" not in nothing


def test_lost_items_are_shown_side_by_side_a_few_of_them() -> None:
    found = found_of(60, asked={"facts-0": "What is red?"})
    record = forgetting_record(found)
    assert (record["lost"]["items"], len(record["lost"]["first"])) == (60, SHOWN_ITEMS)
    text = section(found)
    assert "Lost: 60 items. 4 of them; all are in `general/forgetting.json`." in text
    block = text.split("```text\n")[1].split("\n```")[0]
    assert [line.split(":")[0] for line in block.splitlines()] == ["facts, facts-0", "base", "tuned"]
    assert [line.split()[-1] for line in block.splitlines()] == ["red?", "yes", "no"]
    assert "Won" not in text


def test_what_is_shown_is_of_every_benchmark_in_turn() -> None:
    tasks = tuple(GeneralTask(name, {}, 0, False, "", True, 0.25) for name in ("a", "b", "c"))
    base = both(*(scores("base", name, [1.0] * 9) for name in "abc"))
    tuned = both(*(scores("tuned", name, [0.0] * lost + [1.0] * (9 - lost)) for name, lost in (("a", 2), ("b", 5), ("c", 3))))
    record = forgetting_record(forgetting(base, tuned, Suite("quick", tasks), 0.05))
    assert [one["id"] for one in record["lost"]["first"]] == ["b-0", "c-0", "a-0", "b-1"]


def test_hostile_outputs_stay_text() -> None:
    found = found_of(20, says=HOSTILE, asked={f"facts-{at}": HOSTILE for at in range(20)})
    text = section(replace(found, suite="qu`ick\n# x"))
    assert "\x1b" not in text
    outside, fence = [], ""
    for line in text.splitlines():
        if fence and line == fence:
            fence = ""
        elif not fence and line.startswith("```"):
            fence = line.removesuffix("text")
        elif not fence:
            outside.append(line)
    assert not fence
    assert "<script>" in text
    assert "<script>" not in "\n".join(outside)
    assert not any(line.startswith("# ") for line in outside)
    assert outside[0].count("`") == 2


def test_no_weights_no_section() -> None:
    assert forgetting_section({"general": None}) == ""
