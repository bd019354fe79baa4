"""Is the advice right? Tasks with a known answer, measured exhaustively, and the advisor on a hundred resamples of each.

`python tests/bench/advisor_bench.py [--fast] [--only NAME …] [--measure]`. What is measured is kept below build/bench/advisor (hours the
first time on two cores, resumable after every answer). `--fast` draws fewer resamples of the tasks that are measured already, and
where none is, measures two planted ones (some ten minutes). A change of the decision asks no model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from advisor_measure import Measured, Measurement, answers_left_out, read_measured
from advisor_resample import DEV, Outcome, Population, Sample, loss_is_visible, renamed, without_effects
from advisor_tasks import TASKS, Known
from harness import ROOT, Bench, bench_data
from rich.console import Console
from rich.table import Table

RESAMPLES, FAST = 100, 20
A_A = 200
CLOSE = 0.01
WORKERS = 2
# Measured in some minutes, without the data for benchmarks.
SMALL = ("plain_form", "facts_removed")


@dataclass(frozen=True)
class Judged:
    """All resamples of one task."""

    name: str
    best: str
    best_score: float
    outcomes: tuple[Outcome, ...]
    right: tuple[bool, ...]
    visible: tuple[bool, ...]
    exhaustive: tuple[int, int]
    left_out: int
    same_when_renamed: bool
    mislabelled: int
    a_a: int

    @property
    def undecided(self) -> int:
        return sum(one.action == "undecided" for one in self.outcomes)

    @property
    def wrong_and_sure(self) -> list[bool]:
        """By what is given away alone: an action that is right by construction with a poor candidate is wrong as well."""
        return [one.sure and one.action != "undecided" and one.regret > CLOSE for one in self.outcomes]

    @property
    def decided_regret(self) -> list[float]:
        """In score."""
        return [one.regret for one in self.outcomes if one.action != "undecided"]

    @property
    def spend(self) -> float:
        """Answers asked of the model, as a share of all that were measured."""
        return median(one.requests for one in self.outcomes) / max(1, self.exhaustive[0])

    @property
    def spend_of_every_way(self) -> float:
        """The same as a share of all that a run could ask, those that were left out of the measurement too."""
        return median(one.requests for one in self.outcomes) / (self.exhaustive[0] + DEV * self.left_out)


def population_of(name: str, known: Known, home: Path) -> Population | None:
    measured = read_measured(home / (known.shares or name))
    if measured is None:
        return None
    return Population(known.changed(measured) if known.changed else measured, known.given)


def judged(name: str, home: Path, resamples: int) -> Judged | None:
    known = TASKS[name]
    population = population_of(name, known, home)
    if population is None:
        return None
    outcomes = [_excused(Sample(population, seed).outcome(), known) for seed in range(resamples)]
    right = tuple(one.action != "undecided" and (one.action in known.right or one.regret <= CLOSE) for one in outcomes)
    best = population.best()
    return Judged(
        name,
        best,
        population.truth[best].mean,
        tuple(outcomes),
        right,
        tuple(loss_is_visible(population, one.candidate, DEV) for one in outcomes),
        population.exhaustive(DEV),
        answers_left_out(population.measured.plan.rows),
        _same_when_renamed(population.measured, population, outcomes[:3]),
        sum(without_effects(population.measured, seed).cause != "none" for seed in range(A_A)),
        A_A,
    )


def _excused(one: Outcome, known: Known) -> Outcome:
    """Without the regret that is luck of the population: where nothing helps, no way is truly better than a blind guess."""
    return replace(one, regret=0.0) if known.nothing_helps and one.action in known.right else one


def _same_when_renamed(measured: Measured, population: Population, outcomes: Sequence[Outcome]) -> bool:
    other, names = renamed(measured)
    again = Population(other, population.given)
    for seed, one in enumerate(outcomes):
        found = Sample(again, seed).outcome()
        if (found.action, found.candidate) != (one.action, names.get(one.candidate, one.candidate)):
            return False
    return True


def figures(one: Judged, known: Known) -> dict[str, Any]:
    count = len(one.outcomes)
    shares = {action: many / count for action, many in Counter(each.action for each in one.outcomes).most_common()}
    nets = [each.net_regret for each in one.outcomes if each.net_regret is not None]
    found: dict[str, Any] = {
        "best": f"{one.best} ({one.best_score:.3f})",
        "recommended": ", ".join(f"{action} {share:.0%}" for action, share in shares.items()),
        "right": sum(one.right) / count,
        "undecided": one.undecided / count,
        "wrong_and_sure": sum(one.wrong_and_sure) / count,
        "wrong_and_sure_at_twice_the_detectable": sum(
            wrong and visible for wrong, visible in zip(one.wrong_and_sure, one.visible, strict=True)
        ),
        "median_regret_points": 100 * median(one.decided_regret) if one.decided_regret else 0.0,
        "requests": median(each.requests for each in one.outcomes),
        "requests_exhaustive": one.exhaustive[0],
        # A race costs the same with them; what is exhaustive costs more.
        "requests_exhaustive_with_ways_left_out": one.exhaustive[0] + DEV * one.left_out,
        "row_passes": median(each.row_passes for each in one.outcomes),
        "row_passes_exhaustive": one.exhaustive[1],
        "mislabelled_a_a": one.mislabelled / one.a_a,
    }
    if nets:
        found["median_net_regret_money"] = median(nets)
    if known.cause:
        found["cause_found"] = sum(each.cause == known.cause for each in one.outcomes) / count
    found["causes"] = ", ".join(
        f"{cause} {many / count:.0%}" for cause, many in Counter(x.cause for x in one.outcomes).most_common()
    )
    return found


def table(found: Sequence[Judged]) -> Table:
    names = "task, best by all, recommended, right, undecided, wrong and sure, regret, net regret, spend, causes named"
    head = Table(*names.split(", "), title="advisor")
    for one in found:
        told = figures(one, TASKS[one.name])
        head.add_row(
            one.name,
            told["best"],
            told["recommended"],
            f"{told['right']:.0%}",
            f"{told['undecided']:.0%}",
            f"{told['wrong_and_sure']:.0%}",
            f"{told['median_regret_points']:.1f}",
            f"{told['median_net_regret_money']:,.2f}" if "median_net_regret_money" in told else "",
            f"{one.spend:.0%}",
            told["causes"],
        )
    return head


def goals(bench: Bench, found: Sequence[Judged]) -> None:
    every = [pair for one in found for pair in zip(one.outcomes, one.right, one.wrong_and_sure, one.visible, strict=True)]
    count = len(every)
    right = sum(right for _, right, _, _ in every) / count
    undecided = sum(one.action == "undecided" for one, _, _, _ in every) / count
    wrong = sum(wrong for _, _, wrong, _ in every) / count
    visible = sum(wrong and seen for _, _, wrong, seen in every)
    regrets = [regret for one in found for regret in one.decided_regret]
    regret = 100 * median(regrets) if regrets else math.nan
    spend = median(one.spend for one in found)
    planted = [(one, TASKS[one.name].cause) for one in found if TASKS[one.name].cause]
    causes = [each.cause == cause for one, cause in planted for each in one.outcomes]
    mislabelled = sum(one.mislabelled for one in found) / sum(one.a_a for one in found)
    bench.goal("right, share of resamples", 0.75, right, right >= 0.75)
    bench.goal("undecided, share of resamples", 0.25, undecided, undecided <= 0.25)
    bench.goal("wrong and sure, share of resamples", 0.02, wrong, wrong <= 0.02)
    bench.goal("wrong and sure at twice the detectable effect, count", 0, visible, visible == 0)
    bench.goal("median regret, points", 1.0, regret, regret <= 1.0)
    bench.goal("median spend, share of all that was measured", 0.5, spend, spend <= 0.5)
    every_way = median(one.spend_of_every_way for one in found)
    bench.goal("median spend, share of all ways, those left out too", 0.5, every_way, every_way <= 0.5)
    if causes:
        bench.goal("planted cause found, share", 0.8, sum(causes) / len(causes), sum(causes) >= 0.8 * len(causes))
    bench.goal("mislabelled on A/A, share", 0.05, mislabelled, mislabelled <= 0.05)
    bench.invariant(
        "the same scores under other names give the same recommendation", all(one.same_when_renamed for one in found)
    )


def measure(names: Sequence[str], home: Path, console: Console) -> None:
    for name in names:
        known, folder = TASKS[name], home / name
        if known.shares or read_measured(folder) is not None:
            continue
        started = time.monotonic()
        if not (folder / "task" / "task.yaml").is_file():
            known.write(folder / "task")
        Measurement(name, folder / "task", folder, console).measure(curve=known.curve)
        console.print(f"{name}: measured in {time.monotonic() - started:.0f} s", markup=False, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--measure", action="store_true", help="measure what is not measured yet: hours the first time")
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    given = parser.parse_args()
    bench, console = Bench("advisor", fast=given.fast), Console(width=160)
    home = ROOT / "build" / "bench" / "advisor"
    if given.measure or not given.fast:
        bench_data()
        measure(given.only, home, console)
    elif not any(read_measured(home / name) for name in given.only):
        measure([name for name in SMALL if name in given.only], home, console)
    resamples = FAST if given.fast else RESAMPLES
    with ProcessPoolExecutor(WORKERS) as pool:
        jobs = {name: pool.submit(judged, name, home, resamples) for name in given.only}
        results = {name: job.result() for name, job in jobs.items()}
    found = [one for one in results.values() if one is not None]
    for name, one in results.items():
        if one is None:
            bench.lacks(f"{name}: not measured yet; `--measure` does it")
    if found:
        console.print(table(found))
        for one in found:
            bench.figure(one.name, figures(one, TASKS[one.name]))
        goals(bench, found)
    bench.finish()


if __name__ == "__main__":
    main()
