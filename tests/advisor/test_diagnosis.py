"""The diagnosis: planted effects come back with their size, and nothing is said of what was not probed."""

from __future__ import annotations

import math

import pytest

from advisor.decision.diagnosis import Effect, diagnose
from evals.scores import Score, Scores


def scores(name: str, values: list[float], tolerant: list[float] | None = None, kind: str = "probe") -> Scores:
    read = tolerant or values
    items = tuple(Score(str(at), one, "x", metrics={"tolerant": read[at]}) for at, one in enumerate(values))
    return Scores(name, kind, "dev", "accuracy", items)


def right(count: int, n: int = 100) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def found(probes: list[Scores], arms: tuple[Scores, ...] = ()) -> dict[str, Effect]:
    return {one.name: one for one in diagnose(probes, arms, None)}


def test_nothing_probed_is_nothing_said() -> None:
    assert found([]) == {}


def test_each_effect_has_the_size_that_was_planted() -> None:
    probes = [
        scores("gold_passage", right(80)),
        scores("irrelevant_passage", right(10)),
        scores("shots_0", right(20), right(50)),
        scores("shots_2", right(30)),
        scores("shots_8", right(40)),
    ]
    effects = found(probes, (scores("rag_3", right(60), kind="rag"), scores("rag_1", right(40), kind="rag")))
    assert effects["format"].difference == pytest.approx(0.3)
    assert effects["knowledge"].difference == pytest.approx(0.7)
    assert effects["retrieval_loss"].difference == pytest.approx(0.2)
    assert "rag_3" in effects["retrieval_loss"].sentence
    assert "20.0 points are missing" in effects["knowledge"].sentence
    assert all(one.low <= one.difference <= one.high for one in effects.values())


def test_retrieval_loss_is_told_in_the_pipeline_s_own_prompt_where_that_was_asked() -> None:
    probes = [scores("gold_passage", right(80)), scores("irrelevant_passage", right(10)), scores("perfect_search", right(75))]
    effect = found(probes, (scores("rag_3", right(60), kind="rag"),))["retrieval_loss"]
    assert effect.difference == pytest.approx(0.15)
    assert "misses of its search mended" in effect.sentence


def test_behaviour_is_the_least_squares_slope_over_doublings() -> None:
    counts, means = [0, 2, 8, 32], [10, 30, 20, 70]
    effect = found([scores(f"shots_{count}", right(mean)) for count, mean in zip(counts, means, strict=True)])["behaviour"]
    x = [math.log2(1 + count) for count in counts]
    middle = sum(x) / 4
    slope = sum((a - middle) * m / 100 for a, m in zip(x, means, strict=True)) / sum((a - middle) ** 2 for a in x)
    assert effect.difference == pytest.approx(slope)
    assert effect.low < slope < effect.high


def test_sampling_is_the_best_of_all_draws_minus_one_draw() -> None:
    # Each draw is right on another tenth of the items: together they reach half.
    draws = [[float(at // 20 == number) for at in range(100)] for number in range(5)]
    effect = found([scores(f"sample_{number + 1}", one) for number, one in enumerate(draws)])["sampling"]
    assert effect.difference == pytest.approx(1.0 - 0.2)
    same = found([scores(f"sample_{number + 1}", right(30)) for number in range(5)])["sampling"]
    assert same.difference == 0
