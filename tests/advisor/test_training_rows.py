"""What each method learns from, made of a task: its documents, its rows with passages, the model's own right answers."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from advisor.cli.mask import print_mask
from advisor.flow.mask import training_mask
from advisor.flow.raft import AS_RENDERED, raft_pipeline, raft_rows, rendered, shelves_of
from advisor.flow.raw_text import raw_text_rows
from advisor.flow.rejection import GOOD, Drawn, rejection_rows, right
from advisor.flow.session import Session
from advisor.flow.training_rows import foreseen_rows, training_rows
from advisor.flow.tuned import asked_as_trained, expected, job_for, prompt_format, recipe_for
from baselines.rag.candidate import Rag
from baselines.rag.chunks import Chunk
from baselines.rag.retriever import Found
from evals.candidate import PromptFormat
from evals.engines.engine import Request, Response
from evals.errors import AdvisorError
from evals.events import Event, Note, TrainingStep
from evals.records import read_json
from evals.task.load import Task, load_task
from tests.conftest import COLOURS, jsonl
from tests.trainer import forked
from trainer import launch
from trainer.data import load_tokenizer
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.raw_text import encode_documents
from trainer.recipe import Recipe

Make = Callable[..., Path]
Open = Callable[..., tuple[Task, Session]]
THINGS = ("anvil", "bucket", "candle", "drum", "easel", "funnel", "garnet", "hammer")


def thing(number: int) -> str:
    return f"{THINGS[number % len(THINGS)]} {number}"


def fact(number: int) -> str:
    return f"The {thing(number)} in the store was painted {COLOURS[number % 4]} last year."


def row(number: int, **more: Any) -> dict[str, Any]:
    asked = {"id": f"row-{number}", "input": f"Which colour has the {thing(number)}?", "output": COLOURS[number % 4]}
    return {**asked, "gold_passages": [fact(number)], **more}


# Of a thing that no page tells of, and no passage is known for it.
UNKNOWN = [{"id": f"none-{at}", "input": f"Which colour has the lantern {at}?", "output": "mauve"} for at in range(3)]
# The answer in other words than the passage's.
OTHER_WORDS = row(7, id="row-words", output="rosy")
# The passage stands in no page: what the row gives is all there is.
NOT_THERE = row(90, id="row-apart")
# A passage that the cut divides: no chunk holds it, and its parts, which have the answer in other words, are no distractors.
DIVIDED = row(3, id="row-divided", output="rosy", gold_passages=[f"{fact(2)}\n\n{fact(3)}"])


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def open_task(make_task: Make, tmp_path: Path, heard: list[Event], monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))

    def make(name: str = "task", *, more: Sequence[Any] = (), count: int = 20, **spec: Any) -> tuple[Task, Session]:
        pages = {
            f"docs/{page}.md": f"# Page {page}\n\n" + "\n\n".join(map(fact, range(8 * page, 8 * page + 8))) for page in range(5)
        }
        splits = {
            "train": [*(row(at) for at in range(count)), *more],
            "dev": [row(at) for at in range(20, 28)],
            "test": [row(at) for at in range(28, 36)],
        }
        data = {**{one: f"{one}.jsonl" for one in splits}, "documents": "docs"}
        files = {**pages, **spec.pop("files", {})}
        folder = make_task(tmp_path / name, rows=splits, files=files, **{"data": data, "output": {"type": "text"}, **spec})
        task = load_task(folder)
        return task, Session(task, heard.append)

    return make


def notes(heard: Sequence[Event]) -> list[str]:
    return [event.text for event in heard if isinstance(event, Note)]


# RAFT


RAFT = Recipe(method="raft", num_distractors=3, gold_share=0.75, seed=3)


def holds(text: str, answer: str) -> bool:
    return re.search(rf"\b{answer}\b", text) is not None


def test_distractors_never_hold_the_answer_and_gold_passages_do(open_task: Open, tmp_path: Path) -> None:
    task, session = open_task(more=[*UNKNOWN, OTHER_WORDS, NOT_THERE, DIVIDED])
    pipeline = raft_pipeline(task, session, RAFT, tmp_path)
    shelves = {one.row.id: one for one in shelves_of(task, pipeline, RAFT, task.train)}
    assert len(shelves) == len(task.train)
    assert not [(one.row.id, text) for one in shelves.values() for text in one.distractors if holds(text, one.row.target)]
    assert {len(one.distractors) for one in shelves.values()} == {3}
    assert all(len({*one.gold, *one.distractors}) == len(one.gold) + 3 for one in shelves.values())
    for number in range(20):
        (gold,) = shelves[f"row-{number}"].gold
        assert fact(number) in gold
    # The passage is the gold one also where the answer stands in it in other words; its parts distract nobody.
    (gold,) = shelves["row-words"].gold
    assert fact(7) in gold
    assert not any(fact(7) in text for text in shelves["row-words"].distractors)
    # Others of its kind are half the same words, and tell of other things: it is shown as the row gives it.
    assert shelves["row-apart"].gold == (fact(90),)
    assert shelves["row-divided"].gold == tuple(DIVIDED["gold_passages"])
    assert not any(fact(part) in text for text in shelves["row-divided"].distractors for part in (2, 3))
    assert all(shelves[one["id"]].gold == () for one in UNKNOWN)


class Fixed:
    """Finds what it was given, for every question."""

    name = "fixed"

    def __init__(self, passages: Sequence[str]) -> None:
        self.passages = passages
        self.settings: dict[str, Any] = {}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        parts = [one.split(": ", 1) for one in self.passages]
        chunks = [Chunk(str(at), title, 0, 0, len(text), text) for at, (title, text) in enumerate(parts)]
        return [[Found(one, -at) for at, one in enumerate(chunks)][:count] for _ in questions]


def test_rows_are_asked_as_the_pipeline_asks_them(open_task: Open, tmp_path: Path) -> None:
    task, session = open_task()
    pipeline = raft_pipeline(task, session, RAFT, tmp_path)
    shuffled = set()
    for shelf in shelves_of(task, pipeline, RAFT, task.train):
        made = rendered(pipeline, shelf, RAFT, gold=True)
        text = made.messages[-1].content
        passages = sorted([*shelf.gold, *shelf.distractors], key=text.index)
        shuffled.add(passages.index(shelf.gold[0]))
        # The pipeline shows the best one last.
        same = replace(pipeline, retriever=Fixed(passages[::-1]))
        (request,) = next(iter(same.requests([shelf.row])[0]))
        assert made.messages == request.messages
        assert (made.id, made.target) == (shelf.row.id, shelf.row.target)
        # The trainer adds nothing.
        assert AS_RENDERED.messages(made) == made.messages
    assert shuffled == {0, 1, 2, 3}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_the_share_of_rows_with_their_gold_passage(open_task: Open, tmp_path: Path, share: float) -> None:
    task, session = open_task()
    made = raft_rows(task, session, replace(RAFT, gold_share=share), task.train, tmp_path)
    assert [one.id for one in made] == [one.id for one in task.train]
    with_gold = [fact(number) in one.messages[-1].content for number, one in enumerate(made)]
    assert sum(with_gold) == round(share * 20)
    # Without it, its answer is nowhere; it stays the target.
    for one, shown in zip(made, with_gold, strict=True):
        assert holds(one.messages[-1].content, one.target) == shown
    assert made == raft_rows(task, session, replace(RAFT, gold_share=share), task.train, tmp_path)


def test_rows_whose_answer_no_passage_holds_are_told_of(open_task: Open, tmp_path: Path, heard: list[Event]) -> None:
    task, session = open_task(more=UNKNOWN, count=17)
    ids = {one["id"] for one in UNKNOWN}
    # Of 20 rows a quarter is asked with distractors alone: these three are among them.
    made = raft_rows(task, session, RAFT, task.train, tmp_path)
    assert (len(made), ids <= {one.id for one in made}) == (20, True)
    assert (
        "3 of 20 training rows have their answer in no passage that is known or was found; 0 of these are left out"
        in notes(heard)[-1]
    )
    # With the gold passage for all, none of them; with one in twenty without it, one.
    assert not ids & {one.id for one in raft_rows(task, session, replace(RAFT, gold_share=1.0), task.train, tmp_path)}
    assert "3 of these are left out" in notes(heard)[-1]
    few = raft_rows(task, session, replace(RAFT, gold_share=0.95), task.train, tmp_path)
    assert (len(few), len(ids & {one.id for one in few})) == (18, 1)
    with pytest.raises(AdvisorError, match="RAFT has nothing to learn from"):
        raft_rows(task, session, replace(RAFT, gold_share=1.0), task.train[17:], tmp_path)


@pytest.mark.parametrize("method", ["raft", "pretraining"])
def test_without_documents_it_says_what_to_do(open_task: Open, tmp_path: Path, method: Any) -> None:
    task, session = open_task(data={one: f"{one}.jsonl" for one in ("train", "dev", "test")}, train={"method": method})
    recipe = recipe_for(task, session.weights)
    for make in (
        lambda: training_rows(task, session, recipe, task.train, PromptFormat(""), tmp_path / "training"),
        lambda: foreseen_rows(task, recipe, task.train),
    ):
        with pytest.raises(AdvisorError, match=r"the task has (none|no documents)") as caught:
            make()
        assert "data: {documents: documents/}" in caught.value.do


# Rejection sampling


class Pupil:
    """Says something else each time: of red things the colour or a shout of it, of blue ones often the wrong one, of green ones always."""

    fingerprint = "pupil"
    context_length = 1000
    dies_after = 10**9

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        for one in requests:
            if len(self.requests) >= self.dies_after:
                raise KeyboardInterrupt
            self.requests.append(one)
            number = int(re.findall(r" (\d+)\?", one.messages[-1].content)[-1])
            draw = random.Random(one.seed)
            said = {
                "red": draw.choice(["red", "RED", "red "]),
                "blue": draw.choice(["blue", "pink", " ", "green"]),
                "green": "pink",
                "pink": "pink",
            }[COLOURS[number % 4]]
            yield Response(one.id, f"{said}\nand so on", 5, 3, 0.1)


SAMPLING = Recipe(method="rejection_sampling", num_generations=4, temperature=0.7, seed=5)
FORMAT = PromptFormat("Name the colour.", "inline")


def with_pupil(session: Session) -> Pupil:
    pupil = Pupil()
    session.__dict__["engine"] = pupil
    return pupil


def test_only_right_answers_are_learnt_each_once(open_task: Open, tmp_path: Path, heard: list[Event]) -> None:
    task, session = open_task()
    pupil = with_pupil(session)
    made = rejection_rows(task, session, SAMPLING, task.train, FORMAT, tmp_path / "training")
    assert session.metrics[0]([(one, one.target) for one in made]) == [1.0] * len(made)
    truth = {one.id: one for one in task.train}
    origins = Counter(one.id.split("#")[0] for one in made)
    assert {truth[name].target for name in origins} == {"red", "blue", "pink"}
    # The model's own words, not the row's; each of them once a row.
    said = {(one.id.split("#")[0], one.target) for one in made}
    assert len(said) == len({one.id for one in made}) == len(made)
    assert {target for name, target in said if truth[name].target == "red"} == {"red", "RED"}
    assert all(one.messages == truth[one.id.split("#")[0]].messages for one in made)

    # Asked as the tuned model will be, so many times each, no two of them with one seed.
    assert len(pupil.requests) == 4 * len(task.train)
    assert len({one.seed for one in pupil.requests}) == len(pupil.requests)
    assert {one.temperature for one in pupil.requests} == {0.7}
    assert all(one.messages == FORMAT.messages(truth[one.id]) for one in pupil.requests)
    left = len(task.train) - len(origins)
    assert left >= 5
    assert notes(heard)[-1].startswith(
        f"rejection sampling: {len(made)} different right answers of the model's own to {len(origins)} of 20"
    )
    assert f"{left} rows that it never answered right, and to an end, are left out" in notes(heard)[-1]


def test_answers_that_were_cut_are_not_learnt_as_if_they_ended_there(
    open_task: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that ended before the cut are: what the model wrote on after a line that is the answer is not read."""
    task, session = open_task()
    pupil = with_pupil(session)
    whole = rejection_rows(task, session, SAMPLING, task.train, FORMAT, tmp_path / "whole")
    say = pupil.generate

    def cut(requests: Sequence[Request], end: str) -> Iterator[Response]:
        return (replace(one, text=one.text.partition("\n")[0] + end, truncated=True) for one in say(requests))

    monkeypatch.setattr(pupil, "generate", lambda requests: cut(requests, "\nand so"))
    assert rejection_rows(task, session, SAMPLING, task.train, FORMAT, tmp_path / "later") == whole
    monkeypatch.setattr(pupil, "generate", lambda requests: cut(requests, ""))
    with pytest.raises(AdvisorError, match="nothing to learn"):
        rejection_rows(task, session, SAMPLING, task.train, FORMAT, tmp_path / "cut")


