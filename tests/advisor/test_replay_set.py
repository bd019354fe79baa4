"""`data.replay`: the user's general rows take the place of our prompts, with their own targets, and are looked through for leaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.cli.display import Display
from advisor.flow.checks import check_data
from advisor.flow.plan import plan
from advisor.flow.session import Session
from advisor.flow.tuned import expected, job_for, prompt_format, recipe_for, too_little_replay
from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.errors import ProblemsError
from evals.events import Event, Note, TrainingStep
from evals.task.example import Example
from evals.task.load import Task, load_task
from tests.conftest import jsonl
from trainer.callbacks import Stop
from trainer.data import IGNORED, encode_replay, load_tokenizer
from trainer.job import TrainingJob
from trainer.recipe import Recipe
from trainer.replay import Replay
from trainer.worker import METHODS

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where do owls sleep?"},
    {"role": "assistant", "content": "In trees."},
    {"role": "user", "content": "And bats?"},
    {"role": "assistant", "content": "In caves."},
]
LONG = "The harbour was painted beside a saddle and then carried towards the orchard where a lantern hid"


@pytest.fixture
def open_task(
    make_task: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Task, Session]]:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))

    def make(replay: list[Any], **spec: Any) -> tuple[Task, Session]:
        data = {**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, "replay": "general.jsonl"}
        task = load_task(make_task(tmp_path / "task", files={"general.jsonl": jsonl(replay)}, data=data, **spec))
        return task, Session(task, lambda event: None)

    return make


CHATS: list[Any] = [
    {"messages": CHAT},
    *({"messages": [{"role": "user", "content": f"{at}?"}, {"role": "assistant", "content": f"{at}!"}]} for at in range(7)),
]


def test_replay_rows_are_drawn_from_the_user_s_set_with_their_own_targets(
    open_task: Callable[..., tuple[Task, Session]], tmp_path: Path
) -> None:
    task, session = open_task(CHATS, train={"replay_share": 0.2})
    recipe = recipe_for(task, session.weights)
    job = job_for(task, session, recipe, task.train, tmp_path / "run" / "training", "training")
    # 24 rows of the task: 6 more are a fifth of all.
    assert len(job.replay) == 6
    targets = {row.example.text: row.example.target for row in task.replay}
    assert targets["And bats?"] == "In caves."
    assert all(targets[one.prompt] == one.reply and one.finished for one in job.replay)
    assert len({one.prompt for one in job.replay}) == 6
    # No more than there are, none twice; none where no share is wanted.
    task, session = open_task(CHATS, train={"replay_share": 0.5})
    whole = job_for(task, session, recipe_for(task, session.weights), task.train, tmp_path / "more" / "training", "training")
    assert {one.prompt for one in whole.replay} == set(targets)
    # All turns are asked, and the answer alone is learnt.
    tokenizer = load_tokenizer(task_folder(task))
    (chat,) = encode_replay(tokenizer, [one for one in whole.replay if one.prompt == "And bats?"], 500)
    read = tokenizer.decode(chat["input_ids"])
    assert all(turn["content"] in read for turn in CHAT)
    assert tokenizer.decode([one for one in chat["labels"] if one != IGNORED]).removesuffix("<|im_end|>").endswith("In caves.")
    # They lie beside the job, and are foreseen.
    whole.folder.mkdir(parents=True)
    whole.write("hash")
    assert TrainingJob.read(whole.folder)[0].replay == whole.replay
    with_replay = expected(task, session.weights, recipe_for(task, session.weights), task.train)
    task, session = open_task(CHATS, train={"replay_share": 0.0})
    assert not job_for(task, session, recipe_for(task, session.weights), task.train, tmp_path / "no" / "training", "t").replay
    assert expected(task, session.weights, recipe_for(task, session.weights), task.train).steps < with_replay.steps
    assert prompt_format(task, recipe).instruction == "Name the colour."


def test_a_share_that_there_are_too_few_rows_for_is_told_with_both_numbers(
    open_task: Callable[..., tuple[Task, Session]], make_task: Callable[..., Path], tmp_path: Path
) -> None:
    heard: list[Event] = []
    task, session = open_task(CHATS, train={"replay_share": 0.5})
    session.on_event = heard.append
    job_for(task, session, recipe_for(task, session.weights), task.train, tmp_path / "run" / "training", "training")
    (said,) = [one.text for one in heard if isinstance(one, Note) and one.level == "warning"]
    for words in ("25.00% of all rows", "the 50.00%", "24 are wanted beside 24 rows", "there are 8 rows in `data.replay`"):
        assert words in said
    assert said in plan(task, tmp_path / "runs").said
    # Of the shipped prompts: 5% beside 10,000 rows is five times what there is.
    shipped = load_task(make_task(tmp_path / "shipped"))
    said = too_little_replay(shipped, Recipe(replay_share=0.05), 10_000)
    for words in ("1.04% of all rows", "the 5.00%", "526 are wanted beside 10,000 rows", "there are 105 shipped prompts"):
        assert words in said
    assert not too_little_replay(shipped, Recipe(replay_share=0.05), 1000)
    assert not too_little_replay(task, Recipe(replay_share=0.25), 24)


def test_replay_rows_that_are_too_long_are_counted(tiny_model: Path) -> None:
    heard: list[Event] = []
    tokenizer = load_tokenizer(tiny_model)
    rows = [Replay("hi", "yes", True), Replay("hi " * 50, "yes", True), Replay("hi", "yes " * 50, False)]
    assert len(encode_replay(tokenizer, rows, 100, heard.append)) == 1
    assert [one.text for one in heard if isinstance(one, Note)] == [
        "2 of 3 replay rows are longer than max_length (100 tokens) and left out"
    ]


@pytest.mark.parametrize("method", ["sft", "pretraining"])
def test_a_training_tells_of_its_replay_rows_that_are_too_long(method: str, tiny_model: Path, tmp_path: Path) -> None:
    recipe = Recipe(method=method, max_length=120, max_steps=1, lora_r=2)
    row = Example("a", (Message("user", "red?"),) if method == "sft" else (), "r")
    long = Replay("hi " * 100, "yes", True)
    job = TrainingJob(tiny_model, recipe, PromptFormat(""), (row,), (), tmp_path / "job", "float32", "p", replay=(long,))
    heard: list[Event] = []
    METHODS[method](job, "hash", heard.append, Stop())
    assert any(
        "1 of 1 replay rows are longer than max_length (120 tokens)" in one.text for one in heard if isinstance(one, Note)
    )


def task_folder(task: Task) -> Path:
    return Path(task.spec.model.model_name_or_path)


def test_the_set_belongs_to_the_task_and_is_told(open_task: Callable[..., tuple[Task, Session]]) -> None:
    task, _ = open_task(CHATS)
    assert any(one.startswith("replay: 8 rows of general.jsonl") for one in task.said)
    other, _ = open_task(CHATS[1:])
    assert other.hash() != task.hash()
    with pytest.raises(ProblemsError) as caught:
        open_task(["no row"])
    assert any(one.file.endswith("general.jsonl") for one in caught.value.problems)


def test_a_replay_row_that_is_a_test_row_is_a_leak(open_task: Callable[..., tuple[Task, Session]]) -> None:
    test = [
        {"id": f"t{at}", "input": f"{LONG} {word}", "output": "red"} for at, word in enumerate(("one", "two", "three", "four"))
    ]
    leaked = {"messages": [{"role": "user", "content": f"{LONG} two".upper()}, {"role": "assistant", "content": "red"}]}
    task, session = open_task([*CHATS, leaked], rows={"test": test})
    checks = check_data(task, session, lambda event: None, embed=False).checks
    (found,) = [one for one in checks.findings if one.places and one.places[0].pool == "replay" and one.check == "leak.exact"]
    assert (found.places[0].line, found.places[1].id, found.drop) == (9, "t1", False)
    assert "t1" in checks.tainted("test")


def test_a_metric_that_asks_a_model_is_told_once_and_dev_is_measured_by_its_loss(
    make_task: Callable[..., Path], tmp_path: Path
) -> None:
    heard: list[Event] = []
    task = load_task(make_task(tmp_path / "task", metric="similarity", output={"type": "text"}, train={"replay_share": 0.0}))
    session = Session(task, heard.append)
    job = job_for(task, session, recipe_for(task, session.weights), task.train, tmp_path / "run" / "training", "training")
    assert job.scoring is None
    assert sum("asks another model" in one.text for one in heard if isinstance(one, Note)) == 1
    scored = load_task(make_task(tmp_path / "scored", train={"replay_share": 0.0}))
    job = job_for(scored, session, recipe_for(scored, session.weights), scored.train, tmp_path / "run" / "training", "training")
    assert job.scoring is not None
    assert (job.scoring.metric["name"], job.scoring.labels) == ("accuracy", scored.labels)


def test_the_line_of_a_training_has_what_was_measured_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advisor.cli.display.EVERY_SECONDS_WITHOUT_TERMINAL", -1.0)
    monkeypatch.setenv("COLUMNS", "200")
    display = Display()
    given = {"learning_rate": 1e-4, "tokens_per_second": 700.0, "eta": 9.0, "memory_mib": 900.0}
    for step, more in ((1, {}), (2, {"dev_score": 0.5, "kl": 0.031}), (3, {"kl": 0.0321}), (4, {})):
        display.on_event(TrainingStep("training", step, 9, 2.0 - step / 10, None, **given, **more))
    display.on_event(TrainingStep("another", 1, 9, 1.0, None, **given))
    lines = capsys.readouterr().err.splitlines()
    assert "1/9 steps  loss 1.900  lr 1.0e-04  700 tokens/s" in lines[0]
    assert "2/9 steps  loss 1.800  dev score 0.500  KL 0.031  lr 1.0e-04  700 tokens/s" in lines[1]
    assert "4/9 steps  loss 1.600  dev score 0.500  KL 0.032  lr 1.0e-04  700" in lines[3]
    assert "another: 1/9 steps  loss 1.000  lr 1.0e-04  700" in lines[4]
