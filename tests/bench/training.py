"""Training through our worker against TRL's SFTTrainer: same model, rows, batch, steps, LoRA and rate.

`trl_defaults` is `SFTTrainer` as its documentation starts it: a path, a LoraConfig, and nothing else that bears on speed (weights in
fp32 under bf16 autocast, activations recomputed). `trl_best` has what its documentation recommends and this processor can do: weights
in bf16, nothing recomputed, rows of like length in a batch, the faster attention for short rows. All three train at the same time and
take turns: while one makes a block of steps, the others are stopped (SIGSTOP), so that a machine that slows down slows all of them.
A clock runs only while its process does.

Tokens are those of the rows, prompt and answer, without padding. Ours computes a beginning that the rows of a batch share once; it is
counted for every row, as for the others, and the rate with it counted once stands beside. What was measured is kept below
build/bench/training, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from harness import ROOT, Bench, commit, measured_in_child
from training_parts import ABLATION, SETS, WORK, ablated, encoded, job_of, profiled, score_adapters

from evals.engines.machine import measure_machine
from evals.engines.models import DEMO_MODEL, resolve_model
from evals.events import Event, TrainingStep, ignore
from evals.records import read_json, write_json
from evals.statistics.paired import paired_difference
from trainer.job import TrainingJob
from trainer.launch import train

PEERS = ("ours", "trl_defaults", "trl_best")
GOALS = {"trl_defaults": 2.0, "trl_best": 1.2}
# Steps that a peer makes before the next one has its turn.
BLOCK = 10


@dataclass
class Runner:
    """A training in a process of its own that runs only in its turn. `clock` is the seconds that it has run so far."""

    name: str
    start: Callable[[Callable[[int, float], None]], None]
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    clock: float = 0.0
    resumed: float | None = None
    peak_mib: float = 0.0
    error: BaseException | None = None

    def launch(self) -> None:
        self._before = {one.pid for one in psutil.Process().children(recursive=True)}
        self.resumed = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.start(self._stepped)
        except BaseException as error:
            self.error = error

    def _stepped(self, step: int, loss: float) -> None:
        if step > self.steps:
            self.steps = step
            self.losses.append(loss)
            self.times.append(self.clock + (time.monotonic() - self.resumed if self.resumed else 0.0))

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def _process(self) -> psutil.Process | None:
        found = [one for one in psutil.Process().children() if one.pid not in self._before]
        return found[0] if found else None

    def turn(self, steps: int) -> None:
        """Let it make so many more steps, then stop it. In the last turn it ends by itself."""
        wanted = self.steps + steps
        if not hasattr(self, "_pid"):
            self.launch()
            while self.running and self._process is None:
                time.sleep(0.01)
            self._pid = self._process.pid if self._process else 0
        else:
            self.resumed = time.monotonic()
            os.kill(self._pid, signal.SIGCONT)
        while self.running and self.steps < wanted:
            self._remember_peak()
            time.sleep(0.02)
        if self.running:
            os.kill(self._pid, signal.SIGSTOP)
        self.clock += time.monotonic() - (self.resumed or 0.0)
        self.resumed = None
        if self.error:
            raise self.error

    def _remember_peak(self) -> None:
        with suppress(OSError, IndexError, StopIteration):
            lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
            self.peak_mib = max(self.peak_mib, int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024)


def ours(job: TrainingJob) -> Callable[[Callable[[int, float], None]], None]:
    def start(stepped: Callable[[int, float], None]) -> None:
        def listen(event: Event) -> None:
            if isinstance(event, TrainingStep):
                stepped(event.step, event.loss)

        shutil.rmtree(job.folder, ignore_errors=True)
        train(job, listen)

    return start


def peer(name: str, peer_name: str, *, fast: bool) -> Callable[[Callable[[int, float], None]], None]:
    def start(stepped: Callable[[int, float], None]) -> None:
        command = [
            sys.executable,
            str(Path(__file__).with_name("training_peer.py")),
            name,
            peer_name,
            *(["--fast"] if fast else []),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        (WORK / name).mkdir(parents=True, exist_ok=True)
        with (WORK / name / f"{peer_name}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
            for line in process.stdout or ():
                with suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    stepped(int(record["step"]), float(record["loss"]))
            if process.wait():
                raise RuntimeError(f"{peer_name} ended with code {process.returncode}; see {WORK / name}/{peer_name}.log")

    return start


def race(name: str, *, fast: bool) -> dict[str, Any]:
    """All three trained in turns: seconds a step, losses, peak memory."""
    job = job_of(name, fast=fast)
    starts = {"ours": ours(job), **{one: peer(name, one, fast=fast) for one in PEERS[1:]}}
    runners = [Runner(one, starts[one]) for one in PEERS]
    # The first step makes room in memory; loading is not training.
    for runner in runners:
        runner.turn(1)
    turn = 0
    while any(one.running for one in runners):
        for runner in runners[turn % 3 :] + runners[: turn % 3]:
            if runner.running:
                runner.turn(BLOCK)
        turn += 1
    return {
        one.name: {
            "steps": one.steps,
            "seconds": one.times[-1] - one.times[0],
            "first_step_at": one.times[0],
            "losses": one.losses,
            "peak_mib": round(one.peak_mib),
        }
        for one in runners
    }


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was measured before at this commit, else what is measured now: a benchmark that was cut off goes on."""
    with suppress(Exception):
        record = read_json(path)
        if record["commit"] == commit():
            return record["found"]
    found = make()
    write_json(path, {"commit": commit(), "found": found})
    return found


