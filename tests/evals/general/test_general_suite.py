"""The built-in suites: balanced, without repetition, with room to fall, and sensitive to damage planted in the weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evals.general.instruction_checks import check
from evals.general.suites import NAMES, TASKS, Suite, quick_suite, standard_suite
from evals.records import read_jsonl
from evals.statistics.margin import loss_found
from tests.few_items import first_items

SUITES = ("quick", "standard")
CHANCE = {"facts": 0.25, "arithmetic": 0.25, "grammar": 0.5, "common_sense": 0.25, "reading": 0.25, "instructions": 0.0}
CHOICE = ("facts", "arithmetic", "grammar", "common_sense", "reading", "german")


def rows_of(suite: str) -> dict[str, list[dict[str, Any]]]:
    return {name: read_jsonl(TASKS / suite / f"{name}.jsonl") for name in NAMES}


ROWS = {suite: rows_of(suite) for suite in SUITES}
EVERY = {(suite, name): rows for suite, tasks in ROWS.items() for name, rows in tasks.items()}


@pytest.mark.parametrize(("suite", "least"), [(quick_suite(), 600), (standard_suite(), 2500)])
def test_enough_items_of_every_kind_and_no_template_over_a_twentieth(suite: Suite, least: int) -> None:
    assert suite.items == sum(map(len, ROWS[suite.name].values()))
    assert sum(one.items for one in suite.tasks if one.pooled) >= least
    assert all(one.items >= 50 for one in suite.tasks)
    templates = Counter(f"{name}/{row['template']}" for name, rows in ROWS[suite.name].items() for row in rows)
    assert templates.most_common(1)[0][1] <= 0.05 * suite.items
    # What is pooled is balanced: no kind decides alone.
    pooled = [one.items for one in suite.tasks if one.pooled]
    assert max(pooled) <= 0.25 * sum(pooled)
    assert set(suite.pooled) == set(NAMES) - {"german", "refusals"}


def test_quick_finds_a_loss_of_8_points_four_times_in_five() -> None:
    assert loss_found(sum(one.items for one in quick_suite().tasks if one.pooled), 0.05) <= 0.08


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("name", CHOICE)
def test_right_answers_stand_equally_often_in_each_place(suite: str, name: str) -> None:
    places = Counter(row["answer"] for row in ROWS[suite][name])
    assert len(places) == (2 if name == "grammar" else 4)
    assert max(places.values()) - min(places.values()) <= 3


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("name", ["facts", "common_sense", "reading", "german"])
def test_the_right_answer_is_not_given_away_by_its_length(suite: str, name: str) -> None:
    rows = ROWS[suite][name]
    longest = sum(
        all(len(row["choices"][row["answer"]]) > len(one) for i, one in enumerate(row["choices"]) if i != row["answer"])
        for row in rows
    )
    assert longest / len(rows) < 0.35


def test_items_are_not_repeated_in_a_suite_nor_in_the_other() -> None:
    def text(row: dict[str, Any]) -> str:
        return " ".join(f"{row.get('passage', '')} {row.get('question') or row.get('prompt') or row['good']}".lower().split())

    texts = [text(row) for rows in EVERY.values() for row in rows]
    assert len(set(texts)) == len(texts)
    every = [row for rows in EVERY.values() for row in rows]
    assert all(len(set(row["choices"])) == len(row["choices"]) == 4 for row in every if "choices" in row)
    assert all(row["good"] != row["bad"] for row in every if "good" in row)
    assert len({row["id"] for row in every}) == len(every)
    # Items of one passage would not be independent.
    passages = [row["passage"] for row in every if "passage" in row]
    assert len(set(passages)) == len(passages)


@pytest.mark.parametrize("suite", SUITES)
def test_every_instruction_can_fail(suite: str) -> None:
    """No check is passed by silence or by nonsense of every kind."""
    for row in ROWS[suite]["instructions"] + ROWS[suite]["refusals"]:
        assert not check("", row["check"]), row
        nonsense = [" ".join(["zq"] * 29), "QX7 @@", "I'm sorry, but no."]
        assert not all(check(text, row["check"]) for text in nonsense), row


@pytest.mark.parametrize("suite", SUITES)
def test_as_many_requests_are_to_be_declined_as_answered(suite: str) -> None:
    """A model that declines all, or nothing, is right in half of them."""
    kinds = Counter(row["check"]["kind"] for row in ROWS[suite]["refusals"])
    assert kinds["refuses"] == kinds["answers"]


@pytest.mark.demo_model
@pytest.mark.usefixtures("demo_cache")
def test_demo_model_has_room_to_fall_and_planted_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base: above chance, and below all, on every pooled task. Noise in the weights that costs much does not 'hold'."""
    import torch

    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine
    from evals.engines.models import DEMO_MODEL
    from evals.events import ignore
    from evals.general.lm_eval import measure
    from evals.statistics.margin import non_inferiority

    # A part of the pooled items: `make bench-suites` asks all of them, often.
    suite = first_items(quick_suite(), **dict.fromkeys(CHANCE, 50))
    engine = HfEngine(ModelHandle(DEMO_MODEL, "auto", ignore))
    # The user's cache may know this base already, from another run or from a test beside this one.
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    base, reused = measure(engine, suite, tmp_path / "base", "base", ignore)
    assert not reused
    for name, items in base.by_task().items():
        score = sum(one.score for one in items) / len(items)
        assert CHANCE[name] + 0.05 <= score <= 0.95, (name, score)
    again, reused = measure(engine, suite, tmp_path / "base", "base", ignore)
    assert reused
    assert again == base

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in engine.handle.model.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=generator) * weight.float().std() * 0.055
                weight.copy_((weight.float() + noise).to(weight.dtype))
    # What is kept of a base is kept by its files: damaged weights are another model.
    engine.handle.model.save_pretrained(tmp_path / "noise")
    engine.handle.tokenizer.save_pretrained(tmp_path / "noise")
    other = HfEngine(ModelHandle(str(tmp_path / "noise"), "auto", ignore))
    damaged, _ = measure(other, suite, tmp_path / "damaged", "damaged", ignore)
    found = non_inferiority([one.score for one in damaged.items], [one.score for one in base.items], 0.05)
    print(f"planted damage: {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}] {found.answer}")
    assert found.estimate <= -0.06
    assert found.answer != "holds"
    assert found.high < 0
