"""Training jobs in their own process: they learn, they go on after a crash, and they end when they are told to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from safetensors.torch import load_file

from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError, Interrupted
from evals.events import Event, Note, TrainingStep, ignore
from evals.records import file_hash
from tests.trainer import forked
from trainer import launch
from trainer.card import read_card
from trainer.checkpoints import MARK, Spent, last_complete, mark_complete
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.settled import Settled, read_settled

MakeJob = Callable[..., TrainingJob]
Fork = Callable[..., None]
POPEN = subprocess.Popen
STEPS = 12  # 32 rows, batches of 8, three epochs


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of a process is its own from the start")
def test_the_peak_of_memory_is_the_training_process_s_own() -> None:
    held = bytearray(b"x") * (600 * 2**20)
    told = "from trainer.callbacks import peak_memory_mib as peak; print(peak())"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert len(held) / 2**20 == 600
    assert 5 < float(found.stdout) < 400


def adapter_bytes(job: TrainingJob) -> str:
    return file_hash(job.folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    return {}


@pytest.fixture
def unbroken(make_job: MakeJob, shared: dict[str, Any]) -> dict[str, Any]:
    """One training without any trouble, in a process of its own from the start: what all the others are compared with."""
    if not shared:
        job = make_job("unbroken")
        events: list[Event] = []
        with mock.patch.object(launch.subprocess, "Popen", POPEN):
            trained = train(job, events.append)
        shared.update(job=job, events=events, trained=trained, digest=adapter_bytes(job))
    return shared


def worker_of(parent: int) -> psutil.Process:
    return next(one for one in psutil.Process(parent).children() if "trainer.worker" in " ".join(one.cmdline()))


def at_step(step: int, action: Callable[[], None]) -> Callable[[Event], None]:
    """A listener that acts once, when it hears of this step."""

    def listen(event: Event) -> None:
        if isinstance(event, TrainingStep) and event.step == step and event.dev_loss is None:
            action()

    return listen


def kill_worker() -> None:
    forked.Worker.latest.kill()


def test_the_loss_falls_and_every_step_is_told(unbroken: dict[str, Any]) -> None:
    steps = [event for event in unbroken["events"] if isinstance(event, TrainingStep)]
    assert [event.step for event in steps] == [*range(1, STEPS + 1), STEPS]
    assert all(event.total_steps == STEPS and event.memory_mib > 0 for event in steps)
    assert all(event.tokens_per_second > 0 for event in steps)
    assert steps[-2].eta == 0 < steps[0].eta
    trained = unbroken["trained"]
    assert steps[0].loss > 1.5 * trained.dev_loss
    assert steps[-1].dev_loss == trained.dev_loss
    kept = [json.loads(line) for line in (unbroken["job"].folder / "events.jsonl").read_text().splitlines()]
    assert len(kept) == len(unbroken["events"])


def test_the_record_counts_rows_tokens_and_steps(unbroken: dict[str, Any]) -> None:
    trained, job = unbroken["trained"], unbroken["job"]
    lengths = [len(f"<>user\nSay the letter.\n\n{row.text}<>\n<>assistant\n{row.target}<>") for row in job.train]
    # '<>' stands for a mark, which is one token.
    tokens = sum(lengths) - 4 * len(lengths)
    assert trained.train_tokens == 3 * tokens
    assert (trained.rows, trained.dropped, trained.steps, trained.reused) == (32, 0, STEPS, False)
    assert trained.seconds > 0
    assert trained.tokens_per_second == pytest.approx(trained.train_tokens / trained.seconds, rel=0.01)


def test_the_card_in_the_folder_tells_this_training(unbroken: dict[str, Any]) -> None:
    trained, job = unbroken["trained"], unbroken["job"]
    card = read_card(trained.folder)
    assert (card.input_hash, card.steps, card.seconds) == (job.input_hash, trained.steps, trained.seconds)
    assert (card.final_loss, card.dev_loss, card.how) == (trained.final_loss, trained.dev_loss, "training")
    assert card.base.fingerprint == weights_fingerprint(job.model_folder)


def test_only_lora_weights_are_trained_and_they_are_fp32(unbroken: dict[str, Any]) -> None:
    weights = load_file(unbroken["trained"].folder / "adapter_model.safetensors")
    assert weights
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)
    assert all(str(weight.dtype) == "torch.float32" for weight in weights.values())
    # B starts at zero, so every layer of which B is not zero has been trained.
    assert all(bool(weight.any()) for name, weight in weights.items() if ".lora_B." in name)


def test_a_finished_job_is_given_back_at_once(unbroken: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_run_worker", lambda *_: pytest.fail("a worker was started"))
    again = train(unbroken["job"], ignore)
    assert again.reused
    assert again.dev_loss == unbroken["trained"].dev_loss


def test_kill_9_then_the_same_call_gives_the_same_adapter(
    make_job: MakeJob, fork_workers: Fork, unbroken: dict[str, Any]
) -> None:
    job = make_job("killed")
    with pytest.raises(AdvisorError, match="signal 9"):
        train(job, at_step(10, kill_worker))
    kept = last_complete(job.folder / "checkpoints")
    assert kept is not None
    assert kept[0].name == "checkpoint-8"
    # A torn checkpoint that is newer than the whole one, and a half-finished adapter, must not be taken.
    torn = job.folder / "checkpoints" / "checkpoint-11"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    heard: list[Event] = []
    trained = train(job, heard.append)
    assert [event.text for event in heard if isinstance(event, Note) and event.level == "info"] == [
        "killed: going on from step 8"
    ]
    assert [event.step for event in heard if isinstance(event, TrainingStep)] == [9, 10, 11, 12, 12]
    assert adapter_bytes(job) == unbroken["digest"]
    assert trained.train_tokens == unbroken["trained"].train_tokens
    assert trained.final_loss == unbroken["trained"].final_loss
    assert not torn.exists()


def test_interrupt_makes_a_checkpoint_and_the_next_call_goes_on(
    make_job: MakeJob, fork_workers: Fork, unbroken: dict[str, Any]
) -> None:
    job = make_job("interrupted", save_steps=1000)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, at_step(3, interrupt))
    kept = last_complete(job.folder / "checkpoints")
    assert kept is not None
    assert kept[1].seconds > 0
    train(job, ignore)
    assert adapter_bytes(job) == unbroken["digest"]


def test_a_worker_that_is_told_to_stop_exits_130(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("stopped", save_steps=1000, num_train_epochs=200)
    with pytest.raises(Interrupted) as caught:
        train(job, at_step(2, lambda: forked.Worker.latest.send_signal(signal.SIGINT)))
    assert caught.value.exit_code == 130
    assert last_complete(job.folder / "checkpoints") is not None


def test_a_worker_ends_with_its_parent_and_is_gone_on_from(make_job: MakeJob, fork_workers: Fork) -> None:
    job, whole = (make_job(name, save_steps=1000, num_train_epochs=40) for name in ("orphan", "whole"))
    job.write(job.input_hash)
    parent = POPEN(
        [sys.executable, "-c", PARENT, str(job.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(launch.__file__).parent.parent)},
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("training")
        worker = worker_of(parent.pid)
        parent.kill()
        parent.wait()
        assert worker.wait(timeout=30) is None or not worker.is_running()
    finally:
        parent.kill()
    assert last_complete(job.folder / "checkpoints") is not None
    heard: list[Event] = []
    train(job, heard.append)
    assert next(event.step for event in heard if isinstance(event, TrainingStep)) > 1
    train(whole, ignore)
    assert adapter_bytes(job) == adapter_bytes(whole)


PARENT = """
import sys
from pathlib import Path
from evals.events import TrainingStep
from trainer.launch import _run_worker
def listen(event):
    if isinstance(event, TrainingStep): print("training", flush=True)
