"""The built-in suite: balanced, without repetition, with room to fall, and sensitive to damage planted in the weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evals.general.instruction_checks import check
from evals.general.suites import QUICK, TASKS, quick_suite
from evals.records import read_jsonl

CHANCE = {"facts": 0.25, "arithmetic": 0.25, "grammar": 0.5, "common_sense": 0.25, "instructions": 0.0}


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_jsonl(TASKS / f"{name}.jsonl")


ROWS = {name: rows_of(name) for name in QUICK}
TOTAL = sum(map(len, ROWS.values()))


def test_600_items_and_no_template_over_a_twentieth() -> None:
    assert TOTAL >= 600
    assert quick_suite().items == TOTAL
    templates = Counter(f"{name}/{row['template']}" for name, rows in ROWS.items() for row in rows)
    assert templates.most_common(1)[0][1] <= 0.05 * TOTAL


@pytest.mark.parametrize("name", [name for name in QUICK if name != "instructions"])
def test_right_answers_stand_equally_often_in_each_place(name: str) -> None:
    places = Counter(row["answer"] for row in ROWS[name])
    assert len(places) == (2 if name == "grammar" else 4)
    assert max(places.values()) - min(places.values()) <= 2


@pytest.mark.parametrize("name", ["facts", "common_sense"])
def test_the_right_answer_is_not_given_away_by_its_length(name: str) -> None:
    longest = sum(
        all(len(row["choices"][row["answer"]]) > len(one) for i, one in enumerate(row["choices"]) if i != row["answer"])
        for row in ROWS[name]
    )
    assert longest / len(ROWS[name]) < 0.35


def test_items_are_not_repeated() -> None:
    texts = [
        str(row.get("question") or row.get("prompt") or (row["good"], row["bad"])) for rows in ROWS.values() for row in rows
    ]
    assert len(set(texts)) == len(texts)
    assert all(len(set(row["choices"])) == len(row["choices"]) for rows in ROWS.values() for row in rows if "choices" in row)
    ids = [row["id"] for rows in ROWS.values() for row in rows]
    assert len(set(ids)) == TOTAL


def test_every_instruction_can_fail() -> None:
    """No check is passed by silence or by nonsense of every kind."""
    for row in ROWS["instructions"]:
        assert not check("", row["check"]), row
        nonsense = ["zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq zq", "QX7 @@"]
        assert not all(check(text, row["check"]) for text in nonsense), row


@pytest.mark.demo_model
@pytest.mark.usefixtures("demo_cache")
def test_demo_model_has_room_to_fall_and_planted_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base: 10 points above chance at least, 90% at most, on every task. Noise that costs about 8 points does not 'hold'."""
    import torch

    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine
    from evals.engines.models import DEMO_MODEL
    from evals.events import ignore
    from evals.general.lm_eval import measure
    from evals.statistics.margin import non_inferiority

    suite = quick_suite()
    engine = HfEngine(ModelHandle(DEMO_MODEL, "auto", ignore))
    # The user's cache may know this base already, from another run or from a test beside this one.
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    base, reused = measure(engine, suite, tmp_path / "base", "base", ignore)
    assert not reused
    for name, items in base.by_task().items():
        score = sum(one.score for one in items) / len(items)
        assert CHANCE[name] + 0.10 <= score <= 0.90, (name, score)
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