@cache
def counted(name: str, fast: bool) -> dict[str, float]:
    """Tokens of all steps, answer tokens, and what a beginning counted once takes off; by the rows as they are encoded."""
    from trainer.prefix import common_prefix

    job = job_of(name, fast=fast)
    found = encoded(job)[1]
    passes, steps = job.recipe.num_train_epochs, job.recipe.total_steps(len(found))
    shared = common_prefix(found)
    return {
        "tokens": passes * sum(len(row["input_ids"]) for row in found),
        "answer_tokens": passes * sum(label != -100 for row in found for label in row["labels"]),
        "shared_once": shared * (passes * len(found) - steps),
        "prefix": shared,
        "steps": steps,
    }


def flops_a_token(name: str, fast: bool) -> dict[str, float]:
    """4 N a token, N being the weights of the linear layers of all blocks; the head's 4 a weight at answer tokens only."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve_model(DEMO_MODEL, ignore), local_files_only=True)
    width, inner = config.hidden_size, config.intermediate_size
    size = width // config.num_attention_heads
    blocks = config.num_hidden_layers * (2 * width * width + 2 * width * config.num_key_value_heads * size + 3 * width * inner)
    count = counted(name, fast)
    return {"blocks": 4 * blocks, "head": 4 * config.vocab_size * width * count["answer_tokens"] / count["tokens"]}


def report_race(bench: Bench, name: str, found: Mapping[str, Any], gflops: float) -> None:
    count = counted(name, bench.fast)
    rates = {}
    for one in PEERS:
        record = found[one]
        # All steps but the first.
        share = (record["steps"] - 1) / record["steps"]
        rates[one] = count["tokens"] * share / record["seconds"]
        bench.figure(
            f"{name}.{one}",
            {
                "tokens_per_second": round(rates[one]),
                "seconds_per_step": round(record["seconds"] / (record["steps"] - 1), 3),
                "steps": record["steps"],
                "seconds_to_the_first_step": round(record["first_step_at"], 1),
                "peak_memory_mib": record["peak_mib"],
                "mean_loss": round(sum(record["losses"]) / len(record["losses"]), 4),
            },
        )
        bench.invariant(f"{name}: {one} made all {count['steps']:.0f} steps", record["steps"] == count["steps"])
    once = 1 - count["shared_once"] / count["tokens"]
    bench.figure(f"{name}.ours.tokens_per_second_prefix_once", round(rates["ours"] * once))
    flops = flops_a_token(name, bench.fast)
    for one, part in (("every_row", 1.0), ("once", once)):
        used = rates["ours"] * (flops["blocks"] * part + flops["head"]) / (gflops * 1e9)
        bench.figure(f"{name}.ours.model_flops_use_prefix_counted_{one}", round(used, 3))
        if one == "every_row":
            bench.goal(f"{name}: model-FLOPs use (4N a token, head at answer tokens)", 0.2, round(used, 3), used >= 0.2)
    mine = found["ours"]["losses"]
    for one in PEERS[1:]:
        theirs = found[one]["losses"]
        gap = sum(abs(a - b) for a, b in zip(mine, theirs, strict=False)) / len(mine)
        last = max(1, len(mine) // 4)
        late = sum(mine[-last:]) / last - sum(theirs[-last:]) / last
        bench.figure(f"{name}.{one}.mean_absolute_difference_of_step_losses", round(gap, 4))
        bench.figure(f"{name}.{one}.last_quarter_loss_ours_minus_theirs", round(late, 4))
        ratio = rates["ours"] / rates[one]
        bench.goal(f"{name}: times as fast as {one}", GOALS[one], round(ratio, 2), ratio >= GOALS[one])


def report_quality(bench: Bench, name: str, found: Mapping[str, Any]) -> None:
    for one in PEERS:
        scores = found[one]["scores"]
        bench.figure(f"{name}.{one}.dev_score", round(sum(scores) / len(scores), 3))
        bench.figure(f"{name}.{one}.dev_loss", round(found[one]["loss"], 4))
        if one != "ours":
            gap = paired_difference(found["ours"]["scores"], scores)
            words = f"{100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            bench.figure(f"{name}.{one}.paired_difference_points", words)
            bench.invariant(f"{name}: the dev score is not lower than that of {one} (interval reaches zero)", gap.high >= 0)


def report_parts(bench: Bench, name: str, count: int) -> None:
    """What each change brings, one added at a time, and where the time of all of them together goes."""
    rounds: dict[str, list[float]] = {}
    for turn in range(1 if bench.fast else 2):
        for variant in (ABLATION[0], ABLATION[-1]) if bench.fast else ABLATION:
            path = WORK / name / f"ablation-{count}-{turn}-{ABLATION.index(variant)}.json"
            rate = kept(path, lambda variant=variant: measured_in_child(ablated, name, variant, count).result)
            rounds.setdefault(variant, []).append(rate)
    bench.figure(f"{name}.ablation_tokens_per_second", {one: round(max(rates)) for one, rates in rounds.items()})
    shares = kept(WORK / name / "profile.json", lambda: measured_in_child(profiled, name).result)
    bench.figure(f"{name}.time_shares", shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", choices=SETS)
    given = parser.parse_args()
    bench = Bench("training", fast=given.fast)
    machine = measure_machine(again=True)
    gflops = machine.bf16_gflops if machine.dtype == "bfloat16" else machine.fp32_gflops
    bench.figure("matrix_product_gflops", gflops)
    for name in SETS if not given.only else (given.only,):
        suffix = "-fast" if given.fast else ""
        found = kept(WORK / name / f"race{suffix}.json", lambda name=name: race(name, fast=given.fast))
        report_race(bench, name, found, gflops)
        if not given.fast:
            folders = {one: str(WORK / name / one / "adapter") for one in PEERS}
            quality = kept(WORK / name / "quality.json", lambda name=name, folders=folders: quality_of(name, folders))
            report_quality(bench, name, quality)
    report_parts(bench, "triage", 4 if given.fast else 10)
    bench.finish()


def quality_of(name: str, folders: dict[str, str]) -> Any:
    return measured_in_child(score_adapters, name, folders).result


if __name__ == "__main__":
    main()
