"""Start a training as a process of its own, pass its events on, and go on where an earlier call was cut off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from evals.errors import AdvisorError, Interrupted
from evals.events import Event, Note, OnEvent, Progress, TrainingStep
from evals.records import read_json
from trainer.job import TrainedAdapter, TrainingJob, finished
from trainer.memory import SMALLER, oom_kills
from trainer.quantised import check_quantiser, this_device
from trainer.saving import ADAPTER, MODEL
from trainer.settled import NAME as SETTLED
from trainer.settled import read_settled

EVENTS: dict[str, type[Event]] = {"TrainingStep": TrainingStep, "Note": Note, "Progress": Progress}
GRACE_SECONDS = 120.0
STARVED = (
    "{purpose}: the system killed the training for lack of memory; it goes on from its last whole checkpoint with {rows} rows at a time. "
    "The steps, their rows and their gradients stay the same, up to rounding."
)
RESUME = "run the same command again: it goes on from the last whole checkpoint."


def train(job: TrainingJob, on_event: OnEvent) -> TrainedAdapter:
    """The job's adapter: at once where it is finished, else trained, from its last whole checkpoint if it has one.

    KeyboardInterrupt (from the terminal, or raised by `on_event`) makes the worker write a checkpoint and is raised
    again. Raises AdvisorError where the training fails, Interrupted where the worker was told to stop from outside.
    """
    if not job.train:
        raise AdvisorError("there are no training rows", where=job.purpose, do="give the task a train split.")
    input_hash = job.input_hash
    done = finished(job.folder, input_hash, reused=True)
    if done:
        return done
    if job.recipe.load_in_4bit:
        check_quantiser(job.recipe, this_device())
    if _hash_of(job.folder) != input_hash:
        _clear(job.folder)
    job.write(input_hash)
    while True:
        before = oom_kills()
        code, failure = _run_worker(job.folder, on_event)
        trained = finished(job.folder, input_hash, reused=False)
        if code == 0 and trained:
            return trained
        starved = code == -signal.SIGKILL and oom_kills() > before
        fewer = _fewer_rows(job) if starved else None
        if fewer is None:
            raise _error(job, code, failure, starved)
        on_event(Note(STARVED.format(purpose=job.purpose, rows=fewer), "warning"))


def _fewer_rows(job: TrainingJob) -> int | None:
    """Have the next worker hold half as many rows at once. None: no rows were to blame, or one is already too many."""
    settled = read_settled(job.folder)
    if settled is None:
        return None
    had = settled.rows_at_once or job.recipe.per_device_train_batch_size
    if had == 1:
        return None
    fewer = (had + 1) // 2
    replace(settled, rows_at_once=fewer).write(job.folder)
    return fewer


def _hash_of(folder: Path) -> str:
    try:
        return str(read_json(folder / "job.json").get("input_hash", ""))
    except (OSError, AdvisorError):
        return ""


def _clear(folder: Path) -> None:
    """What another job has left here must not be taken for this one's."""
    (folder / "job.json").unlink(missing_ok=True)
    (folder / "training.json").unlink(missing_ok=True)
    (folder / "events.jsonl").unlink(missing_ok=True)
    (folder / SETTLED).unlink(missing_ok=True)
    for name in ("checkpoints", ADAPTER, MODEL, f".{ADAPTER}.new", f".{MODEL}.new"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _environment() -> dict[str, str]:
    """No network, no telemetry; freed memory is kept, since mapping it anew each step costs a tenth of the time.

    oneDNN keeps a thousand compiled products, one for each shape it has met, and batches hardly ever have the same: over a hundred steps
    of SmolLM2 that was 0.65 of 2.5 GiB, and no time is won by it.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**36),
        "MALLOC_TOP_PAD_": str(2**26),
    }


def _run_worker(folder: Path, on_event: OnEvent) -> tuple[int, dict[str, str] | None]:
    """Exit code of the worker, and its own account of a failure if it gave one."""
    failure: dict[str, str] | None = None
    # Unbuffered: what a full disk did not take must not fail again when the file is closed.
    with (folder / "worker.log").open("w") as log, (folder / "events.jsonl").open("ab", buffering=0) as kept:
        worker = subprocess.Popen(
            [sys.executable, "-m", "trainer.worker", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
            text=True,
            encoding="utf-8",
            # A group of its own: the terminal's Ctrl-C reaches us alone, and we pass it on once.
            process_group=0,
        )
        try:
            for line in worker.stdout or ():
                record = _parse(line)
                if record.get("event") == "Failed":
                    failure = {key: str(record.get(key, "")) for key in ("what", "where", "do")}
                event = _event(record)
                if event:
                    _keep(kept, line)
                    on_event(event)
            worker.wait()
        except BaseException:
            _stop(worker)
            raise
    return worker.returncode, failure


def _keep(kept: BinaryIO, line: str) -> None:
    """A full disk must not end a training for the sake of its event log."""
    with suppress(OSError):
        kept.write(line.encode("utf-8", "surrogatepass"))


def _stop(worker: subprocess.Popen[str]) -> None:
    """Let the worker finish its step and write a checkpoint; a second interrupt, or two minutes, end it."""
    with suppress(ProcessLookupError):
        worker.send_signal(signal.SIGINT)
    try:
        worker.communicate(timeout=GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        worker.kill()
        worker.wait()


def _parse(line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _event(record: Mapping[str, Any]) -> Event | None:
    kind = EVENTS.get(str(record.get("event")))
    if kind is None:
        return None
    try:
        return kind(**{key: value for key, value in record.items() if key != "event"})
    except TypeError:
        return None


def _error(job: TrainingJob, code: int, failure: dict[str, str] | None, starved: bool) -> AdvisorError:
    if failure:
        return AdvisorError(failure["what"], where=failure["where"], do=failure["do"])
    # A second signal while it ends kills it, after its checkpoint.
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        return Interrupted(f"the training ({job.purpose}) was stopped", where=str(job.folder), do=RESUME)
    log = job.folder / "worker.log"
    if starved:
        what = "the system killed the training for lack of memory, and fewer rows at a time do not help"
        return AdvisorError(what, where=str(job.folder), do=SMALLER)
    if code == -signal.SIGKILL:
        what = "the training process was killed (signal 9; often by the system, for lack of memory)"
        return AdvisorError(what, where=str(job.folder), do=RESUME)
    return AdvisorError(f"the training process ended with code {code}{_tail(log)}", where=str(log), do=RESUME)


def _tail(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return ":\n  " + "\n  ".join(lines[-8:]) if lines else ""
