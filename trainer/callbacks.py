"""What the trainer tells while it runs: one event a step, a mark on every whole checkpoint, and an ear for 'stop'."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.events import OnEvent, TrainingStep
from trainer.checkpoints import Spent, mark_complete


@dataclass
class Stop:
    """Set by a signal; the trainer looks at it after every step. `training` is true while a checkpoint can be made."""

    asked: bool = False
    training: bool = False


@dataclass
class Meter:
    """Time, tokens and memory of a training, going on from what its earlier parts have spent."""

    before: Spent = field(default_factory=Spent)
    tokens: int = 0
    started: float = 0.0

    def start(self) -> None:
        self.started = time.monotonic()

    @property
    def spent(self) -> Spent:
        seconds = time.monotonic() - self.started if self.started else 0.0
        memory = max(self.before.memory_mib, peak_memory_mib())
        return Spent(self.before.seconds + seconds, self.before.tokens + self.tokens, memory)


def peak_memory_mib() -> float:
    """Peak of the GPU's memory where one is used, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def event_stream(emit: OnEvent, meter: Meter, stop: Stop, purpose: str) -> Any:
    """The callback for transformers' Trainer. Rates are means over the last 20 steps."""
    from transformers import TrainerCallback

    class EventStream(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.recent: deque[tuple[float, int]] = deque(maxlen=21)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.start()
            stop.training = True
            self.recent.append((time.monotonic(), meter.tokens))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if stop.asked:
                control.should_save = True
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:
                return
            self.recent.append((time.monotonic(), meter.tokens))
            (first, tokens_then), (last, tokens_now) = self.recent[0], self.recent[-1]
            seconds = max(last - first, 1e-9)
            emit(
                TrainingStep(
                    purpose=purpose,
                    step=state.global_step,
                    total_steps=state.max_steps,
                    loss=logs["loss"],
                    dev_loss=None,
                    learning_rate=logs.get("learning_rate", 0.0),
                    tokens_per_second=(tokens_now - tokens_then) / seconds,
                    eta=(state.max_steps - state.global_step) * seconds / (len(self.recent) - 1),
                    memory_mib=peak_memory_mib(),
                )
            )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", meter.spent)

    return EventStream()
