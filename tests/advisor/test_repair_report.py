"""Repair in the report: the drawing is where the numbers are, and what is chosen, dominated and left to do is said."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from advisor.decision.compare import Comparison
from advisor.decision.repair import Choice, Offer, Repair, Tried, choose, kept
from advisor.report.repair import HEIGHT, repair_section, scatter
from evals.statistics.margin import NonInferiority

GAINS = {
    "tuned": (2.0, 0.40, -0.30),
    "tuned_x0.7": (1.2, 0.35, -0.12),
    "tuned_x0.5": (0.6, 0.30, -0.02),
    "soup": (0.3, 0.10, -0.04),
}


def arm(name: str) -> Tried:
    kl, gain, change = GAINS[name]
    low = change - 0.02
    answer: Any = "holds" if low > -0.05 else "undecided" if change + 0.02 > -0.05 else "broken"
    found = Comparison(name, "zero_shot", "dev", "accuracy", 70, gain, gain - 0.1, gain + 0.1, 0.01, 0.01)
    return Tried(name, "tuned", 1.0, kl, found, NonInferiority(change, low, change + 0.02, 0.05, answer, 420, 0))


@pytest.fixture
def repaired() -> Repair:
    arms = (*map(arm, GAINS), Tried("tuned_x0.3", "tuned", 0.3, 0.2))
    choice = choose(arms)
    won, held = kept(arms[0], arms[2])
    whole = NonInferiority(-0.29, -0.31, -0.27, 0.05, "broken", 840, 0)
    return Repair("quick", whole, "broken", "digest", arms, choice, "repair/adapter", "quick-b", won, held)


def test_the_drawing_is_where_the_numbers_are(repaired: Repair) -> None:
    measured = [asdict(one) for one in repaired.arms if one.measured]
    rows = [line.partition("|")[2] for line in scatter(measured).splitlines() if "|" in line]
    assert len(rows) == HEIGHT + 1
    places = {letter: (row.index(letter), at) for at, row in enumerate(rows) for letter in "abcd" if letter in row}
    # By falling KL: a tuned, b x0.7, c x0.5, d the soup.
    assert sorted(places, key=lambda one: places[one][0]) == ["a", "b", "d", "c"]
    assert sorted(places, key=lambda one: places[one][1]) == ["a", "b", "c", "d"]
    edge = {row.index(":") for row in rows if ":" in row}
    (margin,) = edge
    assert {letter for letter, (column, _) in places.items() if column > margin} == {"c", "d"}


def test_the_section_says_what_was_chosen_and_what_it_kept(repaired: Repair) -> None:
    text = repair_section({"repair": asdict(repaired)})
    assert "**`tuned_x0.5` is used in the place of the trained weights.**" in text
    assert "93% of the loss is won back and 75% of the gain is kept" in text
    assert "items of `quick-b` are for the chosen weights alone" in text
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if line.startswith("| `")}
    assert "chosen" in rows["tuned_x0.5"]
    assert "dominated" in rows["soup"]
    assert "dominated" not in rows["tuned"]
    assert "broken" in rows["tuned_x0.7"]
    assert rows["tuned_x0.3"].endswith("| 0.3 | 0.200 |  |  |  |")
    assert "RegMean" not in text
    solved = replace(repaired, arms=(*repaired.arms, Tried("tuned_regmean_3", "tuned", 1.0, 0.1, general=3.0)))
    text = repair_section({"repair": asdict(solved)})
    assert "| RegMean, 3 | 0.100 |" in text
    assert "none of the suite" in text


def test_what_is_left_to_train_is_told_with_its_cost(repaired: Repair) -> None:
    offers = (
        Offer("replay", {"replay_share": 0.2}, "more of the base's own answers", 90.0, 0.05, done=True),
        Offer("rank", {"lora_r": 4, "lora_alpha": 8}, "learns less", 60.0, 0.03),
    )
    none = replace(repaired, choice=Choice("", "broken", "All lose more.", ()), weights="", offers=offers)
    text = repair_section({"repair": asdict(none)})
    assert "**No arm is chosen.** All lose more." in text
    assert "`replay_share: 0.2`: more of the base's own answers (trained)" in text
    assert "`lora_r: 4, lora_alpha: 8`".replace(", ", "`, `") in text
    assert "about 1.0 minutes of training, 0.03 in money" in text
    assert "advisor train --remedy" in text
    done = replace(none, offers=tuple(replace(one, done=True) for one in offers))
    assert "All are tried." in repair_section({"repair": asdict(done)})


def test_nothing_is_said_where_nothing_was_to_be_mended(repaired: Repair) -> None:
    holds = replace(repaired, whole=replace(repaired.whole, answer="holds"), arms=(), choice=None)
    assert repair_section({"repair": asdict(holds)}) == repair_section({"repair": None}) == ""
    small = replace(repaired, arms=(), choice=None, sentence="half of the suite (12 items) is too small")
    assert "No repair was tried: half of the suite (12 items) is too small." in repair_section({"repair": asdict(small)})
