"""What the trainer tells while it runs: one event a step, a mark on every whole checkpoint, an ear for 'stop', measurements on the way."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.events import OnEvent, TrainingStep
from evals.records import read_json, write_json
from trainer.checkpoints import Spent
from trainer.recipe import Best


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
    with suppress(OSError, ValueError, StopIteration):
        # Linux carries `ru_maxrss` through exec: a training would begin with the peak of the process that started it.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@dataclass
class Watch:
    """What was measured on the way, step -> value, and what follows: which weights to keep, and when to stop.

    `losses` and `scores` are of dev, `divergences` the KL to the model before training. With a `patience` above 0 the best weights are
    kept: of the lowest loss, or `by` score of the highest, of equals the one with the lower loss, then the earlier.

    Kept in `path` after each measurement, so that a training which goes on from a checkpoint knows those up to its step, and comes
    to the same end. Measurements behind that step are forgotten: they will be made again, and give the same.
    """

    path: Path
    patience: int = 0
    by: Best = "loss"
    losses: dict[int, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    divergences: dict[int, float] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, dict[int, float]]:
        return {"losses": self.losses, "scores": self.scores, "divergences": self.divergences}

    def go_on_from(self, step: int) -> None:
        kept = read_json(self.path) if step and self.path.is_file() else {}
        for name, known in self.kinds.items():
            known.clear()
            known |= {int(at): float(value) for at, value in kept.get(name, {}).items() if int(at) <= step}

    def add(self, step: int, found: Mapping[str, float]) -> None:
        """Write down what was measured at a step, by the names of `kinds`."""
        for name, value in found.items():
            self.kinds[name][step] = value
        write_json(self.path, self.kinds)

    @property
    def decisive(self) -> dict[int, float]:
        """What the best is chosen by."""
        return self.scores if self.by == "score" else self.losses

    def better(self, found: Mapping[str, float]) -> bool:
        """Whether weights of which this was measured are better than all before them."""
        decides = "scores" if self.by == "score" else "losses"
        if not self.patience or decides not in found:
            return False
        return not self.decisive or self._rank(found) < min(map(self._known, self.decisive))

    @property
    def best(self) -> int:
        """The step of the best, the first of equals."""
        return min(self.decisive, key=lambda step: (self._known(step), step))

    @property
    def over(self) -> bool:
        """Whether the last `patience` measurements brought nothing better."""
        if not self.patience or not self.decisive:
            return False
        return len([step for step in self.decisive if step > self.best]) >= self.patience

    def _known(self, step: int) -> tuple[float, float]:
        return self._rank({name: values[step] for name, values in self.kinds.items() if step in values})

    def _rank(self, found: Mapping[str, float]) -> tuple[float, float]:
        """The lower, the better."""
        return (-found["scores"] if self.by == "score" else 0.0), found.get("losses", 0.0)


@dataclass(frozen=True)
class Probe:
    """A measurement of the model in training, every so many steps, and `at_last` after the last one too. `kind` is one of `Watch.kinds`."""

    kind: str
    every: int
    measure: Callable[[], float]
    at_last: bool = True

    def due(self, step: int, last: int) -> bool:
        return step % self.every == 0 if step < last else self.at_last


def watching(watch: Watch, probes: Sequence[Probe], keep: Callable[[int], None], heard: Callable[[int, float], None]) -> Any:
    """The callback that measures, has the best weights kept, and stops the training. `heard` is told of each KL before it is written.

    Not transformers' own: that needs its evaluation loop, saves a checkpoint with every measurement, and is not whole after a kill.
    """
    from transformers import TrainerCallback

    class Watching(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            found = {probe.kind: probe.measure() for probe in probes if probe.due(step, state.max_steps)}
            if not found:
                return
            if "divergences" in found:
                heard(step, found["divergences"])
            # The weights first: a measurement that is written down has its weights on the disk.
            if watch.better(found):
                keep(step)
            watch.add(step, found)
            if watch.over:
                # Without a checkpoint of this step: going on from one would train past the end.
                control.should_save = False
                control.should_training_stop = True

    return Watching()


def event_stream(emit: OnEvent, meter: Meter, stop: Stop, purpose: str, watch: Watch | None = None) -> Any:
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
                    dev_loss=watch.losses.get(state.global_step) if watch else None,
                    dev_score=watch.scores.get(state.global_step) if watch else None,
                    kl=watch.divergences.get(state.global_step) if watch else None,
                    learning_rate=logs.get("learning_rate", 0.0),
                    tokens_per_second=(tokens_now - tokens_then) / seconds,
                    eta=(state.max_steps - state.global_step) * seconds / (len(self.recent) - 1),
                    memory_mib=peak_memory_mib(),
                )
            )

    return EventStream()
