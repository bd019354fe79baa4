"""The cap on steps, and the early stop on dev: it stops, it keeps the best adapter, and a kill changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from evals.errors import AdvisorError
from evals.events import Event, Note, TrainingStep, ignore
from evals.records import file_hash
from trainer.callbacks import Probe, Watch, watching
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.recipe import Recipe

MakeJob = Callable[..., TrainingJob]
# No schedule, so that a shorter training is the beginning of a longer one.
FLAT = {"lr_scheduler_type": "constant", "warmup_steps": 0.0}
STEPS = 40  # 32 rows, batches of 8, ten epochs


def adapter_bytes(job: TrainingJob) -> str:
    return file_hash(job.folder / "adapter" / "adapter_model.safetensors")


def misleading(job: TrainingJob) -> TrainingJob:
    """Dev asks for another letter than train teaches: its loss falls while the form is learnt, and then rises."""
    others = {"r": "b", "b": "g", "g": "p", "p": "r"}
    return replace(job, dev=tuple(replace(row, target=others[row.target]) for row in job.dev))


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    return {}


@pytest.fixture
def stopped(make_job: MakeJob, shared: dict[str, Any]) -> dict[str, Any]:
    if not shared:
        job = misleading(watched(make_job, "stopped"))
        events: list[Event] = []
        trained = train(job, events.append)
        steps = [event for event in events if isinstance(event, TrainingStep)]
        losses = {event.step: event.dev_loss for event in steps[:-1] if event.dev_loss is not None}
        shared.update(job=job, trained=trained, losses=losses, digest=adapter_bytes(job), events=events)
    return shared


def watched(make_job: MakeJob, name: str, **recipe: Any) -> TrainingJob:
    return make_job(name, num_train_epochs=10, early_stopping_patience=3, eval_steps=2, save_steps=3, **FLAT, **recipe)


def test_it_stops_when_dev_no_longer_falls_and_keeps_the_best(stopped: dict[str, Any], make_job: MakeJob) -> None:
    losses, trained = stopped["losses"], stopped["trained"]
    best = min(losses, key=lambda step: losses[step])
    assert list(losses) == list(range(2, best + 7, 2))
    assert 2 <= best < trained.steps == best + 6 < STEPS
    assert trained.dev_loss == pytest.approx(losses[best], rel=1e-5)
    assert losses[trained.steps] > losses[best]
    notes = [event.text for event in stopped["events"] if isinstance(event, Note)]
    assert notes[-2] == f"stopped: the weights of step {best} of {trained.steps} are kept, the best on dev"
    assert f"dev's loss is the best of {len(losses)} looks" in notes[-1]
    # The measurements on the way change nothing: a training that ends at that step has the same adapter.
    short = misleading(make_job("short", num_train_epochs=10, max_steps=best, **FLAT))
    assert train(short, ignore).steps == best
    assert adapter_bytes(short) == stopped["digest"]


def test_kill_9_changes_nothing(stopped: dict[str, Any], make_job: MakeJob) -> None:
    job = misleading(watched(make_job, "killed"))
    best, last = min(stopped["losses"], key=stopped["losses"].get), stopped["trained"].steps

    def kill_at(step: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            if isinstance(event, TrainingStep) and event.step == step:
                children = psutil.Process(os.getpid()).children()
                next(one for one in children if "trainer.worker" in " ".join(one.cmdline())).send_signal(signal.SIGKILL)

        return listen

    # Just behind the best, so that it is measured and kept again; then on the way to the stop.
    for step in (best + 1, last - 2):
        with pytest.raises(AdvisorError, match="signal 9"):
            train(job, kill_at(step))
    trained = train(job, ignore)
    assert adapter_bytes(job) == stopped["digest"]
    assert (trained.steps, trained.dev_loss) == (last, stopped["trained"].dev_loss)
    assert trained.train_tokens == stopped["trained"].train_tokens


def test_the_last_adapter_is_kept_where_dev_falls_to_the_end(make_job: MakeJob) -> None:
    heard: list[Event] = []
    trained = train(watched(make_job, "capped", max_steps=5), heard.append)
    assert trained.steps == 5
    assert not [event for event in heard if isinstance(event, Note) and "are kept" in event.text]
    losses = [event.dev_loss for event in heard if isinstance(event, TrainingStep) and event.dev_loss is not None]
    # At steps 2, 4 and the last, and then of all dev rows, which are the same eight.
    assert losses == sorted(losses, reverse=True)
    assert losses[3] == pytest.approx(losses[2], rel=1e-5)


def test_a_job_is_named_by_what_its_weights_depend_on(make_job: MakeJob) -> None:
    job = make_job("named")
    names = {"max_steps": 5, "early_stopping_patience": 1}
    for name, value in names.items():
        assert replace(job, recipe=replace(job.recipe, **{name: value})).input_hash != job.input_hash
    # Without an early stop it does not matter how often dev would be looked at.
    assert replace(job, recipe=replace(job.recipe, eval_steps=3)).input_hash == job.input_hash
    watching = replace(job.recipe, early_stopping_patience=1)
    other = replace(watching, eval_steps=3)
    assert replace(job, recipe=watching).input_hash != replace(job, recipe=other).input_hash
    assert replace(job, recipe=replace(job.recipe, save_steps=4, save_total_limit=3)).input_hash == job.input_hash


def test_steps_and_passes_are_counted_with_the_cap() -> None:
    recipe = Recipe(num_train_epochs=3, per_device_train_batch_size=8)
    assert (recipe.total_steps(80), recipe.passes(80)) == (30, 3.0)
    capped = replace(recipe, max_steps=15)
    assert (capped.total_steps(80), capped.passes(80)) == (15, 1.5)
    assert (capped.total_steps(8), capped.passes(8)) == (3, 3.0)


def test_no_checkpoint_is_made_of_the_step_that_stops(tmp_path: Path) -> None:
    """Going on from one, after a crash before the adapter is written, would train past the end."""
    watch, kept = Watch(tmp_path / "measured.json", patience=1), []
    losses = iter([1.0, 2.0])
    probe = Probe("losses", 2, lambda: next(losses))
    callback = watching(watch, [probe], lambda step: kept.append((step, len(watch.losses))), lambda step, kl: None)
    seen = []
    for step in (1, 2, 3, 4):
        control = SimpleNamespace(should_save=True, should_training_stop=False)
        callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=40), control)
        seen.append((control.should_save, control.should_training_stop))
    assert seen == [(True, False)] * 3 + [(False, True)]
    # The adapter is kept before its loss is written down, and only the better one is.
    assert kept == [(2, 0)]


def test_the_watch_forgets_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "measured.json", patience=2)
    for step, loss in ((2, 1.0), (4, 0.5), (6, 0.7), (8, 0.6)):
        assert not watch.over
        watch.add(step, {"losses": loss, "divergences": loss / 2})
    watch.add(9, {"scores": 0.25})
    assert (watch.best, watch.over) == (4, True)
    again = Watch(watch.path, patience=2)
    again.go_on_from(6)
    assert (again.losses, again.over) == ({2: 1.0, 4: 0.5, 6: 0.7}, False)
    assert (again.divergences, again.scores) == ({2: 0.5, 4: 0.25, 6: 0.35}, {})
    again.go_on_from(0)
    assert (again.losses, again.divergences) == ({}, {})


def test_the_best_by_score_is_the_highest_of_equals_the_lower_loss_then_the_earlier(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "measured.json", patience=3, by="score")
    seen = []
    for step, score, loss in ((2, 0.5, 0.3), (4, 0.75, 0.9), (6, 0.75, 0.8), (8, 0.75, 0.8), (10, 0.5, 0.1), (12, 0.5, 0.1)):
        found = {"losses": loss, "scores": score}
        better = watch.better(found)
        watch.add(step, found)
        seen.append((better, watch.best, watch.over))
    assert seen == [
        (True, 2, False),
        (True, 4, False),
        (True, 6, False),
        (False, 6, False),
        (False, 6, False),
        (False, 6, True),
    ]
    # Without patience nothing is chosen, and nothing ends.
    idle = Watch(tmp_path / "other.json", by="score")
    assert not idle.better({"scores": 1.0})
    idle.add(2, {"scores": 1.0})
    assert not idle.over


def test_a_probe_is_due_every_so_many_steps_and_after_the_last_where_it_says_so() -> None:
    probe = Probe("losses", 3, lambda: 0.0)
    assert [step for step in range(1, 9) if probe.due(step, 8)] == [3, 6, 8]
    assert [step for step in range(1, 10) if replace(probe, at_last=False).due(step, 9)] == [3, 6]
