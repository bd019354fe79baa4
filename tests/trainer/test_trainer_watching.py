"""What is measured while a model trains: it is what the finished weights give, it changes nothing, and it warns once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from evals.engines.engine import Request
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import Event, Note, TrainingStep, ignore
from evals.records import file_hash, read_json, write_json
from evals.scoring import Scoring, scoring_of
from evals.task.load import load_task
from tests.trainer.conftest import colour_rows
from tests.trainer.faults import NO_MEMORY
from trainer import answer_trainer, tripwire, watching
from trainer.callbacks import Probe, Stop
from trainer.data import load_tokenizer
from trainer.job import TrainedAdapter, TrainingJob, finished
from trainer.methods import sft
from trainer.model import base_model
from trainer.replay import prompts
from trainer.tripwire import Tripwire, encoded, limit_passed, watched_replies
from trainer.twin import Twin, twin_of
from trainer.watching import Measured

MakeJob = Callable[..., TrainingJob]
FLAT = {"lr_scheduler_type": "constant", "warmup_steps": 0.0}


@pytest.fixture
def scored_job(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    """A job whose dev answers are scored, by exact match."""

    def make(name: str = "scored", **given: Any) -> TrainingJob:
        scoring = Scoring({"name": "exact"}, "label", 8, tmp_path, ("r", "b", "g", "p"))
        return replace(make_job(name, **{**FLAT, **given}), scoring=scoring, dev=colour_rows(20, "dev"))

    return make


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured every other step."""
    monkeypatch.setattr(watching, "SHARE", 1e9)
    monkeypatch.setattr(watching, "TRIPWIRE_SHARE", 1e9)


def run(job: TrainingJob, listen: Callable[[Event], None] = ignore, stop: Stop | None = None) -> tuple[Any, list[Event]]:
    heard: list[Event] = []

    def hear(event: Event) -> None:
        heard.append(event)
        listen(event)

    return sft.run(job, job.input_hash, hear, stop or Stop()), heard


def steps_of(heard: list[Event]) -> list[TrainingStep]:
    return [one for one in heard if isinstance(one, TrainingStep)]


def warnings_of(heard: list[Event]) -> list[str]:
    return [one.text for one in heard if isinstance(one, Note) and one.level == "warning"]


def weights(trained: TrainedAdapter) -> str:
    return file_hash(next(trained.folder.glob("*.safetensors")))


def asked_afterwards(job: TrainingJob, trained: TrainedAdapter) -> float:
    """The share of right answers of the finished weights, by an engine of their own."""
    engine = HfEngine(ModelHandle(str(job.model_folder), "float32", ignore)).with_adapter(trained.folder, "tuned")
    asked = [Request(row.id, job.prompt_format.messages(row), 8) for row in job.dev]
    texts = {one.id: one.text for one in engine.generate(asked)}
    return sum(texts[row.id].strip().splitlines()[:1] == [row.target] for row in job.dev) / len(job.dev)


@pytest.mark.parametrize("recipe", [{}, {"use_peft": False, "learning_rate": 3e-3}, {"use_dora": True}], ids=str)
def test_the_measured_score_is_that_of_the_finished_weights(scored_job: MakeJob, often: None, recipe: dict[str, Any]) -> None:
    job = scored_job(eval_steps=4, **recipe)
    trained, heard = run(job)
    last = steps_of(heard)[-1]
    assert trained.dev_score == last.dev_score == asked_afterwards(job, trained)
    measured = {one.step: one.dev_score for one in steps_of(heard)[:-1] if one.dev_score is not None}
    assert set(measured) == {4, 8}
    # Neither all wrong nor all right, and not always the same: nothing is shown by a score that cannot move.
    assert len({*measured.values(), last.dev_score}) > 1


