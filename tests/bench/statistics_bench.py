"""How often the statistics are wrong where the truth is known: false claims, missed coverage, races lost, promises of power.

Everything is simulated on the shipped functions (`simulations.py`), with fixed seeds: a figure that moves is a change of code.
Not called `statistics.py`: a script's folder comes first on the path, and Python's own module has that name.
"""

from __future__ import annotations

import argparse
import itertools
from typing import get_args

import numpy as np
from harness import Bench
from simulations import (
    COVERAGE,
    FALSE,
    FULL,
    Kind,
    Layout,
    Rate,
    any_claim,
    best_dropped,
    claims,
    never_apart,
    passes,
    peeking,
    ppi_misses,
    racing,
    shown,
    stopped,
    winner,
)

from evals.statistics.margin import chance_of_passing
from evals.statistics.power import TYPICAL_SD, minimum_detectable_effect, required_n

SPREAD = tuple(float(one) for one in np.linspace(0.8, 0.3, 12))
CLOSE = tuple(float(one) for one in np.linspace(0.7, 0.5, 12))
EQUAL = (0.6,) * 12
# Where what is promised beforehand and what is kept differ by more, the promise is wrong.
POINTS = 0.05


def two_equal_candidates(bench: Bench, runs: int) -> None:
    found = {}
    for n, kind, layout in itertools.product((50, 100, 300), get_args(Kind), get_args(Layout)):
        one = claims(kind, layout, n, runs, seed=1)
        found[f"n={n} {kind}, clusters {layout}"] = f"{one.interval.share:.4f}, {one.test.share:.4f}, {one.both.share:.4f}"
        text = f"two equal candidates, n = {n}, {kind}, clusters: {layout}"
        _at_most(bench, f"{text}: the interval excludes 0", one.interval, FALSE)
        _at_most(bench, f"{text}: p < 0.05", one.test, FALSE)
    bench.figure("false claims on two equal candidates: by interval, by p-value, by both", found)


def many_equal_candidates(bench: Bench, runs: int) -> None:
    found: dict[str, float] = {}
    for kind, layout, n in (
        ("binary", "none", 50),
        ("binary", "none", 300),
        ("graded", "none", 100),
        ("graded", "unequal", 100),
    ):
        one = any_claim(kind, layout, n, runs, seed=2)
        found[f"n={n} {kind}, clusters {layout}"] = one.share
        _at_most(bench, f"20 equal candidates, n = {n}, {kind}, clusters: {layout}: any claimed (Holm)", one, FALSE)
    found["without Holm, n=100 binary"] = any_claim("binary", "none", 100, runs, seed=2, adjust=list).share
    bench.figure("any false claim among 20 equal candidates against the one named beforehand", found)


def best_of_twenty(bench: Bench, runs: int) -> None:
    table = {}
    for n in (50, 100, 300, 1000):
        one = winner("binary", n, runs, seed=3)
        table[f"n={n}"] = {
            "naive gain": one.naive,
            "honest gain": one.honest,
            "claimed better on dev itself": one.flattered.share,
            "claimed to differ from the runner-up on locked items": one.locked.share,
        }
        _at_most(bench, f"best of 20 equal candidates against the runner-up on {n} locked items: claimed", one.locked, FALSE)
        error = 3.5 * one.honest_error
        bench.invariant(
            f"best of 20 equal candidates: no gain on {n} fresh items (within {error:.4f})", abs(one.honest) < error
        )
    bench.figure("best of 20 equal candidates", table)


