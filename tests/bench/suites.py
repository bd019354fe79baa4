"""Can the built-in suites tell? The base's scores, task by task, and how often planted damage is found.

`python tests/bench/suites.py [--fast]`. Noise is drawn anew in every draw and added to all weights, each draw in the strength in which it
costs about 8 points on half of `standard`. A draw is found where the quick suite calls it broken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from harness import ROOT, Bench
from rich.console import Console

from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.models import DEMO_MODEL
from evals.events import ignore
from evals.general.fast import fast_lm
from evals.general.halves import half
from evals.general.lm_eval import GeneralItem, GeneralScores, _item, measure, run_task
from evals.general.suites import Suite, quick_suite, standard_suite
from evals.statistics.margin import NonInferiority, loss_found, non_inferiority
from evals.statistics.paired import wilson_interval

HOME = ROOT / "build" / "bench" / "suites"
MARGIN, LOST, FOUND = 0.05, 0.08, 0.8
# Above chance and at most: room to fall, and to rise.
ROOM, CEILING = 0.10, 0.90
DRAWS = 20
# One strength costs 2 points in one draw and 9 in another: each is set by what it costs on half of `standard`, until that is NEAR enough.
START, NEAR, TRIES = 0.085, 0.01, 4
# Loss grows with this power of the strength: .07 and .08 of one draw cost 7.3 and 8.9 points.
STEEP = 1.5


@contextmanager
def noise(engine: HfEngine, strength: float, seed: int) -> Iterator[None]:
    """Every matrix with normal noise of `strength` times its own spread; the weights are put back."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [one for one in engine.handle.model.parameters() if one.ndim == 2]
    before = [one.detach().clone() for one in matrices]
    with torch.no_grad():
        for one in matrices:
            drawn = torch.randn(one.shape, generator=generator) * one.float().std() * strength
            one.copy_((one.float() + drawn).to(one.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for one, old in zip(matrices, before, strict=True):
                one.copy_(old)


def asked(engine: HfEngine, suite: Suite, label: str) -> GeneralScores:
    """A suite's items of damaged weights, kept below build/ by label: `measure` would take them for the base's."""
    path = HOME / f"{suite.name}-{label}.json"
    if not path.is_file():
        items: list[GeneralItem] = []
        for task in suite.tasks:
            tasks, samples = run_task(fast_lm(engine, lambda _: None), task)
            items += [_item(task, tasks[name], row)[0] for name, rows in samples.items() for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(one) for one in items]), encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return GeneralScores(label, suite.name, tuple(GeneralItem(**one) for one in rows))


def change(base: GeneralScores, other: GeneralScores, suite: Suite) -> NonInferiority:
    before = {(one.task, one.id): one.score for one in base.items if one.task in suite.pooled}
    both = [(one.score, before[one.task, one.id]) for one in other.items if one.task in suite.pooled]
    return non_inferiority([one for one, _ in both], [one for _, one in both], MARGIN)


@dataclass(frozen=True)
class Planted:
    """A draw's strength and what it costs on half of `standard`, as a share."""

    seed: int
    strength: float
    lost: float


def plant(engine: HfEngine, base: GeneralScores, standard: Suite, seed: int, tries: int = TRIES) -> Planted:
    """The strength in which this draw costs LOST on half of `standard`, or the nearest that was tried."""
    asked_of = half(standard.decisive, "a")
    strength, tried = START, list[Planted]()
    for _ in range(tries):
        with noise(engine, strength, seed):
            after = asked(engine, asked_of, f"noise-{strength}-{seed}")
        tried.append(Planted(seed, strength, -change(base, after, standard).estimate))
        if abs(tried[-1].lost - LOST) <= NEAR:
            break
        strength = round(strength * (LOST / max(tried[-1].lost, LOST / 4)) ** (1 / STEEP), 3)
    return min(tried, key=lambda one: abs(one.lost - LOST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    bench, console = Bench("suites", fast=fast), Console()
    engine = HfEngine(ModelHandle(DEMO_MODEL, "auto", ignore))
    suites = {one.name: one for one in (quick_suite(), standard_suite())}
    base = {name: measure(engine, one, HOME / "general", "base", ignore)[0] for name, one in suites.items()}
    for name, suite in suites.items():
        scores = {task: sum(one.score for one in items) / len(items) for task, items in base[name].by_task().items()}
        bench.figure(f"{name}: the base's scores", scores)
        pooled = sum(one.items for one in suite.tasks if one.pooled)
        bench.figure(
            f"{name}: items", {"pooled": pooled, "all": suite.items, "loss found in 80%, computed": loss_found(pooled, MARGIN)}
        )
        outside = [one.name for one in suite.tasks if one.pooled and not one.chance + ROOM <= scores[one.name] <= CEILING]
        bench.goal(f"{name}: pooled tasks without room", 0, len(outside), not outside)
    quick, standard = suites["quick"], suites["standard"]
    draws: list[Planted] = []
    found: list[NonInferiority] = []
    for seed in range(1, (2 if fast else DRAWS) + 1):
        draw = plant(engine, base["standard"], standard, seed, 1 if fast else TRIES)
        with noise(engine, draw.strength, seed):
            one = change(base["quick"], asked(engine, quick.decisive, f"noise-{draw.strength}-{seed}"), quick)
        draws.append(draw)
        found.append(one)
        console.print(
            f"draw {seed}: noise of {draw.strength}, {-100 * draw.lost:+.1f} on half of standard; "
            f"quick {100 * one.estimate:+.1f} ({100 * one.low:+.1f}, {100 * one.high:+.1f}) {one.answer}"
        )
    hits = sum(one.answer == "broken" for one in found)
    low, high = wilson_interval(hits, len(draws))
    bench.figure(
        "draws",
        {
            "count": len(draws),
            "mean strength": mean(one.strength for one in draws),
            "mean loss on half of standard": mean(one.lost for one in draws),
            "mean loss on quick": mean(-one.estimate for one in found),
        },
    )
    bench.figure("draws found", {"share": hits / len(draws), "low": low, "high": high})
    bench.goal(f"noise that costs {100 * LOST:g} points is called broken", FOUND, hits / len(draws), hits >= FOUND * len(draws))
    bench.finish()


if __name__ == "__main__":
    main()