VARIANTS: list[dict[str, Any]] = [
    {},
    {"lora_dropout": 0.2},
    {"use_peft": False, "learning_rate": 1e-3},
    {"gradient_checkpointing": True},
    {"gradient_accumulation_steps": 2, "early_stopping_patience": 9, "eval_steps": 2},
]
UNUSED = Probe("losses", 10**9, lambda: 0.0, at_last=False)


@pytest.mark.parametrize("recipe", VARIANTS, ids=str)
def test_measuring_changes_no_weight_and_no_random_state(
    scored_job: MakeJob, often: None, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    import numpy
    import torch

    def states() -> list[Any]:
        return [random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()]

    looked, heard = run(scored_job("looked", **recipe))
    after = states()
    assert {one.step for one in steps_of(heard) if one.kl is not None} >= {2, 4, 6}
    assert any(one.dev_score is not None for one in steps_of(heard))
    assert any(one.dev_loss is not None for one in steps_of(heard)[:-1])
    # The same job without a probe and without anything remembered.
    monkeypatch.setattr(watching, "_tripwire", lambda *_: None)
    monkeypatch.setattr(watching, "_loss_probe", lambda *_: UNUSED)
    left_alone, heard = run(replace(scored_job("alone", **recipe), scoring=None))
    assert all(one.kl is one.dev_score is None for one in steps_of(heard))
    assert all(one.dev_loss is None for one in steps_of(heard)[:-1])
    assert weights(looked) == weights(left_alone)
    assert states() == after


def test_the_twin_has_the_weights_and_nothing_else_of_the_model(make_job: MakeJob) -> None:
    model = base_model(make_job(), "cpu", 10)
    model.set_attn_implementation("eager")
    model.forward = lambda *_, **__: None
    hook = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    model.train()
    twin = twin_of(model)
    assert all(own is other for own, other in zip(model.parameters(), twin.parameters(), strict=True))
    assert not twin.training
    assert "forward" not in vars(twin)
    assert twin.config._attn_implementation == "sdpa"
    assert twin(input_ids=__import__("torch").tensor([[3, 5]])).logits.shape[:2] == (1, 2)
    # The model itself is as it was.
    assert model.training
    assert model.forward() is None
    assert model.config._attn_implementation == "eager"
    assert len(model.lm_head._forward_hooks) == 1
    hook.remove()


def test_the_best_by_score_is_kept_and_the_training_stops(scored_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = iter([0.25, 0.75, 0.5, 0.75, 0.5, 1.0])
    monkeypatch.setattr(watching.DevAnswers, "score", lambda self: next(planted))
    chosen = {"early_stopping_patience": 3, "eval_steps": 2, "metric_for_best_model": "score", "num_train_epochs": 10}
    losses = iter([0.5, 0.5, 0.1, 0.5, 0.1])
    monkeypatch.setattr(watching, "_loss_probe", lambda *_: Probe("losses", 2, lambda: next(losses)))
    trained, heard = run(scored_job("by-score", **chosen))
    # Step 8 has the score and the loss of step 4: the earlier one is kept. The lower losses of 6 and 10 count for nothing.
    assert trained.steps == 10
    assert trained.dev_score == 0.75
    kept, flatters = [one.text for one in heard if isinstance(one, Note)][-2:]
    assert "the weights of step 4 of 10 are kept" in kept
    # It is the highest of five, and that is told where the score is: on the way, in the record and on the card.
    assert "dev's score is the best of 5 looks at the same rows, and flatters" in flatters
    assert trained.chosen_of == finished(trained.folder.parent, trained.input_hash, reused=True).chosen_of == 5
    assert "the best of 5 looks" in (trained.folder / "README.md").read_text()
    monkeypatch.setattr(watching, "_loss_probe", lambda *_: UNUSED)
    short, _ = run(replace(scored_job("short", num_train_epochs=10, max_steps=4), scoring=None))
    assert weights(short) == weights(trained)
    assert short.chosen_of == 0
    assert "looks" not in (short.folder / "README.md").read_text()
    # Trainings of before are finished still.
    path = short.folder.parent / "training.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "chosen_of"})
    assert finished(short.folder.parent, short.input_hash, reused=True) == replace(short, reused=True)


def independent_kl(job: TrainingJob, trained: TrainedAdapter) -> float:
    """KL(base || tuned), mean over the replies' tokens, by torch's own function on models that peft has loaded."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(job.model_folder)
    base = AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32).eval()
    tuned = AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(tuned, trained.folder).eval()
    parts = []
    for one in watched_replies():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": one.prompt}], tokenize=False, add_generation_prompt=True
        )
        before = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + one.reply + "<|im_end|>")["input_ids"]])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, before - 1 : -1].log_softmax(-1) for model in (base, tuned))
        parts.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
    return float(torch.cat(parts).mean())


@pytest.mark.parametrize("shared", [0, 6])
def test_kl_is_nothing_before_the_first_step_and_the_formula_s_after_the_last(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    # All begin with the template's mark and "user\n": read once or with each, the number is the same.
    monkeypatch.setattr(tripwire, "MIN_SHARED", shared or 1000)
    job = make_job("kl", **FLAT, max_steps=6, learning_rate=3e-3)
    handle = Twin(job, base_model(job, "cpu", 10), "cpu")
    wire = Tripwire(handle, job.folder)
    assert wire.texts.shared == shared
    wire.remember()
    assert wire.measure() == 0.0
    trained, heard = run(job)
    expected = independent_kl(job, trained)
    assert expected > 0.01
    assert steps_of(heard)[-1].kl == trained.kl == pytest.approx(expected, rel=1e-4)
    # Fewer tokens kept apart: a lower bound, and nothing before the first step all the same.
    monkeypatch.setattr(tripwire, "KEPT", 20)
    coarse = Tripwire(handle, job.folder)
    coarse.remember()
    assert coarse.measure() == 0.0
    bound, _ = run(replace(job, folder=job.folder.parent / "coarse"))
    assert 0.3 * expected < bound.kl < expected


def test_a_drift_is_warned_of_once(make_job: MakeJob, often: None) -> None:
    _, heard = run(make_job("drifts", **FLAT, max_steps=10, learning_rate=1e-2))
    drifts = [one.kl for one in steps_of(heard)[:-1] if one.kl is not None]
    assert len([one for one in drifts if one > tripwire.LIMIT]) > 1
    (said,) = warnings_of(heard)
    first = next(one for one in steps_of(heard) if one.kl is not None and one.kl > tripwire.LIMIT)
    for words in (f"at step {first.step} ", f"KL {first.kl:.2f}", f"limit {tripwire.LIMIT:g}", "replay_share", "learning_rate"):
        assert words in said
    # It is said when it is measured, not at the end.
    order = [one for one in heard if isinstance(one, Note | TrainingStep)]
    assert order.index(first) - [isinstance(one, Note) and one.level == "warning" for one in order].index(True) == 1
    _, heard = run(make_job("stays", **FLAT, max_steps=10, learning_rate=1e-6))
    assert not warnings_of(heard)
    assert all(one.kl < 0.01 for one in steps_of(heard) if one.kl is not None)


def test_only_the_first_measurement_beyond_the_limit_is_told() -> None:
    assert limit_passed([], 0.3, 0.2)
    assert limit_passed([0.1, 0.2], float("nan"), 0.2)
    assert not limit_passed([0.1], 0.2, 0.2)
    assert not limit_passed([0.1, 0.3, 0.1], 0.4, 0.2)


@pytest.mark.parametrize("chosen", [{"early_stopping_patience": 9, "metric_for_best_model": "score"}, {}], ids=["best", "last"])
def test_going_on_keeps_what_was_measured_and_comes_to_the_same(
    scored_job: MakeJob, often: None, chosen: dict[str, Any]
) -> None:
    recipe = {"eval_steps": 2, "save_steps": 3, **chosen}
    whole, heard = run(scored_job("whole", **recipe))
    assert len([one for one in steps_of(heard)[:-1] if one.dev_loss is not None]) > 2

    def told(events: list[Event]) -> dict[int, tuple[Any, ...]]:
        return {one.step: (one.dev_loss, one.dev_score, one.kl) for one in steps_of(events)}

    job, stop = scored_job("cut", **recipe), Stop()

    def ask_to_stop(event: Event) -> None:
        stop.asked |= isinstance(event, TrainingStep) and event.step == 6

    nothing, first = run(job, ask_to_stop, stop)
    assert nothing is None
    kept = (job.folder / "checkpoints" / "before.safetensors").read_bytes()
    again, rest = run(job)
    assert {**told(first), **told(rest)} == told(heard)
    assert min(told(rest)) > 6
    assert len(warnings_of(first) + warnings_of(rest)) == len(warnings_of(heard)) == 1
    assert (weights(again), again.dev_score, again.kl) == (weights(whole), whole.dev_score, whole.kl)
    assert kept
    # Without what was remembered there is nothing to compare with: no number, and no failure.
    job, stop = scored_job("lost", **recipe), Stop()
    run(job, ask_to_stop, stop)
    (job.folder / "checkpoints" / "before.safetensors").unlink()
    lost, rest = run(job)
    assert lost.kl is None
    assert weights(lost) == weights(whole)


@pytest.mark.parametrize(
    ("steps", "dev", "eval_steps", "every", "rows"),
    [
        # Batches of 8 rows of dev's own length: a row of dev costs a 24th of a step, 64 of them a tenth of 27 steps.
        (1000, 300, 10, 27, 64),
        (1000, 300, 50, 50, 64),
        (100, 300, 10, 25, 60),
        (40, 300, 10, 10, 24),
        (40, 300, 2, 10, 24),
        (1000, 10, 5, 5, 10),
        # Even the fewest take more than a tenth of four steps, so that the end is left.
        (3, 300, 10, 4, 8),
    ],
)
def test_the_loss_of_dev_is_measured_a_few_times_for_a_tenth_of_the_time(
    make_job: MakeJob, steps: int, dev: int, eval_steps: int, every: int, rows: int
) -> None:
    asked: list[int] = []

    def loss(chosen: Any) -> float:
        asked.append(len(chosen))
        return 1.0

    measured = Measured([{"input_ids": [1] * 30}] * dev, loss)
    probe = watching._loss_probe(make_job(eval_steps=eval_steps), measured, 8 * 30.0, steps)
    probe.measure()
    assert (probe.every, asked, probe.at_last) == (every, [rows], False)
    assert rows / 24 / every <= watching.SHARE + 1e-9


def test_the_loss_of_dev_is_that_of_the_weights_of_its_step(make_job: MakeJob) -> None:
    _, heard = run(make_job("long", **FLAT))
    found = {one.step: one.dev_loss for one in steps_of(heard)[:-1] if one.dev_loss is not None}
    assert [*found] == [4, 8]
    for step, loss in found.items():
        ended, _ = run(make_job(f"to {step}", **FLAT, max_steps=step))
        assert ended.dev_loss == pytest.approx(loss, rel=1e-5)
    assert found[4] != found[8]
    _, heard = run(replace(make_job("none", **FLAT), dev=()))
    assert all(one.dev_loss is None for one in steps_of(heard))


def test_a_look_at_dev_that_does_not_fit_into_memory_is_run_in_halves(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    expected, _ = run(make_job("whole"))
    real = answer_trainer.answer_loss
    tried: list[int] = []

    def starved(model: Any, inputs: dict[str, Any]) -> Any:
        rows = int(inputs["layout"][1])
        if not torch.is_grad_enabled():
            tried.append(rows)
            if rows > limit:
                raise RuntimeError(NO_MEMORY)
        return real(model, inputs)

    monkeypatch.setattr(answer_trainer, "answer_loss", starved)
    limit = 3
    trained, heard = run(make_job("starved"))
    assert tried[:6] == [8, 4, 2, 2, 2, 2]
    assert trained.dev_loss == pytest.approx(expected.dev_loss, rel=1e-5)
    assert weights(trained) == weights(expected)
    assert not [text for text in warnings_of(heard) if "memory" in text]
    limit = 0
    with pytest.raises(AdvisorError, match="one row at a time does not fit") as caught:
        run(make_job("none"))
    assert caught.value.where == "dev"


def test_a_score_that_cannot_be_measured_cannot_choose(make_job: MakeJob) -> None:
    job = make_job("no", early_stopping_patience=2, metric_for_best_model="score")
    with pytest.raises(AdvisorError, match="asks another model") as caught:
        run(job)
    assert "metric_for_best_model: loss" in caught.value.do
    with pytest.raises(AdvisorError, match="no dev rows"):
        run(replace(job, dev=()))


def test_the_job_carries_its_scoring(scored_job: MakeJob, make_task: Callable[..., Path], tmp_path: Path) -> None:
    job = scored_job("carried")
    job.folder.mkdir()
    job.write("hash")
    assert TrainingJob.read(job.folder)[0] == job
    # What only looks on does not name the weights; what chooses them does.
    assert replace(job, scoring=None).input_hash == job.input_hash
    chosen = replace(job, recipe=replace(job.recipe, early_stopping_patience=2, metric_for_best_model="score"))
    assert replace(chosen, scoring=replace(job.scoring, max_new_tokens=9)).input_hash != chosen.input_hash
    task = load_task(
        make_task(
            tmp_path / "task",
            metric=[{"name": "numeric_match", "absolute_tolerance": 0.5}],
            output={"type": "number"},
            rows=NUMBERS,
        )
    )
    scoring = scoring_of(task, 30)
    assert scoring is not None
    assert Scoring.of(asdict(scoring)) == scoring
    answers = {
        row.id: answer(row.id, text) for row, text in zip(task.dev, ["8.4", "9.6", "nothing", "11\nand more"], strict=True)
    }
    # Targets are 8, 9, 10, 11.
    assert scoring.mean(task.dev, answers) == 0.5


NUMBERS: Mapping[str, Any] = {
    name: [{"id": f"{name}-{at}", "input": f"{name} {at} and none", "output": str(at)} for at in range(start, start + count)]
    for name, start, count in (("train", 0, 8), ("dev", 8, 4), ("test", 12, 4))
}


def answer(name: str, text: str) -> Any:
    from evals.engines.engine import Response

    return Response(name, text, 1, 1, 0.0)


def test_metrics_that_ask_a_model_are_none(make_task: Callable[..., Path], tmp_path: Path) -> None:
    task = load_task(make_task(tmp_path / "task", metric="similarity", output={"type": "text"}))
    assert scoring_of(task, 10) is None


def test_older_events_are_steps_still() -> None:
    old = {"purpose": "p", "step": 1, "total_steps": 2, "loss": 1.0, "dev_loss": None, "learning_rate": 0.1}
    step = TrainingStep(**old, tokens_per_second=1.0, eta=1.0, memory_mib=1.0, at=1.0)
    assert (step.dev_score, step.kl) == (None, None)


def test_watched_questions_are_none_that_are_trained_on(tiny_model: Path) -> None:
    watched = [one.prompt for one in watched_replies()]
    assert 8 <= len(watched) == len(set(watched)) <= 12
    bare = {one.lower().removeprefix("question: ").removesuffix("\nanswer:") for one in prompts()}
    assert not bare & {one.lower().removeprefix("question: ").removesuffix("\nanswer:") for one in watched}
    texts = encoded(load_tokenizer(tiny_model), watched_replies())
    # Every token of the replies and their ends, by one token a character.
    assert len(texts.places) == sum(len(one.reply) + 1 for one in watched_replies())