def test_graded_answers_are_right_from_a_mark_on() -> None:
    def drawn(*scores: float) -> list[Drawn]:
        return [Drawn(f"answer {at}", score) for at, score in enumerate(scores)]

    assert right(drawn(0.5, 1.0, 0.95, 1.0)) == ["answer 1", "answer 3"]
    assert right(drawn(0.5, GOOD, 0.95, 0.95)) == ["answer 2"]
    assert right(drawn(0.5, 0.89)) == []
    assert right([Drawn(" ", 1.0), Drawn("b ", 1.0), Drawn("b", 1.0)]) == ["b"]


def test_an_interrupted_round_goes_on_and_other_settings_ask_anew(open_task: Open, tmp_path: Path) -> None:
    task, session = open_task()
    folder = tmp_path / "training"
    whole = rejection_rows(task, session_with(session), SAMPLING, task.train, FORMAT, tmp_path / "whole")
    pupil = with_pupil(session)
    pupil.dies_after = 50
    with pytest.raises(KeyboardInterrupt):
        rejection_rows(task, session, SAMPLING, task.train, FORMAT, folder)
    pupil.dies_after = 10**9
    assert rejection_rows(task, session, SAMPLING, task.train, FORMAT, folder) == whole
    # Two rounds of 20 were whole, and ten answers of the third were lost.
    assert len(pupil.requests) == 50 + 40
    assert rejection_rows(task, session, SAMPLING, task.train, FORMAT, folder) == whole
    assert len(pupil.requests) == 90
    # More answers: only these are asked for. Another temperature: all of them.
    rejection_rows(task, session, replace(SAMPLING, num_generations=5), task.train, FORMAT, folder)
    assert len(pupil.requests) == 110
    rejection_rows(task, session, replace(SAMPLING, temperature=0.9), task.train, FORMAT, folder)
    assert len(pupil.requests) == 190


