"""A training that is hit (killed, starved, given a full disk or numbers that are none) goes on to the weights of an unbroken one."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from evals.candidate import PromptFormat
from evals.errors import AdvisorError, Interrupted
from evals.events import Event, Note, TrainingStep, ignore
from evals.records import file_hash, read_json, write_json
from tests.conftest import VOCABULARY
from tests.trainer import faults
from trainer import launch
from trainer.checkpoints import MARK, NEEDED, Spent, is_whole, last_complete, mark_complete, prune_best
from trainer.job import TrainedAdapter, TrainingJob
from trainer.launch import train
from trainer.settled import Settled, read_settled

MakeJob = Callable[..., TrainingJob]
Fork = Callable[..., None]
# Four steps a pass of two batches each, three passes; checkpoints in the middle of a pass as well.
TWICE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_steps": 3}
STEPS = 12
# Fewer than the batches, files and moves of such a training.
MOMENTS = 90


def digest(job: TrainingJob) -> str:
    return file_hash(job.folder / "adapter" / "adapter_model.safetensors")


def weights_differ(one: TrainingJob, other: TrainingJob) -> float:
    """The largest difference of any weight."""
    ours, theirs = (load_file(job.folder / "adapter" / "adapter_model.safetensors") for job in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def hit(job: TrainingJob, fork: Fork, fault: faults.Fault | None, match: str) -> AdvisorError:
    """Train with a fault, which ends it with such an error; the next call has none."""
    fork(fault)
    with pytest.raises(AdvisorError, match=match) as caught:
        train(job, ignore)
    fork()
    return caught.value


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def unbroken(make_job: MakeJob, fork_workers: Fork, kept: dict[str, Any]) -> tuple[TrainingJob, TrainedAdapter]:
    if not kept:
        job = make_job("unbroken", **TWICE)
        kept["both"] = job, train(job, ignore)
    both: tuple[TrainingJob, TrainedAdapter] = kept["both"]
    return both


KILLS = {
    "in the first step": partial(faults.killed_in_step, 1),
    "between the batches of a step": partial(faults.killed_in_step, 10),
    "in the second pass": partial(faults.killed_in_step, 15),
    "in the last step": partial(faults.killed_in_step, 24),
    "writing the first checkpoint": partial(faults.killed_writing, "optimizer.pt", 1),
    "writing a later checkpoint": partial(faults.killed_writing, "rng_state.pth", 3),
    "before the mark": partial(faults.killed_before_moving, MARK, 2),
    "pruning": partial(faults.killed_pruning, 2),
    "writing the order of the second pass": partial(faults.killed_before_moving, "orders.json", 2),
    "saving the adapter": partial(faults.killed_before_moving, "adapter"),
    "before the record": partial(faults.killed_before_moving, "training.json"),
    **{f"at random {seed}": partial(faults.killed_at, random.Random(seed).randint(1, MOMENTS)) for seed in range(4)},
}


@pytest.mark.parametrize("moment", KILLS)
def test_kill_9_at_any_moment(
    moment: str, make_job: MakeJob, fork_workers: Fork, unbroken: tuple[TrainingJob, TrainedAdapter]
) -> None:
    job = make_job("killed", **TWICE)
    hit(job, fork_workers, KILLS[moment], "signal 9")
    trained = train(job, ignore)
    assert digest(job) == digest(unbroken[0])
    assert trained.final_loss == pytest.approx(unbroken[1].final_loss, abs=1e-6)
    assert trained.train_tokens == unbroken[1].train_tokens
    assert not (job.folder / "checkpoints").exists()


def test_killed_again_and_again(make_job: MakeJob, fork_workers: Fork, unbroken: tuple[TrainingJob, TrainedAdapter]) -> None:
    job = make_job("killed", **TWICE)
    for batches in (7, 8, 9):
        hit(job, fork_workers, partial(faults.killed_in_step, batches), "signal 9")
    train(job, ignore)
    assert digest(job) == digest(unbroken[0])


@pytest.mark.parametrize("limit", [1, 2])
def test_so_many_whole_checkpoints_are_there_at_any_moment(limit: int, make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("pruned", save_steps=2, save_total_limit=limit)
    counted = job.folder / "counted"
    fork_workers(partial(faults.checkpoints_are_counted, job.folder / "checkpoints", counted))
    train(job, ignore)
    counts = [tuple(map(int, line.split())) for line in counted.read_text().splitlines()]
    assert max(there for there, _ in counts) == limit + 1
    reached = next(at for at, (_, whole) in enumerate(counts) if whole == limit)
    ended = next((at for at, (_, whole) in enumerate(counts) if at > reached and whole < limit), len(counts))
    # At the end all of them go, or their weights alone stay: none is whole again after the first that is not.
    assert all(whole < limit for _, whole in counts[ended:])


def planted_pickle(path: Path, witness: Path, *, plain: bool) -> None:
    """A file that would create `witness` if it were unpickled: as torch.save writes it, or a plain pickle."""
    import torch

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {witness}",)

    if plain:
        path.write_bytes(pickle.dumps(Planted()))
    else:
        torch.save(Planted(), path)


@pytest.mark.parametrize(
    ("name", "plain"), [("optimizer.pt", False), ("scheduler.pt", False), ("rng_state.pth", False), ("optimizer.pt", True)]
)
def test_a_planted_pickle_is_refused_by_name(
    name: str, plain: bool, make_job: MakeJob, fork_workers: Fork, tmp_path: Path
) -> None:
    job = make_job("planted")
    hit(job, fork_workers, partial(faults.killed_in_step, 6), "signal 9")
    checkpoint = job.folder / "checkpoints" / "checkpoint-4"
    # transformers' own pickle of its arguments is not kept.
    assert not (checkpoint / "training_args.bin").exists()
    planted_pickle(checkpoint / name, tmp_path / "witness", plain=plain)
    mark = read_json(checkpoint / MARK)
    mark["sizes"][name] = (checkpoint / name).stat().st_size
    write_json(checkpoint / MARK, mark)
    error = hit(job, fork_workers, None, "not tensors only")
    assert error.where == str(checkpoint / name)
    assert ("not of torch's format" if plain else "system") in error.what
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("plain", [False, True])
def test_the_planted_pickle_would_run(plain: bool, tmp_path: Path) -> None:
    """Else the test above proves nothing."""
    import torch

    planted_pickle(tmp_path / "x.pt", tmp_path / "witness", plain=plain)
    with suppress(Exception):
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "witness").exists()


def test_a_checkpoint_of_another_job_is_not_gone_on_from(
    make_job: MakeJob, fork_workers: Fork, unbroken: tuple[TrainingJob, TrainedAdapter]
) -> None:
    other, job = make_job("other", **{**TWICE, "seed": 5}), make_job("job", **TWICE)
    hit(other, fork_workers, partial(faults.killed_in_step, 10), "signal 9")
    shutil.copytree(other.folder / "checkpoints", job.folder / "checkpoints")
    # As if it had been begun before: what another job left in the folder would be cleared.
    job.write(job.input_hash)
    heard: list[Event] = []
    train(job, heard.append)
    assert [text for text in notes(heard) if "another base" in text]
    assert next(event.step for event in heard if isinstance(event, TrainingStep)) == 1
    assert digest(job) == digest(unbroken[0])


def test_a_checkpoint_knows_the_hash_that_the_launcher_knows(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("hashed")
    hit(job, fork_workers, partial(faults.killed_in_step, 6), "signal 9")
    mark = read_json(job.folder / "checkpoints" / "checkpoint-4" / MARK)
    assert mark["input_hash"] == job.input_hash == TrainingJob.read(job.folder)[0].input_hash


@pytest.mark.parametrize("layout", ["shared beginning", "padded"])
def test_too_little_memory_halves_the_batch_and_changes_nothing_else(
    layout: str, make_job: MakeJob, fork_workers: Fork
) -> None:
    whole, starved = (make_job(name, gradient_accumulation_steps=2) for name in ("whole", "starved"))
    if layout == "padded":
        whole, starved = (replace(job, prompt_format=PromptFormat("")) for job in (whole, starved))
    expected = train(whole, ignore)
    # The first batch of the second step fits, and must not be lost with the second.
    fork_workers(partial(faults.no_memory_for, 3, after=3))
    heard: list[Event] = []
    trained = train(starved, heard.append)
    told = [text for text in notes(heard) if "do not fit" in text]
    assert ["8 rows" in told[0], "4 rows" in told[1], len(told)] == [True, True, 2]
    assert weights_differ(whole, starved) < 1e-5
    assert 0 < trained.final_loss == pytest.approx(expected.final_loss, abs=1e-5)
    assert trained.train_tokens == expected.train_tokens
    settled = read_settled(starved.folder)
    assert settled is not None
    assert settled.rows_at_once == 2


def test_a_row_that_does_not_fit_alone_is_named(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("starved", rows=3)
    error = hit(job, fork_workers, partial(faults.no_memory_for, 0), "one row at a time")
    assert error.where.startswith("train-")
    assert "max_length" in error.do


def killed_by_the_system(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    left: Iterator[int] = iter(counts)
    monkeypatch.setattr(launch, "oom_kills", lambda: next(left))


def test_killed_by_the_system_for_memory_it_goes_on_with_half(
    make_job: MakeJob, fork_workers: Fork, monkeypatch: pytest.MonkeyPatch, unbroken: tuple[TrainingJob, TrainedAdapter]
) -> None:
    job = make_job("killed", **TWICE)
    # Counted before and after each worker; the second is killed for another reason.
    killed_by_the_system(monkeypatch, [3, 4, 4, 4])
    fork_workers(partial(faults.killed_in_step, 10))
    heard: list[Event] = []
    with pytest.raises(AdvisorError, match="signal 9"):
        train(job, heard.append)
    assert any("2 rows at a time" in text for text in notes(heard))
    fork_workers()
    monkeypatch.setattr(launch, "oom_kills", lambda: 4)
    train(job, ignore)
    assert 0 < weights_differ(job, unbroken[0]) < 1e-5


def test_killed_by_the_system_at_one_row_it_gives_up(
    make_job: MakeJob, fork_workers: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_by_the_system(monkeypatch, list(range(20)))
    error = hit(make_job("killed"), fork_workers, partial(faults.killed_in_step, 1), "fewer rows at a time do not help")
    assert "gradient_checkpointing" in error.do


TOKENS = [VOCABULARY[letter] for letter in "pink 7"]


@pytest.mark.parametrize("fault", [faults.loss_is_nan_of, faults.gradient_is_inf_of])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_without_a_finite_number_stops_the_training_and_is_named(
    fault: Callable[..., None], dtype: str, make_job: MakeJob, fork_workers: Fork
) -> None:
    whole, job = (replace(make_job(name, save_steps=100, lora_dropout=0.1), dtype=dtype) for name in ("whole", "job"))
    # Eight batches in two passes are fine; the row comes in one of the next four.
    error = hit(job, fork_workers, partial(fault, TOKENS, 8), "nothing of this step was applied")
    step = int(error.what.split(":")[0].removeprefix("step "))
    assert 9 <= step <= 12
    assert "Of its rows, train-7 by itself gives such numbers." in error.what
    assert "learning_rate" in error.do
    kept = Path(error.where)
    assert kept.name == f"checkpoint-{step - 1}"
    assert is_whole(kept)
    assert all(bool(weight.isfinite().all()) for weight in load_file(kept / "adapter_model.safetensors").values())
    # It is the state of the step before: going on from it, without the fault, is as if nothing had happened.
    train(whole, ignore)
    train(job, ignore)
    assert digest(job) == digest(whole)


def test_a_base_that_is_not_finite_is_named(make_job: MakeJob, fork_workers: Fork, tmp_path: Path) -> None:
    job = make_job("infinite")
    shutil.copytree(job.model_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(weights, path, metadata={"format": "pt"})
    error = hit(replace(job, model_folder=tmp_path / "model"), fork_workers, None, "step 1: the loss is nan")
    assert "up_proj" in error.what
    assert not list((job.folder / "checkpoints").glob("checkpoint-*"))


def test_weights_that_an_update_made_infinite_are_not_kept(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("overflown", save_steps=2)
    error = hit(job, fork_workers, partial(faults.weights_overflow_at, 4), "after step 4 the weights themselves")
    (kept,) = (job.folder / "checkpoints").glob("checkpoint-*")
    assert Path(error.where) == kept
    assert kept.name == "checkpoint-2"
    assert is_whole(kept)
    assert all(bool(weight.isfinite().all()) for weight in load_file(kept / "adapter_model.safetensors").values())


def test_the_best_so_far_are_pruned_to_those_that_a_checkpoint_would_want_back(tmp_path: Path) -> None:
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in (*NEEDED, "adapter_model.safetensors"):
            (tmp_path / f"checkpoint-{step}" / name).write_text("x", encoding="utf-8")
        mark_complete(tmp_path / f"checkpoint-{step}", Spent())
    for step in (1, 3, 5, 9):
        (tmp_path / f"best-{step}").mkdir()
    prune_best(tmp_path)
    assert {path.name for path in tmp_path.glob("best-*")} == {"best-3", "best-5", "best-9"}


@pytest.mark.parametrize(
    "fault",
    [
        partial(faults.disk_full_saving, "optimizer.pt", 2),
        partial(faults.disk_full_moving, MARK, 2),
        partial(faults.disk_full_moving, "adapter"),
        partial(faults.disk_full_moving, "training.json"),
    ],
)
def test_a_full_disk_keeps_the_checkpoint_before(
    fault: faults.Fault, make_job: MakeJob, fork_workers: Fork, unbroken: tuple[TrainingJob, TrainedAdapter]
) -> None:
    job = make_job("full", **TWICE)
    error = hit(job, fork_workers, fault, "No space left|disk is full")
    assert "free some disk space" in error.do
    assert last_complete(job.folder / "checkpoints") is not None
    train(job, ignore)
    assert digest(job) == digest(unbroken[0])


@pytest.mark.parametrize("name", ["events.jsonl", "worker.log"])
def test_a_disk_too_full_for_events_or_log_ends_no_training(name: str, make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("full", num_train_epochs=1)
    job.write(job.input_hash)
    (job.folder / name).symlink_to("/dev/full")
    assert train(job, ignore).steps == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_a_checkpoint(
    number: int, make_job: MakeJob, fork_workers: Fork, unbroken: tuple[TrainingJob, TrainedAdapter]
) -> None:
    job = make_job("stopped", **{**TWICE, "save_steps": 1000})
    fork_workers(partial(faults.told_to_stop_in_step, 10, (number,)))
    with pytest.raises(Interrupted) as caught:
        train(job, ignore)
    assert caught.value.exit_code == 130
    kept = last_complete(job.folder / "checkpoints")
    assert kept is not None
    assert kept[0].name == "checkpoint-5"
    fork_workers()
    train(job, ignore)
    assert digest(job) == digest(unbroken[0])


def test_a_second_signal_ends_it_at_once(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("stopped", **{**TWICE, "save_steps": 1000})
    fork_workers(partial(faults.told_to_stop_in_step, 10, (signal.SIGINT, signal.SIGINT)))
    with pytest.raises(Interrupted):
        train(job, ignore)
    assert last_complete(job.folder / "checkpoints") is None


def test_going_on_keeps_the_number_of_threads(make_job: MakeJob, fork_workers: Fork, tmp_path: Path) -> None:
    job, noted = make_job("threads"), tmp_path / "noted"
    hit(job, fork_workers, partial(faults.killed_in_step, 6), "signal 9")
    settled = read_settled(job.folder)
    assert settled is not None
    # As if the training had been begun on another day, with more cores to use.
    Settled(settled.threads + 2).write(job.folder)
    fork_workers(partial(faults.threads_are_noted, noted))
    train(job, ignore)
    assert int(noted.read_text()) == settled.threads + 2


def test_the_same_recipe_gives_the_same_bytes(
    make_job: MakeJob, fork_workers: Fork, unbroken: tuple[TrainingJob, TrainedAdapter]
) -> None:
    again = make_job("again", **TWICE)
    train(again, ignore)
    names = ["adapter_model.safetensors", "adapter_config.json"]
    ours, theirs = ([file_hash(job.folder / "adapter" / name) for name in names] for job in (again, unbroken[0]))
    assert ours == theirs
