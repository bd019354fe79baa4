"""The choice among repaired weights: never one that fails, always the largest gain of those that pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.decision.compare import Comparison
from advisor.decision.repair import MOST, Answer, Offer, Tried, choose, kept, next_arm, next_offer
from evals.statistics.margin import NonInferiority

ANSWERS: tuple[Answer, ...] = ("holds", "broken", "undecided")
MARGIN = 0.05


def gain(value: float) -> Comparison:
    return Comparison("arm", "zero_shot", "dev", "accuracy", 100, value, value - 0.05, value + 0.05, 0.01, 0.01)


def loss(change: float, answer: Answer | None = None, error: float = 0.02) -> NonInferiority:
    low, high = change - error, change + error
    found: Answer = answer or ("holds" if low > -MARGIN else "broken" if high < -MARGIN else "undecided")
    return NonInferiority(change, low, high, MARGIN, found, 400, 180 if found == "undecided" else 0)


def tried(name: str, kl: float, gained: float | None = None, change: float = 0.0, answer: Answer | None = None) -> Tried:
    if gained is None:
        return Tried(name, "tuned", 1.0, kl)
    return Tried(name, "tuned", 1.0, kl, gain(gained), loss(change, answer))


points = st.floats(-1, 1, allow_nan=False)
one_arm = st.tuples(st.floats(0, 5), st.one_of(st.none(), st.tuples(points, points, st.sampled_from(ANSWERS))))


@st.composite
def some_arms(draw: st.DrawFn) -> list[Tried]:
    drawn = draw(st.lists(one_arm, min_size=1, max_size=9))
    arms = []
    for at, (kl, found) in enumerate(drawn):
        arms.append(tried(f"arm{at}", kl) if found is None else tried(f"arm{at}", kl, found[0], found[1], found[2]))
    return arms


@given(some_arms())
def test_what_is_chosen_passes_and_gains_most_of_all_that_pass(arms: list[Tried]) -> None:
    if not any(one.measured for one in arms):
        with pytest.raises(ValueError, match="no arm"):
            choose(arms)
        return
    choice = choose(arms)
    gains = [one.gain.difference for one in arms if one.gain and one.forgetting and one.forgetting.answer == "holds"]
    if choice.chosen:
        (chosen,) = [one for one in arms if one.name == choice.chosen]
        assert chosen.forgetting is not None
        assert chosen.gain is not None
        assert chosen.forgetting.answer == "holds"
        assert chosen.gain.difference == max(gains)
        assert chosen.gain.difference > 0
    else:
        assert not any(value > 0 for value in gains)
        answers = {one.forgetting.answer for one in arms if one.forgetting}
        assert choice.answer == ("holds" if gains else "undecided" if "undecided" in answers else "broken")


@given(some_arms())
def test_an_arm_is_behind_exactly_where_another_gains_no_less_and_loses_no_more(arms: list[Tried]) -> None:
    if not any(one.measured for one in arms):
        return
    told = choose(arms).dominated
    pairs = {one.name: (one.gain.difference, one.forgetting.estimate) for one in arms if one.gain and one.forgetting}
    for name, (gained, change) in pairs.items():
        beaten = any((a >= gained and b > change) or (a > gained and b >= change) for a, b in pairs.values())
        assert (name in told) == beaten


def searched(truth: list[Tried], most: int = MOST) -> list[Tried]:
    """The search as the flow runs it: the trained weights first, then what `next_arm` asks for."""
    arms = {one.name: replace(one, gain=None, forgetting=None) for one in truth}
    known = {one.name: one for one in truth}
    name: str | None = truth[0].name
    asked = 0
    while name is not None:
        assert not arms[name].measured, "the same arm twice"
        arms[name] = known[name]
        asked += 1
        name = next_arm([*arms.values()], most)
    assert asked <= max(1, most)
    return [*arms.values()]


@given(st.lists(st.floats(0.01, 4), min_size=1, max_size=9, unique=True), st.floats(0.01, 0.5), st.integers(1, 9))
def test_where_loss_and_gain_grow_with_kl_the_search_ends_at_the_best_of_all(kls: list[float], slope: float, most: int) -> None:
    truth = [tried(f"arm{at}", kl, kl / 10, -slope * kl) for at, kl in enumerate(sorted(kls, reverse=True))]
    best = choose(truth).chosen
    found = choose([one for one in searched(truth, len(truth)) if one.measured]).chosen
    assert found == best
    assert sum(one.measured for one in searched(truth, most)) <= most


def test_the_first_look_is_where_the_loss_is_expected_within_the_margin() -> None:
    arms = [tried("tuned", 2.0, 0.5, -0.12), *(tried(f"x{kl}", kl) for kl in (1.4, 0.8, 0.2, 0.1, 0.05))]
    # An interval of 0.02 leaves 0.03 of the margin: a quarter of the loss is at a sixteenth of KL, which is 0.125.
    assert next_arm(arms) == "x0.1"
    # Where it passes, the stronger neighbour may gain more and pass too.
    arms[4] = tried("x0.1", 0.1, 0.3, -0.01)
    assert next_arm(arms) == "x0.2"
    arms[3] = tried("x0.2", 0.2, 0.4, -0.20)
    assert next_arm(arms) == "x0.05"
    arms[5] = tried("x0.05", 0.05, 0.2, 0.0)
    assert next_arm(arms) is None
    assert choose(arms).chosen == "x0.1"


def test_each_line_has_a_search_of_its_own_and_regmeans_come_first() -> None:
    """By KL alone a scale that gains little would stand between two RegMeans that gain much, and end the search."""
    truth = [
        tried("tuned", 1.0, 0.73, -0.10),
        *(
            tried(f"tuned_x{scale}", kl, gained, change)
            for scale, kl, gained, change in ((0.5, 0.3, 0.66, -0.07), (0.3, 0.1, 0.3, -0.02))
        ),
        *(
            replace(tried(f"tuned_regmean_{weight:g}", kl, gained, change), general=weight)
            for weight, kl, gained, change in ((1, 0.16, 0.72, -0.04), (3, 0.085, 0.71, -0.018), (10, 0.042, 0.58, -0.008))
        ),
    ]
    found = searched(truth)
    assert choose(found).chosen == "tuned_regmean_3"
    # From the trained weights to where the loss is expected to be small enough, then stronger ones as long as they pass.
    assert next_arm([truth[0], *(replace(one, gain=None, forgetting=None) for one in truth[1:])]) == "tuned_regmean_3"
    # The scales are looked at too: what training ruined may answer better half undone.
    assert next(one for one in found if one.name == "tuned_x0.3").measured


def test_where_nothing_seems_to_pass_the_weakest_is_looked_at_and_then_those_before_it() -> None:
    arms = [tried("tuned", 2.0, 0.5, -0.60), *(tried(f"x{kl}", kl) for kl in (1.9, 1.8, 1.7))]
    assert next_arm(arms) == "x1.7"
    arms[3] = tried("x1.7", 1.7, 0.4, -0.50)
    assert next_arm(arms) == "x1.8"
    assert next_arm(arms, most=2) is None


def test_trained_weights_that_gain_no_loss_in_the_half_are_followed_by_the_next_weaker() -> None:
    arms = [tried("tuned", 1.0, 0.5, 0.001, "undecided"), tried("x0.5", 0.4), tried("x0.7", 0.7)]
    assert next_arm(arms) == "x0.7"


def test_an_arm_that_passes_and_gains_nothing_is_not_chosen() -> None:
    choice = choose([tried("tuned", 1.0, 0.3, -0.2), tried("x0.3", 0.1, -0.01, 0.0)])
    assert (choice.chosen, choice.answer) == ("", "holds")
    assert "gains nothing" in choice.sentence


def test_of_equal_gains_the_one_nearer_to_the_base_is_chosen() -> None:
    assert choose([tried("far", 0.5, 0.3, 0.0), tried("near", 0.1, 0.3, 0.0)]).chosen == "near"


def test_undecided_arms_say_how_many_items_would_settle_it() -> None:
    choice = choose([tried("tuned", 1.0, 0.3, -0.2), tried("x0.5", 0.3, 0.2, -0.04)])
    assert (choice.chosen, choice.answer) == ("", "undecided")
    assert "180 more items" in choice.sentence


def test_shares_of_loss_and_gain() -> None:
    assert kept(tried("tuned", 1.0, 0.4, -0.2), tried("x0.5", 0.3, 0.3, -0.05)) == pytest.approx((0.75, 0.75))
    assert kept(tried("tuned", 1.0, 0.0, 0.0), tried("x0.5", 0.3, 0.3, -0.05)) == (None, None)


def test_offers_go_on_where_they_stopped() -> None:
    offers = [Offer(name, {"learning_rate": 1e-4}, "why", 120.0, None) for name in ("replay", "rank")]
    first = next_offer(offers)
    assert first is not None
    assert first.name == "replay"
    assert "about 2.0 minutes" in first.sentence()
    second = next_offer([replace(offers[0], done=True), offers[1]])
    assert second is not None
    assert second.name == "rank"
    assert next_offer([replace(one, done=True) for one in offers]) is None