def session_with(session: Session) -> Session:
    with_pupil(session)
    return session


def test_a_model_that_is_never_right_learns_nothing(open_task: Open, tmp_path: Path) -> None:
    task, session = open_task()
    with_pupil(session)
    green = [one for one in task.train if one.target == "green"]
    with pytest.raises(
        AdvisorError, match=r"asked 4 times at temperature 0\.7, the model answers none of 5 training rows right"
    ):
        rejection_rows(task, session, SAMPLING, green, FORMAT, tmp_path / "training")


# All of them, from the task to weights


def test_each_document_is_a_row_and_the_whole_instruction_is_asked(open_task: Open) -> None:
    long = {"instruction": "Name the colour.\n\nOne word, no more.", "train": {"method": "pretraining"}}
    task, session = open_task(**long)
    assert [(one.id, one.messages, one.target) for one in raw_text_rows(task)] == [
        (one.id, (), one.text) for one in task.documents
    ]
    recipe = recipe_for(task, session.weights)
    assert prompt_format(task, recipe).instruction == task.instruction
    assert "One word" in task.instruction
    task, session = open_task("short", **{**long, "train": {"method": "pretraining", "instruction": "short"}})
    assert prompt_format(task, recipe_for(task, session.weights)).instruction == "Name the colour."


