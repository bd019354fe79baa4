"""The training process: `python -m trainer.worker FOLDER PARENT`. Events go out as JSON Lines, talk goes to stderr.

Exit codes: 0 done; 1 failed (the last event says why, where it can); 130 stopped on request, a checkpoint is kept.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from evals.errors import AdvisorError
from evals.events import Event, to_json
from evals.records import jsonable
from trainer.callbacks import Stop
from trainer.job import TrainingJob
from trainer.memory import SMALLER, out_of_memory
from trainer.methods import preference, pretraining, sft

METHODS = {
    "sft": sft.run,
    "raft": sft.run,
    "rejection_sampling": sft.run,
    "pretraining": pretraining.run,
    "dpo": preference.run,
}
STOPPED = 130


def main(arguments: list[str]) -> int:
    folder, parent = Path(arguments[0]), int(arguments[1])
    stop = Stop()
    out = _claim_stdout()
    _listen_for_signals(stop)
    _end_with(parent, stop)

    def emit(event: Event) -> None:
        _send(out, to_json(event), stop)

    try:
        alone = _alone(folder)
        job, input_hash = TrainingJob.read(folder)
        trained = METHODS[job.recipe.method](job, input_hash, emit, stop)
    except AdvisorError as error:
        _log()
        _send(out, {"event": "Failed", "what": error.what, "where": error.where, "do": error.do}, stop)
        return 1
    except (Exception, MemoryError) as error:
        _log()
        _send(out, {"event": "Failed", **_explained(error, folder)}, stop)
        return 1
    alone.close()
    return STOPPED if trained is None else 0


def _alone(folder: Path) -> TextIO:
    """One process a training: where a parent died, its orphan may still be writing the checkpoint that is gone on from. Waits for it."""
    lock = (folder / ".worker.lock").open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _log() -> None:
    """The exception in hand to the log; on a full disk the event alone tells of it."""
    with suppress(OSError):
        traceback.print_exc()


def _claim_stdout() -> TextIO:
    """stdout for events alone: whatever a library prints goes to stderr, which is the log."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return events


def _send(out: TextIO, record: dict[str, Any], stop: Stop) -> None:
    try:
        out.write(json.dumps(jsonable(record), ensure_ascii=False) + "\n")
        out.flush()
    except (BrokenPipeError, ValueError):
        # Nobody listens any more: keep what is done and end.
        stop.asked = True


def _listen_for_signals(stop: Stop) -> None:
    """SIGINT and SIGTERM: after the current step while training, at once before and after it, and the second time."""
    heard: list[int] = []

    def handle(number: int, frame: object) -> None:
        heard.append(number)
        stop.asked = True
        if not stop.training or len(heard) > 1:
            os._exit(STOPPED)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _end_with(parent: int, stop: Stop) -> None:
    """Stop when the parent is gone, with a checkpoint: an orphan would hold both cores for nobody.

    Not by a signal: a parent that passed one on before it died would have us end at once.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        stop.asked = True
        if not stop.training:
            os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


def _explained(error: BaseException, folder: Path) -> dict[str, str]:
    """A sentence for what people can mend (disk, memory); the exception's own first line for the rest."""
    text = str(error).strip() or type(error).__name__
    low = text.lower()
    # torch tells of a full disk by its archive writer's position check.
    if "no space left" in low or "inline_container" in low or getattr(error, "errno", None) == errno.ENOSPC:
        return {
            "what": "the disk is full: what was trained could not be written",
            "where": str(folder),
            "do": "free some disk space, then run the same command again; it goes on from the last whole checkpoint.",
        }
    if out_of_memory(error):
        # Batches are halved before it comes to this.
        return {"what": "there is not enough memory for the model and its optimiser", "where": str(folder), "do": SMALLER}
    return {
        "what": f"the training failed: {type(error).__name__}: {text.splitlines()[0][:300]}",
        "where": str(folder / "worker.log"),
        "do": "look at the end of that log; the same command goes on from the last whole checkpoint.",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
