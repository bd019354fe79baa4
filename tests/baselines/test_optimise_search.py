"""The search for better instructions: its budget, its rows, its races and what it says, with models that are scripted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.prompts.optimise.arms import optimised_arms, said
from baselines.prompts.optimise.gepa import gepa
from baselines.prompts.optimise.proposals import ASKING, MAX_CHARACTERS, cleaned, first_prompt, fitting, refusal
from baselines.prompts.optimise.propose import propose, race
from baselines.prompts.optimise.rows import parted
from baselines.prompts.optimise.search import BudgetSpent, Meter, Search, Wording
from evals.candidate import AnswerFormat, PromptFormat
from evals.engines.engine import Message, Request, Response
from evals.errors import AdvisorError
from evals.events import Event, Note, Progress
from evals.metrics.build import Compared, MacroF1
from evals.metrics.label import accuracy
from evals.task.example import Example
from evals.task.load import Task, load_task

COLOURS = ["red", "blue", "green", "pink"]
GOOD = "Answer with the colour that the sentence names."
ACCURACY = Compared("accuracy", accuracy, {"name": "accuracy"})


def rows(count: int) -> list[Example]:
    return [Example(f"r{at}", (Message("user", f"Item {at} is {COLOURS[at % 4]}."),), COLOURS[at % 4]) for at in range(count)]


@dataclass
class Scripted:
    """Answers by `reply(instruction, question, request)`; keeps every request."""

    reply: Callable[[str, str, Request], str]
    name: str = "scripted"
    fingerprint: str = "scripted"
    context_length: int = 4096
    takes_tools: bool = False
    asked: list[Request] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def count_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        return [sum(self.count_tokens([one.content for one in prompt])) for prompt in prompts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        # The last first: nothing may rest on the order.
        for request in reversed(requests):
            self.asked.append(request)
            instruction = request.messages[0].content if request.messages[0].role == "system" else ""
            yield Response(request.id, self.reply(instruction, request.messages[-1].content, request), 10, 2, 0.01)


def obedient(instruction: str, question: str, request: Request) -> str:
    """Right where the instruction is the good one (or shows the answers), else red."""
    colour = question.rstrip(".").split()[-1]
    return colour if instruction == GOOD or len(request.messages) > 3 else "red"


def proposing(*texts: str) -> Scripted:
    """A proposer whose k-th request is answered by the k-th text, over and over."""
    given: list[str] = []

    def reply(_instruction: str, _question: str, request: Request) -> str:
        given.append("")
        return texts[(request.seed or 0) % len(texts)]

    return Scripted(reply, name="proposer", fingerprint="proposer")


def search_of(proposer: Scripted, budget: int = 120, engine: Scripted | None = None, **changes: Any) -> Search:
    learn, hold = parted(rows(80), budget, 0)
    made = Search(
        engine or Scripted(obedient),
        proposer,
        ACCURACY,
        AnswerFormat("label", 8, tuple(COLOURS)),
        "Name it.",
        "The answer is a colour.",
        learn,
        hold,
        Meter(budget),
    )
    return replace(made, **changes)


# The meter


def test_the_meter_counts_what_the_engine_was_asked_and_refuses_before_asking() -> None:
    engine = Scripted(obedient)
    search = search_of(proposing("x"), 20, engine)
    search.ask(Wording("a"), search.hold)
    assert len(search.hold) == len(engine.asked) == search.meter.answers == 8
    search.propose(["p"], [1])
    assert search.meter.spent.requests == 9
    assert search.meter.spent.prompt_tokens == 90
    assert search.meter.spent.output_tokens == 18
    with pytest.raises(BudgetSpent):
        search.ask(Wording("b"), search.learn[:12])
    assert len(engine.asked) == 8
    assert search.meter.left == 11
    search.ask(Wording("b"), search.learn[:11])
    with pytest.raises(BudgetSpent):
        search.propose(["p"], [2])
    assert search.meter.spent.requests == 20


def test_what_a_search_has_asked_is_not_paid_again() -> None:
    engine = Scripted(obedient)
    search = search_of(proposing("x"), engine=engine)
    first = search.score(Wording(GOOD), search.hold[:5])
    again = search.score(Wording(GOOD), search.hold[:7])
    assert again[0][:5] == first[0]
    assert search.meter.answers == len(engine.asked) == 7
    # Another instruction, or other demonstrations, are another question.
    search.score(Wording(GOOD, (search.learn[0],)), search.hold[:5])
    assert search.meter.answers == 12


def test_answers_are_asked_and_parsed_as_a_prompt_does() -> None:
    engine = Scripted(lambda *_: "\n  red \nand so on")
    search = search_of(proposing("x"), engine=engine)
    row = next(one for one in search.hold if one.target == "red")
    shot = search.learn[0]
    scores, outputs = search.score(Wording("Say it.", (shot,)), [row])
    assert outputs == ["red"]
    assert scores == [1.0]
    assert engine.asked[0].messages == PromptFormat("Say it.").messages(row, [shot])
    assert engine.asked[0].temperature == 0
    assert engine.asked[0].max_new_tokens == 8


def test_a_row_that_could_not_be_asked_scores_nothing() -> None:
    class Skipping(Scripted):
        def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
            yield from (
                Response(one.id, one.messages[-1].content.rstrip(".").split()[-1], 0, 0, 0.0, skipped="long")
                for one in requests
            )

    search = search_of(proposing("x"), engine=Skipping(obedient))
    assert search.score(Wording(GOOD), search.hold)[0] == [0.0] * len(search.hold)


def test_macro_f1_is_of_the_whole_batch() -> None:
    search = search_of(proposing("x"), metric=MacroF1("macro_f1", tuple(COLOURS)))
    assert search.mean(Wording(GOOD), search.hold) == pytest.approx(1.0)
    red = sum(one.target == "red" for one in search.hold)
    present = len({one.target for one in search.hold})
    # Always red: F1 of red is 2 r / (n + r), of the others 0.
    assert search.mean(Wording("bad"), search.hold) == pytest.approx(2 * red / (len(search.hold) + red) / present)


# The rows


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=60), st.integers(0, 2000), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_rows_are_on_one_side_and_groups_whole(groups: list[str | None], budget: int, seed: int) -> None:
    train = [replace(row, group=group) for row, group in zip(rows(len(groups)), groups, strict=True)]
    learn, hold = parted(train, budget, seed)
    assert (learn, hold) == parted(train, budget, seed)
    if not hold:
        assert not learn
        return
    assert sorted(one.id for one in (*learn, *hold)) == sorted(one.id for one in train)
    assert not {one.group for one in learn if one.group} & {one.group for one in hold if one.group}
    assert 8 <= len(hold) <= len(train) // 2
    assert len(hold) <= max(8, budget // 8)


def test_a_row_that_an_instruction_quotes_does_not_score() -> None:
    train = rows(40)
    _, hold = parted(train, 120, 0)
    quoted = f"Name it. For example: {hold[0].text} {hold[3].text}"
    learn, others = parted(train, 120, 0, quoted)
    assert {hold[0], hold[3]} <= set(learn)
    assert len(others) == len(hold)


# Ours


def test_propose_finds_the_planted_instruction_and_says_what_it_cost() -> None:
    proposer = proposing("Say red.", GOOD, "Say something.", "Shout.")
    engine = Scripted(obedient)
    search = search_of(proposer, 120, engine)
    found = propose(search)
    assert found.improved
    assert found.instruction == GOOD
    assert found.shots == ()
    assert found.score == 1.0
    held = search.hold[: found.items]
    assert found.incumbent_score == pytest.approx(sum(one.target == "red" for one in held) / len(held))
    assert found.items >= 8
    assert found.spent.requests <= 120
    assert found.spent.answers == len(engine.asked)
    assert found.spent.proposals == len(proposer.asked) > 0
    # Only rows of the search were asked, and only the validation rows decide.
    assert {one.id for one in engine.asked} <= {one.id for one in (*search.learn, *search.hold)}
    (tried,) = [one for one in found.history if one.instruction == GOOD]
    assert (tried.score, tried.items, tried.validated) == (1.0, found.items, True)


def test_the_finalists_answered_the_same_rows() -> None:
    search = search_of(proposing("Say red.", GOOD, "Say something.", "Shout."))
    found = propose(search)
    answered = {text: search.answered(Wording(text), search.hold) for text in ("Name it.", GOOD)}
    assert answered["Name it."] == answered[GOOD] == list(search.hold[: found.items])


def test_no_proposal_helped_is_an_outcome() -> None:
    found = propose(search_of(proposing("Say red.", "Shout.", "", "Name it.", "x" * 3000)))
    assert not found.improved
    assert found.instruction == "Name it."
    assert found.score == found.incumbent_score
    assert {one.refused for one in found.history if one.refused} >= {"proposed before"}
    assert "no proposal helped" in said(found)


def test_equal_scores_leave_the_incumbent_in_place() -> None:
    found = propose(search_of(proposing("Say it at once.", "Say it well."), engine=Scripted(lambda *_: "red")))
    assert not found.improved
    assert found.instruction == "Name it."


def test_junk_costs_the_proposals_and_the_incumbent_only() -> None:
    engine = Scripted(obedient)
    search = search_of(proposing("", "!!!", "y" * (MAX_CHARACTERS + 1), ASKING), 120, engine)
    found = propose(search)
    assert not found.improved
    systems = {one.messages[0].content for one in engine.asked}
    assert systems == {"Name it."}
    assert all(one.refused for one in found.history[1:])


def test_bad_proposals_leave_after_a_few_rows() -> None:
    search = search_of(proposing("Say red.", GOOD, "Shout.", "Whisper."))
    found = propose(search)
    items = {one.instruction: one.items for one in found.history if not one.refused}
    bad = [items[text] for text in ("Say red.", "Shout.", "Whisper.") if text in items]
    assert bad
    assert min(bad) < items[GOOD]


def test_the_described_instruction_is_an_incumbent_too() -> None:
    found = propose(search_of(proposing("Say red.", "Shout."), described=GOOD))
    assert not found.improved
    assert found.instruction == GOOD
    assert found.incumbent_score == 1.0


def test_the_best_incumbent_stays_in_the_race_to_the_end() -> None:
    good = Scripted(lambda instruction, question, _: "red" if instruction == "Name it." else question.rstrip(".").split()[-1])
    search = search_of(proposing("x"), engine=good)
    finalists = race(search, [*search.incumbents, Wording("a"), Wording("b"), Wording("c")], 90)
    # The incumbent is the worst of all.
    assert len(finalists) == 2
    assert finalists[0] == Wording("Name it.")


def test_a_few_rows_show_nothing() -> None:
    search = search_of(proposing("x"))
    for wording in (*search.incumbents, Wording(GOOD)):
        search.ask(wording, search.hold[:7])
    found = search.outcome("propose")
    assert (found.items, found.improved, found.instruction) == (7, False, "Name it.")
    for wording in (*search.incumbents, Wording(GOOD)):
        search.ask(wording, search.hold[:8])
    assert search.outcome("propose").improved


def test_a_rival_that_answered_fewer_rows_than_the_incumbent_is_not_compared() -> None:
    search = search_of(proposing("x"))
    search.ask(search.incumbents[0], search.hold[:12])
    search.ask(Wording(GOOD), search.hold[:11])
    assert not search.outcome("propose").improved


def test_of_equal_proposals_the_one_with_the_users_instruction_is_taken_and_else_the_first() -> None:
    right: dict[str, int] = {"Name it.": 0, "shown": 7, "New.": 7, "Newer.": 8, "Newest.": 8}

    def reply(instruction: str, question: str, request: Request) -> str:
        name = "shown" if len(request.messages) > 3 else instruction
        rank = [one.text for one in search.hold].index(question)
        return question.rstrip(".").split()[-1] if rank < right[name] else "violet"

    search = search_of(proposing("x"), engine=Scripted(reply))
    rows = search.hold[:12]
    shown = Wording("Name it.", (search.learn[0],))
    for wording in (*search.incumbents, Wording("New."), shown):
        search.ask(wording, rows)
    found = search.outcome("mipro")
    assert (found.instruction, found.shots, found.improved) == ("Name it.", shown.shots, True)
    assert (found.score, found.incumbent_score) == (pytest.approx(7 / 12), 0)
    for wording in (Wording("Newer."), Wording("Newest.")):
        search.ask(wording, rows)
    assert search.outcome("mipro").instruction == "Newer."


def test_what_is_left_of_the_budget_makes_the_last_comparison_longer() -> None:
    # Good, but not for pink: else the second round has no mistakes to show, and nothing to race.
    engine = Scripted(lambda *asked: "red" if "pink" in asked[1] else obedient(*asked))
    search = search_of(proposing(GOOD, *(f"Say it {number} times." for number in range(30))), 300, engine)
    found = propose(search)
    assert found.improved
    # The races themselves end on fewer rows: with 10 proposals a round the last two answer about 25.
    assert found.items == len(search.hold) == 37


def test_a_proposal_that_does_not_end_is_refused() -> None:
    class Endless(Scripted):
        def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
            yield from (replace(one, truncated=True) for one in super().generate(requests))

    found = propose(search_of(Endless(lambda *_: GOOD)))
    assert not found.improved
    assert {one.refused for one in found.history[1:]} == {"did not end"}


def test_a_pair_is_measured_once() -> None:
    measured: list[tuple[str, str]] = []

    class Counting:
        name = "counting"
        settings: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
            measured.extend((row.id, answer) for row, answer in pairs)
            return [1.0] * len(pairs)

    search = search_of(proposing("Say red.", "Shout."), metric=Counting())
    propose(search)
    assert len(measured) == len(set(measured)) > 0


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 9, 17, 40, 63])
@pytest.mark.parametrize("method", [propose, gepa])
def test_no_budget_is_ever_exceeded(method: Callable[[Search], Any], budget: int) -> None:
    engine, proposer = Scripted(obedient), proposing("Say red.", GOOD, "Shout.")
    found = method(search_of(proposer, budget, engine))
    assert len(engine.asked) + len(proposer.asked) == found.spent.requests <= budget
    assert found.items >= 8 or not found.improved


def test_the_mistakes_of_the_best_are_shown_in_the_second_round_and_never_validation_rows() -> None:
    proposer = proposing("Say red.", "Shout.", "Whisper.")
    search = search_of(proposer)
    propose(search)
    prompts = [one.messages[0].content for one in proposer.asked]
    assert any("mistakes" in text and "Answered: red" in text for text in prompts)
    held = {one.text for one in search.hold}
    assert not [text for text in prompts for one in held if one in text]


# GEPA


def test_gepa_reflects_on_several_at_once_and_keeps_to_its_budget() -> None:
    proposer = proposing(*(f"Say it {number} times." for number in range(50)))
    batches: list[int] = []

    class Counting(Scripted):
        def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
            batches.append(len(requests))
            yield from super().generate(requests)

    found = gepa(search_of(Counting(proposer.reply, name="proposer"), 100))
    # 12 rows for the incumbent; what is left buys (100 - 12) // 7 reflections, four at a time as long as there are four.
    assert batches[:2] == [4, 4]
    assert sum(batches) == found.spent.proposals >= 12
    assert 100 - 7 < found.spent.requests <= 100


def test_gepa_evolves_to_the_planted_instruction() -> None:
    proposer = proposing(f"Here it is:\n```\n{GOOD}\n```")
    engine = Scripted(obedient)
    search = search_of(proposer, 120, engine)
    found = gepa(search)
    assert found.improved
    assert found.instruction == GOOD
    assert found.score == 1.0
    assert found.items == len(search.hold)
    assert found.spent.requests == len(engine.asked) + len(proposer.asked) <= 120
    prompt = proposer.asked[0].messages[0].content
    assert "Name it." in prompt
    assert "The right answer is:" in prompt
    assert not [one for one in search.hold if one.text in prompt]


def test_gepa_ends_where_nothing_is_left_to_learn() -> None:
    # Everything is right: nothing is reflected on and nothing new is asked, so only the count of rounds can end it.
    search = search_of(proposing("x"), 60, Scripted(lambda _i, question, _r: question.rstrip(".").split()[-1]))
    found = gepa(search)
    assert not found.improved
    assert found.spent.proposals == 0
    assert found.incumbent_score == 1.0


def test_gepa_refuses_junk_unasked() -> None:
    engine = Scripted(obedient)
    found = gepa(search_of(proposing("", "```\n" + "z" * 3000 + "\n```"), 80, engine))
    assert not found.improved
    assert {one.messages[0].content for one in engine.asked} == {"Name it."}
    assert {one.refused for one in found.history[1:]} == {"empty", f"over {MAX_CHARACTERS} characters"}


def test_an_error_of_the_engine_in_a_reflection_ends_the_search() -> None:
    """The library takes it for a bad proposal, tries again and goes on."""
    failed: list[str] = []

    def fail(_instruction: str, _question: str, request: Request) -> str:
        failed.append(request.id)
        raise AdvisorError("the server is gone")

    with pytest.raises(AdvisorError, match="the server is gone"):
        gepa(search_of(Scripted(fail)))
    assert len(failed) == 1


def test_an_error_of_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import gepa as library

    def broken(**_: Any) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(library, "optimize", broken)
    with pytest.raises(AdvisorError, match=r"error of the library: inside"):
        gepa(search_of(proposing("x")))


def test_gepa_writes_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gepa(search_of(proposing(GOOD)))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


# What the proposer is told, and what is made of its text


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("  Name the colour. ", "Name the colour."),
        ("Sure!\n```\nName the colour.\n```\nBye", "Name the colour."),
        ('Instruction: "Name the colour."', "Name the colour."),
        ("**New instruction:** Name the colour.", "Name the colour."),
        ("Instructions are good.", "Instructions are good."),
        ("```text\nName the colour.", "Name the colour."),
        ("", ""),
    ],
)
def test_an_instruction_is_taken_out_of_what_stands_around_it(text: str, instruction: str) -> None:
    assert cleaned(text) == instruction


@given(st.text())
def test_any_text_is_cleaned_and_judged(text: str) -> None:
    found = cleaned(text)
    assert found == found.strip()
    why = refusal(found, text)
    assert why or (len(found) <= MAX_CHARACTERS and re.search(r"\w", found))


def test_the_prompt_again_is_refused_but_not_the_users_own_words() -> None:
    search = search_of(proposing("x"))
    prompt = first_prompt(search, search.learn[:2])
    assert refusal(ASKING, prompt) == "repeats the prompt"
    assert refusal(prompt, prompt) == "repeats the prompt"
    assert refusal(f"{search.instruction} {search.form}", prompt) == ""


def test_a_prompt_longer_than_the_context_loses_its_middle() -> None:
    proposer = replace(proposing("x"), context_length=500)
    short = "a few words"
    assert fitting(proposer, short) == short
    long = " ".join(f"word{at}" for at in range(5000))
    cut = fitting(proposer, long)
    assert proposer.count_prompts([[Message("user", cut)]])[0] <= 100
    assert proposer.count_prompts([[Message("user", cut)]])[0] > 80
    assert cut.startswith("word0 ")
    assert cut.endswith("word4999")


# The arms


@pytest.fixture
def task(make_task: Callable[..., Path], tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task", optimise={"methods": ["propose", "gepa"], "requests": 120}))


def arms_of(task: Task, engine: Scripted, proposer: Scripted, folder: Path, events: list[Event]) -> list[Any]:
    return optimised_arms(task, engine, proposer, [ACCURACY], folder, events.append)


def test_an_arm_for_each_method_that_helped_and_no_row_of_dev_or_test(task: Task, tmp_path: Path) -> None:
    engine, proposer, events = Scripted(obedient), proposing(GOOD), list[Event]()
    arms = arms_of(task, engine, proposer, tmp_path / "optimise", events)
    assert [one.name for one in arms] == ["optimised_propose", "optimised_gepa"]
    assert {one.kind for one in arms} == {"optimised"}
    assert {one.prompt_format.instruction for one in arms} == {GOOD}
    assert {one.id for one in engine.asked} <= {one.id for one in task.train}
    told = "".join(one.messages[0].content for one in proposer.asked)
    assert not [one for one in (*task.dev, *task.test) if one.text in told]
    notes = [one.text for one in events if isinstance(one, Note)]
    for note, method in zip(notes, ("propose", "gepa"), strict=True):
        assert re.match(
            rf"{method}: \d+ requests \(\d+ answers, \d+ proposals\): the instruction scores 1.000 against 0\.", note
        )
    progress = [one for one in events if isinstance(one, Progress)]
    assert progress[0].unit == "requests"
    assert progress[-1].done == progress[-1].total


def test_a_search_is_not_run_again_and_comes_to_the_same(task: Task, tmp_path: Path) -> None:
    events: list[Event] = []
    first = arms_of(task, Scripted(obedient), proposing(GOOD), tmp_path / "optimise", events)
    engine, proposer = Scripted(obedient), proposing(GOOD)
    again = arms_of(task, engine, proposer, tmp_path / "optimise", events)
    assert not engine.asked
    assert not proposer.asked
    assert [one.settings for one in again] == [one.settings for one in first]
    assert "in an earlier search" in [one.text for one in events if isinstance(one, Note)][-1]
    # Another proposer, or a damaged record, is another search.
    other = replace(proposing(GOOD), fingerprint="other")
    arms_of(task, engine, other, tmp_path / "optimise", events)
    assert other.asked
    (tmp_path / "optimise" / "gepa.json").write_text('{"schema_version": 1')
    asked = len(engine.asked)
    arms_of(task, engine, other, tmp_path / "optimise", events)
    assert len(engine.asked) > asked


def test_a_method_does_not_live_on_the_answers_of_the_one_before(task: Task, tmp_path: Path) -> None:
    events: list[Event] = []
    arms_of(task, Scripted(obedient), proposing(GOOD), tmp_path / "both", events)
    gepa_only = replace(
        task, spec=task.spec.model_copy(update={"optimise": task.spec.optimise.model_copy(update={"methods": ("gepa",)})})
    )
    arms_of(gepa_only, Scripted(obedient), proposing(GOOD), tmp_path / "one", events)
    records = [json.loads((tmp_path / name / "gepa.json").read_text()) for name in ("both", "one")]
    assert records[0] == records[1]


def test_no_arm_where_nothing_helped_or_nothing_was_wanted(task: Task, tmp_path: Path) -> None:
    events: list[Event] = []
    assert arms_of(task, Scripted(lambda *_: "red"), proposing("Shout."), tmp_path / "a", events) == []
    assert all("no proposal helped" in one.text for one in events if isinstance(one, Note))
    none = replace(task, spec=task.spec.model_copy(update={"optimise": task.spec.optimise.model_copy(update={"requests": 0})}))
    engine = Scripted(obedient)
    assert arms_of(none, engine, proposing(GOOD), tmp_path / "b", events) == []
    few = task.with_split("train", task.train[:10])
    assert arms_of(few, engine, proposing(GOOD), tmp_path / "c", events) == []
    assert "too few" in [one.text for one in events if isinstance(one, Note)][-1]
    assert not engine.asked


def test_without_dspy_nothing_is_spent(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.prompts.optimise.mipro.find_spec", lambda name: None)
    wanted = task.spec.optimise.model_copy(update={"methods": ("propose", "mipro")})
    asking = replace(task, spec=task.spec.model_copy(update={"optimise": wanted}))
    engine = Scripted(obedient)
    with pytest.raises(AdvisorError, match="install finetune-advisor") as caught:
        arms_of(asking, engine, proposing(GOOD), tmp_path, [])
    assert "[mipro]" in str(caught.value)
    assert not engine.asked