@pytest.fixture
def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    forked.start_server()
    monkeypatch.setattr(launch.subprocess, "Popen", forked.Worker)


def first_and_last(heard: Sequence[Event]) -> tuple[float, float]:
    losses = [one.loss for one in heard if isinstance(one, TrainingStep)]
    return losses[0], losses[-1]


def trained_job(task: Task, session: Session, folder: Path, heard: list[Event]) -> tuple[TrainingJob, Any]:
    recipe = recipe_for(task, session.weights)
    job = job_for(task, session, recipe, task.train, folder, "training")
    told = expected(task, session.weights, recipe, job.train)
    trained = train(job, heard.append)
    # What is told before it is what is done: the steps are those of the rows that are really trained.
    assert told.steps == trained.steps
    return job, trained


QUICK = {"num_train_epochs": 3, "learning_rate": 1e-2, "lora_r": 4, "replay_share": 0.0}


@pytest.mark.usefixtures("fork_workers")
def test_pretraining_from_the_task_with_replay_by_its_blocks(open_task: Open, tmp_path: Path, heard: list[Event]) -> None:
    task, session = open_task(train={**QUICK, "method": "pretraining", "max_length": 128, "replay_share": 0.1})
    job, trained = trained_job(task, session, tmp_path / "run" / "training", heard)
    blocks = len(encode_documents(load_tokenizer(job.model_folder), job.train, 128).rows)
    assert blocks > 3 * len(task.documents)
    asked = read_json(tmp_path / "run" / "replay.json")["replies"]
    assert len(asked) <= round(blocks / 9)
    assert round(blocks / 9) > round(len(task.documents) / 9) > 0
    assert (trained.rows, job.dev) == (len(task.documents), tuple(task.dev))
    first, last = first_and_last(heard)
    assert last < first - 1