_run_worker(Path(sys.argv[1]), listen)
"""


def test_another_job_in_the_same_folder_starts_afresh(make_job: MakeJob, fork_workers: Fork, unbroken: dict[str, Any]) -> None:
    job = make_job("other", num_train_epochs=1)
    shutil.copytree(unbroken["job"].folder, job.folder)
    Settled(threads=1, rows_at_once=1).write(job.folder)
    trained = train(job, ignore)
    assert (trained.reused, trained.steps) == (False, 4)
    assert trained.input_hash != unbroken["trained"].input_hash
    assert adapter_bytes(job) != unbroken["digest"]
    settled = read_settled(job.folder)
    assert settled is not None
    assert settled.rows_at_once == 0


def test_a_worker_that_crashes_shows_why(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("broken", lora_target_modules=("no_such_layer",))
    with pytest.raises(AdvisorError, match="no_such_layer"):
        train(job, ignore)
    assert (job.folder / "worker.log").stat().st_size > 0


def test_checkpoints_without_a_true_mark_do_not_count(tmp_path: Path) -> None:
    names = ["adapter_model.safetensors", "trainer_state.json", "scheduler.pt", "optimizer.pt", "rng_state.pth"]
    for step in (4, 8, 12, 16):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"12345678")
        mark_complete(folder, Spent(float(step), step, 1.0))
    (tmp_path / "checkpoint-16" / MARK).unlink()
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_bytes(b"123")
    (tmp_path / "checkpoint-8" / "rng_state.pth").unlink()
    kept = last_complete(tmp_path)
    assert kept == (tmp_path / "checkpoint-4", Spent(4.0, 4, 1.0))
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_full_disk_is_named(make_job: MakeJob, fork_workers: Fork) -> None:
    job = make_job("full")
    blocker = job.folder / "checkpoints" / "checkpoint-4"

    def no_space() -> None:
        # The nearest thing to a full disk without being root: a device that is always full stands where a file goes.
        blocker.mkdir(parents=True, exist_ok=True)
        (blocker / "optimizer.pt").symlink_to("/dev/full")

    with pytest.raises(AdvisorError, match="disk is full"):
        train(job, at_step(1, no_space))
    assert last_complete(job.folder / "checkpoints") is None