def stopping(bench: Bench, runs: int) -> None:
    found: dict[str, float] = {}
    for kind, layout, means in (
        ("binary", "none", (0.6, 0.6)),
        ("binary", "none", (0.65, 0.55)),
        ("binary", "unequal", (0.65, 0.55)),
        ("graded", "none", (0.6, 0.6)),
        ("graded", "equal", (0.6, 0.6)),
        ("graded", "unequal", (0.6, 0.6)),
    ):
        one = stopped(kind, layout, 300, runs, seed=4, means=means)
        text = f"{kind}, clusters {layout}, difference {means[0] - means[1]:.2g}"
        found[text] = one.share
        _at_least(bench, f"the confidence sequence holds the truth where one stops: {text}", one, COVERAGE)
    for kind, layout in itertools.product(get_args(Kind), get_args(Layout)):
        one = never_apart(kind, layout, 300, runs, seed=5)
        found[f"never told apart: {kind}, clusters {layout}"] = one.share
        _at_least(bench, f"equal candidates are not told apart at any of 300 looks: {kind}, clusters {layout}", one, COVERAGE)
    wrong = never_apart("graded", "none", 300, runs // 10, seed=5, apart=peeking)
    found["never told apart by the fixed-n interval, 30 looks (the wrong way)"] = wrong.share
    bench.figure("coverage where one stops, n up to 300", found)


def races(bench: Bench, runs: int) -> None:
    dropped: dict[str, float] = {}
    for name, means, layout in (
        ("12 equal", EQUAL, "none"),
        ("12 equal", EQUAL, "unequal"),
        ("12 close", CLOSE, "none"),
        ("3 equal", EQUAL[:3], "none"),
        ("2 equal", EQUAL[:2], "none"),
    ):
        one = best_dropped(means, layout, 300, runs, seed=6)
        dropped[f"{name}, clusters {layout}"] = one.share
        _at_most(bench, f"a race by e-values drops the best of {name}, clusters {layout}", one, 0.05)
    bench.figure("races by e-values that drop the best", dropped)
    for name, means in (("spread", SPREAD), ("close", CLOSE), ("equal", EQUAL)):
        for keep in (1, 4):
            found = racing(means, 300, runs, seed=7, rounds=6, keep=keep)
            bench.figure(
                f"race of 12 {name} arms, budget 6 of 12 evaluations, {keep} through",
                {
                    "share of full evaluation's answers": found.spent,
                    "lost to full evaluation's pick": found.regret,
                    "lost more than a point": found.worse.share,
                    "all that came through called equal": found.equal.share,
                },
            )
            bench.invariant(f"race of 12 {name} arms, {keep} through: at most 60% of the answers", found.spent <= 0.6)
            bench.goal(f"race of 12 {name} arms, {keep} through: points lost", 1, 100 * found.regret, found.regret <= 0.01)
            if name == "spread":
                held = found.regret - 3 * found.regret_error <= 0.01
                bench.invariant(f"race of 12 spread arms, {keep} through: within a point of full evaluation", held)
            if name == "equal" and keep > 1:
                _at_least(bench, "12 equal arms are called equal", found.equal, COVERAGE)


def forgetting(bench: Bench, runs: int) -> None:
    false: dict[str, float] = {}
    for n, margin, share in itertools.product((300, 600, 1500, 2500), (0.02, 0.05), (0.06, 0.15, 0.3)):
        one = passes(n, margin, share, margin, 4 * runs, seed=8)
        false[f"n={n} margin {margin}, {share:.0%} change"] = one.share
        _at_most(bench, f"a loss of the margin of {margin} passes, {n} items of which {share:.0%} change", one, FALSE)
    bench.figure("the forgetting gate passes a loss of the margin", false)
    power: dict[str, str] = {}
    for n, margin, share in itertools.product((300, 600, 1500, 2500), (0.02, 0.05), (0.08, 0.15, 0.3)):
        one, promised = passes(n, margin, share, 0.0, runs, seed=9), chance_of_passing(n, margin, share)
        power[f"n={n} margin {margin}, {share:.0%} change"] = f"{one.share:.3f} (promised {promised:.3f})"
        _kept(bench, f"the gate without a loss, n = {n}, margin {margin}, {share:.0%} change", one, promised)
    bench.figure("the forgetting gate passes without a loss", power)


def promises(bench: Bench, runs: int) -> None:
    power: dict[str, str] = {}
    for n in (50, 100, 300, 1000):
        effect = minimum_detectable_effect(n)
        one = shown(n, effect, TYPICAL_SD**2 + effect**2, runs, seed=10)
        power[f"minimum detectable effect {effect:.3f} of n={n}"] = f"{one.share:.3f} (promised 0.8)"
        _kept(bench, f"the minimum detectable effect of {n} items is shown", one, 0.8)
    for effect in (0.02, 0.05, 0.1):
        n = required_n(effect)
        one = shown(n, effect, TYPICAL_SD**2 + effect**2, runs, seed=11)
        power[f"{n} items required for {effect}"] = f"{one.share:.3f} (promised 0.8)"
        _kept(bench, f"the {n} items that an effect of {effect} requires show it", one, 0.8)
    bench.figure("power", power)


def labels_of_people(bench: Bench, runs: int) -> None:
    missed: dict[str, float] = {}
    for labels, agreement in itertools.product((30, 60, 150), (0.0, 0.6, 0.9)):
        one = ppi_misses(600, labels, agreement, runs, seed=12)
        missed[f"{labels} of 600 labelled, judge copies {agreement:.0%}"] = one.share
        _at_most(bench, f"the PPI interval misses: {labels} of 600 labelled, judge copies {agreement:.0%}", one, FALSE)
    bench.figure("the PPI interval misses people's mean", missed)


def _at_most(bench: Bench, text: str, rate: Rate, limit: float) -> None:
    bench.invariant(f"{text}: {rate.share:.4f} <= {limit}", rate.at_most(limit))


def _at_least(bench: Bench, text: str, rate: Rate, limit: float) -> None:
    bench.invariant(f"{text}: {rate.share:.4f} >= {limit}", rate.at_least(limit))


def _kept(bench: Bench, text: str, rate: Rate, promised: float) -> None:
    bench.invariant(f"{text}: {rate.share:.3f}, promised {promised:.3f}", rate.near(promised, POINTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a tenth of the runs; limits are wider by their Monte-Carlo error")
    fast = parser.parse_args().fast
    runs = FULL // 10 if fast else FULL
    bench = Bench("statistics", fast=fast)
    bench.figure("runs of each", runs)
    two_equal_candidates(bench, runs)
    many_equal_candidates(bench, runs)
    best_of_twenty(bench, runs)
    stopping(bench, runs)
    races(bench, runs)
    forgetting(bench, runs)
    promises(bench, runs)
    labels_of_people(bench, runs)
    bench.finish()


if __name__ == "__main__":
    main()