@pytest.mark.usefixtures("fork_workers")
def test_raft_from_the_task_is_asked_as_it_was_trained(open_task: Open, tmp_path: Path, heard: list[Event]) -> None:
    task, session = open_task(train={**QUICK, "method": "raft", "num_distractors": 1})
    run = tmp_path / "run"
    job, trained = trained_job(task, session, run / "training", heard)
    assert trained.rows == len(task.train) == len(job.train)
    first, last = first_and_last(heard)
    assert last < first - 1
    candidate = asked_as_trained(task, session, job.recipe, trained.folder, "tuned", run)
    assert isinstance(candidate, Rag)
    assert (candidate.kind, candidate.name) == ("tuned", "tuned")
    assert candidate.engine is not session.engine
    asked = [next(iter(one))[0].messages for one in candidate.requests(task.dev)]
    assert asked == [AS_RENDERED.messages(one) for one in job.dev]
    assert all(one.count('"""') == 4 for one in (messages[-1].content for messages in asked))


@pytest.mark.usefixtures("fork_workers")
def test_rejection_sampling_from_the_task(
    open_task: Open, tmp_path: Path, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, session = open_task(train={**QUICK, "method": "rejection_sampling", "num_generations": 2})
    monkeypatch.setattr(session.weights, "generate", Pupil().generate)
    job, trained = trained_job(task, session, tmp_path / "run" / "training", heard)
    assert trained.rows == len(job.train) != len(task.train)
    assert {one.target for one in job.train} <= {"red", "RED", "blue", "pink"}
    first, last = first_and_last(heard)
    assert last < first - 1


def test_a_plan_shows_what_will_be_learnt(open_task: Open) -> None:
    task, session = open_task(train={"method": "pretraining", "max_length": 128})
    shown = training_mask(task, session.weights).rows
    # Documents, whose tokens are learnt but for the first; none of the questions, which are not trained on.
    assert all(one.row.example.target.startswith(one.segments[1].text) for one in shown)
    assert [(one.tokens <= 128, one.trained_tokens) for one in shown] == [(True, one.tokens - 1) for one in shown]
    task, session = open_task("raft", train={"method": "raft", "num_distractors": 2})
    for one in training_mask(task, session.weights).rows:
        text = "".join(segment.text for segment in one.segments)
        assert (text.count('"""'), "Name the colour." in text) == (6, True)
        assert [segment.trained for segment in one.segments] == [False, True]
        assert one.segments[1].text.startswith(one.row.example.target)
    assert "in the place of those that a search will find" in training_mask(task, session.weights).stand_ins


def shown_pairs(task: Task, session: Session) -> dict[str, list[str]]:
    """By row's id what is learnt of each of its answers, behind one and the same prompt."""
    rows = training_mask(task, session.weights).rows
    assert [one.answer for one in rows] == ["chosen", "rejected"] * (len(rows) // 2)
    found: dict[str, list[str]] = {}
    for one in rows:
        read, learnt = one.segments
        assert (read.trained, learnt.trained) == (False, True)
        assert read.text.endswith(f"{one.row.example.text}<|im_end|>\n<|im_start|>assistant\n")
        found.setdefault(one.row.example.id, []).append(learnt.text.removesuffix("<|im_end|>"))
    return found


def test_a_plan_of_dpo_shows_the_pairs_that_will_be_learnt(open_task: Open, capsys: pytest.CaptureFixture[str]) -> None:
    data = {one: f"{one}.jsonl" for one in ("train", "dev", "test")}
    given = [{"prompt": f"Which {'very ' * at}one?", "chosen": f"good {at}", "rejected": f"bad {at}"} for at in range(5)]
    alike = {"prompt": "Both?", "chosen": "yes", "rejected": "yes "}
    files = {"pairs.jsonl": jsonl([alike, *given])}
    task, session = open_task(
        files=files, data={**data, "preferences": "pairs.jsonl"}, train={"method": "dpo", "max_length": 70}
    )
    # Of the pairs the shortest, one in the middle and the longest: none of train's rows, and none that says the same twice.
    assert [*shown_pairs(task, session).values()] == [[f"good {at}", f"bad {at}"] for at in (0, 2, 4)]
    mask = training_mask(task, session.weights)
    assert not mask.stand_ins
    assert [Path(one.row.file).name for one in mask.rows] == ["pairs.jsonl"] * 6
    assert [one.fits for one in mask.rows] == [True] * 4 + [False] * 2
    print_mask(Console(width=200), mask)
    told = capsys.readouterr().out
    assert f"row {mask.rows[0].row.example.id}, chosen: 7 of {mask.rows[0].tokens} tokens" in told
    assert "[[bad 0<|im_end|>]]" in told

    task, session = open_task("made", data=data, train={"method": "dpo"})
    right = {row.id: row.target for row in task.train}
    for name, (chosen, rejected) in shown_pairs(task, session).items():
        assert chosen == right[name] != rejected
    assert "wrong ones that the model will be asked for" in training_mask(task, session.weights).stand_ins


def test_a_plan_of_rejection_sampling_says_what_its_answers_stand_for(open_task: Open) -> None:
    task, session = open_task(train={"method": "rejection_sampling"})
    assert "right ones that the model will be asked for" in training_mask(task, session.weights).stand_ins
    task, session = open_task("plain")
    assert not training_mask(task, session.weights).stand_ins
