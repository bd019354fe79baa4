"""The benchmark of the advice: that it tells good advice from bad, and that its planted tasks are what they say."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from advisor.decision.diagnosis import diagnose
from advisor.decision.evidence import Evidence, Trained, TrainingPlan
from advisor.decision.recommend import Recommendation
from baselines.rag.overlap import covers_half, folded
from evals.records import write_jsonl
from evals.scores import Score, Scores
from evals.task.spec import PricesSpec, TrafficSpec

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
import advisor_bench
import advisor_resample
import advisor_tasks
from advisor_bench import Judged, figures, goals, judged
from advisor_measure import Measured, Measurement, answers_left_out, begins_with_a_curve, read_measured
from advisor_resample import (
    Circumstances,
    Population,
    Sample,
    loss_is_visible,
    renamed,
    with_equal_arms,
    without_documents,
    without_effects,
)
from advisor_tasks import CITIES, COLOURS, Known, facts, noise, scrambled_form
from harness import Bench

N = 120
KINDS = {"guess": "trivial", "best_passage": "no_llm", "rag_1": "rag", "tuned": "tuned"}
SECONDS = 0.1


def arm(name: str, right: int, start: int = 0, kind: str = "") -> Scores:
    """Right on so many of the N items, from `start` on."""
    ones = {(start + at) % N for at in range(right)}
    items = tuple(
        Score(str(at), float(at in ones), "x", 100, 10, SECONDS, metrics={"tolerant": float(at in ones)}) for at in range(N)
    )
    return Scores(name, kind or KINDS.get(name, "prompt"), "dev", "accuracy", items)


def measured(
    arms: Mapping[str, int], tuned: int, probes: Sequence[Scores] = (), groups: tuple[str, ...] | None = None, **more: object
) -> Measured:
    trained = Trained(100, 0, True, arm("tuned", tuned), seconds=600.0)
    found = Measured(
        "made",
        "accuracy",
        tuple(arm(name, right) for name, right in arms.items()),
        tuple(probes),
        (trained,),
        TrainingPlan(100, 600.0, ()),
        {},
        {},
        groups,
    )
    return replace(found, **more)  # type: ignore[arg-type]


ARMS = {"guess": 12, "zero_shot": 36, "few_shot_2": 60, "few_shot_4": 66}
FAR_AHEAD = measured(ARMS, 114)
FAR_BEHIND = measured(ARMS, 30)
GROUPS = tuple(f"g{at // 3}" for at in range(N))


# The truth.


def test_the_truth_is_the_score_and_a_training_has_to_bring_its_least_gain() -> None:
    population = Population(measured(ARMS, 69), Circumstances(min_gain=0.03))
    # 0.575 - 0.03 < 66/120 = 0.55
    assert population.best() == "few_shot_4"
    assert population.regret("tuned")[0] == pytest.approx(0.55 - (0.575 - 0.03))
    assert population.regret("zero_shot") == (pytest.approx(0.25), None)
    assert Population(measured(ARMS, 69), Circumstances(min_gain=0.02)).best() == "tuned"


def test_with_prices_and_traffic_the_truth_is_money() -> None:
    given = Circumstances(PricesSpec(gpu_hour=3.6, right_answer=0.01), TrafficSpec(requests_per_month=10, months=6))
    population = Population(FAR_AHEAD, given)
    # 60 requests of 0.1 s at 0.001 a second; the training takes 600 s.
    few = 60 * (0.55 * 0.01 - 0.0001)
    tuned = 60 * (0.95 * 0.01 - 0.0001) - 0.6
    assert population.net("few_shot_4") == pytest.approx(few)
    assert population.net("tuned") == pytest.approx(tuned)
    assert population.best() == "few_shot_4"
    assert population.regret("tuned") == (pytest.approx((few - tuned) / 0.6), pytest.approx(few - tuned))
    often = replace(given, traffic=TrafficSpec(requests_per_month=100_000, months=6))
    assert Population(FAR_AHEAD, often).best() == "tuned"


def test_a_loss_is_plain_where_it_is_twice_what_the_items_show() -> None:
    population = Population(FAR_AHEAD, Circumstances())
    # tuned is right on 78 items more than zero_shot, of 120: a spread of sqrt(0.65 * 0.35), about 16 points at 80 items.
    assert 0.14 < population.detectable("zero_shot", 80) < 0.17
    assert loss_is_visible(population, "zero_shot", 80)
    assert not loss_is_visible(population, "zero_shot", 8)
    assert not loss_is_visible(population, "tuned", 80)


def test_clusters_show_less() -> None:
    alone, together = Population(FAR_AHEAD, Circumstances()), Population(replace(FAR_AHEAD, groups=GROUPS), Circumstances())
    assert together.detectable("zero_shot", 80) > 1.5 * alone.detectable("zero_shot", 80)


# A resample.


def test_a_resample_asks_all_candidates_about_the_same_items() -> None:
    numbered = [
        replace(one, items=tuple(replace(item, score=at / N) for at, item in enumerate(one.items))) for one in FAR_AHEAD.arms
    ]
    sample = Sample(Population(replace(FAR_AHEAD, arms=tuple(numbered)), Circumstances()), seed=3)
    first, *others = [sample.taken(one) for one in numbered]
    assert len(first.items) == 80
    assert len({item.id for item in first.items}) == 80
    assert len(set(first.values())) < 80, "drawn with replacement"
    assert all(one.values() == first.values() for one in others)


def test_groups_are_drawn_whole_and_each_draw_is_a_group_of_its_own() -> None:
    numbered = arm("zero_shot", 0)
    numbered = replace(numbered, items=tuple(replace(item, score=at / N) for at, item in enumerate(numbered.items)))
    arms = (FAR_AHEAD.arms[0], numbered, *FAR_AHEAD.arms[2:])
    sample = Sample(Population(replace(FAR_AHEAD, arms=arms, groups=GROUPS), Circumstances()), seed=1)
    assert sample.groups is not None
    by_draw: dict[str, list[int]] = {}
    for name, value in zip(sample.groups, sample.taken(numbered).values(), strict=True):
        by_draw.setdefault(name, []).append(round(value * N))
    assert all(places == [places[0], places[0] + 1, places[0] + 2] and places[0] % 3 == 0 for places in by_draw.values())
    assert max(Counter(places[0] for places in by_draw.values()).values()) > 1, "one group is drawn twice, as two groups"
    assert sample.first().groups == sample.groups


def test_what_is_spent_is_counted_answer_by_answer() -> None:
    """Three prompts are too few for a race, and 100 rows for a curve: three prompts, one training, and sets of demonstrations, of
    which the empty one is plain zero-shot once more, and that of 2 the prompt with 2 on all items but 12."""

    def said(one: Scores, tokens: int, different: int = 0) -> Scores:
        return replace(
            one, items=tuple(replace(item, prompt_tokens=tokens + (at < different)) for at, item in enumerate(one.items))
        )

    tokens = {"guess": 0, "zero_shot": 10, "few_shot_2": 30, "few_shot_4": 50}
    arms = tuple(said(one, tokens[one.candidate]) for one in FAR_AHEAD.arms)
    probes = (
        replace(arms[1], candidate="shots_0", kind="probe"),
        said(replace(arms[2], candidate="shots_2", kind="probe"), 30, different=12),
        said(arm("shots_8", 60, kind="probe"), 90),
    )
    population = Population(replace(FAR_AHEAD, arms=arms, probes=probes), Circumstances())
    assert population.repeats == {"shots_0": "zero_shot", "shots_2": "few_shot_2"}
    sample = Sample(population, seed=0)
    outcome = sample.outcome()
    anew = sum(item.prompt_tokens == 31 for item in sample.drawn["shots_2"].items)
    assert 0 < anew < 30
    assert outcome.requests == 80 * (3 + 1 + 1) + anew
    assert outcome.row_passes == 375
    assert population.exhaustive(80) == (80 * (3 + 1 + 1) + 8, 375)


def test_what_is_left_out_of_the_measurement_is_known() -> None:
    assert answers_left_out(12) == 5
    assert answers_left_out(20) == 3 + 5
    assert answers_left_out(1600) == 6 + 5


def test_a_race_saves_answers_and_leaves_out_the_enforced_twins_of_all_but_the_best() -> None:
    many = {"guess": 12, "zero_shot": 6} | {f"few_shot_{count}": 20 + 3 * count for count in range(2, 14)}
    arms = (*measured(many, 30).arms, *(arm(f"few_shot_{count}_constrained", 110) for count in range(2, 14)))
    twins = {f"few_shot_{count}": f"few_shot_{count}_constrained" for count in range(2, 14)}
    population = Population(replace(measured(many, 30), arms=arms, twins=twins), Circumstances())
    sample = Sample(population, seed=0)
    evidence = sample.first()
    enforced = [one.candidate for one in evidence.arms if one.candidate.endswith("_constrained")]
    best = max((one for one in evidence.arms if one.candidate in twins), key=lambda one: one.mean)
    assert enforced == [twins[best.candidate]]
    assert evidence.left
    asked = [one for one in evidence.arms if one.kind == "prompt"]
    assert sample.requests == 80 * len(asked) + sum(one.items for one in evidence.left)
    assert sample.requests < 0.4 * 80 * (len(many) + len(twins))
    assert sample.outcome().candidate.endswith("_constrained")


def test_the_same_seed_gives_the_same_outcome() -> None:
    population = Population(FAR_AHEAD, Circumstances())
    assert Sample(population, 5).outcome() == Sample(population, 5).outcome()
    assert Sample(population, 5).drawn != Sample(population, 6).drawn


# Good advice and bad.

Made = Callable[..., Judged]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    """All resamples of a made-up task, advised by a stand-in where one is given."""

    def judge(
        found: Measured, advice: Callable[[Evidence], Recommendation] | None = None, resamples: int = 12, **known: object
    ) -> Judged:
        monkeypatch.setitem(advisor_bench.TASKS, "made", Known(lambda folder: None, **known))  # type: ignore[arg-type]
        monkeypatch.setattr(advisor_bench, "population_of", lambda name, known, home: Population(found, known.given))
        monkeypatch.setattr(advisor_bench, "A_A", 4)
        if advice is not None:
            monkeypatch.setattr(advisor_resample, "recommend", advice)
        one = judged("made", tmp_path, resamples)
        assert one is not None
        return one

    return judge


def says(action: str, candidate: str, *, sure: bool = True) -> Callable[[Evidence], Recommendation]:
    return lambda evidence: Recommendation(action, candidate, (), (), {}, (), sure=sure)  # type: ignore[arg-type]


def says_trivial(evidence: Evidence) -> Recommendation:
    return says("collect_data", next(one.candidate for one in evidence.arms if one.kind == "trivial"))(evidence)


def missed(one: Judged) -> set[str]:
    bench = Bench("advisor", fast=True)
    goals(bench, [one])
    return {goal.goal.split(",")[0] for goal in bench.goals if not goal.met}


def test_the_advisor_is_right_where_the_answer_is_plain(made: Made) -> None:
    for found, action in ((FAR_AHEAD, "fine_tune"), (FAR_BEHIND, "prompt")):
        one = made(found)
        told = figures(one, advisor_bench.TASKS["made"])
        assert (told["right"], told["undecided"], told["wrong_and_sure"]) == (1.0, 0.0, 0.0)
        assert told["recommended"] == f"{action} 100%"
        assert one.same_when_renamed


def test_advice_that_is_wrong_and_sure_is_found_out(made: Made) -> None:
    one = made(FAR_AHEAD, says("prompt", "zero_shot"))
    told = figures(one, advisor_bench.TASKS["made"])
    assert (told["right"], told["wrong_and_sure"], told["wrong_and_sure_at_twice_the_detectable"]) == (0.0, 1.0, 12)
    assert told["median_regret_points"] == pytest.approx(100 * (0.95 - 0.03 - 0.3))
    assert missed(one) >= {"right", "wrong and sure", "wrong and sure at twice the detectable effect", "median regret"}


def test_advice_that_is_wrong_and_says_that_it_is_not_sure_is_no_worse_than_wrong(made: Made) -> None:
    one = made(FAR_AHEAD, says("prompt", "zero_shot", sure=False))
    assert (sum(one.right), sum(one.wrong_and_sure)) == (0, 0)


def test_an_advisor_that_never_decides_is_neither_right_nor_wrong(made: Made) -> None:
    one = made(FAR_AHEAD, says("undecided", "zero_shot"))
    assert (sum(one.right), one.undecided, sum(one.wrong_and_sure), one.decided_regret) == (0, 12, 0, [])
    assert {"right", "undecided"} <= missed(one)


def test_the_right_action_with_a_poor_candidate_is_wrong_and_sure(made: Made) -> None:
    one = made(FAR_BEHIND, says("prompt", "zero_shot"), right=frozenset({"prompt"}))
    assert sum(one.right) == 12
    assert all(one.wrong_and_sure)


def test_where_nothing_helps_the_luck_of_the_population_is_no_regret(made: Made) -> None:
    lucky = measured({"guess": 36, "zero_shot": 36, "few_shot_2": 41}, 36)
    known = {"right": frozenset({"collect_data"}), "nothing_helps": True}
    one = made(lucky, says_trivial, **known)
    assert (sum(one.right), set(one.decided_regret), any(one.wrong_and_sure)) == (12, {0.0}, False)
    # Only what is right by construction is excused.
    assert all(made(lucky, says("fine_tune", "tuned"), **known).wrong_and_sure)


def test_an_advisor_that_looks_at_names_is_found_out(made: Made) -> None:
    def by_name(evidence: Evidence) -> Recommendation:
        names = [one.candidate for one in evidence.arms if one.kind == "prompt" and one.candidate != "zero_shot"]
        return says("prompt", max(names))(evidence)

    def by_score(evidence: Evidence) -> Recommendation:
        best = max((one for one in evidence.arms if one.kind == "prompt"), key=lambda one: one.mean)
        return says("prompt", best.candidate)(evidence)

    assert not made(FAR_AHEAD, by_name).same_when_renamed
    assert made(FAR_AHEAD, by_score).same_when_renamed


def test_the_right_answer_depends_on_the_circumstances(made: Made) -> None:
    low = Circumstances(PricesSpec(gpu_hour=3.6, right_answer=0.01), TrafficSpec(requests_per_month=10, months=6))
    one = made(FAR_AHEAD, given=low)
    assert one.best == "few_shot_4"
    assert {each.action for each in one.outcomes} == {"prompt"}
    assert {each.row_passes for each in one.outcomes} == {0}, "no training is bought that cannot pay"


def test_what_was_not_measured_is_not_made_up() -> None:
    """A plan under which the advisor buys points of the curve, of which none was measured."""
    plan = TrainingPlan(1600, 6000.0, ((100, 60.0), (200, 120.0), (400, 240.0), (800, 480.0)))
    assert begins_with_a_curve(plan)
    assert not begins_with_a_curve(FAR_AHEAD.plan)
    with pytest.raises(LookupError, match="made: a training on 100 rows"):
        Sample(Population(replace(FAR_AHEAD, plan=plan), Circumstances()), 0).outcome()


# What is made of the measured scores.


def test_equal_arms_have_the_same_true_mean_on_other_items() -> None:
    found = with_equal_arms(FAR_AHEAD)
    twin, best = found.arms[-1], FAR_AHEAD.arms[-1]
    assert twin.mean == best.mean
    assert twin.kind == best.kind
    assert twin.values() != best.values()
    assert [item.id for item in twin.items] == [item.id for item in best.items]


def test_without_documents_the_best_way_is_another(made: Made) -> None:
    perfect = arm("perfect_search", 110, kind="probe")
    trained = replace(FAR_BEHIND.trained[0], retrieving=arm("tuned_with_retrieval", 114))
    found = replace(measured({**ARMS, "rag_1": 100, "best_passage": 90}, 30, [perfect]), trained=(trained,))
    assert Population(found, Circumstances()).best() == "rag_on_tuned"
    bare = without_documents(found)
    assert Population(bare, Circumstances()).best() == "few_shot_4"
    assert {one.action for one in made(bare).outcomes} == {"prompt"}


def test_renaming_changes_names_alone() -> None:
    twins = {"few_shot_2": "few_shot_2_constrained"}
    before = replace(FAR_AHEAD, arms=(*FAR_AHEAD.arms, arm("few_shot_2_constrained", 70)), twins=twins)
    after, names = renamed(before)
    assert [one.values() for one in after.arms] == [one.values() for one in before.arms]
    assert not {one.candidate for one in after.arms} & ({one.candidate for one in before.arms} - {"zero_shot"})
    assert after.twins == {names["few_shot_2"]: names["few_shot_2_constrained"]}


def test_without_effects_no_cause_is_left_of_one_that_is_plain() -> None:
    probes = (
        arm("gold_passage", 100, kind="probe"),
        arm("irrelevant_passage", 20, kind="probe"),
        *(arm(f"shots_{count}", 30, start=7, kind="probe") for count in (0, 2, 8, 32)),
    )
    found = replace(FAR_BEHIND, probes=probes)
    assert diagnose(found.probes, found.arms, None).cause == "knowledge"
    assert sum(without_effects(found, seed).cause != "none" for seed in range(60)) <= 4


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    names = {"guess": 12, "zero_shot": 36, "zero_shot_constrained": 40, "few_shot_2": 60, "few_shot_2_constrained": 66}
    twins = {"few_shot_2": "few_shot_2_constrained"}
    found = measured(names, 114, [arm("gold_passage", 50, kind="probe")], GROUPS, twins=twins)
    for folder, some in (("scores", found.arms), ("probes", (*found.probes, found.trained[0].scores))):
        for one in some:
            (tmp_path / folder / "dev").mkdir(parents=True, exist_ok=True)
            write_jsonl(tmp_path / folder / "dev" / f"{one.candidate}.jsonl", [asdict(item) for item in one.items])
    assert read_measured(tmp_path) is None
    measurement = object.__new__(Measurement)
    measurement.home = tmp_path
    measurement.keep(found)
    assert read_measured(tmp_path) == found


# The tasks.


def rows(folder: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_made_up_facts_stand_in_the_documents_alone(tmp_path: Path) -> None:
    for name, inside in (("all", True), ("broken", False)):
        facts(name)(tmp_path / name)
        told = "\n".join(path.read_text(encoding="utf-8") for path in sorted((tmp_path / name / "documents").iterdir()))
        assert all((gold in told) == inside for row in rows(tmp_path / name, "dev") for gold in row["gold_passages"])
    # Search that misses is seen to miss: nothing in the wrong documents passes for half of a gold passage.
    assert not any(
        covers_half(folded(told), folded(gold)) for row in rows(tmp_path / "broken", "dev") for gold in row["gold_passages"]
    )
    facts("none")(tmp_path / "none")
    assert not (tmp_path / "none" / "documents").exists()
    for folder in (tmp_path / "all", tmp_path / "none"):
        things = [
            {row["input"].split(" the ")[1].split("?")[0].removesuffix(" sent") for row in rows(folder, part)}
            for part in ("train", "dev")
        ]
        assert not things[0] & things[1], "a training row tells of a thing that is asked about"
        assert {row["output"] for row in rows(folder, "dev")} <= {*COLOURS, *CITIES}


def test_the_house_notation_is_told_nowhere_and_follows_from_the_input(tmp_path: Path) -> None:
    scrambled_form()(tmp_path / "plain")
    scrambled_form(documents=True)(tmp_path / "useless")
    dev = rows(tmp_path / "plain", "dev")
    for row in dev:
        city, rest = row["output"].split("#")
        count, rest = rest.split("x", 1)
        goods, number = rest.split("@")
        assert all(part in row["input"] for part in (city.capitalize(), count, goods, number))
    assert "#" not in yaml.safe_load((tmp_path / "plain" / "task.yaml").read_text(encoding="utf-8"))["instruction"]
    assert rows(tmp_path / "useless", "dev") == dev
    told = "\n".join(path.read_text(encoding="utf-8") for path in (tmp_path / "useless" / "documents").iterdir())
    assert not any(row["output"] in told for row in dev)


def test_noise_has_labels_that_the_input_does_not_tell(tmp_path: Path) -> None:
    noise(tmp_path)
    every = [row for part in ("train", "dev", "test") for row in rows(tmp_path, part)]
    assert set(Counter(row["output"] for row in every)) == {"accept", "hold", "refuse"}
    # Of no city is one label much more common than of all: a chi-square over cities x labels within its 99.9% (22 degrees, 48.3).
    share = {label: count / len(every) for label, count in Counter(row["output"] for row in every).items()}
    chi = 0.0
    for city in CITIES:
        here = [row["output"] for row in every if city in row["input"]]
        chi += sum((here.count(label) - len(here) * part) ** 2 / (len(here) * part) for label, part in share.items())
    assert chi < 48.3


def test_shuffled_labels_are_the_same_labels_on_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "data" / "banking77"
    for part in ("train", "test"):
        source.mkdir(parents=True, exist_ok=True)
        write_jsonl(source / f"{part}.jsonl", [{"input": f"{part} {at}", "output": f"label_{at % 14}"} for at in range(300)])
    monkeypatch.setattr(advisor_tasks, "bench_data", lambda: tmp_path / "data")
    for shuffled in (False, True):
        advisor_tasks.banking(12, 200, shuffled=shuffled)(tmp_path / str(shuffled))
    plain, other = (rows(tmp_path / name, "train") for name in ("False", "True"))
    assert [row["input"] for row in plain] == [row["input"] for row in other]
    same = sum(a["output"] == b["output"] for a, b in zip(plain, other, strict=True))
    assert same < len(plain) / 4
    assert rows(tmp_path / "False", "dev") == rows(tmp_path / "True", "dev"), "who is asked has the right labels"


def test_no_input_stands_in_two_splits(tmp_path: Path) -> None:
    some = [{"input": f"Order {at}.", "output": "x"} for at in range(12)]
    again = [{"input": "order 3", "output": "y"}]
    advisor_tasks.write(tmp_path, [*some[:8], *again], [*some[8:], *some[:2], *again], some[8:10])
    texts = [advisor_tasks.normalise(row["input"]) for part in ("train", "dev", "test") for row in rows(tmp_path, part)]
    assert len(texts) == len(set(texts))
    assert len(rows(tmp_path, "dev")) == 7, "those of the population stay"


def test_every_task_that_shares_measurements_names_one_that_is_measured() -> None:
    for name, known in advisor_bench.TASKS.items():
        assert not known.shares or (known.shares in advisor_bench.TASKS and not advisor_bench.TASKS[known.shares].shares), name
    assert len(advisor_bench.TASKS) >= 10
